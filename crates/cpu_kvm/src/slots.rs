//! The guest-physical map, mirrored into KVM's memory slots.
//!
//! ```text
//!   update(): prepare   what has to change, and is there room?
//!             publish   RAM that left is deleted ── swap ── RAM that came is added
//!                       └── if addresses would lose their RAM in between: all of it in the pen ──┘
//! ```
//! Between the two steps KVM holds less than either map, never anything else: an access to what is
//! missing leaves the guest as one to a device, is resolved in the map of that moment, and finds the
//! RAM or the device that is there then. That is good for data, but not for instructions and page
//! tables, which KVM reads by itself. So a change that would delete and add RAM at the same address
//! (a slot that shrinks, that becomes read-only, that is replaced by another) is made while every
//! processor is held outside (`pen`). A slot that grows keeps its piece and gets another one.
//!
//! The same is true of what is missing for a moment: the processor's thread reads or writes it by the map that
//! it loads then. Whoever takes RAM away waits for the threads that are doing so (`reach`): KVM does not.
//!
//! One slot of the map is one or more *pieces*: what KVM calls a slot. KVM can change the flags of a
//! piece, and nothing else.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
};
use kvm_ioctls::VmFd;
use parking_lot::{Mutex, RwLock};
use umbra_slots::{
    Backing, Change, DirtyPages, Gpa, GpaRange, Listener, RamRegion, Slot, SlotError, SlotId,
    Snapshot, Wait,
};

use crate::dirty;
use crate::doorbell::Registry;
use crate::pen::Pen;
use crate::vm::Vm;

/// A part of a RAM slot that is one slot of KVM's.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub slot: SlotId,
    pub range: GpaRange,
    pub region: Arc<RamRegion>,
    /// Where in the region it begins.
    pub offset: u64,
    pub flags: u32,
}

impl Piece {
    /// The same memory at the same addresses, and the same right to write it.
    fn same(&self, other: &Self) -> bool {
        self.slot == other.slot
            && self.range == other.range
            && self.offset == other.offset
            && Arc::ptr_eq(&self.region, &other.region)
            && (self.flags ^ other.flags) & KVM_MEM_READONLY == 0
    }

    /// Begins where the other begins, shows the same memory, and is shorter.
    fn is_beginning_of(&self, other: &Self) -> bool {
        self.slot == other.slot
            && self.range.start() == other.range.start()
            && self.range.len() < other.range.len()
            && self.offset == other.offset
            && Arc::ptr_eq(&self.region, &other.region)
            && (self.flags ^ other.flags) & KVM_MEM_READONLY == 0
    }

    /// Its writes are logged.
    pub fn is_logged(&self) -> bool {
        self.flags & KVM_MEM_LOG_DIRTY_PAGES != 0
    }

    /// What remains behind the first `len` bytes; `None` if nothing does.
    fn behind(&self, len: u64) -> Option<Self> {
        let start = Gpa(self.range.start().0 + len);
        Some(Self {
            range: GpaRange::new(start, self.range.len().checked_sub(len)?)?,
            offset: self.offset + len,
            ..self.clone()
        })
    }
}

/// What has to be done to KVM's slots, by their numbers.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    delete: Vec<u32>,
    reflag: Vec<(u32, u32)>,
    add: Vec<Piece>,
    /// Some addresses would have no RAM between deletion and addition.
    replaces: bool,
}

