//! The handlers: what each instruction does. One file a family.
//!
//! A handler is generic over width and operation, so each operand form is one function of a few
//! lines that the compiler instantiates. It changes registers only after everything that can
//! fault has happened; then it goes on with [`next`](crate::op::next) or leaves the block.

pub mod alu;
pub mod bits;
pub mod bmi;
pub mod branch;
pub mod flagops;
pub mod hypercall;
pub mod mov;
pub mod muldiv;
pub mod shift;
pub mod simd;
mod simd_exceptions;
pub mod stack;
pub mod string;
pub mod system;
pub mod vintage;
pub mod xsave;

/// Unwraps a `Result<_, Trap>` in a handler; a trap leaves the block with the exception pending.
macro_rules! ok {
    ($cpu:ident, $op:ident, $e:expr) => {
        match $e {
            Ok(v) => v,
            Err($crate::cpu::Trap) => return $cpu.fault($op),
        }
    };
}

/// Instantiates a handler for the operand size: `by_size!(size, path::<A, B>)`, whose last
/// generic parameter is the width.
macro_rules! by_size {
    ($size:expr, $f:ident) => {
        match $size {
            1 => $f::<1> as $crate::op::Handler,
            2 => $f::<2>,
            4 => $f::<4>,
            _ => $f::<8>,
        }
    };
    ($size:expr, $f:ident, $($g:ty),+) => {
        match $size {
            1 => $f::<$($g,)+ 1> as $crate::op::Handler,
            2 => $f::<$($g,)+ 2>,
            4 => $f::<$($g,)+ 4>,
            _ => $f::<$($g,)+ 8>,
        }
    };
}

/// Instantiates a handler for a condition, numbered as in the opcode.
macro_rules! by_condition {
    ($cc:expr, $f:ident $(, $n:literal)*) => {{
        use $crate::flags as f;
        match $cc {
            0 => $f::<f::O $(, $n)*> as $crate::op::Handler,
            1 => $f::<f::No $(, $n)*>,
            2 => $f::<f::B $(, $n)*>,
            3 => $f::<f::Ae $(, $n)*>,
            4 => $f::<f::E $(, $n)*>,
            5 => $f::<f::Ne $(, $n)*>,
            6 => $f::<f::Be $(, $n)*>,
            7 => $f::<f::A $(, $n)*>,
            8 => $f::<f::S $(, $n)*>,
            9 => $f::<f::Ns $(, $n)*>,
            10 => $f::<f::P $(, $n)*>,
            11 => $f::<f::Np $(, $n)*>,
            12 => $f::<f::L $(, $n)*>,
            13 => $f::<f::Ge $(, $n)*>,
            14 => $f::<f::Le $(, $n)*>,
            _ => $f::<f::G $(, $n)*>,
        }
    }};
}

pub(crate) use {by_condition, by_size, ok};
