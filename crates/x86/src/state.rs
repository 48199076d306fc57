//! The architectural state of one processor, as a value that every backend can give and take.

use serde::{Deserialize, Serialize};

use crate::{cr0, rflags};

/// Index of a general register in [`CpuState::gpr`] (the encoding of ModRM and REX).
pub mod gpr {
    /// RAX.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP.
    pub const RSP: usize = 4;
    /// RBP.
    pub const RBP: usize = 5;
    /// RSI.
    pub const RSI: usize = 6;
    /// RDI.
    pub const RDI: usize = 7;
}

/// Index of a segment register in [`CpuState::seg`] (the encoding of ModRM.reg).
pub mod seg {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
}

/// A segment register with its hidden part (SDM vol. 3, 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Base, 64 bits wide for FS, GS, TR and LDTR in long mode.
    pub base: u64,
    /// Limit in bytes, already scaled by the granularity.
    pub limit: u32,
    /// Bits 8 to 23 of the descriptor's high half, moved down to bit 0: type (0–3), S (4),
    /// DPL (5–6), P (7), AVL (12), L (13), D/B (14), G (15); bits 8–11 are zero.
    pub attr: u16,
}

impl Segment {
    /// S: a code or data segment, not a system one.
    pub const S: u16 = 1 << 4;
    /// P: present.
    pub const P: u16 = 1 << 7;
    /// L: 64-bit code.
    pub const L: u16 = 1 << 13;
    /// D/B: 32-bit default operand size or stack.
    pub const DB: u16 = 1 << 14;
    /// G: the limit counts 4 KiB units.
    pub const G: u16 = 1 << 15;

    /// Returns the descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        (self.attr >> 5 & 3) as u8
    }

    /// A segment as real mode has it: base is sixteen times the selector.
    pub const fn real_mode(selector: u16, kind: u16) -> Self {
        Self {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            attr: kind | Self::S | Self::P,
        }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescriptorTable {
    /// Linear address of the first byte.
    pub base: u64,
    /// Offset of the last byte.
    pub limit: u16,
}

/// Registers of one processor that a boot loader sets and a debugger shows.
///
/// x87 and SSE state, model-specific registers beyond EFER, and the local APIC are not here;
/// [`VcpuState`](crate::vcpu::VcpuState) has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table register.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8, the task priority.
    pub cr8: u64,
    /// IA32_EFER.
    pub efer: u64,
}

impl Default for CpuState {
    /// The state after power-up or INIT (SDM vol. 3, table 9-1).
    fn default() -> Self {
        let data = Segment::real_mode(0, 3);
        let mut cs = Segment::real_mode(0xf000, 0xb);
        cs.base = 0xffff_0000;
        let system = |kind| Segment {
            selector: 0,
            base: 0,
            limit: 0xffff,
            attr: kind | Segment::P,
        };
        let mut gpr = [0; 16];
        gpr[gpr::RDX] = 0x600; // family 6: DX holds the processor signature
        Self {
            gpr,
            rip: 0xfff0,
            rflags: rflags::FIXED,
            seg: [data, cs, data, data, data, data],
            ldtr: system(2),
            tr: system(0xb),
            gdtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            idtr: DescriptorTable {
                base: 0,
                limit: 0xffff,
            },
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            cr8: 0,
            efer: 0,
        }
    }
}
