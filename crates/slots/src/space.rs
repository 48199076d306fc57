//! The current map behind one atomic swap, and the one way to change it.

use std::ops::Deref;
use std::sync::Arc;

use umbra_sync::{Mutex, MutexGuard, Swap};

use crate::listener::removed_ram;
use crate::{
    Backing, Change, DirtyPages, Editor, Generation, GpaRange, Listener, Slot, SlotError, SlotId,
    Snapshot, Wait,
};

/// A reader's hold on the current map. Cheap; not to be kept across a wait.
pub type Guard = umbra_sync::Guard<Snapshot>;

/// How to make an [`AddressSpace`].
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The number of the empty map; tests start near a wrap.
    pub first_generation: Generation,
    /// How many slots the map may hold.
    pub max_slots: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            first_generation: Generation(0),
            max_slots: 4096,
        }
    }
}

/// What only the writer touches.
struct Writer {
    next_id: u32,
    listeners: Vec<Arc<dyn Listener>>,
}

/// The guest-physical map of one machine.
///
/// Readers take a [`Guard`] and never block. Writers go one after the other through
/// [`AddressSpace::update`].
///
/// Order of locks: the writer lock comes before any lock that a listener takes; readers take none.
pub struct AddressSpace {
    current: Swap<Snapshot>,
    writer: Mutex<Writer>,
    max_slots: usize,
}

impl AddressSpace {
    /// Makes an empty map.
    pub fn new(options: Options) -> Arc<Self> {
        Arc::new(Self {
            current: Swap::new(Snapshot {
                slots: Vec::new(),
                generation: options.first_generation,
                ram_epoch: 0,
            }),
            writer: Mutex::new(Writer {
                next_id: 0,
                listeners: Vec::new(),
            }),
            max_slots: options.max_slots,
        })
    }

    /// Returns the current map.
    pub fn load(&self) -> Guard {
        self.current.load()
    }

    /// Returns the current map, to be kept.
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Returns the number of the current map.
    pub fn generation(&self) -> Generation {
        self.load().generation()
    }

    /// Holds the map still: until the result is dropped nobody can publish.
    ///
    /// For a reader that lost the race against writers too often. Takes the writer lock, so it
    /// must come before any lock that a listener takes.
    pub fn hold(&self) -> Hold<'_> {
        let writer = self.writer.lock();
        Hold {
            map: self.current.load_full(),
            _writer: writer,
        }
    }

    /// Lets somebody know of every later change. A listener is kept for ever.
    pub fn add_listener(&self, listener: Arc<dyn Listener>) {
        self.writer.lock().listeners.push(listener);
    }

    /// Changes the map: one publication, all of `edit` or nothing of it.
    ///
    /// The generation advances by one, also if `edit` did nothing. When this returns, every
    /// [`load`](Self::load) gives the new map. RAM that left stays mapped at least until the
    /// returned [`Stale`] is waited for or dropped.
    ///
    /// # Errors
    /// What `edit` returned, or a listener that refuses; nothing has changed and no number was used.
    /// If a listener could not follow, the old map is current again, under a later number.
    pub fn update<T>(
        &self,
        cause: &'static str,
        edit: impl FnOnce(&mut Editor) -> Result<T, SlotError>,
    ) -> Result<Updated<T>, SlotError> {
        let mut writer = self.writer.lock();
        let old = self.current.load_full();
        let mut editor = Editor::new(old.slots.clone(), writer.next_id, self.max_slots);
        let value = edit(&mut editor)?;
        let (slots, next_id) = editor.finish();
        writer.next_id = next_id;

        let change = succeed(old, slots, cause);
        for listener in &writer.listeners {
            listener.prepare(&change)?;
        }
        begin_logs(&change);
        self.swap(&writer.listeners, &change);
        if let Err(error) = writer.listeners.iter().try_for_each(|l| l.followed()) {
            self.take_back(&writer.listeners, &change);
            return Err(error);
        }
        let ram_left = change.removed_ram().next().is_some();
        let waits = waits(&writer.listeners, &change);
        drop(writer);

        tracing::debug!(
            cause,
            generation = change.new.generation.0,
            ram_left,
            "published"
        );
        Ok(Updated {
            value,
            generation: change.new.generation,
            stale: Stale {
                waits,
                _keep: ram_left.then_some(change.old),
            },
        })
    }

    /// Takes and clears the dirty bits of a slot.
    ///
    /// Blocks until no vCPU holds a write right that it got before; not to be called with a lock
    /// that a vCPU may want.
    ///
    /// # Errors
    /// If there is no such slot, it is an I/O window, or the host keeps marks and refuses them.
    pub fn harvest(&self, slot: SlotId) -> Result<DirtyPages, SlotError> {
        let range = self.load().slot(slot).map(|s| s.range);
        self.harvest_range(slot, range.ok_or(SlotError::NoSuchSlot(slot))?)
    }

    /// Takes and clears the dirty bits of that part of `range` which lies in the slot, as
    /// [`harvest`](Self::harvest) does.
    ///
    /// # Errors
    /// If there is no such slot, it is an I/O window, or the range lies outside it.
    pub fn harvest_range(&self, slot: SlotId, range: GpaRange) -> Result<DirtyPages, SlotError> {
        let writer = self.writer.lock();
        let map = self.current.load_full();
        let found = map.slot(slot).ok_or(SlotError::NoSuchSlot(slot))?;
        let Backing::Ram { region, offset, .. } = &found.backing else {
            return Err(SlotError::NotRam(slot));
        };
        if !found.range.overlaps(&range) {
            return Err(SlotError::BadRange {
                start: range.start(),
                len: range.len(),
            });
        }
        let first = range.start().max(found.range.start()).gfn();
        let last = range.last().min(found.range.last()).gfn();
        let part = GpaRange::new(first.gpa(), (last.0 - first.0 + 1) << 12)
            .expect("a part of a slot's range");
        for listener in &writer.listeners {
            listener.collect(found, part)?;
        }
        let from = offset + (first.gpa().0 - found.range.start().0);
        let pages = DirtyPages {
            first,
            words: region.dirty().take(from as usize, last.0 - first.0 + 1),
        };
        let waits: Vec<Wait> = writer
            .listeners
            .iter()
            .filter_map(|l| l.harvested(&map, &pages))
            .collect();
        drop(writer);
        for wait in waits {
            wait();
        }
        Ok(pages)
    }

    /// Publishes the old map of a change again, under the next number.
    fn take_back(&self, listeners: &[Arc<dyn Listener>], change: &Change) {
        let back = succeed(change.new.clone(), change.old.slots.clone(), "taken back");
        tracing::warn!(
            cause = change.cause,
            generation = back.new.generation.0,
            "a change of the map is taken back"
        );
        self.swap(listeners, &back);
        for change in [change, &back] {
            // Nobody waits: what left the map in between was never anybody's.
            drop(waits(listeners, change));
        }
    }

    fn swap(&self, listeners: &[Arc<dyn Listener>], change: &Change) {
        let mut swapped = 0;
        around(listeners, change, &mut || {
            self.current.store(change.new.clone());
            swapped += 1;
        });
        assert_eq!(swapped, 1, "every listener swaps exactly once");
    }
}

