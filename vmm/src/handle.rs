//! What other threads may do with a machine that runs.
//!
//! A [`Handle`] is of a machine, and not of one of its lives: while it is reset and begins again ([`Vm`](crate::Vm)),
//! who wants something waits until it has. What the machine has is in its *seat*, which is empty when it has ended: a
//! handle that somebody keeps holds no memory, descriptor or thread.

use std::io;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use umbra_bus::{Bus, BusError, MmioDevice, Ports};
use umbra_cpu::Backend;
use umbra_devices::virtio::{BalloonControl, BlockControl, MemControl, NetControl, PmemControl};
use umbra_devices::{KeyError, Serial};
use umbra_irq::{Line, Msi};
use umbra_slots::{AddressSpace, GpaRange, IoId};

use crate::build::{Buttons, Control};
use crate::devices::{Devices, VirtioInfo};
use crate::error::{AddError, DiskError, RemoveError};
use crate::inspect::{Bumps, Inspection};
use crate::journal::{EventLog, Events, Journal, News};
use crate::policy::{Event, Outcome, Paused, PausedCpu};
use crate::spec::VirtioSpec;
use crate::terminal::PortInput;

/// What there is of a machine in one of its lives.
pub(crate) struct Parts {
    pub events: Sender<Event>,
    pub input: Input,
    pub backend: Arc<dyn Backend>,
    pub devices: Arc<Devices>,
    pub buttons: Buttons,
    pub serial: Arc<Serial>,
    pub bus: Arc<Bus>,
    pub ports: Arc<Ports>,
    pub space: Arc<AddressSpace>,
    pub bumps: Arc<Bumps>,
    /// Number of processors.
    pub cpus: usize,
    /// Bytes of RAM.
    pub memory: u64,
}

/// How long somebody may be at work with a machine that has left: as long as the longest call, which flushes a disk.
const FREE: Duration = Duration::from_secs(30);

/// Where a machine is.
#[derive(Default)]
enum Place {
    /// It is being built, for the first time or again.
    #[default]
    Coming,
    There(Arc<Parts>),
    Gone,
}

/// Where a machine sits, in all of its lives.
#[derive(Default)]
pub(crate) struct Seat {
    state: Mutex<SeatState>,
    changed: Condvar,
    pub journal: Arc<Journal>,
}

#[derive(Default)]
struct SeatState {
    place: Place,
    /// How often the machine has begun.
    boots: u64,
    /// Somebody outside wants it to begin again.
    reset: bool,
    /// Somebody wants it to end.
    stop: bool,
    /// Columns and rows of the terminal that shows the console, if somebody has said.
    console: Option<(u16, u16)>,
    /// What has left last. Somebody may still be at work with it.
    left: Weak<Parts>,
}

impl Seat {
    /// Makes a seat whose machine is noted in a log.
    pub fn noted(log: EventLog) -> Arc<Self> {
        Arc::new(Self {
            journal: log.0,
            ..Self::default()
        })
    }

    /// Takes a machine that was built; returns whether somebody has asked meanwhile that it ends.
    pub fn take(&self, parts: Parts) -> bool {
        let mut state = self.state.lock();
        if let Some((columns, rows)) = state.console {
            parts.devices.resize_console(columns, rows);
        }
        state.place = Place::There(Arc::new(parts));
        self.changed.notify_all();
        state.stop
    }

    /// Notes that the machine begins.
    pub fn begin(&self, backend: &str) {
        let boot = {
            let mut state = self.state.lock();
            state.boots += 1;
            state.boots
        };
        let backend = backend.to_owned();
        self.journal.note(News::Started { boot, backend });
    }

    /// Lets go of a machine that has ended; another one comes if `again`.
    pub fn leave(&self, again: bool) {
        let old = {
            let mut state = self.state.lock();
            let next = match again {
                true => Place::Coming,
                false => Place::Gone,
            };
            let old = std::mem::replace(&mut state.place, next);
            if let Place::There(parts) = &old {
                state.left = Arc::downgrade(parts);
            }
            old
        };
        self.changed.notify_all();
        // Not under the lock: it may be the last one who has it.
        drop(old);
    }

