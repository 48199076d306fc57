//! The way into translated code and out of it, and the one call that it makes.
//!
//! ```text
//!   enter(cpu, code) ── load the guest's registers ──> unit ──> unit ──> …
//!                                                        │ what is not translated, or missed
//!                                                        v
//!                                   call ── registers to the processor ── execute_one (Rust)
//!                                                        │ goes on: registers back, return
//!                                                        │ elsewhere: registers back, jump (`transfer`)
//!                                                        └ leaves:  back to enter's caller
//!   exit ── registers to the processor ── back to enter's caller
//! ```

use std::mem::offset_of;

use super::LONG;
use super::asm::{Alu, Asm, Mem, Reg, at, cc};
use super::cache::Cache;
use super::counts::Sort;
use super::layout::{FRAME, Home, S0, S1, frame, home, slot};
use super::memory::Caches;
use super::recent::{self, Recent, WAYS};
use crate::cpu::Cpu;
use crate::fpu::{MXCSR, XMM};
use crate::gate::Gate;
use crate::meter::Doing;
use crate::op::{Leave, Op};
use crate::tlb::Class;

/// What translated code and the processor tell each other besides registers.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Shared {
    /// Status flags in the form of [`slot::FLAGS`].
    flags: u64,
    /// The selected context.
    ctx: u64,
    /// That of level 3, since level 3 was last seen.
    user: u64,
    /// Its jumps.
    jumps: u64,
    /// The link through which the code was left, plus one.
    pub link: u64,
    /// Nothing of the code may follow the instruction that executes: code was overwritten, or
    /// somebody wants attention.
    pub stop: bool,
    /// Translated code is executing.
    pub inside: bool,
    /// How often one unit was left for another, where code counts that.
    pub crossings: u64,
    /// SSE instructions would raise nothing.
    ready: bool,
    /// What [`Cpu::supervisors`] says.
    supervisors: [u64; 2],
}

/// One instruction that the interpreter executes for translated code.
pub struct Single {
    /// The operation, and one that says that it went on.
    pub ops: [Op; 2],
    /// What the operations' distances are counted from.
    pub base: u64,
    /// What sort of instruction it is.
    pub sort: Sort,
    /// The interpreter executes it always, and not only where a check fails.
    pub whole: bool,
}

impl Single {
    /// `op`, whose distances are counted from `base`.
    pub fn new(op: Op, base: u64) -> Self {
        Self {
            ops: [op, Op::new(went_on)],
            base,
            sort: Sort::Other,
            whole: false,
        }
    }

    /// Where the instruction is.
    pub fn rip(&self) -> u64 {
        self.base.wrapping_add(u64::from(self.ops[0].off))
    }
}

fn went_on(_: &mut Cpu, _: &Op) -> Leave {
    Leave::On
}

/// Enters code; returns a [`Leave`].
type Enter = unsafe extern "sysv64" fn(*mut Cpu, u64) -> u64;

/// The addresses of the fixed code.
#[derive(Clone, Copy)]
pub struct Glue {
    enter: Enter,
    /// Executes the [`Single`] at `S0`; returns when it went on.
    pub call: u64,
    /// Loads SSE state; `S1` is lost, and no flag.
    pub load: u64,
    /// Look for another page than the recent one ([`Recent::look`]).
    pub recent: [u64; WAYS],
    /// Forgets recent pages.
    pub forget: u64,
    /// Leaves with RIP in `S1` and the reason in `S0`; flags are in the frame.
    pub exit: u64,
    /// The [gate](crate::gate), if code can name it; [`slot::WAKE`] has its word for attention always.
    pub gate: Option<u64>,
    /// How code of level 3 comes to the translation caches.
    pub user: Caches,
    /// Units count how often they are left for others.
    pub measured: bool,
}

/// What [`execute_one`] returns is a [`Leave`] up to this, and an address above.
const LEAVES: i32 = 0xff;

const CALLEE_SAVED: [Reg; 6] = [Reg(3), Reg(5), Reg(12), Reg(13), Reg(14), Reg(15)];
const RDI: Reg = Reg(7);
const RSI: Reg = Reg(6);

fn shared(offset: usize) -> i32 {
    (offset_of!(Cpu, shared) + offset) as i32
}

/// Where translated code says through which link it leaves, from the processor's address.
pub const LINK: i32 = (offset_of!(Cpu, shared) + offset_of!(Shared, link)) as i32;

/// Where it counts that one unit is left for another, from the processor's address.
pub const CROSSINGS: i32 = (offset_of!(Cpu, shared) + offset_of!(Shared, crossings)) as i32;

