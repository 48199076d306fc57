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
//! The first event that ends a machine decides how it ended. What follows while processors are
//! still on their way out is no news: a guest that powers off and then runs into a triple fault
//! because nobody stopped it yet has powered off.

use std::sync::mpsc::Sender;

use umbra_cpu::Crash;
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
}

/// A machine that stands still.
#[derive(Clone, Debug)]
pub struct Paused {
    /// The registers of all processors.
    pub states: Vec<CpuState>,
    /// It stood still before.
    pub already: bool,
}

/// Where a machine is in its life.
#[derive(Debug)]
pub enum State {
    /// Processors execute.
    Running,
    /// Processors stand still.
    Paused,
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
    /// Let every processor go on.
    Resume,
}

/// Decides what `event` means in `state`.
pub fn decide(state: State, event: Event) -> (State, Action) {
    match (state, event) {
        (State::Running | State::Paused, Event::End(outcome)) => {
            (State::Ending(Ok(outcome)), Action::Kick)
        }
        (State::Running | State::Paused, Event::Failed(error)) => {
            (State::Ending(Err(error)), Action::Kick)
        }
        (State::Running, Event::Pause(reply)) => (State::Paused, Action::Pause(reply, false)),
        (State::Paused, Event::Pause(reply)) => (State::Paused, Action::Pause(reply, true)),
        (State::Paused, Event::Resume) => (State::Running, Action::Resume),
        (state, _) => (state, Action::Wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_decides() {
        let (state, action) = decide(State::Running, Event::End(Outcome::PowerOff));
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
        let (state, action) = decide(State::Running, Event::Failed(RunError::Panicked { id: 3 }));
        assert!(matches!(
            state,
            State::Ending(Err(RunError::Panicked { id: 3 }))
        ));
        assert!(matches!(action, Action::Kick));
    }

    #[test]
    fn a_timer_and_a_thread_that_left_change_nothing() {
        for event in [Event::Timer, Event::Left] {
            let (state, action) = decide(State::Running, event);
            assert!(matches!((state, action), (State::Running, Action::Wait)));
        }
    }

    #[test]
    fn a_machine_is_paused_once_and_resumed_once_and_not_while_it_ends() {
        let pause = || Event::Pause(std::sync::mpsc::channel().0);
        let (state, action) = decide(State::Running, pause());
        assert!(matches!(
            (&state, action),
            (State::Paused, Action::Pause(_, false))
        ));
        let (state, action) = decide(state, pause());
        assert!(matches!(
            (&state, action),
            (State::Paused, Action::Pause(_, true))
        ));
        let (state, action) = decide(state, Event::Resume);
        assert!(matches!((&state, action), (State::Running, Action::Resume)));
        let (state, action) = decide(state, Event::Resume);
        assert!(matches!((&state, action), (State::Running, Action::Wait)));
        let (state, _) = decide(State::Paused, Event::End(Outcome::PowerOff));
        let (state, action) = decide(state, pause());
        assert!(matches!(
            (state, action),
            (State::Ending(Ok(_)), Action::Wait)
        ));
    }
}