    /// Waits until nobody is at work any more with a machine that has left, so that its files are free. Whoever is
    /// finds that it has ended, and is not long; one who is all the same is left behind.
    pub fn wait_free(&self) {
        let left = self.state.lock().left.clone();
        let until = Instant::now() + FREE;
        while left.strong_count() > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Tells whether somebody outside has asked for a reset, and forgets it.
    pub fn take_reset(&self) -> bool {
        std::mem::take(&mut self.state.lock().reset)
    }

    /// Returns what there is, and waits while it is being built.
    fn parts(&self) -> Option<Arc<Parts>> {
        let mut state = self.state.lock();
        loop {
            match &state.place {
                Place::There(parts) => return Some(parts.clone()),
                Place::Gone => return None,
                Place::Coming => self.changed.wait(&mut state),
            }
        }
    }

    /// Waits until a machine that ends has left. It is not held meanwhile, for the next one needs what it has.
    fn wait_left(&self, parts: Arc<Parts>) {
        let left = Arc::downgrade(&parts);
        drop(parts);
        let is_it = |place: &Place| matches!(place, Place::There(now) if Weak::ptr_eq(&Arc::downgrade(now), &left));
        let mut state = self.state.lock();
        while is_it(&state.place) {
            self.changed.wait(&mut state);
        }
    }
}

/// Ends a machine from outside, holds it still, changes it, looks into it. Cheap to clone. Where the machine is reset
/// and begins again, whatever is asked of it waits until it has.
///
/// What it gives away to change one device ([`disk`](Self::disk) and the like) is of the device in this life. Who keeps
/// that of a disk keeps its file, and the machine cannot open it again after a reset: better ask for it each time.
#[derive(Clone)]
pub struct Handle {
    pub(crate) seat: Arc<Seat>,
}

/// Why a machine did not do what was asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// It has ended, or is about to.
    #[error("the machine has ended")]
    Ended,
    /// It has no such processor.
    #[error("there is no processor {cpu}; the last one is {last}")]
    NoSuchCpu {
        /// Which was asked for.
        cpu: usize,
        /// The highest number.
        last: usize,
    },
    /// It has no keyboard.
    #[error("the machine has no keyboard; build it with one (`Spec::keyboard`)")]
    NoKeyboard,
    /// Its keyboard takes no keys now.
    #[error(transparent)]
    Keyboard(#[from] KeyError),
    /// Its processors keep their tables to themselves.
    #[error("the {backend} backend shows no page tables; the software processor does")]
    NoTables {
        /// Which backend.
        backend: &'static str,
    },
}

impl Handle {
    /// Makes the machine end with [`Outcome::Stopped`], unless it is ending already. Never blocks;
    /// before [`Machine::run`](crate::Machine::run) it makes that end at once.
    pub fn stop(&self) {
        let parts = {
            let mut state = self.seat.state.lock();
            state.stop = true;
            match &state.place {
                Place::There(parts) => Some(parts.clone()),
                // One that is being built is told when it is there.
                Place::Coming | Place::Gone => None,
            }
        };
        if let Some(parts) = parts {
            // A machine that has ended hears nothing more.
            let _ = parts.events.send(Event::End(Outcome::Stopped));
        }
    }

    /// Makes all processors stand still, and returns their registers. Blocks until they do, which
    /// takes as long as the longest access to a device. Time goes on for the guest.
    ///
    /// # Errors
    /// If the machine is ending.
    pub fn pause(&self) -> Result<Paused, HandleError> {
        self.ask(Event::Pause)
    }

    /// Makes one processor stand still, and returns its registers; the others and the devices go on. It stands still
    /// until [`resume_cpu`](Self::resume_cpu), also while the machine is paused and when it is resumed. Blocks as
    /// [`pause`](Self::pause) does. A guest notices: what it sends to that processor is not answered, and Linux
    /// complains after some seconds.
    ///
    /// # Errors
    /// If the machine is ending, or has no such processor.
    pub fn pause_cpu(&self, cpu: usize) -> Result<PausedCpu, HandleError> {
        self.expect_cpu(cpu)?;
        self.ask(|reply| Event::PauseCpu(cpu, reply))
    }

    /// Lets a processor go on that was held by itself; nothing if it was not. While the machine is paused it goes on
    /// with the others. Never blocks.
    ///
    /// # Errors
    /// If the machine has ended, or has no such processor.
    pub fn resume_cpu(&self, cpu: usize) -> Result<(), HandleError> {
        self.expect_cpu(cpu)?;
        self.tell(|| Event::ResumeCpu(cpu))
    }

    /// What there is. Who has it neither asks the driver nor waits for another life: a reset waits for him.
    fn parts(&self) -> Result<Arc<Parts>, HandleError> {
        self.seat.parts().ok_or(HandleError::Ended)
    }

