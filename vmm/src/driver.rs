//! The driver: one mailbox, one owner of the machine's state.
//!
//! It runs on the thread that called [`Machine::run`](crate::Machine::run) and sleeps until an
//! event comes or the backend's timer is due, and looks now and then what devices have done by themselves. When the machine ends it first closes the console, for a
//! processor may be waiting there, then kicks every processor, then waits for their threads.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use umbra_clock::{Clock, Timer};
use umbra_cpu::Backend;
use umbra_x86::state::CpuState;

use crate::devices::Devices;
use crate::error::RunError;
use crate::journal::{Journal, News};
use crate::look::Look;
use crate::policy::{Action, Counted, Event, Holds, Outcome, Paused, PausedCpu, State, decide};
use crate::vcpu::VcpuThread;

/// How long output may wait in the backend while no processor leaves the guest.
const NUDGE: Duration = Duration::from_millis(20);

/// How a machine ended, and what it counted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// Counters, for people to read: who counted, what, how many.
    pub statistics: Vec<(String, &'static str, u64)>,
}

/// What the driver watches.
pub struct Driver<'a> {
    pub events: &'a Receiver<Event>,
    pub clock: Clock,
    pub timer: Option<Arc<dyn Timer>>,
    pub backend: &'a dyn Backend,
    pub processors: &'a [VcpuThread],
    pub virtio: &'a Devices,
    pub journal: &'a Journal,
}

impl Driver<'_> {
    /// Runs the machine until it has ended: calls `kick` once, and returns how it ended.
    pub fn run(&self, kick: impl FnOnce()) -> Result<Outcome, RunError> {
        let mut state = State::Running(Holds::new());
        let mut look = Look::new(Instant::now());
        loop {
            let event = self.next(&mut look);
            let (next, action) = decide(state, event);
            match action {
                Action::Wait => {}
                Action::Pause(reply, already) => {
                    let states = self.hold();
                    if !already {
                        self.journal.note(News::Paused);
                    }
                    // Somebody who no longer waits resumes nothing either: that is their affair.
                    let _ = reply.send(Paused { states, already });
                }
                Action::Resume(holds) => {
                    self.journal.note(News::Resumed);
                    self.go_on(&holds);
                }
                Action::PauseCpu(cpu, reply, already) => {
                    // One that has ended gives no answer; the machine ends, too.
                    if let Some(state) = self.hold_one(cpu) {
                        if !already {
                            self.journal.note(News::CpuPaused { cpu });
                        }
                        let _ = reply.send(PausedCpu { state, already });
                    }
                }
                Action::Count(reply, paused, held) => {
                    self.processors.iter().for_each(VcpuThread::ask);
                    let cpus = self.processors.iter().map(VcpuThread::wait_told);
                    let cpus = cpus.collect();
                    let _ = reply.send(Counted { cpus, paused, held });
                }
                Action::ResumeCpu(cpu) => {
                    self.journal.note(News::CpuResumed { cpu });
                    self.processors
                        .get(cpu)
                        .into_iter()
                        .for_each(VcpuThread::go_on);
                }
                Action::Kick => {
                    kick();
                    let State::Ending(result) = next else {
                        unreachable!("only an ending machine kicks its processors");
                    };
                    return result;
                }
            }
            state = next;
        }
    }

    /// Makes all processors stand still, and then the devices, which nobody tells anything any more;
    /// returns the processors' registers. One that has ended has said so, or will, and the machine ends
    /// then.
    fn hold(&self) -> Vec<CpuState> {
        self.processors.iter().for_each(VcpuThread::hold);
        let held = self.processors.iter().filter_map(VcpuThread::wait_held);
        let held = held.collect();
        self.virtio.hold();
        held
    }

    /// Lets the devices go on, and all processors that are not held by themselves.
    fn go_on(&self, holds: &Holds) {
        self.virtio.go_on();
        let processors = self.processors.iter().enumerate();
        let free = processors.filter(|(cpu, _)| !holds.contains(cpu));
        free.for_each(|(_, processor)| processor.go_on());
    }

    /// Makes one processor stand still; returns its registers.
    fn hold_one(&self, cpu: usize) -> Option<CpuState> {
        let processor = self.processors.get(cpu)?;
        processor.hold();
        processor.wait_held()
    }

    fn tick(&self) {
        if let Some(timer) = &self.timer {
            timer.tick(self.clock.now());
        }
    }

    /// Waits for the next event; lets the timer tick, and looks at the devices, meanwhile.
    fn next(&self, look: &mut Look) -> Event {
        loop {
            self.virtio.look(look, self.journal);
            let next = self.timer.as_ref().and_then(|timer| timer.next_event());
            let due = next.map(|at| self.clock.instant_at(at));
            let ports = self.backend.coalesced_ports().filter(|p| p.is_active());
            let nudge = ports.map(|_| Instant::now() + NUDGE);
            let due = due.into_iter().chain(nudge).fold(look.due(), Instant::min);
            let wait = due.saturating_duration_since(Instant::now());
            // A zero wait would not look at the mailbox under a fast timer.
            match self.events.recv_timeout(wait.max(Duration::from_micros(1))) {
                Ok(Event::Timer) => {}
                Ok(event) => return event,
                Err(RecvTimeoutError::Timeout) => {
                    self.tick();
                    if let Some(ports) = ports {
                        ports.nudge();
                    }
                }
                // The machine itself holds a sender, so this cannot happen while it lives.
                Err(RecvTimeoutError::Disconnected) => return Event::End(Outcome::Stopped),
            }
        }
    }
}
