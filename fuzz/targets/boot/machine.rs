//! Guest memory with a pattern on both sides, and files that are nowhere.

use std::fs::File;
use std::io::Write;

use umbra_fuzz::{GUARD, Guard, Source};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// RAM from address 0, and perhaps some above 4 GiB.
pub struct Memory {
    pub guest: GuestMemoryMmap<()>,
    /// Bytes from address 0.
    pub low: u64,
    pieces: Vec<(Guard, MmapRegion<()>)>,
}

impl Memory {
    pub fn new(source: &mut Source<'_>) -> Self {
        let bits = source.u8();
        let low = [20 << 20, 4 << 20, 2 << 20, 1 << 20, 64 << 20][usize::from(bits & 15) % 5];
        let mut memory = Self {
            guest: GuestMemoryMmap::new(),
            low,
            pieces: Vec::new(),
        };
        let mut regions = vec![memory.piece(0, low as usize)];
        if bits & 16 != 0 {
            regions.push(memory.piece(layout_high(), 1 << 20));
        }
        memory.guest = GuestMemoryMmap::from_regions(regions).expect("they do not overlap");
        memory
    }

    fn piece(&mut self, at: u64, len: usize) -> GuestRegionMmap<()> {
        const PROT_READ_WRITE: i32 = 3;
        const MAP_PRIVATE_ANONYMOUS: i32 = 0x22;
        let whole = MmapRegion::<()>::new(len + 2 * GUARD).expect("the host has memory");
        let inner = whole.as_ptr().wrapping_add(GUARD);
        // SAFETY: 1. `whole` is that long, and is kept beside the guard; 2. vm-memory makes no
        // references into a mapping.
        let guard = unsafe { Guard::new(whole.as_ptr(), len) };
        // SAFETY: `inner` and `len` lie inside `whole`, which outlives the region: both are dropped
        // with this memory, the guest's view first.
        let builder = unsafe {
            MmapRegionBuilder::new_with_bitmap(len, ())
                .with_mmap_prot(PROT_READ_WRITE)
                .with_mmap_flags(MAP_PRIVATE_ANONYMOUS)
                .with_raw_mmap_pointer(inner)
        };
        let region = builder.build().expect("a mapping that exists");
        self.pieces.push((guard, whole));
        GuestRegionMmap::new(region, GuestAddress(at)).expect("it ends below 2^64")
    }

    /// Checks that nothing was written outside.
    pub fn check(&self) {
        for (guard, _) in &self.pieces {
            guard.check();
        }
    }
}

const fn layout_high() -> u64 {
    umbra_boot::layout::HOLE_END
}

/// A file in memory.
pub fn file(bytes: &[u8]) -> File {
    let made = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = File::from(made.expect("the host has files in memory"));
    file.write_all(bytes).expect("the host has memory");
    file
}