/// Where it is said that SSE instructions would raise nothing, from the processor's address.
pub const READY: i32 = (offset_of!(Cpu, shared) + offset_of!(Shared, ready)) as i32;
/// Where translated code is told to stop, from the processor's address.
pub const STOP: i32 = (offset_of!(Cpu, shared) + offset_of!(Shared, stop)) as i32;

/// What STAC and CLAC select, from the processor's address.
pub const SUPERVISORS: i32 = (offset_of!(Cpu, shared) + offset_of!(Shared, supervisors)) as i32;

fn register(number: u8) -> i32 {
    offset_of!(Cpu, regs) as i32 + 8 * i32::from(number)
}

/// Where an XMM register is in the image.
fn xmm(number: u8) -> i32 {
    XMM as i32 + 16 * i32::from(number)
}

/// Stores the guest's registers, and SSE state if it is loaded; the processor is at `S1`, the frame `above`
/// bytes above RSP, the image of the SSE state at `fx`. `S0` is lost.
fn spill(asm: &mut Asm, above: i32, fx: u64) {
    let loaded = asm.label();
    asm.cmp_byte_imm(at(FRAME, slot::FLOAT + above), 0);
    asm.jcc(cc::E, loaded);
    asm.store(8, at(FRAME, slot::SAVED + above), S1);
    asm.imm(S1, fx);
    for number in 0..16 {
        asm.store_xmm(at(S1, xmm(number)), number);
    }
    asm.stmxcsr(at(S1, MXCSR as i32));
    asm.ldmxcsr(at(FRAME, slot::MXCSR + above));
    asm.store_byte_imm(at(FRAME, slot::FLOAT + above), 0);
    asm.load(S1, at(FRAME, slot::SAVED + above));
    asm.bind(loaded);
    for number in 0..16 {
        if let Home::Host(reg) = home(number) {
            asm.store(8, at(S1, register(number)), reg);
        }
    }
    for number in 0..16 {
        if let Home::Frame(Mem { disp, .. }) = home(number) {
            asm.load(S0, at(FRAME, disp + above));
            asm.store(8, at(S1, register(number)), S0);
        }
    }
    asm.load(S0, at(FRAME, slot::FLAGS + above));
    asm.store(8, at(S1, shared(offset_of!(Shared, flags))), S0);
}

/// The reverse, with the frame `above` bytes further up; code is `entered`, or was called from. Recent pages are
/// forgotten.
fn fill(asm: &mut Asm, above: i32, entered: bool, (user, gate): (Caches, Option<u64>)) {
    for number in 0..16 {
        if let Home::Frame(Mem { disp, .. }) = home(number) {
            asm.load(S0, at(S1, register(number)));
            asm.store(8, at(FRAME, disp + above), S0);
        }
    }
    if let Some(gate) = gate {
        recent::forget(asm, gate);
    }
    asm.load(S0, at(S1, shared(offset_of!(Shared, ctx))));
    asm.store(8, at(FRAME, slot::CTX + above), S0);
    if user == Caches::Gs {
        asm.load(S0, at(S1, shared(offset_of!(Shared, user))));
        // Mostly they are still selected.
        let selected = asm.label();
        if !entered {
            asm.alu_mem(Alu::Cmp, S0, at(FRAME, slot::USER + above));
            asm.jcc(cc::E, selected);
        }
        asm.store(8, at(FRAME, slot::USER + above), S0);
        asm.wrgsbase(S0);
        asm.bind(selected);
    }
    asm.load(S0, at(S1, shared(offset_of!(Shared, jumps))));
    asm.store(8, at(FRAME, slot::JUMPS + above), S0);
    for number in 0..16 {
        if let Home::Host(reg) = home(number) {
            asm.load(reg, at(S1, register(number)));
        }
    }
    asm.load(S0, at(S1, shared(offset_of!(Shared, flags))));
    asm.store(8, at(FRAME, slot::FLAGS + above), S0);
    asm.flags_from_ax();
}

