//! XSAVE and its kin (SDM vol. 1, chapter 13), for x87, SSE and PKRU state.
//!
//! ```text
//!   0     the FXSAVE image: x87 state, MXCSR, XMM registers
//!   512   header: XSTATE_BV, XCOMP_BV, zeros
//!   576   extended components; in the standard form each at the offset that CPUID 0DH names,
//!         in the compacted form one behind the other
//! ```
//! There is one extended component, PKRU. "Modified" is not tracked: XSAVEOPT writes what is in
//! use, which the manual allows (13.6).

use umbra_mmu::AccessKind::{Read, Write};
use umbra_x86::{Exception, cr0, cr4, vector};

use super::ok;
use crate::cpu::{Cpu, Trap};
use crate::fpu::{FxArea, MXCSR_DEFAULT, MXCSR_MASK, XMM};
use crate::op::{Leave, Op, next};
use crate::regs::offset;

/// State components, as bits of XCR0 (SDM vol. 1, 13.1).
pub mod component {
    /// x87 and MMX.
    pub const X87: u64 = 1 << 0;
    /// MXCSR and XMM registers.
    pub const SSE: u64 = 1 << 1;
    /// PKRU.
    pub const PKRU: u64 = 1 << 9;
    /// What this processor can have.
    pub const ALL: u64 = X87 | SSE | PKRU;
}

use component::{PKRU, SSE, X87};

/// Bytes of the legacy region and the header.
pub const BASIC: usize = 576;
/// Where the standard form has PKRU.
pub const PKRU_OFFSET: usize = 2688;
/// Bytes of its component.
pub const PKRU_SIZE: usize = 8;
/// Bytes of the standard form with everything.
pub const STANDARD: usize = PKRU_OFFSET + PKRU_SIZE;
/// XCOMP_BV: the compacted form.
const COMPACTED: u64 = 1 << 63;

/// In [`Op::extra`]: what the instruction is, and in bit 3 whether it is the 64-bit form.
pub mod form {
    /// XSAVE.
    pub const PLAIN: u8 = 0;
    /// XSAVEOPT.
    pub const OPT: u8 = 1;
    /// XSAVEC.
    pub const COMPACT: u8 = 2;
    /// Pointers of 64 bits.
    pub const WIDE: u8 = 8;
}

impl Cpu {
    /// The state components that are not in their initial configuration (SDM vol. 1, 13.6).
    pub fn components_in_use(&self) -> u64 {
        let (now, initial) = (self.fx.bytes(), FxArea::reset());
        let initial = initial.bytes();
        let x87 = now[..24] != initial[..24] || now[32..XMM] != initial[32..XMM];
        let sse = now[XMM..XMM + 256] != initial[XMM..XMM + 256];
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        bit(x87, X87) | bit(sse, SSE) | bit(self.pkru != 0, PKRU)
    }

    /// Bytes that XSAVE and XSAVEC need for what XCR0 enables (CPUID 0DH).
    pub fn xsave_sizes(&self) -> (u32, u32) {
        let has = self.xcr0 & PKRU != 0;
        let extra = |size: usize| if has { size } else { BASIC } as u32;
        (extra(STANDARD), extra(BASIC + PKRU_SIZE))
    }

    /// The components that an instruction is about: XCR0 and EDX:EAX.
    fn requested(&self) -> u64 {
        let mask = self.regs.get::<4>(offset(0)) | self.regs.get::<4>(offset(2)) << 32;
        self.xcr0 & mask
    }

    /// The state components that XCR0 can enable: those that CPUID names, or x87 alone.
    pub fn xcr0_allowed(&self) -> u64 {
        u64::from(self.cpuid.get(0xd, 0).eax) | X87
    }

    /// Bytes of XMM registers in the image.
    fn xmm_len(&self) -> usize {
        if self.long_code() { 256 } else { 128 }
    }

    /// The legacy image, with its pointers as the form has them.
    fn legacy_image(&self, wide: bool) -> [u8; 512] {
        let mut image = self.fx.image();
        if !wide {
            image[12..16].fill(0);
            image[20..24].fill(0);
        }
        image
    }

    fn set_pkru(&mut self, value: u32) {
        if value != self.pkru {
            self.pkru = value;
            self.pool.clear();
            self.refresh_paging();
        }
    }
}

/// May the instruction execute, and where is its area?
fn area(cpu: &mut Cpu, op: &Op, len: usize, kind: umbra_mmu::AccessKind) -> Result<u64, Trap> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    if cpu.cr0 & cr0::TS != 0 {
        return Err(cpu.raise(Exception::plain(vector::NM)));
    }
    let la = cpu.ea_sized(op, len, kind)?;
    if la & 63 != 0 { Err(cpu.gp(0)) } else { Ok(la) }
}

