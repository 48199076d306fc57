//! The initial RAM disk: checked as far as its format tells, and put as high as the kernel reaches.
//!
//! Linux only prints a line when an initramfs cannot be unpacked, and then panics for want of an
//! init. So a file that is cut short is found here: cpio, gzip, zstd and lz4 are walked to their
//! end, xz is asked for its footer; of bzip2, lzma and lzo only the magic number is known.

use std::io::{BufReader, Read};

use vm_memory::GuestMemoryBackend;

use crate::error::Error;
use crate::image::{Image, le};
use crate::load::{Initrd, need};

const WANTED: &str =
    "a cpio archive, plain or compressed with gzip, xz, zstd, lz4, bzip2, lzma or lzo";
const PAGE: u64 = 0x1000;
const CPIO_HEADER: u64 = 110;

/// Compressions that Linux unpacks (`lib/decompress.c`), by magic number.
const XZ: &[u8] = b"\xfd7zXZ\0";
const GZIP: [&[u8]; 2] = [b"\x1f\x8b", b"\x1f\x9e"];
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const LZ4: &[u8] = b"\x02\x21\x4c\x18";
const UNCHECKED: [&[u8]; 3] = [b"BZh", b"\x5d\0\0", b"\x89LZO\0\r\n\x1a\n"];

/// Loads the initrd, if there is one, above `kernel_end` and with its last byte at `max` at most.
pub fn load<M: GuestMemoryBackend>(
    memory: &M,
    low_ram: u64,
    kernel_end: u64,
    max: u64,
    initrd: Option<Image>,
) -> Result<Option<Initrd>, Error> {
    let Some(mut image) = initrd else {
        return Ok(None);
    };
    check(&mut image)?;
    let len = image.size();
    let kernel_end = kernel_end.next_multiple_of(PAGE);
    let end = low_ram.min(max.saturating_add(1));
    need(
        "the kernel with its initrd",
        kernel_end + len.next_multiple_of(PAGE),
        end,
    )?;
    let start = (end - len) & !(PAGE - 1);
    image.copy_to(memory, start, "the initrd")?;
    Ok(Some(Initrd { start, len }))
}

/// Checks the format. An initramfs may be several archives one after the other, with zeros between.
fn check(image: &mut Image) -> Result<(), Error> {
    let mut at = 0;
    while let Some(next) = skip_zeros(image, at)? {
        let magic = image.read_at(next, 16)?;
        at = match &magic[..] {
            m if m.starts_with(b"070701") || m.starts_with(b"070702") => walk_cpio(image, next)?,
            m if m.starts_with(ZSTD) => walk_zstd(image, next)?,
            m if m.starts_with(LZ4) => walk_lz4(image, next)?,
            m if GZIP.iter().any(|gzip| m.starts_with(gzip)) => return check_gzip(image, next),
            m if m.starts_with(XZ) => return check_xz(image),
            m if UNCHECKED.iter().any(|known| m.starts_with(known)) => return Ok(()),
            _ if next == 0 => return Err(unknown(image)),
            // Linux stops at garbage behind an archive, too; it has its files by then.
            _ => return Ok(()),
        };
    }
    if at == 0 { Err(unknown(image)) } else { Ok(()) }
}

fn unknown(image: &Image) -> Error {
    image.unknown("in no known initrd format", WANTED)
}

/// Finds the first byte at or after `at` that is not zero.
fn skip_zeros(image: &mut Image, mut at: u64) -> Result<Option<u64>, Error> {
    loop {
        let bytes = image.read_at(at, 4096)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        if let Some(found) = bytes.iter().position(|byte| *byte != 0) {
            return Ok(Some(at + found as u64));
        }
        at += bytes.len() as u64;
    }
}

