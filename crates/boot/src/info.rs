//! The PVH start info (Xen `public/arch-x86/hvm/start_info.h`).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use umbra_x86::state::{CpuState, gpr};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::error::Error;
use crate::layout::{ACPI, COMMAND_LINE, INFO, MEMORY_MAP, MODULES};
use crate::load::Context;
use crate::registers;

/// Writes the start info and returns the registers (pvh.pandoc): EBX points to it.
pub fn enter<M: GuestMemoryBackend>(
    memory: &M,
    context: &Context,
    entry: u64,
) -> Result<CpuState, Error> {
    let map: Vec<_> = context
        .map
        .iter()
        .map(|r| hvm_memmap_table_entry {
            addr: r.start,
            size: r.len,
            type_: r.usage.code(),
            reserved: 0,
        })
        .collect();
    let mut start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        cmdline_paddr: COMMAND_LINE,
        rsdp_paddr: ACPI,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut modules = Vec::new();
    if let Some(initrd) = context.initrd {
        start_info.nr_modules = 1;
        start_info.modlist_paddr = MODULES;
        modules.push(hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.len,
            ..Default::default()
        });
    }
    let mut params = BootParams::new(&start_info, GuestAddress(INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    params.set_modules(&modules, GuestAddress(MODULES));
    PvhBootConfigurator::write_bootparams(&params, memory)
        .map_err(Error::memory("the start info"))?;
    let mut state = registers::protected_mode(memory, entry as u32)?;
    state.gpr[gpr::RBX] = INFO;
    Ok(state)
}
