//! One device and what a front end has set up of it: the vhost-user session.
//!
//! ```text
//!   ring:   addresses, kick ── complete ──┐
//!           SET_VRING_ENABLE, or no       ├──> runs: a Queue of the active device
//!           protocol features ────────────┘        │
//!                                                  v
//!   whatever changes for rings that run:   deactivate ── change ── activate
//!   GET_VRING_BASE:                        deactivate, that ring has no kick any more, activate the others
//! ```
//!
//! A device is active while some ring runs. It has all queues that run, and gets them anew, each at the place where
//! it was, when one comes or goes: devices need know nothing of rings that are stopped one by one. Only memory that is
//! added or removed is under a device that runs (see `memory`).
//!
//! **A device that needs a reset** stays still until the front end has stopped all rings, or resets it.

use std::fs::File;
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use umbra_virtio::{Activation, Device, Event, Features, Interrupt, Queue};

use crate::Error;
use crate::inflight::{Inflight, Shape};
use crate::log::Log;
use crate::memory::{Leaving, Memory, Shown};
use crate::ring::{Addresses, Ring};
use crate::wire::Lines;

/// VHOST_F_LOG_ALL: stores to guest memory are logged.
const LOG_ALL: Features = Features::bit(26);
/// VHOST_USER_F_PROTOCOL_FEATURES: there are protocol features, and rings begin disabled.
const PROTOCOL_FEATURES: Features = Features::bit(30);
/// What concerns the two processes, and not the device.
const OURS: Features = LOG_ALL.with(PROTOCOL_FEATURES);

/// How long memory that goes is waited for while the device runs.
const RUN: Duration = Duration::from_millis(100);
/// How long when it has stopped: what the host still works on may take that.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most bytes of a device's configuration that a device is asked for at once.
const CONFIG_PIECE: usize = 8;

/// A device in a process of its own.
pub struct Backend {
    device: Box<dyn Device>,
    memory: Memory,
    rings: Vec<Ring>,
    lines: Lines,
    interrupt: Arc<Interrupt>,
    /// What the front end has accepted, [`OURS`] with it.
    features: Features,
    log: Option<Arc<Log>>,
    inflight: Option<Arc<Inflight>>,
    /// A channel that is announced, and not used yet.
    channel: Option<UnixStream>,
    active: bool,
}

impl Backend {
    /// Makes one for a device that no transport has.
    pub fn new(device: Box<dyn Device>) -> Self {
        let sizes = device.queue_sizes();
        let lines = Lines::new(sizes.len());
        Self {
            rings: rings(&*device),
            interrupt: Arc::new(Interrupt::new(Box::new(lines.clone()))),
            lines,
            device,
            memory: Memory::new(),
            features: Features::NONE,
            log: None,
            inflight: None,
            channel: None,
            active: false,
        }
    }

    /// Forgets the front end. When this returns the device has stopped, and nothing of the front end's is mapped,
    /// but by requests that the host does not complete.
    pub fn forget(&mut self) {
        self.halt();
        self.device.reset();
        self.lines.clear();
        self.begin_rings();
        self.features = Features::NONE;
        self.log = None;
        self.inflight = None;
        self.channel = None;
        match self.memory.replace(Vec::new()) {
            Ok(leaving) if leaving.wait(PATIENCE) => {}
            Ok(_) => tracing::warn!("the host still works on memory of a front end that has gone"),
            Err(error) => tracing::error!(%error, "the memory of a front end stays"),
        }
    }

    fn begin_rings(&mut self) {
        self.rings = rings(&*self.device);
        self.interrupt = Arc::new(Interrupt::new(Box::new(self.lines.clone())));
    }

    // The device, started and stopped.

    /// Tells whether rings run that nobody enables.
    fn all_enabled(&self) -> bool {
        !self.features.has(PROTOCOL_FEATURES)
    }

    fn runs(&self, ring: &Ring) -> bool {
        ring.runs(self.all_enabled())
    }

