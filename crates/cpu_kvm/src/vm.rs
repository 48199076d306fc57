//! One machine of KVM's: its descriptor, and what it can do.

use std::io;

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_EXIT_ON_EMULATION_FAILURE,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_X86_TRIPLE_FAULT_EVENT,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_clock_data, kvm_enable_cap,
    kvm_userspace_memory_region, kvm_userspace_memory_region2,
};
use kvm_ioctls::{Cap, VmFd};
use umbra_cpu::CpuError;

use crate::host::Host;
use crate::slots::{Piece, set_region, set_region2};

/// Three pages that Intel's processors need for real mode where they have no unrestricted guest;
/// below the reset vector's page, where no device is.
pub(crate) const TSS_ADDRESS: usize = 0xfffb_d000;
/// A page table for the same.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// What this machine can do, as its kernel says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Slots of memory.
    pub slots: usize,
    /// `KVM_SET_USER_MEMORY_REGION2`.
    pub region2: bool,
    /// Interrupt routes.
    pub routes: u32,
    /// Only local APICs in the kernel.
    pub split_irqchip: bool,
    /// Write rights go when the user says so, not when marks are read.
    pub manual_dirty_protect: bool,
    /// The largest dirty ring in bytes, 0 if there are none.
    pub dirty_ring: u32,
    /// Frequencies of the time-stamp counter other than the host's.
    pub tsc_control: bool,
}

/// A machine.
pub(crate) struct Vm {
    fd: VmFd,
    limits: Limits,
}

/// Makes an error of a failed call.
pub(crate) fn failed<E: Into<io::Error>>(call: &'static str) -> impl FnOnce(E) -> CpuError {
    move |error| CpuError::Host {
        call,
        source: error.into(),
    }
}

impl Vm {
    /// Makes a machine without processors or memory.
    pub fn new(host: &Host) -> Result<Self, CpuError> {
        let unsupported = |error: crate::HostError| CpuError::Unsupported {
            backend: "KVM",
            reason: match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            },
        };
        let fd = host.create_vm().map_err(unsupported)?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS_ADDRESS)
            .map_err(failed("KVM_SET_TSS_ADDR"))?;
        let int = |cap| fd.check_extension_int(cap);
        let raw = |cap: u32| fd.check_extension_raw(cap.into());
        let ring = raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL).max(raw(KVM_CAP_DIRTY_LOG_RING));
        let limits = Limits {
            slots: usize::try_from(int(Cap::NrMemslots))
                .ok()
                .filter(|n| *n > 0)
                .unwrap_or(32),
            region2: int(Cap::UserMemory2) > 0,
            routes: u32::try_from(int(Cap::IrqRouting)).unwrap_or(0),
            split_irqchip: int(Cap::SplitIrqchip) > 0,
            manual_dirty_protect: raw(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
                & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE as i32
                != 0,
            dirty_ring: u32::try_from(ring).unwrap_or(0),
            tsc_control: int(Cap::TscControl) > 0,
        };
        let vm = Self { fd, limits };
        if raw_has(&vm, KVM_CAP_EXIT_ON_EMULATION_FAILURE) {
            vm.enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)?;
        }
        if raw_has(&vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT) {
            vm.enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)?;
        }
        Ok(vm)
    }

    /// Sets kvmclock, so that it reads what the machine's clock does.
    pub fn set_clock(&self, nanoseconds: u64) -> Result<(), CpuError> {
        let clock = kvm_clock_data {
            clock: nanoseconds,
            ..Default::default()
        };
        self.fd.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))
    }

    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Turns a capability on.
    pub fn enable(&self, cap: u32, argument: u64) -> Result<(), CpuError> {
        let mut request = kvm_enable_cap {
            cap,
            ..Default::default()
        };
        request.args[0] = argument;
        self.fd
            .enable_cap(&request)
            .map_err(failed("KVM_ENABLE_CAP"))
    }

    /// Lets marks be read without taking write rights; before the first slot that is logged.
    pub fn protect_manually(&self) -> Result<(), CpuError> {
        if !self.limits.manual_dirty_protect {
            return Ok(());
        }
        let how = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE);
        self.enable(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, how)
    }

    /// Gives every processor a dirty ring of so many bytes; before the first processor.
    pub fn enable_rings(&self, bytes: u32) -> Result<(), CpuError> {
        let cap = if raw_has(self, KVM_CAP_DIRTY_LOG_RING_ACQ_REL) {
            KVM_CAP_DIRTY_LOG_RING_ACQ_REL
        } else {
            KVM_CAP_DIRTY_LOG_RING
        };
        self.enable(cap, bytes.into())
    }

    /// Sets slot `id` to the first `len` bytes of a piece; 0 deletes it.
    pub fn set_slot(&self, id: u32, piece: &Piece, len: u64) -> io::Result<()> {
        let (guest_phys_addr, flags) = (piece.range.start().0, piece.flags);
        let userspace_addr = piece.region.host_addr(piece.offset).as_ptr() as u64;
        tracing::trace!(id, range = %piece.range, len, flags, "KVM_SET_USER_MEMORY_REGION");
        if self.limits.region2 {
            return set_region2(
                &self.fd,
                kvm_userspace_memory_region2 {
                    slot: id,
                    flags,
                    guest_phys_addr,
                    memory_size: len,
                    userspace_addr,
                    ..Default::default()
                },
            );
        }
        set_region(
            &self.fd,
            kvm_userspace_memory_region {
                slot: id,
                flags,
                guest_phys_addr,
                memory_size: len,
                userspace_addr,
            },
        )
    }
}

fn raw_has(vm: &Vm, cap: u32) -> bool {
    vm.fd.check_extension_raw(cap.into()) > 0
}

/// Borrows a processor's descriptor: `kvm-ioctls` gives the bare number only.
#[allow(unsafe_code)]
pub(crate) fn borrow(vcpu: &kvm_ioctls::VcpuFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `vcpu` lives, and so does the borrow.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(vcpu)) }
}
