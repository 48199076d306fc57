//! HLT: how a processor waits for something to do.
//!
//! A thread that sleeps is woken in tens of microseconds, or hundreds where the host's processor has gone
//! to sleep too; what a guest waits for (an answer from a disk, from a peer) often takes less. So it looks
//! for a while before it sleeps, for as long as looking has paid lately: the rule and the numbers are
//! KVM's (halt_poll_ns). Whoever else wants the host's processor gets it meanwhile.

use std::time::Duration;

use crate::cpu::Cpu;
use crate::meter::Doing;

/// The longest look, in nanoseconds, and what a wait has to be shorter than to be worth one.
const LONGEST: u64 = 200_000;
/// The first look.
const FIRST: u64 = 10_000;

/// How long to look before sleeping.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    nanos: u64,
}

impl Look {
    /// Learns from a wait of `waited` nanoseconds.
    fn learn(&mut self, waited: u64) {
        if waited > LONGEST {
            self.nanos = 0;
        } else if waited > self.nanos {
            self.nanos = (self.nanos * 2).clamp(FIRST, LONGEST);
        }
    }
}

impl Cpu {
    /// Waits until somebody wants something or the timer is due.
    pub fn wait(&mut self) {
        let start = self.clock.now();
        if start >= self.timer_due {
            self.apic.tick(start);
            self.timer_due = self.apic.next_timer().unwrap_or(u64::MAX);
            return;
        }
        self.mmu.leave();
        let was = self.gauge.begin(Doing::Halted);
        if !self.looked(start) {
            let left = self.timer_due.saturating_sub(self.clock.now());
            let timeout = (self.timer_due != u64::MAX).then(|| Duration::from_nanos(left));
            self.wake.sleep(timeout);
        }
        self.halt_look.learn(self.clock.now() - start);
        self.gauge.end(was);
        self.mmu.enter();
    }

    /// Looks for a while; tells whether the wait is over.
    fn looked(&self, start: u64) -> bool {
        let end = start + self.halt_look.nanos;
        loop {
            let now = self.clock.now();
            if self.wake.wanted() || now >= self.timer_due {
                return true;
            }
            if now >= end {
                return false;
            }
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waits_are_looked_for_and_long_ones_slept() {
        let mut look = Look::default();
        look.learn(50_000);
        assert_eq!(look.nanos, FIRST);
        for _ in 0..3 {
            look.learn(50_000);
        }
        assert_eq!(look.nanos, 80_000, "long enough by now");
        look.learn(50_000);
        assert_eq!(look.nanos, 80_000);
        look.learn(LONGEST + 1);
        assert_eq!(look.nanos, 0);
    }

    #[test]
    fn no_look_is_longer_than_the_longest() {
        let mut look = Look::default();
        for _ in 0..20 {
            look.learn(LONGEST);
        }
        assert_eq!(look.nanos, LONGEST);
    }
}
