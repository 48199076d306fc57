//! Free-page hints (virtio 1.3, 5.5.6.4): the host says when, and the guest says what it does not use.
//!
//! ```text
//!   host                                       driver
//!   start: command N, 2 or more ── config ───> takes free pages, and tells of each:
//!                                      queue <── N, pages …, STOP
//!   pages of the command that is current: the host has them
//!   stop, or STOP and it acknowledges that: DONE ── config ───> the pages are the guest's again
//! ```
//! A driver may use its pages again when it has seen DONE, whether its hints were read or not. So no hint is
//! acted upon once the command is another one: the pages are given to the host under the lock under which the
//! command changes.
//!
//! The driver must not write to a page that it has hinted before that, as the specification has it. Linux does where
//! it runs out of memory: its shrinker takes back pages whose hints may still be in the queue. Hints are not meant
//! for a guest that is short of memory.

use umbra_slots::{Discarded, RamError};

/// The device does not want hints; also what the driver says when it has no more.
pub const STOP: u32 = 0;
/// The device needs nothing of what was hinted any more.
const DONE: u32 = 1;
/// The first command; they go round.
const FIRST: u32 = 2;

/// Why a guest is not asked for free pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HintingError {
    /// The device was made without.
    #[error("the balloon has no free-page hints; make it with them (`free_page_hinting`)")]
    Off,
    /// Nobody would hear it.
    #[error("no driver of the guest gives free-page hints; load one, or wait for it")]
    NoDriver,
}

/// How far free-page hints are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HintingStatus {
    /// The device's command: 0 there was none, 1 it is done, else a run of this number.
    pub host_cmd: u32,
    /// What the driver has said last: the number of the run for which it gives hints, 0 when it has given all.
    pub guest_cmd: Option<u32>,
}

/// The state of the protocol.
#[derive(Debug)]
pub struct Hints {
    command: u32,
    /// The last run's.
    last: u32,
    heard: Option<u32>,
    acknowledge: bool,
    /// A driver has agreed on them.
    pub agreed: bool,
}

impl Default for Hints {
    fn default() -> Self {
        Self {
            command: STOP,
            last: DONE,
            heard: None,
            acknowledge: false,
            agreed: false,
        }
    }
}

impl Hints {
    /// Begins a run; returns its command.
    pub fn start(&mut self, acknowledge: bool) -> Result<u32, HintingError> {
        if !self.agreed {
            return Err(HintingError::NoDriver);
        }
        self.last = match self.last.wrapping_add(1) {
            STOP | DONE => FIRST,
            command => command,
        };
        self.command = self.last;
        self.acknowledge = acknowledge;
        Ok(self.command)
    }

    /// Ends the run, if there is one; returns the command.
    pub fn stop(&mut self) -> Result<u32, HintingError> {
        if !self.agreed {
            return Err(HintingError::NoDriver);
        }
        self.command = DONE;
        Ok(DONE)
    }

    pub fn status(&self) -> HintingStatus {
        HintingStatus {
            host_cmd: self.command,
            guest_cmd: self.heard,
        }
    }

    /// Takes what the driver says; returns the command if it is another one now.
    pub fn hear(&mut self, said: u32) -> Option<u32> {
        let ran = self.is_running();
        self.heard = Some(said);
        let ends = said == STOP && ran && self.acknowledge;
        ends.then(|| {
            self.command = DONE;
            DONE
        })
    }

    /// Does something with pages that were hinted, if they are of the current run. Nobody ends it meanwhile.
    pub fn take(
        &mut self,
        discard: impl FnOnce() -> Result<Discarded, RamError>,
    ) -> Option<Result<Discarded, RamError>> {
        self.is_running().then(discard)
    }

    /// The driver gives hints for the current command.
    fn is_running(&self) -> bool {
        self.command >= FIRST && self.heard == Some(self.command)
    }

    /// The driver is no more.
    pub fn reset(&mut self) {
        *self = Self {
            last: self.last,
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agreed() -> Hints {
        Hints {
            agreed: true,
            ..Hints::default()
        }
    }

    fn takes(hints: &mut Hints) -> bool {
        let nothing = Discarded {
            freed: 0,
            ignored: 0,
        };
        hints.take(|| Ok(nothing)).is_some()
    }

    #[test]
    fn hints_count_between_the_drivers_begin_and_the_end() {
        let mut hints = agreed();
        assert!(!takes(&mut hints));
        assert_eq!(hints.start(false), Ok(2));
        assert!(!takes(&mut hints), "the driver has not begun");
        assert_eq!(hints.hear(2), None);
        assert!(takes(&mut hints));
        assert_eq!(hints.start(false), Ok(3));
        assert!(!takes(&mut hints), "these are of the last run");
        hints.hear(3);
        assert!(takes(&mut hints));
        assert_eq!(hints.stop(), Ok(1));
        assert!(!takes(&mut hints));
    }

    #[test]
    fn the_end_of_the_driver_is_acknowledged_if_that_is_wanted() {
        for acknowledge in [false, true] {
            let mut hints = agreed();
            hints.start(acknowledge).unwrap();
            assert_eq!(hints.hear(STOP), None, "it has not begun");
            hints.hear(2);
            assert_eq!(hints.hear(STOP), acknowledge.then_some(1));
            let host_cmd = if acknowledge { 1 } else { 2 };
            let guest_cmd = Some(0);
            assert_eq!(
                hints.status(),
                HintingStatus {
                    host_cmd,
                    guest_cmd
                }
            );
        }
    }

    #[test]
    fn commands_go_round_and_are_none_that_mean_something() {
        let mut hints = agreed();
        hints.last = u32::MAX - 1;
        let commands: Vec<_> = (0..3).map(|_| hints.start(true).unwrap()).collect();
        assert_eq!(commands, [u32::MAX, 2, 3]);
    }

    #[test]
    fn nobody_is_asked_without_a_driver() {
        let mut hints = Hints::default();
        assert_eq!(hints.start(true), Err(HintingError::NoDriver));
        assert_eq!(hints.stop(), Err(HintingError::NoDriver));
        let mut hints = agreed();
        hints.start(true).unwrap();
        hints.hear(2);
        hints.reset();
        assert_eq!(hints.status().guest_cmd, None);
        assert_eq!(hints.status().host_cmd, 0);
    }
}
