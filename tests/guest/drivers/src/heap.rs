//! Memory for what drivers allocate, which is never given back: the guest ends after one command.
#![allow(unsafe_code)]

use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicUsize, Ordering};

/// Enough for any driver here.
const LEN: usize = 4 << 20;

#[repr(C, align(4096))]
struct Pool([u8; LEN]);

static mut POOL: Pool = Pool([0; LEN]);

/// How much of it is taken.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

struct Heap;

#[global_allocator]
static HEAP: Heap = Heap;

// SAFETY: bytes of the pool are given out once, aligned (up to its own alignment), and zero.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = (&raw mut POOL).cast::<u8>();
        let align = layout.align();
        if align > align_of::<Pool>() {
            return core::ptr::null_mut();
        }
        let place = |taken: usize| taken.next_multiple_of(align);
        let took = TAKEN.try_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            let end = place(taken).checked_add(layout.size())?;
            (end <= LEN).then_some(end)
        });
        match took {
            // SAFETY: it ends within the pool.
            Ok(taken) => unsafe { start.add(place(taken)) },
            Err(_) => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
