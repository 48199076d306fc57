//! The tables as firmware takes them: two blobs, and a script that puts them at addresses of the
//! firmware's choice (QEMU `hw/acpi/bios-linker-loader.c`).
//!
//! A pointer in a blob holds an offset into the blob that it points to, and the script says where
//! such pointers are. Each command has 128 bytes, little-endian, names padded with zeros to 56:
//!
//! ```text
//!   1 allocate     name, alignment (4), zone (1): 1 anywhere, 2 where a scan finds the RSDP
//!   2 add pointer  name, name pointed into, offset (4), width (1)
//!   3 checksum     name, offset of the checksum (4), begin (4), length (4)
//! ```

use super::{Platform, Tables};

/// Fields of the RSDP (ACPI 6.5, 5.2.5.3), and how much of it the first checksum covers.
pub const RSDP_CHECKSUM: usize = 8;
pub const RSDP_RSDT: usize = 16;
pub const RSDP_XSDT: usize = 24;
pub const RSDP_EXTENDED_CHECKSUM: usize = 32;
pub const RSDP_SHORT: usize = 20;
/// Where the checksum is in all other tables.
const TABLE_CHECKSUM: usize = 9;

const COMMAND: usize = 128;
const NAME: usize = 56;

/// The tables without addresses.
#[derive(Clone, Debug)]
pub struct Linkable {
    /// The RSDP.
    pub rsdp: Vec<u8>,
    /// All other tables.
    pub tables: Vec<u8>,
    /// What to do with them.
    pub script: Vec<u8>,
}

impl Linkable {
    /// By what name the script calls the RSDP.
    pub const RSDP: &'static str = "etc/acpi/rsdp";
    /// By what name it calls the other tables.
    pub const TABLES: &'static str = "etc/acpi/tables";

    /// Makes the tables of a machine.
    pub fn new(platform: &Platform) -> Self {
        let tables = Tables::new(platform, 0);
        let rsdp = tables.rsdp().to_vec();
        let mut script = Script::default();
        script.allocate(Self::RSDP, 16, 2);
        script.allocate(Self::TABLES, 64, 1);
        for (offset, width) in &tables.pointers {
            script.add_pointer(Self::TABLES, *offset, *width);
        }
        for (start, len) in &tables.extents {
            script.checksum(Self::TABLES, start + TABLE_CHECKSUM, *start, *len);
        }
        script.add_pointer(Self::RSDP, RSDP_RSDT, 4);
        script.add_pointer(Self::RSDP, RSDP_XSDT, 8);
        script.checksum(Self::RSDP, RSDP_CHECKSUM, 0, RSDP_SHORT);
        script.checksum(Self::RSDP, RSDP_EXTENDED_CHECKSUM, 0, rsdp.len());
        Self {
            rsdp,
            tables: tables.bytes,
            script: script.bytes,
        }
    }
}

#[derive(Default)]
struct Script {
    bytes: Vec<u8>,
}

impl Script {
    fn allocate(&mut self, name: &str, alignment: u32, zone: u8) {
        self.command(1, &[name], &[alignment], Some(zone));
    }

    fn add_pointer(&mut self, name: &str, offset: usize, width: u8) {
        let names = [name, Linkable::TABLES];
        self.command(2, &names, &[offset as u32], Some(width));
    }

    fn checksum(&mut self, name: &str, at: usize, start: usize, len: usize) {
        self.command(3, &[name], &[at, start, len].map(|n| n as u32), None);
    }

    fn command(&mut self, number: u32, names: &[&str], fields: &[u32], last: Option<u8>) {
        let end = self.bytes.len() + COMMAND;
        self.bytes.extend(number.to_le_bytes());
        for name in names {
            self.bytes.extend(name.bytes());
            self.bytes.extend(std::iter::repeat_n(0, NAME - name.len()));
        }
        for field in fields {
            self.bytes.extend(field.to_le_bytes());
        }
        self.bytes.extend(last);
        self.bytes.resize(end, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::platform;
    use super::*;
    use crate::image::le;

    /// Does what the script says, with each blob at an address; returns both.
    fn link(linkable: &Linkable, at: [(&str, u64); 2]) -> [Vec<u8>; 2] {
        let mut blobs = [linkable.rsdp.clone(), linkable.tables.clone()];
        let index = |name: &[u8]| usize::from(name.starts_with(Linkable::TABLES.as_bytes()));
        for command in linkable.script.chunks_exact(COMMAND) {
            let blob = &mut blobs[index(&command[4..])];
            match le(command, 0, 4) {
                1 => {}
                2 => {
                    let (offset, width) = (le(command, 116, 4) as usize, le(command, 120, 1));
                    let base = at[index(&command[60..])].1;
                    let value = le(blob, offset, width as usize) + base;
                    blob[offset..][..width as usize]
                        .copy_from_slice(&value.to_le_bytes()[..width as usize]);
                }
                3 => {
                    let field = |n: usize| le(command, 60 + 4 * n, 4) as usize;
                    let sum = super::super::checksum(&blob[field(1)..][..field(2)]);
                    blob[field(0)] = blob[field(0)].wrapping_add(sum);
                }
                other => panic!("command {other}"),
            }
        }
        blobs
    }

    #[test]
    fn linked_tables_are_those_that_are_made_for_the_address() {
        let at = 0x7fe_1000;
        let addresses = [(Linkable::RSDP, 0xf_5000), (Linkable::TABLES, at)];
        let [rsdp, tables] = link(&Linkable::new(&platform(3)), addresses);
        let direct = Tables::new(&platform(3), at);
        assert_eq!(rsdp, direct.rsdp());
        assert_eq!(tables, direct.bytes);
    }
}
