//! One-instruction stubs: x87, MMX and SSE instructions run on the host processor itself.
//!
//! ```text
//!   decoded instruction ── memory operand becomes [r9], general register becomes rax ──> stub
//!
//!   stub(fx, memory, regs, frame):   load the registers it names from the guest's state
//!                                    the instruction
//!                                    store the registers it changed
//! ```
//! XMM registers keep their numbers. The memory operand is always a buffer of ours: handlers move
//! guest bytes in and out through the checked paths, so a stub can reach nothing of the guest's and
//! cannot fault. Exceptions stay masked while it runs; unmasked ones are raised from the flags
//! that it leaves.
//!
//! Stubs live in a memory file mapped twice, once writable and once executable: no mapping is
//! both. They are cached by their code, so their number is bounded by what can be encoded, and
//! by [`Stubs::full`].

use std::ptr::NonNull;

use iced_x86::{
    Code, CpuidFeature, Encoder, Instruction, InstructionInfoFactory, MemoryOperand, Mnemonic,
    OpAccess, OpKind, Register,
};
use rustc_hash::FxHashMap;

use crate::fpu::XMM;

/// What a stub is called with besides registers and memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// MXCSR while the instruction runs; its flags afterwards.
    pub mxcsr: u32,
    /// This program's MXCSR, to go back to.
    pub host_mxcsr: u32,
    /// Status flags before and after.
    pub flags: u64,
}

/// A stub: state image, memory operand, general registers, frame.
pub type Stub = unsafe extern "sysv64" fn(*mut u8, *mut u8, *mut u64, *mut Frame);

/// What kind of state an instruction needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// SSE registers.
    Sse,
    /// MMX registers, possibly with SSE ones.
    Mmx,
    /// The x87 stack.
    X87,
}

/// How a handler has to call a stub.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The code.
    pub stub: Stub,
    /// The unit.
    pub unit: Unit,
    /// Bytes of the memory operand, 0 without one.
    pub memory: usize,
    /// Memory is read.
    pub reads: bool,
    /// Memory is written.
    pub writes: bool,
    /// MXCSR matters.
    pub float: bool,
    /// Status flags are written.
    pub flags: bool,
    /// The memory operand must be a multiple of sixteen.
    pub aligned: bool,
    /// An x87 instruction that does not look for pending errors.
    pub no_wait: bool,
    /// An x87 instruction that leaves the instruction and data pointers alone.
    pub control: bool,
}

/// Why there is no stub.
#[derive(Debug, thiserror::Error)]
pub enum NativeError {
    /// The host refused executable memory.
    #[error("no executable memory")]
    Memory(#[from] rustix::io::Errno),
    /// The instruction is none that runs natively.
    #[error("not an x87, MMX or SSE instruction of this model")]
    NotNative,
    /// It could not be encoded.
    #[error("cannot encode: {0}")]
    Encode(String),
}

/// The status flags as the decoder names them; it counts x87 condition codes among the flags.
const STATUS: u32 = iced_x86::RflagsBits::OF
    | iced_x86::RflagsBits::SF
    | iced_x86::RflagsBits::ZF
    | iced_x86::RflagsBits::AF
    | iced_x86::RflagsBits::CF
    | iced_x86::RflagsBits::PF;

/// Bytes of one code area.
const AREA: usize = 256 << 10;
/// Areas before everything is dropped.
const MAX_AREAS: usize = 128;

struct Area {
    write: NonNull<u8>,
    execute: NonNull<u8>,
    used: usize,
}

// SAFETY: the mappings belong to the area alone and are plain memory.
unsafe impl Send for Area {}

impl Area {
    fn new() -> Result<Self, NativeError> {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let file = memfd_create("umbra-stubs", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, AREA as u64)?;
        let map = |prot| {
            // SAFETY: a new mapping at an address of the kernel's choice, of a file that nobody
            // else has; it replaces nothing.
            unsafe { mmap(std::ptr::null_mut(), AREA, prot, MapFlags::SHARED, &file, 0) }
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?;
        let execute = map(ProtFlags::READ | ProtFlags::EXEC)?;
        let pointer = |p: *mut std::ffi::c_void| {
            NonNull::new(p.cast()).ok_or(NativeError::Memory(rustix::io::Errno::NOMEM))
        };
        Ok(Self {
            write: pointer(write)?,
            execute: pointer(execute)?,
            used: 0,
        })
    }

    /// Copies `code` in; returns where it executes, or `None` when the area is full.
    fn add(&mut self, code: &[u8]) -> Option<Stub> {
        let at = self.used.next_multiple_of(16);
        let end = at.checked_add(code.len()).filter(|end| *end <= AREA)?;
        // SAFETY: `at..end` lies inside the writable mapping and nothing executes there yet. The
        // code was made by `assemble`, follows the stub convention and ends with RET.
        let stub = unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.as_ptr().add(at), code.len());
            std::mem::transmute::<*mut u8, Stub>(self.execute.as_ptr().add(at))
        };
        self.used = end;
        Some(stub)
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        for mapping in [self.write, self.execute] {
            // SAFETY: the mapping is ours, and the stubs in it are called by the processor that
            // owns this area only.
            let _ = unsafe { rustix::mm::munmap(mapping.as_ptr().cast(), AREA) };
        }
    }
}

