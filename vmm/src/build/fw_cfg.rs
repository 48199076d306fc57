//! What the firmware configuration device tells of the machine.

use umbra_boot::{Linkable, Loaded, Platform, layout as boot_layout};
use umbra_devices::fw_cfg::{Items, key};
use umbra_slots::{AddressSpace, Gpa};

use crate::error::BuildError;
use crate::layout;
use crate::spec::{ConfigFile, Content, Spec};

/// Makes all items; memory must still be as the kernel was loaded.
pub fn items(
    spec: &Spec,
    files: &[ConfigFile],
    loaded: &Loaded,
    command_line: &str,
    platform: &Platform,
    space: &AddressSpace,
) -> Result<Items, BuildError> {
    let mut items = Items::default();
    machine(&mut items, spec);
    boot(&mut items, loaded, command_line, space);
    tables(&mut items, spec, platform)?;
    for file in files {
        let data = match &file.content {
            Content::Text(text) => text.clone().into_bytes(),
            Content::File(path) => {
                std::fs::read(path).map_err(|source| BuildError::ConfigFile {
                    path: path.clone(),
                    source,
                })?
            }
        };
        if !file.name.starts_with("opt/") {
            tracing::warn!(
                name = file.name,
                "names of one's own should begin with opt/"
            );
        }
        items.add_file(&file.name, data)?;
    }
    Ok(items)
}

fn machine(items: &mut Items, spec: &Spec) {
    // A machine has at most 255 processors.
    let cpus = spec.cpus as u16;
    items.set(key::UUID, [0; 16]);
    items.set_u64(key::RAM_SIZE, spec.memory);
    items.set_u16(key::NOGRAPHIC, 1);
    items.set_u16(key::NB_CPUS, cpus);
    items.set_u16(key::MAX_CPUS, cpus);
    items.set_u16(key::BOOT_DEVICE, 0);
    items.set_u16(key::BOOT_MENU, 0);
    items.set_u32(key::IRQ0_OVERRIDE, 1);
    // No nodes, and so node 0 for every processor.
    items.set(key::NUMA, vec![0; 8 * (1 + usize::from(cpus))]);
}

fn boot(items: &mut Items, loaded: &Loaded, command_line: &str, space: &AddressSpace) {
    let read = |extent| contents(space, extent);
    let (start, len) = loaded.kernel;
    items.set_u32(key::KERNEL_ADDR, start as u32);
    items.set_u32(key::KERNEL_SIZE, len as u32);
    items.set_u32(key::KERNEL_ENTRY, loaded.entry as u32);
    items.set(key::KERNEL_DATA, read(loaded.kernel));
    let initrd = loaded.initrd.unwrap_or_default();
    items.set_u32(key::INITRD_ADDR, initrd.0 as u32);
    items.set_u32(key::INITRD_SIZE, initrd.1 as u32);
    items.set(key::INITRD_DATA, read(initrd));
    let line = [command_line.as_bytes(), &[0]].concat();
    items.set_u32(key::CMDLINE_ADDR, boot_layout::COMMAND_LINE as u32);
    items.set_u32(key::CMDLINE_SIZE, line.len() as u32);
    items.set(key::CMDLINE_DATA, line);
    if let Some(setup) = &loaded.setup {
        items.set_u32(key::SETUP_ADDR, 0x1_0000);
        items.set_u32(key::SETUP_SIZE, setup.len() as u32);
        items.set(key::SETUP_DATA, setup.clone());
    }
}

fn tables(items: &mut Items, spec: &Spec, platform: &Platform) -> Result<(), BuildError> {
    const RAM: u32 = 1;
    let mut map = Vec::new();
    for ram in layout::ram(spec.memory) {
        map.extend(ram.start.to_le_bytes());
        map.extend(ram.len.to_le_bytes());
        map.extend(RAM.to_le_bytes());
    }
    items.add_file("etc/e820", map)?;
    let acpi = Linkable::new(platform);
    items.add_file(Linkable::RSDP, acpi.rsdp)?;
    items.add_file(Linkable::TABLES, acpi.tables)?;
    items.add_file("etc/table-loader", acpi.script)?;
    Ok(())
}

/// Reads what was loaded, without the zeros at its end: the guest reads zeros behind an item's end
/// anyway, and a kernel may ask for gigabytes of them.
fn contents(space: &AddressSpace, (start, len): (u64, u64)) -> Vec<u8> {
    const PIECE: u64 = 0x1_0000;
    let map = space.load_full();
    let (mut bytes, mut zeros) = (Vec::new(), 0);
    for at in (0..len).step_by(PIECE as usize) {
        let mut piece = vec![0; (len - at).min(PIECE) as usize];
        // It was written there a moment ago; were it gone, zeros would be the truth.
        let _ = map.read(Gpa(start + at), &mut piece);
        let used = piece.iter().rposition(|byte| *byte != 0);
        match used {
            None => zeros += piece.len(),
            Some(last) => {
                bytes.resize(bytes.len() + zeros, 0);
                bytes.extend(&piece[..=last]);
                zeros = piece.len() - (last + 1);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_slots::Options;

    #[test]
    fn contents_end_with_their_last_byte() {
        let space = AddressSpace::new(Options::default());
        crate::build::memory::add(&space, 16 << 20).unwrap();
        let map = space.load_full();
        for (at, byte) in [(0x10_0000, 1), (0x12_0003, 2)] {
            map.write(Gpa(at), &[byte]).unwrap();
        }
        let found = contents(&space, (0x10_0000, 8 << 20));
        assert_eq!(found.len(), 0x2_0004);
        assert_eq!((found[0], found[0x2_0003]), (1, 2));
        assert_eq!(found.iter().filter(|byte| **byte != 0).count(), 2);
        assert!(contents(&space, (0x20_0000, 1 << 20)).is_empty());
    }
}
