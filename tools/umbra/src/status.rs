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
  4      the guest crashed by a triple fault (stderr shows registers and the last page walk)
  5      ended with Ctrl-A x
  128+N  ended by signal N";

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
            Self::Signal(number) => 128 + number as u8,
        }
    }
}

impl From<&Outcome> for Status {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::PowerOff => Self::Success,
            Outcome::Reset => Self::Reset,
            Outcome::Crash(_) => Self::Crash,
            Outcome::Stopped => Self::Ended,
        }
    }
}