/// XSAVE, XSAVEOPT, XSAVEC.
pub fn xsave(cpu: &mut Cpu, op: &Op) -> Leave {
    let requested = cpu.requested();
    let compact = op.extra & form::COMPACT != 0;
    let pkru_at = if compact { BASIC } else { PKRU_OFFSET };
    let len = if requested & PKRU != 0 {
        pkru_at + PKRU_SIZE
    } else {
        BASIC
    };
    let la = ok!(cpu, op, area(cpu, op, len, Write));
    ok!(cpu, op, cpu.probe_write(la, len));
    let mut used = cpu.components_in_use();
    if compact && cpu.fx.mxcsr() != MXCSR_DEFAULT {
        used |= SSE;
    }
    let written = if op.extra & !form::WIDE == form::PLAIN {
        requested
    } else {
        requested & used
    };
    let mxcsr = if compact { written } else { requested } & SSE != 0;
    let image = cpu.legacy_image(op.extra & form::WIDE != 0);
    let end = XMM + cpu.xmm_len();
    for (range, wanted) in [
        (0..24, written & X87 != 0),
        (24..32, mxcsr),
        (32..XMM, written & X87 != 0),
        (XMM..end, written & SSE != 0),
    ] {
        if wanted {
            let at = la.wrapping_add(range.start as u64);
            ok!(cpu, op, cpu.write(at, &image[range]));
        }
    }
    if written & PKRU != 0 {
        let value = u64::from(cpu.pkru);
        ok!(
            cpu,
            op,
            cpu.store::<8>(la.wrapping_add(pkru_at as u64), value)
        );
    }
    let header = la.wrapping_add(512);
    if compact {
        ok!(cpu, op, cpu.store::<8>(header, used & requested));
        let format = requested | COMPACTED;
        ok!(cpu, op, cpu.store::<8>(header.wrapping_add(8), format));
    } else {
        let before = ok!(cpu, op, cpu.load::<8>(header));
        let present = before & !requested | used & requested;
        ok!(cpu, op, cpu.store::<8>(header, present));
    }
    next(cpu, op)
}

/// What the header of an area says.
struct Header {
    present: u64,
    compact: bool,
    pkru_at: usize,
}

/// Checks a header (SDM vol. 1, 13.8).
fn header(cpu: &mut Cpu, la: u64) -> Result<Header, Trap> {
    let mut bytes = [0; 64];
    cpu.read(la.wrapping_add(512), &mut bytes)?;
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let (present, format) = (word(0), word(8));
    let compact = format & COMPACTED != 0;
    let good = if compact {
        let components = format & !COMPACTED;
        components & !cpu.xcr0 == 0
            && present & !components == 0
            && bytes[16..].iter().all(|b| *b == 0)
    } else {
        present & !cpu.xcr0 == 0 && format == 0 && word(16) == 0
    };
    if !good {
        return Err(cpu.gp(0));
    }
    Ok(Header {
        present,
        compact,
        pkru_at: if compact { BASIC } else { PKRU_OFFSET },
    })
}

/// XRSTOR.
pub fn xrstor(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, area(cpu, op, BASIC, Read));
    let header = ok!(cpu, op, header(cpu, la));
    let requested = cpu.requested();
    let loaded = requested & header.present;
    let mut image = [0; 512];
    ok!(cpu, op, cpu.read(la, &mut image));
    let mut pkru = 0;
    if loaded & PKRU != 0 {
        let at = la.wrapping_add(header.pkru_at as u64);
        pkru = ok!(cpu, op, cpu.load::<4>(at)) as u32;
    }
    let from_memory = if header.compact { loaded } else { requested } & SSE != 0;
    let mut mxcsr = MXCSR_DEFAULT;
    if from_memory {
        mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
        if mxcsr & !MXCSR_MASK != 0 {
            cpu.gp(0);
            return cpu.fault(op);
        }
    }
    if op.extra & form::WIDE == 0 {
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    restore(cpu, requested, loaded, &image, mxcsr);
    if requested & PKRU != 0 {
        cpu.set_pkru(pkru);
    }
    next(cpu, op)
}

/// Loads or initialises the legacy components.
fn restore(cpu: &mut Cpu, requested: u64, loaded: u64, image: &[u8; 512], mxcsr: u32) {
    let initial = FxArea::reset();
    let end = XMM + cpu.xmm_len();
    if requested & X87 != 0 {
        let from = if loaded & X87 != 0 {
            image
        } else {
            initial.bytes()
        };
        for range in [0..24, 32..XMM] {
            cpu.fx.bytes_mut()[range.clone()].copy_from_slice(&from[range]);
        }
    }
    if requested & SSE != 0 {
        let from = if loaded & SSE != 0 {
            image
        } else {
            initial.bytes()
        };
        cpu.fx.bytes_mut()[XMM..end].copy_from_slice(&from[XMM..end]);
        cpu.fx.set_mxcsr(mxcsr);
    }
}

/// XGETBV.
pub fn xgetbv(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return super::system::undefined(cpu, op);
    }
    let value = match cpu.regs.get::<4>(offset(1)) {
        0 => cpu.xcr0,
        1 => cpu.xcr0 & cpu.components_in_use(),
        _ => {
            cpu.gp(0);
            return cpu.fault(op);
        }
    };
    cpu.regs.set::<4>(offset(0), value);
    cpu.regs.set::<4>(offset(2), value >> 32);
    next(cpu, op)
}

/// XSETBV.
pub fn xsetbv(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return super::system::undefined(cpu, op);
    }
    let value = cpu.regs.get::<4>(offset(0)) | cpu.regs.get::<4>(offset(2)) << 32;
    let bad = cpu.cpl != 0
        || cpu.regs.get::<4>(offset(1)) != 0
        || value & X87 == 0
        || value & !cpu.xcr0_allowed() != 0;
    if bad {
        cpu.gp(0);
        return cpu.fault(op);
    }
    cpu.xcr0 = value;
    next(cpu, op)
}
