//! Delivery of exceptions and interrupts (SDM vol. 3, chapter 6).
//!
//! Everything is read and checked, and the new stack is written, before a register changes: an
//! exception in the middle leaves the interrupted state to the next attempt.

use umbra_x86::rflags::{IF, NT, RF, TF, VM};
use umbra_x86::state::gpr::RSP;
use umbra_x86::state::{Segment, seg};
use umbra_x86::{Exception, vector};

use crate::cpu::{Activity, Cpu, Trap};
use crate::segment::{Descriptor, null_stack};
use crate::task::Way;

/// Where an event comes from; it decides about privilege and error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An exception that the processor raised.
    Exception,
    /// An external interrupt or NMI.
    External,
    /// INT n, INT3, INTO: the gate's privilege is checked.
    Software,
}

impl Origin {
    /// The EXT bit of error codes that arise during delivery.
    fn ext(self) -> u32 {
        u32::from(self != Origin::Software)
    }
}

/// Exceptions that make a double fault of another one (SDM vol. 3, table 6-5).
fn is_contributory(vector: u8) -> bool {
    matches!(
        vector,
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP
    )
}

impl Cpu {
    /// Delivers the pending exception, with all that it may lead to.
    pub fn deliver_pending(&mut self) {
        self.switched = false;
        let Some(mut exception) = self.pending.take() else {
            return;
        };
        let mut history = Vec::new();
        loop {
            self.stats.exceptions += 1;
            tracing::trace!(
                rip = self.rip, vector = exception.vector, error = ?exception.error,
                cr2 = ?exception.cr2, "exception"
            );
            if let Some(cr2) = exception.cr2 {
                self.cr2 = cr2;
            }
            if self
                .deliver(exception.vector, exception.error, Origin::Exception)
                .is_ok()
            {
                return;
            }
            let Some(second) = self.pending.take() else {
                return;
            };
            let double = exception.vector == vector::PF
                && (second.vector == vector::PF || is_contributory(second.vector))
                || is_contributory(exception.vector) && is_contributory(second.vector);
            if history.is_empty() {
                history.push(exception);
            }
            history.push(second);
            if exception.vector == vector::DF {
                return self.triple_fault(&history);
            }
            exception = if double {
                Exception::with_error(vector::DF, 0)
            } else {
                second
            };
        }
    }

    /// Delivers an external interrupt. A fault on the way is delivered instead.
    pub fn deliver_interrupt(&mut self, vector: u8) {
        self.stats.interrupts += 1;
        if self.deliver(vector, None, Origin::External).is_err() {
            self.deliver_pending();
        }
    }

    fn triple_fault(&mut self, history: &[Exception]) {
        let names: Vec<String> = history
            .iter()
            .map(|e| match (e.error, e.cr2) {
                (Some(error), Some(cr2)) => format!("#PF({error:#x}) at {cr2:#x}"),
                (Some(error), None) => format!("vector {}({error:#x})", e.vector),
                _ => format!("vector {}", e.vector),
            })
            .collect();
        self.crash = format!("triple fault: {}", names.join(", then "));
        self.activity = Activity::Shutdown;
    }

    /// Transfers control to the handler of `vector`.
    pub fn deliver(&mut self, vector: u8, error: Option<u32>, origin: Origin) -> Result<(), Trap> {
        if !self.protected() && !self.v86() {
            return self.deliver_real(vector);
        }
        let result = if self.long_mode() {
            self.deliver_long(vector, error, origin)
        } else {
            self.deliver_protected(vector, error, origin)
        };
        match result {
            Ok(()) => self.refresh_mode(),
            Err(Trap) if origin.ext() != 0 => self.mark_external(),
            Err(Trap) => {}
        }
        result
    }

    /// Sets the EXT bit in what arose from an event that no instruction asked for (SDM vol. 3, 6.13).
    fn mark_external(&mut self) {
        let selective = [vector::TS, vector::NP, vector::SS, vector::GP];
        let raised = self.pending.as_mut();
        if let Some(e) = raised.filter(|e| selective.contains(&e.vector)) {
            e.error = e.error.map(|code| code | 1);
        }
    }

    /// The interrupt vector table (SDM vol. 3, 20.1.4).
    fn deliver_real(&mut self, vector: u8) -> Result<(), Trap> {
        let offset = u64::from(vector) * 4;
        if offset + 3 > u64::from(self.idtr.limit) {
            return Err(self.gp(u32::from(vector) * 8 + 2));
        }
        let at = self.idtr.base.wrapping_add(offset) & 0xffff_ffff;
        let pointer = self.load::<4>(at)?;
        let before = self.regs.r(RSP);
        let pushed = (|| {
            self.push::<2>(self.rflags())?;
            self.push::<2>(self.seg[seg::CS].selector.into())?;
            self.push::<2>(self.rip)
        })();
        if let Err(trap) = pushed {
            self.regs.set_r(RSP, before);
            return Err(trap);
        }
        let flags = self.rflags() & !(IF | TF | umbra_x86::rflags::AC | RF);
        self.set_rflags(flags);
        self.set_real_code((pointer >> 16) as u16);
        self.rip = pointer & 0xffff;
        Ok(())
    }

