//! Kernels and initrds: whole ones, broken ones, and bytes.

use std::io::Write;

use umbra_fuzz::Source;

/// A kernel: one that boots, with some changes, or what is left of the input.
pub fn kernel(source: &mut Source<'_>) -> Vec<u8> {
    let choice = source.u8();
    let whole = match choice & 7 {
        0 => bzimage(),
        1 => elf64(),
        2 => elf32(true),
        3 => elf32(false),
        4 => multiboot(),
        _ => return source.rest().to_vec(),
    };
    broken(whole, source)
}

/// An initrd, or none: one that is good, with some changes, or bytes.
pub fn initrd(source: &mut Source<'_>) -> Option<Vec<u8>> {
    let whole = match source.u8() & 15 {
        0..4 => return None,
        4 | 5 => cpio(100),
        6 => gzip(&cpio(100)),
        7 | 8 => zstd(&cpio(100)),
        9 | 10 => lz4(&cpio(100)),
        11 => [&b"\xfd7zXZ\0"[..], &[0; 50], b"YZ\0\0"].concat(),
        12 => cpio(0x8000),
        _ => {
            let len = usize::from(source.u8());
            return Some(source.bytes(len).to_vec());
        }
    };
    Some(broken(whole, source))
}

/// Replaces some numbers and perhaps cuts the end off.
fn broken(mut image: Vec<u8>, source: &mut Source<'_>) -> Vec<u8> {
    let choice = source.u8();
    for _ in 0..choice & 15 {
        let (at, width) = (usize::from(source.u16()), 1 << (source.u8() & 3));
        let value = source.u64().to_le_bytes();
        let at = at % image.len();
        let end = (at + width).min(image.len());
        image[at..end].copy_from_slice(&value[..end - at]);
    }
    if choice & 16 != 0 {
        image.truncate(usize::from(source.u16()) % image.len());
    }
    image
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn put_words(image: &mut [u8], at: usize, words: &[u32]) {
    for (index, word) in words.iter().enumerate() {
        put(image, at + 4 * index, &word.to_le_bytes());
    }
}

/// A bzImage of protocol 2.15: one setup sector and 64 bytes of code.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 64];
    put(&mut image, 0x1f1, &[1]);
    put_words(&mut image, 0x1f4, &[4]);
    put(&mut image, 0x1fe, &[0x55, 0xaa]);
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    put(&mut image, 0x211, &[1]);
    put_words(&mut image, 0x22c, &[0x7fff_ffff, 0x20_0000]);
    put(&mut image, 0x234, &[1, 21, 0x3f, 0]);
    put_words(&mut image, 0x238, &[2047]);
    put_words(&mut image, 0x258, &[0x10_0000, 0, 0x10_0000]);
    image
}

/// A note with a PVH entry.
fn pvh_note(image: &mut [u8], at: usize) {
    put_words(image, at, &[4, 4, 18]);
    put(image, at + 12, b"Xen\0");
    put_words(image, at + 16, &[0x10_0040]);
}

/// A 64-bit ELF image with a PVH note.
fn elf64() -> Vec<u8> {
    let mut image = vec![0; 0x200];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put_words(&mut image, 16, &[62 << 16 | 2, 1, 0x10_0000, 0, 64]);
    put(&mut image, 52, &[64, 0, 56, 0, 2, 0]);
    for (index, (kind, offset, address, len)) in [(1, 0x100, 0x10_0000, 0x80), (4, 0x180, 0, 20)]
        .into_iter()
        .enumerate()
    {
        let words = [kind, 0, offset, 0, 0, 0, address, 0, len, 0, len, 0, 0, 0];
        put_words(&mut image, 64 + 56 * index, &words);
    }
    pvh_note(&mut image, 0x180);
    image
}

/// A 32-bit ELF image with a PVH note or a multiboot header.
fn elf32(pvh: bool) -> Vec<u8> {
    let mut image = vec![0; 0x200];
    put(&mut image, 0, b"\x7fELF\x01\x01\x01");
    put_words(&mut image, 16, &[3 << 16 | 2, 1, 0x10_0000, 52, 0, 0]);
    put(&mut image, 40, &[52, 0, 32, 0, 2, 0]);
    for (index, words) in [
        [1, 0x100, 0, 0x10_0000, 0x80, 0x1000, 7, 0],
        [if pvh { 4 } else { 0 }, 0x180, 0, 0, 20, 20, 0, 0],
    ]
    .into_iter()
    .enumerate()
    {
        put_words(&mut image, 52 + 32 * index, &words);
    }
    match pvh {
        true => pvh_note(&mut image, 0x180),
        false => put_words(&mut image, 0x100, &[0x1bad_b002, 3, 0xe452_4ffb]),
    }
    image
}

/// A multiboot image that says itself where it goes.
fn multiboot() -> Vec<u8> {
    let mut image = vec![0xcc; 0x100];
    let (magic, flags) = (0x1bad_b002u32, 1 << 16 | 3);
    let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let addresses = [0x10_0010, 0x10_0000, 0x10_0100, 0x10_2000, 0x10_0020];
    put_words(&mut image, 16, &[magic, flags, sum]);
    put_words(&mut image, 28, &addresses);
    image
}

/// An archive with one file.
fn cpio(len: usize) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, len) in [("init", len), ("TRAILER!!!", 0)] {
        let mut fields = [0; 13];
        (fields[6], fields[11]) = (len, name.len() + 1);
        archive.extend(b"070701");
        for field in fields {
            archive.extend(format!("{field:08x}").bytes());
        }
        archive.extend(name.bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.resize(archive.len() + len, b'x');
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut stream = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    stream.write_all(bytes).expect("a vector grows");
    stream.finish().expect("a vector grows")
}

/// A frame of one raw block.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    let header = (bytes.len() as u32) << 3 | 1;
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    [&frame[..], &header.to_le_bytes()[..3], bytes].concat()
}

/// The legacy format with one chunk.
fn lz4(bytes: &[u8]) -> Vec<u8> {
    let len = (bytes.len() as u32).to_le_bytes();
    [&[0x02, 0x21, 0x4c, 0x18][..], &len, bytes].concat()
}

/// An input for each kind of kernel, as it is and as mere bytes.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let kernels = [bzimage(), elf64(), elf32(true), elf32(false), multiboot()];
    let mut all = Vec::new();
    for (number, kernel) in kernels.into_iter().enumerate() {
        // Memory, platform, command line, no module; then the initrd; then the kernel.
        for initrd in 3..13 {
            let mut seed = vec![16, 65, 20, 0, 0, initrd];
            seed.extend((initrd > 3).then_some(0));
            let bytes = [&seed[..], &[5], &kernel].concat();
            let chosen = [&seed[..], &[number as u8, 0]].concat();
            for (kind, input) in [("bytes", bytes), ("chosen", chosen)] {
                all.push((format!("{kind}-{number}-{initrd}"), input));
            }
        }
    }
    all
}
