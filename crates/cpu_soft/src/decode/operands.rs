//! Registers and memory operands, resolved once.

use iced_x86::{Instruction, OpKind, Register};
use umbra_x86::state::seg;

use crate::op::{Op, addr};
use crate::regs::{self, BLOCK_RIP};

/// Byte offset of a general register in the register file.
pub fn gpr(register: Register) -> u8 {
    if register.size() > 1 {
        return regs::offset(register.number() as u8);
    }
    // AL, CL, DL, BL, AH, CH, DH, BH, then SPL to R15L.
    match (register as usize - Register::AL as usize) as u8 {
        low @ 0..4 => low * 8,
        high @ 4..8 => (high & 3) * 8 + 1,
        rest => (rest - 4) * 8,
    }
}

/// Number of a segment register as [`seg`] has it.
pub fn segment(register: Register) -> u8 {
    let number = match register {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::DS => seg::DS,
        Register::FS => seg::FS,
        _ => seg::GS,
    };
    number as u8
}

/// Puts the effective segment into `op`: in 64-bit code only FS and GS have a base and none is
/// checked.
pub fn set_segment(op: &mut Op, register: Register, long: bool) {
    let number = segment(register);
    if register == Register::SS {
        op.addr |= addr::STACK;
    }
    if !long {
        op.seg = number;
        op.addr |= match register {
            Register::SS => addr::STACK,
            Register::FS => addr::FS,
            Register::GS => addr::GS,
            Register::CS => addr::CODE,
            _ => addr::DATA,
        };
    } else if number >= seg::FS as u8 {
        op.seg = number;
    }
}

/// Resolves the memory operand of `insn` into `op`; `rip` is that of the block.
pub fn memory(insn: &Instruction, op: &mut Op, long: bool, rip: u64) {
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let segment = insn.memory_segment();
    set_segment(op, segment, long);
    if long {
        // Prefixes of ES, CS, SS and DS mean nothing: the base register says what the default is.
        let stack = matches!(
            base,
            Register::RSP | Register::ESP | Register::RBP | Register::EBP
        );
        op.addr &= !addr::STACK;
        if stack && !matches!(segment, Register::FS | Register::GS) {
            op.addr |= addr::STACK;
        }
    }
    if matches!(base, Register::RIP | Register::EIP) {
        if base == Register::EIP {
            op.addr |= addr::A32;
        }
        let distance = insn.memory_displacement64().wrapping_sub(rip) as i64;
        op.base = BLOCK_RIP;
        // A displacement is 32 bits wide and a block shorter than a page: the sum misses the range
        // only for a target two gigabytes away, where wrapping is as wrong as any other answer of
        // an address that no linker makes; such an instruction reaches 2 GiB below instead.
        op.disp = distance as i32;
        return;
    }
    if base != Register::None {
        op.base = gpr(base);
    }
    if index != Register::None {
        op.index = gpr(index);
        op.scale = insn.memory_index_scale().trailing_zeros() as u8;
    }
    address_size(insn, op, long);
    let displacement = insn.memory_displacement64();
    match i32::try_from(displacement as i64) {
        Ok(small) => op.disp = small,
        // Sixteen and thirty-two bit addresses wrap; a real 64-bit one is absolute (MOV moffs).
        Err(_) if op.addr & (addr::A16 | addr::A32) != 0 => op.disp = displacement as u32 as i32,
        Err(_) => {
            op.addr |= addr::ABSOLUTE;
            op.imm = displacement;
        }
    }
}

fn address_size(insn: &Instruction, op: &mut Op, long: bool) {
    let register = match insn.memory_base() {
        Register::None => insn.memory_index(),
        base => base,
    };
    let size = match register {
        Register::None => insn.memory_displ_size() as usize,
        register => register.size(),
    };
    match size {
        1 | 2 => op.addr |= addr::A16,
        4 => op.addr |= addr::A32,
        _ if !long => op.addr |= addr::A32,
        _ => {}
    }
}

/// Address size of a string instruction, from the kind of its operand.
pub fn string_address(insn: &Instruction, op: &mut Op, long: bool) {
    use OpKind::*;
    let mut flags = 0;
    let mut source = false;
    for i in 0..insn.op_count() {
        match insn.op_kind(i) {
            MemorySegSI | MemorySegDI => (flags, source) = (addr::A16, true),
            MemorySegESI | MemorySegEDI => (flags, source) = (addr::A32, true),
            MemorySegRSI | MemorySegRDI => source = true,
            MemoryESDI => flags = addr::A16,
            MemoryESEDI => flags = addr::A32,
            _ => {}
        }
    }
    op.addr |= flags;
    if source {
        set_segment(op, insn.memory_segment(), long);
    } else if !long {
        op.seg = seg::ES as u8;
    }
    if long {
        op.addr &= !addr::STACK;
    } else {
        // Whatever the source is, the destination is ES.
        op.addr |= addr::DATA;
    }
}
