//! KVM's dirty marks, brought into the log of the regions.
//!
//! ```text
//!   bitmap   KVM_GET_DIRTY_LOG ──> marks in the log; with manual protection the pages stay writable
//!            harvest takes the marks; KVM_CLEAR_DIRTY_LOG takes the write rights of those pages
//!   ring     each processor's ring ──> marks in the log; KVM_RESET_DIRTY_RINGS takes the rights
//! ```
//! In both a mark is in the log before the write right goes, and the right has gone before whoever
//! harvests copies the page (rule R39): a write is in the copy, or marks the page anew.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use parking_lot::Mutex;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use umbra_slots::{DirtyPages, SlotError};
use vm_memory::bitmap::Bitmap;

use crate::raw;
use crate::slots::Piece;
use crate::vm::Vm;

const PAGE: u64 = 0x1000;

/// Marks in the log what KVM's bitmap of a piece marks.
pub(crate) fn collect_bitmap(vm: &Vm, id: u32, piece: &Piece) -> Result<(), SlotError> {
    let failed = |errno: vmm_sys_util::errno::Error| SlotError::Host {
        call: "KVM_GET_DIRTY_LOG",
        range: piece.range,
        source: errno.into(),
    };
    let len = usize::try_from(piece.range.len()).expect("a piece is mapped, so its size fits");
    let words = vm.fd().get_dirty_log(id, len).map_err(failed)?;
    for (word, first) in words.iter().zip((0u64..).step_by(64)) {
        for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
            mark(piece, first + bit);
        }
    }
    Ok(())
}

fn mark(piece: &Piece, page: u64) {
    if page < piece.range.len() / PAGE {
        let at = piece.offset + page * PAGE;
        piece.region.dirty().mark_dirty(at as usize, PAGE as usize);
    }
}

/// Clears in KVM's bitmap what was harvested, and takes the write rights of those pages.
pub(crate) fn clear_bitmap(vm: &Vm, id: u32, piece: &Piece, pages: &DirtyPages) -> io::Result<()> {
    let (first, last) = (piece.range.start().gfn().0, piece.range.last().gfn().0);
    let total = last - first + 1;
    let mut words = vec![0u64; total.div_ceil(64) as usize];
    for gfn in pages.iter().filter(|gfn| (first..=last).contains(&gfn.0)) {
        let page = gfn.0 - first;
        words[(page / 64) as usize] |= 1 << (page % 64);
    }
    // Only runs of words that have a bit: the call costs by the page that it is told.
    let mut at = 0;
    while at < words.len() {
        if words[at] == 0 {
            at += 1;
            continue;
        }
        let run = words[at..].iter().take_while(|word| **word != 0).count();
        let (from, to) = (at as u64 * 64, ((at + run) as u64 * 64).min(total));
        raw::clear_dirty_log(vm.fd(), id, from, (to - from) as u32, &words[at..at + run])?;
        at += run;
    }
    Ok(())
}

/// An entry was written by KVM.
const DIRTY: u32 = 1;
/// An entry was collected.
const RESET: u32 = 2;

/// The dirty ring of one processor (KVM API, 8.29).
struct Ring {
    start: NonNull<kvm_dirty_gfn>,
    entries: u32,
    next: u32,
}

// SAFETY: the mapping belongs to the value; whoever uses it does so under the lock of `Rings`.
#[allow(unsafe_code)]
unsafe impl Send for Ring {}

#[allow(unsafe_code)]
impl Ring {
    fn map(vcpu: impl AsFd, entries: u32) -> io::Result<Self> {
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE;
        // SAFETY: a new mapping where the kernel finds room.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                Self::bytes(entries),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                vcpu,
                offset,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self {
            start,
            entries,
            next: 0,
        })
    }

    fn bytes(entries: u32) -> usize {
        entries as usize * size_of::<kvm_dirty_gfn>()
    }

    /// Takes the next entry that KVM has written: slot and page.
    fn take(&mut self) -> Option<(u32, u64)> {
        let at = (self.next % self.entries) as usize;
        // SAFETY: inside the mapping. The kernel writes `flags` last, so what is read after it is
        // complete; it does not write the entry again before it is reset.
        let (flags, entry) = unsafe {
            let entry = self.start.as_ptr().add(at);
            (AtomicU32::from_ptr(&raw mut (*entry).flags), entry)
        };
        if flags.load(Ordering::Acquire) & DIRTY == 0 {
            return None;
        }
        // SAFETY: the same.
        let (slot, page) = unsafe { ((*entry).slot, (*entry).offset) };
        flags.store(RESET, Ordering::Release);
        self.next = self.next.wrapping_add(1);
        Some((slot, page))
    }
}

#[allow(unsafe_code)]
impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and nobody has a reference any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), Self::bytes(self.entries)) };
    }
}

/// The dirty rings of all processors.
pub(crate) struct Rings {
    vm: Arc<Vm>,
    entries: u32,
    rings: Mutex<Vec<Ring>>,
}

impl Rings {
    /// Makes the set; each ring will have so many entries.
    pub fn new(vm: Arc<Vm>, entries: u32) -> Self {
        Self {
            vm,
            entries,
            rings: Mutex::default(),
        }
    }

    /// Adds the ring of a processor that was just made.
    pub fn add(&self, vcpu: impl AsFd) -> io::Result<()> {
        let ring = Ring::map(vcpu, self.entries)?;
        self.rings.lock().push(ring);
        Ok(())
    }

    /// Marks in the log what all rings hold, and takes the write rights of those pages.
    pub fn collect(&self, live: &BTreeMap<u32, Piece>) -> io::Result<()> {
        let mut rings = self.rings.lock();
        let mut taken = false;
        for ring in rings.iter_mut() {
            while let Some((slot, page)) = ring.take() {
                taken = true;
                // The upper half names the address space; there is one.
                match live.get(&(slot & 0xffff)) {
                    Some(piece) => mark(piece, page),
                    // Its RAM has left, and with it whoever wanted to know.
                    None => tracing::trace!(slot, page, "a dirty page of a slot that has gone"),
                }
            }
        }
        if taken {
            fence(Ordering::SeqCst);
            raw::reset_dirty_rings(self.vm.fd())?;
        }
        Ok(())
    }
}
