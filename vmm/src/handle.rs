//! What other threads may do with a machine that runs.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use umbra_cpu::Backend;
use umbra_devices::virtio::{BalloonControl, BlockControl, MemControl, NetControl, PmemControl};
use umbra_devices::{KeyError, Serial};
use umbra_irq::Msi;

use crate::build::{Buttons, Control};
use crate::devices::{Devices, VirtioInfo};
use crate::error::{AddError, DiskError, RemoveError};
use crate::policy::{Event, Outcome, Paused, PausedCpu};
use crate::spec::VirtioSpec;
use crate::terminal::PortInput;

/// Ends a machine from outside, holds it still, looks into it. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) events: Sender<Event>,
    pub(crate) input: ConsoleInput,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) devices: Arc<Devices>,
    pub(crate) buttons: Buttons,
    pub(crate) serial: Arc<Serial>,
    /// Number of processors.
    pub(crate) cpus: usize,
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
        // A machine that has ended hears nothing more.
        let _ = self.events.send(Event::End(Outcome::Stopped));
    }

    /// Makes all processors stand still, and returns their registers. Blocks until they do, which
    /// takes as long as the longest access to a device. Time goes on for the guest.
    ///
    /// # Errors
    /// If the machine is ending.
    pub fn pause(&self) -> Result<Paused, HandleError> {
        let (reply, answer) = channel();
        self.events
            .send(Event::Pause(reply))
            .map_err(|_| HandleError::Ended)?;
        answer.recv().map_err(|_| HandleError::Ended)
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
        let (reply, answer) = channel();
        self.events
            .send(Event::PauseCpu(cpu, reply))
            .map_err(|_| HandleError::Ended)?;
        answer.recv().map_err(|_| HandleError::Ended)
    }

    /// Lets a processor go on that was held by itself; nothing if it was not. While the machine is paused it goes on
    /// with the others. Never blocks.
    ///
    /// # Errors
    /// If the machine has ended, or has no such processor.
    pub fn resume_cpu(&self, cpu: usize) -> Result<(), HandleError> {
        self.expect_cpu(cpu)?;
        let told = self.events.send(Event::ResumeCpu(cpu));
        told.map_err(|_| HandleError::Ended)
    }

    fn expect_cpu(&self, cpu: usize) -> Result<(), HandleError> {
        match self.cpus.saturating_sub(1) {
            last if cpu > last => Err(HandleError::NoSuchCpu { cpu, last }),
            _ => Ok(()),
        }
    }

    /// Lets the processors go on that are not held by themselves; nothing if they do. Never blocks.
    pub fn resume(&self) {
        // A machine that has ended hears nothing more.
        let _ = self.events.send(Event::Resume);
    }

    /// Presses Ctrl, Alt and Delete on the machine's keyboard, and lets them go. What that means is the guest's
    /// decision: Linux restarts, or tells its first process. Never blocks; while the machine is paused the keys
    /// wait.
    ///
    /// # Errors
    /// If the machine has ended, has no keyboard ([`Spec::keyboard`](crate::Spec::keyboard)), or one that takes no
    /// keys now.
    pub fn press_ctrl_alt_del(&self) -> Result<(), HandleError> {
        let keyboard = self.buttons.keyboard.as_ref();
        let keyboard = keyboard.ok_or(HandleError::NoKeyboard)?;
        self.expect_alive()?;
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
        self.buttons.power.press();
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
            None => 0..self.cpus,
        };
        self.expect_alive()?;
        let msi = self.backend.msi();
        targets.for_each(|cpu| msi.send(nmi(cpu)));
        Ok(())
    }

    /// Fails if nobody hears any more what the machine is told.
    fn expect_alive(&self) -> Result<(), HandleError> {
        // The driver looks at the time, which it may always do.
        let told = self.events.send(Event::Timer);
        told.map_err(|_| HandleError::Ended)
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
        let lines = state.map(|state| self.backend.describe_tables(state, address));
        if !paused.already {
            self.resume();
        }
        let lines = lines.ok_or(HandleError::NoSuchCpu {
            cpu,
            last: paused.states.len().saturating_sub(1),
        })?;
        lines.ok_or(HandleError::NoTables {
            backend: self.backend.name(),
        })
    }

    /// Lists the virtio devices, in the order in which they came; none when the machine has ended.
    pub fn devices(&self) -> Vec<VirtioInfo> {
        self.devices.list()
    }

    /// Adds a virtio device to a machine that has a PCI bus ([`Spec::pci`](crate::Spec::pci)), and tells
    /// the guest, which begins to use it when it likes. Blocks as long as the host needs for it.
    ///
    /// # Errors
    /// If it cannot be made, or there is no place for it. Nothing has changed then.
    pub fn add_device(&self, spec: &VirtioSpec) -> Result<(), AddError> {
        self.devices.add(spec)
    }

    /// Asks the guest to let a virtio device go; it goes when the guest has done so. Does not block: see
    /// [`wait_removed`](Self::wait_removed). A guest that does nothing can be asked again.
    ///
    /// # Errors
    /// If there is no such device, or it cannot be removed. Memory that comes and goes cannot while the guest has
    /// some of it.
    pub fn remove_device(&self, id: &str) -> Result<(), RemoveError> {
        self.devices.ask_for(id)
    }

    /// Takes a virtio device away from a guest that does not let it go. To the guest it is as if it had
    /// been pulled out: registers read as all ones. Does not block. Memory goes with what the guest keeps in
    /// it, which few guests survive.
    ///
    /// # Errors
    /// If there is no such device, or it cannot be removed.
    pub fn remove_device_at_once(&self, id: &str) -> Result<(), RemoveError> {
        self.devices.take(id)
    }

    /// Waits until a device has gone, and what it had of the host is given back: its name and its disk can
    /// be used again. `false` if that takes longer than `patience`.
    pub fn wait_removed(&self, id: &str, patience: Duration) -> bool {
        self.devices.wait_gone(id, patience)
    }

    /// Returns what changes the balloon of this name, and says what the guest tells of its memory. `None` if
    /// there is no such balloon. It may be kept; a machine that has ended does nothing more about it.
    pub fn balloon(&self, id: &str) -> Option<BalloonControl> {
        match self.devices.control(id)? {
            Control::Balloon(control) => Some(control),
            _ => None,
        }
    }

    /// Returns what changes how much memory the guest takes of the device of this name, and says how much it
    /// has. `None` if there is no such device of memory. It may be kept, as a balloon's.
    pub fn memory(&self, id: &str) -> Option<MemControl> {
        match self.devices.control(id)? {
            Control::Mem(control) => Some(control),
            _ => None,
        }
    }

    /// Returns what has the disk of this name looked at again when its file has another size, changes its limits,
    /// and says what it has done. `None` if there is no such disk. It may be kept, as a balloon's.
    pub fn disk(&self, id: &str) -> Option<BlockControl> {
        match self.devices.control(id)? {
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
        self.devices.replace_disk(id, path)
    }

    /// Returns what plugs and pulls the cable of the network interface of this name, changes its limits, and says
    /// what it has done. `None` if there is no such interface. It may be kept, as a balloon's.
    pub fn network(&self, id: &str) -> Option<NetControl> {
        match self.devices.control(id)? {
            Control::Net(control) => Some(control),
            _ => None,
        }
    }

    /// Returns what changes the limits of the persistent memory of this name. `None` if there is no such memory. It
    /// may be kept, as a balloon's.
    pub fn pmem(&self, id: &str) -> Option<PmemControl> {
        match self.devices.control(id)? {
            Control::Pmem(control) => Some(control),
            _ => None,
        }
    }

    /// Returns how many bytes of the serial port's output were dropped because they were over its limit
    /// ([`Spec::serial_limit`](crate::Spec::serial_limit)).
    pub fn serial_dropped(&self) -> u64 {
        self.serial.dropped()
    }

    /// Says how large the terminal is that shows the machine's console. The guest hears of it where a virtio
    /// console has that ([`PortEnd::Console`](crate::PortEnd::Console)); a serial port has no size.
    pub fn resize_console(&self, columns: u16, rows: u16) {
        self.devices.resize_console(columns, rows);
    }

    /// Returns the guest's console input.
    pub fn console(&self) -> ConsoleInput {
        self.input.clone()
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

/// Sends input to the guest's console. Cheap to clone.
#[derive(Clone)]
pub struct ConsoleInput {
    sink: Sink,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

impl ConsoleInput {
    pub(crate) fn new(sink: Sink) -> Self {
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

    /// Sends all of `bytes`; blocks while the guest does not read.
    ///
    /// # Errors
    ///
    /// If the machine ends before the guest has taken everything.
    pub fn send(&self, mut bytes: &[u8]) -> Result<(), ConsoleClosed> {
        let (gate, changed) = &*self.gate;
        loop {
            let room = {
                let gate = gate.lock();
                if gate.closed {
                    return Err(ConsoleClosed);
                }
                gate.room
            };
            bytes = &bytes[self.sink.input(bytes)..];
            if bytes.is_empty() {
                return Ok(());
            }
            let mut gate = gate.lock();
            while gate.room == room && !gate.closed {
                changed.wait(&mut gate);
            }
        }
    }

    /// Sends as many of `bytes` as there is room for, and returns how many. Never blocks.
    #[must_use = "bytes that were not taken have to be sent again"]
    pub fn try_send(&self, bytes: &[u8]) -> usize {
        self.sink.input(bytes)
    }

    pub(crate) fn close(&self) {
        self.gate.0.lock().closed = true;
        self.gate.1.notify_all();
    }
}