    /// Tells the driver something. One that is on its way out hears nothing more; the next one does.
    fn tell(&self, event: impl Fn() -> Event) -> Result<(), HandleError> {
        loop {
            let parts = self.parts()?;
            match parts.events.send(event()) {
                Ok(()) => return Ok(()),
                Err(_) => self.seat.wait_left(parts),
            }
        }
    }

    /// Asks the driver, and waits for its answer; one that is on its way out gives none, and the next one is asked.
    fn ask<T>(&self, event: impl Fn(Sender<T>) -> Event) -> Result<T, HandleError> {
        loop {
            let parts = self.parts()?;
            let (reply, answer) = channel();
            let told = parts.events.send(event(reply));
            match told.ok().and_then(|()| answer.recv().ok()) {
                Some(answer) => return Ok(answer),
                None => self.seat.wait_left(parts),
            }
        }
    }

    fn expect_cpu(&self, cpu: usize) -> Result<(), HandleError> {
        match self.parts()?.cpus.saturating_sub(1) {
            last if cpu > last => Err(HandleError::NoSuchCpu { cpu, last }),
            _ => Ok(()),
        }
    }

    /// Lets the processors go on that are not held by themselves; nothing if they do. Never blocks.
    pub fn resume(&self) {
        // A machine that has ended hears nothing more.
        let _ = self.tell(|| Event::Resume);
    }

    /// Presses Ctrl, Alt and Delete on the machine's keyboard, and lets them go. What that means is the guest's
    /// decision: Linux restarts, or tells its first process. Never blocks; while the machine is paused the keys
    /// wait.
    ///
    /// # Errors
    /// If the machine has ended, has no keyboard ([`Spec::keyboard`](crate::Spec::keyboard)), or one that takes no
    /// keys now.
    pub fn press_ctrl_alt_del(&self) -> Result<(), HandleError> {
        self.expect_alive()?;
        let parts = self.parts()?;
        let keyboard = parts.buttons.keyboard.as_ref();
        let keyboard = keyboard.ok_or(HandleError::NoKeyboard)?;
        Ok(keyboard.press_ctrl_alt_del()?)
    }

    /// Presses the machine's power button. What that means is the guest's decision: one without a driver for it
    /// (Linux: `button`), or without a program that listens, does nothing. Never blocks; while the machine is
    /// paused the press waits.
    ///
    /// # Errors
    /// If the machine has ended.
    pub fn press_power_button(&self) -> Result<(), HandleError> {
        self.expect_alive()?;
        self.parts()?.buttons.power.press();
        Ok(())
    }

    /// Sends a non-maskable interrupt to a processor, or to all of them. One that waits for the start-up message
    /// has it when it starts; those that come faster than the guest takes them become one. Never blocks.
    ///
    /// # Errors
    /// If the machine has ended, or has no such processor.
    pub fn inject_nmi(&self, cpu: Option<usize>) -> Result<(), HandleError> {
        let targets = match cpu {
            Some(cpu) => {
                self.expect_cpu(cpu)?;
                cpu..cpu + 1
            }
            None => 0..self.cpus()?,
        };
        self.expect_alive()?;
        let msi = self.parts()?.backend.msi();
        targets.for_each(|cpu| msi.send(nmi(cpu)));
        Ok(())
    }

    /// Fails if nobody hears any more what the machine is told.
    fn expect_alive(&self) -> Result<(), HandleError> {
        // The driver looks at the time, which it may always do.
        self.tell(|| Event::Timer)
    }

    /// Describes the page tables of a processor, guest and shadow side by side, for people; only what
    /// translates `address` if there is one. The machine is paused meanwhile.
    ///
    /// # Errors
    /// If the machine is ending, has no such processor, or one whose tables cannot be seen.
    pub fn page_tables(
        &self,
        cpu: usize,
        address: Option<u64>,
    ) -> Result<Vec<String>, HandleError> {
        let paused = self.pause()?;
        let state = paused.states.get(cpu);
        let (lines, backend) = {
            let backend = self.parts()?.backend.clone();
            let lines = state.map(|state| backend.describe_tables(state, address));
            (lines, backend.name())
        };
        if !paused.already {
            self.resume();
        }
        let lines = lines.ok_or(HandleError::NoSuchCpu {
            cpu,
            last: paused.states.len().saturating_sub(1),
        })?;
        lines.ok_or(HandleError::NoTables { backend })
    }

    /// Lists the virtio devices, in the order in which they came; none when the machine has ended.
    pub fn devices(&self) -> Vec<VirtioInfo> {
        let parts = self.seat.parts();
        parts.map_or_else(Vec::new, |parts| parts.devices.list())
    }

