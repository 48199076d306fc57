//! The thread of one processor: run, stand still when told to, leave when told to.
//!
//! ```text
//!   driver                                thread
//!   hold: wanted, kick ─────────────────> run() returns Kicked; wanted: notes the registers,
//!   wait_held <───────────────────────────  says so, and sleeps
//!   go_on: not wanted, notify ──────────> run() again
//!   count: asked, kick ─────────────────> run() returns Kicked; asked: notes its counters, runs on
//!   leave: told, kick, notify ──────────> ends, held or not
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use umbra_cpu::{Exit, Kick, Statistics, SystemEvent, Vcpu};
use umbra_x86::state::CpuState;

use crate::error::RunError;
use crate::io::{MachineIo, VcpuIo};
use crate::policy::{Event, Outcome};

/// Where a processor's thread stands still.
#[derive(Default)]
struct Brake {
    stand: Mutex<Stand>,
    changed: Condvar,
}

#[derive(Default)]
struct Stand {
    wanted: bool,
    /// The registers, while the thread stands still.
    held: Option<CpuState>,
    /// Somebody wants to know what the processor has counted.
    asked: bool,
    /// What it had, when it was asked last.
    counts: Statistics,
    /// The thread has ended, or is about to.
    gone: bool,
}

impl Brake {
    /// Sleeps as long as the processor is to stand still.
    fn pass(&self, vcpu: &dyn Vcpu, io: &VcpuIo, leave: &AtomicBool) {
        let mut stand = self.stand.lock();
        self.tell(&mut stand, vcpu, io);
        while stand.wanted && !leave.load(Ordering::Acquire) {
            self.tell(&mut stand, vcpu, io);
            if stand.held.is_none() {
                stand.held = Some(vcpu.state());
                self.changed.notify_all();
            }
            self.changed.wait(&mut stand);
        }
        stand.held = None;
    }

    /// Notes the counters if somebody asks for them.
    fn tell(&self, stand: &mut Stand, vcpu: &dyn Vcpu, io: &VcpuIo) {
        if std::mem::take(&mut stand.asked) {
            stand.counts = counts(vcpu, io);
            self.changed.notify_all();
        }
    }

    fn set(&self, change: impl FnOnce(&mut Stand)) {
        change(&mut self.stand.lock());
        self.changed.notify_all();
    }
}

/// A processor's thread, seen from the driver.
pub struct VcpuThread {
    kick: Arc<dyn Kick>,
    leave: Arc<AtomicBool>,
    brake: Arc<Brake>,
    thread: JoinHandle<Statistics>,
}

impl VcpuThread {
    /// Starts the thread of processor `id`.
    pub fn start(
        id: u32,
        mut vcpu: Box<dyn Vcpu>,
        machine: MachineIo,
        events: Sender<Event>,
    ) -> Result<Self, RunError> {
        let kick = vcpu.kick_handle();
        let leave = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&leave);
        let brake = Arc::new(Brake::default());
        let stop = Arc::clone(&brake);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                let mut last_words = LastWords {
                    id,
                    events,
                    said: false,
                };
                let io = VcpuIo::new(machine);
                let event = run(id, &mut *vcpu, &io, &told, &stop);
                stop.set(|stand| stand.gone = true);
                last_words.say(event);
                tracing::debug!(id, state = ?vcpu.state(), "processor left");
                counts(&*vcpu, &io)
            })
            .map_err(|source| RunError::Thread { id, source })?;
        Ok(Self {
            kick,
            leave,
            brake,
            thread,
        })
    }

    /// Makes the processor leave its loop soon. Never blocks.
    pub fn leave(&self) {
        // Release: set before the kick that makes the thread look at it.
        self.leave.store(true, Ordering::Release);
        self.kick.kick();
        self.brake.set(|_| {});
    }

    /// Makes the processor stand still soon. Never blocks.
    pub fn hold(&self) {
        self.brake.set(|stand| stand.wanted = true);
        self.kick.kick();
    }

    /// Blocks until the processor stands still, and returns its registers; `None` if it has ended.
    pub fn wait_held(&self) -> Option<CpuState> {
        let mut stand = self.brake.stand.lock();
        while stand.held.is_none() && !stand.gone && !self.thread.is_finished() {
            // The limit is for a thread that panics.
            let limit = std::time::Duration::from_millis(100);
            self.brake.changed.wait_for(&mut stand, limit);
        }
        stand.held.clone()
    }

    /// Asks the processor what it has counted. Never blocks.
    pub fn ask(&self) {
        self.brake.set(|stand| stand.asked = true);
        self.kick.kick();
    }

    /// Blocks until the processor has told what it was asked; what it told before if it has ended.
    pub fn wait_told(&self) -> Statistics {
        let mut stand = self.brake.stand.lock();
        while stand.asked && !stand.gone && !self.thread.is_finished() {
            // The limit is for a thread that panics.
            let limit = std::time::Duration::from_millis(100);
            self.brake.changed.wait_for(&mut stand, limit);
        }
        stand.counts.clone()
    }

    /// Lets the processor go on.
    pub fn go_on(&self) {
        self.brake.set(|stand| stand.wanted = false);
    }

    /// Waits for the thread; it must have been told to leave.
    pub fn join(self) -> Statistics {
        // A thread that panicked has said so in its last words.
        self.thread.join().unwrap_or_default()
    }
}

/// Runs until the processor is told to leave, or cannot go on.
fn run(id: u32, vcpu: &mut dyn Vcpu, io: &VcpuIo, leave: &AtomicBool, brake: &Brake) -> Event {
    while !leave.load(Ordering::Acquire) {
        match vcpu.run(io) {
            Ok(Exit::Kicked) => brake.pass(vcpu, io, leave),
            Ok(Exit::Shutdown(crash)) => return Event::End(Outcome::Crash(crash)),
            Ok(Exit::Stuck(crash)) => return Event::End(Outcome::Stuck(crash)),
            Ok(Exit::System(event)) => return Event::End(system(event)),
            Err(source) => return Event::Failed(RunError::Cpu { id, source }),
        }
    }
    Event::Left
}

/// What a processor has counted, and its surroundings for it.
fn counts(vcpu: &dyn Vcpu, io: &VcpuIo) -> Statistics {
    let (hits, stale) = io.counts();
    let mut counts = vcpu.statistics();
    counts.push(("device accesses without a lookup", hits));
    counts.push(("remembered devices that were stale", stale));
    counts
}

/// What a request to the backend itself means for the machine.
fn system(event: SystemEvent) -> Outcome {
    match event {
        SystemEvent::PowerOff => Outcome::PowerOff,
        SystemEvent::Reset => Outcome::Reset,
        SystemEvent::Crash => Outcome::GuestPanic,
    }
}

/// Tells the driver why the thread ends, whatever the reason.
struct LastWords {
    id: u32,
    events: Sender<Event>,
    said: bool,
}

impl LastWords {
    fn say(&mut self, event: Event) {
        self.said = true;
        // A driver that has gone needs no news.
        let _ = self.events.send(event);
    }
}

impl Drop for LastWords {
    fn drop(&mut self) {
        if !self.said {
            self.say(Event::Failed(RunError::Panicked { id: self.id }));
        }
    }
}