impl Glue {
    /// Makes the fixed code at the start of `cache`, for SSE state at `fx` and the gate at `gate`.
    pub fn new(cache: &mut Cache, fx: u64, gate: u64, measured: bool) -> Option<Self> {
        let wake = gate + Gate::ATTENTION;
        let named = cache.reaches(gate) && cache.reaches(gate + size_of::<Gate>() as u64);
        let gate = named.then_some(gate);
        let user = Caches::of_user();
        let mut asm = Asm::default();
        let (out, leave) = (asm.label(), asm.label());

        let enter = asm.here();
        for reg in CALLEE_SAVED {
            asm.push(reg);
        }
        asm.lea(8, FRAME, at(FRAME, -slot::SIZE));
        asm.store(8, frame(slot::CPU), RDI);
        asm.store(8, frame(slot::TEMP), RSI);
        asm.mov(S1, RDI);
        asm.imm(S0, wake);
        asm.store(8, frame(slot::WAKE), S0);
        asm.store_byte_imm(frame(slot::FLOAT), 0);
        asm.stmxcsr(frame(slot::MXCSR));
        fill(&mut asm, 0, true, (user, gate));
        asm.jmp_mem(frame(slot::TEMP));

        // The frame is eight bytes further up: the return address lies below it.
        let call = asm.here();
        asm.store(8, at(FRAME, slot::TEMP + 8), S0);
        asm.load(S1, at(FRAME, slot::CPU + 8));
        spill(&mut asm, 8, fx);
        asm.mov(RDI, S1);
        asm.load(RSI, at(FRAME, slot::TEMP + 8));
        asm.lea(8, FRAME, at(FRAME, -8));
        asm.imm(S0, execute_one as *const () as u64);
        asm.call_reg(S0);
        asm.lea(8, FRAME, at(FRAME, 8));
        asm.alu_imm(Alu::Cmp, 4, S0, i32::from(Leave::On as u8));
        asm.jcc(cc::NE, out);
        asm.load(S1, at(FRAME, slot::CPU + 8));
        fill(&mut asm, 8, false, (user, gate));
        asm.ret();

        let load = asm.here();
        asm.imm(S1, fx);
        for number in 0..16 {
            asm.load_xmm(number, at(S1, xmm(number)));
        }
        asm.ldmxcsr(at(S1, MXCSR as i32));
        asm.store_byte_imm(at(FRAME, slot::FLOAT + 8), 1);
        asm.ret();

        let looks = Recent::ALL.map(|recent| {
            let here = asm.here();
            if let Some(gate) = gate {
                recent.look(&mut asm, gate);
            }
            here
        });
        let forget = asm.here();
        if let Some(gate) = gate {
            recent::forget(&mut asm, gate);
        }
        asm.ret();

        // Privilege, address space and all may be others than before the call.
        asm.bind(out);
        asm.lea(8, FRAME, at(FRAME, 8));
        asm.alu_imm(Alu::Cmp, 8, S0, LEAVES);
        asm.jcc(cc::BE, leave);
        asm.store(8, frame(slot::TEMP), S0);
        asm.load(S1, frame(slot::CPU));
        fill(&mut asm, 0, false, (user, gate));
        asm.jmp_mem(frame(slot::TEMP));

        let exit = asm.here();
        asm.store(8, frame(slot::TEMP), S0);
        asm.mov(S0, S1);
        asm.load(S1, frame(slot::CPU));
        asm.store(8, at(S1, offset_of!(Cpu, rip) as i32), S0);
        spill(&mut asm, 0, fx);
        asm.load(S0, frame(slot::TEMP));
        asm.bind(leave);
        asm.lea(8, FRAME, at(FRAME, slot::SIZE));
        for reg in CALLEE_SAVED.into_iter().rev() {
            asm.pop(reg);
        }
        asm.ret();

        let at = cache.next();
        let address = |label, asm: &Asm| Some(at + asm.offset(label)? as u64);
        let (enter, call) = (address(enter, &asm)?, address(call, &asm)?);
        let (load, exit) = (address(load, &asm)?, address(exit, &asm)?);
        let mut recent = [0; WAYS];
        for (to, look) in recent.iter_mut().zip(looks) {
            *to = address(look, &asm)?;
        }
        let forget = address(forget, &asm)?;
        let code = asm.finish(at)?;
        cache.add(&code);
        cache.fix();
        Some(Self {
            // SAFETY: the code at `enter` was just made to be called so, and is never dropped.
            enter: unsafe { std::mem::transmute::<u64, Enter>(enter) },
            call,
            load,
            recent,
            forget,
            exit,
            gate,
            user,
            measured,
        })
    }
}

