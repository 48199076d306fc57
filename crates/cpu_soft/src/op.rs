//! A decoded instruction: handler and resolved operands.
//!
//! A block is a run of [`Op`]s in one allocation. A handler does its work and then calls the
//! handler of the next operation itself ([`next`]), so each has an indirect jump of its own for
//! the host to predict; in optimised builds that call is a jump. The last operation of a block
//! always leaves instead: nesting is bounded by [`MAX_OPS`] even where it is a real call.

use std::cell::Cell;

use crate::cpu::Cpu;

/// Executes one operation and everything after it in the block.
pub type Handler = fn(&mut Cpu, &Op) -> Leave;

/// Most instructions in a block.
pub const MAX_OPS: usize = 48;

/// Why a block was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[must_use]
pub enum Leave {
    /// The block is done; `rip` says where to go on.
    Done,
    /// An exception is pending in the processor; `rip` is that of the instruction.
    Fault,
    /// The instruction wants the outer loop to look at the processor before the next block
    /// (an interrupt flag, a mode or a request changed); `rip` says where to go on.
    Look,
    /// HLT; `rip` is behind it.
    Halt,
    /// The instruction is done and the next one follows: said to translated code, which has the
    /// interpreter execute one instruction at a time.
    On,
    /// The block is hot; nothing of it was executed.
    Hot,
}

/// One decoded instruction, 32 bytes.
#[repr(C)]
#[derive(Clone)]
pub struct Op {
    /// What executes it. Replaced by [`stale`] when the bytes it was decoded from are overwritten,
    /// which may happen while the block executes.
    pub handler: Cell<Handler>,
    /// Immediate, branch target, or return address.
    pub imm: u64,
    /// Displacement of the memory operand.
    pub disp: i32,
    /// Distance of this instruction from the start of the block, in bytes.
    pub off: u16,
    /// Length of the instruction in bytes.
    pub len: u8,
    /// First register operand, as offset in the register file.
    pub a: u8,
    /// Second register operand.
    pub b: u8,
    /// Base register of the memory operand.
    pub base: u8,
    /// Index register of the memory operand.
    pub index: u8,
    /// Log2 of the index scale.
    pub scale: u8,
    /// Segment of the memory operand: 0 to 5, or 6 for one with base zero and no checks.
    pub seg: u8,
    /// How the address is formed: [`addr`] bits.
    pub addr: u8,
    /// Anything else a handler wants to know (a prefix, a sub-code).
    pub extra: u8,
    /// Executions until the block is hot, of [`counted`].
    pub left: Cell<u8>,
}

const _: () = assert!(size_of::<Op>() == 32);

/// Bits of [`Op::addr`]. Those that need the slow address path now are in
/// [`Cpu::slow`](crate::cpu::Cpu::slow): in 64-bit code it has [`OFFSET`](addr::OFFSET); in 32-bit
/// code the segments that are not flat. The fast form is base + index * scale + displacement +
/// segment base, cut to the width of linear addresses.
pub mod addr {
    /// The offset is truncated to 16 bits.
    pub const A16: u8 = 1 << 0;
    /// The offset is truncated to 32 bits.
    pub const A32: u8 = 1 << 1;
    /// The segment is DS or ES, and not in 64-bit code.
    pub const DATA: u8 = 1 << 2;
    /// The offset is `imm`, 64 bits wide.
    pub const ABSOLUTE: u8 = 1 << 3;
    /// The segment is SS: what is wrong with the address raises #SS instead of #GP.
    pub const STACK: u8 = 1 << 4;
    /// The segment is FS, and not in 64-bit code.
    pub const FS: u8 = 1 << 5;
    /// The segment is GS, and not in 64-bit code.
    pub const GS: u8 = 1 << 6;
    /// The segment is CS, and not in 64-bit code.
    pub const CODE: u8 = 1 << 7;
    /// How the offset is formed, without the segment.
    pub const OFFSET: u8 = A16 | A32 | ABSOLUTE;
}

impl Op {
    /// An operation without operands.
    pub fn new(handler: Handler) -> Self {
        use crate::regs::ZERO;
        Self {
            handler: Cell::new(handler),
            imm: 0,
            disp: 0,
            off: 0,
            len: 0,
            a: ZERO,
            b: ZERO,
            base: ZERO,
            index: ZERO,
            scale: 0,
            seg: 6,
            addr: 0,
            extra: 0,
            left: Cell::new(0),
        }
    }
}

/// Goes on with the operation behind `op`.
#[inline(always)]
pub fn next(cpu: &mut Cpu, op: &Op) -> Leave {
    // SAFETY: blocks are built by `decode::Builder::finish` alone, which ends each with an
    // operation whose handler never comes here; so an operation that does has a successor in the
    // same allocation, and that allocation outlives the execution of the block (`code`, graveyard).
    let op = unsafe { &*std::ptr::from_ref(op).add(1) };
    (op.handler.get())(cpu, op)
}

/// Stands before the first instruction of a block, and counts how often it is executed.
pub fn counted(cpu: &mut Cpu, op: &Op) -> Leave {
    let left = op.left.get().wrapping_sub(1);
    op.left.set(left);
    if left == 0 {
        return Leave::Hot;
    }
    next(cpu, op)
}

/// Leaves a block whose code was overwritten; the instruction is decoded again.
pub fn stale(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.rip = cpu.rip_of(op);
    Leave::Done
}