impl Plan {
    /// Compares what is there with what is wanted.
    pub fn new(live: &BTreeMap<u32, Piece>, map: &Snapshot) -> Self {
        let mut plan = Self::default();
        let mut kept = Vec::new();
        for wanted in map.slots().iter().filter_map(piece) {
            let mut rest = Some(wanted);
            // The pieces of a slot follow each other: each is the beginning of what is left.
            while let Some(want) = rest.take() {
                let fits = |have: &&Piece| have.same(&want) || have.is_beginning_of(&want);
                let Some((&id, have)) = live.iter().find(|(_, have)| fits(have)) else {
                    plan.add.push(want);
                    break;
                };
                kept.push(id);
                if have.flags != want.flags {
                    plan.reflag.push((id, want.flags));
                }
                rest = want.behind(have.range.len());
            }
        }
        let gone = live.iter().filter(|(id, _)| !kept.contains(id));
        for (&id, piece) in gone {
            plan.replaces |= plan.add.iter().any(|new| new.range.overlaps(&piece.range));
            // The log of a slot that stays must not lose what is written until the piece goes.
            plan.replaces |= piece.is_logged() && map.slot(piece.slot).is_some();
            plan.delete.push(id);
        }
        plan
    }

    fn is_empty(&self) -> bool {
        self.delete.is_empty() && self.reflag.is_empty() && self.add.is_empty()
    }
}

/// The piece that a whole slot is, if it is RAM.
fn piece(slot: &Slot) -> Option<Piece> {
    let Backing::Ram {
        region,
        offset,
        flags,
        ..
    } = slot.backing()
    else {
        return None;
    };
    let mut bits = 0;
    if flags.read_only {
        bits |= KVM_MEM_READONLY;
    }
    if flags.dirty_log {
        bits |= KVM_MEM_LOG_DIRTY_PAGES;
    }
    Some(Piece {
        slot: slot.id(),
        range: slot.range(),
        region: region.clone(),
        offset: *offset,
        flags: bits,
    })
}

/// KVM's slots.
#[derive(Default)]
struct State {
    live: BTreeMap<u32, Piece>,
    /// What the last publication could not do.
    failed: Option<SlotError>,
}

impl State {
    fn free_number(&self) -> u32 {
        // Few slots, rare changes: the first number that nobody has.
        (0..)
            .find(|id| !self.live.contains_key(id))
            .expect("there are fewer slots than numbers")
    }
}

/// Keeps KVM's slots, and the doorbells, as the map says.
pub(crate) struct Mirror {
    vm: Arc<Vm>,
    pen: Arc<Pen>,
    doorbells: Arc<Registry>,
    state: Mutex<State>,
    rings: Option<Arc<dirty::Rings>>,
    /// Shared while a processor's thread reaches into RAM by itself, by the map that it has loaded then.
    reach: Arc<RwLock<()>>,
}

impl Mirror {
    pub fn new(
        vm: Arc<Vm>,
        pen: Arc<Pen>,
        doorbells: Arc<Registry>,
        rings: Option<Arc<dirty::Rings>>,
    ) -> Self {
        Self {
            vm,
            pen,
            doorbells,
            state: Mutex::default(),
            rings,
            reach: Arc::default(),
        }
    }

