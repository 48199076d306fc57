//! Units: translated code that is entered at one place, and how one leads to another.
//!
//! A unit is made of blocks of one page (or of an instruction on two, and then
//! [asks for the second](super::crossing)), so whoever may execute its entry may execute all of it: a jump
//! between units of a page needs no check, and goes through a *link*, a word that holds where to go. A
//! unit that dies has its links led back to where they ask; code that executes it stops behind the
//! instruction that killed it.
//!
//! A link to another page holds for as long as both pages are global ones and no translation of the
//! kernel's code is dropped; then all such links are led back at once. Level 3 has units of its own, so
//! that none of them is entered with a link that only the kernel may follow.

use rustc_hash::FxHashMap;

use super::cache::{Cache, Link};
use super::glue::Single;

/// Where a unit starts, and whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Guest-physical address of the first instruction.
    pub gpa: u64,
    /// Its linear address.
    pub rip: u64,
    /// Level 3 executes it.
    pub user: bool,
}

/// Translated code.
pub struct Unit {
    /// Its entry.
    pub key: Key,
    /// The 64-byte granules of its page that it was made from.
    granules: u64,
    /// The second page, of an instruction that crosses.
    second: Option<u64>,
    /// Where its code starts.
    pub entry: u64,
    /// What the interpreter does for it; the code knows where they are.
    _singles: Box<[Single]>,
    /// Links that lead here.
    incoming: Vec<Link>,
}

impl Unit {
    /// A unit that nothing leads to yet.
    pub fn new(
        key: Key,
        (granules, second): (u64, Option<u64>),
        entry: u64,
        singles: Box<[Single]>,
    ) -> Self {
        Self {
            key,
            granules,
            second,
            entry,
            _singles: singles,
            incoming: Vec::new(),
        }
    }

    /// The pages that it was made from.
    fn pages(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.key.gpa & !0xfff).chain(self.second)
    }

    /// Tells whether it was made from any of the granules `mask` of `page`.
    fn touches(&self, page: u64, mask: u64) -> bool {
        self.key.gpa & !0xfff == page && self.granules & mask != 0
            || self.second == Some(page) && mask & 1 != 0
    }
}

/// A link: where it leads while its target is unknown, and what the target is.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Code that looks elsewhere, or leaves and says so.
    pub ask: u64,
    /// Linear address that it leads to.
    pub target: u64,
    /// Its own page, linear and guest-physical, and whose it is.
    pub page: (u64, u64),
    /// Level 3 executes it.
    pub user: bool,
}

impl Exit {
    /// Whether it leads to another page.
    pub fn is_far(&self) -> bool {
        self.target & !0xfff != self.page.0
    }
}

/// The units of one processor.
#[derive(Default)]
pub struct Units {
    /// Each with its entry, so that it is found by one look.
    map: FxHashMap<Key, (u64, Box<Unit>)>,
    by_page: FxHashMap<u64, Vec<Key>>,
    exits: Vec<Exit>,
    /// Links to other pages that lead there.
    far: Vec<Link>,
    /// Units that died while they may be executing.
    #[expect(clippy::vec_box, reason = "a unit that may be executing must not move")]
    graveyard: Vec<Box<Unit>>,
}

impl Units {
    /// Looks up where a unit is entered.
    pub fn entry(&self, key: Key) -> Option<u64> {
        self.map.get(&key).map(|known| known.0)
    }

    /// Says where `link` belongs; it asks from now on.
    pub fn add_exit(&mut self, cache: &mut Cache, link: Link, exit: Exit) {
        debug_assert_eq!(self.exits.len(), link.number() as usize);
        self.exits.push(exit);
        cache.lead(link, exit.ask);
    }

    /// The exit of the link with `number`.
    pub fn exit(&self, number: u32) -> Option<Exit> {
        self.exits.get(number as usize).copied()
    }