    /// Loads CS in real or virtual-8086 mode.
    pub fn set_real_code(&mut self, selector: u16) {
        let mut segment = self.seg[seg::CS];
        segment.selector = selector;
        segment.base = u64::from(selector) << 4;
        let cpl = self.cpl;
        self.set_code(segment, cpl);
    }

    fn bad_gate(&mut self, exception: u8, vector: u8, origin: Origin) -> Trap {
        let error = u32::from(vector) * 8 + 2 + origin.ext();
        self.raise(Exception::with_error(exception, error))
    }

    /// Reads and checks a gate of `size` bytes; returns its two low words and the high one.
    fn gate(&mut self, vector: u8, size: u64, origin: Origin) -> Result<(u64, u64), Trap> {
        let offset = u64::from(vector) * size;
        if offset + size - 1 > u64::from(self.idtr.limit) {
            return Err(self.bad_gate(vector::GP, vector, origin));
        }
        let at = self.table_address(self.idtr.base.wrapping_add(offset));
        let (low, high) = self.system(|cpu| {
            let low = cpu.load::<8>(at)?;
            let high = if size == 16 {
                cpu.load::<8>(at.wrapping_add(8))?
            } else {
                0
            };
            Ok((low, high))
        })?;
        let kind = low >> 40 & 0x1f;
        let known = match size {
            16 => matches!(kind, 0xe | 0xf),
            _ => matches!(kind, 0x5 | 0x6 | 0x7 | 0xe | 0xf),
        };
        let dpl = (low >> 45 & 3) as u8;
        if !known || (origin == Origin::Software && dpl < self.cpl) {
            return Err(self.bad_gate(vector::GP, vector, origin));
        }
        if low >> 47 & 1 == 0 {
            return Err(self.bad_gate(vector::NP, vector, origin));
        }
        Ok((low, high))
    }

    /// Checks the code segment that a gate leads to.
    fn gate_target(&mut self, selector: u16, origin: Origin) -> Result<(Descriptor, u8), Trap> {
        let ext = origin.ext();
        let error = u32::from(selector & !3) + ext;
        if selector & !3 == 0 {
            return Err(self.gp(ext));
        }
        let target = match self.descriptor(selector, vector::GP) {
            Ok(target) => target,
            Err(trap) => {
                if let Some(e) = self.pending.as_mut().filter(|e| e.vector == vector::GP) {
                    e.error = e.error.map(|code| code | ext);
                }
                return Err(trap);
            }
        };
        let long = self.long_mode();
        if !target.is_code() || target.dpl() > self.cpl || long && !target.is_long() {
            return Err(self.gp(error));
        }
        if !target.is_present() {
            return Err(self.raise(Exception::with_error(vector::NP, error)));
        }
        let cpl = if target.is_conforming() {
            self.cpl
        } else {
            target.dpl()
        };
        Ok((target, cpl))
    }

    fn deliver_long(&mut self, vector: u8, error: Option<u32>, origin: Origin) -> Result<(), Trap> {
        let (low, high) = self.gate(vector, 16, origin)?;
        let selector = (low >> 16) as u16;
        let (mut target, cpl) = self.gate_target(selector, origin)?;
        self.mark_accessed(&mut target)?;
        let entry = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
        let ist = low >> 32 & 7;
        let old_stack = self.regs.r(RSP);
        let top = if ist != 0 {
            self.task_pointer(0x1c + 8 * ist)?
        } else if cpl != self.cpl {
            self.task_pointer(4 + 8 * u64::from(cpl))?
        } else {
            old_stack
        };
        let mut frame = [
            self.seg[seg::SS].selector.into(),
            old_stack,
            self.rflags_to_push(vector, origin),
            self.seg[seg::CS].selector.into(),
            self.rip,
            error.unwrap_or(0).into(),
        ];
        let words = if error.is_some() { 6 } else { 5 };
        frame[..words].reverse();
        let bottom = (top & !15).wrapping_sub(8 * words as u64);
        if !self.canonical(bottom) {
            return Err(self.raise(Exception::with_error(vector::SS, origin.ext())));
        }
        let mut bytes = [0; 48];
        for (to, word) in bytes.chunks_exact_mut(8).zip(frame) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        self.as_level(cpl, |cpu| cpu.write(bottom, &bytes[..8 * words]))?;
        if !self.canonical(entry) {
            return Err(self.gp(origin.ext()));
        }
        if cpl != self.cpl {
            self.set_seg(seg::SS, null_stack(u16::from(cpl), cpl));
        }
        self.enter_code(selector, target, cpl)?;
        self.regs.set_r(RSP, bottom);
        self.rip = entry;
        self.clear_flags_for_handler(low >> 40 & 1 == 0);
        Ok(())
    }

