//! Recognises a kernel's format by its first bytes.

use super::{Image, le};
use crate::error::Error;
use crate::{elf32, elf64, multiboot};

/// The formats that can be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Linux bzImage.
    BzImage,
    /// A 64-bit ELF image with a PVH entry note.
    Elf64Pvh,
    /// A 32-bit ELF image with a PVH entry note.
    Elf32Pvh,
    /// An image with a multiboot 1 header.
    Multiboot,
}

const WANTED: &str =
    "a bzImage (vmlinuz), an ELF image with a PVH note (vmlinux) or a multiboot 1 image";

/// Files that people give by mistake, by their magic number.
const MISTAKES: [(&[u8], &str); 9] = [
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\xfd7zXZ\0", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"\x02\x21\x4c\x18", "lz4-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"07070", "a cpio archive, which would be an initrd"),
    (b"!<arch>", "an archive, perhaps a Debian package"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"#!", "a script"),
];

/// Recognises `image`.
pub fn kind(image: &mut Image) -> Result<Kind, Error> {
    let head = image.read_at(0, multiboot::SEARCH)?;
    if head.len() >= 0x206 && &head[0x202..0x206] == b"HdrS" {
        return Ok(Kind::BzImage);
    }
    if head.starts_with(b"\x7fELF") {
        return elf(image, &head);
    }
    if multiboot::find_header(&head).is_some() {
        return Ok(Kind::Multiboot);
    }
    // An MZ stub and a boot sector's signature, but no room for the header behind them.
    if head.len() < 0x206 && head.starts_with(b"MZ") {
        return Err(image.truncated("it ends within the header".into()));
    }
    let mistake = MISTAKES.iter().find(|(magic, _)| head.starts_with(magic));
    let found = mistake.map_or_else(
        || "in no known kernel format".to_owned(),
        |(_, name)| (*name).to_owned(),
    );
    Err(image.unknown(found, WANTED))
}

fn elf(image: &mut Image, head: &[u8]) -> Result<Kind, Error> {
    const CLASS: usize = 4;
    const DATA: usize = 5;
    const MACHINE: usize = 18;
    if head.len() < 64 {
        return Err(image.truncated("it ends within the ELF header".into()));
    }
    if head[DATA] != 1 {
        return Err(image.unknown("a big-endian ELF file", WANTED));
    }
    let multiboot = multiboot::find_header(head).is_some();
    let (pvh, kind) = match (head[CLASS], le(head, MACHINE, 2)) {
        (2, 62) => (elf64::has_pvh_entry(image)?, Kind::Elf64Pvh),
        (1, 3) => (elf32::pvh_entry(image)?.is_some(), Kind::Elf32Pvh),
        (_, machine) => {
            return Err(image.unknown(
                format!("an ELF file for machine {machine}, not x86"),
                WANTED,
            ));
        }
    };
    match (pvh, multiboot) {
        (true, _) => Ok(kind),
        (false, true) => Ok(Kind::Multiboot),
        (false, false) => Err(image.unknown(
            "an ELF file without a PVH note or a multiboot header",
            WANTED,
        )),
    }
}
