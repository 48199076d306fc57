//! What an event means in a state. Pure.
//!
//! ```text
//!            power-off, reset, crash, stop, failure        all processors left
//!   Running ───────────────────────────────────> Ending ───────────────────> (ended)
//!    │   ^                                         ^
//!    v   │ resume                                  │ the same
//!   Paused ────────────────────────────────────────┘
//! ```
//! Pausing a machine that is paused gives the registers again and changes nothing.
//!
//! Besides, each processor may be held by itself. A machine that is paused remembers which ones are, and lets only
//! the others go on when it is resumed: a processor runs if neither holds it.
//!
//! The first event that ends a machine decides how it ended. What follows while processors are
//! still on their way out is no news: a guest that powers off and then runs into a triple fault
//! because nobody stopped it yet has powered off.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::mpsc::Sender;

use umbra_cpu::{Crash, Statistics};
use umbra_x86::state::CpuState;

use crate::error::RunError;

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a restart. Whoever wants one builds the machine again.
    Reset,
    /// The guest wrote this value to the exit port ([`Spec::debug_exit`](crate::Spec)).
    Exit(u32),
    /// A processor of the guest shut down by a triple fault.
    Crash(Box<Crash>),
    /// The backend could not execute what the guest asked of it.
    Stuck(Box<Crash>),
    /// The guest's kernel told the backend that it has crashed.
    GuestPanic,
    /// Somebody called [`Handle::stop`](crate::Handle::stop).
    Stopped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("power off"),
            Self::Reset => f.write_str("reset"),
            Self::Exit(value) => write!(f, "exit port {value:#x}"),
            Self::Crash(_) => f.write_str("triple fault"),
            Self::Stuck(_) => f.write_str("stuck: the backend cannot execute the guest"),
            Self::GuestPanic => f.write_str("guest panic"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// What the driver hears.
#[derive(Debug)]
pub enum Event {
    /// The guest, or a user of the library, ended the machine.
    End(Outcome),
    /// A processor could not go on.
    Failed(RunError),
    /// A processor's thread has left its loop.
    Left,
    /// What the driver waits for has changed: the 8254 was programmed, or output began to wait in the backend.
    Timer,
    /// Somebody wants all processors to stand still, and their registers. Where the machine is
    /// ending there is no answer: the sender is dropped.
    Pause(Sender<Paused>),
    /// Somebody lets them go on.
    Resume,
    /// Somebody wants one processor to stand still, and its registers; else as [`Event::Pause`].
    PauseCpu(usize, Sender<PausedCpu>),
    /// Somebody lets one processor go on.
    ResumeCpu(usize),
    /// Somebody wants to know what the processors have counted; else as [`Event::Pause`].
    Count(Sender<Counted>),
}

/// What processors have counted, and which of them stand still.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// What each has counted.
    pub cpus: Vec<Statistics>,
    /// All stand still.
    pub paused: bool,
    /// These are held by themselves.
    pub held: Holds,
}

/// A machine that stands still.
#[derive(Clone, Debug)]
pub struct Paused {
    /// The registers of all processors.
    pub states: Vec<CpuState>,
    /// It stood still before.
    pub already: bool,
}

/// A processor that stands still by itself.
#[derive(Clone, Debug)]
pub struct PausedCpu {
    /// Its registers.
    pub state: CpuState,
    /// It was held by itself before; whether the machine is paused makes no difference.
    pub already: bool,
}

/// The processors that are held by themselves, by number.
pub type Holds = BTreeSet<usize>;

/// Where a machine is in its life.
#[derive(Debug)]
pub enum State {
    /// Processors execute, but for these.
    Running(Holds),
    /// Processors stand still; these go on doing so when it is resumed.
    Paused(Holds),
    /// Processors are told to leave; how it ended is decided.
    Ending(Result<Outcome, RunError>),
}

/// What the driver does next.
#[derive(Debug)]
#[must_use]
pub enum Action {
    /// Nothing.
    Wait,
    /// Make every processor leave.
    Kick,
    /// Make every processor stand still, and answer; they did before if that is said.
    Pause(Sender<Paused>, bool),
    /// Let every processor go on but these.
    Resume(Holds),
    /// Make one processor stand still, and answer; it was held by itself before if that is said.
    PauseCpu(usize, Sender<PausedCpu>, bool),
    /// Let one processor go on.
    ResumeCpu(usize),
    /// Ask every processor what it has counted, and answer. All stand still if that is said, and these by themselves.
    Count(Sender<Counted>, bool, Holds),
}