    /// Writes stack words with the rights of the level that is entered.
    fn as_level<R>(&mut self, cpl: u8, body: impl FnOnce(&mut Self) -> R) -> R {
        if cpl < 3 {
            self.system(body)
        } else {
            body(self)
        }
    }

    /// RF is pushed set for faults, so that an instruction breakpoint does not fire again; debug
    /// exceptions leave that to their handler, and a double fault is none (SDM vol. 3, 17.3.1.1).
    fn rflags_to_push(&self, vector: u8, origin: Origin) -> u64 {
        let flags = self.rflags();
        let fault = !matches!(vector, vector::DB | vector::DF);
        if origin == Origin::Exception && fault {
            flags | RF
        } else {
            flags
        }
    }

    fn clear_flags_for_handler(&mut self, interrupt_gate: bool) {
        let mut flags = self.rflags() & !(TF | NT | RF | VM);
        if interrupt_gate {
            flags &= !IF;
        }
        self.set_rflags(flags);
    }

    fn deliver_protected(
        &mut self,
        vector: u8,
        error: Option<u32>,
        origin: Origin,
    ) -> Result<(), Trap> {
        let (low, _) = self.gate(vector, 8, origin)?;
        let kind = low >> 40 & 0x1f;
        let selector = (low >> 16) as u16;
        if kind == 5 {
            return self.task_by_gate(selector, Way::Event(error));
        }
        let wide = kind & 8 != 0;
        let (mut target, cpl) = self.gate_target(selector, origin)?;
        self.mark_accessed(&mut target)?;
        let entry = low & 0xffff | if wide { low >> 32 & 0xffff_0000 } else { 0 };
        if entry > u64::from(target.segment(selector).limit) {
            return Err(self.gp(origin.ext()));
        }
        let from_v86 = self.v86();
        if from_v86 && cpl != 0 {
            return Err(self.gp(u32::from(selector & !3) + origin.ext()));
        }
        let mut words: Vec<u64> = Vec::with_capacity(10);
        let mut stack = (self.seg[seg::SS], self.regs.r(RSP));
        if cpl != self.cpl {
            let (ss, esp) = self.task_stack(cpl)?;
            let segment = self.stack_segment_for(ss, cpl)?;
            if from_v86 {
                for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                    words.push(self.seg[index].selector.into());
                }
            }
            words.push(self.seg[seg::SS].selector.into());
            words.push(self.regs.r(RSP));
            stack = (segment, esp);
        }
        words.push(self.rflags_to_push(vector, origin));
        words.push(self.seg[seg::CS].selector.into());
        words.push(self.rip);
        words.extend(error.map(u64::from));
        let pointer = self.push_words(stack, cpl, &words, wide, origin)?;
        if cpl != self.cpl {
            self.set_seg(seg::SS, stack.0);
        }
        if from_v86 {
            for index in [seg::GS, seg::FS, seg::DS, seg::ES] {
                self.set_seg(index, Segment::default());
            }
            self.sys &= !VM;
        }
        self.enter_code(selector, target, cpl)?;
        self.set_stack(pointer);
        self.rip = entry;
        self.clear_flags_for_handler(kind & 1 == 0);
        Ok(())
    }

    /// SS from a task state: errors are #TS.
    fn stack_segment_for(&mut self, selector: u16, cpl: u8) -> Result<Segment, Trap> {
        if selector & !3 == 0 {
            return Err(self.raise(Exception::with_error(vector::TS, 0)));
        }
        self.stack_segment(selector, cpl, vector::TS)
    }

    /// Writes `words` downwards on a stack that is not current yet; returns its new pointer.
    pub fn push_words(
        &mut self,
        stack: (Segment, u64),
        cpl: u8,
        words: &[u64],
        wide: bool,
        origin: Origin,
    ) -> Result<u64, Trap> {
        let (segment, mut pointer) = stack;
        let mask = if segment.attr & Segment::DB != 0 {
            0xffff_ffff
        } else {
            0xffff
        };
        let size = if wide { 4 } else { 2 };
        for word in words {
            pointer = pointer.wrapping_sub(size) & mask;
            if !crate::ea::within(&segment, pointer, size) {
                let error = if cpl == self.cpl {
                    0
                } else {
                    u32::from(segment.selector & !3)
                };
                let error = error + origin.ext();
                return Err(self.raise(Exception::with_error(vector::SS, error)));
            }
            let la = segment.base.wrapping_add(pointer) & 0xffff_ffff;
            self.as_level(cpl, |cpu| match wide {
                true => cpu.store::<4>(la, *word),
                false => cpu.store::<2>(la, *word),
            })?;
        }
        Ok(pointer)
    }
}
