//! Which forms of which instructions can be compared with the processor of this machine.

#![allow(dead_code, reason = "each test that shares this needs other parts")]

use iced_x86::{
    Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind as K, RflagsBits,
};

/// The forms that can be compared: unprivileged, 64-bit, no transfer of control, deterministic.
pub fn forms() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| {
        let info = code.op_code();
        info.is_instruction()
            && info.mode64()
            && info.cpl3()
            && (info.encoding() == EncodingKind::Legacy || is_bmi(*code))
            && features(*code)
            && !excluded(info.mnemonic())
            && !info.op_kinds().iter().any(|k| unsupported(*k))
    })
}

/// General registers in an encoding of vector instructions.
fn is_bmi(code: Code) -> bool {
    let features = code.cpuid_features();
    code.op_code().encoding() == EncodingKind::VEX
        && features
            .iter()
            .all(|f| matches!(f, CpuidFeature::BMI1 | CpuidFeature::BMI2))
}

/// What both processor models claim and every machine that this runs on has.
pub fn is_common(feature: CpuidFeature) -> bool {
    use CpuidFeature as F;
    matches!(
        feature,
        F::INTEL8086
            | F::INTEL186
            | F::INTEL286
            | F::INTEL386
            | F::INTEL486
            | F::X64
            | F::CMOV
            | F::CX8
            | F::CMPXCHG16B
            | F::FPU
            | F::FPU287
            | F::FPU387
            | F::MMX
            | F::SSE
            | F::SSE2
            | F::SSE3
            | F::SSSE3
            | F::SSE4_1
            | F::SSE4_2
            | F::AES
            | F::PCLMULQDQ
            | F::POPCNT
            | F::MOVBE
            | F::MULTIBYTENOP
            | F::PAUSE
    )
}

/// Everything that the processor model claims and this machine has.
fn features(code: Code) -> bool {
    use CpuidFeature as F;
    code.cpuid_features().iter().all(|f| {
        is_common(*f)
            || match f {
                F::PREFETCHW => true,
                F::BMI1 => std::is_x86_feature_detected!("bmi1"),
                F::BMI2 => std::is_x86_feature_detected!("bmi2"),
                F::LZCNT => std::is_x86_feature_detected!("lzcnt"),
                F::ADX => std::is_x86_feature_detected!("adx"),
                _ => false,
            }
    })
}

/// What cannot be compared this way, and why.
const EXCLUDED: &[&str] = &[
    // Segment registers and descriptor tables of this process.
    "Lar",
    "Lsl",
    "Verr",
    "Verw",
    "Lfs",
    "Lgs",
    "Lss",
    "Sgdt",
    "Sidt",
    "Sldt",
    "Str",
    "Smsw",
    // Addresses and frames of their own.
    "Maskmovq",
    "Maskmovdqu",
    "Cldemote",
    // Images with pointers in them.
    "Fxsave",
    "Fxrstor",
    "Fxsave64",
    "Fxrstor64",
    "Fnsave",
    "Fsave",
    "Frstor",
    "Fnstenv",
    "Fstenv",
    "Fldenv",
    // Historic opcodes that some processors ignore and others refuse.
    "Fnstdw",
    "Fnstsg",
    "Fstdw",
    "Fstsg",
    "Frstpm",
    "Fsetpm",
    "Fnsetpm",
    "Fneni",
    "Fndisi",
    "Fdisi",
    "Feni",
    "Umov",
    "Loadall",
    // Values that unmask exceptions, flags that trap, ports.
    "Ldmxcsr",
    "Fldcw",
    "Popf",
    "Popfq",
    "In",
    "Out",
    "Insb",
    "Insw",
    "Insd",
    "Outsb",
    "Outsw",
    "Outsd",
    "Sti",
    "Cli",
    "Pushf",
    "Pushfq",
];

/// Cannot be compared.
fn excluded(mnemonic: Mnemonic) -> bool {
    let name = format!("{mnemonic:?}");
    let control = ["Ret", "Iret", "Int", "Sys", "Ud", "Hlt", "Reserved"];
    control.iter().any(|c| name.starts_with(c)) || EXCLUDED.contains(&name.as_str())
}

fn unsupported(kind: K) -> bool {
    matches!(
        kind,
        K::farbr2_2
            | K::farbr4_2
            | K::mem_offs
            | K::seg_reg
            | K::cr_reg
            | K::dr_reg
            | K::tr_reg
            | K::br16_1
            | K::br32_1
            | K::br16_2
            | K::br32_4
            | K::xbegin_2
            | K::xbegin_4
    )
}

/// The bit number may lead beyond the operand.
pub fn is_bit_string(code: Code) -> bool {
    let name = format!("{code:?}");
    ["Bt_", "Bts_", "Btr_", "Btc_"]
        .iter()
        .any(|p| name.starts_with(p))
        && !name.ends_with("imm8")
}

/// Addresses by RSI and RDI.
pub fn is_string(code: Code) -> bool {
    let mut insn = Instruction::default();
    insn.set_code(code);
    insn.is_string_instruction()
}

/// A string instruction that ends at a difference.
pub fn compares(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Cmpsb | Cmpsw | Cmpsd | Cmpsq | Scasb | Scasw | Scasd | Scasq
    )
}

/// The status flags among flags of `iced-x86`, as EFLAGS bits.
pub fn status_flags(bits: u32) -> u64 {
    [
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 4),
        (RflagsBits::AF, 0x10),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::SF, 0x80),
        (RflagsBits::OF, 0x800),
    ]
    .iter()
    .filter(|(bit, _)| bits & bit != 0)
    .map(|(_, flag)| flag)
    .sum()
}

/// Tells whether the form of this name is CMPS: the manual does not say which of its two strings is
/// read first, and processors differ, which shows when neither can be read.
#[allow(
    dead_code,
    reason = "not every test meets operands that cannot be read"
)]
pub fn reads_two_strings(form: &str) -> bool {
    form.starts_with("Cmps") && form.contains("_m")
}