impl std::fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AddressSpace").field(&self.load()).finish()
    }
}

/// The change from a map to the one that follows it.
fn succeed(old: Arc<Snapshot>, slots: Vec<Slot>, cause: &'static str) -> Change {
    let ram_left = removed_ram(&old.slots, &slots).next().is_some();
    let new = Arc::new(Snapshot {
        slots,
        generation: Generation(old.generation.0 + 1),
        ram_epoch: old.ram_epoch + u64::from(ram_left),
    });
    Change { old, new, cause }
}

/// What has to be waited for after a change.
fn waits(listeners: &[Arc<dyn Listener>], change: &Change) -> Vec<Wait> {
    listeners
        .iter()
        .filter_map(|l| l.published(change))
        .collect()
}

/// Calls `swap` inside the first listener inside the second and so on.
fn around(listeners: &[Arc<dyn Listener>], change: &Change, swap: &mut dyn FnMut()) {
    match listeners.split_first() {
        None => swap(),
        Some((first, rest)) => first.publish(change, &mut || around(rest, change, swap)),
    }
}

/// A log that is turned on starts clean. Marks of writes that race with this are extras.
fn begin_logs(change: &Change) {
    for slot in &change.new.slots {
        let Backing::Ram {
            region,
            offset,
            flags,
            ..
        } = &slot.backing
        else {
            continue;
        };
        let was = change.old.slot(slot.id).and_then(|s| s.ram_flags());
        if flags.dirty_log && !was.is_some_and(|f| f.dirty_log) {
            region
                .dirty()
                .take(*offset as usize, slot.range.len() >> 12);
        }
    }
}

/// The map held still, see [`AddressSpace::hold`].
pub struct Hold<'a> {
    map: Arc<Snapshot>,
    _writer: MutexGuard<'a, Writer>,
}

impl Deref for Hold<'_> {
    type Target = Arc<Snapshot>;

    fn deref(&self) -> &Arc<Snapshot> {
        &self.map
    }
}

/// What an update gave.
#[must_use = "`stale` has to be waited for before the change counts as done everywhere"]
#[derive(Debug)]
pub struct Updated<T> {
    /// What the edit returned.
    pub value: T,
    /// The number of the new map.
    pub generation: Generation,
    /// What must still be waited for.
    pub stale: Stale,
}

impl<T> Updated<T> {
    /// Waits as [`Stale::wait`] does, and gives the value.
    pub fn wait(self) -> T {
        self.stale.wait();
        self.value
    }
}

/// Processors and others may still act on the old map.
///
/// Dropping it unwaited is safe: whoever uses memory keeps it mapped. But then a write to memory
/// that left, or that became read-only or logged, may still happen after the update.
#[must_use = "somebody may still act on the old map until this is waited for"]
pub struct Stale {
    waits: Vec<Wait>,
    _keep: Option<Arc<Snapshot>>,
}

impl Stale {
    /// Blocks until everybody is past the change.
    ///
    /// Must be called without any lock, and without a [`Guard`], that a vCPU may want.
    pub fn wait(self) {
        for wait in self.waits {
            wait();
        }
    }

    /// Tells whether there is nothing to wait for.
    pub fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }
}

impl std::fmt::Debug for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stale({} waits)", self.waits.len())
    }
}
