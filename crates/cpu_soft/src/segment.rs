//! Segment registers and descriptors (SDM vol. 3, chapters 3 and 5).

use umbra_mmu::AccessKind::Read;
use umbra_x86::state::{Segment, seg};
use umbra_x86::{Exception, vector};

use crate::cpu::{Cpu, Trap};

/// A raw descriptor, with what the table says about it.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// The eight bytes.
    pub raw: u64,
    /// Bits 32 to 63 of the base of a 16-byte system descriptor; zero otherwise.
    pub high: u32,
    /// Linear address of the eight bytes.
    pub at: u64,
}

impl Descriptor {
    /// Type field (bits 0–3) and S (bit 4).
    pub fn kind(&self) -> u8 {
        (self.raw >> 40 & 0x1f) as u8
    }

    /// S: code or data.
    pub fn is_segment(&self) -> bool {
        self.kind() & 0x10 != 0
    }

    /// A code segment.
    pub fn is_code(&self) -> bool {
        self.kind() & 0x18 == 0x18
    }

    /// A conforming code segment.
    pub fn is_conforming(&self) -> bool {
        self.kind() & 0x1c == 0x1c
    }

    /// Privilege level.
    pub fn dpl(&self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }

    /// P.
    pub fn is_present(&self) -> bool {
        self.raw >> 47 & 1 != 0
    }

    /// L of a code segment.
    pub fn is_long(&self) -> bool {
        self.raw >> 53 & 1 != 0
    }

    /// D/B.
    pub fn is_big(&self) -> bool {
        self.raw >> 54 & 1 != 0
    }

    /// The hidden part of a segment register.
    pub fn segment(&self, selector: u16) -> Segment {
        let raw = self.raw;
        let base = raw >> 16 & 0xff_ffff | raw >> 32 & 0xff00_0000 | u64::from(self.high) << 32;
        let limit = (raw & 0xffff | raw >> 32 & 0xf_0000) as u32;
        let attr = (raw >> 40) as u16 & 0xf0ff;
        let limit = if attr & Segment::G != 0 {
            limit << 12 | 0xfff
        } else {
            limit
        };
        Segment {
            selector,
            base,
            limit,
            attr,
        }
    }
}

impl Cpu {
    /// Reads the descriptor that `selector` names; beyond the table is `vector(selector)`.
    pub fn descriptor(&mut self, selector: u16, vector: u8) -> Result<Descriptor, Trap> {
        let error = u32::from(selector & !3);
        let (base, limit) = if selector & 4 == 0 {
            (self.gdtr.base, u32::from(self.gdtr.limit))
        } else if self.ldtr.attr & Segment::P != 0 {
            (self.ldtr.base, self.ldtr.limit)
        } else {
            return Err(self.raise(Exception::with_error(vector, error)));
        };
        let offset = u32::from(selector & !7);
        if offset + 7 > limit {
            return Err(self.raise(Exception::with_error(vector, error)));
        }
        let at = self.table_address(base.wrapping_add(offset.into()));
        let raw = self.system(|cpu| cpu.load::<8>(at))?;
        Ok(Descriptor { raw, high: 0, at })
    }

    /// Reads a system descriptor (TSS, LDT, call gate), 16 bytes in IA-32e mode.
    pub fn system_descriptor(&mut self, selector: u16, vector: u8) -> Result<Descriptor, Trap> {
        let mut descriptor = self.descriptor(selector, vector)?;
        if self.long_mode() {
            let limit = if selector & 4 == 0 {
                self.gdtr.limit.into()
            } else {
                self.ldtr.limit
            };
            if u32::from(selector & !7) + 15 > limit {
                let error = u32::from(selector & !3);
                return Err(self.raise(Exception::with_error(vector, error)));
            }
            let at = descriptor.at.wrapping_add(8);
            let high = self.system(|cpu| cpu.load::<8>(at))?;
            // What would be the type of a second descriptor is zero (SDM vol. 3, 5.8.3.1, 7.2.3).
            if high >> 40 & 0x1f != 0 {
                let error = u32::from(selector & !3);
                return Err(self.raise(Exception::with_error(vector, error)));
            }
            descriptor.high = high as u32;
        }
        Ok(descriptor)
    }