    /// Tells whether some ring runs, or would if its device could.
    fn any_runs(&self) -> bool {
        self.rings.iter().any(|ring| self.runs(ring))
    }

    /// Stops the device, and remembers how far it has come.
    fn halt(&mut self) {
        if !mem::take(&mut self.active) {
            return;
        }
        let left = self.device.deactivate();
        let all_enabled = self.all_enabled();
        let memory = self.memory.for_device(None).memory();
        let at = |index| {
            let mut queues = left.iter();
            queues.find(|queue: &&Queue| queue.index() == index)
        };
        for ring in &mut self.rings {
            if !ring.runs(all_enabled) {
                continue;
            }
            if let Some(queue) = at(ring.index) {
                ring.base = queue.state().next_avail;
            } else if let Some(answered) = ring.answered(&self.memory, &memory)
                && self.interrupt.is_reset_needed()
            {
                // Its thread has failed, and the queue with it.
                ring.base = answered;
            }
        }
    }

    /// Starts it with all rings that run.
    fn start(&mut self) -> Result<(), Error> {
        if !self.any_runs() {
            // A fault was one of rings that are no more.
            self.interrupt = Arc::new(Interrupt::new(Box::new(self.lines.clone())));
            return Ok(());
        }
        if self.interrupt.is_reset_needed() {
            return Ok(());
        }
        if !self.features.has(Features::VERSION_1) {
            return Err(Error::Legacy);
        }
        let logged = self.log.clone().filter(|_| self.features.has(LOG_ALL));
        let space = self.memory.for_device(logged);
        let memory = space.memory();
        let features = self.features.without(OURS);
        let all_enabled = self.all_enabled();
        let mut queues = Vec::new();
        for ring in &mut self.rings {
            if ring.runs(all_enabled) {
                queues.push(ring.queue(&self.memory, &memory, features, self.inflight.as_ref())?);
            }
        }
        drop(memory);
        let activation = Activation {
            features,
            queues,
            memory: space,
            interrupt: self.interrupt.clone(),
        };
        self.device.activate(activation).map_err(Error::Activate)?;
        self.active = true;
        Ok(())
    }

    /// Changes something that a running device must not see change.
    fn change<T>(&mut self, what: impl FnOnce(&mut Self) -> Result<T, Error>) -> Result<T, Error> {
        self.halt();
        let done = what(self)?;
        self.start()?;
        Ok(done)
    }

    /// Changes a ring: with the device stopped, if the ring runs before or after it.
    fn change_ring(&mut self, ring: u32, what: impl FnOnce(&mut Ring)) -> Result<(), Error> {
        let index = self.index(ring)?;
        if self.runs(&self.rings[index]) {
            return self.change(|this| {
                what(&mut this.rings[index]);
                Ok(())
            });
        }
        what(&mut self.rings[index]);
        match self.runs(&self.rings[index]) {
            true => self.change(|_| Ok(())),
            false => Ok(()),
        }
    }

    fn index(&self, ring: u32) -> Result<usize, Error> {
        let count = self.rings.len();
        let index = usize::try_from(ring).ok().filter(|index| *index < count);
        index.ok_or(Error::NoRing { ring, count })
    }

    // What a front end asks for, in the order of the specification.

    /// Returns what is offered.
    pub(crate) fn offered(&self) -> Features {
        let device = self.device.features().with(Features::VERSION_1);
        // What has no bit below 64 cannot be said.
        Features::from_low(device.low()).with(OURS)
    }

    /// Accepts features. Those of the device stay as they are while rings run.
    pub(crate) fn accept(&mut self, bits: u64) -> Result<(), Error> {
        let (offered, accepted) = (self.offered(), Features::from_low(bits));
        if !offered.has(accepted) {
            return Err(Error::Features {
                offered: offered.low(),
                accepted: bits,
            });
        }
        if accepted == self.features {
            return Ok(());
        }
        let same = |a: Features, b: Features| a.without(LOG_ALL) == b.without(LOG_ALL);
        if self.any_runs() && !same(accepted, self.features) {
            return Err(Error::Running { what: "features" });
        }
        self.change(|this| {
            this.features = accepted;
            Ok(())
        })
    }