    /// To be held by a processor's thread from before it loads a map until it has read or written the RAM that
    /// the map shows: whoever takes that RAM away waits for it.
    pub fn reach(&self) -> impl Drop + '_ {
        self.reach.read()
    }

    /// Makes KVM's slots those of a map that exists already.
    pub fn adopt(&self, map: &Snapshot) -> Result<(), SlotError> {
        let mut state = self.state.lock();
        let plan = Plan::new(&state.live, map);
        self.check_room(&state, &plan)?;
        self.after(&mut state, plan);
        state.failed.take().map_or(Ok(()), Err)
    }

    /// Empties the dirty rings into the log; for a processor that was left because its ring is full.
    pub fn collect_rings(&self) -> io::Result<()> {
        match &self.rings {
            Some(rings) => rings.collect(&self.state.lock().live),
            None => Ok(()),
        }
    }

    /// Brings into the log what KVM has marked in some pieces.
    fn collect_marks(
        &self,
        live: &BTreeMap<u32, Piece>,
        which: impl Fn(u32, &Piece) -> bool,
    ) -> Result<(), SlotError> {
        let mut logged = live
            .iter()
            .filter(|(id, piece)| piece.is_logged() && which(**id, piece));
        let Some(rings) = &self.rings else {
            return logged.try_for_each(|(&id, piece)| dirty::collect_bitmap(&self.vm, id, piece));
        };
        let Some((_, piece)) = logged.next() else {
            return Ok(());
        };
        rings.collect(live).map_err(|source| SlotError::Host {
            call: "KVM_RESET_DIRTY_RINGS",
            range: piece.range,
            source,
        })
    }

    fn check_room(&self, state: &State, plan: &Plan) -> Result<(), SlotError> {
        let needed = state.live.len() - plan.delete.len() + plan.add.len();
        let max = self.vm.limits().slots;
        if needed > max {
            return Err(SlotError::TooManyPieces { max, needed });
        }
        Ok(())
    }

    /// What comes before the swap: RAM goes.
    fn before(&self, state: &mut State, plan: &Plan) {
        if let Err(error) = self.collect_marks(&state.live, |id, _| plan.delete.contains(&id)) {
            state.failed.get_or_insert(error);
        }
        for id in &plan.delete {
            let Some(piece) = state.live.remove(id) else {
                continue;
            };
            if let Err(source) = self.vm.set_slot(*id, &piece, 0) {
                // The kernel refuses no deletion that is spelt as the addition was.
                state.fail("KVM_SET_USER_MEMORY_REGION", piece.range, source);
                state.live.insert(*id, piece);
            }
        }
    }

    /// What comes after it: RAM comes, or is to be logged.
    fn after(&self, state: &mut State, plan: Plan) {
        for (id, flags) in plan.reflag {
            let Some(piece) = state.live.get_mut(&id) else {
                continue;
            };
            piece.flags = flags;
            let piece = piece.clone();
            if let Err(source) = self.vm.set_slot(id, &piece, piece.range.len()) {
                state.fail("KVM_SET_USER_MEMORY_REGION", piece.range, source);
            }
        }
        for piece in plan.add {
            let id = state.free_number();
            match self.vm.set_slot(id, &piece, piece.range.len()) {
                Ok(()) => {
                    state.live.insert(id, piece);
                }
                Err(source) => state.fail("KVM_SET_USER_MEMORY_REGION", piece.range, source),
            }
        }
    }
}

impl State {
    fn fail(&mut self, call: &'static str, range: GpaRange, source: io::Error) {
        tracing::error!(%range, %source, "{call} failed");
        // The first failure is the one to be told.
        self.failed.get_or_insert(SlotError::Host {
            call,
            range,
            source,
        });
    }
}

impl Listener for Mirror {
    fn prepare(&self, change: &Change) -> Result<(), SlotError> {
        let state = self.state.lock();
        let plan = Plan::new(&state.live, &change.new);
        self.check_room(&state, &plan)
    }

    fn publish(&self, change: &Change, swap: &mut dyn FnMut()) {
        let mut state = self.state.lock();
        let plan = Plan::new(&state.live, &change.new);
        // Doorbells go before their windows do: none rings where RAM may be a moment later (R10).
        self.doorbells.before(change);
        if plan.is_empty() {
            swap();
        } else if plan.replaces {
            self.pen.outside(|| {
                self.before(&mut state, &plan);
                swap();
                self.after(&mut state, plan);
            });
        } else {
            self.before(&mut state, &plan);
            swap();
            self.after(&mut state, plan);
        }
        drop(state);
        self.doorbells.after(change);
    }

    fn published(&self, change: &Change) -> Option<Wait> {
        let left = change.removed_ram().next().is_some();
        if !left && change.restricted_ram().next().is_none() {
            return None;
        }
        // KVM has let go of it already; a thread that serves an exit may have loaded the old map before.
        let reach = self.reach.clone();
        Some(Box::new(move || drop(reach.write())))
    }

    fn followed(&self) -> Result<(), SlotError> {
        self.state.lock().failed.take().map_or(Ok(()), Err)
    }