    /// Linear addresses are 32 bits wide outside IA-32e mode.
    pub fn table_address(&self, la: u64) -> u64 {
        if self.long_mode() {
            la
        } else {
            la & 0xffff_ffff
        }
    }

    /// Sets the accessed bit of a descriptor in memory. May raise a page fault: comes before the
    /// first register changes.
    pub fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Result<(), Trap> {
        if descriptor.raw >> 40 & 1 == 0 {
            let at = descriptor.at.wrapping_add(5);
            self.system(|cpu| cpu.rmw_locked::<1>(at, |_, byte| byte | 1))?;
            descriptor.raw |= 1 << 40;
        }
        Ok(())
    }

    /// MOV, POP, LDS … into a segment register other than CS.
    pub fn load_segment(&mut self, index: usize, selector: u16) -> Result<(), Trap> {
        if !self.protected() {
            return self.load_segment_real(index, selector);
        }
        let segment = if index == seg::SS {
            self.stack_segment(selector, self.cpl, vector::GP)?
        } else {
            self.data_segment(selector)?
        };
        self.set_seg(index, segment);
        if index == seg::SS {
            self.refresh_mode();
        }
        Ok(())
    }

    fn load_segment_real(&mut self, index: usize, selector: u16) -> Result<(), Trap> {
        let mut segment = self.seg[index];
        segment.selector = selector;
        segment.base = u64::from(selector) << 4;
        if self.v86() {
            segment.limit = 0xffff;
            segment.attr = 3 | Segment::S | Segment::P | 3 << 5;
        }
        self.set_seg(index, segment);
        Ok(())
    }

