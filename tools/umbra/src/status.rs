//! The exit status: how the guest, or the command, ended.

use umbra_vmm::Outcome;

/// What the command tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The guest powered off, or there was nothing to run.
    Success,
    /// The monitor or the host failed.
    Failed,
    /// A file, a number or an argument is wrong.
    BadInput,
    /// The guest asked for a restart.
    Reset,
    /// The guest crashed by a triple fault.
    Crash,
    /// The user ended the machine with Ctrl-A x.
    Ended,
    /// The backend could not execute the guest.
    Stuck,
    /// A machine's API has refused what it was asked.
    Refused,
    /// A machine's API could not be asked.
    Unreachable,
    /// The guest wrote this value to the exit port.
    Guest(u32),
    /// A signal ended it.
    Signal(i32),
}

/// The same, for `--help`.
pub const HELP: &str = "\
Exit status:
  0      the guest powered off
  1      the monitor or the host failed
  2      bad input: a file, a number or an argument is wrong (one line on stderr says which)
  3      the guest asked for a restart
  4      the guest crashed: a triple fault (stderr shows registers and the last page walk), or its
         kernel said so
  5      ended with Ctrl-A x
  7      the host's KVM could not execute the guest (stderr shows registers and the instruction), or
         --processor both has found a difference (stderr shows that)
  8, 9   of ctl, events and top: the API refused it, or could not be asked
  128+N  ended by signal N
With --debug-exit or --test-device the odd numbers are the guest's: a write of V to the exit port
ends with (V << 1) | 1, of which the lower 8 bits count. 1, 3, 5, 7 above are then 6, 8, 10, 12.";

/// The same for commands that ask a machine's API.
pub const CLIENT_HELP: &str = "\
Exit status:
  0      it is done
  1      the guest has not let a device go in time (remove), or the host failed
  2      bad input: a file, a number or an argument is wrong
  8      the API refused it (one line on stderr says why, and what to do)
  9      the API could not be asked: no socket, nobody who listens, no answer
  128+N  ended by signal N";

/// Added to an odd number of the command's own where odd numbers are the guest's.
const OUT_OF_THE_GUESTS_WAY: u8 = 5;

impl Status {
    /// Returns the number that the process exits with.
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failed => 1,
            Self::BadInput => 2,
            Self::Reset => 3,
            Self::Crash => 4,
            Self::Ended => 5,
            Self::Stuck => 7,
            Self::Refused => 8,
            Self::Unreachable => 9,
            Self::Guest(value) => (value << 1 | 1) as u8,
            Self::Signal(number) => 128 + number as u8,
        }
    }

    /// Returns the number for a machine with an exit port: a monitor that failed must not look
    /// like a guest that wrote 0.
    pub fn code_beside_exit_port(self) -> u8 {
        match self {
            Self::Failed | Self::Reset | Self::Ended | Self::Stuck => {
                self.code() + OUT_OF_THE_GUESTS_WAY
            }
            _ => self.code(),
        }
    }
}

impl From<&Outcome> for Status {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::PowerOff => Self::Success,
            Outcome::Reset => Self::Reset,
            Outcome::Exit(value) => Self::Guest(*value),
            Outcome::Crash(_) | Outcome::GuestPanic => Self::Crash,
            Outcome::Stuck(_) => Self::Stuck,
            Outcome::Stopped => Self::Ended,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_writes_is_shifted_and_cut_to_eight_bits() {
        for (value, code) in [
            (0, 1),
            (1, 3),
            (0x10, 33),
            (0x7f, 255),
            (0x80, 1),
            (u32::MAX, 255),
        ] {
            assert_eq!(Status::Guest(value).code_beside_exit_port(), code);
        }
    }

    #[test]
    fn no_status_of_our_own_is_one_of_the_guests() {
        let own = [
            Status::Success,
            Status::Failed,
            Status::BadInput,
            Status::Reset,
            Status::Crash,
            Status::Ended,
            Status::Stuck,
        ];
        let mut codes = own.map(Status::code_beside_exit_port);
        assert!(codes.iter().all(|code| code % 2 == 0), "{codes:?}");
        codes.sort_unstable();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
    }
}
