//! How shadow pages end: all at once by a mark, one after the other by age.
//!
//! *Obsolete* pages: `validity` is the number of the current era. When it advances, every page of
//! an older era is obsolete at once, without a walk: lookups do not find it, roots are not used,
//! and [`Tables::reap`] throws it away later, a few at a time. The era ends when the tag of MMIO
//! entries wraps (rules R15, R16).

use std::collections::VecDeque;

use crate::page::{PageId, Slab};
use crate::tables::Tables;

/// Pages by age, with their serial numbers. Pages that were thrown away are dropped from it when
/// they are met.
#[derive(Debug, Default)]
pub(crate) struct Age {
    order: VecDeque<(PageId, u64)>,
    next: u64,
}

impl Tables {
    /// Lists a new page as the youngest.
    pub fn remember_age(&mut self, id: PageId) {
        let age = &mut self.age;
        if age.order.len() > 2 * self.pages.len() + 64 {
            let pages = &self.pages;
            age.order.retain(|&(id, serial)| lives(pages, id, serial));
        }
        self.pages[id].serial = age.next;
        age.order.push_back((id, age.next));
        age.next += 1;
    }

    /// Makes every page obsolete. The caller publishes in the same lock section (rule R15).
    pub fn make_obsolete(&mut self) {
        self.validity += 1;
        self.stats.wraps += 1;
        self.bump_epoch();
    }

    /// Throws away up to `limit` obsolete pages; false if none is left. New pages are never
    /// reaped, so this ends however fast processors fault (rule R16).
    pub fn reap(&mut self, limit: usize) -> bool {
        for _ in 0..limit {
            // Obsolete pages are the oldest: none was made after the era ended.
            match self.oldest() {
                Some(id) if self.pages[id].validity != self.validity => self.zap(id),
                _ => return false,
            }
        }
        true
    }

    /// Makes room for `wanted` pages by throwing old ones away, pinned roots excepted.
    pub fn make_room(&mut self, wanted: usize) {
        let mut looks = 2 * self.age.order.len();
        while self.pages.len() + wanted > self.config.max_pages && looks > 0 {
            looks -= 1;
            let Some(id) = self.oldest() else { return };
            let obsolete = self.pages[id].validity != self.validity;
            let page = &mut self.pages[id];
            if !obsolete && (page.pins > 0 || std::mem::take(&mut page.used)) {
                self.age.order.rotate_left(1);
                continue;
            }
            self.zap(id);
            self.stats.pages_recycled += 1;
        }
    }

    /// The page at the head of the age list.
    fn oldest(&mut self) -> Option<PageId> {
        while let Some(&(id, serial)) = self.age.order.front() {
            if lives(&self.pages, id, serial) {
                return Some(id);
            }
            self.age.order.pop_front();
        }
        None
    }
}

/// Tells whether this is still the page that the age list meant, and not thrown away.
fn lives(pages: &Slab, id: PageId, serial: u64) -> bool {
    pages
        .get(id)
        .is_some_and(|page| page.serial == serial && !page.zapped)
}