    /// Returns how many rings there are.
    pub(crate) fn count(&self) -> usize {
        self.rings.len()
    }

    /// Stops all rings, and gives the device up that the driver has set up.
    pub(crate) fn reset(&mut self) {
        self.halt();
        self.device.reset();
        self.inflight = None;
        self.begin_rings();
    }

    /// Disables all rings, and lets them be.
    pub(crate) fn disown(&mut self) -> Result<(), Error> {
        self.change(|this| {
            for ring in &mut this.rings {
                ring.enabled = false;
                ring.kick = None;
            }
            Ok(())
        })
    }

    /// Replaces all memory.
    pub(crate) fn set_memory(&mut self, regions: Vec<(Shown, File)>) -> Result<(), Error> {
        self.change(|this| {
            let leaving = this.memory.replace(regions)?;
            this.check_log()?;
            this.left(&leaving)
        })
    }

    /// Adds memory.
    pub(crate) fn add_memory(&mut self, shown: Shown, file: File) -> Result<(), Error> {
        self.memory.add(shown, file)?;
        self.check_log()
    }

    /// Takes memory away. When this returns nobody here can reach it.
    pub(crate) fn remove_memory(&mut self, shown: Shown) -> Result<(), Error> {
        let leaving = self.memory.remove(shown)?;
        if leaving.wait(RUN) {
            return Ok(());
        }
        self.change(|this| this.left(&leaving))
    }

    fn left(&self, leaving: &Leaving) -> Result<(), Error> {
        leaving.wait(PATIENCE).then_some(()).ok_or(Error::StillUsed)
    }

    fn check_log(&self) -> Result<(), Error> {
        let log = self.log.as_ref();
        log.map_or(Ok(()), |log| log.covers(self.memory.end()))
    }

    /// Logs stores to guest memory, as long as LOG_ALL is accepted.
    pub(crate) fn set_log(&mut self, file: File, offset: u64, len: u64) -> Result<(), Error> {
        let log = Arc::new(Log::map(file, offset, len)?);
        log.covers(self.memory.end())?;
        self.change(|this| {
            this.log = Some(log);
            Ok(())
        })
    }

