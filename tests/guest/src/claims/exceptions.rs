//! Exceptions: which one, with what error code, pointing where.
#![allow(unsafe_code)]

use core::arch::asm;

use super::{Check, claims};
use crate::cpu;
use crate::descriptors::{self, Gate, selector};
use crate::trap::{Fault, attempt, vector};
use crate::{ensure, needs, same};

/// Not canonical with 48 bits, nor with 57.
const NOT_CANONICAL: u64 = 0x8000_0000_0000_0000;

/// Vector and error code of what ended the attempt.
fn code(fault: Option<Fault>) -> Option<(u64, u64)> {
    fault.map(|f| (f.vector, f.error))
}

/// Runs code that is to fault at its last instruction, and returns the fault with the distance of
/// its instruction pointer from a label in front of that instruction.
macro_rules! at_label {
    ($($code:literal),+ ; $($operands:tt)*) => {{
        let mut label = 0u64;
        let fault = attempt(|| unsafe {
            asm!("lea {label}, [rip + 2f]", "mov [{at}], {label}", $($code),+,
                 label = out(reg) _, at = in(reg) &raw mut label, $($operands)*)
        });
        fault.map(|f| (f, f.rip.wrapping_sub(label)))
    }};
}

fn divide_error_points_at_the_instruction() -> Check {
    let found = at_label!("xor edx, edx", "xor ecx, ecx", "2: div ecx"; out("eax") _, out("ecx") _, out("edx") _);
    same!(
        found.map(|(f, at)| (f.vector, f.error, at)),
        Some((vector::DE, 0, 0)),
        "div by zero"
    );
    let found = at_label!("mov edx, -1", "mov eax, 1", "mov ecx, 1", "2: div ecx"; out("eax") _, out("ecx") _, out("edx") _);
    same!(
        found.map(|(f, at)| (f.vector, at)),
        Some((vector::DE, 0)),
        "a quotient too large"
    );
    let found = at_label!("mov eax, 0x80000000", "mov edx, -1", "mov ecx, -1", "2: idiv ecx"; out("eax") _, out("ecx") _, out("edx") _);
    same!(
        found.map(|(f, at)| (f.vector, at)),
        Some((vector::DE, 0)),
        "the least by minus one"
    );
    Ok(())
}

fn breakpoint_points_behind_the_instruction() -> Check {
    let found = at_label!("2: int3"; );
    same!(
        found.map(|(f, at)| (f.vector, f.error, at)),
        Some((vector::BP, 0, 1)),
        "int3"
    );
    let found = at_label!("2: .byte 0xcd, 3"; );
    same!(
        found.map(|(f, at)| (f.vector, at)),
        Some((vector::BP, 2)),
        "int 3"
    );
    Ok(())
}

fn undefined_opcodes_raise_ud_at_themselves() -> Check {
    let found = at_label!("2: ud2"; );
    same!(
        found.map(|(f, at)| (f.vector, f.error, at)),
        Some((vector::UD, 0, 0)),
        "ud2"
    );
    for bytes in 0..5 {
        let fault = attempt(|| unsafe {
            match bytes {
                0 => asm!(".byte 0x06"),             // PUSH ES
                1 => asm!(".byte 0x27"),             // DAA
                2 => asm!(".byte 0x0f, 0x0b"),       // UD2
                3 => asm!(".byte 0xf0, 0x90"),       // LOCK NOP
                _ => asm!(".byte 0x0f, 0x20, 0xc8"), // MOV from CR1
            }
        });
        same!(fault.map(|f| f.vector), Some(vector::UD), bytes);
    }
    Ok(())
}

fn addresses_that_are_not_canonical_raise_gp_or_ss() -> Check {
    let data = attempt(|| unsafe { asm!("mov {0}, [{0}]", inout(reg) NOT_CANONICAL => _) });
    same!(code(data), Some((vector::GP, 0)), "data");
    needs!(!cpu::is_tcg(), "TCG raises #GP for the stack, too");
    let stack =
        attempt(|| unsafe { asm!("xchg rsp, {0}", "push rax", inout(reg) NOT_CANONICAL => _) });
    same!(code(stack), Some((vector::SS, 0)), "push");
    let frame = attempt(|| unsafe {
        asm!("xchg rbp, {0}", "mov {0}, [rbp + 8]", inout(reg) NOT_CANONICAL => _)
    });
    same!(code(frame), Some((vector::SS, 0)), "by RBP");
    let jump = attempt(|| unsafe { asm!("jmp {0}", in(reg) NOT_CANONICAL, options(noreturn)) });
    same!(code(jump), Some((vector::GP, 0)), "jump");
    Ok(())
}

