//! VMCALL and VMMCALL, as the guest of a KVM sees them.
//!
//! The interface is that of Linux's `Documentation/virt/kvm/x86/hypercalls.rst`: number in RAX,
//! result in RAX. CPUID announces no feature that has a call, so none does anything here.

use crate::cpu::Cpu;
use crate::op::{Leave, Op, next};
use crate::regs::offset;

/// Asked at a level that may not.
const EPERM: i64 = -1;
/// No such call.
const ENOSYS: i64 = -1000;
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
    let result = if cpu.cpl == 0 { ENOSYS } else { EPERM };
    if cpu.long_code() {
        cpu.regs.set::<8>(offset(0), result as u64);
    } else {
        cpu.regs.set::<4>(offset(0), result as u64);
    }
    next(cpu, op)
}
