//! What registers, thread and owner of a memory device all know.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use umbra_slots::{Gpa, GpaRange, SlotError};
use umbra_virtio::Interrupt;

use super::request::{Answer, Blocks, Plugged, Request};
use super::runs::Runs;
use super::{GuestMap, Mem, MemOptions};
use crate::virtio::news::News;

/// Bytes of the configuration (5.15.4).
const CONFIG_LEN: usize = 56;

/// A size that cannot be requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// It is more than there is.
    #[error("{bytes} bytes are more than the device's {max}; ask for less")]
    TooMuch {
        /// What was asked for.
        bytes: u64,
        /// The most.
        max: u64,
    },
    /// It is no number of blocks.
    #[error("{bytes} bytes are no multiple of the device's block of {block}; round the size")]
    Blocks {
        /// What was asked for.
        bytes: u64,
        /// Bytes of a block.
        block: u64,
    },
}

/// The state of a device. `map` is taken before `state`, and neither with `active`.
pub struct Shared {
    name: String,
    range: GpaRange,
    block: u64,
    map: Mutex<Box<dyn GuestMap>>,
    state: Mutex<State>,
    /// Whom to tell of a new size.
    active: Mutex<Option<Arc<Interrupt>>>,
}

#[derive(Default)]
struct State {
    /// Bytes.
    requested: u64,
    plugged: Runs,
    news: News,
    /// The log knows that the map refuses.
    told: bool,
}

impl Shared {
    pub fn new(options: MemOptions, map: Box<dyn GuestMap>) -> Result<Self, SizeError> {
        let MemOptions {
            name,
            range,
            block,
            requested,
        } = options;
        assert!(
            block.is_power_of_two() && block >= Mem::MIN_BLOCK,
            "{block}"
        );
        let whole = |bytes: u64| bytes.is_multiple_of(block);
        assert!(whole(range.start().0) && whole(range.len()), "{range}");
        let shared = Self {
            name,
            range,
            block,
            map: Mutex::new(map),
            state: Mutex::default(),
            active: Mutex::new(None),
        };
        shared.check(requested)?;
        shared.state.lock().requested = requested;
        Ok(shared)
    }

    pub fn config(&self) -> [u8; CONFIG_LEN] {
        let state = self.state.lock();
        let fields = [
            self.block,
            // The node, and what is reserved.
            0,
            self.range.start().0,
            self.range.len(),
            // All of it is usable.
            self.range.len(),
            state.plugged.count() * self.block,
            state.requested,
        ];
        let mut bytes = [0; CONFIG_LEN];
        bytes.copy_from_slice(fields.map(u64::to_le_bytes).as_flattened());
        bytes
    }

    pub fn generation(&self) -> u32 {
        self.state.lock().news.generation()
    }

    pub fn begin(&self, interrupt: Arc<Interrupt>) {
        *self.active.lock() = Some(interrupt);
        // What has changed while the device stood still.
        self.announce();
    }

    pub fn end(&self) {
        *self.active.lock() = None;
    }

    /// Interrupts the driver if there is one that has not heard of the size as it is.
    fn announce(&self) {
        let Some(interrupt) = self.active.lock().clone() else {
            return;
        };
        let news = self.state.lock().news.take();
        if news {
            interrupt.config_changed();
        }
    }

    fn check(&self, bytes: u64) -> Result<(), SizeError> {
        let (max, block) = (self.range.len(), self.block);
        if bytes > max {
            return Err(SizeError::TooMuch { bytes, max });
        }
        match bytes.is_multiple_of(block) {
            true => Ok(()),
            false => Err(SizeError::Blocks { bytes, block }),
        }
    }

    /// Does what a driver asks for.
    pub fn serve(&self, request: Request) -> Answer {
        match request {
            Request::Plug(blocks) => self.with(blocks, Self::plug),
            Request::Unplug(blocks) => self.with(blocks, Self::unplug),
            Request::UnplugAll => self.unplug_all(),
            Request::State(blocks) => self.with(blocks, Self::state_of),
            Request::Unknown => Answer::Error,
        }
    }

    /// Does something with blocks that are the device's.
    fn with(&self, blocks: Blocks, what: impl FnOnce(&Self, Range<u64>) -> Answer) -> Answer {
        self.numbers(blocks)
            .map_or(Answer::Error, |numbers| what(self, numbers))
    }

