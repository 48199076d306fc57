//! Does this KVM run stock systems? Opening it is no proof.
//!
//! Some hosts offer a `/dev/kvm` without hardware behind it, which interprets the guest's
//! instructions a hundred times more slowly than the software processor, and does not know all of
//! them. So a few thousand instructions are run, and timed, before `--backend auto` chooses KVM.

use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes, GuestMemoryBackend};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::host::{Host, HostError};

/// Why a KVM that works is not fit for stock systems.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// It is too slow.
    #[error(
        "KVM is there but runs {instructions} instructions in {micros} us, as one without hardware \
         help does; the software processor is faster. To use it all the same: --backend kvm"
    )]
    Slow {
        /// How many.
        instructions: u64,
        /// In how many microseconds, at best.
        micros: u64,
    },
    /// It cannot execute an instruction that every 64-bit system uses.
    #[error(
        "KVM is there but cannot execute SSE instructions ({reason}), as one without hardware help; \
         stock systems need them. To use it all the same: --backend kvm"
    )]
    NoSse {
        /// What it said.
        reason: String,
    },
}

/// `mov cr4.osfxsr; mov cx, 2000; loop $; hlt; xorps xmm0, xmm0; hlt` in real mode.
const CODE: [u8; 24] = [
    0x0f, 0x20, 0xe0, // mov eax, cr4
    0x66, 0x0d, 0x00, 0x02, 0x00, 0x00, // or eax, 1 << 9
    0x0f, 0x22, 0xe0, // mov cr4, eax
    0xb9, 0xd0, 0x07, // mov cx, 2000
    0xe2, 0xfe, // loop $
    0xf4, // hlt
    0x0f, 0x57, 0xc0, // xorps xmm0, xmm0
    0xf4, 0x90, 0x90, // hlt
];
/// Where the code is.
const START: u64 = 0x1000;
/// Iterations of the loop, one instruction each.
const INSTRUCTIONS: u64 = 2000;
/// Slower than this, at best of three, is interpreted: ten million instructions a second.
const LIMIT: Duration = Duration::from_micros(200);
const TRIES: usize = 3;

/// Runs a few thousand instructions in a machine of their own.
///
/// # Errors
/// If KVM gives no machine, or runs it too slowly, or not all of it.
pub fn run(host: &Host) -> Result<(), HostError> {
    let failed = |errno: vmm_sys_util::errno::Error| HostError::CreateVm(errno.into());
    let vm = host.create_vm()?;
    vm.set_tss_address(crate::vm::TSS_ADDRESS).map_err(failed)?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x2000)])
        .map_err(|error| HostError::CreateVm(std::io::Error::other(error)))?;
    memory
        .write_slice(&CODE, GuestAddress(START))
        .expect("the code fits into two pages");
    let address = memory
        .get_host_address(GuestAddress(0))
        .expect("memory begins at 0");
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: 0x2000,
        userspace_addr: address as u64,
    };
    crate::slots::set_region(&vm, region).map_err(HostError::CreateVm)?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed)?;
    let cpuid = host
        .kvm()
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(failed)?;
    vcpu.set_cpuid2(&cpuid).map_err(failed)?;
    let mut sregs = vcpu.get_sregs().map_err(failed)?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).map_err(failed)?;

    let mut best = Duration::MAX;
    for _ in 0..TRIES {
        let regs = kvm_regs {
            rip: START,
            rflags: 2,
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(failed)?;
        let start = Instant::now();
        until_halt(&mut vcpu)?;
        best = best.min(start.elapsed());
        if best <= LIMIT {
            break;
        }
    }
    if best > LIMIT {
        return Err(Unfit::Slow {
            instructions: INSTRUCTIONS,
            micros: best.as_micros() as u64,
        }
        .into());
    }
    until_halt(&mut vcpu)
}

fn until_halt(vcpu: &mut kvm_ioctls::VcpuFd) -> Result<(), HostError> {
    loop {
        let reason = match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(()),
            // Somebody's signal.
            Ok(VcpuExit::Intr) => continue,
            Err(errno) if matches!(errno.errno(), libc::EINTR | libc::EAGAIN) => continue,
            Ok(exit) => format!("{exit:?}"),
            Err(errno) => errno.to_string(),
        };
        return Err(Unfit::NoSse { reason }.into());
    }
}
