//! The one function that boots: checks, places, writes, and returns the first registers.

use umbra_x86::state::CpuState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::acpi::{self, Platform};
use crate::error::Error;
use crate::image::{Image, Kind};
use crate::layout::{ACPI, COMMAND_LINE, COMMAND_LINE_MAX, HIGH_RAM, HOLE, MIN_RAM};
use crate::memory_map::{Region, memory_map};
use crate::{bzimage, elf32, elf64, info, initrd, multiboot, reset_vector};

/// Command lines that a PVH kernel takes: Linux copies into COMMAND_LINE_SIZE, 2048, with the end.
const PVH_COMMAND_LINE: usize = 2047;

/// What to boot.
#[derive(Debug)]
pub struct Request<'a> {
    /// The kernel.
    pub kernel: Image,
    /// The initial RAM disk. A multiboot kernel gets it as its first module.
    pub initrd: Option<Image>,
    /// What a multiboot kernel gets beside itself; other kernels take none.
    pub modules: Vec<Module>,
    /// The command line. What a multiboot kernel gets begins with the kernel's path.
    pub command_line: &'a str,
    /// What the ACPI tables describe.
    pub platform: Platform,
}

/// A module of a multiboot kernel: a file, and a string that goes with it.
#[derive(Debug)]
pub struct Module {
    /// The file.
    pub image: Image,
    /// The string.
    pub command_line: String,
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux boot protocol, 64-bit entry.
    Linux64,
    /// Linux boot protocol, 32-bit entry.
    Linux32,
    /// PVH.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

/// What was put into memory.
#[derive(Clone, Debug)]
#[must_use]
pub struct Loaded {
    /// The registers of the boot processor.
    pub state: CpuState,
    /// How the kernel is entered.
    pub protocol: Protocol,
    /// Where the kernel is: address and length.
    pub kernel: (u64, u64),
    /// Where it is entered, as its format says.
    pub entry: u64,
    /// The real-mode part of a Linux kernel's file.
    pub setup: Option<Vec<u8>>,
    /// Where the RSDP is.
    pub rsdp: u64,
    /// Where the initrd is: address and length.
    pub initrd: Option<(u64, u64)>,
}

/// Where a kernel was put.
pub(crate) struct Placed {
    pub entry: u64,
    /// First address that the kernel takes.
    pub start: u64,
    /// First address that nothing was loaded to, and that the kernel does not clear for itself.
    pub loaded_end: u64,
    /// First address that the kernel does not need.
    pub end: u64,
}

/// Where the initrd was put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Initrd {
    pub start: u64,
    pub len: u64,
}

/// What all protocols tell the kernel.
pub(crate) struct Context {
    pub map: Vec<Region>,
    pub initrd: Option<Initrd>,
    /// End of the RAM that begins at zero.
    pub low_ram: u64,
}

/// Fails unless `end` is within the RAM that begins at zero.
pub(crate) fn need(what: &'static str, end: u64, low_ram: u64) -> Result<(), Error> {
    const MIB: u64 = 1 << 20;
    if end > low_ram {
        let (needed_mib, have_mib) = (end.div_ceil(MIB), low_ram / MIB);
        return Err(Error::TooLittleMemory {
            what,
            needed_mib,
            have_mib,
        });
    }
    Ok(())
}

