//! What an event means in a state. Pure.
//!
//! ```text
//!            power-off, reset, crash, stop, failure        all processors left
//!   Running ───────────────────────────────────> Ending ───────────────────> (ended)
//! ```
//! The first event that ends a machine decides how it ended. What follows while processors are
//! still on their way out is no news: a guest that powers off and then runs into a triple fault
//! because nobody stopped it yet has powered off.

use umbra_cpu::Crash;

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
    /// The 8254 was programmed: its next event has changed.
    Timer,
}

/// Where a machine is in its life.
#[derive(Debug)]
pub enum State {
    /// Processors execute.
    Running,
    /// Processors are told to leave; how it ended is decided.
    Ending(Result<Outcome, RunError>),
}

/// What the driver does next.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing.
    Wait,
    /// Make every processor leave.
    Kick,
}

/// Decides what `event` means in `state`.
pub fn decide(state: State, event: Event) -> (State, Action) {
    match (state, event) {
        (State::Running, Event::End(outcome)) => (State::Ending(Ok(outcome)), Action::Kick),
        (State::Running, Event::Failed(error)) => (State::Ending(Err(error)), Action::Kick),
        (state, _) => (state, Action::Wait),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_end_decides() {
        let (state, action) = decide(State::Running, Event::End(Outcome::PowerOff));
        assert_eq!(action, Action::Kick);
        for later in [
            Event::End(Outcome::Reset),
            Event::End(Outcome::Stopped),
            Event::Failed(RunError::Panicked { id: 0 }),
        ] {
            let ending = State::Ending(Ok(Outcome::PowerOff));
            let (state, action) = decide(ending, later);
            assert_eq!(action, Action::Wait);
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
        assert_eq!(action, Action::Kick);
    }

    #[test]
    fn a_timer_and_a_thread_that_left_change_nothing() {
        for event in [Event::Timer, Event::Left] {
            let (state, action) = decide(State::Running, event);
            assert!(matches!(state, State::Running) && action == Action::Wait);
        }
    }
}
