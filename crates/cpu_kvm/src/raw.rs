//! Calls to KVM that `kvm-ioctls` does not wrap, or wraps for less than is needed here.
//!
//! Unsafe because an `ioctl` is: each function takes and gives plain values, and the kernel reads or
//! writes exactly the structures that are named.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use kvm_bindings::{
    KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET,
    KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_device_attr, kvm_ioeventfd,
    kvm_irqfd, kvm_sregs2, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

use crate::convert;

/// `struct kvm_signal_mask` with the eight bytes that the kernel asks for on x86.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; 8],
}

/// The size by which the number is made: the set itself is a flexible array.
#[repr(C)]
struct SignalMaskHead {
    len: u32,
}

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, SignalMaskHead);
ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, u32);
ioctl_iow_nr!(KVM_IRQFD, KVMIO, 0x76, kvm_irqfd);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

fn check(result: i32) -> io::Result<i32> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets which signals are blocked while the processor is in the guest; bit N - 1 is signal N.
pub fn set_signal_mask(vcpu: &impl AsRawFd, blocked: u64) -> io::Result<()> {
    let mask = SignalMask {
        len: 8,
        set: blocked.to_ne_bytes(),
    };
    // SAFETY: the kernel reads `len` and then `len` bytes behind it, which are `set`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) }).map(drop)
}

/// Injects the vector that an 8259 outside the kernel has given.
pub fn interrupt(vcpu: &impl AsRawFd, vector: u8) -> io::Result<()> {
    let vector = u32::from(vector);
    // SAFETY: the kernel reads one word, `struct kvm_interrupt`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &vector) }).map(drop)
}

/// Wires an event to an interrupt number; with `resample` as a level-triggered line.
pub fn wire(
    vm: &impl AsRawFd,
    event: BorrowedFd<'_>,
    resample: Option<BorrowedFd<'_>>,
    gsi: u32,
) -> io::Result<()> {
    irqfd(
        vm,
        kvm_irqfd {
            fd: event.as_raw_fd() as u32,
            resamplefd: resample.map_or(0, |fd| fd.as_raw_fd()) as u32,
            gsi,
            flags: if resample.is_some() {
                KVM_IRQFD_FLAG_RESAMPLE
            } else {
                0
            },
            ..Default::default()
        },
    )
}

/// Takes the wire away. When this returns no event raises the interrupt; what was signalled before
/// and not delivered stays in the descriptor.
pub fn unwire(vm: &impl AsRawFd, event: BorrowedFd<'_>, gsi: u32) -> io::Result<()> {
    irqfd(
        vm,
        kvm_irqfd {
            fd: event.as_raw_fd() as u32,
            gsi,
            flags: KVM_IRQFD_FLAG_DEASSIGN,
            ..Default::default()
        },
    )
}

fn irqfd(vm: &impl AsRawFd, request: kvm_irqfd) -> io::Result<()> {
    // SAFETY: the kernel reads this structure; it checks the descriptors in it.
    check(unsafe { ioctl_with_ref(vm, KVM_IRQFD(), &request) }).map(drop)
}

/// A write that signals an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoEvent {
    /// Guest-physical address.
    pub address: u64,
    /// Width in bytes, 0 for any.
    pub len: u32,
    /// Only this value signals.
    pub value: Option<u64>,
}

const DATAMATCH: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_datamatch;
const DEASSIGN: u32 = 1 << kvm_bindings::kvm_ioeventfd_flag_nr_deassign;

/// Lets a write signal `event`, or no more.
pub fn io_event(vm: &impl AsRawFd, at: IoEvent, event: RawFd, on: bool) -> io::Result<()> {
    let flags = at.value.map_or(0, |_| DATAMATCH) | if on { 0 } else { DEASSIGN };
    let request = kvm_ioeventfd {
        datamatch: at.value.unwrap_or(0),
        addr: at.address,
        len: at.len,
        fd: event,
        flags,
        ..Default::default()
    };
    // SAFETY: the kernel reads this structure; it checks the descriptor in it.
    check(unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), &request) }).map(drop)
}

/// Clears dirty bits of a slot and takes away the write rights of their pages. `first` is a multiple
/// of 64, and so is `pages`, unless they reach to the end of the slot.
pub fn clear_dirty_log(
    vm: &impl AsRawFd,
    slot: u32,
    first: u64,
    pages: u32,
    bits: &[u64],
) -> io::Result<()> {
    assert!(bits.len() as u64 * 64 >= u64::from(pages));
    let request = kvm_clear_dirty_log {
        slot,
        num_pages: pages,
        first_page: first,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bits.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: the kernel reads the structure, and `pages` bits, which are there (asserted).
    check(unsafe { ioctl_with_ref(vm, KVM_CLEAR_DIRTY_LOG(), &request) }).map(drop)
}

/// Takes the write rights of the pages away whose entries in dirty rings were collected.
pub fn reset_dirty_rings(vm: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: there is no argument.
    check(unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) }).map(drop)
}

ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xcc, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xcd, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Reads segment, control and page-directory-pointer registers; without the last where the kernel is older
/// than 5.14.
pub fn get_sregs2(vcpu: &VcpuFd) -> io::Result<kvm_sregs2> {
    let mut registers = kvm_sregs2::default();
    // SAFETY: the kernel writes this structure.
    match check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut registers) }) {
        Err(error) if is_unknown(&error) => Ok(convert::upgrade(&vcpu.get_sregs()?)),
        result => result.map(|_| registers),
    }
}

/// Writes them, the same way.
pub fn set_sregs2(vcpu: &VcpuFd, registers: &kvm_sregs2) -> io::Result<()> {
    // SAFETY: the kernel reads this structure.
    match check(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), registers) }) {
        Err(error) if is_unknown(&error) => vcpu
            .set_sregs(&convert::downgrade(registers))
            .map_err(Into::into),
        result => result.map(drop),
    }
}

/// The kernel knows no such call.
fn is_unknown(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTTY)
}

/// Reads the offset of a processor's time-stamp counter from the host's; `None` where the kernel is older
/// than 5.16.
pub fn tsc_offset(vcpu: &VcpuFd) -> io::Result<Option<u64>> {
    let mut offset = 0u64;
    let attribute = tsc_attribute(&raw mut offset);
    // SAFETY: the kernel reads the structure and writes eight bytes at `addr`, which is `offset`.
    match check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) }) {
        Err(error) if is_unknown(&error) || error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        result => result.map(|_| Some(offset)),
    }
}

/// Sets it.
pub fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> io::Result<()> {
    let attribute = tsc_attribute(&raw mut offset);
    // SAFETY: the kernel reads the structure, and eight bytes at `addr`, which is `offset`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) }).map(drop)
}

fn tsc_attribute(word: *mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: word as u64,
        ..Default::default()
    }
}

/// Writes the XSAVE area.
pub fn set_xsave(vcpu: &VcpuFd, area: &kvm_xsave) -> io::Result<()> {
    // SAFETY: the kernel reads 4096 bytes, which the area has: no guest was granted larger state
    // (`arch_prctl`), so it asks for no more.
    unsafe { vcpu.set_xsave(area) }.map_err(Into::into)
}
