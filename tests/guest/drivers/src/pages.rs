//! Memory for queues, which is never given back: the guest ends after one command.
#![allow(unsafe_code)]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use virtio_drivers::{BufferDirection, Hal, PAGE_SIZE, PhysAddr};

/// Enough for any driver here.
const PAGES: usize = 64;

#[repr(C, align(4096))]
struct Pool([[u8; PAGE_SIZE]; PAGES]);

static mut POOL: Pool = Pool([[0; PAGE_SIZE]; PAGES]);

/// How many of them are taken.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// Memory as it is here: one to one, and all of it within a device's reach.
pub struct OneToOne;

// SAFETY: pages of the pool are aligned, zero, and given out once; addresses are what they are.
unsafe impl Hal for OneToOne {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let first = TAKEN.fetch_add(pages, Ordering::Relaxed);
        assert!(first + pages <= PAGES, "out of pages");
        // SAFETY: within the pool, and nobody else was given these pages.
        let start = unsafe { (&raw mut POOL).cast::<u8>().add(first * PAGE_SIZE) };
        let start = NonNull::new(start).expect("the pool is not at 0");
        (start.as_ptr() as PhysAddr, start)
    }

    unsafe fn dma_dealloc(_: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).expect("no device is at 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>() as PhysAddr
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}
