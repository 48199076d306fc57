//! One instruction, run twice: on this machine and on the software processor.
//!
//! ```text
//!   0x4000_0000  code      load state · instruction · store state · jump through EXIT
//!   0x4001_0000  IN, OUT   general registers, flags, FXSAVE image
//!   0x4002_0000  memory    what the instruction may address
//! ```
//! The native copy leaves through a routine that restores this program's registers, the guest's
//! copy through UD2 with an empty interrupt table.

pub mod generate;
#[path = "../processor/mod.rs"]
mod processor;

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};
use processor::{Nothing, Processor};
use std::arch::global_asm;
use umbra_cpu::{Exit, Vcpu};
use umbra_cpu_soft::model;
use umbra_x86::state::{CpuState, Segment};
use umbra_x86::{cr0, cr4, efer};

pub const BASE: u64 = 0x4000_0000;
pub const SIZE: usize = 0x20_0000;
const IN: u64 = BASE + 0x1_0000;
const OUT: u64 = BASE + 0x1_1000;
const EXIT: u64 = BASE + 0x1_2000;
const GUEST_END: u64 = BASE + 0x1_3000;
/// What an instruction may read and write.
pub const MEMORY: u64 = BASE + 0x2_0000;
pub const MEMORY_LEN: usize = 0x2000;
const SCRATCH_STACK: u64 = BASE + 0x3_0000;
const FX: u64 = 0x200;

/// State before, and the instruction.
pub struct Case {
    pub insn: Instruction,
    pub gpr: [u64; 16],
    pub flags: u64,
    pub fx: [u8; 512],
    pub memory: Vec<u8>,
}

/// State after.
#[derive(Debug)]
pub struct Outcome {
    pub gpr: [u64; 16],
    pub flags: u64,
    pub fx: Vec<u8>,
    pub memory: Vec<u8>,
    pub crash: Option<String>,
}

global_asm!(
    ".globl umbra_native_run",
    "umbra_native_run:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [0x40012008], rsp",
    "mov eax, 0x40000000",
    "jmp rax",
    ".globl umbra_native_back",
    "umbra_native_back:",
    "mov rsp, [0x40012008]",
    "cld",
    "fninit",
    "push 0x1f80",
    "ldmxcsr [rsp]",
    "pop rax",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
);

unsafe extern "sysv64" {
    fn umbra_native_run();
    fn umbra_native_back();
}

/// Emits the code of a case.
fn code(case: &Case) -> Vec<u8> {
    let mut list = Vec::new();
    let mut put = |insn: Instruction| list.push(insn);
    let abs = |a: u64| MemoryOperand::with_displ(a, 4);
    let one = |code, op: MemoryOperand| Instruction::with1(code, op).expect("valid");
    let load = |r, a| Instruction::with2(Code::Mov_r64_rm64, r, abs(a)).expect("valid");
    let store = |a, r| Instruction::with2(Code::Mov_rm64_r64, abs(a), r).expect("valid");
    let registers = [
        Register::RAX,
        Register::RCX,
        Register::RDX,
        Register::RBX,
        Register::RSP,
        Register::RBP,
        Register::RSI,
        Register::RDI,
        Register::R8,
        Register::R9,
        Register::R10,
        Register::R11,
        Register::R12,
        Register::R13,
        Register::R14,
        Register::R15,
    ];
    put(one(Code::Fxrstor64_m512byte, abs(IN + FX)));
    put(Instruction::with2(Code::Mov_r64_imm64, Register::RSP, SCRATCH_STACK).expect("valid"));
    put(one(Code::Push_rm64, abs(IN + 128)));
    put(Instruction::with(Code::Popfq));
    for (i, r) in registers.iter().enumerate() {
        put(load(*r, IN + 8 * i as u64));
    }
    put(case.insn);
    if is_branch(&case.insn) {
        // What a taken branch skips: an addition that leaves the flags alone.
        let source = MemoryOperand::with_base_displ(Register::R11, 1);
        put(Instruction::with2(Code::Lea_r64_m, Register::R11, source).expect("valid"));
    }
    for (i, r) in registers.iter().enumerate() {
        put(store(OUT + 8 * i as u64, *r));
    }
    put(Instruction::with2(Code::Mov_r64_imm64, Register::RSP, SCRATCH_STACK).expect("valid"));
    put(Instruction::with(Code::Pushfq));
    put(one(Code::Pop_rm64, abs(OUT + 128)));
    put(one(Code::Fxsave64_m512byte, abs(OUT + FX)));
    put(one(Code::Jmp_rm64, abs(EXIT)));
    encode(list)
}