/// Walks the members of a "newc" archive; returns the offset behind its trailer.
fn walk_cpio(image: &mut Image, start: u64) -> Result<u64, Error> {
    let mut at = start;
    loop {
        let header = image.read_at(at, CPIO_HEADER as usize)?;
        if header.len() < CPIO_HEADER as usize {
            return Err(image.truncated("the cpio archive ends without its trailer".into()));
        }
        let number = |field: usize| {
            let digits = std::str::from_utf8(&header[6 + 8 * field..14 + 8 * field]).ok()?;
            u64::from_str_radix(digits, 16).ok()
        };
        let (Some(len), Some(name_len)) = (number(6), number(11)) else {
            return Err(image.truncated(format!("the cpio archive is broken at byte {at}")));
        };
        if !header.starts_with(b"07070") {
            return Err(image.truncated(format!("the cpio archive is broken at byte {at}")));
        }
        let name = image.read_at(at + CPIO_HEADER, (name_len as usize).min(4096))?;
        // Offsets are rounded to four from the beginning of the archive.
        let data = start + (at - start + CPIO_HEADER + name_len).next_multiple_of(4);
        let next = start + (data - start + len).next_multiple_of(4);
        if name.starts_with(b"TRAILER!!!\0") {
            return Ok(next.min(image.size()));
        }
        if name.len() < (name_len as usize).min(4096) || data + len > image.size() {
            return Err(image.truncated("a file of the cpio archive is incomplete".into()));
        }
        at = next;
    }
}

/// Unpacks a gzip stream into nothing: its length is written nowhere before its end.
fn check_gzip(image: &mut Image, at: u64) -> Result<(), Error> {
    let file = image.rewound()?;
    let mut skipped = BufReader::new(file);
    let result = std::io::copy(&mut (&mut skipped).take(at), &mut std::io::sink()).and_then(|_| {
        std::io::copy(
            &mut flate2::read::GzDecoder::new(skipped),
            &mut std::io::sink(),
        )
    });
    match result {
        Ok(_) => Ok(()),
        Err(error) => Err(image.truncated(format!("the gzip stream does not unpack ({error})"))),
    }
}

/// An xz stream ends with "YZ" (xz file format 1.2.1, 2.1.2.4).
fn check_xz(image: &mut Image) -> Result<(), Error> {
    let tail = image.read_at(image.size().saturating_sub(4096), 4096)?;
    let end = tail
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    match tail[..end].ends_with(b"YZ") {
        true => Ok(()),
        false => Err(image.truncated("the xz stream has no footer".into())),
    }
}

/// Walks the blocks of a zstd frame (RFC 8878, 3.1.1); returns the offset behind it.
fn walk_zstd(image: &mut Image, start: u64) -> Result<u64, Error> {
    let cut = |image: &Image| image.truncated("the zstd frame is incomplete".into());
    let head = image.read_at(start, 5)?;
    if head.len() < 5 {
        return Err(cut(image));
    }
    let descriptor = head[4];
    let single = descriptor & 1 << 5 != 0;
    let window = u64::from(!single);
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let content = match descriptor >> 6 {
        0 => u64::from(single),
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let mut at = start + 5 + window + dictionary + content;
    loop {
        let block = image.read_at(at, 3)?;
        if block.len() < 3 {
            return Err(cut(image));
        }
        let word = le(&block, 0, 3);
        let (last, kind, size) = (word & 1 != 0, word >> 1 & 3, word >> 3);
        // A run-length block stores one byte, whatever it expands to.
        at += 3 + if kind == 1 { 1 } else { size };
        if at > image.size() {
            return Err(cut(image));
        }
        if last {
            let checksum = if descriptor & 4 != 0 { 4 } else { 0 };
            return if at + checksum > image.size() {
                Err(cut(image))
            } else {
                Ok(at + checksum)
            };
        }
    }
}

/// Walks the chunks of the legacy lz4 format, the one that Linux knows; returns the offset behind.
fn walk_lz4(image: &mut Image, start: u64) -> Result<u64, Error> {
    let mut at = start + 4;
    loop {
        let size = image.read_at(at, 4)?;
        match size.len() {
            0 => return Ok(at),
            4 => {}
            _ => return Err(image.truncated("the lz4 stream is incomplete".into())),
        }
        if size == LZ4 {
            return Ok(at);
        }
        let len = le(&size, 0, 4);
        if len == 0 || at + 4 + len > image.size() {
            // Zeros or another archive follow, unless the file simply ends.
            return if at + 4 + len > image.size() && len < 1 << 24 {
                Err(image.truncated("the lz4 stream is incomplete".into()))
            } else {
                Ok(at)
            };
        }
        at += 4 + len;
    }
}
