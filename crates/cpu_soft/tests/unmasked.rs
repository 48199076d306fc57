//! SIMD floating-point exceptions that are not masked, against the processor of this machine.
//!
//! Every instruction that reads MXCSR, with operands near the ends of the range: few significant
//! bits or many, so that results overflow and underflow exactly and inexactly, and with other elements
//! that do something else. What is raised, every flag, and every untouched byte must agree.
//! `UMBRA_NATIVE_ROUNDS` sets how often, `UMBRA_NATIVE_SEED` with which operands; they are fresh in
//! every run without it.
#![cfg(target_arch = "x86_64")]

mod forms;
mod image;
mod random;
#[allow(dead_code, reason = "sequences are what another test makes")]
mod sequence;

use iced_x86::{Code, Instruction, OpCodeOperandKind as K, OpKind, Register};

use random::{Random, seed, setting};
use sequence::guest::Guest;
use sequence::host::Host;
use sequence::{Case, INT3, MEMORY, MEMORY_LEN, Step, WINDOW, WINDOW_LEN};

/// Where the registers and the memory operand are.
const XMM: usize = 160;
const OPERAND: usize = 0x100;
/// #XM.
const SIMD: u8 = 19;

/// Instructions whose manual page lists SIMD floating-point exceptions.
fn raises(code: Code) -> bool {
    let name = format!("{:?}", code.mnemonic()).to_lowercase();
    let stems = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "cmp", "comis", "ucomis", "round", "dpp",
        "hadd", "hsub",
    ];
    let typed = ["ps", "pd", "ss", "sd"]
        .iter()
        .any(|end| name.ends_with(end));
    let vector = code
        .cpuid_features()
        .iter()
        .any(|f| format!("{f:?}").starts_with("SSE"));
    vector && (name.starts_with("cvt") || typed && stems.iter().any(|stem| name.starts_with(stem)))
}

/// Both processors.
struct Pair {
    host: Host,
    guest: Guest,
}

impl Pair {
    fn new() -> Self {
        Self {
            host: Host::new(),
            guest: Guest::new(),
        }
    }

    /// Runs a case on both: the vector, MXCSR's flags, and how the second differs.
    fn run(&mut self, case: &Case) -> (u8, u8, Option<String>) {
        let code = case.code().expect("it can be encoded");
        let mut window = [INT3; WINDOW_LEN];
        let at = (case.start - WINDOW) as usize;
        window[at..at + code.bytes.len()].copy_from_slice(&code.bytes);
        let expected = self.host.run(case, &window);
        let found = self.guest.run(case, &window);
        let same = |what: &str, e: u64, f: u64| {
            (e != f).then(|| format!("{what} {f:#x}, should be {e:#x}"))
        };
        let flags = |fx: &[u8; 512]| u64::from(fx[24] & 0x3f);
        let difference = same("vector", expected.vector.into(), found.vector.into())
            .or_else(|| same("MXCSR", flags(&expected.fx), flags(&found.fx)))
            .or_else(|| same("RIP", expected.rip, found.rip))
            .or_else(|| same("RAX", expected.gpr[0], found.gpr[0]))
            .or_else(|| {
                let (at, e, f) = image::difference(&expected.fx, &found.fx, expected.vector)?;
                same(&format!("fx[{at}]"), e, f)
            });
        (expected.vector, expected.fx[24] & 0x3f, difference)
    }
}