fn segment_loads_fault_with_the_selector() -> Check {
    let load = |selector: u16| attempt(|| unsafe { asm!("mov es, {0:x}", in(reg) selector) });
    same!(
        code(load(0xfff8)),
        Some((vector::GP, 0xfff8)),
        "beyond the limit"
    );
    same!(
        code(load(selector::ABSENT)),
        Some((vector::NP, selector::ABSENT.into())),
        "absent"
    );
    same!(
        code(load(selector::TASK)),
        Some((vector::GP, selector::TASK.into())),
        "a task state"
    );
    same!(code(load(0)), None, "null");
    same!(code(load(3)), None, "null with a privilege level");
    same!(code(load(selector::DATA)), None, "data");
    needs!(!cpu::is_tcg(), "TCG loads a null stack of any level");
    let stack = |selector: u16| attempt(|| unsafe { asm!("mov ss, {0:x}", in(reg) selector) });
    same!(
        code(stack(3)),
        Some((vector::GP, 0)),
        "a null stack of another level"
    );
    same!(
        code(stack(selector::USER_DATA)),
        Some((vector::GP, 0x20)),
        "a stack of another level"
    );
    same!(
        code(stack(selector::READ_ONLY)),
        Some((vector::GP, 0x38)),
        "a stack that is read-only"
    );
    let absent = attempt(|| unsafe { asm!("mov ss, {0:x}", in(reg) 0x30u16) });
    same!(code(absent), Some((vector::SS, 0x30)), "an absent stack");
    Ok(())
}

fn gates_are_checked_and_named_in_the_error_code() -> Check {
    const VECTOR: usize = 0x91;
    let int = || attempt(|| unsafe { asm!(".byte 0xcd, 0x91") });
    let good = Gate::new(VECTOR, 0, descriptors::IST_ALL);
    same!(code(int()), Some((VECTOR as u64, 0)), "a good gate");
    let absent = Gate {
        low: good.low & !(1 << 47),
        ..good
    };
    needs!(!cpu::is_tcg(), "TCG shifts the vector by one bit more");
    descriptors::set_gate(VECTOR, absent);
    same!(
        code(int()),
        Some((vector::NP, 0x91 << 3 | 2)),
        "an absent gate"
    );
    descriptors::set_gate(
        VECTOR,
        Gate {
            low: good.low & !(0xf << 40),
            ..good
        },
    );
    same!(code(int()), Some((vector::GP, 0x91 << 3 | 2)), "not a gate");
    descriptors::set_gate(VECTOR, good);
    descriptors::set_idt_limit(0x90 * 16 - 1);
    let beyond = int();
    descriptors::set_idt_limit(256 * 16 - 1);
    same!(
        code(beyond),
        Some((vector::GP, 0x91 << 3 | 2)),
        "beyond the limit"
    );
    Ok(())
}

fn a_fault_while_delivering_a_fault_is_a_double_fault() -> Check {
    let gate = Gate::new(vector::DE as usize, 0, descriptors::IST_ALL);
    let absent = Gate {
        low: gate.low & !(1 << 47),
        ..gate
    };
    descriptors::set_gate(vector::DE as usize, absent);
    // #DE, then #NP: both contributory.
    let found = attempt(|| unsafe {
        asm!("div ecx", inout("eax") 1 => _, in("ecx") 0, inout("edx") 0 => _)
    });
    descriptors::set_gate(vector::DE as usize, gate);
    same!(code(found), Some((vector::DF, 0)), "#NP at #DE");
    let gate = Gate::new(vector::PF as usize, 0, descriptors::IST_ALL);
    descriptors::set_gate(
        vector::PF as usize,
        Gate {
            low: gate.low & !(1 << 47),
            ..gate
        },
    );
    let found =
        attempt(|| unsafe { asm!("mov al, [{0}]", in(reg) 0x200_0000_0000u64, out("al") _) });
    descriptors::set_gate(vector::PF as usize, gate);
    same!(code(found), Some((vector::DF, 0)), "#NP at #PF");
    // #UD is benign: the second fault is delivered alone.
    let gate = Gate::new(vector::UD as usize, 0, descriptors::IST_ALL);
    descriptors::set_gate(
        vector::UD as usize,
        Gate {
            low: gate.low & !(1 << 47),
            ..gate
        },
    );
    let found = attempt(|| unsafe { asm!("ud2") });
    descriptors::set_gate(vector::UD as usize, gate);
    same!(found.map(|f| f.vector), Some(vector::NP), "#NP at #UD");
    Ok(())
}

fn the_floating_point_unit_can_be_made_unavailable() -> Check {
    const MP_EM_TS: [(u64, bool, bool, bool); 4] = [
        // bits, FNOP faults, WAIT faults, MOVUPS faults with #NM
        (1 << 1, false, false, false),
        (1 << 1 | 1 << 3, true, true, true),
        (1 << 3, true, false, true),
        (1 << 1, false, false, false),
    ];
    let cr0 = cpu::cr0();
    for (bits, fnop, wait, sse) in MP_EM_TS {
        let now = cr0 & !0xe | bits;
        let nm = |fault: Option<Fault>| fault.map(|f| f.vector) == Some(vector::NM);
        let found = [
            attempt(|| unsafe {
                asm!("mov cr0, {0}", "fnop", "mov cr0, {1}", in(reg) now, in(reg) cr0)
            }),
            attempt(|| unsafe {
                asm!("mov cr0, {0}", "wait", "mov cr0, {1}", in(reg) now, in(reg) cr0)
            }),
            attempt(|| unsafe {
                asm!("mov cr0, {0}", "movups xmm0, xmm0", "mov cr0, {1}", in(reg) now, in(reg) cr0)
            }),
        ];
        cpu::set_cr0(cr0);
        same!(found.map(nm), [fnop, wait, sse], bits);
    }
    let emulate = cr0 & !0xe | 1 << 2;
    let found = attempt(|| unsafe { asm!("mov cr0, {0}", "movups xmm0, xmm0", in(reg) emulate) });
    cpu::set_cr0(cr0);
    same!(found.map(|f| f.vector), Some(vector::UD), "SSE with CR0.EM");
    Ok(())
}