/// Decides what `event` means in `state`.
pub fn decide(state: State, event: Event) -> (State, Action) {
    match (state, event) {
        (State::Running(_) | State::Paused(_), Event::End(outcome)) => {
            (State::Ending(Ok(outcome)), Action::Kick)
        }
        (State::Running(_) | State::Paused(_), Event::Failed(error)) => {
            (State::Ending(Err(error)), Action::Kick)
        }
        (State::Running(holds), Event::Pause(reply)) => {
            (State::Paused(holds), Action::Pause(reply, false))
        }
        (State::Paused(holds), Event::Pause(reply)) => {
            (State::Paused(holds), Action::Pause(reply, true))
        }
        (State::Paused(holds), Event::Resume) => {
            (State::Running(holds.clone()), Action::Resume(holds))
        }
        (State::Running(mut holds), Event::PauseCpu(cpu, reply)) => {
            let already = !holds.insert(cpu);
            let action = Action::PauseCpu(cpu, reply, already);
            (State::Running(holds), action)
        }
        (State::Paused(mut holds), Event::PauseCpu(cpu, reply)) => {
            let already = !holds.insert(cpu);
            let action = Action::PauseCpu(cpu, reply, already);
            (State::Paused(holds), action)
        }
        (State::Running(mut holds), Event::ResumeCpu(cpu)) => {
            let action = match holds.remove(&cpu) {
                true => Action::ResumeCpu(cpu),
                false => Action::Wait,
            };
            (State::Running(holds), action)
        }
        (State::Paused(mut holds), Event::ResumeCpu(cpu)) => {
            holds.remove(&cpu);
            (State::Paused(holds), Action::Wait)
        }
        (State::Running(holds), Event::Count(reply)) => (
            State::Running(holds.clone()),
            Action::Count(reply, false, holds),
        ),
        (State::Paused(holds), Event::Count(reply)) => (
            State::Paused(holds.clone()),
            Action::Count(reply, true, holds),
        ),
        (state, _) => (state, Action::Wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    use proptest::prelude::*;

    fn running() -> State {
        State::Running(Holds::new())
    }

    #[test]
    fn the_first_end_decides() {
        let (state, action) = decide(running(), Event::End(Outcome::PowerOff));
        assert!(matches!(action, Action::Kick));
        for later in [
            Event::End(Outcome::Reset),
            Event::End(Outcome::Stopped),
            Event::Failed(RunError::Panicked { id: 0 }),
        ] {
            let ending = State::Ending(Ok(Outcome::PowerOff));
            let (state, action) = decide(ending, later);
            assert!(matches!(action, Action::Wait));
            assert!(matches!(state, State::Ending(Ok(Outcome::PowerOff))));
        }
        assert!(matches!(state, State::Ending(Ok(Outcome::PowerOff))));
    }

    #[test]
    fn a_failure_ends_a_running_machine() {
        let (state, action) = decide(running(), Event::Failed(RunError::Panicked { id: 3 }));
        assert!(matches!(
            state,
            State::Ending(Err(RunError::Panicked { id: 3 }))
        ));
        assert!(matches!(action, Action::Kick));
    }

    #[test]
    fn a_timer_and_a_thread_that_left_change_nothing() {
        for event in [Event::Timer, Event::Left] {
            let (state, action) = decide(running(), event);
            assert!(matches!((state, action), (State::Running(_), Action::Wait)));
        }
    }

    #[test]
    fn a_machine_is_paused_once_and_resumed_once_and_not_while_it_ends() {
        let pause = || Event::Pause(std::sync::mpsc::channel().0);
        let (state, action) = decide(running(), pause());
        assert!(matches!(
            (&state, action),
            (State::Paused(_), Action::Pause(_, false))
        ));
        let (state, action) = decide(state, pause());
        assert!(matches!(
            (&state, action),
            (State::Paused(_), Action::Pause(_, true))
        ));
        let (state, action) = decide(state, Event::Resume);
        assert!(matches!(
            (&state, action),
            (State::Running(_), Action::Resume(_))
        ));
        let (state, action) = decide(state, Event::Resume);
        assert!(matches!(
            (&state, action),
            (State::Running(_), Action::Wait)
        ));
        let (state, _) = decide(State::Paused(Holds::new()), Event::End(Outcome::PowerOff));
        let (state, action) = decide(state, pause());
        assert!(matches!(
            (state, action),
            (State::Ending(Ok(_)), Action::Wait)
        ));
    }

    const CPUS: usize = 4;

    /// What somebody does with a machine.
    #[derive(Clone, Copy, Debug)]
    enum Deed {
        Pause,
        Resume,
        PauseCpu(usize),
        Count,
        ResumeCpu(usize),
        End,
    }

    fn deed() -> impl Strategy<Value = Deed> {
        prop_oneof![
            4 => Just(Deed::Pause),
            4 => Just(Deed::Resume),
            8 => (0..CPUS).prop_map(Deed::PauseCpu),
            8 => (0..CPUS).prop_map(Deed::ResumeCpu),
            4 => Just(Deed::Count),
            1 => Just(Deed::End),
        ]
    }

    /// A machine that is told what to do, and what whoever tells it believes of it.
    #[derive(Default)]
    struct Model {
        /// Which processors stand still.
        still: Holds,
        paused: bool,
        held: Holds,
        ended: bool,
    }

    impl Model {
        /// Does what the driver does for an action.
        fn act(&mut self, action: Action) {
            match action {
                Action::Wait => {}
                Action::Kick => self.ended = true,
                Action::Pause(reply, already) => {
                    self.still.extend(0..CPUS);
                    let states = vec![CpuState::default(); CPUS];
                    reply.send(Paused { states, already }).unwrap();
                }
                Action::Resume(holds) => self.still.retain(|cpu| holds.contains(cpu)),
                Action::PauseCpu(cpu, reply, already) => {
                    self.still.insert(cpu);
                    let state = CpuState::default();
                    reply.send(PausedCpu { state, already }).unwrap();
                }
                Action::ResumeCpu(cpu) => {
                    assert!(self.still.remove(&cpu), "it goes on twice");
                }
                Action::Count(reply, paused, held) => {
                    let cpus = vec![Vec::new(); CPUS];
                    reply.send(Counted { cpus, paused, held }).unwrap();
                }
            }
        }

        /// Does a deed, and checks the answer.
        fn does(&mut self, deed: Deed, state: State) -> State {
            let (paused, pause_answer) = channel();
            let (held, hold_answer) = channel();
            let (counted, count_answer) = channel();
            let event = match deed {
                Deed::Pause => Event::Pause(paused),
                Deed::Resume => Event::Resume,
                Deed::PauseCpu(cpu) => Event::PauseCpu(cpu, held),
                Deed::ResumeCpu(cpu) => Event::ResumeCpu(cpu),
                Deed::Count => Event::Count(counted),
                Deed::End => Event::End(Outcome::Stopped),
            };
            let (state, action) = decide(state, event);
            let ended = self.ended;
            self.act(action);
            if matches!(deed, Deed::Count) {
                let told = count_answer.try_recv().ok();
                let told = told.map(|counted| (counted.paused, counted.held));
                let expected = (!ended).then(|| (self.paused, self.held.clone()));
                assert_eq!(told, expected);
            }
            let answers = (
                pause_answer.try_recv().ok().map(|paused| paused.already),
                hold_answer.try_recv().ok().map(|paused| paused.already),
            );
            let expected = match deed {
                Deed::Pause if !ended => (Some(std::mem::replace(&mut self.paused, true)), None),
                Deed::PauseCpu(cpu) if !ended => (None, Some(!self.held.insert(cpu))),
                _ => (None, None),
            };
            assert_eq!(answers, expected, "{deed:?}");
            match deed {
                Deed::Resume => self.paused = false,
                Deed::ResumeCpu(cpu) => _ = self.held.remove(&cpu),
                _ => {}
            }
            state
        }
    }

    proptest! {
        #[test]
        fn a_processor_runs_if_neither_the_machine_nor_somebody_holds_it(
            deeds in prop::collection::vec(deed(), 0..60),
        ) {
            let (mut state, mut model) = (running(), Model::default());
            for deed in deeds {
                state = model.does(deed, state);
                if model.ended {
                    prop_assert!(matches!(state, State::Ending(_)));
                    continue;
                }
                let expected = match model.paused {
                    true => (0..CPUS).collect(),
                    false => model.held.clone(),
                };
                prop_assert_eq!(&model.still, &expected, "after {:?}", deed);
                prop_assert_eq!(matches!(state, State::Paused(_)), model.paused);
            }
        }
    }
}
