//! Where the guest's state is while translated code executes.
//!
//! ```text
//!   host   rcx rdx rbx rbp rsi rdi r8 r12 … r15   r10   r11   rax, r9    rsp
//!   guest  the same                               RSP   RAX   scratch    frame (R9, R10, R11, flags, …)
//! ```
//! The host's RAX is scratch because LAHF and SAHF know no other register, and flags are saved far more
//! often than the guest multiplies. Instructions that name RAX implicitly copy it in and out.

use iced_x86::Register;

use super::asm::{Mem, Reg, at};

/// First scratch register.
pub const S0: Reg = Reg(0);
/// Second scratch register.
pub const S1: Reg = Reg(9);
/// The frame.
pub const FRAME: Reg = Reg(4);
/// Guest RSP.
pub const SP: Reg = Reg(10);
/// Guest RBP.
pub const BP: Reg = Reg(5);
/// Guest RAX.
pub const AX: Reg = Reg(11);

/// Where a guest register is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In a host register.
    Host(Reg),
    /// In the frame.
    Frame(Mem),
}

/// Home of general register `number`.
pub fn home(number: u8) -> Home {
    match number & 15 {
        0 => Home::Host(AX),
        4 => Home::Host(SP),
        n @ 9..=11 => Home::Frame(frame(slot::R9 + 8 * i32::from(n - 9))),
        n => Home::Host(Reg(n)),
    }
}

/// Offsets in the frame.
pub mod slot {
    /// The processor.
    pub const CPU: i32 = 0;
    /// The context: translation caches.
    pub const CTX: i32 = 8;
    /// The jumps. They change as the context does.
    pub const JUMPS: i32 = 80;
    /// The word that is not zero when somebody wants attention.
    pub const WAKE: i32 = 16;
    /// A register while another value is needed in it.
    pub const SAVED: i32 = 24;
    /// Status flags, as [`Asm::flags_to_ax`](super::super::asm::Asm::flags_to_ax) leaves them.
    pub const FLAGS: i32 = 40;
    /// Guest R9, R10, R11.
    pub const R9: i32 = 48;
    /// Anything within one instruction.
    pub const TEMP: i32 = 72;
    /// Host addresses that checks found ([`pins`](super::super::pins)).
    pub const PINS: i32 = 88;
    /// A byte that is not zero while the guest's XMM registers and MXCSR are loaded; behind it, this program's own.
    pub const FLOAT: i32 = 120;
    /// This program's MXCSR.
    pub const MXCSR: i32 = 128;
    /// Recent pages ([`recent`](super::super::recent)).
    pub const RECENT: i32 = 136;
    /// The context of level 3, where GS has its base ([`Caches`](super::super::memory::Caches)).
    pub const USER: i32 = 200;
    /// The other pages, those that were the recent ones before.
    pub const OTHERS: i32 = 208;
    /// A word whose carry says that a recent page and the other one shall take turns.
    pub const TURNS: i32 = 272;
    /// Bytes of the frame: a multiple of sixteen, and eight.
    pub const SIZE: i32 = 280;
}

/// A place in the frame.
pub fn frame(offset: i32) -> Mem {
    at(FRAME, offset)
}

/// The host register `reg`, `size` bytes wide, as the encoder names it.
pub fn sized(reg: Reg, size: usize) -> Register {
    let n = u32::from(reg.0);
    match size {
        1 if n < 4 => Register::AL + n,
        1 => Register::SPL + (n - 4),
        2 => Register::AX + n,
        4 => Register::EAX + n,
        _ => Register::RAX + n,
    }
}

/// AH, CH, DH, BH.
pub fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_guest_registers_share_a_home() {
        let homes: Vec<String> = (0..16).map(|n| format!("{:?}", home(n))).collect();
        for (i, home) in homes.iter().enumerate() {
            assert!(!homes[..i].contains(home), "{home}");
            assert!(
                ![S0, S1, FRAME]
                    .iter()
                    .any(|s| *home == format!("{:?}", Home::Host(*s)))
            );
        }
    }

    #[test]
    fn sizes_keep_the_number() {
        for n in 0..16 {
            for size in [1, 2, 4, 8] {
                let register = sized(Reg(n), size);
                assert_eq!(register.size(), size);
                assert_eq!(register.full_register(), Register::RAX + u32::from(n));
                assert!(!is_high_byte(register));
            }
        }
    }

    #[test]
    fn the_frame_keeps_the_stack_aligned() {
        assert_eq!(slot::SIZE % 16, 8);
        assert_eq!(slot::TEMP, slot::R9 + 24);
        assert_eq!(
            slot::FLOAT,
            slot::PINS + 8 * super::super::pins::PINS as i32
        );
        use super::super::recent::BYTES;
        use crate::gate::RECENT;
        assert_eq!(slot::USER, slot::RECENT + BYTES * RECENT as i32);
        assert_eq!(slot::OTHERS, slot::USER + 8);
        assert_eq!(slot::TURNS - slot::OTHERS, slot::USER - slot::RECENT);
        assert_eq!(slot::SIZE, slot::TURNS + 8);
    }
}
