//! ELF images of 64-bit kernels with a PVH entry, on `linux-loader`.

use linux_loader::elf::{Elf64_Phdr, PT_LOAD};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::{Address, GuestMemoryBackend};

use crate::error::Error;
use crate::image::{Image, le};
use crate::layout::{HIGH_RAM, LOW_RAM_END};
use crate::load::Placed;

const HEADER: usize = 64;
const SEGMENT: usize = size_of::<Elf64_Phdr>();
const PT_NOTE: u64 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY (Xen `public/elfnote.h`).
const PHYS32_ENTRY: u64 = 18;
/// More segments or notes than this no kernel has.
const MAX_SEGMENTS: u64 = 64;
const MAX_NOTES: u64 = 1 << 16;

/// A program header, as far as it matters here.
pub struct Segment {
    pub kind: u64,
    pub offset: u64,
    pub address: u64,
    pub file_len: u64,
    pub memory_len: u64,
}

/// Reads the program headers and checks them against the file's length.
fn segments(image: &mut Image) -> Result<Vec<Segment>, Error> {
    let header = image.read_exact_at(0, HEADER, "the ELF header")?;
    let (start, count) = (le(&header, 32, 8), le(&header, 56, 2));
    if count > MAX_SEGMENTS || le(&header, 54, 2) != SEGMENT as u64 {
        return Err(image.damaged("its program headers have an impossible size or number"));
    }
    let table = image.read_exact_at(start, SEGMENT * count as usize, "the program header table")?;
    let segments = table.chunks_exact(SEGMENT).map(|s| Segment {
        kind: le(s, 0, 4),
        offset: le(s, 8, 8),
        address: le(s, 24, 8),
        file_len: le(s, 32, 8),
        memory_len: le(s, 40, 8),
    });
    check(image, segments.collect())
}

/// Checks that every segment lies in the file and in the address space.
pub fn check(image: &Image, segments: Vec<Segment>) -> Result<Vec<Segment>, Error> {
    for segment in &segments {
        let end = segment.offset.checked_add(segment.file_len);
        match end {
            Some(end) if end <= image.size() => {}
            Some(end) => {
                let have = image.size();
                return Err(image.truncated(format!("a segment ends at byte {end} of {have}")));
            }
            None => return Err(image.damaged("a segment ends beyond any file")),
        }
        let fits = segment.address.checked_add(segment.memory_len).is_some();
        if !fits || segment.memory_len < segment.file_len {
            return Err(image.damaged("a segment's length in memory is impossible"));
        }
    }
    Ok(segments)
}

/// Finds the PVH entry among the notes: name "Xen", type 18, a 32-bit physical address.
pub fn find_pvh_note(image: &mut Image, segments: &[Segment]) -> Result<Option<u32>, Error> {
    for segment in segments.iter().filter(|s| s.kind == PT_NOTE) {
        let len = segment.file_len.min(MAX_NOTES) as usize;
        let notes = image.read_exact_at(segment.offset, len, "a note segment")?;
        if let Some(entry) = find_in_notes(&notes) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn find_in_notes(mut notes: &[u8]) -> Option<u32> {
    while notes.len() >= 12 {
        let (name_len, len, kind) = (
            le(notes, 0, 4) as usize,
            le(notes, 4, 4) as usize,
            le(notes, 8, 4),
        );
        let value = name_len.checked_next_multiple_of(4)?.checked_add(12)?;
        let next = len.checked_next_multiple_of(4)?.checked_add(value)?;
        if kind == PHYS32_ENTRY && len >= 4 && notes.get(12..12 + name_len) == Some(b"Xen\0") {
            return notes.get(value..value + 4).map(|v| le(v, 0, 4) as u32);
        }
        notes = notes.get(next..)?;
    }
    None
}

/// Tells whether the image has a PVH entry.
pub fn has_pvh_entry(image: &mut Image) -> Result<bool, Error> {
    let segments = segments(image)?;
    Ok(find_pvh_note(image, &segments)?.is_some())
}

/// Loads the image where it is linked to.
pub fn load<M: GuestMemoryBackend>(
    memory: &M,
    low_ram: u64,
    image: &mut Image,
) -> Result<Placed, Error> {
    let segments = segments(image)?;
    let loadable = || segments.iter().filter(|s| s.kind == u64::from(PT_LOAD));
    let (start, end) = place(image, low_ram, HIGH_RAM, loadable())?;
    let loaded = Elf::load(memory, None, image.rewound()?, None)
        .map_err(|error| image.damaged(error.to_string()))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(image.damaged("its PVH note has gone"));
    };
    Ok(Placed {
        entry: entry.raw_value(),
        start,
        loaded_end: end,
        end,
    })
}

/// Checks that the segments fit into memory: above 1 MiB, or between `lowest` and the end of
/// conventional memory. Returns where they begin and end.
pub fn place<'a>(
    image: &Image,
    low_ram: u64,
    lowest: u64,
    segments: impl Iterator<Item = &'a Segment>,
) -> Result<(u64, u64), Error> {
    let (mut start, mut end) = (u64::MAX, 0);
    for segment in segments.filter(|s| s.memory_len != 0) {
        let segment_end = segment.address + segment.memory_len;
        let low = segment.address >= lowest && segment_end <= LOW_RAM_END;
        if !low && segment.address < HIGH_RAM {
            return Err(image.damaged(format!(
                "it wants to be loaded at {:#x}, below 1 MiB",
                segment.address
            )));
        }
        start = start.min(segment.address);
        end = end.max(segment_end);
    }
    if end == 0 {
        return Err(image.damaged("it has nothing to load"));
    }
    crate::load::need("the kernel", end, low_ram)?;
    Ok((start, end))
}