    /// Returns what the virtio devices are now: as they were asked for, with what was changed since.
    ///
    /// # Errors
    /// If the machine has ended.
    pub fn device_specs(&self) -> Result<Vec<VirtioSpec>, HandleError> {
        Ok(self.parts()?.devices.specs())
    }

    /// Adds a virtio device to a machine that has a PCI bus ([`Spec::pci`](crate::Spec::pci)), and tells
    /// the guest, which begins to use it when it likes. Blocks as long as the host needs for it.
    ///
    /// # Errors
    /// If it cannot be made, or there is no place for it. Nothing has changed then.
    pub fn add_device(&self, spec: &VirtioSpec) -> Result<(), AddError> {
        loop {
            let parts = self.parts().map_err(|_| AddError::Ended)?;
            match parts.devices.add(spec) {
                // This life has; the next one is asked.
                Err(AddError::Ended) => self.seat.wait_left(parts),
                added => return added,
            }
        }
    }

    /// Asks the guest to let a virtio device go; it goes when the guest has done so. Does not block: see
    /// [`wait_removed`](Self::wait_removed). A guest that does nothing can be asked again.
    ///
    /// # Errors
    /// If there is no such device, or it cannot be removed. Memory that comes and goes cannot while the guest has
    /// some of it.
    pub fn remove_device(&self, id: &str) -> Result<(), RemoveError> {
        self.removable(id)?.devices.ask_for(id)
    }

    /// Takes a virtio device away from a guest that does not let it go. To the guest it is as if it had
    /// been pulled out: registers read as all ones. Does not block. Memory goes with what the guest keeps in
    /// it, which few guests survive.
    ///
    /// # Errors
    /// If there is no such device, or it cannot be removed.
    pub fn remove_device_at_once(&self, id: &str) -> Result<(), RemoveError> {
        self.removable(id)?.devices.take(id)
    }

    /// Waits until a device has gone, and what it had of the host is given back: its name and its disk can
    /// be used again. `false` if that takes longer than `patience`.
    pub fn wait_removed(&self, id: &str, patience: Duration) -> bool {
        let parts = self.seat.parts();
        parts.is_none_or(|parts| parts.devices.wait_gone(id, patience))
    }

    /// Returns what changes the balloon of this name, and says what the guest tells of its memory. `None` if
    /// there is no such balloon. It may be kept; a machine that has ended does nothing more about it.
    pub fn balloon(&self, id: &str) -> Option<BalloonControl> {
        match self.seat.parts()?.devices.control(id)? {
            Control::Balloon(control) => Some(control),
            _ => None,
        }
    }

    /// Returns what changes how much memory the guest takes of the device of this name, and says how much it
    /// has. `None` if there is no such device of memory. It may be kept, as a balloon's.
    pub fn memory(&self, id: &str) -> Option<MemControl> {
        match self.seat.parts()?.devices.control(id)? {
            Control::Mem(control) => Some(control),
            _ => None,
        }
    }

    /// Returns what has the disk of this name looked at again when its file has another size, changes its limits,
    /// and says what it has done. `None` if there is no such disk. It may be kept, as a balloon's.
    pub fn disk(&self, id: &str) -> Option<BlockControl> {
        match self.seat.parts()?.devices.control(id)? {
            Control::Block(control) => Some(control),
            _ => None,
        }
    }

    /// Puts the file at `path` in the place of the one behind a disk, opened as the disk's own options say (format,
    /// read-only, direct I/O). Requests in flight end on the old file, which is flushed and let go. The guest is told
    /// that its disk has changed, and how large it is; what it keeps of the old one in caches it has to drop by
    /// itself. The file that is there already is only looked at again, for its size. May be called while the machine
    /// is paused. Blocks for ten seconds and a flush at most.
    ///
    /// # Errors
    /// If it cannot be done; the old file is still there then.
    pub fn replace_disk(&self, id: &str, path: &Path) -> Result<(), DiskError> {
        self.expect_alive().map_err(|_| DiskError::Ended)?;
        let parts = self.parts().map_err(|_| DiskError::Ended)?;
        parts.devices.replace_disk(id, path)
    }

    /// Returns what plugs and pulls the cable of the network interface of this name, changes its limits, and says
    /// what it has done. `None` if there is no such interface. It may be kept, as a balloon's.
    pub fn network(&self, id: &str) -> Option<NetControl> {
        match self.seat.parts()?.devices.control(id)? {
            Control::Net(control) => Some(control),
            _ => None,
        }
    }

