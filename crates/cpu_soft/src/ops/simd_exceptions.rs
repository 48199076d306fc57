//! Which flags a SIMD floating-point exception that is not masked leaves in MXCSR.
//!
//! Stubs run with all exceptions masked, and the flags that they leave are those of the masked
//! response. For an overflow or an underflow that is not masked they are not the same: it is about
//! the result rounded as if the exponent had no bounds, and loss of precision is told of that one
//! (SDM vol. 1, 4.9.1.4 and 4.9.1.5). 2^1000 · 2^1000 is exact; its masked response, infinity, is
//! not. And a dot product that raises does so after one of its steps: what the later steps would have
//! raised is not there (SDM vol. 2, DPPS).
//!
//! So what raises is computed again, element by element and step by step, with scalar instructions of
//! the host, and precision in integers. This is rare: most programs mask everything, and those that
//! do not end here once.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic, OpKind};

use crate::fpu::{FxArea, MXCSR_DEFAULT, mxcsr};

/// Tells which flags `insn` raises where those of `unmasked` are not masked; its registers are in
/// `fx` and its memory operand is `memory`. `control` is MXCSR as the stub had it: all masked, no flag,
/// and flushing to zero where an underflow is not masked. `None` if they are what the masked response
/// leaves.
pub fn raised(
    insn: &Instruction,
    fx: &FxArea,
    memory: &[u8; 16],
    control: u32,
    unmasked: u32,
) -> Option<u32> {
    let (shape, format) = shape(insn.mnemonic())?;
    let a = Vector::register(insn, 0, fx);
    let b = match insn.op_kind(1) {
        OpKind::Memory => Vector(*memory),
        _ => Vector::register(insn, 1, fx),
    };
    let unit = Unit {
        control,
        unmasked,
        format,
    };
    let all = 0..format.per_vector();
    let (x, y) = (|i| a.element(i, format), |i| b.element(i, format));
    let step: Step = match shape {
        Shape::Scalar(operation) => vec![(operation, x(0), y(0))],
        Shape::Packed(operation) => all.map(|i| (operation, x(i), y(i))).collect(),
        Shape::Alternating => all
            .map(|i| ([Operation::Sub, Operation::Add][i & 1], x(i), y(i)))
            .collect(),
        Shape::Horizontal(operation) => {
            let values: Vec<u64> = all.clone().map(x).chain(all.map(y)).collect();
            pairs(operation, &values)
        }
        Shape::Dot => {
            // What is not wanted counts as a product of +0.
            let wanted = |i: usize| insn.immediate8() >> (4 + i) & 1 != 0;
            let product = |i| match wanted(i) {
                true => (Operation::Mul, x(i), y(i)),
                false => (Operation::Mul, 0, 0),
            };
            return Some(unit.dot(all.map(product).collect()));
        }
    };
    Some(unit.step(&step).1)
}

/// What is computed at once: operation and operands of each element.
type Step = Vec<(Operation, u64, u64)>;

/// The step that combines neighbours.
fn pairs(operation: Operation, values: &[u64]) -> Step {
    let pair = |pair: &[u64]| (operation, pair[0], pair[1]);
    values.chunks_exact(2).map(pair).collect()
}

/// What is raised of the flags that all elements have together: operands are looked at before
/// anything is computed (SDM vol. 1, 11.5.3.2).
pub fn of_one_step(flags: u32, unmasked: u32) -> u32 {
    match flags & unmasked & mxcsr::OPERANDS {
        0 => flags,
        _ => flags & mxcsr::OPERANDS,
    }
}

