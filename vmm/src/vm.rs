//! A machine over all of its lives, as programs embed it.
//!
//! ```text
//!   Builder ── build ──> Vm ── run (this thread) ─────────────────────────> Ended
//!     Spec, Console,     │ └── start ──> a thread of its own; wait ───────> Ended
//!     own devices        └─ handle() ─> Handle, of every life
//!
//!     run:  Machine::build ─> it runs ─> it has ended ─┬─ anything else ───────────────────> Ended
//!              ^                                       │ reset, and OnReset::Restart; or Handle::reset
//!              └── the same files, the devices that ───┘
//!                  it has now, the same console
//! ```
//! A reset gives back everything, and builds the machine again: memory is empty, back ends and sockets are new,
//! disks are opened again. What stays is the console, the log of events with its numbers, metadata, the addresses of
//! network interfaces, and what was changed by a [`Handle`]: devices, files of disks, limits, sizes.
//!
//! A [`Vm`] that is dropped is stopped, and waited for: its threads are joined, and its descriptors and mappings are
//! closed, whoever still has a handle.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use umbra_block::OpenError;
use umbra_bus::{MmioDevice, PioDevice};
use umbra_cpu::{Backend, CpuError};
use umbra_slots::GpaRange;

use crate::console::Console;
use crate::driver::Ended;
use crate::error::{BuildError, PlanError, PmemError, RunError};
use crate::handle::{Handle, Seat};
use crate::journal::{EventLog, News};
use crate::machine::{Life, Machine};
use crate::own::{BackendParts, Own};
use crate::plan::Plan;
use crate::policy::Outcome;
use crate::spec::{OnReset, Spec, VirtioKind, VirtioSpec};

/// How long somebody who looks at a disk just now may keep it from being opened again.
const LET_GO: Duration = Duration::from_secs(5);

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What is wanted contradicts itself, or is out of range.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A file is wrong, or the host refuses something.
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Collects what a machine is made of.
#[must_use]
pub struct Builder {
    spec: Spec,
    console: Console,
    own: Own,
    log: EventLog,
}

impl Builder {
    /// Begins with a specification, and a console that nobody looks at.
    pub fn new(spec: Spec) -> Self {
        Self {
            spec,
            console: Console::discarded(),
            own: Own::default(),
            log: EventLog::default(),
        }
    }

    /// Says where the guest's console goes.
    pub fn console(mut self, console: Console) -> Self {
        self.console = console;
        self
    }

    /// Notes what happens in a log that was there before.
    pub fn log(mut self, log: EventLog) -> Self {
        self.log = log;
        self
    }

    /// Shows a device of one's own at guest-physical addresses, from the first instruction of the guest on. What a
    /// reset means to it is its own affair: it stays. For virtio devices see
    /// [`VirtioKind::Own`](crate::VirtioKind::Own).
    pub fn mmio(mut self, range: GpaRange, device: MmioDevice) -> Self {
        self.own.mmio.push((range, device));
        self
    }

    /// Shows a device of one's own at `len` ports, the same way.
    pub fn ports(mut self, first: u16, len: u16, device: PioDevice) -> Self {
        self.own.ports.push((first, len, device));
        self
    }

    /// Has it sampled where the time of software processors goes, and counted what they do in translated code: more of
    /// [`Ended::statistics`] and of [`Handle::inspect`]. The guest is slower by some percent then. Nothing with KVM.
    pub fn measure(mut self) -> Self {
        self.own.measure = true;
        self
    }

    /// Has the guest executed by something of one's own, instead of what [`Spec::backend`] names. It is made for each
    /// life of the machine, before anything is loaded into its memory.
    pub fn backend(
        mut self,
        make: impl Fn(BackendParts) -> Result<Arc<dyn Backend>, CpuError> + Send + Sync + 'static,
    ) -> Self {
        self.own.backend = Some(Arc::new(make));
        self
    }

    /// Builds the machine: takes memory, opens files, wires devices, loads the kernel.
    ///
    /// # Errors
    /// If a number, a file or the host is not as it should be; nothing is left behind then.
    pub fn build(self) -> Result<Vm, Error> {
        let Self {
            spec,
            console,
            own,
            log,
        } = self;
        let seat = Seat::noted(log);
        let machine = Machine::assemble(Plan::new(spec)?, console.clone(), &own, seat)?;
        Ok(Vm {
            handle: machine.handle(),
            state: State::Built(Box::new(Lives {
                machine,
                console,
                own,
            })),
        })
    }
}

/// A machine. See the module.
pub struct Vm {
    handle: Handle,
    state: State,
}

enum State {
    Built(Box<Lives>),
    Started(JoinHandle<Result<Ended, RunError>>),
    /// Somebody else is told how it ended.
    Told(JoinHandle<()>),
    /// Somebody waits for it, or has done.
    Taken,
}

impl Vm {
    /// Returns what other threads may do with it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Returns the machine before its first life; `None` when that has begun.
    pub fn machine(&self) -> Option<&Machine> {
        match &self.state {
            State::Built(lives) => Some(&lives.machine),
            _ => None,
        }
    }