    fn collect(&self, slot: &Slot, part: GpaRange) -> Result<(), SlotError> {
        let concerns = |_, piece: &Piece| piece.slot == slot.id() && piece.range.overlaps(&part);
        let collect = || self.collect_marks(&self.state.lock().live, concerns);
        if self.rings.is_some() {
            // The processor may keep marks to itself while it is in the guest (KVM API, 8.29).
            self.pen.outside(collect)
        } else {
            collect()
        }
    }

    fn harvested(&self, _map: &Snapshot, pages: &DirtyPages) -> Option<Wait> {
        if self.rings.is_some() || !self.vm.limits().manual_dirty_protect {
            // Write rights went when the marks were collected.
            return None;
        }
        let state = self.state.lock();
        for (&id, piece) in state.live.iter().filter(|(_, piece)| piece.is_logged()) {
            if let Err(error) = dirty::clear_bitmap(&self.vm, id, piece, pages) {
                // The pages stay marked: the next harvest reports them again.
                tracing::error!(range = %piece.range, %error, "KVM_CLEAR_DIRTY_LOG failed");
            }
        }
        None
    }
}

/// Tells KVM about a slot of memory, by the older call.
#[allow(unsafe_code)]
pub(crate) fn set_region(vm: &VmFd, region: kvm_userspace_memory_region) -> io::Result<()> {
    // SAFETY: the memory is guest RAM of this process, shared with the guest by design: nobody holds
    // a reference into it, only volatile and atomic accesses. It stays mapped while the slot is live:
    // the caller keeps its region. A guest can do to it what it likes.
    unsafe { vm.set_user_memory_region(region) }.map_err(Into::into)
}

