//! x87, MMX and SSE: the common moves directly, everything else through native stubs.

use umbra_mmu::AccessKind::{Read, Write};
use umbra_x86::{Exception, vector};

use super::{ok, simd_exceptions};
use crate::cpu::{Cpu, Trap};
use crate::fpu::{FxArea, MXCSR_DEFAULT, MXCSR_MASK, mxcsr};
use crate::native::{Frame, Plan, Stub, Unit};
use crate::op::{Handler, Leave, Op, next};

/// Bits of [`Op::extra`] for stub handlers.
pub mod flag {
    /// Memory is read before the call.
    pub const READS: u8 = 1 << 0;
    /// Memory is written after the call.
    pub const WRITES: u8 = 1 << 1;
    /// MXCSR matters.
    pub const FLOAT: u8 = 1 << 2;
    /// The status flags are results.
    pub const FLAGS: u8 = 1 << 3;
    /// A misaligned memory operand is #GP.
    pub const ALIGNED: u8 = 1 << 4;
    /// An x87 instruction that does not report pending errors.
    pub const NO_WAIT: u8 = 1 << 5;
    /// An x87 instruction that keeps instruction and data pointers.
    pub const CONTROL: u8 = 1 << 6;
}

/// A buffer for memory operands, as large as the largest (FNSAVE).
#[repr(C, align(16))]
struct Buffer([u8; 112]);

/// Fills in what the stub handlers need; `op` has its memory operand already.
pub fn native(op: &mut Op, plan: &Plan) -> Handler {
    op.imm = plan.stub as usize as u64;
    op.b = plan.memory as u8;
    for (set, bit) in [
        (plan.reads, flag::READS),
        (plan.writes, flag::WRITES),
        (plan.float, flag::FLOAT),
        (plan.flags, flag::FLAGS),
        (plan.aligned, flag::ALIGNED),
        (plan.no_wait, flag::NO_WAIT),
        (plan.control, flag::CONTROL),
    ] {
        if set {
            op.extra |= bit;
        }
    }
    match plan.unit {
        Unit::Sse if plan.memory == 0 && !plan.float && !plan.flags => sse_registers,
        Unit::Sse => sse,
        Unit::Mmx => mmx,
        Unit::X87 => x87,
    }
}

/// The stub that an operation carries.
fn stub_of(op: &Op) -> Stub {
    // SAFETY: `native` put a stub there, and it alone makes operations with these handlers; stubs
    // outlive the blocks that refer to them (`Stubs::clear`).
    unsafe { std::mem::transmute::<usize, Stub>(op.imm as usize) }
}

impl Cpu {
    #[inline(always)]
    fn call(&mut self, stub: Stub, memory: &mut Buffer, frame: &mut Frame) {
        let (fx, regs) = (self.fx.as_mut_ptr(), self.regs.as_mut_ptr());
        // SAFETY: a stub reads and writes the state image, sixteen registers, the frame, and at
        // most 108 bytes of the buffer; all four are exclusively borrowed here. It changes no
        // register that its convention preserves and leaves MXCSR and the x87 unit as a Rust
        // program expects them.
        unsafe { stub(fx, memory.0.as_mut_ptr(), regs, frame) }
    }
}

fn sse_registers(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    // A stub without memory operand does not look at the buffer.
    let mut none = Buffer([0; 112]);
    cpu.call(stub_of(op), &mut none, &mut Frame::default());
    next(cpu, op)
}

fn sse(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    ok!(
        cpu,
        op,
        with_memory(cpu, op, |cpu, memory, _| float_call(cpu, op, memory))
    );
    next(cpu, op)
}

fn mmx(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_mmx());
    let run = |cpu: &mut Cpu, memory: &mut Buffer, _| {
        let pointers = cpu.fx.pointers();
        let done = float_call(cpu, op, memory);
        cpu.fx.restore_pointers(&pointers);
        done
    };
    ok!(cpu, op, with_memory(cpu, op, run));
    next(cpu, op)
}