fn is_branch(insn: &Instruction) -> bool {
    insn.op_count() > 0 && insn.op0_kind() == iced_x86::OpKind::NearBranch64
}

/// Lays the instructions out from [`BASE`]; a branch goes over the one behind it.
fn encode(list: Vec<Instruction>) -> Vec<u8> {
    let mut encoder = Encoder::new(64);
    let mut at = BASE;
    let mut rest = list.into_iter().peekable();
    while let Some(mut insn) = rest.next() {
        if is_branch(&insn) {
            let len = |insn: &Instruction| {
                Encoder::new(64)
                    .encode(insn, at)
                    .expect("harness code encodes") as u64
            };
            insn.set_near_branch64(at);
            let skipped = rest.peek().map_or(0, len);
            insn.set_near_branch64(at + len(&insn) + skipped);
        }
        at += encoder.encode(&insn, at).expect("harness code encodes") as u64;
    }
    encoder.take_buffer()
}

fn input(case: &Case) -> Vec<u8> {
    let mut bytes: Vec<u8> = case.gpr.iter().flat_map(|v| v.to_le_bytes()).collect();
    bytes.extend(case.flags.to_le_bytes());
    bytes.resize(FX as usize, 0);
    bytes.extend(case.fx);
    bytes
}

fn outcome(out: &[u8], memory: Vec<u8>, crash: Option<String>) -> Outcome {
    let word =
        |i: usize| u64::from_le_bytes(out[8 * i..8 * i + 8].try_into().expect("eight bytes"));
    let mut gpr = [0; 16];
    for (i, value) in gpr.iter_mut().enumerate() {
        *value = word(i);
    }
    Outcome {
        gpr,
        flags: word(16),
        fx: out[FX as usize..FX as usize + 512].to_vec(),
        memory,
        crash,
    }
}

/// Only one test may own the fixed addresses of this process at a time.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// This machine's processor.
pub struct Host {
    _turn: std::sync::MutexGuard<'static, ()>,
}

impl Host {
    pub fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(|e| e.into_inner());
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: maps fresh memory at an address that is free (NOREPLACE), or fails.
        let at = unsafe { libc::mmap(BASE as *mut _, SIZE, protection, flags, -1, 0) };
        assert_eq!(at as u64, BASE, "cannot map the test area");
        Self { _turn: turn }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // SAFETY: inside the area that `new` mapped; nobody else refers to it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        // SAFETY: as in `put`.
        unsafe { std::slice::from_raw_parts(at as *const u8, len) }.to_vec()
    }

    pub fn run(&self, case: &Case) -> Outcome {
        self.put(BASE, &code(case));
        self.put(IN, &input(case));
        self.put(MEMORY, &case.memory);
        self.put(EXIT, &(umbra_native_back as *const () as u64).to_le_bytes());
        // SAFETY: the code loads registers, executes one unprivileged instruction whose memory
        // operand lies in the area, stores them and comes back through `umbra_native_back`.
        unsafe { umbra_native_run() };
        outcome(&self.get(OUT, 0x400), self.get(MEMORY, MEMORY_LEN), None)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: the area that `new` mapped.
        unsafe { libc::munmap(BASE as *mut _, SIZE) };
    }
}