/// Tells KVM about a slot of memory, by the newer call.
#[allow(unsafe_code)]
pub(crate) fn set_region2(vm: &VmFd, region: kvm_userspace_memory_region2) -> io::Result<()> {
    // SAFETY: as in `set_region`.
    unsafe { vm.set_user_memory_region2(region) }.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_slots::{AddressSpace, Flags, HugePages, Options, RamOptions};

    const PAGE: u64 = 0x1000;

    fn region(pages: u64) -> Arc<RamRegion> {
        RamRegion::new(RamOptions {
            len: pages * PAGE,
            huge: HugePages::No,
            prefault: false,
        })
        .unwrap()
    }

    /// A map with one slot of four pages at 0x10000, and KVM's slots for it.
    struct Bench {
        space: Arc<AddressSpace>,
        region: Arc<RamRegion>,
        slot: SlotId,
        live: BTreeMap<u32, Piece>,
    }

    fn bench() -> Bench {
        let space = AddressSpace::new(Options::default());
        let region = region(16);
        let slot = space
            .update("test", |e| {
                e.add_ram(Gpa(0x1_0000), region.clone(), 0, 4 * PAGE, Flags::default())
            })
            .unwrap()
            .wait();
        let live = BTreeMap::new();
        let mut bench = Bench {
            space,
            region,
            slot,
            live,
        };
        bench.apply();
        bench
    }

    impl Bench {
        /// Plans, and does to `live` what the plan says; returns deleted, reflagged, added, replaces.
        fn apply(&mut self) -> (usize, usize, Vec<(u64, u64)>, bool) {
            let plan = Plan::new(&self.live, &self.space.load());
            let added = plan.add.iter().map(|p| (p.range.start().0, p.range.len()));
            let result = (
                plan.delete.len(),
                plan.reflag.len(),
                added.collect(),
                plan.replaces,
            );
            plan.delete.iter().for_each(|id| drop(self.live.remove(id)));
            for (id, flags) in plan.reflag {
                self.live.get_mut(&id).unwrap().flags = flags;
            }
            for piece in plan.add {
                let id = (0..).find(|id| !self.live.contains_key(id)).unwrap();
                self.live.insert(id, piece);
            }
            result
        }

        fn edit(&mut self, edit: impl FnOnce(&mut umbra_slots::Editor) -> Result<(), SlotError>) {
            self.space.update("test", edit).unwrap().wait();
        }
    }

    #[test]
    fn a_map_that_did_not_change_needs_nothing() {
        let mut bench = bench();
        bench.edit(|e| {
            e.add_io(GpaRange::new(Gpa(0), 16).unwrap(), umbra_slots::IoId(1))
                .map(drop)
        });
        assert_eq!(bench.apply(), (0, 0, vec![], false));
    }

    #[test]
    fn a_slot_that_grows_keeps_its_piece() {
        let mut bench = bench();
        let slot = bench.slot;
        bench.edit(|e| e.resize(slot, 6 * PAGE));
        assert_eq!(bench.apply(), (0, 0, vec![(0x1_4000, 2 * PAGE)], false));
        bench.edit(|e| e.resize(slot, 7 * PAGE));
        assert_eq!(bench.apply(), (0, 0, vec![(0x1_6000, PAGE)], false));
        // Back to where pieces meet: nothing has to be cut.
        bench.edit(|e| e.resize(slot, 4 * PAGE));
        assert_eq!(bench.apply(), (2, 0, vec![], false));
    }

    #[test]
    fn a_slot_that_shrinks_or_becomes_read_only_is_replaced_in_the_pen() {
        let mut bench = bench();
        let slot = bench.slot;
        bench.edit(|e| e.resize(slot, 3 * PAGE));
        assert_eq!(bench.apply(), (1, 0, vec![(0x1_0000, 3 * PAGE)], true));
        let flags = Flags {
            read_only: true,
            dirty_log: false,
        };
        bench.edit(|e| e.set_flags(slot, flags));
        assert_eq!(bench.apply(), (1, 0, vec![(0x1_0000, 3 * PAGE)], true));
    }

    #[test]
    fn turning_the_log_on_changes_flags_in_place() {
        let mut bench = bench();
        let slot = bench.slot;
        bench.edit(|e| e.resize(slot, 6 * PAGE));
        bench.apply();
        let flags = Flags {
            read_only: false,
            dirty_log: true,
        };
        bench.edit(|e| e.set_flags(slot, flags));
        assert_eq!(bench.apply(), (0, 2, vec![], false));
    }

    #[test]
    fn a_logged_slot_that_moves_does_so_in_the_pen() {
        let mut bench = bench();
        let slot = bench.slot;
        let flags = Flags {
            read_only: false,
            dirty_log: true,
        };
        bench.edit(|e| e.set_flags(slot, flags));
        bench.apply();
        bench.edit(|e| e.move_to(slot, Gpa(0x8_0000)));
        assert_eq!(bench.apply(), (1, 0, vec![(0x8_0000, 4 * PAGE)], true));
        bench.edit(|e| e.remove(slot));
        assert_eq!(bench.apply(), (1, 0, vec![], false), "nobody wants its log");
    }

    #[test]
    fn a_slot_that_moves_leaves_and_comes() {
        let mut bench = bench();
        let slot = bench.slot;
        bench.edit(|e| e.move_to(slot, Gpa(0x8_0000)));
        assert_eq!(bench.apply(), (1, 0, vec![(0x8_0000, 4 * PAGE)], false));
        // Half onto itself.
        bench.edit(|e| e.move_to(slot, Gpa(0x8_2000)));
        assert_eq!(bench.apply(), (1, 0, vec![(0x8_2000, 4 * PAGE)], true));
    }

    #[test]
    fn other_memory_at_the_same_addresses_is_a_replacement() {
        let mut bench = bench();
        let (slot, other) = (bench.slot, bench.region.clone());
        bench.edit(|e| {
            e.remove(slot)?;
            let flags = Flags::default();
            e.add_ram(Gpa(0x1_0000), other, 4 * PAGE, 4 * PAGE, flags)
                .map(drop)
        });
        assert_eq!(bench.apply(), (1, 0, vec![(0x1_0000, 4 * PAGE)], true));
    }
}
