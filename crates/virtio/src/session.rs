//! What a device and its driver have agreed on, whichever transport they talk through.
//!
//! ```text
//!   status 0 ── ACKNOWLEDGE, DRIVER ── FEATURES_OK ── DRIVER_OK: activate ── … ── 0: deactivate
//!                     features         only a subset    queues
//!                                      of the offer     fixed
//! ```
//! (virtio 1.3, 2.1, 3.1.) A driver that does things in another order finds that they were not done: bits
//! of the status stay clear, registers keep their values. Bits are never taken back but by a reset.

use std::sync::Arc;

use umbra_slots::DmaSpace;

use crate::queue::Setup;
use crate::{ActivateError, Activation, Device, Event, Features, Interrupt, Queue, Status};

/// One of the three addresses of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Table,
    Available,
    Used,
}

/// One half of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Low,
    High,
}

impl Half {
    /// The 32 bits of `value` in this half, and the bits that the half has.
    fn place(self, value: u32) -> (u64, u64) {
        match self {
            Self::Low => (value.into(), 0xffff_ffff),
            Self::High => (u64::from(value) << 32, 0xffff_ffff << 32),
        }
    }

    /// The half of an address.
    pub fn of(self, address: u64) -> u32 {
        match self {
            Self::Low => address as u32,
            Self::High => (address >> 32) as u32,
        }
    }
}

/// Why a device stands still though its driver has started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// The machine is paused.
    Machine = 1 << 0,
    /// It may not be bus master.
    BusMaster = 1 << 1,
}

/// What a write of the status has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Step {
    Nothing,
    /// The device is active: notifications may be delivered in faster ways.
    Started,
    /// The device was reset.
    Reset,
}

/// A device with its driver.
pub(crate) struct Session {
    device: Box<dyn Device>,
    memory: DmaSpace,
    interrupt: Arc<Interrupt>,
    /// Without DEVICE_NEEDS_RESET, which `interrupt` keeps.
    status: Status,
    accepted: Features,
    /// The driver accepted bits that do not even exist.
    accepted_beyond: bool,
    queues: Vec<Setup>,
    /// What notifications signal, by queue; none but while the device is active.
    events: Vec<Option<Arc<Event>>>,
    active: bool,
    /// Why it stands still: a set of [`Hold`]s.
    holds: u8,
    /// The queues of a device that would be active, but for them.
    held: Option<Vec<Queue>>,
}

impl Session {
    pub fn new(device: Box<dyn Device>, memory: DmaSpace, interrupt: Arc<Interrupt>) -> Self {
        let queues: Vec<_> = device
            .queue_sizes()
            .iter()
            .map(|s| Setup::new(*s))
            .collect();
        Self {
            device,
            memory,
            interrupt,
            status: Status::default(),
            accepted: Features::NONE,
            accepted_beyond: false,
            events: vec![None; queues.len()],
            queues,
            active: false,
            holds: 0,
            held: None,
        }
    }

    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    fn offered(&self) -> Features {
        self.device.features().with(Features::VERSION_1)
    }

    /// Returns 32 bits of the offer.
    pub fn offered_word(&self, select: u32) -> u32 {
        self.offered().word(select)
    }

    /// Returns 32 bits of what the driver has accepted.
    pub fn accepted_word(&self, select: u32) -> u32 {
        self.accepted.word(select)
    }

    /// Takes 32 bits of what the driver accepts.
    pub fn accept_word(&mut self, select: u32, value: u32) {
        if self.status.has(Status::FEATURES_OK) {
            return;
        }
        if !self.accepted.set_word(select, value) && value != 0 {
            self.accepted_beyond = true;
        }
    }

    pub fn status(&self) -> u32 {
        let needs_reset = match self.interrupt.is_reset_needed() {
            true => Status::NEEDS_RESET,
            false => Status::default(),
        };
        self.status.with(needs_reset).0
    }

    /// Does what a write of the status asks for.
    pub fn set_status(&mut self, value: u32) -> Step {
        if value == 0 {
            self.reset();
            return Step::Reset;
        }
        let added = self.status.added(value);
        for bit in [Status::ACKNOWLEDGE, Status::DRIVER, Status::FAILED] {
            if added.has(bit) {
                self.status = self.status.with(bit);
            }
        }
        if added.has(Status::FEATURES_OK) && self.agree() {
            self.status = self.status.with(Status::FEATURES_OK);
        }
        if added.has(Status::DRIVER_OK) && self.status.has(Status::FEATURES_OK) {
            self.status = self.status.with(Status::DRIVER_OK);
            return self.start();
        }
        Step::Nothing
    }

    /// Tells whether the features will do (virtio 1.3, 2.2.2, 6.2).
    fn agree(&self) -> bool {
        let wanted = self.accepted.has(Features::VERSION_1);
        let good = wanted && !self.accepted_beyond && self.offered().has(self.accepted);
        if !good {
            tracing::debug!(accepted = ?self.accepted, offered = ?self.offered(), "refused");
        }
        good
    }

    fn start(&mut self) -> Step {
        match self.activate() {
            Ok(()) => Step::Started,
            Err(error) => {
                self.lost(&error);
                Step::Nothing
            }
        }
    }

