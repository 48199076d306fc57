//! Multiboot 1 images (Multiboot Specification 0.6.96).

use umbra_x86::state::{CpuState, gpr};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::elf32;
use crate::error::Error;
use crate::image::{Image, le};
use crate::layout::{COMMAND_LINE, INFO, MEMORY_MAP, MODULES};
use crate::load::{Context, Placed, need};
use crate::registers;

/// The header lies in this many first bytes, on a 4-byte border (3.1).
pub const SEARCH: usize = 8192;

const MAGIC: u64 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// Header flags (3.1.2): bits that a loader must understand, and the address fields.
const REQUIRED: u64 = 0xffff;
const UNDERSTOOD: u64 = 0b111;
const ADDRESSES: u64 = 1 << 16;

/// The header, where it was found.
#[derive(Debug)]
pub struct Header {
    flags: u64,
    offset: u64,
    /// header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr.
    addresses: [u64; 5],
}

/// Finds the header in the first bytes of a file.
pub fn find_header(head: &[u8]) -> Option<Header> {
    let offset = (0..head.len().saturating_sub(11)).step_by(4).find(|at| {
        let word = |n: usize| le(head, at + 4 * n, 4);
        word(0) == MAGIC && (word(0) + word(1) + word(2)) as u32 == 0
    })?;
    Some(Header {
        flags: le(head, offset + 4, 4),
        offset: offset as u64,
        addresses: std::array::from_fn(|n| le(head, offset + 12 + 4 * n, 4)),
    })
}

/// Loads the image: by the header's address fields if it has them, else as ELF.
pub fn load<M: GuestMemoryBackend>(
    memory: &M,
    low_ram: u64,
    image: &mut Image,
) -> Result<Placed, Error> {
    let head = image.read_at(0, SEARCH)?;
    let header =
        find_header(&head).ok_or_else(|| image.damaged("its multiboot header has gone"))?;
    if header.flags & REQUIRED & !UNDERSTOOD != 0 {
        return Err(image.damaged(format!(
            "its multiboot header demands unknown features ({:#x})",
            header.flags
        )));
    }
    if header.flags & ADDRESSES != 0 {
        return load_by_addresses(memory, low_ram, image, &header);
    }
    if !head.starts_with(b"\x7fELF\x01") {
        return Err(
            image.damaged("it is neither a 32-bit ELF file nor has multiboot load addresses")
        );
    }
    elf32::load(memory, low_ram, image)
}

fn load_by_addresses<M: GuestMemoryBackend>(
    memory: &M,
    low_ram: u64,
    image: &mut Image,
    header: &Header,
) -> Result<Placed, Error> {
    let [header_at, load, load_end, bss_end, entry] = header.addresses;
    // The file offset of `load`: the header's own offset less its distance from the load address.
    let skip = header_at
        .checked_sub(load)
        .and_then(|distance| header.offset.checked_sub(distance));
    let Some(skip) = skip.filter(|_| load >= crate::layout::HIGH_RAM) else {
        return Err(image.damaged("its multiboot load address is impossible"));
    };
    let len = match load_end {
        0 => image.size() - skip.min(image.size()),
        end => end
            .checked_sub(load)
            .ok_or_else(|| image.damaged("its multiboot load end is impossible"))?,
    };
    let end = bss_end.max(load + len);
    need("the kernel", end, low_ram)?;
    let bytes = image.read_exact_at(skip, len as usize, "the image")?;
    memory
        .write_slice(&bytes, GuestAddress(load))
        .map_err(Error::memory("the kernel"))?;
    Ok(Placed { entry, end })
}

/// Writes the multiboot information and returns the registers (3.2 and 3.3).
pub fn enter<M: GuestMemoryBackend>(
    memory: &M,
    context: &Context,
    entry: u64,
) -> Result<CpuState, Error> {
    const MEMORY: u32 = 1 << 0;
    const CMDLINE: u32 = 1 << 2;
    const MODULE: u32 = 1 << 3;
    const MMAP: u32 = 1 << 6;
    let mut info = [0u32; 22];
    info[0] = MEMORY | CMDLINE | MMAP;
    info[1] = 639;
    info[2] = ((context.low_ram - crate::layout::HIGH_RAM) >> 10) as u32;
    info[4] = COMMAND_LINE as u32;
    if let Some(initrd) = context.initrd {
        info[0] |= MODULE;
        info[5] = 1;
        info[6] = MODULES as u32;
        let end = (initrd.start + initrd.len) as u32;
        write(memory, MODULES, &words(&[initrd.start as u32, end, 0, 0]))?;
    }
    // Entries of 24 bytes: the size of the rest, base, length, type (3.3, "mmap_addr").
    let map: Vec<u8> = context
        .map
        .iter()
        .flat_map(|r| {
            let mut entry = 20u32.to_le_bytes().to_vec();
            entry.extend(r.start.to_le_bytes());
            entry.extend(r.len.to_le_bytes());
            entry.extend(r.usage.code().to_le_bytes());
            entry
        })
        .collect();
    write(memory, MEMORY_MAP, &map)?;
    (info[11], info[12]) = (map.len() as u32, MEMORY_MAP as u32);
    write(memory, INFO, &words(&info))?;
    let mut state = registers::protected_mode(memory, entry as u32)?;
    state.gpr[gpr::RAX] = LOADER_MAGIC;
    state.gpr[gpr::RBX] = INFO;
    Ok(state)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn write<M: GuestMemoryBackend>(memory: &M, at: u64, bytes: &[u8]) -> Result<(), Error> {
    memory
        .write_slice(bytes, GuestAddress(at))
        .map_err(Error::memory("the multiboot information"))
}
