//! This machine's processor: signals carry the state in and out.
//!
//! ```text
//!   raise(SIGUSR1) ──> enter: puts the case into the signal frame, returns into it
//!   the case runs in compatibility mode until something faults (INT3 behind it at the latest)
//!   SIGSEGV, … ──────> leave: takes the result out of the frame, puts this program back
//! ```
//! Only the kernel's own entry and return are used, so whatever the case does to the segment
//! registers, it comes back to 64-bit code here. FS belongs to this program's threads: no case
//! loads it.

use std::arch::asm;
use std::cell::UnsafeCell;
use std::mem::{MaybeUninit, zeroed};
use std::sync::{Mutex, MutexGuard};

use libc::{
    REG_CR2, REG_CSGSFS, REG_EFL, REG_ERR, REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13,
    REG_R14, REG_R15, REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RIP, REG_RSI,
    REG_RSP, REG_TRAPNO,
};

use super::tables::LDT;
use super::{AREA, Case, DATA, HOLE, MEMORY, MEMORY_LEN, Outcome, SIZE};

const REGISTERS: [libc::c_int; 16] = [
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9,
    REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
];
const SIGNALS: [libc::c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
    libc::SIGBUS,
];
/// Where the header of an XSAVE image follows the FXSAVE image.
const XSTATE_BV: usize = 512;
/// The kernel's own bytes in the FXSAVE image.
const RESERVED: std::ops::Range<usize> = 464..512;

/// What handlers and `run` exchange.
struct Exchange {
    case: *const Case,
    registers: [i64; 23],
    fx: [u8; 512],
    outcome: Option<Outcome>,
}

/// A place that handlers reach without a lock.
struct Shared(UnsafeCell<Exchange>);

// SAFETY: `run` and the handlers that it provokes are one thread, and `TURN` lets only one test in.
unsafe impl Sync for Shared {}

static EXCHANGE: Shared = Shared(UnsafeCell::new(Exchange {
    case: std::ptr::null(),
    registers: [0; 23],
    fx: [0; 512],
    outcome: None,
}));

/// Only one test may own the signals, the descriptor table and the addresses of this process.
static TURN: Mutex<()> = Mutex::new(());

pub struct Host {
    _turn: MutexGuard<'static, ()>,
    _stack: Vec<u8>,
}

fn map(at: u64, len: usize, protection: libc::c_int) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: inside the area, which `Host::new` has found free and owns from then on.
    let got = unsafe { libc::mmap(at as *mut _, len, protection, flags, -1, 0) };
    assert_eq!(got as u64, at, "cannot map the test area");
}