    /// Returns the numbers of blocks within the device's range.
    fn numbers(&self, Blocks { address, count }: Blocks) -> Option<Range<u64>> {
        let offset = address.checked_sub(self.range.start().0)?;
        let first = offset / self.block;
        let end = first.checked_add(count.into())?;
        let fits = count > 0 && offset.is_multiple_of(self.block);
        (fits && end <= self.range.len() / self.block).then_some(first..end)
    }

    fn addresses(&self, blocks: &Range<u64>) -> GpaRange {
        let start = self.range.start().0 + blocks.start * self.block;
        let len = (blocks.end - blocks.start) * self.block;
        GpaRange::new(Gpa(start), len).expect("within the device's range")
    }

    fn plug(&self, blocks: Range<u64>) -> Answer {
        let mut map = self.map.lock();
        let state = self.state.lock();
        if state.plugged.count_in(&blocks) > 0 {
            return Answer::Error;
        }
        let count = state.plugged.count() + (blocks.end - blocks.start);
        if count * self.block > state.requested {
            return Answer::Nack;
        }
        // Registers are read meanwhile.
        drop(state);
        match map.plug(self.addresses(&blocks)) {
            Ok(()) => self.state.lock().plugged.insert(blocks),
            Err(error) => return self.refused(&error),
        }
        Answer::Ack
    }

    fn unplug(&self, blocks: Range<u64>) -> Answer {
        let mut map = self.map.lock();
        let count = self.state.lock().plugged.count_in(&blocks);
        if count < blocks.end - blocks.start {
            return Answer::Error;
        }
        self.take(&mut **map, blocks)
    }

    /// Takes blocks that are plugged.
    fn take(&self, map: &mut dyn GuestMap, blocks: Range<u64>) -> Answer {
        match map.unplug(self.addresses(&blocks)) {
            Ok(()) => self.state.lock().plugged.remove(blocks),
            Err(error) => return self.refused(&error),
        }
        Answer::Ack
    }

    fn unplug_all(&self) -> Answer {
        let mut map = self.map.lock();
        loop {
            let Some(run) = self.state.lock().plugged.first() else {
                return Answer::Ack;
            };
            let answer = self.take(&mut **map, run);
            if answer != Answer::Ack {
                return answer;
            }
        }
    }

    fn state_of(&self, blocks: Range<u64>) -> Answer {
        let count = self.state.lock().plugged.count_in(&blocks);
        Answer::State(match count {
            0 => Plugged::None,
            all if all == blocks.end - blocks.start => Plugged::All,
            _ => Plugged::Some,
        })
    }

    /// What the map refuses may be possible later.
    fn refused(&self, error: &SlotError) -> Answer {
        if !std::mem::replace(&mut self.state.lock().told, true) {
            let device = &*self.name;
            tracing::warn!(device, %error, "blocks of memory cannot come or go; the guest is told to try later");
        }
        Answer::Busy
    }
}

/// Changes a memory device while the machine runs, and says what it is like. May be used from any thread; cheap
/// to clone.
#[derive(Clone)]
pub struct MemControl(pub(super) Arc<Shared>);

impl MemControl {
    /// Wants the guest to take, or to give back, memory until it has so many bytes of this device. Never
    /// blocks: the guest does what it can, in its own time, see [`plugged`](Self::plugged).
    ///
    /// # Errors
    /// If the size is not one of the device's.
    pub fn request(&self, bytes: u64) -> Result<(), SizeError> {
        self.0.check(bytes)?;
        let mut state = self.0.state.lock();
        if state.requested != bytes {
            state.requested = bytes;
            state.news.change();
        }
        drop(state);
        self.0.announce();
        Ok(())
    }

    /// Returns how many bytes the guest shall have.
    pub fn requested(&self) -> u64 {
        self.0.state.lock().requested
    }

    /// Returns how many bytes it has.
    pub fn plugged(&self) -> u64 {
        self.0.state.lock().plugged.count() * self.0.block
    }

    /// Returns where the device's memory is, plugged or not.
    pub fn range(&self) -> GpaRange {
        self.0.range
    }

    /// Returns how many bytes a block has: sizes are multiples of it.
    pub fn block(&self) -> u64 {
        self.0.block
    }
}