/// The software processor.
pub struct Guest {
    processor: Processor,
    state: CpuState,
}

/// Guest-physical address of the test area.
const AREA_GPA: u64 = 0x20_0000;

impl Guest {
    pub fn new() -> Self {
        let processor = Processor::new(model::maximal(0, 1));
        let guest = Self {
            processor,
            state: long_mode(),
        };
        // Level 4, level 3, level 2: one 2 MiB page at BASE.
        guest.put_physical(0x1000, &0x2007u64.to_le_bytes());
        guest.put_physical(0x2000 + 8 * (BASE >> 30), &0x3007u64.to_le_bytes());
        guest.put_physical(
            0x3000 + 8 * (BASE >> 21 & 511),
            &(AREA_GPA | 0x87).to_le_bytes(),
        );
        guest
    }

    fn put_physical(&self, gpa: u64, bytes: &[u8]) {
        self.processor.write(gpa, bytes);
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.put_physical(at - BASE + AREA_GPA, bytes);
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.processor.read(at - BASE + AREA_GPA, &mut bytes);
        bytes
    }

    pub fn run(&mut self, case: &Case) -> Outcome {
        // The harness writes code behind the processor's back: a fresh copy each time, 4 KiB apart,
        // would exhaust the area, so stale blocks are avoided by a store from the guest's side.
        self.put(MEMORY, &case.memory);
        self.put(IN, &input(case));
        self.put(EXIT, &GUEST_END.to_le_bytes());
        self.put(GUEST_END, &[0x0f, 0x0b]);
        self.write_code(&code(case));
        let crash = self.execute(BASE);
        outcome(&self.get(OUT, 0x400), self.get(MEMORY, MEMORY_LEN), crash)
    }

    /// Has the guest itself copy the code into place: REP MOVSB from a staging area.
    fn write_code(&mut self, code: &[u8]) {
        const STAGING: u64 = BASE + 0x10_0000;
        const COPIER: u64 = BASE + 0x11_0000;
        self.put(STAGING, code);
        self.put(COPIER, &[0xf3, 0xa4, 0x0f, 0x0b]);
        let mut state = self.state.clone();
        state.gpr[6] = STAGING;
        state.gpr[7] = BASE;
        state.gpr[1] = code.len() as u64;
        state.rip = COPIER;
        let crash = self.run_state(&state, COPIER + 2);
        assert_eq!(crash, None);
    }

    fn execute(&mut self, rip: u64) -> Option<String> {
        let state = CpuState {
            rip,
            ..self.state.clone()
        };
        self.run_state(&state, GUEST_END)
    }

    fn run_state(&mut self, state: &CpuState, end: u64) -> Option<String> {
        self.processor.vcpu.set_state(state).expect("valid state");
        match self
            .processor
            .vcpu
            .run(&Nothing)
            .expect("the host allows it")
        {
            Exit::Shutdown(crash) if crash.state.rip == end => None,
            Exit::Shutdown(crash) => Some(format!("{} at {:#x}", crash.reason, crash.state.rip)),
            other => Some(format!("{other:?}")),
        }
    }
}

/// 64-bit mode at privilege level 0, interrupts off, empty interrupt table.
fn long_mode() -> CpuState {
    let data = Segment {
        selector: 0x10,
        base: 0,
        limit: u32::MAX,
        attr: 0xc093,
    };
    let code = Segment {
        selector: 8,
        base: 0,
        limit: u32::MAX,
        attr: 0xa09b,
    };
    let mut state = CpuState {
        cr0: cr0::PE | cr0::MP | cr0::NE | cr0::WP | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT,
        efer: efer::LME | efer::LMA | efer::NXE | efer::SCE,
        rflags: 2,
        seg: [data, code, data, data, data, data],
        ..CpuState::default()
    };
    state.idtr.limit = 0;
    state.gpr[4] = SCRATCH_STACK;
    state
}
