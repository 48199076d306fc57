//! Which order is possible when. Pure.

use super::Code;
use super::routes::Order;
use crate::firecracker::policy::State;

/// Decides whether an order is possible in a state of the machine.
///
/// # Errors
/// If it is not, with the reason.
pub fn check(state: State, order: &Order) -> Result<(), Code> {
    match order {
        Order::Info | Order::Log | Order::Forget(_) => Ok(()),
        Order::PutSpec(_) | Order::Start => match state {
            State::Before => Ok(()),
            State::Running | State::Paused => Err(Code::Started),
            State::Ended => Err(Code::Ended),
        },
        Order::Spec | Order::Devices | Order::PutDevice(_) | Order::Remove(_) => match state {
            State::Before | State::Running | State::Paused => Ok(()),
            State::Ended => Err(Code::Ended),
        },
        Order::Pause | Order::Resume | Order::Stop | Order::Reset | Order::Handle => match state {
            State::Before => Err(Code::NotStarted),
            State::Running | State::Paused => Ok(()),
            State::Ended => Err(Code::Ended),
        },
    }
}