/// The stubs of one processor.
pub struct Stubs {
    areas: Vec<Area>,
    known: FxHashMap<Vec<u8>, Stub>,
    /// What the stub at an address is made of; only those that may raise SIMD exceptions.
    floats: FxHashMap<usize, Instruction>,
    info: InstructionInfoFactory,
}

impl Stubs {
    /// Makes an empty set; fails where the host allows no executable memory.
    pub fn new() -> Result<Self, NativeError> {
        let known = FxHashMap::default();
        Ok(Self {
            areas: vec![Area::new()?],
            known,
            floats: FxHashMap::default(),
            info: InstructionInfoFactory::new(),
        })
    }

    /// Tells whether the set should be replaced by an empty one at the next chance.
    pub fn full(&self) -> bool {
        self.areas.len() > MAX_AREAS
    }

    /// Drops all stubs. No decoded block may refer to one.
    pub fn clear(&mut self) {
        self.known.clear();
        self.floats.clear();
        self.areas.truncate(1);
        self.areas.iter_mut().for_each(|a| a.used = 0);
    }

    /// The instruction of a stub that [`Plan::float`] is set for.
    pub fn instruction(&self, stub: Stub) -> Option<&Instruction> {
        self.floats.get(&(stub as usize))
    }

    /// Makes a stub for `insn`, or finds one.
    pub fn plan(&mut self, insn: &Instruction) -> Result<Plan, NativeError> {
        let unit = unit(insn).ok_or(NativeError::NotNative)?;
        let float = unit == Unit::Sse && is_float(insn) || unit == Unit::Mmx && is_float(insn);
        let shape = self.shape(insn, unit, float)?;
        let code = shape.assemble()?;
        let stub = match self.known.get(&code) {
            Some(stub) => *stub,
            None => self.add(code)?,
        };
        if float {
            self.floats.insert(stub as usize, shape.insn);
        }
        let memory = if shape.memory.is_some() {
            insn.memory_size().size()
        } else {
            0
        };
        let access = shape.memory.unwrap_or(OpAccess::None);
        Ok(Plan {
            stub,
            unit,
            memory,
            reads: reads(access),
            writes: writes(access),
            float,
            flags: insn.rflags_modified() & STATUS != 0,
            aligned: memory == 16 && must_align(insn.mnemonic()),
            no_wait: is_no_wait(insn.mnemonic()),
            control: is_control(insn.mnemonic()),
        })
    }

    fn add(&mut self, code: Vec<u8>) -> Result<Stub, NativeError> {
        let stub = match self.areas.last_mut().and_then(|a| a.add(&code)) {
            Some(stub) => stub,
            None => {
                let mut area = Area::new()?;
                let stub = area.add(&code).ok_or(NativeError::NotNative)?;
                self.areas.push(area);
                stub
            }
        };
        self.known.insert(code, stub);
        Ok(stub)
    }

