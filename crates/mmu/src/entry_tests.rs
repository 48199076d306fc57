//! Tests of the entry format.

use proptest::prelude::*;

use super::*;

fn frames() -> Vec<u64> {
    let mut frames = vec![0, 1, (1 << 40) - 1];
    frames.extend((0..40).map(|bit| 1 << bit));
    frames
}

fn tags() -> Vec<u32> {
    let ends = [0, 1, (1 << 8) - 1, 1 << 8, (1 << 9) - 1, 1 << 9];
    let mut tags = ends.to_vec();
    tags.extend([(1 << 19) - 150, (1 << 19) - 1]);
    tags.extend((0..19).map(|bit| 1 << bit));
    tags
}

#[test]
fn r1_every_field_of_an_mmio_entry_reads_back_as_written() {
    for gfn in frames() {
        for tag in tags() {
            for access in 0..4 {
                let mmio = Mmio {
                    gfn: Gfn(gfn),
                    rights: Rights::from_bits(access),
                    tag: Tag(tag),
                };
                let raw = Entry::Mmio(mmio).encode();
                assert_eq!(Entry::decode(raw), Entry::Mmio(mmio), "{raw:#x}");
            }
        }
    }
}

#[test]
fn r3_all_tags_of_the_widest_width_read_back() {
    for tag in 0..1 << TAG_BITS_MAX {
        let mmio = Mmio {
            gfn: Gfn(0xfee00),
            rights: Rights::WRITE_USER,
            tag: Tag(tag),
        };
        assert_eq!(Entry::decode(Entry::Mmio(mmio).encode()), Entry::Mmio(mmio));
    }
}

#[test]
fn r1_the_generation_that_broke_the_first_mmio_decoder_does_not_move_the_address() {
    // 0xfee00000 at generation 512 once came back as 0x100000fee00000.
    let mmio = Mmio {
        gfn: Gfn(0xfee00),
        rights: Rights::WRITE,
        tag: Tag::of(Generation(512), 19),
    };
    let Entry::Mmio(back) = Entry::decode(Entry::Mmio(mmio).encode()) else {
        panic!("an MMIO entry");
    };
    assert_eq!((back.gfn, back.rights), (Gfn(0xfee00), Rights::WRITE));
}

#[test]
fn a_tag_is_the_generation_modulo_its_width() {
    assert_eq!(Tag::of(Generation(7), 2), Tag(3));
    assert_eq!(Tag::of(Generation(1 << 19), 19), Tag(0));
    assert_eq!(Tag::of(Generation(u64::MAX), 19), Tag((1 << 19) - 1));
}

fn any_leaf() -> impl Strategy<Value = Leaf> {
    (0..1u64 << 40, 0..8u8, 0..16u8, any::<[bool; 5]>()).prop_map(
        |(page, rights, pkey, [writable, dirty, read_only, global, large])| Leaf {
            host: page << 12,
            rights: Rights::from_bits(rights),
            pkey,
            writable,
            dirty,
            read_only,
            global,
            large,
        },
    )
}

fn any_entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        Just(Entry::Absent),
        any::<u32>().prop_map(|id| Entry::Table(PageId(id))),
        any_leaf().prop_map(Entry::Leaf),
        (0..1u64 << 40, 0..4u8, 0..1u32 << 19).prop_map(|(gfn, access, tag)| {
            Entry::Mmio(Mmio {
                gfn: Gfn(gfn),
                rights: Rights::from_bits(access),
                tag: Tag(tag),
            })
        }),
    ]
}

proptest! {
    /// R1 and R2: whatever is encoded is decoded as the same kind with the same fields.
    #[test]
    fn r2_an_entry_is_of_exactly_one_kind(entry in any_entry()) {
        prop_assert_eq!(Entry::decode(entry.encode()), entry);
    }

    #[test]
    fn r1_fields_of_an_mmio_entry_do_not_see_each_other(
        gfn in 0..1u64 << 40, access in 0..4u8, tag in 0..1u32 << 19,
        other_gfn in 0..1u64 << 40, other_access in 0..4u8, other_tag in 0..1u32 << 19,
    ) {
        let make = |gfn, access, tag| Mmio {
            gfn: Gfn(gfn), rights: Rights::from_bits(access), tag: Tag(tag),
        };
        let base = make(gfn, access, tag);
        let read = |m: Mmio| Mmio::decode(m.encode());
        prop_assert_eq!(read(make(other_gfn, access, tag)).tag, base.tag);
        prop_assert_eq!(read(make(other_gfn, access, tag)).rights, base.rights);
        prop_assert_eq!(read(make(gfn, other_access, tag)).gfn, base.gfn);
        prop_assert_eq!(read(make(gfn, other_access, tag)).tag, base.tag);
        prop_assert_eq!(read(make(gfn, access, other_tag)).gfn, base.gfn);
        prop_assert_eq!(read(make(gfn, access, other_tag)).rights, base.rights);
    }
}
