//! Tests of the translation caches.

use super::*;

/// An access is looked up by its first byte and compared by its last one: if a page shared its
/// slot with the next one, an access across the border would hit the next page's entry, and reach
/// the bytes before that page in the host.
#[test]
fn no_page_shares_its_slot_with_the_next_one() {
    let pages = (1..52).flat_map(|bit| [(1u64 << bit) - 1, (1 << bit) - 2, !0 << bit]);
    for page in pages.chain([!0 >> 12, (!0 >> 12) - 1]) {
        let la = page << 12;
        assert_ne!(slot(la), slot(la.wrapping_add(0x1000)), "{la:#x}");
    }
}

#[test]
fn an_empty_entry_matches_nothing() {
    for index in 0..ENTRIES {
        let page = none(index);
        assert_ne!(slot(page), index);
        assert_ne!(slot(page.wrapping_sub(0x1000)), index);
    }
}

fn page(gpa: u64) -> Page {
    Page {
        read: true,
        write: true,
        host: 0,
        gpa,
    }
}

fn key(cr3: u64) -> Key {
    Key {
        cr3,
        class: Class::Supervisor,
    }
}

#[test]
fn a_cr3_load_keeps_global_pages_and_drops_the_others() {
    let mut pool = Pool::new();
    let (at, _) = pool.select(key(0x1000));
    pool.get(at).fill(0x5000, page(0x9000 | GLOBAL));
    pool.get(at).fill(0x6000, page(0xa000));
    pool.load(0x1000, 1);
    assert_eq!(pool.get(at).entry(0x5000).read, 0x5000);
    assert_eq!(pool.get(at).entry(0x6000).read, none(slot(0x6000)));
}

#[test]
fn a_cr3_load_flushes_nothing_while_the_epoch_stands() {
    let mut pool = Pool::new();
    let (at, _) = pool.select(key(0x1000));
    pool.get(at).epoch = 7;
    pool.get(at).fill(0x6000, page(0xa000));
    pool.load(0x1000, 7);
    assert_eq!(pool.get(at).entry(0x6000).read, 0x6000);
}

#[test]
fn invlpg_reaches_every_context() {
    let mut pool = Pool::new();
    for cr3 in [0x1000, 0x2000] {
        let (at, _) = pool.select(key(cr3));
        pool.get(at).fill(0x6000, page(0xa000));
    }
    pool.drop_page(0x6123);
    for cr3 in [0x1000, 0x2000] {
        let (at, known) = pool.select(key(cr3));
        assert!(known);
        assert_eq!(pool.get(at).entry(0x6000).read, none(slot(0x6000)));
    }
}

#[test]
fn invlpg_drops_every_piece_of_a_large_page_and_no_other() {
    let mut pool = Pool::new();
    let (at, _) = pool.select(key(0x1000));
    pool.get(at).fill(0x20_0000, page(0x9000 | LARGE));
    pool.get(at).fill(0x20_5000, page(0xa000 | LARGE));
    pool.get(at).fill(0x20_6000, page(0xb000));
    pool.drop_page(0x20_1000);
    assert_ne!(pool.get(at).entry(0x20_0000).read, 0x20_0000);
    assert_ne!(pool.get(at).entry(0x20_5000).read, 0x20_5000);
    assert_eq!(pool.get(at).entry(0x20_6000).read, 0x20_6000);
}

#[test]
fn clearing_empties_whatever_was_filled() {
    let mut pool = Pool::new();
    let (at, _) = pool.select(key(0x1000));
    let pages = |n: u64| n * 0x1000;
    let known = |ctx: &Ctx, n: u64| {
        let data = ctx.entry(pages(n)).read == pages(n);
        (data, ctx.fetch(pages(n)).is_some())
    };
    for n in 0..2 * ENTRIES as u64 {
        let ctx = pool.get(at);
        ctx.fill(pages(n), page(0x9000));
        ctx.fill_fetch(pages(n), 0x9000, 0);
        assert_eq!(known(ctx, n), (true, true));
        if n % 50 == 0 {
            pool.clear();
            assert!((0..=n).all(|n| known(&pool.contexts[at].ctx, n) == (false, false)));
        }
    }
}

#[test]
fn the_kernel_jumps_alike_in_every_address_space() {
    let mut pool = Pool::new();
    let (a, _) = pool.select(key(0x1000));
    let (b, _) = pool.select(key(0x2000));
    let user = |cr3| Key {
        cr3,
        class: Class::User,
    };
    let (c, _) = pool.select(user(0x1000));
    let (d, _) = pool.select(user(0x2000));
    let [a, b, c, d] = [a, b, c, d].map(|at| pool.selected(at).jumps);
    assert_eq!(a, b);
    assert_ne!(c, d);
    assert_ne!(a, c);
}

#[test]
fn a_context_stays_where_it_is() {
    let mut pool = Pool::new();
    let (at, _) = pool.select(key(0x1000));
    let first = std::ptr::from_ref(pool.get(at));
    for cr3 in 2..3 * CONTEXTS as u64 {
        pool.select(key(cr3 << 12));
    }
    assert!(std::ptr::eq(first, pool.get(at)));
    assert_eq!(pool.contexts.len(), CONTEXTS);
}

/// Pages that share a place among the writers, and pages that are written through several entries.
#[test]
fn dropping_writers_finds_each_of_them() {
    let mut pool = Pool::new();
    let (at, _) = pool.select(key(0x1000));
    let ctx = pool.get(at);
    let pages = ENTRIES as u64 / 2;
    for n in 0..ENTRIES as u64 {
        ctx.fill(n << 12, page((n % pages) << 12));
    }
    for page in 0..pages {
        pool.drop_writers(page << 12);
        let ctx = pool.get(at);
        for n in 0..ENTRIES as u64 {
            let gone = n % pages <= page;
            assert_eq!(ctx.entry(n << 12).write != n << 12, gone, "{n} {page}");
        }
    }
}

#[test]
fn dropping_writers_keeps_readers() {
    let mut pool = Pool::new();
    let (at, _) = pool.select(key(0x1000));
    pool.get(at).fill(0x6000, page(0xa000));
    pool.drop_writers(0xa000);
    assert_eq!(pool.get(at).entry(0x6000).read, 0x6000);
    assert_eq!(pool.get(at).entry(0x6000).write, none(slot(0x6000)));
}