    /// Adds a unit; there is none with its key.
    pub fn insert(&mut self, unit: Unit) {
        for page in unit.pages() {
            let keys = self.by_page.entry(page).or_default();
            // One that was dropped with its other page is still known here.
            if unit.second.is_none() || !keys.contains(&unit.key) {
                keys.push(unit.key);
            }
        }
        let old = self.map.insert(unit.key, (unit.entry, Box::new(unit)));
        debug_assert!(old.is_none(), "links lead to the old one");
    }

    /// Leads the link with `number` to `target`, if that has been translated. Tells whether it did.
    pub fn connect(&mut self, cache: &mut Cache, number: u32, target: Key, far: bool) -> bool {
        let Some((_, unit)) = self.map.get_mut(&target) else {
            return false;
        };
        let link = Link::from_number(number);
        if !unit.incoming.contains(&link) {
            unit.incoming.push(link);
        }
        if far {
            self.far.push(link);
        }
        cache.lead(link, unit.entry);
        true
    }

    /// Leads all links to other pages back.
    pub fn disconnect_far(&mut self, cache: &mut Cache) {
        for link in self.far.drain(..) {
            if let Some(exit) = self.exits.get(link.number() as usize) {
                cache.lead(link, exit.ask);
            }
        }
    }

    /// Removes the units made from `mask` of `page`; calls `gone` for each.
    pub fn invalidate(
        &mut self,
        cache: &mut Cache,
        page: u64,
        mask: u64,
        mut gone: impl FnMut(&Unit),
    ) -> usize {
        let Some(keys) = self.by_page.get_mut(&page) else {
            return 0;
        };
        let (map, graveyard, exits) = (&mut self.map, &mut self.graveyard, &self.exits);
        let before = keys.len();
        keys.retain(|key| {
            match map.get(key) {
                Some((_, unit)) if unit.touches(page, mask) => {}
                // One that was dropped with its other page may be there anew, and not be of this one.
                known => return known.is_some_and(|(_, unit)| unit.pages().any(|p| p == page)),
            }
            if let Some((_, unit)) = map.remove(key) {
                for link in &unit.incoming {
                    if let Some(exit) = exits.get(link.number() as usize) {
                        cache.lead(*link, exit.ask);
                    }
                }
                gone(&unit);
                graveyard.push(unit);
            }
            false
        });
        before - keys.len()
    }

    /// Forgets everything. The caller has dropped every jump, and no unit is executing.
    pub fn clear(&mut self) {
        self.map.clear();
        self.by_page.clear();
        self.exits.clear();
        self.far.clear();
        self.graveyard.clear();
    }

    /// Frees what died. Only while no unit is executing.
    pub fn bury(&mut self) {
        self.graveyard.clear();
    }

    /// Tells whether there is something to free.
    pub fn has_dead(&self) -> bool {
        !self.graveyard.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_on_two_pages_dies_with_either() {
        const KEY: Key = Key {
            gpa: 0x5ffd,
            rip: 0x7ffd,
            user: true,
        };
        const LAST: u64 = 1 << 63;
        let mut cache = Cache::new(0).expect("there is memory");
        let mut units = Units::default();
        for (page, mask, other) in [(0x9000, 1, LAST), (0x5000, LAST, 1), (0x9000, 1, LAST)] {
            units.insert(Unit::new(KEY, (LAST, Some(0x9000)), 0x1000, Box::default()));
            // Neither is known twice, though it was there before.
            assert!(units.by_page.values().all(|keys| keys.len() == 1));
            assert_eq!(units.invalidate(&mut cache, page, other, |_| {}), 0);
            assert_eq!(units.entry(KEY), Some(0x1000));
            assert_eq!(units.invalidate(&mut cache, page, mask, |_| {}), 1);
            assert_eq!(units.entry(KEY), None);
        }
        // At the same place there is another instruction now, which ends on its page.
        units.insert(Unit::new(KEY, (LAST, None), 0x2000, Box::default()));
        units.invalidate(&mut cache, 0x9000, 1, |_| {});
        assert_eq!(units.entry(KEY), Some(0x2000));
    }
}