    fn shape(&mut self, insn: &Instruction, unit: Unit, float: bool) -> Result<Shape, NativeError> {
        let info = self.info.info(insn);
        let mut shape = Shape {
            insn: *insn,
            unit,
            float,
            memory: None,
            xmm_in: Vec::new(),
            xmm_out: Vec::new(),
            gpr: None,
            implicit_in: Vec::new(),
            implicit_out: Vec::new(),
        };
        for i in 0..insn.op_count() {
            match insn.op_kind(i) {
                OpKind::Memory => shape.memory = Some(info.op_access(i)),
                OpKind::Register if insn.op_register(i).is_gpr() => {
                    let register = insn.op_register(i);
                    shape.gpr = Some((register.number() as u8, writes(info.op_access(i))));
                    shape.insn.set_op_register(i, same_size_as(register));
                }
                OpKind::Register | OpKind::Immediate8 => {}
                // MASKMOVDQU and its kin store through RDI.
                _ => return Err(NativeError::NotNative),
            }
        }
        for used in info.used_registers() {
            let (register, access) = (used.register(), used.access());
            if register.is_xmm() {
                shape.xmm_in.push(register);
                if writes(access) {
                    shape.xmm_out.push(register);
                }
            }
        }
        match insn.mnemonic() {
            Mnemonic::Pcmpestri | Mnemonic::Pcmpestri64 => {
                shape.implicit_in = vec![Register::RAX, Register::RDX];
                shape.implicit_out = vec![Register::RCX];
            }
            Mnemonic::Pcmpestrm | Mnemonic::Pcmpestrm64 => {
                shape.implicit_in = vec![Register::RAX, Register::RDX];
            }
            Mnemonic::Pcmpistri => shape.implicit_out = vec![Register::RCX],
            _ => {}
        }
        if shape.memory.is_some() {
            let insn = &mut shape.insn;
            insn.set_memory_base(Register::R9);
            insn.set_memory_index(Register::None);
            insn.set_memory_index_scale(1);
            insn.set_memory_displacement64(0);
            insn.set_memory_displ_size(0);
            insn.set_segment_prefix(Register::None);
        }
        shape.insn.set_has_lock_prefix(false);
        Ok(shape)
    }
}

fn reads(access: OpAccess) -> bool {
    !matches!(
        access,
        OpAccess::None | OpAccess::Write | OpAccess::NoMemAccess
    )
}

/// Whether an operand that is accessed so may be written.
pub fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

/// The accumulator in the size of `register`.
fn same_size_as(register: Register) -> Register {
    match register.size() {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}

/// An instruction with what surrounds it in its stub.
struct Shape {
    insn: Instruction,
    unit: Unit,
    float: bool,
    memory: Option<OpAccess>,
    xmm_in: Vec<Register>,
    xmm_out: Vec<Register>,
    /// Number of the general register operand, and whether it is written.
    gpr: Option<(u8, bool)>,
    implicit_in: Vec<Register>,
    implicit_out: Vec<Register>,
}

impl Shape {
    fn assemble(&self) -> Result<Vec<u8>, NativeError> {
        let mut asm = Asm(Encoder::new(64));
        for (to, from) in [
            (Register::R8, Register::RDI),
            (Register::R9, Register::RSI),
            (Register::R10, Register::RDX),
            (Register::R11, Register::RCX),
        ] {
            asm.put(Instruction::with2(Code::Mov_r64_rm64, to, from))?;
        }
        let whole = self.unit != Unit::Sse;
        if let Some((number, _)) = self.gpr {
            asm.put(load_gpr(Register::RAX, number))?;
        }
        for register in &self.implicit_in {
            asm.put(load_gpr(*register, register.number() as u8))?;
        }
        if self.insn.rflags_read() & STATUS != 0 {
            asm.put(Instruction::with1(Code::Push_rm64, at(Register::R11, 8)))?;
            asm.put(Ok(Instruction::with(Code::Popfq)))?;
        }
        if whole {
            asm.put(Instruction::with1(
                Code::Fxrstor64_m512byte,
                at(Register::R8, 0),
            ))?;
        }
        for register in self.xmm_in.iter().filter(|_| !whole) {
            let place = at(Register::R8, xmm_offset(*register));
            asm.put(Instruction::with2(
                Code::Movups_xmm_xmmm128,
                *register,
                place,
            ))?;
        }
        if whole || self.float {
            asm.put(Instruction::with1(Code::Ldmxcsr_m32, at(Register::R11, 0)))?;
        }
        asm.put(Ok(self.insn))?;
        if self.insn.rflags_modified() & STATUS != 0 {
            asm.put(Ok(Instruction::with(Code::Pushfq)))?;
            asm.put(Instruction::with1(Code::Pop_rm64, at(Register::R11, 8)))?;
        }
        if whole || self.float {
            asm.put(Instruction::with1(Code::Stmxcsr_m32, at(Register::R11, 0)))?;
        }
        if whole {
            asm.put(Instruction::with1(
                Code::Fxsave64_m512byte,
                at(Register::R8, 0),
            ))?;
            asm.put(Ok(Instruction::with(Code::Fninit)))?;
        }
        if whole || self.float {
            asm.put(Instruction::with1(Code::Ldmxcsr_m32, at(Register::R11, 4)))?;
        }
        for register in self.xmm_out.iter().filter(|_| !whole) {
            let place = at(Register::R8, xmm_offset(*register));
            asm.put(Instruction::with2(
                Code::Movups_xmmm128_xmm,
                place,
                *register,
            ))?;
        }
        if let Some((number, true)) = self.gpr {
            asm.put(store_gpr(Register::RAX, number))?;
        }
        for register in &self.implicit_out {
            asm.put(store_gpr(*register, register.number() as u8))?;
        }
        asm.put(Ok(Instruction::with(Code::Retnq)))?;
        Ok(asm.0.take_buffer())
    }
}

fn at(base: Register, displacement: i64) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, displacement)
}