/// Puts kernel, initrd, command line, tables and boot information into `memory`.
///
/// Memory must be fresh (zeros) and begin at address zero. Blocks while files are read.
///
/// # Errors
///
/// If a file or the command line is wrong, or memory too small; memory is then undefined.
pub fn load<M: GuestMemoryBackend>(memory: &M, request: Request<'_>) -> Result<Loaded, Error> {
    let Request {
        mut kernel,
        initrd,
        modules,
        command_line,
        platform,
    } = request;
    let ram: Vec<(u64, u64)> = memory.iter().map(|r| (r.start_addr().0, r.len())).collect();
    let low_ram = ram
        .first()
        .filter(|(start, _)| *start == 0)
        .map_or(0, |(_, len)| (*len).min(HOLE));
    need("booting", MIN_RAM, low_ram)?;
    if command_line.contains('\0') {
        return Err(Error::CommandLineNul);
    }

    let kind = kernel.kind()?;
    let mut context = Context {
        map: memory_map(ram),
        initrd: None,
        low_ram,
    };
    if kind != Kind::Multiboot && !modules.is_empty() {
        return Err(Error::NoModules);
    }
    let mut setup_bytes = None;
    let (state, protocol, placed) = match kind {
        Kind::BzImage => {
            let header = bzimage::header(&mut kernel)?;
            check_length(command_line, header.command_line_max)?;
            let (placed, setup) = bzimage::load(memory, low_ram, &mut kernel, &header)?;
            context.initrd = initrd::load(memory, low_ram, placed.end, header.initrd_max, initrd)?;
            let protocol = if header.long_mode {
                Protocol::Linux64
            } else {
                Protocol::Linux32
            };
            setup_bytes = Some(kernel.read_at(0, header.setup_len)?);
            write_command_line(memory, command_line)?;
            let state = bzimage::enter(memory, &context, &header, setup)?;
            (state, protocol, placed)
        }
        Kind::Elf64Pvh | Kind::Elf32Pvh => {
            check_length(command_line, PVH_COMMAND_LINE)?;
            let placed = if kind == Kind::Elf64Pvh {
                elf64::load(memory, low_ram, &mut kernel)?
            } else {
                load_elf32_pvh(memory, low_ram, &mut kernel)?
            };
            context.initrd = initrd::load(memory, low_ram, placed.end, u64::MAX, initrd)?;
            write_command_line(memory, command_line)?;
            let state = info::enter(memory, &context, placed.entry)?;
            (state, Protocol::Pvh, placed)
        }
        Kind::Multiboot => {
            check_length(command_line, COMMAND_LINE_MAX - 1)?;
            let placed = multiboot::load(memory, low_ram, &mut kernel)?;
            let path = kernel.path().to_string_lossy();
            let modules = first_module(initrd).into_iter().chain(modules).collect();
            let information = multiboot::Information {
                command_line: format!("{path} {command_line}"),
                modules,
            };
            let state = multiboot::enter(memory, &context, &placed, information)?;
            (state, Protocol::Multiboot, placed)
        }
    };
    acpi::write(memory, &platform)?;
    reset_vector::write(memory, &platform)?;
    tracing::debug!(?protocol, entry = state.rip, initrd = ?context.initrd, "kernel loaded");
    let initrd = context.initrd.map(|initrd| (initrd.start, initrd.len));
    Ok(Loaded {
        state,
        protocol,
        kernel: (placed.start, placed.loaded_end - placed.start),
        entry: placed.entry,
        setup: setup_bytes,
        rsdp: ACPI,
        initrd,
    })
}

/// Makes a module of an initrd; its path is its string.
fn first_module(initrd: Option<Image>) -> Option<Module> {
    initrd.map(|image| Module {
        command_line: image.path().to_string_lossy().into_owned(),
        image,
    })
}

fn load_elf32_pvh<M: GuestMemoryBackend>(
    memory: &M,
    low_ram: u64,
    kernel: &mut Image,
) -> Result<Placed, Error> {
    let entry = elf32::pvh_entry(kernel)?.ok_or_else(|| kernel.damaged("its PVH note has gone"))?;
    let placed = elf32::load(memory, low_ram, HIGH_RAM, kernel)?;
    Ok(Placed {
        entry: u64::from(entry),
        ..placed
    })
}

fn check_length(command_line: &str, kernel_max: usize) -> Result<(), Error> {
    let max = kernel_max.min(COMMAND_LINE_MAX - 1);
    match command_line.len() {
        len if len > max => Err(Error::CommandLineTooLong { len, max }),
        _ => Ok(()),
    }
}

fn write_command_line<M: GuestMemoryBackend>(memory: &M, command_line: &str) -> Result<(), Error> {
    let mut bytes = command_line.as_bytes().to_vec();
    bytes.push(0);
    memory
        .write_slice(&bytes, GuestAddress(COMMAND_LINE))
        .map_err(Error::memory("the command line"))
}
