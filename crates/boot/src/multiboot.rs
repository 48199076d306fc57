//! Multiboot 1 images (Multiboot Specification 0.6.96).
//!
//! The kernel goes where it says; below 1 MiB, too, where it leaves the first page, the tables and
//! the reset vector alone. Modules follow it, each on a page border. The information and all strings
//! lie below the kernel in conventional memory, or at 1 MiB if the kernel is down there itself.

use umbra_x86::state::{CpuState, gpr};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::elf32;
use crate::error::Error;
use crate::image::{Image, le};
use crate::layout::{HIGH_RAM, INFO, LOW_RAM_END};
use crate::load::{Context, Module, Placed, need};
use crate::registers;

/// The header lies in this many first bytes, on a 4-byte border (3.1).
pub const SEARCH: usize = 8192;

const MAGIC: u64 = 0x1bad_b002;
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// Header flags (3.1.2): bits that a loader must understand, and the address fields.
const REQUIRED: u64 = 0xffff;
const UNDERSTOOD: u64 = 0b111;
const ADDRESSES: u64 = 1 << 16;

/// Lowest address at which a kernel may be loaded: the page with the descriptor table is not its.
const LOWEST: u64 = 0x1000;
const PAGE: u64 = 0x1000;
/// Room for information and strings.
const ROOM: u64 = 0x4_0000;

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
    if head.starts_with(b"\x7fELF\x02") {
        return Err(image.unknown(
            "a 64-bit ELF file with a multiboot header",
            "a 32-bit one (objcopy -O elf32-i386)",
        ));
    }
    if !head.starts_with(b"\x7fELF\x01") {
        return Err(
            image.damaged("it is neither a 32-bit ELF file nor has multiboot load addresses")
        );
    }
    elf32::load(memory, low_ram, LOWEST, image)
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
    let Some(skip) = skip else {
        return Err(image.damaged("its multiboot load address is impossible"));
    };
    let len = match load_end {
        0 => image.size() - skip.min(image.size()),
        end => end
            .checked_sub(load)
            .ok_or_else(|| image.damaged("its multiboot load end is impossible"))?,
    };
    let end = bss_end.max(load + len);
    if load < HIGH_RAM && !(load >= LOWEST && end <= LOW_RAM_END) {
        return Err(image.damaged(format!("it wants to be loaded at {load:#x}, below 1 MiB")));
    }
    need("the kernel", end, low_ram)?;
    let bytes = image.read_exact_at(skip, len as usize, "the image")?;
    memory
        .write_slice(&bytes, GuestAddress(load))
        .map_err(Error::memory("the kernel"))?;
    Ok(Placed {
        entry,
        start: load,
        loaded_end: end,
        end,
    })
}

/// What the kernel is told beside what the machine is.
pub struct Information {
    /// The whole command line.
    pub command_line: String,
    /// The modules.
    pub modules: Vec<Module>,
}

/// Puts the modules and the multiboot information into memory; returns the registers (3.2, 3.3).
pub fn enter<M: GuestMemoryBackend>(
    memory: &M,
    context: &Context,
    kernel: &Placed,
    information: Information,
) -> Result<CpuState, Error> {
    let base = if kernel.start < LOW_RAM_END {
        HIGH_RAM
    } else {
        INFO
    };
    // In either case modules lie above what was put at `base`.
    let mut free = kernel.end.max(HIGH_RAM);
    if base == HIGH_RAM {
        free = free.max(base + ROOM);
    }
    let mut block = Block::new(base);
    block.number(0, MEMORY | BOOT_DEVICE | CMDLINE | MODULE | MMAP | LOADER);
    block.number(4, (LOW_RAM_END >> 10) as u32);
    block.number(8, ((context.low_ram - HIGH_RAM) >> 10) as u32);
    block.number(12, NO_BOOT_DEVICE);
    let line = block.string(&information.command_line);
    block.number(16, line);
    let mut list = Vec::new();
    for Module {
        mut image,
        command_line,
    } in information.modules
    {
        let start = free.next_multiple_of(PAGE);
        let end = start + image.size();
        need("the kernel with its modules", end, context.low_ram)?;
        image.copy_to(memory, start, "a module")?;
        let string = block.string(&command_line);
        list.extend(words(&[start as u32, end as u32, string, 0]));
        free = end;
    }
    block.number(20, (list.len() / MODULE_LEN) as u32);
    let list = block.put(&list);
    block.number(24, list);
    let map = memory_map(context);
    block.number(44, map.len() as u32);
    let map = block.put(&map);
    block.number(48, map);
    let name = block.string("umbra");
    block.number(64, name);
    block.write(memory, base)?;
    let mut state = registers::protected_mode(memory, kernel.entry as u32)?;
    state.gpr[gpr::RAX] = LOADER_MAGIC;
    state.gpr[gpr::RBX] = base;
    Ok(state)
}

/// Which fields are valid (3.3, "flags").
const MEMORY: u32 = 1 << 0;
const BOOT_DEVICE: u32 = 1 << 1;
const CMDLINE: u32 = 1 << 2;
const MODULE: u32 = 1 << 3;
const MMAP: u32 = 1 << 6;
const LOADER: u32 = 1 << 9;
/// The first hard disk and no partition, which is what QEMU says: there is none.
const NO_BOOT_DEVICE: u32 = 0x8000_ffff;
/// Bytes of an entry of the module list.
const MODULE_LEN: usize = 16;
/// Bytes of the information.
const INFO_LEN: usize = 88;

/// Entries of 24 bytes: the size of the rest, base, length, type (3.3, "mmap_addr").
fn memory_map(context: &Context) -> Vec<u8> {
    let entry = |r: &crate::Region| {
        let mut entry = 20u32.to_le_bytes().to_vec();
        entry.extend(r.start.to_le_bytes());
        entry.extend(r.len.to_le_bytes());
        entry.extend(r.usage.code().to_le_bytes());
        entry
    };
    context.map.iter().flat_map(entry).collect()
}

/// The information, and behind it whatever it points to.
struct Block {
    base: u64,
    bytes: Vec<u8>,
}

impl Block {
    fn new(base: u64) -> Self {
        Self {
            base,
            bytes: vec![0; INFO_LEN],
        }
    }

    /// Sets a field of the information.
    fn number(&mut self, offset: usize, value: u32) {
        self.bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Adds bytes on a 4-byte border; returns their address.
    fn put(&mut self, bytes: &[u8]) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let at = self.base + self.bytes.len() as u64;
        self.bytes.extend(bytes);
        at as u32
    }

    fn string(&mut self, text: &str) -> u32 {
        self.put(&[text.as_bytes(), &[0]].concat())
    }

    fn write<M: GuestMemoryBackend>(&self, memory: &M, at: u64) -> Result<(), Error> {
        let (len, max) = (self.bytes.len(), ROOM as usize);
        if len > max {
            return Err(Error::InformationTooLong { len, max });
        }
        memory
            .write_slice(&self.bytes, GuestAddress(at))
            .map_err(Error::memory("the multiboot information"))
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