    /// Returns what changes the limits of the persistent memory of this name. `None` if there is no such memory. It
    /// may be kept, as a balloon's.
    pub fn pmem(&self, id: &str) -> Option<PmemControl> {
        match self.seat.parts()?.devices.control(id)? {
            Control::Pmem(control) => Some(control),
            _ => None,
        }
    }

    /// Returns how many bytes of the serial port's output were dropped because they were over its limit
    /// ([`Spec::serial_limit`](crate::Spec::serial_limit)).
    pub fn serial_dropped(&self) -> u64 {
        self.seat.parts().map_or(0, |parts| parts.serial.dropped())
    }

    /// Says how large the terminal is that shows the machine's console. The guest hears of it where a virtio
    /// console has that ([`PortEnd::Console`](crate::PortEnd::Console)); a serial port has no size.
    pub fn resize_console(&self, columns: u16, rows: u16) {
        let parts = {
            let mut state = self.seat.state.lock();
            state.console = Some((columns, rows));
            match &state.place {
                Place::There(parts) => Some(parts.clone()),
                // One that is being built is told when it is there.
                Place::Coming | Place::Gone => None,
            }
        };
        if let Some(parts) = parts {
            parts.devices.resize_console(columns, rows);
        }
    }

    /// Returns the guest's console input.
    pub fn console(&self) -> ConsoleInput {
        ConsoleInput {
            seat: self.seat.clone(),
        }
    }

    /// Resets the machine: its processors leave at once, it is built again from what it is now (with the devices that
    /// came and went since), and begins. What the guest had in memory is lost. Only of a machine that a
    /// [`Vm`](crate::Vm) runs; any other ends with [`Outcome::Reset`], as if its guest had asked. Never blocks.
    ///
    /// # Errors
    /// If the machine has ended.
    pub fn reset(&self) -> Result<(), HandleError> {
        self.tell(|| {
            self.seat.state.lock().reset = true;
            Event::End(Outcome::Reset)
        })
    }

    /// Returns the number of processors.
    ///
    /// # Errors
    /// If the machine has ended.
    pub fn cpus(&self) -> Result<usize, HandleError> {
        Ok(self.parts()?.cpus)
    }

    /// Returns how many bytes of RAM the guest began with.
    ///
    /// # Errors
    /// If the machine has ended.
    pub fn ram(&self) -> Result<u64, HandleError> {
        Ok(self.parts()?.memory)
    }

    /// Tells whether the machine has ended, and does not begin again. Whoever was told so by a call that failed, or by
    /// [`News::Ended`], finds it here from then on. Never blocks.
    pub fn has_ended(&self) -> bool {
        matches!(self.seat.state.lock().place, Place::Gone)
    }

    /// Returns how often the guest has begun; each restart counts.
    pub fn boots(&self) -> u64 {
        self.seat.state.lock().boots
    }

    /// Follows what happens to the machine: everything since the entry that was `seen` last (0 for all that is kept),
    /// or what happens from now on. See [`News`].
    ///
    /// # Errors
    /// If the host gives no descriptor.
    pub fn events(&self, seen: Option<u64>) -> io::Result<Events> {
        self.seat.journal.follow(seen)
    }

    /// Looks into the machine: the guest-physical map and how it came to be, counters of processors, MMU and devices.
    /// Processors leave the guest once for it, for microseconds; blocks until they have.
    ///
    /// # Errors
    /// If the machine has ended.
    pub fn inspect(&self) -> Result<Inspection, HandleError> {
        let counted = self.ask(Event::Count)?;
        Ok(Inspection::of(&*self.parts()?, counted))
    }

    /// Shows a device of one's own at a range of guest-physical addresses, where nothing is. It takes effect for every
    /// processor at once: the map has another generation. A machine that is reset has it no more; what belongs to every
    /// life of a machine is told to its [`Builder`](crate::Builder).
    ///
    /// # Errors
    /// If something is there already, or the machine has ended ([`MapError::Ended`]).
    pub fn map_device(&self, range: GpaRange, device: MmioDevice) -> Result<IoId, MapError> {
        let parts = self.parts().map_err(|_| MapError::Ended)?;
        Ok(parts.bus.insert(range, device)?)
    }

