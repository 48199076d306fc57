//! Something that its owner replaces and everybody uses: each version is announced by an interrupt, and in force when
//! all have acknowledged.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use super::{PROCESSORS, expect, wait};
use crate::apic::{self, icr};

/// Versions of one owner's thing.
pub struct Published {
    /// The last version that anybody may see.
    issued: AtomicU64,
    /// The first version that anybody may still see.
    in_force: AtomicU64,
    acknowledged: AtomicU64,
}

impl Published {
    pub const fn new() -> Self {
        Self {
            issued: AtomicU64::new(0),
            in_force: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
        }
    }

    /// Runs `replace`, tells all others by an interrupt, and waits until they have acknowledged.
    pub fn publish(
        &self,
        check: &str,
        vector: u64,
        version: u64,
        replace: impl FnOnce(),
        meanwhile: impl Fn(),
    ) {
        let others = PROCESSORS.load(SeqCst) - 1;
        self.issued.store(version, SeqCst);
        replace();
        self.acknowledged.store(0, SeqCst);
        if others != 0 {
            apic::send(0, icr::TO_OTHERS | icr::ASSERT | vector as u32);
        }
        wait(
            check,
            || self.acknowledged.load(SeqCst) == others,
            meanwhile,
        );
        self.in_force.store(version, SeqCst);
    }

    /// What the others do when they have forgotten the old version.
    pub fn acknowledge(&self) {
        self.acknowledged.fetch_add(1, SeqCst);
    }

    /// Looks, and checks that a version was seen that was in force meanwhile.
    pub fn check(&self, check: &str, look: impl FnOnce() -> u64) {
        let first = self.in_force.load(SeqCst);
        let found = look();
        let last = self.issued.load(SeqCst);
        expect(check, first..=last, found);
    }
}