/// What the instruction does with its elements; `None` if it has no result that may be too large or
/// too small.
fn shape(mnemonic: Mnemonic) -> Option<(Shape, Format)> {
    use Format::{Double, Single};
    use Mnemonic as M;
    use Operation::{Add, Div, Mul, Narrow, Sub};
    use Shape::{Alternating, Dot, Horizontal, Packed, Scalar};
    Some(match mnemonic {
        M::Addss => (Scalar(Add), Single),
        M::Addsd => (Scalar(Add), Double),
        M::Addps => (Packed(Add), Single),
        M::Addpd => (Packed(Add), Double),
        M::Subss => (Scalar(Sub), Single),
        M::Subsd => (Scalar(Sub), Double),
        M::Subps => (Packed(Sub), Single),
        M::Subpd => (Packed(Sub), Double),
        M::Mulss => (Scalar(Mul), Single),
        M::Mulsd => (Scalar(Mul), Double),
        M::Mulps => (Packed(Mul), Single),
        M::Mulpd => (Packed(Mul), Double),
        M::Divss => (Scalar(Div), Single),
        M::Divsd => (Scalar(Div), Double),
        M::Divps => (Packed(Div), Single),
        M::Divpd => (Packed(Div), Double),
        M::Addsubps => (Alternating, Single),
        M::Addsubpd => (Alternating, Double),
        M::Haddps => (Horizontal(Add), Single),
        M::Haddpd => (Horizontal(Add), Double),
        M::Hsubps => (Horizontal(Sub), Single),
        M::Hsubpd => (Horizontal(Sub), Double),
        M::Cvtsd2ss => (Scalar(Narrow), Double),
        M::Cvtpd2ps => (Packed(Narrow), Double),
        M::Dpps => (Dot, Single),
        M::Dppd => (Dot, Double),
        _ => return None,
    })
}

#[derive(Clone, Copy)]
enum Shape {
    Scalar(Operation),
    Packed(Operation),
    /// Subtracts the even elements and adds the odd ones.
    Alternating,
    /// Neighbours of the first operand, then of the second.
    Horizontal(Operation),
    /// Products and the sum of them.
    Dot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Add,
    Sub,
    Mul,
    Div,
    /// Double to single precision, of the second operand.
    Narrow,
}

/// Of the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Single,
    Double,
}

impl Format {
    fn per_vector(self) -> usize {
        match self {
            Self::Single => 4,
            Self::Double => 2,
        }
    }

    /// Bits of the significand, with the one that is not stored.
    fn precision(self) -> u32 {
        match self {
            Self::Single => 24,
            Self::Double => 53,
        }
    }
}

#[derive(Clone, Copy)]
struct Vector([u8; 16]);

impl Vector {
    fn register(insn: &Instruction, operand: u32, fx: &FxArea) -> Self {
        let number = insn.op_register(operand).number() as u8;
        let halves = [fx.xmm(number, 0), fx.xmm(number, 1)];
        Self((u128::from(halves[1]) << 64 | u128::from(halves[0])).to_le_bytes())
    }

    fn element(&self, i: usize, format: Format) -> u64 {
        let bits = 128 / format.per_vector();
        let element = u128::from_le_bytes(self.0) >> (bits * i);
        element as u64 & u64::MAX >> (64 - bits)
    }
}

struct Unit {
    /// MXCSR for the host: all masked, no flag.
    control: u32,
    unmasked: u32,
    format: Format,
}

impl Unit {
    /// The masked response of each element, and what they raise together.
    fn step(&self, step: &[(Operation, u64, u64)]) -> (Vec<u64>, u32) {
        let mut all = 0;
        let response = |(operation, a, b): &(Operation, u64, u64)| {
            let (value, mut flags) = masked(*operation, self.format, *a, *b, self.control);
            if flags & self.unmasked & (mxcsr::OE | mxcsr::UE) != 0 {
                flags &= !mxcsr::PE;
                if !is_exact(*operation, self.format, *a, *b) {
                    flags |= mxcsr::PE;
                }
            }
            all |= flags;
            value
        };
        let values = step.iter().map(response).collect();
        (values, of_one_step(all, self.unmasked))
    }

    /// The flags of a dot product up to the step that raises.
    fn dot(&self, products: Step) -> u32 {
        let (mut values, mut flags) = self.step(&products);
        while values.len() > 1 && flags & self.unmasked == 0 {
            let (sums, raised) = self.step(&pairs(Operation::Add, &values));
            values = sums;
            flags |= raised;
        }
        flags
    }
}