fn x87(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_x87(op.extra & flag::NO_WAIT == 0));
    let run = |cpu: &mut Cpu, memory: &mut Buffer, la: Option<u64>| {
        let mxcsr = cpu.fx.mxcsr();
        let pointers = cpu.fx.pointers();
        let mut frame = Frame {
            mxcsr: MXCSR_DEFAULT,
            host_mxcsr: MXCSR_DEFAULT,
            flags: cpu.flags.get() | 2,
        };
        cpu.call(stub_of(op), memory, &mut frame);
        cpu.fx.set_mxcsr(mxcsr);
        if op.extra & flag::FLAGS != 0 {
            cpu.flags.set(frame.flags);
        }
        if op.extra & flag::CONTROL != 0 {
            // Those that load the pointers (FLDENV, FRSTOR) and those that clear them (FNINIT)
            // deal in guest values only: what the image held is what the guest put there.
            if op.extra & (flag::READS | flag::NO_WAIT) == 0 {
                cpu.fx.restore_pointers(&pointers);
            }
        } else {
            let rip = cpu.rip_of(op);
            cpu.fx.restore_pointers(&pointers);
            cpu.fx.set_pointers(rip, la);
        }
        Ok(())
    };
    ok!(cpu, op, with_memory(cpu, op, run));
    next(cpu, op)
}

/// Moves the memory operand in, runs `body`, moves it out. Faults come before `body` changes
/// anything.
fn with_memory(
    cpu: &mut Cpu,
    op: &Op,
    body: impl FnOnce(&mut Cpu, &mut Buffer, Option<u64>) -> Result<(), Trap>,
) -> Result<(), Trap> {
    let mut buffer = Buffer([0; 112]);
    let len = usize::from(op.b).min(buffer.0.len());
    if len == 0 {
        return body(cpu, &mut buffer, None);
    }
    let writes = op.extra & flag::WRITES != 0;
    let la = sized_address(cpu, op, len, writes)?;
    if op.extra & flag::ALIGNED != 0 && la & 15 != 0 {
        return Err(cpu.gp(0));
    }
    if writes {
        cpu.probe_write(la, len)?;
    }
    if op.extra & flag::READS != 0 {
        match len {
            16 => buffer.0[..16].copy_from_slice(&cpu.load16(la)?),
            8 => buffer.0[..8].copy_from_slice(&cpu.load::<8>(la)?.to_le_bytes()),
            4 => buffer.0[..4].copy_from_slice(&(cpu.load::<4>(la)? as u32).to_le_bytes()),
            _ => cpu.read(la, &mut buffer.0[..len])?,
        }
    }
    body(cpu, &mut buffer, Some(la))?;
    if writes {
        cpu.write(la, &buffer.0[..len])?;
    }
    Ok(())
}

fn sized_address(cpu: &mut Cpu, op: &Op, len: usize, writes: bool) -> Result<u64, Trap> {
    cpu.ea_sized(op, len, if writes { Write } else { Read })
}

/// Calls a stub with the guest's rounding, and raises what is not masked.
fn float_call(cpu: &mut Cpu, op: &Op, memory: &mut Buffer) -> Result<(), Trap> {
    let mxcsr = cpu.fx.mxcsr();
    let unmasked = !mxcsr >> 7 & mxcsr::FLAGS;
    if unmasked != 0 && op.extra & flag::FLOAT != 0 {
        return float_call_unmasked(cpu, op, memory, unmasked);
    }
    let mut frame = frame(cpu, mxcsr);
    cpu.call(stub_of(op), memory, &mut frame);
    let raised = match op.extra & flag::FLOAT {
        0 => 0,
        _ => frame.mxcsr & mxcsr::FLAGS,
    };
    // A stub that saves the whole image leaves its own MXCSR there.
    cpu.fx.set_mxcsr(mxcsr | raised);
    finish(cpu, op, &frame);
    Ok(())
}

/// What a stub gets: `mxcsr` with all exceptions masked and no flag set.
fn frame(cpu: &Cpu, mxcsr: u32) -> Frame {
    Frame {
        mxcsr: mxcsr & !mxcsr::FLAGS | MXCSR_DEFAULT,
        host_mxcsr: MXCSR_DEFAULT,
        flags: cpu.flags.get() | 2,
    }
}

fn finish(cpu: &mut Cpu, op: &Op, frame: &Frame) {
    if op.extra & flag::FLAGS != 0 {
        cpu.flags.set(frame.flags);
    }
}