    /// Lets the guest begin, on threads of its own; nothing if it has begun.
    ///
    /// # Errors
    /// If the host has no thread for it. The machine has gone then.
    pub fn start(&mut self) -> io::Result<()> {
        if let Some(lives) = self.begin() {
            let thread = thread::Builder::new().name("vm".into());
            self.state = State::Started(thread.spawn(move || lives.live())?);
        }
        Ok(())
    }

    /// The same, and calls `told` when it has ended, with what [`wait`](Self::wait) would have returned. All that the
    /// machine had is given back then but the thread on which it is called.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_then(
        &mut self,
        told: impl FnOnce(Result<Ended, RunError>) + Send + 'static,
    ) -> io::Result<()> {
        if let Some(lives) = self.begin() {
            let thread = thread::Builder::new().name("vm".into());
            self.state = State::Told(thread.spawn(move || told(lives.live()))?);
        }
        Ok(())
    }

    /// Notes that the guest begins, unless it has.
    fn begin(&mut self) -> Option<Box<Lives>> {
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Built(lives) => {
                lives.machine.begin();
                Some(lives)
            }
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Runs the guest on this thread, and one thread a processor, until it has ended and does not begin again. All
    /// threads have ended when this returns, and the console has been written.
    ///
    /// # Errors
    /// If a processor fails, a thread cannot be started, or the machine cannot be built again. A guest that crashes is
    /// no error.
    pub fn run(mut self) -> Result<Ended, RunError> {
        match self.begin() {
            Some(lives) => lives.live(),
            None => self.wait(),
        }
    }

    /// Waits for a guest that was started, as [`run`](Self::run) does. Who does not want to block follows
    /// [`Handle::events`] until [`News::Ended`] comes.
    ///
    /// # Errors
    /// As [`run`](Self::run); besides if it was never started, or somebody else is told.
    pub fn wait(mut self) -> Result<Ended, RunError> {
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Started(thread) => joined(thread),
            State::Told(thread) => {
                let _ = thread.join();
                Err(RunError::NotStarted)
            }
            State::Built(_) | State::Taken => Err(RunError::NotStarted),
        }
    }
}

fn joined(thread: JoinHandle<Result<Ended, RunError>>) -> Result<Ended, RunError> {
    thread.join().unwrap_or(Err(RunError::DriverPanicked))
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.handle.stop();
        // How it ended is nobody's affair any more.
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Started(thread) => drop(joined(thread)),
            State::Told(thread) => drop(thread.join()),
            State::Built(_) | State::Taken => {}
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Builds a machine for its next life.
fn again(spec: &Spec, console: &Console, own: &Own, seat: &Arc<Seat>) -> Result<Machine, Error> {
    let until = Instant::now() + LET_GO;
    loop {
        let plan = Plan::new(spec.clone())?;
        match Machine::assemble(plan, console.clone(), own, seat.clone()) {
            Err(error) if is_locked(&error) && Instant::now() < until => {
                thread::sleep(Duration::from_millis(1));
            }
            built => return Ok(built?),
        }
    }
}

/// Tells whether somebody has a file that a device needs: for a moment, that is the life before.
fn is_locked(error: &BuildError) -> bool {
    let source = match error {
        BuildError::Disk { source, .. } => source,
        BuildError::Pmem {
            source: PmemError::Open(source),
            ..
        } => source,
        _ => return false,
    };
    matches!(source, OpenError::Locked { .. })
}

/// Takes away the socket's file of a device that has left it behind: the next one makes it again.
fn free_socket(device: &VirtioSpec) {
    if let VirtioKind::Vsock(vsock) = &device.kind
        && vsock.stays
    {
        // If it stays all the same, the next one says so.
        let _ = std::fs::remove_file(&vsock.path);
    }
}

/// A machine that is built, and what the next ones are built of.
struct Lives {
    machine: Machine,
    console: Console,
    own: Own,
}

/// Empties a seat also when a machine ends by a panic: nobody waits for the next one then.
struct Guarded(Arc<Seat>);

impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.leave(false);
    }
}

impl Lives {
    /// Runs one life after the other.
    fn live(self) -> Result<Ended, RunError> {
        let Self {
            mut machine,
            console,
            own,
        } = self;
        let seat = machine.seat();
        let _guarded = Guarded(seat.clone());
        let mut spec = machine.spec().clone();
        let result = loop {
            let Life {
                result,
                devices,
                mut seated,
            } = machine.live();
            let asked = seat.take_reset();
            let reset = matches!(&result, Ok(ended) if ended.outcome == Outcome::Reset);
            if !reset || !asked && spec.on_reset == OnReset::End {
                break result;
            }
            seated.again = true;
            drop(seated);
            seat.wait_free();
            seat.journal.note(News::Reset { by_guest: !asked });
            spec.virtio = devices;
            spec.virtio.iter().for_each(free_socket);
            match again(&spec, &console, &own, &seat) {
                Ok(next) => {
                    machine = next;
                    machine.begin();
                }
                Err(error) => break Err(RunError::Again(Box::new(error))),
            }
        };
        let reason = match &result {
            Ok(ended) => {
                if ended.outcome == Outcome::GuestPanic {
                    seat.journal.note(News::GuestPanic);
                }
                ended.outcome.to_string()
            }
            Err(error) => chain(error),
        };
        seat.leave(false);
        seat.journal.note(News::Ended { reason });
        result
    }
}
