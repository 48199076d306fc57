//! The pieces of memory of one request, under raw pointers: the kernel, or a thread of an engine, fills
//! them while the guest may do with its memory what it likes.
//!
//! Unsafe because nothing of Rust describes memory that others change: it is never under a reference,
//! and its bytes are moved by system calls, or volatile by `vm-memory`. What makes the pointers good
//! is the keeper beside them, which holds the map (or the allocation) they were made from.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::fmt;

use umbra_slots::{DmaMemory, Gpa};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, Permissions, VolatileSlice};

/// What is done with guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The guest's bytes go to the disk.
    Read,
    /// The disk's bytes go to the guest.
    Write,
}

/// Guest memory that is not there, or may not be written.
#[derive(Debug, thiserror::Error)]
#[error("{len:#x} bytes of guest memory at {at} are out of reach")]
pub struct OutOfReach {
    /// Where.
    pub at: Gpa,
    /// How many.
    pub len: u32,
    /// Why.
    #[source]
    pub source: GuestMemoryError,
}

/// The memory of one request: pieces in order, mapped as long as this lives.
pub struct Buffers {
    pieces: Vec<libc::iovec>,
    len: usize,
    keeper: Keeper,
}

/// What keeps the pieces where they are.
enum Keeper {
    Guest {
        memory: DmaMemory,
        /// Where the pieces are for the guest, in any order; empty if nothing is stored there.
        marks: Vec<(Gpa, usize)>,
    },
    Host {
        _bytes: Box<[UnsafeCell<u8>]>,
    },
}

// SAFETY: the pointers are not bound to a thread; the memory behind them is only moved by system calls
// and volatile accesses, and what keeps it (a map, an allocation that nothing else reaches) may be
// dropped anywhere.
unsafe impl Send for Buffers {}

// SAFETY: all that can be done through a shared reference moves bytes by system calls or volatile
// accesses. Two at a time leave any mixture of bytes, which guest memory may hold at any time.
unsafe impl Sync for Buffers {}

impl Buffers {
    /// Takes guest memory, ranges in order.
    ///
    /// # Errors
    /// If some byte is no RAM, or is to be written and may only be read.
    pub fn guest(
        memory: &DmaMemory,
        ranges: &[(Gpa, u32)],
        access: Access,
    ) -> Result<Self, OutOfReach> {
        let rights = match access {
            Access::Read => Permissions::Read,
            Access::Write => Permissions::Write,
        };
        let mut pieces = Vec::with_capacity(ranges.len());
        let mut marks = Vec::new();
        let mut total = 0usize;
        for &(at, len) in ranges {
            let failed = |source| OutOfReach { at, len, source };
            let slices = memory
                .get_slices(GuestAddress(at.0), len as usize, rights)
                .map_err(failed)?;
            for slice in slices {
                let slice = slice.map_err(failed)?;
                pieces.push(libc::iovec {
                    iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                    iov_len: slice.len(),
                });
            }
            if access == Access::Write {
                marks.push((at, len as usize));
            }
            let too_much = GuestMemoryError::GuestAddressOverflow;
            total = total
                .checked_add(len as usize)
                .ok_or_else(|| failed(too_much))?;
        }
        Ok(Self {
            pieces,
            len: total,
            keeper: Keeper::Guest {
                memory: memory.clone(),
                marks,
            },
        })
    }

    /// Takes zeros of the host's memory, at a multiple of `alignment`.
    ///
    /// # Panics
    /// If `alignment` is zero.
    pub fn host(len: usize, alignment: usize) -> Self {
        let bytes: Box<[UnsafeCell<u8>]> =
            (0..len + alignment).map(|_| UnsafeCell::new(0)).collect();
        let begin = UnsafeCell::raw_get(bytes.as_ptr());
        let skip = begin.addr().next_multiple_of(alignment) - begin.addr();
        Self {
            pieces: vec![libc::iovec {
                iov_base: begin.wrapping_add(skip).cast(),
                iov_len: len,
            }],
            len,
            keeper: Keeper::Host { _bytes: bytes },
        }
    }

    /// Returns how many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Tells whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Says that bytes were stored in any part of guest memory taken for that. Has to be called before
    /// the guest is told.
    pub fn mark_dirty(&self) {
        if let Keeper::Guest { memory, marks } = &self.keeper {
            for (at, len) in marks {
                memory.mark_dirty(at.0 as usize, *len);
            }
        }
    }