fn numeric_exceptions_wait_for_the_next_instruction() -> Check {
    let x87 = at_label!("fninit", "fldcw [{cw}]", "fldz", "fld1", "fdiv st, st(1)", "2: fwait";
                        cw = in(reg) &0x037bu16);
    unsafe { asm!("fninit") }
    same!(
        x87.map(|(f, at)| (f.vector, f.error, at)),
        Some((vector::MF, 0, 0)),
        "x87"
    );
    needs!(!cpu::is_tcg(), "TCG raises no #XM");
    let sse = at_label!("ldmxcsr [{csr}]", "xorps xmm0, xmm0", "2: divps xmm0, xmm0";
                        csr = in(reg) &0x1f00u32, out("xmm0") _);
    unsafe { asm!("ldmxcsr [{0}]", in(reg) &0x1f80u32) }
    same!(
        sse.map(|(f, at)| (f.vector, f.error, at)),
        Some((vector::XM, 0, 0)),
        "SSE"
    );
    Ok(())
}

fn misaligned_sse_operands_raise_gp() -> Check {
    let bytes = [0u8; 48];
    let odd = (&raw const bytes as u64 + 15) & !15 | 8;
    let found = attempt(|| unsafe { asm!("movaps xmm0, [{0}]", in(reg) odd, out("xmm0") _) });
    same!(code(found), Some((vector::GP, 0)), "movaps");
    let found = attempt(|| unsafe { asm!("movups xmm0, [{0}]", in(reg) odd, out("xmm0") _) });
    same!(code(found), None, "movups");
    Ok(())
}

fn an_instruction_has_fifteen_bytes_at_most() -> Check {
    let fifteen = attempt(|| unsafe { asm!(".fill 14, 1, 0x66", "nop") });
    same!(code(fifteen), None, "fifteen");
    let sixteen = attempt(|| unsafe { asm!(".fill 15, 1, 0x66", "nop") });
    same!(code(sixteen), Some((vector::GP, 0)), "sixteen");
    Ok(())
}

fn iretq_checks_what_it_loads() -> Check {
    let iret = |cs: u64, ss: u64| {
        attempt(|| unsafe {
            asm!("mov rax, rsp", "push {ss}", "push rax", "pushfq", "push {cs}",
                 "lea rax, [rip + 2f]", "push rax", "iretq", "2:",
                 ss = in(reg) ss, cs = in(reg) cs, out("rax") _)
        })
    };
    same!(code(iret(0x08, 0x10)), None, "a good frame");
    same!(
        code(iret(0x10, 0x10)),
        Some((vector::GP, 0x10)),
        "data for code"
    );
    same!(
        code(iret(0x00, 0x10)),
        Some((vector::GP, 0)),
        "null for code"
    );
    same!(
        code(iret(0x08, 0x20)),
        Some((vector::GP, 0x20)),
        "a stack of another level"
    );
    ensure!(
        iret(0x08, 0).is_none(),
        "a null stack at level 0 is allowed"
    );
    unsafe { asm!("mov ss, {0:x}", in(reg) selector::DATA) }
    Ok(())
}

claims! {
    divide_error_points_at_the_instruction: "SDM vol. 3, 6.15, #DE",
    breakpoint_points_behind_the_instruction: "SDM vol. 3, 6.15, #BP",
    undefined_opcodes_raise_ud_at_themselves: "SDM vol. 3, 6.15, #UD",
    addresses_that_are_not_canonical_raise_gp_or_ss: "SDM vol. 3, 6.15, #GP and #SS",
    segment_loads_fault_with_the_selector: "SDM vol. 3, 6.13",
    gates_are_checked_and_named_in_the_error_code: "SDM vol. 3, 6.12.1 and 6.13",
    a_fault_while_delivering_a_fault_is_a_double_fault: "SDM vol. 3, 6.15, #DF, table 6-5",
    the_floating_point_unit_can_be_made_unavailable: "SDM vol. 3, 2.5, table 2-2",
    numeric_exceptions_wait_for_the_next_instruction: "SDM vol. 3, 6.15, #MF and #XM",
    misaligned_sse_operands_raise_gp: "SDM vol. 3, 6.15, #GP",
    an_instruction_has_fifteen_bytes_at_most: "SDM vol. 3, 6.15, #GP",
    iretq_checks_what_it_loads: "SDM vol. 3, 6.14.3",
}
