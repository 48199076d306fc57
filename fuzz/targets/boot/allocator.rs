//! An allocator that ends the process when somebody believes a length that a file states.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

/// Images are smaller than 64 KiB, and a buffer to copy through is 1 MiB.
const LIMIT: usize = 4 << 20;

static LIMITED: AtomicBool = AtomicBool::new(false);

/// Runs `body` with the limit.
pub fn limited<R>(body: impl FnOnce() -> R) -> R {
    LIMITED.store(true, Ordering::Relaxed);
    let result = body();
    LIMITED.store(false, Ordering::Relaxed);
    result
}

struct Limited;

fn check(len: usize) {
    if len > LIMIT && LIMITED.swap(false, Ordering::Relaxed) {
        eprintln!("an allocation of {len} bytes");
        eprintln!("{}", std::backtrace::Backtrace::force_capture());
        std::process::abort();
    }
}

// SAFETY: everything is the system's; `check` neither unwinds nor touches the arguments.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        check(len);
        // SAFETY: the caller's promises are the same.
        unsafe { System.realloc(old, layout, len) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Limited = Limited;
