//! Shadow pages, and the slab that holds them.
//!
//! A shadow page is known by the guest frame that it stands for and by its *role*: every input,
//! besides that frame's contents, that the meaning of its entries depends on (rule R35). A page
//! that shadows a guest table follows the table's contents. A *direct* page maps consecutive
//! frames, in place of one large guest page that cannot be mapped by one entry, or where the
//! guest does not page at all.

use std::ops::{Index, IndexMut};

use smallvec::SmallVec;
use umbra_slots::Gfn;

use crate::entry::Entry;
use crate::guest_entry::GuestPage;
use crate::mode::Rules;
use crate::rights::Rights;

/// Names a shadow page while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PageId(pub u32);

/// Names an entry of a shadow page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EntryAt {
    pub page: PageId,
    pub index: u16,
}

/// What a direct page takes from the large guest page that it splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Direct {
    pub pkey: u8,
    pub global: bool,
    pub dirty: bool,
    /// It splits a large guest page; false where the guest does not page.
    pub large: bool,
}

/// Everything besides its frame that the meaning of a shadow page depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Role {
    pub rules: Rules,
    pub level: u8,
    /// The AND of the rights of all guest entries above; of the large page's too if direct.
    pub rights: Rights,
    pub direct: Option<Direct>,
}

impl Role {
    /// The role of the direct page that splits `page`, mapped by an entry above `level`.
    pub fn split(rules: Rules, level: u8, page: &GuestPage) -> Self {
        Self {
            rules,
            level,
            rights: page.rights,
            direct: Some(Direct {
                pkey: page.pkey,
                global: page.global,
                dirty: page.dirty,
                large: rules.format != crate::mode::Format::Off,
            }),
        }
    }

    /// How many 4 KiB frames an entry maps.
    pub fn span(&self) -> u64 {
        self.rules.format.span(self.level)
    }
}

/// A shadow page.
#[derive(Debug)]
pub(crate) struct Page {
    /// The guest table, or the first frame of a direct page.
    pub gfn: Gfn,
    pub role: Role,
    entries: Box<[u64]>,
    /// The first frame of each leaf; empty for direct pages, whose frames are consecutive.
    frames: Box<[u64]>,
    /// The entries that refer to this page.
    pub parents: SmallVec<[EntryAt; 1]>,
    /// Never used for another page.
    pub serial: u64,
    /// The validity number that it was made under; see `Tables::validity`.
    pub validity: u64,
    /// Processors whose current root this is.
    pub pins: u32,
    /// Taken out of everything; lives only until its last pin goes.
    pub zapped: bool,
    /// Trapped writes to the table since the last walk through this page.
    pub writes: u32,
    /// A walk came through since the recycler looked.
    pub used: bool,
    /// Entries that are not absent.
    pub present: u32,
}

impl Page {
    fn new(gfn: Gfn, role: Role, validity: u64) -> Self {
        let entries = role.rules.format.entries();
        let frames = if role.direct.is_some() { 0 } else { entries };
        Self {
            gfn,
            role,
            entries: vec![0; entries].into_boxed_slice(),
            frames: vec![0; frames].into_boxed_slice(),
            parents: SmallVec::new(),
            serial: 0,
            validity,
            pins: 0,
            zapped: false,
            writes: 0,
            used: true,
            present: 0,
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry at `index`.
    #[inline]
    pub fn entry(&self, index: usize) -> Entry {
        Entry::decode(self.entries[index])
    }

    /// Tells whether nothing is known at `index`.
    pub fn is_absent(&self, index: usize) -> bool {
        self.entries[index] == 0
    }

    /// Replaces the bits of an entry; links and reverse map are the caller's business.
    pub fn set(&mut self, index: usize, entry: Entry) {
        let raw = entry.encode();
        let was = self.entries[index];
        self.present += u32::from(raw != 0);
        self.present -= u32::from(was != 0);
        self.entries[index] = raw;
    }

    /// The first frame that the leaf at `index` maps.
    #[inline]
    pub fn frame(&self, index: usize) -> Gfn {
        match self.frames.get(index) {
            Some(&frame) => Gfn(frame),
            None => Gfn(self.gfn.0 + index as u64 * self.role.span()),
        }
    }

    /// Remembers the first frame of the leaf at `index`. A direct page knows it already.
    pub fn set_frame(&mut self, index: usize, frame: Gfn) {
        match self.frames.get_mut(index) {
            Some(slot) => *slot = frame.0,
            None => debug_assert_eq!(self.frame(index), frame),
        }
    }
}

/// All shadow pages, by number. Freed numbers are used again.
#[derive(Debug, Default)]
pub(crate) struct Slab {
    pages: Vec<Option<Box<Page>>>,
    free: Vec<u32>,
}

impl Slab {
    /// Makes an empty page.
    pub fn insert(&mut self, gfn: Gfn, role: Role, validity: u64) -> PageId {
        let page = Some(Box::new(Page::new(gfn, role, validity)));
        match self.free.pop() {
            Some(id) => {
                self.pages[id as usize] = page;
                PageId(id)
            }
            None => {
                self.pages.push(page);
                PageId((self.pages.len() - 1) as u32)
            }
        }
    }

    /// Frees a page.
    pub fn remove(&mut self, id: PageId) {
        let gone = self.pages[id.0 as usize].take();
        debug_assert!(gone.is_some_and(|p| p.present == 0 && p.parents.is_empty()));
        self.free.push(id.0);
    }

    /// How many pages live.
    pub fn len(&self) -> usize {
        self.pages.len() - self.free.len()
    }

    /// All pages.
    pub fn iter(&self) -> impl Iterator<Item = (PageId, &Page)> {
        let numbered = self.pages.iter().enumerate();
        numbered.filter_map(|(i, page)| Some((PageId(i as u32), page.as_deref()?)))
    }

    /// The page of this number, if it lives.
    pub fn get(&self, id: PageId) -> Option<&Page> {
        self.pages.get(id.0 as usize)?.as_deref()
    }
}

impl Index<PageId> for Slab {
    type Output = Page;

    #[inline]
    fn index(&self, id: PageId) -> &Page {
        self.pages[id.0 as usize]
            .as_deref()
            .expect("whoever holds a page's number was unlinked before the page was freed")
    }
}

impl IndexMut<PageId> for Slab {
    #[inline]
    fn index_mut(&mut self, id: PageId) -> &mut Page {
        self.pages[id.0 as usize]
            .as_deref_mut()
            .expect("whoever holds a page's number was unlinked before the page was freed")
    }
}