/// Executes one instruction with the interpreter. Called by translated code; returns a [`Leave`], or where
/// code goes on.
unsafe extern "sysv64" fn execute_one(cpu: *mut Cpu, single: *const Single) -> u64 {
    // SAFETY: translated code passes the processor that `enter` was called with, which lent it
    // exclusively, and a `Single` of a unit of that processor; a unit that dies while it executes is
    // buried between blocks.
    let (cpu, single) = unsafe { (&mut *cpu, &*single) };
    cpu.gauge.set(Doing::Interpreting);
    cpu.flags.set(unpack(cpu.shared.flags));
    cpu.regs.set_block_rip(single.base);
    let op = &single.ops[0];
    let before = cpu.before_single();
    let mut leave = (op.handler.get())(cpu, op);
    cpu.count_single(single, before, leave);
    // What is compared is left behind the block anyway.
    let wanted = leave == Leave::On && cpu.wake.wanted() && cpu.translator.both.is_none();
    if leave == Leave::On && (wanted || !cpu.may_go_on()) {
        cpu.rip = cpu.rip_after(op);
        leave = Leave::Look;
    }
    let goal = match leave {
        Leave::On | Leave::Halt => None,
        _ => cpu.transfer(&mut leave),
    };
    cpu.share();
    if goal.is_none() && leave != Leave::On {
        // Not the instruction's doing, if it could have gone on.
        cpu.translator.counts.left += u64::from(!wanted);
    } else {
        cpu.gauge.set(Doing::Translated);
    }
    goal.unwrap_or(leave as u64)
}

/// RFLAGS' status flags from LAHF's byte and OF.
fn unpack(flags: u64) -> u64 {
    flags >> 8 & 0xff | (flags & 1) << 11
}

fn pack(rflags: u64) -> u64 {
    (rflags & 0xff) << 8 | rflags >> 11 & 1
}

impl Cpu {
    /// Whether translated code may follow the instruction that the interpreter has just executed.
    fn may_go_on(&self) -> bool {
        !self.shared.stop && self.mode == LONG && self.class != Class::Uncached
    }

    /// Tells translated code the flags and the context.
    fn share(&mut self) {
        self.wake.gate().open();
        if self.pool.take_forgot() {
            self.translator.disconnect_far();
        }
        self.shared.flags = pack(self.flags.get() | 2);
        self.shared.ctx = std::ptr::from_ref(self.ctx()) as u64;
        if self.cpl == 3 {
            self.shared.user = self.shared.ctx;
        }
        self.shared.jumps = self.jumps().first() as u64;
        self.shared.ready = self.sse_raises_nothing();
        self.shared.supervisors = self.supervisors();
    }

    /// Executes translated code at `code`, and whatever it leads to.
    pub fn run_code(&mut self, code: u64) -> Leave {
        let Some(glue) = self.translator.glue() else {
            return Leave::Look;
        };
        self.share();
        self.shared.link = 0;
        self.shared.stop = false;
        self.shared.inside = true;
        debug_assert_eq!(self.mode, LONG);
        let left = self.translator.counts.left;
        self.gauge.set(Doing::Translated);
        let cpu: *mut Self = self;
        // SAFETY: `code` is that of a living unit of this processor (jumps to others were dropped with
        // them), made for this mode. It touches guest memory through translation caches only, as the
        // interpreter does, and the processor through `cpu`.
        let leave = unsafe { (glue.enter)(cpu, code) };
        self.gauge.set(Doing::Interpreting);
        self.shared.inside = false;
        self.count_exit(left);
        self.flags.set(unpack(self.shared.flags));
        match leave {
            0 => Leave::Done,
            1 => Leave::Fault,
            3 => Leave::Halt,
            _ => Leave::Look,
        }
    }
}

const _: () = assert!(Leave::Done as u8 == 0 && Leave::Fault as u8 == 1 && Leave::Halt as u8 == 3);

/// Makes this processor forget what it fetched of code that is new under an old address. Such an address
/// was written through another one, for which the manual asks for a serialising instruction (SDM vol. 3,
/// 8.1.3); IRET is the one that programs may execute and no hypervisor traps.
pub fn serialize() {
    // SAFETY: returns to the next instruction with the same stack pointer, flags, and segments; the red
    // zone is stepped over.
    unsafe {
        std::arch::asm!(
            "mov {sp}, rsp",
            "sub rsp, 128",
            "and rsp, -16",
            "mov {t:e}, ss",
            "push {t}",
            "push {sp}",
            "pushfq",
            "mov {t:e}, cs",
            "push {t}",
            "lea {t}, [rip + 2f]",
            "push {t}",
            "iretq",
            "2:",
            sp = out(reg) _,
            t = out(reg) _,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_survive_the_passage() {
        for rflags in [0, 1, 4, 0x10, 0x40, 0x80, 0x800, 0x8d5] {
            assert_eq!(unpack(pack(rflags)), rflags);
        }
    }

    #[test]
    fn serialising_comes_back() {
        serialize();
    }

    #[test]
    fn registers_are_within_a_short_reach() {
        assert!(register(15) < 128, "offsets of one byte");
    }
}
