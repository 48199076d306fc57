//! VMCALL and VMMCALL, as the guest of a KVM sees them.
//!
//! The interface is that of Linux's `Documentation/virt/kvm/x86/hypercalls.rst`: number in RAX,
//! arguments in RBX, RCX, RDX and RSI, result in RAX. Outside of 64-bit code all are 32 bits wide.
//! CPUID announces one feature that has a call, `KVM_FEATURE_PV_SEND_IPI`.

use super::system::look;
use crate::cpu::Cpu;
use crate::op::{Leave, Op};
use crate::regs::offset;

/// Asked at a level that may not.
const EPERM: i64 = -1;
/// The arguments make no sense.
const EINVAL: i64 = -22;
/// No such call.
const ENOSYS: i64 = -1000;
/// `KVM_HC_SEND_IPI`: one interrupt for many processors.
const SEND_IPI: u64 = 10;
/// The first leaf of the paravirtual interface, and the words of its name.
const LEAF: u32 = 0x4000_0000;
const KVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];

/// VMCALL, VMMCALL: #UD where CPUID does not say that this is KVM.
pub fn call(cpu: &mut Cpu, op: &Op) -> Leave {
    let leaf = cpu.cpuid.get(LEAF, 0);
    if [leaf.ebx, leaf.ecx, leaf.edx] != KVM {
        cpu.ud();
        return cpu.fault(op);
    }
    let wide = cpu.long_code();
    let result = if cpu.cpl != 0 {
        EPERM
    } else {
        match argument(cpu, wide, 0) {
            SEND_IPI => send_ipi(cpu, wide),
            _ => ENOSYS,
        }
    };
    if wide {
        cpu.regs.set::<8>(offset(0), result as u64);
    } else {
        cpu.regs.set::<4>(offset(0), result as u64);
    }
    // The interrupt may be for this processor.
    look(cpu, op)
}

fn argument(cpu: &Cpu, wide: bool, register: u8) -> u64 {
    if wide {
        cpu.regs.get::<8>(offset(register))
    } else {
        cpu.regs.get::<4>(offset(register))
    }
}

/// A bit map of processors in RBX and RCX that begins at the APIC id in RDX, and what the ICR would
/// hold in RSI; the result is how many accepted.
fn send_ipi(cpu: &mut Cpu, wide: bool) -> i64 {
    let [low, high] = [3, 1].map(|register| argument(cpu, wide, register));
    let first = argument(cpu, wide, 2) as u32;
    let icr = argument(cpu, wide, 6) as u32;
    let set = if wide {
        u128::from(low) | u128::from(high) << 64
    } else {
        u128::from(low) | u128::from(high) << 32
    };
    let listed = (0..u128::BITS).filter(|bit| set >> bit & 1 != 0);
    let ids = listed.filter_map(|bit| first.checked_add(bit));
    match cpu.apic.multicast(ids, icr) {
        Some(accepted) => accepted as i64,
        None => EINVAL,
    }
}
