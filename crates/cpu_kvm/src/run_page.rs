//! The page that KVM shares for each processor (`struct kvm_run`), as other threads see it.
//!
//! `kvm-ioctls` has a mapping of its own, for the thread that runs the processor. This second one is
//! for the few bytes that both sides touch while the processor runs, as atomics.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Offsets in `struct kvm_run` (linux/kvm.h): part of the kernel's stable interface.
mod offset {
    pub const REQUEST_INTERRUPT_WINDOW: usize = 0;
    pub const IMMEDIATE_EXIT: usize = 1;
    pub const READY_FOR_INTERRUPT: usize = 12;
    pub const IF_FLAG: usize = 13;
    /// `io.size`, valid after an exit for a port.
    pub const IO_SIZE: usize = 33;
}

const LEN: usize = 0x1000;

/// The first page of `struct kvm_run`.
pub struct RunPage {
    start: NonNull<u8>,
}

// SAFETY: only atomics are reached through it, and the mapping lives as long as the value.
unsafe impl Send for RunPage {}
// SAFETY: the same.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the page of a processor.
    pub fn map(vcpu: impl AsFd) -> io::Result<Self> {
        // SAFETY: a new mapping where the kernel finds room.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                LEN,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                vcpu,
                0,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start })
    }

    fn byte(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < LEN);
        // SAFETY: inside the mapping, aligned as a byte is; the kernel writes it as a whole.
        unsafe { AtomicU8::from_ptr(self.start.as_ptr().add(offset)) }
    }

    /// Makes the next, or the current, entry return at once, or not.
    pub fn set_immediate_exit(&self, on: bool) {
        self.byte(offset::IMMEDIATE_EXIT)
            .store(u8::from(on), Ordering::SeqCst);
    }

    /// Asks for an exit as soon as the guest can take an interrupt of the 8259, or not.
    pub fn request_interrupt_window(&self, on: bool) {
        self.byte(offset::REQUEST_INTERRUPT_WINDOW)
            .store(u8::from(on), Ordering::Relaxed);
    }

    /// The guest could take an interrupt of the 8259 when it was left.
    pub fn ready_for_interrupt(&self) -> bool {
        self.byte(offset::READY_FOR_INTERRUPT)
            .load(Ordering::Relaxed)
            != 0
            && self.byte(offset::IF_FLAG).load(Ordering::Relaxed) != 0
    }

    /// Width of the port access that the guest was left for; 1, 2 or 4.
    pub fn port_width(&self) -> usize {
        usize::from(self.byte(offset::IO_SIZE).load(Ordering::Relaxed)).max(1)
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and nobody has a reference any more.
        // A failure would leave a page mapped: nothing depends on it.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), LEN) };
    }
}