    /// Sets the size of a ring.
    pub(crate) fn set_size(&mut self, ring: u32, size: u32) -> Result<(), Error> {
        let index = self.index(ring)?;
        let max = self.rings[index].max;
        let fits = u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max);
        let size = fits.ok_or(Error::Size { ring, size, max })?;
        self.stands(index, "the size of a ring")?.size = size;
        Ok(())
    }

    /// Sets where a ring goes on.
    pub(crate) fn set_base(&mut self, ring: u32, base: u32) -> Result<(), Error> {
        let index = self.index(ring)?;
        let place = u16::try_from(base).map_err(|_| Error::Base { ring, base })?;
        let ring = self.stands(index, "the base of a ring")?;
        ring.base = place;
        ring.is_base_theirs = true;
        Ok(())
    }

    /// A ring that does not run.
    fn stands(&mut self, index: usize, what: &'static str) -> Result<&mut Ring, Error> {
        if self.runs(&self.rings[index]) {
            return Err(Error::Running { what });
        }
        Ok(&mut self.rings[index])
    }

    /// Sets where a ring is. The used ring is logged like all memory, whether or not that is asked for here.
    pub(crate) fn set_addresses(&mut self, ring: u32, addresses: Addresses) -> Result<(), Error> {
        self.change_ring(ring, |ring| ring.addresses = Some(addresses))
    }

    /// Stops a ring. Returns where it goes on.
    pub(crate) fn stop(&mut self, ring: u32) -> Result<u16, Error> {
        self.change_ring(ring, |ring| ring.kick = None)?;
        Ok(self.rings[self.index(ring)?].base)
    }

    /// Sets by what a ring's driver notifies.
    pub(crate) fn set_kick(&mut self, ring: u32, fd: Option<OwnedFd>) -> Result<(), Error> {
        self.index(ring)?;
        let fd = fd.ok_or(Error::Polling { ring })?;
        let event = Event::adopt(fd).map_err(|source| Error::Kick { ring, source })?;
        let event = Arc::new(event);
        self.change_ring(ring, |ring| ring.kick = Some(event))
    }

    /// Sets by what the driver hears of used buffers.
    pub(crate) fn set_call(&mut self, ring: u32, fd: Option<OwnedFd>) -> Result<(), Error> {
        self.lines.set_call(self.index(ring)?, fd);
        Ok(())
    }

    /// Sets by what the front end hears that the device needs a reset.
    pub(crate) fn set_error(&mut self, ring: u32, fd: Option<OwnedFd>) -> Result<(), Error> {
        self.lines.set_error(self.index(ring)?, fd);
        Ok(())
    }

    /// Enables a ring, or disables it.
    pub(crate) fn enable(&mut self, ring: u32, enabled: bool) -> Result<(), Error> {
        if self.rings[self.index(ring)?].enabled == enabled {
            return Ok(());
        }
        self.change_ring(ring, |ring| ring.enabled = enabled)
    }

    /// Reads the configuration; zeros behind its end. Of one that changes by itself it is one state.
    pub(crate) fn read_config(&self, offset: u32, len: u32) -> Vec<u8> {
        loop {
            let before = self.device.config_generation();
            let mut bytes = vec![0; len as usize];
            let places = (u64::from(offset)..).step_by(CONFIG_PIECE);
            for (at, piece) in places.zip(bytes.chunks_mut(CONFIG_PIECE)) {
                self.device.read_config(at, piece);
            }
            if self.device.config_generation() == before {
                return bytes;
            }
        }
    }

    /// Writes it.
    pub(crate) fn write_config(&mut self, offset: u32, bytes: &[u8]) {
        let places = (u64::from(offset)..).step_by(CONFIG_PIECE);
        for (at, piece) in places.zip(bytes.chunks(CONFIG_PIECE)) {
            self.device.write_config(at, piece);
        }
    }

    /// Keeps the channel that the next message announces.
    pub(crate) fn announce_channel(&mut self, channel: UnixStream) {
        self.channel = Some(channel);
    }

    /// Uses it.
    pub(crate) fn use_channel(&mut self) {
        self.lines.set_channel(self.channel.take());
    }

    /// Makes a file for requests in flight, as this back end wants it.
    pub(crate) fn make_inflight(&self, rings: u16, size: u16) -> Result<(File, u64), Error> {
        let shape = self.shape(rings, size)?;
        Ok((Inflight::make(shape)?, shape.len()))
    }

    /// Keeps requests in flight in such a file, and takes those that are in it.
    pub(crate) fn set_inflight(
        &mut self,
        file: File,
        offset: u64,
        len: u64,
        (rings, size): (u16, u16),
    ) -> Result<(), Error> {
        if self.any_runs() {
            return Err(Error::Running {
                what: "the file of requests in flight",
            });
        }
        let inflight = Inflight::map(file, offset, len, self.shape(rings, size)?)?;
        self.inflight = Some(Arc::new(inflight));
        for ring in &mut self.rings {
            ring.is_base_theirs = true;
        }
        Ok(())
    }

    fn shape(&self, rings: u16, size: u16) -> Result<Shape, Error> {
        let most = self.rings.iter().map(|ring| ring.max).max().unwrap_or(0);
        if rings == 0 || usize::from(rings) > self.rings.len() {
            return Err(Error::Inflight("there are not so many rings"));
        }
        if size == 0 || size > most {
            return Err(Error::Inflight("no ring is so large"));
        }
        Ok(Shape { rings, size })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.halt();
    }
}

fn rings(device: &dyn Device) -> Vec<Ring> {
    let sizes = (0..).zip(device.queue_sizes());
    sizes.map(|(index, size)| Ring::new(index, *size)).collect()
}