fn handle(
    signal: libc::c_int,
    handler: extern "C" fn(libc::c_int, *mut u8, *mut libc::ucontext_t),
) {
    // SAFETY: a zeroed sigaction is a valid one; the handler has the three arguments that
    // SA_SIGINFO gives it.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

impl Host {
    /// Takes the processor; `None` with a reason where the kernel lets no process have 16- and
    /// 32-bit segments.
    pub fn new() -> Result<Self, String> {
        let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
        for entry in &LDT {
            // SAFETY: modify_ldt(2) reads one `struct user_desc`; 0x11 is "write", in the new mode.
            let done = unsafe {
                libc::syscall(
                    libc::SYS_modify_ldt,
                    0x11,
                    std::ptr::from_ref(entry),
                    size_of_val(entry),
                )
            };
            if done != 0 {
                return Err(format!("entry {}: {done:#x}", entry.number));
            }
        }
        map(
            AREA,
            SIZE,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        );
        map(
            DATA,
            (HOLE - DATA) as usize,
            libc::PROT_READ | libc::PROT_WRITE,
        );
        // What is decoded across the end of the code page must be nothing that the kernel imitates.
        // SAFETY: mapped just now.
        unsafe { std::ptr::write_bytes(DATA as *mut u8, super::INT3, 0x1000) };
        map(HOLE, SIZE - (HOLE - AREA) as usize, libc::PROT_NONE);
        let stack = vec![0u8; 1 << 18];
        let description = libc::stack_t {
            ss_sp: stack.as_ptr() as *mut _,
            ss_flags: 0,
            ss_size: stack.len(),
        };
        // SAFETY: the memory lives as long as the value that is returned.
        let set = unsafe { libc::sigaltstack(&description, std::ptr::null_mut()) };
        assert_eq!(set, 0);
        handle(libc::SIGUSR1, enter);
        for signal in SIGNALS {
            handle(signal, leave);
        }
        Ok(Self {
            _turn: turn,
            _stack: stack,
        })
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // SAFETY: inside the area that `new` mapped; nobody else refers to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }

    pub fn run(&mut self, case: &Case) -> Outcome {
        self.put(AREA, &case.page());
        self.put(MEMORY, &case.memory);
        // SAFETY: the handlers run on this thread, inside `raise`, and nobody else touches the
        // exchange while `_turn` is held.
        let mut outcome = unsafe {
            // What a case left in NT and ID, which no signal frame restores.
            asm!("pushfq", "and qword ptr [rsp], {0}", "popfq", const !0x20_4000i32);
            (*EXCHANGE.0.get()).case = case;
            libc::raise(libc::SIGUSR1);
            (*EXCHANGE.0.get()).outcome.take().expect("the case ended")
        };
        // SAFETY: inside the area.
        outcome.memory =
            unsafe { std::slice::from_raw_parts(MEMORY as *const u8, MEMORY_LEN) }.to_vec();
        outcome
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: default actions and no alternate stack, as before; the area that `new` mapped.
        unsafe {
            for signal in SIGNALS {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::stack_t = MaybeUninit::zeroed().assume_init();
            none.ss_flags = libc::SS_DISABLE;
            libc::sigaltstack(&none, std::ptr::null_mut());
            libc::munmap(AREA as *mut _, SIZE);
        }
    }
}

/// The FXSAVE image of a frame, and its XSTATE_BV.
unsafe fn image<'a>(context: *mut libc::ucontext_t) -> (&'a mut [u8; 512], *mut u64) {
    // SAFETY: the kernel's frame has the image where `fpregs` says, 64-byte aligned, and behind it
    // the XSAVE header, as every x86-64 kernel since 2.6.30 makes it.
    unsafe {
        let at = (*context).uc_mcontext.fpregs.cast::<u8>();
        (&mut *at.cast(), at.add(XSTATE_BV).cast())
    }
}

fn exchange_image(to: &mut [u8; 512], from: &[u8; 512]) {
    to[..RESERVED.start].copy_from_slice(&from[..RESERVED.start]);
}

extern "C" fn enter(_: libc::c_int, _: *mut u8, context: *mut libc::ucontext_t) {
    // SAFETY: called by the kernel inside `run`, with its frame; see there.
    unsafe {
        let exchange = &mut *EXCHANGE.0.get();
        let case = &*exchange.case;
        let gregs = &mut (*context).uc_mcontext.gregs;
        exchange.registers.copy_from_slice(gregs);
        let (fx, present) = image(context);
        exchange.fx = *fx;
        exchange_image(fx, &case.fx);
        // Else the kernel would take the initial values instead.
        *present |= 3;
        for (register, value) in REGISTERS.into_iter().zip(case.gpr) {
            gregs[register as usize] = value as i64;
        }
        gregs[REG_RIP as usize] = case.rip() as i64;
        gregs[REG_EFL as usize] = i64::from(case.flags | 0x202);
        let others = gregs[REG_CSGSFS as usize] & 0x0000_ffff_ffff_0000;
        gregs[REG_CSGSFS as usize] = others | i64::from(case.cs) | i64::from(case.ss) << 48;
        // 64-bit code does not use these; the kernel leaves them alone.
        asm!("mov ds, {0:x}", "mov es, {1:x}", in(reg) case.ds, in(reg) case.es);
    }
}

extern "C" fn leave(_: libc::c_int, _: *mut u8, context: *mut libc::ucontext_t) {
    let (ds, es): (u16, u16);
    // SAFETY: called by the kernel inside `run`, with its frame; see there. Null selectors are what
    // 64-bit processes have in DS and ES.
    unsafe {
        // A case may have asked for alignment checks, which are none of this code's business.
        asm!("pushfq", "and qword ptr [rsp], {0}", "popfq", const !0x4_0000i32);
        asm!("mov {0:x}, ds", "mov {1:x}, es", "mov ds, {2:x}", "mov es, {2:x}",
             out(reg) ds, out(reg) es, in(reg) 0u16);
        let exchange = &mut *EXCHANGE.0.get();
        let gregs = &mut (*context).uc_mcontext.gregs;
        let selectors = gregs[REG_CSGSFS as usize] as u64;
        let (fx, present) = image(context);
        let mut outcome = Outcome {
            gpr: REGISTERS.map(|register| gregs[register as usize] as u64),
            rip: gregs[REG_RIP as usize] as u64,
            flags: gregs[REG_EFL as usize] as u32,
            selectors: [selectors as u16, (selectors >> 48) as u16, ds, es],
            fx: *fx,
            vector: gregs[REG_TRAPNO as usize] as u8,
            error: gregs[REG_ERR as usize] as u32,
            cr2: gregs[REG_CR2 as usize] as u64,
            memory: Vec::new(),
        };
        if outcome.vector != 14 {
            outcome.cr2 = 0;
        }
        exchange.outcome = Some(outcome);
        gregs.copy_from_slice(&exchange.registers);
        exchange_image(fx, &exchange.fx);
        *present |= 3;
    }
}
