//! This machine's processor: a jump into the sequence, and a signal out of it.

use std::arch::{asm, global_asm};
use std::cell::UnsafeCell;
use std::mem::{MaybeUninit, offset_of, zeroed};
use std::sync::{Mutex, MutexGuard};

use libc::{
    REG_CR2, REG_EFL, REG_ERR, REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14,
    REG_R15, REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RIP, REG_RSI, REG_RSP,
    REG_TRAPNO,
};

use super::{CODE, CODE_LEN, Case, INT3, MEMORY, MEMORY_LEN, Outcome, WINDOW, WINDOW_LEN};

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

/// What the way in, the handler and `run` exchange.
#[repr(C, align(64))]
struct Exchange {
    fx: [u8; 512],
    gpr: [u64; 16],
    flags: u64,
    rip: u64,
    stack: u64,
    outcome: MaybeUninit<Outcome>,
}

/// A place that the handler reaches without a lock.
#[repr(transparent)]
struct Shared(UnsafeCell<MaybeUninit<Exchange>>);

// SAFETY: `run` and the handler that it provokes are one thread, and `TURN` lets only one test in.
unsafe impl Sync for Shared {}

static EXCHANGE: Shared = Shared(UnsafeCell::new(MaybeUninit::zeroed()));

global_asm!(
    ".globl umbra_sequence_run",
    "umbra_sequence_run:",
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "mov [rip + {x} + {stack}], rsp",
    "fxrstor64 [rip + {x}]",
    "push [rip + {x} + {flags}]",
    "popfq",
    "mov rax, [rip + {x} + 512]",
    "mov rcx, [rip + {x} + 520]",
    "mov rdx, [rip + {x} + 528]",
    "mov rbx, [rip + {x} + 536]",
    "mov rsp, [rip + {x} + 544]",
    "mov rbp, [rip + {x} + 552]",
    "mov rsi, [rip + {x} + 560]",
    "mov rdi, [rip + {x} + 568]",
    "mov r8, [rip + {x} + 576]",
    "mov r9, [rip + {x} + 584]",
    "mov r10, [rip + {x} + 592]",
    "mov r11, [rip + {x} + 600]",
    "mov r12, [rip + {x} + 608]",
    "mov r13, [rip + {x} + 616]",
    "mov r14, [rip + {x} + 624]",
    "mov r15, [rip + {x} + 632]",
    "jmp [rip + {x} + {rip}]",
    ".globl umbra_sequence_back",
    "umbra_sequence_back:",
    // What no signal frame restores: NT and ID.
    "pushfq",
    "and qword ptr [rsp], {mask}",
    "popfq",
    "fninit",
    "push 0x1f80",
    "ldmxcsr [rsp]",
    "pop rax",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "ret",
    x = sym EXCHANGE,
    stack = const offset_of!(Exchange, stack),
    flags = const offset_of!(Exchange, flags),
    rip = const offset_of!(Exchange, rip),
    mask = const !0x24_4400i32,
);

unsafe extern "sysv64" {
    fn umbra_sequence_run();
    fn umbra_sequence_back();
}

/// Only one test may own the signals and the addresses of this process.
static TURN: Mutex<()> = Mutex::new(());

pub struct Host {
    _turn: MutexGuard<'static, ()>,
    _stack: Vec<u8>,
}

fn map(at: u64, len: usize, protection: libc::c_int) {
    let flags =
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    // SAFETY: maps fresh memory at an address that is free (NOREPLACE), or fails.
    let got = unsafe { libc::mmap(at as *mut _, len, protection, flags, -1, 0) };
    assert_eq!(got as u64, at, "cannot map the test area");
}

impl Host {
    pub fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
        let data = libc::PROT_READ | libc::PROT_WRITE;
        map(CODE, CODE_LEN, data | libc::PROT_EXEC);
        map(MEMORY, MEMORY_LEN, data);
        // SAFETY: mapped just now.
        unsafe { std::ptr::write_bytes(CODE as *mut u8, INT3, CODE_LEN) };
        let stack = vec![0u8; 1 << 18];
        let description = libc::stack_t {
            ss_sp: stack.as_ptr() as *mut _,
            ss_flags: 0,
            ss_size: stack.len(),
        };
        // SAFETY: the stack lives as long as the value that is returned; a zeroed sigaction is a
        // valid one, and the handler has the three arguments that SA_SIGINFO gives it.
        unsafe {
            assert_eq!(libc::sigaltstack(&description, std::ptr::null_mut()), 0);
            for signal in SIGNALS {
                let mut action: libc::sigaction = zeroed();
                action.sa_sigaction = leave as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
            }
        }
        Self {
            _turn: turn,
            _stack: stack,
        }
    }

    /// Runs a case whose code has been laid out in `window`.
    pub fn run(&mut self, case: &Case, window: &[u8; WINDOW_LEN]) -> Outcome {
        put(WINDOW, window);
        put(MEMORY, &case.memory);
        // SAFETY: the way in and the handler run on this thread, inside this call, and nobody else
        // touches the exchange while `_turn` is held. What the sequence can reach by a pointer that
        // it was given is the area; a number that it makes up meets nothing but by a miracle.
        unsafe {
            let exchange = (*EXCHANGE.0.get()).as_mut_ptr();
            (*exchange).fx = case.fx;
            (*exchange).gpr = case.gpr;
            (*exchange).flags = case.flags | 0x202;
            (*exchange).rip = case.start;
            umbra_sequence_run();
            (*exchange).outcome.assume_init_read()
        }
    }

    /// The memory afterwards.
    pub fn memory(&self) -> &[u8] {
        // SAFETY: mapped by `new`; only `run`, which takes `&mut self`, writes it.
        unsafe { std::slice::from_raw_parts(MEMORY as *const u8, MEMORY_LEN) }
    }
}

fn put(at: u64, bytes: &[u8]) {
    // SAFETY: inside the area that `new` mapped; nobody refers to it now.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: default actions and no alternate stack, as before; what `new` mapped.
        unsafe {
            for signal in SIGNALS {
                libc::signal(signal, libc::SIG_DFL);
            }
            let mut none: libc::stack_t = zeroed();
            none.ss_flags = libc::SS_DISABLE;
            libc::sigaltstack(&none, std::ptr::null_mut());
            libc::munmap(CODE as *mut _, CODE_LEN);
            libc::munmap(MEMORY as *mut _, MEMORY_LEN);
        }
    }
}

extern "C" fn leave(_: libc::c_int, _: *mut u8, context: *mut libc::ucontext_t) {
    // SAFETY: called by the kernel inside `run`, with its frame; see there. The frame has the
    // FXSAVE image where `fpregs` says.
    unsafe {
        // A case may have asked for alignment checks, which are none of this code's business.
        asm!("pushfq", "and qword ptr [rsp], {0}", "popfq", const !0x4_0000i32);
        let exchange = (*EXCHANGE.0.get()).as_mut_ptr();
        let machine = &mut (*context).uc_mcontext;
        let gregs = &mut machine.gregs;
        let word = |register: libc::c_int| gregs[register as usize] as u64;
        (*exchange).outcome.write(Outcome {
            gpr: REGISTERS.map(word),
            rip: word(REG_RIP),
            flags: word(REG_EFL),
            fx: *machine.fpregs.cast(),
            vector: word(REG_TRAPNO) as u8,
            error: word(REG_ERR),
            cr2: word(REG_CR2),
        });
        gregs[REG_RSP as usize] = (*exchange).stack as i64;
        gregs[REG_RIP as usize] = umbra_sequence_back as *const () as i64;
        gregs[REG_EFL as usize] = 0x202;
    }
}