/// One instruction with two operands of 16 bytes.
fn case(insn: Instruction, mxcsr: u32, a: [u8; 16], b: [u8; 16]) -> Case {
    let mut fx = [0; 512];
    fx[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
    fx[32..40].copy_from_slice(&b[..8]);
    fx[40..42].copy_from_slice(&[0xff; 2]);
    fx[XMM..XMM + 16].copy_from_slice(&a);
    fx[XMM + 16..XMM + 32].copy_from_slice(&b);
    let mut memory = vec![0; MEMORY_LEN];
    memory[OPERAND..OPERAND + 16].copy_from_slice(&b);
    let mut gpr = [0; 16];
    gpr[1] = u128::from_le_bytes(b) as u64;
    gpr[3] = MEMORY + OPERAND as u64;
    gpr[4] = MEMORY + MEMORY_LEN as u64 / 2;
    let step = Step {
        insn,
        skip: 0,
        joined: false,
    };
    Case {
        steps: vec![step],
        start: WINDOW + 0x80,
        gpr,
        flags: 0,
        fx,
        memory,
    }
}

/// The form with the first operand in register 0, the second in register 1 or in memory.
fn form(code: Code, immediate: u8, in_memory: bool) -> Option<Instruction> {
    let mut insn = Instruction::default();
    insn.set_code(code);
    for (i, kind) in code.op_code().op_kinds().iter().enumerate() {
        let i = i as u32;
        let (register, or_memory) = match kind {
            K::xmm_reg => (Register::XMM0, false),
            K::xmm_rm => (Register::XMM1, false),
            K::xmm_or_mem => (Register::XMM1, true),
            K::mm_reg => (Register::MM0, false),
            K::mm_or_mem => (Register::MM0, true),
            K::r32_reg => (Register::EAX, false),
            K::r64_reg => (Register::RAX, false),
            K::r32_or_mem => (Register::ECX, true),
            K::r64_or_mem => (Register::RCX, true),
            K::imm8 => {
                insn.set_op_kind(i, OpKind::Immediate8);
                insn.set_immediate8(immediate);
                continue;
            }
            _ => return None,
        };
        if or_memory && in_memory {
            insn.set_op_kind(i, OpKind::Memory);
            insn.set_memory_base(Register::RBX);
        } else {
            insn.set_op_kind(i, OpKind::Register);
            insn.set_op_register(i, register);
        }
    }
    Some(insn)
}

/// Elements near the ends of the range, and whatever else.
fn operand(random: &mut Random, single: bool) -> [u8; 16] {
    let (size, fraction, exponents) = if single { (4, 23, 255) } else { (8, 52, 2047) };
    let mut operand = [0; 16];
    for at in (0..16).step_by(size) {
        let middle = exponents / 2;
        let exponent = match random.below(9) {
            0 => 0,
            1 => exponents,
            2 => 1 + random.below(30),
            3 => exponents - 1 - random.below(30),
            4 => middle / 2 + random.below(60) - 30,
            5 => middle * 3 / 2 + random.below(60) - 30,
            6 => middle + random.below(60) - 30,
            7 => exponents - 1 - random.below(2),
            _ => random.below(exponents + 1),
        };
        let bits = random.next() & ((1 << fraction) - 1);
        let bits = match random.below(4) {
            0 => 0,
            1 => bits & !0 << (fraction - 4),
            2 => bits & !0 << (fraction / 2),
            _ => bits,
        };
        let value = (random.next() & 1) << (size * 8 - 1) | exponent << fraction | bits;
        operand[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
    operand
}

#[test]
fn what_is_not_masked_is_raised_as_on_the_host() {
    let rounds = setting("UMBRA_NATIVE_ROUNDS").unwrap_or(400);
    let seed = seed();
    let mut pair = Pair::new();
    let (mut cases, mut raised) = (0, [0; 6]);
    let mut failures = Vec::new();
    for code in forms::forms().filter(|code| raises(*code)) {
        let mut random = Random::new(seed ^ (code as u64) << 32);
        let name = format!("{:?}", code.mnemonic()).to_lowercase();
        let single = name.ends_with("ps") || name.ends_with("ss");
        let mut bad = 0;
        for _ in 0..rounds {
            let Some(insn) = form(code, random.next() as u8, random.once_in(4)) else {
                panic!("{code:?} has operands that this test does not know");
            };
            // Flags and masks at will, all roundings, flushing and denormals as zeros seldom.
            let mut mxcsr = random.next() as u32 & 0x7fbf;
            mxcsr |= u32::from(random.once_in(4)) << 15 | u32::from(random.once_in(4)) << 6;
            if !random.once_in(4) {
                mxcsr &= !0x3f;
            }
            let single = single ^ random.once_in(8);
            let (a, b) = (operand(&mut random, single), operand(&mut random, single));
            let (vector, flags, difference) = pair.run(&case(insn, mxcsr, a, b));
            cases += 1;
            for (i, count) in raised.iter_mut().enumerate() {
                *count += u64::from(vector == SIMD && flags >> i & 1 != 0);
            }
            let Some(difference) = difference else {
                continue;
            };
            bad += 1;
            if bad == 1 {
                failures.push(format!(
                    "{code:?} {insn} MXCSR {mxcsr:#x} {:#x} {:#x}: {difference}",
                    u128::from_le_bytes(a),
                    u128::from_le_bytes(b)
                ));
            }
        }
        if bad > 1 {
            failures.push(format!("    and {} more", bad - 1));
        }
    }
    println!("{cases} cases, raised with IE DE ZE OE UE PE: {raised:?}");
    assert!(
        raised.iter().all(|n| *n > cases / 200),
        "too little was raised: {raised:?}"
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The rules one by one, so that they hold where no host is near: MXCSR's masks, the operands, and what
/// is raised.
#[test]
fn precision_is_that_of_the_result_without_bounds_of_the_exponent() {
    const UE: u32 = 1 << 4;
    const OE: u32 = 1 << 3;
    const PE: u32 = 1 << 5;
    const ONE_MORE: f64 = 1.0 + f64::EPSILON;
    let two = |power: i32| 2f64.powi(power);
    let largest = f64::MAX;
    let (mul, add, sub) = (
        Code::Mulsd_xmm_xmmm64,
        Code::Addsd_xmm_xmmm64,
        Code::Subsd_xmm_xmmm64,
    );
    let (div, narrow) = (Code::Divsd_xmm_xmmm64, Code::Cvtsd2ss_xmm_xmmm64);
    let table = [
        // Too large, and exact but for that; also where precision is not masked.
        (mul, two(1000), two(1000), OE, OE),
        (add, two(1023), two(1023), OE, OE),
        (sub, -largest, largest, OE, OE),
        (div, 3.0 * two(1000), two(-100), OE, OE),
        (narrow, 0.0, two(200), OE, OE),
        (mul, two(1000), two(1000), OE | PE, OE),
        // Too large, and not exact: by its bits, or by rounding.
        (mul, ONE_MORE * two(1000), ONE_MORE * two(1000), OE, OE | PE),
        (add, largest, two(970), OE, OE | PE),
        (div, two(1000), 3.0 * two(-100), OE, OE | PE),
        (narrow, 0.0, ONE_MORE * two(200), OE, OE | PE),
        // Too large, which is masked: then infinity is not what it should be.
        (mul, two(1000), two(1000), PE, OE | PE),
        // Too small, and exact but for that: all of it, not as a denormal number, not at all.
        (mul, two(-1022), 0.5, UE, UE),
        (mul, ONE_MORE * two(-1022), 0.5, UE, UE),
        (mul, two(-600), two(-600), UE, UE),
        (narrow, 0.0, (1.0 + two(-20)) * two(-140), UE, UE),
        // Too small, and not exact.
        (mul, ONE_MORE * two(-600), ONE_MORE * two(-600), UE, UE | PE),
        (div, two(-1022), 3.0, UE, UE | PE),
        (narrow, 0.0, ONE_MORE * two(-140), UE, UE | PE),
    ];
    let mut pair = Pair::new();
    for (code, a, b, unmasked, flags) in table {
        let insn = form(code, 0, false).expect("two registers");
        let vector = |x: f64| {
            let mut vector = [0; 16];
            vector[..8].copy_from_slice(&x.to_le_bytes());
            vector
        };
        let case = case(insn, 0x1f80 & !(unmasked << 7), vector(a), vector(b));
        let (number, raised, difference) = pair.run(&case);
        let what = format!("{code:?} of {a:e} and {b:e}, not masked {unmasked:#x}");
        assert_eq!(
            (number, u32::from(raised)),
            (SIMD, flags),
            "{what}: the host"
        );
        assert_eq!(difference, None, "{what}");
    }
}