    /// Takes such a device away. When this returns no processor is inside it, and none will be. `false` if there is no
    /// such device. Blocks as long as its longest access.
    pub fn unmap_device(&self, id: IoId) -> bool {
        let removed = self.seat.parts().and_then(|parts| parts.bus.remove(id));
        removed.map(|removed| drop(removed.wait())).is_some()
    }

    /// Returns an interrupt line, by the number that the guest's tables have for it; `None` if there is no such line,
    /// or the machine has ended. Who else drives it is for the caller to know (`docs/devices.md`).
    pub fn line(&self, number: u32) -> Option<Arc<dyn Line>> {
        self.seat.parts()?.backend.chip().line(number)
    }

    fn removable(&self, id: &str) -> Result<Arc<Parts>, RemoveError> {
        let gone = || RemoveError::NoSuchDevice { id: id.to_owned() };
        self.seat.parts().ok_or_else(gone)
    }
}

/// The message that is a non-maskable interrupt for a processor (SDM vol. 3, 11.11). A machine has fewer than 256, so
/// no number is the one that means all.
fn nmi(cpu: usize) -> Msi {
    const DELIVER_NMI: u32 = 4 << 8;
    Msi {
        address: 0xfee0_0000 | (cpu as u64 & 0xff) << 12,
        data: DELIVER_NMI,
    }
}

/// Why a device of one's own is not shown.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// There is no room.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// The machine has ended: nobody reads its console any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the machine has ended")]
pub struct ConsoleClosed;

#[derive(Default)]
struct Gate {
    /// Counts how often room appeared.
    room: u64,
    closed: bool,
}

/// Where input goes.
#[derive(Clone)]
pub(crate) enum Sink {
    /// To the serial port.
    Serial(Arc<Serial>),
    /// To the port that has the machine's console.
    Port(Arc<PortInput>),
}

impl Sink {
    fn input(&self, bytes: &[u8]) -> usize {
        match self {
            Self::Serial(serial) => serial.input(bytes),
            Self::Port(port) => port.input(bytes),
        }
    }
}

/// The console's input in one life of a machine.
#[derive(Clone)]
pub(crate) struct Input {
    sink: Sink,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

impl Input {
    pub fn new(sink: Sink) -> Self {
        let gate = Arc::new((Mutex::new(Gate::default()), Condvar::new()));
        let theirs = Arc::clone(&gate);
        // Called under the port's lock: the gate's lock comes after it, and is never held while
        // the port is called.
        let told = move || {
            theirs.0.lock().room += 1;
            theirs.1.notify_all();
        };
        match &sink {
            Sink::Serial(serial) => serial.on_space(told),
            Sink::Port(port) => port.on_space(told),
        }
        Self { sink, gate }
    }

    /// Sends all of them; blocks while the guest does not read. Leaves in `bytes` what was not taken when it ends.
    fn send(&self, bytes: &mut &[u8]) -> Result<(), ConsoleClosed> {
        let (gate, changed) = &*self.gate;
        loop {
            let room = {
                let gate = gate.lock();
                if gate.closed {
                    return Err(ConsoleClosed);
                }
                gate.room
            };
            *bytes = &bytes[self.sink.input(bytes)..];
            if bytes.is_empty() {
                return Ok(());
            }
            let mut gate = gate.lock();
            while gate.room == room && !gate.closed {
                changed.wait(&mut gate);
            }
        }
    }

    pub fn close(&self) {
        self.gate.0.lock().closed = true;
        self.gate.1.notify_all();
    }
}

/// Sends input to the guest's console. Cheap to clone.
#[derive(Clone)]
pub struct ConsoleInput {
    seat: Arc<Seat>,
}

impl ConsoleInput {
    /// Sends all of `bytes`; blocks while the guest does not read. Where the machine begins again the rest is for its
    /// next life.
    ///
    /// # Errors
    ///
    /// If the machine ends before the guest has taken everything.
    pub fn send(&self, mut bytes: &[u8]) -> Result<(), ConsoleClosed> {
        loop {
            let parts = self.seat.parts().ok_or(ConsoleClosed)?;
            if parts.input.send(&mut bytes).is_ok() {
                return Ok(());
            }
            // It is on its way out; wait until it has left.
            self.seat.wait_left(parts);
        }
    }

    /// Sends as many of `bytes` as there is room for, and returns how many: none when the machine has ended. Never
    /// blocks for the guest.
    #[must_use = "bytes that were not taken have to be sent again"]
    pub fn try_send(&self, bytes: &[u8]) -> usize {
        let parts = self.seat.parts();
        parts.map_or(0, |parts| parts.input.sink.input(bytes))
    }
}
