//! 32-bit ELF images: kernels with a PVH entry, and multiboot images. `linux-loader` reads 64-bit
//! ones only.

use linux_loader::elf::PT_LOAD;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::elf64::{self, Segment};
use crate::error::Error;
use crate::image::{Image, le};
use crate::load::Placed;

const HEADER: usize = 52;
const SEGMENT: usize = 32;
const MAX_SEGMENTS: u64 = 64;

fn segments(image: &mut Image) -> Result<(u32, Vec<Segment>), Error> {
    let header = image.read_exact_at(0, HEADER, "the ELF header")?;
    let (entry, start, count) = (le(&header, 24, 4), le(&header, 28, 4), le(&header, 44, 2));
    if count > MAX_SEGMENTS || le(&header, 42, 2) != SEGMENT as u64 {
        return Err(image.damaged("its program headers have an impossible size or number"));
    }
    let table = image.read_exact_at(start, SEGMENT * count as usize, "the program header table")?;
    let segments = table.chunks_exact(SEGMENT).map(|s| Segment {
        kind: le(s, 0, 4),
        offset: le(s, 4, 4),
        address: le(s, 12, 4),
        file_len: le(s, 16, 4),
        memory_len: le(s, 20, 4),
    });
    Ok((entry as u32, elf64::check(image, segments.collect())?))
}

/// Returns the PVH entry, if the image has one.
pub fn pvh_entry(image: &mut Image) -> Result<Option<u32>, Error> {
    let (_, segments) = segments(image)?;
    elf64::find_pvh_note(image, &segments)
}

/// Loads the image where it is linked to, but not below `lowest`; the entry is the ELF header's.
pub fn load<M: GuestMemoryBackend>(
    memory: &M,
    low_ram: u64,
    lowest: u64,
    image: &mut Image,
) -> Result<Placed, Error> {
    let (entry, segments) = segments(image)?;
    let loadable = || segments.iter().filter(|s| s.kind == u64::from(PT_LOAD));
    let (start, end) = elf64::place(image, low_ram, lowest, loadable())?;
    for segment in loadable() {
        let bytes = image.read_exact_at(segment.offset, segment.file_len as usize, "a segment")?;
        memory
            .write_slice(&bytes, GuestAddress(segment.address))
            .map_err(Error::memory("the kernel"))?;
    }
    Ok(Placed {
        entry: u64::from(entry),
        start,
        loaded_end: end,
        end,
    })
}