    /// Tells the driver that its device does not work.
    fn lost(&mut self, error: &ActivateError) {
        match error {
            ActivateError::Queue { source, .. } => {
                tracing::debug!(%error, %source, "a virtio device needs a reset");
            }
            ActivateError::Host { source, .. } => {
                tracing::warn!(%error, %source, "a virtio device does not start");
            }
        }
        self.events.fill(None);
        self.interrupt.needs_reset();
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let memory = self.memory.memory();
        let mut queues = Vec::new();
        for (index, setup) in (0..).zip(&self.queues) {
            if !setup.ready {
                continue;
            }
            let event = Event::new().map_err(|source| ActivateError::Host {
                what: "an event",
                source,
            })?;
            let event = Arc::new(event);
            let queue = Queue::new(index, setup, self.accepted, &memory, event.clone());
            queues.push(queue.map_err(|source| ActivateError::Queue {
                queue: index,
                source,
            })?);
            self.events[usize::from(index)] = Some(event);
        }
        drop(memory);
        self.run(queues)
    }

    fn run(&mut self, queues: Vec<Queue>) -> Result<(), ActivateError> {
        if self.interrupt.is_reset_needed() {
            // Then it does nothing else.
            return Ok(());
        }
        if self.holds != 0 {
            self.held = Some(queues);
            return Ok(());
        }
        self.device.activate(Activation {
            features: self.accepted,
            queues,
            memory: self.memory.clone(),
            interrupt: self.interrupt.clone(),
        })?;
        self.active = true;
        Ok(())
    }

    fn halt(&mut self) -> Vec<Queue> {
        if !std::mem::take(&mut self.active) {
            return Vec::new();
        }
        self.device.deactivate()
    }

    /// Tells whether it works, or would if nothing held it.
    pub fn is_active(&self) -> bool {
        (self.active || self.held.is_some()) && !self.needs_reset()
    }

    /// Tells whether the device cannot go on until it is reset.
    pub fn needs_reset(&self) -> bool {
        self.interrupt.is_reset_needed()
    }

    /// Makes the device stand still, now or when it is started.
    pub fn hold(&mut self, why: Hold) {
        self.holds |= why as u8;
        if self.active {
            self.held = Some(self.halt());
        }
    }

    /// Lets it go on from where it was, if there is no other reason.
    pub fn release(&mut self, why: Hold) {
        self.holds &= !(why as u8);
        if self.holds == 0
            && let Some(queues) = self.held.take()
            && let Err(error) = self.run(queues)
        {
            self.lost(&error);
        }
    }

    /// Makes everything as it was at the beginning. When this returns the device has stopped.
    pub fn reset(&mut self) {
        self.held = None;
        drop(self.halt());
        self.device.reset();
        self.interrupt.clear();
        self.status = Status::default();
        self.accepted = Features::NONE;
        self.accepted_beyond = false;
        self.events.fill(None);
        for setup in &mut self.queues {
            *setup = Setup::new(setup.max);
        }
    }

    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    pub fn queue(&self, index: u32) -> Option<&Setup> {
        self.queues.get(index as usize)
    }

    /// A queue that may still be set up: not ready, and the device has not begun to work.
    fn open_queue(&mut self, index: u32) -> Option<&mut Setup> {
        if self.status.has(Status::DRIVER_OK) {
            return None;
        }
        let setup = self.queues.get_mut(index as usize)?;
        (!setup.ready).then_some(setup)
    }

    pub fn set_queue_size(&mut self, index: u32, size: u32) {
        if let Some(setup) = self.open_queue(index) {
            setup.size = size;
        }
    }

    /// Replaces half of an address.
    pub fn set_queue_address(&mut self, index: u32, part: Part, half: Half, value: u32) {
        if let Some(setup) = self.open_queue(index) {
            let address = &mut setup.addresses[part as usize];
            let (value, mask) = half.place(value);
            *address = *address & !mask | value & mask;
        }
    }

    /// Makes a queue ready, or takes it back; when that returns, the device touches it no more
    /// (virtio 1.3, 4.2.2.1).
    pub fn set_queue_ready(&mut self, index: u32, ready: bool) {
        if ready {
            if let Some(setup) = self.open_queue(index) {
                setup.ready = true;
            }
            return;
        }
        let Some(setup) = self.queues.get_mut(index as usize) else {
            return;
        };
        let was = std::mem::take(&mut setup.ready);
        if let Some(held) = &mut self.held {
            self.events[index as usize] = None;
            held.retain(|queue| u32::from(queue.index()) != index);
        }
        if was && self.active {
            self.events[index as usize] = None;
            let mut left = self.halt();
            left.retain(|queue| u32::from(queue.index()) != index);
            if let Err(error) = self.run(left) {
                self.lost(&error);
            }
        }
    }

    /// Returns what a notification of a queue signals, `None` if there is no such queue, or nobody who
    /// would listen.
    pub fn event(&self, index: u32) -> Option<&Arc<Event>> {
        self.events.get(index as usize)?.as_ref()
    }

    /// Returns these for all queues that have one.
    pub fn events(&self) -> impl Iterator<Item = (u32, &Arc<Event>)> {
        let all = (0..).zip(&self.events);
        all.filter_map(|(index, event)| Some((index, event.as_ref()?)))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.halt());
    }
}