fn xmm_offset(register: Register) -> i64 {
    (XMM + 16 * register.number()) as i64
}

fn load_gpr(to: Register, number: u8) -> Result<Instruction, iced_x86::IcedError> {
    Instruction::with2(
        Code::Mov_r64_rm64,
        to,
        at(Register::R10, i64::from(number) * 8),
    )
}

fn store_gpr(from: Register, number: u8) -> Result<Instruction, iced_x86::IcedError> {
    Instruction::with2(
        Code::Mov_rm64_r64,
        at(Register::R10, i64::from(number) * 8),
        from,
    )
}

struct Asm(Encoder);

impl Asm {
    fn put(&mut self, insn: Result<Instruction, iced_x86::IcedError>) -> Result<(), NativeError> {
        let wrong = |e: iced_x86::IcedError| NativeError::Encode(e.to_string());
        // The encoder wants an address only for what is relative to it; nothing here is.
        self.0
            .encode(&insn.map_err(wrong)?, 0)
            .map(|_| ())
            .map_err(wrong)
    }
}

/// Which unit an instruction belongs to; `None` when it does not run natively.
pub fn unit(insn: &Instruction) -> Option<Unit> {
    use CpuidFeature as F;
    let mut unit = None;
    for feature in insn.cpuid_features() {
        let this = match feature {
            F::FPU | F::FPU287 | F::FPU387 | F::FPU287XL_ONLY => Unit::X87,
            F::MMX => Unit::Mmx,
            F::SSE | F::SSE2 => Unit::Sse,
            F::SSE3 if std::is_x86_feature_detected!("sse3") => Unit::Sse,
            F::SSSE3 if std::is_x86_feature_detected!("ssse3") => Unit::Sse,
            F::SSE4_1 if std::is_x86_feature_detected!("sse4.1") => Unit::Sse,
            F::SSE4_2 if std::is_x86_feature_detected!("sse4.2") => Unit::Sse,
            F::AES if std::is_x86_feature_detected!("aes") => Unit::Sse,
            F::PCLMULQDQ if std::is_x86_feature_detected!("pclmulqdq") => Unit::Sse,
            F::CMOV => Unit::X87, // FCMOVcc; CMOVcc never comes here
            _ => return None,
        };
        // X87 before MMX before SSE: the larger state wins.
        unit = Some(match (unit, this) {
            (Some(Unit::X87), _) | (_, Unit::X87) => Unit::X87,
            (Some(Unit::Mmx), _) | (_, Unit::Mmx) => Unit::Mmx,
            _ => Unit::Sse,
        });
    }
    let touches_mmx = (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_mm());
    if unit == Some(Unit::Sse) && touches_mmx {
        return Some(Unit::Mmx);
    }
    unit
}

/// SSE instructions that read or write MXCSR.
/// Whether MXCSR matters.
pub fn is_float(insn: &Instruction) -> bool {
    let name = format!("{:?}", insn.mnemonic()).to_lowercase();
    let typed = ["ps", "pd", "ss", "sd"].iter().any(|t| name.ends_with(t));
    let arithmetic = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "cmp", "comis", "ucomis", "round", "dpp",
        "hadd", "hsub",
    ];
    name.starts_with("cvt") || typed && arithmetic.iter().any(|a| name.starts_with(a))
}

/// Whether a 16-byte memory operand has to be aligned (SDM vol. 1, 10.4.1.2; vol. 2 one by one).
pub fn must_align(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    !matches!(
        mnemonic,
        Movups
            | Movupd
            | Movdqu
            | Lddqu
            | Pcmpestri
            | Pcmpestrm
            | Pcmpistri
            | Pcmpistrm
            | Pcmpestri64
            | Pcmpestrm64
    )
}

/// Control instructions in their no-wait form (SDM vol. 1, 8.3.11).
fn is_no_wait(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Fninit | Fnclex | Fnstsw | Fnstcw | Fnstenv | Fnsave | Fndisi | Fneni | Fnsetpm
    )
}

/// x87 instructions that do not record instruction and data pointers (SDM vol. 1, 8.1.8).
fn is_control(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    is_no_wait(mnemonic) || matches!(mnemonic, Fldcw | Fldenv | Frstor | Emms)
}