/// [`float_call`] where some exceptions are not masked: the stub runs with all masked, and what it
/// leaves in MXCSR tells whether anything is raised (SDM vol. 1, 11.5.2 and 11.5.3).
///
/// An underflow that is not masked needs no loss of precision, and knows no flushing to zero
/// (10.2.3.3). Flushing reports just that: each tiny result.
#[cold]
fn float_call_unmasked(
    cpu: &mut Cpu,
    op: &Op,
    memory: &mut Buffer,
    unmasked: u32,
) -> Result<(), Trap> {
    let mxcsr = cpu.fx.mxcsr();
    let (fx, regs) = (FxArea::clone(&cpu.fx), cpu.regs.clone());
    let mut operand = [0; 16];
    operand.copy_from_slice(&memory.0[..16]);
    let flushing = if unmasked & mxcsr::UE != 0 {
        mxcsr::FZ
    } else {
        0
    };
    let mut frame = frame(cpu, mxcsr | flushing);
    let control = frame.mxcsr;
    cpu.call(stub_of(op), memory, &mut frame);
    let mut raised = frame.mxcsr & mxcsr::FLAGS;
    if raised & unmasked == 0 {
        cpu.fx.set_mxcsr(mxcsr | raised);
        finish(cpu, op, &frame);
        return Ok(());
    }
    // The destination keeps its value, the flags say why.
    *cpu.fx = fx;
    cpu.regs = regs;
    let exact = |insn| simd_exceptions::raised(insn, &cpu.fx, &operand, control, unmasked);
    raised = match cpu.stubs.instruction(stub_of(op)).and_then(exact) {
        Some(exact) => exact,
        None => simd_exceptions::of_one_step(raised, unmasked),
    };
    cpu.fx.set_mxcsr(mxcsr | raised);
    let vector = if cpu.cr4 & umbra_x86::cr4::OSXMMEXCPT != 0 {
        vector::XM
    } else {
        vector::UD
    };
    Err(cpu.raise(Exception::plain(vector)))
}

/// FWAIT.
pub fn wait(cpu: &mut Cpu, op: &Op) -> Leave {
    use umbra_x86::cr0;
    if cpu.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        cpu.raise(Exception::plain(vector::NM));
        return cpu.fault(op);
    }
    if cpu.fx.x87_error() {
        cpu.raise(Exception::plain(vector::MF));
        return cpu.fault(op);
    }
    next(cpu, op)
}

fn misaligned(cpu: &mut Cpu, op: &Op, la: u64) -> Result<(), Trap> {
    if op.extra & flag::ALIGNED != 0 && la & 15 != 0 {
        Err(cpu.gp(0))
    } else {
        Ok(())
    }
}

/// MOVUPS and its like: 16 bytes to register `a`.
pub fn load16(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    let la = ok!(cpu, op, cpu.ea::<16>(op, Read));
    ok!(cpu, op, misaligned(cpu, op, la));
    let value = u128::from_le_bytes(ok!(cpu, op, cpu.load16(la)));
    cpu.fx.set_xmm(op.a, 0, value as u64);
    cpu.fx.set_xmm(op.a, 1, (value >> 64) as u64);
    next(cpu, op)
}

/// MOVUPS and its like: 16 bytes from register `a`.
pub fn store16(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    let la = ok!(cpu, op, cpu.ea::<16>(op, Write));
    ok!(cpu, op, misaligned(cpu, op, la));
    ok!(cpu, op, cpu.check_alignment(la, 16));
    let (low, high) = (cpu.fx.xmm(op.a, 0), cpu.fx.xmm(op.a, 1));
    if la & 0xfff > 0xff0 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        ok!(cpu, op, cpu.write(la, &bytes));
    } else {
        ok!(cpu, op, cpu.store::<8>(la, low));
        ok!(cpu, op, cpu.store::<8>(la.wrapping_add(8), high));
    }
    next(cpu, op)
}

/// MOVAPS and its like between registers `a` and `b`.
pub fn move16(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    let (low, high) = (cpu.fx.xmm(op.b, 0), cpu.fx.xmm(op.b, 1));
    cpu.fx.set_xmm(op.a, 0, low);
    cpu.fx.set_xmm(op.a, 1, high);
    next(cpu, op)
}

/// MOVQ, MOVSD, MOVD, MOVSS from memory: `N` bytes, the rest is cleared.
pub fn load_scalar<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    let la = ok!(cpu, op, cpu.ea::<N>(op, Read));
    let value = ok!(cpu, op, cpu.load::<N>(la));
    cpu.fx.set_xmm(op.a, 0, value);
    cpu.fx.set_xmm(op.a, 1, 0);
    next(cpu, op)
}

/// MOVQ, MOVSD, MOVD, MOVSS to memory.
pub fn store_scalar<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let value = cpu.fx.xmm(op.a, 0);
    ok!(cpu, op, cpu.store::<N>(la, value));
    next(cpu, op)
}

/// A bitwise operation between registers `a` and `b`.
pub fn pxor(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    for half in 0..2 {
        let value = cpu.fx.xmm(op.a, half) ^ cpu.fx.xmm(op.b, half);
        cpu.fx.set_xmm(op.a, half, value);
    }
    next(cpu, op)
}