    /// Checks a selector for DS, ES, FS or GS.
    pub fn data_segment(&mut self, selector: u16) -> Result<Segment, Trap> {
        if selector & !3 == 0 {
            // A null selector is fine until it is used; 64-bit code ignores it altogether.
            return Ok(Segment {
                selector,
                ..Segment::default()
            });
        }
        let error = u32::from(selector & !3);
        let mut descriptor = self.descriptor(selector, vector::GP)?;
        let readable =
            descriptor.is_segment() && (!descriptor.is_code() || descriptor.kind() & 2 != 0);
        let rpl = (selector & 3) as u8;
        let privileged = descriptor.is_conforming() || descriptor.dpl() >= self.cpl.max(rpl);
        if !readable || !privileged {
            return Err(self.gp(error));
        }
        if !descriptor.is_present() {
            return Err(self.raise(Exception::with_error(vector::NP, error)));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// Checks a selector for SS at privilege `cpl`; `bad` is #GP for loads and #TS for switches.
    pub fn stack_segment(&mut self, selector: u16, cpl: u8, bad: u8) -> Result<Segment, Trap> {
        let error = u32::from(selector & !3);
        let rpl = (selector & 3) as u8;
        if selector & !3 == 0 {
            if self.long_mode() && cpl < 3 && rpl == cpl {
                return Ok(null_stack(selector, cpl));
            }
            return Err(self.raise(Exception::with_error(bad, error)));
        }
        let mut descriptor = self.descriptor(selector, bad)?;
        let writable =
            descriptor.is_segment() && !descriptor.is_code() && descriptor.kind() & 2 != 0;
        if rpl != cpl || !writable || descriptor.dpl() != cpl {
            return Err(self.raise(Exception::with_error(bad, error)));
        }
        if !descriptor.is_present() {
            return Err(self.raise(Exception::with_error(vector::SS, error)));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// Makes a checked code descriptor the current CS at privilege `cpl`.
    pub fn enter_code(
        &mut self,
        selector: u16,
        mut descriptor: Descriptor,
        cpl: u8,
    ) -> Result<(), Trap> {
        self.mark_accessed(&mut descriptor)?;
        let selector = selector & !3 | u16::from(cpl);
        self.set_code(descriptor.segment(selector), cpl);
        Ok(())
    }

    /// Sets CS and the privilege level.
    pub fn set_code(&mut self, segment: Segment, cpl: u8) {
        let old = &self.seg[seg::CS];
        if old.base != segment.base || old.limit != segment.limit {
            // Jumps are remembered by offset: another base means other code behind them, and
            // another limit may end it earlier.
            self.pool.clear();
        }
        self.set_seg(seg::CS, segment);
        self.cpl = cpl;
        self.refresh_mode();
    }

    /// After a switch to an outer level, data segments of inner levels are made unusable, and a null
    /// selector loses its RPL: its descriptor counts as one of level 0 (SDM vol. 2, IRET).
    pub fn drop_inner_segments(&mut self) {
        for index in [seg::ES, seg::DS, seg::FS, seg::GS] {
            let segment = self.seg[index];
            let conforming = segment.attr & 0x1c == 0x1c;
            let null = segment.attr & Segment::P == 0;
            if null || !conforming && segment.dpl() < self.cpl {
                let base = if self.long_mode() && index >= seg::FS {
                    segment.base
                } else {
                    0
                };
                self.set_seg(
                    index,
                    Segment {
                        base,
                        ..Segment::default()
                    },
                );
            }
        }
    }

    /// The hidden part of LDTR or TR, whose base must be canonical.
    fn system_segment(&mut self, descriptor: &Descriptor, selector: u16) -> Result<Segment, Trap> {
        let segment = descriptor.segment(selector);
        if self.canonical_at_most(segment.base) {
            Ok(segment)
        } else {
            Err(self.gp(u32::from(selector & !3)))
        }
    }

    /// LLDT.
    pub fn load_ldt(&mut self, selector: u16) -> Result<(), Trap> {
        if selector & !3 == 0 {
            self.ldtr = Segment {
                selector,
                ..Segment::default()
            };
            return Ok(());
        }
        let error = u32::from(selector & !3);
        if selector & 4 != 0 {
            return Err(self.gp(error));
        }
        let descriptor = self.system_descriptor(selector, vector::GP)?;
        if descriptor.kind() != 2 {
            return Err(self.gp(error));
        }
        if !descriptor.is_present() {
            return Err(self.raise(Exception::with_error(vector::NP, error)));
        }
        self.ldtr = self.system_segment(&descriptor, selector)?;
        Ok(())
    }

    /// LTR: the descriptor becomes busy.
    pub fn load_task(&mut self, selector: u16) -> Result<(), Trap> {
        let error = u32::from(selector & !3);
        if selector & !3 == 0 || selector & 4 != 0 {
            return Err(self.gp(error));
        }
        let descriptor = self.system_descriptor(selector, vector::GP)?;
        let available = descriptor.kind() == 9 || descriptor.kind() == 1 && !self.long_mode();
        if !available {
            return Err(self.gp(error));
        }
        if !descriptor.is_present() {
            return Err(self.raise(Exception::with_error(vector::NP, error)));
        }
        let task = self.system_segment(&descriptor, selector)?;
        let at = descriptor.at.wrapping_add(5);
        self.system(|cpu| cpu.rmw_locked::<1>(at, |_, byte| byte | 2))?;
        self.tr = task;
        self.tr.attr |= 2;
        Ok(())
    }

    /// LAR, LSL, VERR, VERW: the descriptor if `selector` may see it, without raising.
    pub fn visible(&mut self, selector: u16) -> Result<Option<Descriptor>, Trap> {
        if selector & !3 == 0 {
            return Ok(None);
        }
        let descriptor = match self.descriptor(selector, vector::GP) {
            Ok(descriptor) => descriptor,
            Err(trap) => {
                let missing = Exception::with_error(vector::GP, u32::from(selector & !3));
                if self.pending == Some(missing) {
                    self.pending = None;
                    return Ok(None);
                }
                return Err(trap);
            }
        };
        let rpl = (selector & 3) as u8;
        let privileged = descriptor.is_conforming() || descriptor.dpl() >= self.cpl.max(rpl);
        Ok(privileged.then_some(descriptor))
    }

    /// Reads the stack for privilege `cpl` from a 32- or 16-bit task state.
    pub fn task_stack(&mut self, cpl: u8) -> Result<(u16, u64), Trap> {
        let wide = self.tr.attr & 8 != 0;
        let size = if wide { 8 } else { 4 };
        let offset = size * u64::from(cpl) + if wide { 4 } else { 2 };
        if offset + size - 1 > u64::from(self.tr.limit) {
            let error = u32::from(self.tr.selector & !3);
            return Err(self.raise(Exception::with_error(vector::TS, error)));
        }
        let at = self.table_address(self.tr.base.wrapping_add(offset));
        self.system(|cpu| {
            if wide {
                Ok((
                    cpu.load::<2>(at.wrapping_add(4))? as u16,
                    cpu.load::<4>(at)?,
                ))
            } else {
                Ok((
                    cpu.load::<2>(at.wrapping_add(2))? as u16,
                    cpu.load::<2>(at)?,
                ))
            }
        })
    }

    /// Reads a 64-bit field of the IA-32e task state.
    pub fn task_pointer(&mut self, offset: u64) -> Result<u64, Trap> {
        if offset + 7 > u64::from(self.tr.limit) {
            let error = u32::from(self.tr.selector & !3);
            return Err(self.raise(Exception::with_error(vector::TS, error)));
        }
        let at = self.tr.base.wrapping_add(offset);
        self.system(|cpu| cpu.load::<8>(at))
    }

    /// The privilege that IN and OUT need (SDM vol. 1, 19.5): IOPL, else the bit map.
    pub fn check_port(&mut self, port: u16, len: usize) -> Result<(), Trap> {
        if !self.v86() && (!self.protected() || self.cpl <= self.iopl()) {
            return Ok(());
        }
        if self.tr.attr & Segment::P == 0 || self.tr.attr & 8 == 0 || self.tr.limit < 0x67 {
            return Err(self.gp(0));
        }
        let base = self.tr.base;
        let map = self.system(|cpu| cpu.load::<2>(cpu.table_address(base.wrapping_add(0x66))))?;
        let offset = map + u64::from(port >> 3);
        if offset + 1 > u64::from(self.tr.limit) {
            return Err(self.gp(0));
        }
        let at = base.wrapping_add(offset);
        let bits = self.system(|cpu| cpu.load::<2>(cpu.table_address(at)))?;
        let wanted = ((1u64 << len) - 1) << (port & 7);
        if bits & wanted == 0 {
            Ok(())
        } else {
            Err(self.gp(0))
        }
    }

    /// Reads the offset and selector of a far pointer.
    pub fn far_pointer<const N: usize>(&mut self, op: &crate::op::Op) -> Result<(u16, u64), Trap> {
        let la = self.ea::<N>(op, Read)?;
        let offset = self.load::<N>(la)?;
        let behind = self.offset(op).wrapping_add(N as u64);
        let la = self.linear(op.seg, behind, 2, Read)?;
        let selector = self.load::<2>(la)?;
        Ok((selector as u16, offset))
    }
}

/// SS in 64-bit mode after a switch to an inner level: null, but usable.
pub fn null_stack(selector: u16, cpl: u8) -> Segment {
    let attr = 3 | Segment::S | Segment::P | Segment::DB | Segment::G | u16::from(cpl) << 5;
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attr,
    }
}