    /// Copies out of the bytes from `at` on.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn copy_to(&self, at: usize, to: &mut [u8]) {
        let mut done = 0;
        self.each(at, to.len(), |slice| {
            done += slice.copy_to(&mut to[done..]);
        });
    }

    /// Copies into the bytes from `at` on.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn copy_from(&self, at: usize, from: &[u8]) {
        let mut done = 0;
        self.each(at, from.len(), |slice| {
            slice.copy_from(&from[done..done + slice.len()]);
            done += slice.len();
        });
    }

    fn each(&self, at: usize, len: usize, mut act: impl FnMut(VolatileSlice<'_>)) {
        let end = at.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{len} bytes at {at} of {}",
            self.len
        );
        for piece in self.part(at, len) {
            // SAFETY: the piece is part of one that the keeper keeps mapped; it is never under a
            // reference, and the slice is gone before `self` is.
            let slice = unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) };
            act(slice);
        }
    }

    /// The pieces of a part.
    pub(crate) fn part(&self, at: usize, len: usize) -> impl Iterator<Item = libc::iovec> + '_ {
        let (mut skip, mut left) = (at, len);
        self.pieces.iter().filter_map(move |piece| {
            let begin = skip.min(piece.iov_len);
            skip -= begin;
            let len = left.min(piece.iov_len - begin);
            left -= len;
            (len > 0).then(|| libc::iovec {
                iov_base: piece.iov_base.cast::<u8>().wrapping_add(begin).cast(),
                iov_len: len,
            })
        })
    }

    /// Tells whether each piece begins and ends at a multiple of `alignment`.
    pub(crate) fn is_aligned(&self, alignment: u32) -> bool {
        let alignment = alignment as usize;
        let good = |piece: &libc::iovec| {
            piece.iov_base.addr().is_multiple_of(alignment)
                && piece.iov_len.is_multiple_of(alignment)
        };
        self.pieces.iter().all(good)
    }

    /// The pieces. They stay where they are as long as `self` is not dropped.
    pub(crate) fn pieces(&self) -> &[libc::iovec] {
        &self.pieces
    }
}

#[cfg(test)]
impl Buffers {
    /// Takes pieces of memory of the host that somebody else keeps.
    pub(crate) fn of_parts(pieces: Vec<libc::iovec>) -> Self {
        Self {
            len: pieces.iter().map(|piece| piece.iov_len).sum(),
            pieces,
            keeper: Keeper::Host {
                _bytes: Box::new([]),
            },
        }
    }
}

/// Makes guest memory at address 0, for tests.
#[cfg(test)]
pub(crate) fn guest(len: u64) -> (DmaMemory, std::sync::Arc<umbra_slots::AddressSpace>) {
    use std::sync::Arc;
    use umbra_slots::*;

    struct Quiet(Arc<AddressSpace>);
    impl Dma for Quiet {
        fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError> {
            self.0.load().read(gpa, data)
        }
        fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
            self.0.load().write(gpa, data)
        }
        fn written(&self, _: GpaRange) {}
    }

    let space = AddressSpace::new(Options::default());
    let options = RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    };
    let ram = RamRegion::new(options).unwrap();
    let added = space.update("test", |map| {
        map.add_ram(Gpa(0), ram, 0, len, Flags::default())
    });
    added.unwrap().wait();
    let dma = DmaSpace::new(space.clone(), Arc::new(Quiet(space.clone())));
    (dma.memory(), space)
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffers({} bytes in {})", self.len, self.pieces.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_across_pieces() {
        let (one, two) = (Buffers::host(4, 1), Buffers::host(4, 1));
        let both = Buffers::of_parts([one.pieces(), two.pieces()].concat());
        both.copy_from(2, &[1, 2, 3, 4]);
        let mut bytes = [9; 4];
        one.copy_to(0, &mut bytes);
        assert_eq!(bytes, [0, 0, 1, 2]);
        two.copy_to(0, &mut bytes);
        assert_eq!(bytes, [3, 4, 0, 0]);
        both.copy_to(3, &mut bytes[..3]);
        assert_eq!(bytes, [2, 3, 4, 0]);
        both.copy_to(8, &mut []);
    }

    #[test]
    #[should_panic(expected = "2 bytes at 3 of 4")]
    fn nothing_is_copied_past_the_end() {
        Buffers::host(4, 1).copy_from(3, &[0; 2]);
    }

    #[test]
    fn memory_of_the_host_is_aligned() {
        for alignment in [1, 512, 4096] {
            let buffers = Buffers::host(8192, alignment);
            assert!(buffers.is_aligned(alignment as u32));
            assert!(!buffers.is_aligned(16384));
        }
    }
}