/// MOVNTI.
pub fn movnti<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, cpu.ea::<N>(op, Write));
    let value = cpu.regs.get::<N>(op.a);
    ok!(cpu, op, cpu.store::<N>(la, value));
    next(cpu, op)
}

/// MASKMOVDQU: byte by byte to DS:RDI, registers `a` (data) and `b` (mask).
pub fn maskmovdqu(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    for half in 0..2 {
        let (data, mask) = (cpu.fx.xmm(op.a, half), cpu.fx.xmm(op.b, half));
        ok!(cpu, op, store_masked(cpu, op, 8 * half as u64, data, mask));
    }
    next(cpu, op)
}

/// MASKMOVQ: the same with MMX registers.
pub fn maskmovq(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_mmx());
    let mut fx = cpu.fx.clone();
    fx.enter_mmx();
    let (data, mask) = (fx.mmx(op.a), fx.mmx(op.b));
    ok!(cpu, op, store_masked(cpu, op, 0, data, mask));
    *cpu.fx = *fx;
    next(cpu, op)
}

/// Stores the bytes of `data` whose mask byte has the top bit, `distance` behind DS:RDI.
fn store_masked(cpu: &mut Cpu, op: &Op, distance: u64, data: u64, mask: u64) -> Result<(), Trap> {
    let base = crate::ea::truncate(cpu.regs.r(7), op.addr).wrapping_add(distance);
    for i in (0..8).filter(|i| mask >> (8 * i) & 0x80 != 0) {
        let offset = crate::ea::truncate(base.wrapping_add(i), op.addr);
        let la = cpu.linear(op.seg, offset, 1, Write)?;
        cpu.store::<1>(la, data >> (8 * i))?;
    }
    Ok(())
}

/// LDMXCSR.
pub fn ldmxcsr(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    let la = ok!(cpu, op, cpu.ea::<4>(op, Read));
    let value = ok!(cpu, op, cpu.load::<4>(la)) as u32;
    if value & !MXCSR_MASK != 0 {
        cpu.gp(0);
        return cpu.fault(op);
    }
    cpu.fx.set_mxcsr(value);
    next(cpu, op)
}

/// STMXCSR.
pub fn stmxcsr(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, cpu.check_sse());
    let la = ok!(cpu, op, cpu.ea::<4>(op, Write));
    let value = cpu.fx.mxcsr();
    ok!(cpu, op, cpu.store::<4>(la, value.into()));
    next(cpu, op)
}

/// Address checks that FXSAVE and FXRSTOR share.
fn fx_address(cpu: &mut Cpu, op: &Op, kind: umbra_mmu::AccessKind) -> Result<u64, Trap> {
    use umbra_x86::cr0;
    if cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(cpu.raise(Exception::plain(vector::NM)));
    }
    let la = cpu.ea::<512>(op, kind)?;
    if la & 15 != 0 { Err(cpu.gp(0)) } else { Ok(la) }
}

/// Bytes of the image that are used: all registers in 64-bit code, eight XMM registers elsewhere.
fn fx_len(cpu: &Cpu) -> usize {
    if cpu.cr4 & umbra_x86::cr4::OSFXSR == 0 {
        160
    } else if cpu.long_code() {
        416
    } else {
        288
    }
}

/// FXSAVE; `extra` is 8 for the 64-bit form.
pub fn fxsave(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, fx_address(cpu, op, Write));
    let mut image = cpu.fx.image();
    if op.extra != 8 {
        // 32-bit offsets with selectors above them; the selectors are not kept (deprecated).
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    let len = fx_len(cpu);
    ok!(cpu, op, cpu.write(la, &image[..len]));
    next(cpu, op)
}

/// FXRSTOR.
pub fn fxrstor(cpu: &mut Cpu, op: &Op) -> Leave {
    let la = ok!(cpu, op, fx_address(cpu, op, Read));
    let len = fx_len(cpu);
    let mut image = [0; 512];
    ok!(cpu, op, cpu.read(la, &mut image[..len]));
    let mxcsr = u32::from_le_bytes([image[24], image[25], image[26], image[27]]);
    if len > 160 && mxcsr & !MXCSR_MASK != 0 {
        cpu.gp(0);
        return cpu.fault(op);
    }
    if op.extra != 8 {
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    let keep = cpu.fx.mxcsr();
    cpu.fx.bytes_mut()[..len].copy_from_slice(&image[..len]);
    cpu.fx.set_mxcsr(if len > 160 { mxcsr } else { keep });
    cpu.fx.bytes_mut()[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    next(cpu, op)
}
