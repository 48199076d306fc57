//! Linux bzImage (boot.rst): the header, where the kernel goes, and the zero page.

use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use umbra_x86::state::{CpuState, gpr};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::error::Error;
use crate::image::{Image, le};
use crate::layout::{ACPI, COMMAND_LINE, HIGH_RAM, ZERO_PAGE};
use crate::load::{Context, Placed, need};
use crate::registers;

/// Offsets of header fields from the start of the file (boot.rst, "The Real-Mode Kernel Header").
const HEADER_END: usize = 0x26c;
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const INITRD_ADDR_MAX: usize = 0x22c;
const RELOCATABLE: usize = 0x234;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;

/// The oldest protocol with `cmdline_size`, `relocatable_kernel`, `pref_address` and `init_size`.
const OLDEST: u64 = 0x20a;
const LOADED_HIGH: u64 = 1;
/// XLF_KERNEL_64: the kernel has a 64-bit entry, 0x200 bytes into the protected-mode code.
const KERNEL_64: u64 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;

/// What of the header decides how to load.
#[derive(Debug)]
pub struct Header {
    /// Longest command line, without the byte that ends it.
    pub command_line_max: usize,
    /// Highest address that a byte of the initrd may have.
    pub initrd_max: u64,
    /// Where the protected-mode code goes, and how much memory it needs from there on.
    pub address: u64,
    pub init_size: u64,
    /// Bytes of the protected-mode code in the file.
    pub code_len: u64,
    /// Bytes of the file before the protected-mode code.
    pub setup_len: usize,
    /// True if the kernel can be entered in 64-bit mode.
    pub long_mode: bool,
}

/// Reads and checks the header.
pub fn header(image: &mut Image) -> Result<Header, Error> {
    let bytes = image.read_exact_at(0, HEADER_END, "the header")?;
    let field = |offset, len| le(&bytes, offset, len);
    let version = field(VERSION, 2);
    if version < OLDEST || field(LOADFLAGS, 1) & LOADED_HIGH == 0 {
        let found = format!(
            "a Linux kernel with boot protocol {}.{:02}",
            version >> 8,
            version & 0xff
        );
        return Err(image.unknown(found, "a bzImage of Linux 2.6.31 or newer (protocol 2.10)"));
    }
    let setup = match field(SETUP_SECTS, 1) {
        0 => 4,
        sectors => sectors,
    };
    let expected = (setup + 1) * 512 + field(SYSSIZE, 4) * 16;
    // The code is padded to 16 bytes in the header, not always in the file.
    if image.size() + 15 < expected {
        return Err(image.truncated(format!("it has {} of {expected} bytes", image.size())));
    }
    let address = if field(RELOCATABLE, 1) != 0 {
        field(PREF_ADDRESS, 8)
    } else {
        HIGH_RAM
    };
    let (address, init_size) = (address.max(HIGH_RAM), field(INIT_SIZE, 4));
    if address > u64::from(u32::MAX) {
        return Err(image.damaged(format!(
            "it wants to be loaded at {address:#x}, above 4 GiB"
        )));
    }
    Ok(Header {
        command_line_max: field(CMDLINE_SIZE, 4) as usize,
        initrd_max: field(INITRD_ADDR_MAX, 4),
        address,
        init_size: init_size.max(expected),
        code_len: expected - (setup + 1) * 512,
        setup_len: ((setup + 1) * 512) as usize,
        long_mode: field(XLOADFLAGS, 2) & KERNEL_64 != 0,
    })
}

/// Loads the protected-mode code.
pub fn load<M: GuestMemoryBackend>(
    memory: &M,
    low_ram: u64,
    image: &mut Image,
    header: &Header,
) -> Result<(Placed, setup_header), Error> {
    let end = header.address + header.init_size;
    need("the kernel", end, low_ram)?;
    let loaded = BzImage::load(
        memory,
        Some(GuestAddress(header.address)),
        image.rewound()?,
        None,
    )
    .map_err(|error| image.damaged(error.to_string()))?;
    let setup = loaded
        .setup_header
        .ok_or_else(|| image.damaged("it has no setup header"))?;
    Ok((
        Placed {
            entry: header.address,
            start: header.address,
            loaded_end: header.address + header.code_len,
            end,
        },
        setup,
    ))
}

/// Writes the zero page and returns the registers (boot.rst, "64-bit Boot Protocol").
pub fn enter<M: GuestMemoryBackend>(
    memory: &M,
    context: &Context,
    header: &Header,
    mut setup: setup_header,
) -> Result<CpuState, Error> {
    const LOADER_UNDEFINED: u8 = 0xff;
    setup.type_of_loader = LOADER_UNDEFINED;
    setup.cmd_line_ptr = COMMAND_LINE as u32;
    if let Some(initrd) = context.initrd {
        setup.ramdisk_image = initrd.start as u32;
        setup.ramdisk_size = initrd.len as u32;
    }
    let mut zero_page = boot_params {
        hdr: setup,
        acpi_rsdp_addr: ACPI,
        ..Default::default()
    };
    for (entry, region) in zero_page.e820_table.iter_mut().zip(&context.map) {
        *entry = boot_e820_entry {
            addr: region.start,
            size: region.len,
            r#type: region.usage.code(),
        };
        zero_page.e820_entries += 1;
    }
    let params = BootParams::new(&zero_page, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory).map_err(|_| {
        Error::TooLittleMemory {
            what: "the zero page",
            needed_mib: 2,
            have_mib: 0,
        }
    })?;
    let mut state = if header.long_mode {
        registers::long_mode(memory, header.address + ENTRY_64_OFFSET)?
    } else {
        registers::protected_mode(memory, header.address as u32)?
    };
    state.gpr[gpr::RSI] = ZERO_PAGE;
    Ok(state)
}
