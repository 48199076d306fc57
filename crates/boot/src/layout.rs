//! Where things lie in the guest's first mebibyte, and where RAM ends.
//!
//! ```text
//!   0x0000_0500  global descriptor table
//!   0x0000_6000  PVH start info, module list, memory map · or multiboot information with its
//!                strings, up to 256 KiB
//!   0x0000_7000  zero page (struct boot_params)
//!   0x0000_9000  page tables: PML4, PDPT, four page directories (4 GiB, identity)
//!   0x0002_0000  command line, up to 64 KiB
//!   0x0009_fc00  end of conventional memory
//!   0x000e_0000  ACPI tables; the RSDP stands first, where a scan of the BIOS area finds it
//!   0x000f_fff0  reset vector
//!   0x0010_0000  high memory: kernel; the initrd as high as the kernel can reach, modules of a
//!                multiboot kernel behind it
//!   0xc000_0000  end of RAM below 4 GiB; devices up to 4 GiB, then the rest of RAM
//! ```

/// Global descriptor table.
pub const GDT: u64 = 0x500;
/// Initial stack pointer; no protocol promises a stack, the space below the zero page is free.
pub const STACK_TOP: u64 = 0x5ff0;
/// PVH start info, or multiboot information, and what belongs to it.
pub const INFO: u64 = 0x6000;
/// Module list of the start info.
pub const MODULES: u64 = 0x6100;
/// Memory map of the start info.
pub const MEMORY_MAP: u64 = 0x6200;
/// The zero page.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables of the 64-bit entry.
pub const PAGE_TABLES: u64 = 0x9000;
/// Command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line, with the byte that ends it.
pub const COMMAND_LINE_MAX: usize = 0x1_0000;
/// End of conventional memory.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables.
pub const ACPI: u64 = 0xe_0000;
/// Where a processor in real mode starts after a reset, F000:FFF0.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// End of the area of the ACPI tables, begin of high memory.
pub const HIGH_RAM: u64 = 0x10_0000;
/// End of RAM below 4 GiB: one GiB of holes for devices lies above.
pub const HOLE: u64 = 0xc000_0000;
/// Where RAM goes on.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// Smallest memory with which anything can be booted: the areas above and some room.
pub const MIN_RAM: u64 = 0x20_0000;