/// Runs one scalar operation on the host with MXCSR `control`: the result, and the flags raised.
fn masked(operation: Operation, format: Format, a: u64, b: u64, control: u32) -> (u64, u32) {
    let mut word = [control, MXCSR_DEFAULT];
    macro_rules! run {
        ($instruction:literal) => {{
            let mut result = f64::from_bits(a);
            // SAFETY: `control` masks all exceptions, so that the instruction raises none; MXCSR is
            // afterwards what a Rust program expects; only `word` is accessed.
            unsafe {
                asm!(
                    "ldmxcsr [{word}]",
                    $instruction,
                    "stmxcsr [{word}]",
                    "ldmxcsr [{word} + 4]",
                    word = in(reg) word.as_mut_ptr(),
                    a = inout(xmm_reg) result,
                    b = in(xmm_reg) f64::from_bits(b),
                    options(nostack, preserves_flags)
                );
            }
            result.to_bits()
        }};
    }
    use Format::{Double, Single};
    use Operation::{Add, Div, Mul, Narrow, Sub};
    let result = match (operation, format) {
        (Add, Single) => run!("addss {a}, {b}"),
        (Add, Double) => run!("addsd {a}, {b}"),
        (Sub, Single) => run!("subss {a}, {b}"),
        (Sub, Double) => run!("subsd {a}, {b}"),
        (Mul, Single) => run!("mulss {a}, {b}"),
        (Mul, Double) => run!("mulsd {a}, {b}"),
        (Div, Single) => run!("divss {a}, {b}"),
        (Div, Double) => run!("divsd {a}, {b}"),
        (Narrow, _) => run!("cvtsd2ss {a}, {b}"),
    };
    (result, word[0] & mxcsr::FLAGS)
}

/// Whether the result needs no more bits than the significand has, whatever its exponent. Neither
/// operand is an infinity, a NaN or a divisor of zero: those do not overflow.
fn is_exact(operation: Operation, format: Format, a: u64, b: u64) -> bool {
    let (a, b) = (Number::new(a, format), Number::new(b, format));
    let fits = |significand: u128, precision: u32| {
        significand == 0
            || u128::BITS - significand.leading_zeros() - significand.trailing_zeros() <= precision
    };
    let precision = format.precision();
    match operation {
        Operation::Mul => fits(
            u128::from(a.significand) * u128::from(b.significand),
            precision,
        ),
        // Both are odd.
        Operation::Div => b.significand != 0 && a.significand % b.significand == 0,
        Operation::Narrow => fits(b.significand.into(), Format::Single.precision()),
        Operation::Add | Operation::Sub => {
            if a.significand == 0 || b.significand == 0 {
                return true;
            }
            let (high, low) = if a.exponent >= b.exponent {
                (a, b)
            } else {
                (b, a)
            };
            let distance = (high.exponent - low.exponent) as u32;
            if distance > 64 {
                // An odd number of more than 64 bits.
                return false;
            }
            let subtracts = (a.negative != b.negative) != (operation == Operation::Sub);
            let (high, low) = (
                u128::from(high.significand) << distance,
                u128::from(low.significand),
            );
            fits(
                if subtracts {
                    high.abs_diff(low)
                } else {
                    high + low
                },
                precision,
            )
        }
    }
}

/// An odd significand, or 0, times a power of two.
#[derive(Clone, Copy)]
struct Number {
    negative: bool,
    significand: u64,
    exponent: i32,
}

impl Number {
    fn new(bits: u64, format: Format) -> Self {
        let (width, fraction) = match format {
            Format::Single => (32, 23),
            Format::Double => (64, 52),
        };
        let biased = bits >> fraction & ((1 << (width - 1 - fraction)) - 1);
        let stored = bits & ((1 << fraction) - 1);
        let significand = stored | u64::from(biased != 0) << fraction;
        let zeros = significand.trailing_zeros() & 63;
        Self {
            negative: bits >> (width - 1) & 1 != 0,
            significand: significand >> zeros,
            exponent: biased.max(1) as i32 + zeros as i32,
        }
    }
}
