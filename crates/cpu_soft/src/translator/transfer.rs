//! From translated code through an instruction of the interpreter's to other translated code.
//!
//! ```text
//!   execute_one ── done, looks, faults ──> transfer ─┬─ translated code at the new RIP: goes on there
//!                                                    └─ anything else: back to the loop
//! ```
//! System calls, returns from them, faults and loads of CR3 come this way, and go on in another privilege
//! level or address space: the context and the jumps are read anew. The loop would find nothing else to do
//! here; where it might, it gets its turn.

use umbra_x86::rflags::{IF, RF};

use super::LONG;
use crate::cpu::{Activity, Cpu, Trap};
use crate::jumps::translated_tag;
use crate::op::Leave;
use crate::tlb::Class;

impl Cpu {
    /// Does what the loop does after `leave`, and returns the code that follows. `None` where the loop has
    /// something else to do; an exception is delivered by then, if no code was overwritten.
    pub(super) fn transfer(&mut self, leave: &mut Leave) -> Option<u64> {
        // What is compared is executed block by block.
        if self.shared.stop || self.translator.both.is_some() {
            return None;
        }
        if *leave == Leave::Fault {
            self.deliver_pending();
            *leave = Leave::Look;
        }
        if self.mode != LONG || self.class == Class::Uncached || self.wanted_by_loop() {
            // Before the next instruction, whatever was said of this one.
            self.wake.want();
            return None;
        }
        // About the next instruction only, and without breakpoints about nothing.
        self.sys &= !RF;
        let jump = *self.jumps().code(self.rip);
        let code = if jump.tag == translated_tag(self.rip) {
            jump.packed
        } else {
            match self.find_translated(LONG) {
                Ok(found) => found?.packed,
                Err(Trap) => {
                    *leave = Leave::Fault;
                    return None;
                }
            }
        };
        self.set_alarm();
        self.translator.counts.transfers += 1;
        Some(code)
    }

    /// Whether the loop has anything to do before the next instruction.
    fn wanted_by_loop(&self) -> bool {
        self.wake.wanted()
            || self.shadow
            || self.activity != Activity::Running
            || self.blocked && self.sys & IF != 0
            || self.nmi_pending != 0
            || self.apic.work() && !self.blocked
            || self.translator.has_dead()
    }
}
