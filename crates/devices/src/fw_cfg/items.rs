//! What the guest finds: items by key, and files by name (QEMU `docs/specs/fw_cfg.rst`,
//! `include/standard-headers/linux/qemu_fw_cfg.h`).

use std::collections::BTreeMap;

/// Well-known keys.
pub mod key {
    /// "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// Features of the device.
    pub const ID: u16 = 0x01;
    /// UUID of the machine, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// Bytes of RAM, 64 bits.
    pub const RAM_SIZE: u16 = 0x03;
    /// There is no display, 16 bits.
    pub const NOGRAPHIC: u16 = 0x04;
    /// Number of processors, 16 bits.
    pub const NB_CPUS: u16 = 0x05;
    /// Where the kernel goes, 32 bits.
    pub const KERNEL_ADDR: u16 = 0x07;
    /// Bytes of the kernel, 32 bits.
    pub const KERNEL_SIZE: u16 = 0x08;
    /// Where the initrd goes, 32 bits.
    pub const INITRD_ADDR: u16 = 0x0a;
    /// Bytes of the initrd, 32 bits.
    pub const INITRD_SIZE: u16 = 0x0b;
    /// Boot device, 16 bits.
    pub const BOOT_DEVICE: u16 = 0x0c;
    /// NUMA: number of nodes, a node for each processor, bytes for each node; 64 bits each.
    pub const NUMA: u16 = 0x0d;
    /// Whether firmware shows a menu, 16 bits.
    pub const BOOT_MENU: u16 = 0x0e;
    /// First local APIC id that no processor can have, 16 bits.
    pub const MAX_CPUS: u16 = 0x0f;
    /// Where the kernel is entered, 32 bits.
    pub const KERNEL_ENTRY: u16 = 0x10;
    /// The kernel.
    pub const KERNEL_DATA: u16 = 0x11;
    /// The initrd.
    pub const INITRD_DATA: u16 = 0x12;
    /// Where the command line goes, 32 bits.
    pub const CMDLINE_ADDR: u16 = 0x13;
    /// Bytes of the command line with the one that ends it, 32 bits.
    pub const CMDLINE_SIZE: u16 = 0x14;
    /// The command line.
    pub const CMDLINE_DATA: u16 = 0x15;
    /// Where a Linux kernel's real-mode part goes, 32 bits.
    pub const SETUP_ADDR: u16 = 0x16;
    /// Bytes of it, 32 bits.
    pub const SETUP_SIZE: u16 = 0x17;
    /// That part.
    pub const SETUP_DATA: u16 = 0x18;
    /// The directory of files.
    pub const FILE_DIR: u16 = 0x19;
    /// The first file.
    pub const FILE_FIRST: u16 = 0x20;
    /// Interrupt 0 is wired to pin 2 of the IOAPIC, 32 bits. One of the keys of x86 alone.
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

/// Bit of a key that asks for writing; it selects no other item.
const WRITE_CHANNEL: u16 = 0x4000;
/// Longest file name, without the byte that ends it.
pub const NAME_MAX: usize = 55;
/// How many files fit between the first and the end of the keys.
const FILES_MAX: usize = (WRITE_CHANNEL - key::FILE_FIRST) as usize;

/// Why a file cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The name does not fit into the directory.
    #[error("the name {0:?} has not 1 to 55 bytes, or holds a zero byte; choose another")]
    BadName(String),
    /// There is one of that name.
    #[error("there are two items named {0:?}; remove one")]
    Duplicate(String),
    /// The directory is full, or the file too large for its size field.
    #[error("the item {0:?} does not fit; give fewer or smaller ones")]
    TooMuch(String),
}

/// Items and files.
#[derive(Clone, Debug, Default)]
pub struct Items {
    items: BTreeMap<u16, Vec<u8>>,
    files: BTreeMap<String, Vec<u8>>,
}

impl Items {
    /// Sets an item to bytes.
    pub fn set(&mut self, key: u16, data: impl Into<Vec<u8>>) {
        self.items.insert(key, data.into());
    }

    /// Sets an item to a little-endian number of 16 bits.
    pub fn set_u16(&mut self, key: u16, value: u16) {
        self.set(key, value.to_le_bytes());
    }

    /// Sets an item to a little-endian number of 32 bits.
    pub fn set_u32(&mut self, key: u16, value: u32) {
        self.set(key, value.to_le_bytes());
    }

    /// Sets an item to a little-endian number of 64 bits.
    pub fn set_u64(&mut self, key: u16, value: u64) {
        self.set(key, value.to_le_bytes());
    }

    /// Adds a file.
    ///
    /// # Errors
    /// If the name is no name or taken, or there is no room; nothing has changed then.
    pub fn add_file(&mut self, name: &str, data: impl Into<Vec<u8>>) -> Result<(), FileError> {
        let (owned, data) = (name.to_owned(), data.into());
        if name.is_empty() || name.len() > NAME_MAX || name.contains('\0') {
            return Err(FileError::BadName(owned));
        }
        if self.files.contains_key(name) {
            return Err(FileError::Duplicate(owned));
        }
        if self.files.len() >= FILES_MAX || u32::try_from(data.len()).is_err() {
            return Err(FileError::TooMuch(owned));
        }
        self.files.insert(owned, data);
        Ok(())
    }

    /// Gives every file its key, by name in ascending order, and makes the directory.
    pub(super) fn finish(self) -> BTreeMap<u16, Vec<u8>> {
        let Self { mut items, files } = self;
        let mut directory = (files.len() as u32).to_be_bytes().to_vec();
        for (key, (name, data)) in (key::FILE_FIRST..).zip(files) {
            directory.extend((data.len() as u32).to_be_bytes());
            directory.extend(key.to_be_bytes());
            directory.extend([0; 2]);
            let mut field = [0; NAME_MAX + 1];
            field[..name.len()].copy_from_slice(name.as_bytes());
            directory.extend(field);
            items.insert(key, data);
        }
        items.insert(key::FILE_DIR, directory);
        items
    }
}

/// Where an item is, whether or not it is asked for by the write channel.
pub(super) fn item_of(selector: u16) -> u16 {
    selector & !WRITE_CHANNEL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_by_name_with_size_and_key() {
        let mut items = Items::default();
        items.add_file("opt/b", *b"bb").unwrap();
        items.add_file("opt/a", *b"a").unwrap();
        let items = items.finish();
        let directory = &items[&key::FILE_DIR];
        assert_eq!(directory.len(), 4 + 2 * 64);
        assert_eq!(directory[..12], [0, 0, 0, 2, 0, 0, 0, 1, 0, 0x20, 0, 0]);
        assert_eq!(&directory[12..18], b"opt/a\0");
        assert_eq!(directory[68..76], [0, 0, 0, 2, 0, 0x21, 0, 0]);
        assert_eq!(
            (&items[&0x20][..], &items[&0x21][..]),
            (&b"a"[..], &b"bb"[..])
        );
    }

    #[test]
    fn names_must_fit_and_differ() {
        let mut items = Items::default();
        let long = "x".repeat(NAME_MAX);
        items.add_file(&long, []).unwrap();
        let mut refused = |name: &str| items.add_file(name, []).unwrap_err();
        assert_eq!(refused(&long), FileError::Duplicate(long.clone()));
        for name in ["", "a\0b", &format!("{long}x")] {
            assert_eq!(refused(name), FileError::BadName(name.into()));
        }
    }
}
