//! Whole images through [`load`]: generated ones, good and bad, and real ones where
//! `UMBRA_TEST_KERNEL` names a bzImage.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use umbra_x86::state::gpr;
use umbra_x86::{cr0, efer};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::layout::{ACPI, HIGH_RAM, INFO, ZERO_PAGE};
use crate::*;

type Memory = GuestMemoryMmap<()>;

/// Fresh memory of `mib` MiB from address zero.
pub fn memory(mib: usize) -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), mib << 20)]).unwrap()
}

fn platform() -> Platform {
    Platform {
        cpus: 1,
        local_apic: 0xfee0_0000,
        ioapic: 0xfec0_0000,
        serial: None,
        cmos: None,
        virtio_mmio: Vec::new(),
        keyboard: None,
        pci: None,
        power_button: None,
        panic_port: None,
        event_interrupt: 9,
        sleep_control: 0x600,
        timer: 0x608,
        reset: (0x602, 1),
    }
}

/// A directory of generated images.
struct Bench {
    dir: TempDir,
    mib: usize,
    initrd: Option<PathBuf>,
    modules: Vec<(PathBuf, String)>,
    command_line: String,
}

impl Bench {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            mib: 64,
            initrd: None,
            modules: Vec::new(),
            command_line: "console=ttyS0".into(),
        }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn try_boot(&self, kernel: &Path) -> Result<(Memory, Loaded), Error> {
        let memory = memory(self.mib);
        let initrd = self
            .initrd
            .as_ref()
            .map(|path| Image::open(Role::Initrd, path));
        let request = Request {
            kernel: Image::open(Role::Kernel, kernel)?,
            initrd: initrd.transpose()?,
            modules: self
                .modules
                .iter()
                .map(|(path, text)| {
                    Ok(Module {
                        image: Image::open(Role::Module, path)?,
                        command_line: text.clone(),
                    })
                })
                .collect::<Result<_, Error>>()?,
            command_line: &self.command_line,
            platform: platform(),
        };
        load(&memory, request).map(|loaded| (memory, loaded))
    }

    fn boot(&self, kernel: &[u8]) -> (Memory, Loaded) {
        self.try_boot(&self.file("kernel", kernel)).unwrap()
    }

    /// The one line that a bad kernel gets.
    fn refusal(&self, kernel: &[u8]) -> String {
        let message = self
            .try_boot(&self.file("kernel", kernel))
            .unwrap_err()
            .to_string();
        assert!(
            !message.contains('\n') && message.contains("; "),
            "{message}"
        );
        message
    }

    /// The one line that a good kernel with a bad initrd gets.
    fn initrd_refusal(&mut self, initrd: &[u8]) -> String {
        self.initrd = Some(self.file("initrd", initrd));
        self.refusal(&bzimage())
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage of protocol 2.15 with one setup sector and 4 KiB of code, all `0xcc`.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 4096];
    image[1024..].fill(0xcc);
    put(&mut image, 0x1f1, &[1]);
    put(&mut image, 0x1f4, &256u32.to_le_bytes());
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut image, 0x234, &[1, 21, 0x3f, 0]);
    put(&mut image, 0x238, &2047u32.to_le_bytes());
    put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut image, 0x260, &0x100_0000u32.to_le_bytes());
    image
}

/// An ELF image with one segment at 16 MiB and, if asked for, a PVH note.
fn elf64(note: bool) -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 18, &62u16.to_le_bytes());
    put(&mut image, 24, &0x100_0000u64.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 54, &56u16.to_le_bytes());
    put(&mut image, 56, &2u16.to_le_bytes());
    let segments = [(1u32, 0x200u64, 0x100_0000u64, 0x100u64), (4, 0x400, 0, 20)];
    for (index, (kind, offset, address, len)) in segments.into_iter().enumerate() {
        let at = 64 + 56 * index;
        put(&mut image, at, &kind.to_le_bytes());
        for (field, value) in [(8, offset), (24, address), (32, len), (40, len)] {
            put(&mut image, at + field, &value.to_le_bytes());
        }
    }
    image[0x200..0x300].fill(0xcc);
    if note {
        for (field, value) in [(0, 4u32), (4, 4), (8, 18), (16, 0x100_0040)] {
            put(&mut image, 0x400 + field, &value.to_le_bytes());
        }
        put(&mut image, 0x40c, b"Xen\0");
    }
    image
}

/// A multiboot image that is no ELF file: header at offset 16, loaded at 1 MiB.
fn multiboot() -> Vec<u8> {
    let mut image = vec![0xcc; 0x400];
    let flags = 1u32 << 16;
    let magic = 0x1bad_b002u32;
    let header = [
        magic,
        flags,
        0u32.wrapping_sub(magic).wrapping_sub(flags),
        0x10_0010,
        0x10_0000,
        0x10_0400,
        0x10_2000,
        0x10_0020,
    ];
    for (index, word) in header.into_iter().enumerate() {
        put(&mut image, 16 + 4 * index, &word.to_le_bytes());
    }
    image
}

/// A cpio archive with one file of `len` bytes.
fn cpio(len: usize) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, len) in [("init", len), ("TRAILER!!!", 0)] {
        let mut fields = [0; 13];
        (fields[6], fields[11]) = (len, name.len() + 1);
        archive.extend(b"070701");
        fields
            .iter()
            .for_each(|field| write!(archive, "{field:08x}").unwrap());
        archive.extend(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.resize(archive.len() + len, b'x');
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

fn word(memory: &Memory, at: u64) -> u32 {
    memory.read_obj(GuestAddress(at)).unwrap()
}

fn string(memory: &Memory, at: u64) -> String {
    let bytes = (at..).map(|at| memory.read_obj::<u8>(GuestAddress(at)).unwrap());
    String::from_utf8(bytes.take_while(|byte| *byte != 0).collect()).unwrap()
}

#[test]
fn a_bzimage_starts_in_long_mode_with_its_zero_page() {
    let mut bench = Bench::new();
    bench.initrd = Some(bench.file("initrd", &cpio(5000)));
    let (memory, loaded) = bench.boot(&bzimage());
    let state = &loaded.state;
    assert_eq!(loaded.protocol, Protocol::Linux64);
    assert_eq!((state.rip, state.gpr[gpr::RSI]), (0x100_0200, ZERO_PAGE));
    assert_ne!(state.cr0 & cr0::PG, 0);
    assert_ne!(state.efer & efer::LMA, 0);
    assert_eq!(
        word(&memory, 0x100_0000),
        0xcccc_cccc,
        "code at the preferred address"
    );
    assert_eq!(word(&memory, ZERO_PAGE + 0x202), 0x5372_6448);
    assert_eq!(u64::from(word(&memory, ZERO_PAGE + 0x70)), ACPI);
    assert_eq!(
        string(&memory, word(&memory, ZERO_PAGE + 0x228).into()),
        "console=ttyS0"
    );
    let (start, len) = loaded.initrd.unwrap();
    assert_eq!(u64::from(word(&memory, ZERO_PAGE + 0x218)), start);
    assert_eq!(u64::from(word(&memory, ZERO_PAGE + 0x21c)), len);
    assert_eq!(word(&memory, start), u32::from_le_bytes(*b"0707"));
    assert!(start % 4096 == 0 && start + len <= 64 << 20 && start > 32 << 20);
}

#[test]
fn a_jump_to_the_reset_vector_resets_the_machine() {
    let (memory, _) = Bench::new().boot(&bzimage());
    let mut code = [0; 6];
    memory
        .read_slice(&mut code, GuestAddress(0xf_fff0))
        .unwrap();
    // mov al, 1; mov dx, 0x602; out dx, al
    assert_eq!(code, [0xb0, 0x01, 0xba, 0x02, 0x06, 0xee]);
}

#[test]
fn a_bzimage_without_a_64_bit_entry_starts_in_protected_mode() {
    let mut kernel = bzimage();
    put(&mut kernel, 0x236, &[0]);
    let (_, loaded) = Bench::new().boot(&kernel);
    assert_eq!(loaded.protocol, Protocol::Linux32);
    assert_eq!(
        (loaded.state.rip, loaded.state.cr0 & cr0::PG),
        (0x100_0000, 0)
    );
}

#[test]
fn an_elf_image_with_a_note_starts_by_pvh() {
    let mut bench = Bench::new();
    bench.initrd = Some(bench.file("initrd", &cpio(1)));
    let (memory, loaded) = bench.boot(&elf64(true));
    assert_eq!(loaded.protocol, Protocol::Pvh);
    assert_eq!(
        (loaded.state.rip, loaded.state.gpr[gpr::RBX]),
        (0x100_0040, INFO)
    );
    assert_eq!(word(&memory, INFO), 0x336e_c578);
    assert_eq!(
        string(&memory, word(&memory, INFO + 24).into()),
        "console=ttyS0"
    );
    assert_eq!(u64::from(word(&memory, INFO + 32)), ACPI);
    let module = word(&memory, INFO + 16).into();
    assert_eq!(u64::from(word(&memory, module)), loaded.initrd.unwrap().0);
}

#[test]
fn a_multiboot_image_gets_its_information() {
    let (memory, loaded) = Bench::new().boot(&multiboot());
    assert_eq!(loaded.protocol, Protocol::Multiboot);
    assert_eq!(
        (loaded.state.rip, loaded.state.gpr[gpr::RAX]),
        (0x10_0020, 0x2bad_b002)
    );
    assert_eq!(loaded.state.gpr[gpr::RBX], INFO);
    assert_eq!(word(&memory, 0x10_0000), 0xcccc_cccc);
    assert_eq!(
        word(&memory, INFO),
        0b10_0100_1111,
        "which fields are valid"
    );
    assert_eq!(
        (word(&memory, INFO + 4), word(&memory, INFO + 8)),
        (639, 63 * 1024),
        "KiB below and above 1 MiB"
    );
    let line = string(&memory, word(&memory, INFO + 16).into());
    assert!(line.ends_with("/kernel console=ttyS0"), "{line}");
    assert_eq!(word(&memory, INFO + 20), 0, "no module");
    assert_eq!(string(&memory, word(&memory, INFO + 64).into()), "umbra");
    let (len, map) = (word(&memory, INFO + 44), word(&memory, INFO + 48));
    let map = u64::from(map);
    let ends = (0..len / 24).map(|n| word(&memory, map + u64::from(24 * n)));
    assert!(ends.eq([20; 4]), "four regions");
}

#[test]
fn a_multiboot_kernel_gets_its_modules_behind_itself() {
    let mut bench = Bench::new();
    // No format is expected of a module, nor any byte.
    bench.initrd = Some(bench.file("first", b"NR_CPUS=2\n"));
    let modules = [
        ("second", &b""[..], "second x y"),
        ("third", &[7; 5000], ""),
    ];
    for (name, bytes, text) in modules {
        let path = bench.file(name, bytes);
        bench.modules.push((path, text.into()));
    }
    let (memory, loaded) = bench.boot(&multiboot());
    assert_eq!(word(&memory, INFO + 20), 3);
    let list = u64::from(word(&memory, INFO + 24));
    let row = |n: u64| [0, 4, 8, 12].map(|at| word(&memory, list + 16 * n + at));
    let [start, end, text, zero] = row(0);
    let (kernel, len) = loaded.kernel;
    assert!(u64::from(start) >= kernel + len && start % 0x1000 == 0);
    assert_eq!((end - start, zero), (10, 0));
    assert_eq!(word(&memory, start.into()), u32::from_le_bytes(*b"NR_C"));
    assert!(string(&memory, text.into()).ends_with("/first"));
    let [start, end, text, _] = row(1);
    assert_eq!(start, end);
    assert_eq!(string(&memory, text.into()), "second x y");
    let [start, end, ..] = row(2);
    assert_eq!(
        (end - start, word(&memory, (end - 4).into())),
        (5000, 0x0707_0707)
    );
}

#[test]
fn modules_that_do_not_fit_or_are_not_wanted_are_refused() {
    let mut bench = Bench::new();
    let path = bench.file("large", &vec![1; 2 << 20]);
    bench.modules.push((path, String::new()));
    assert!(bench.refusal(&bzimage()).contains("takes no modules"));
    assert!(bench.refusal(&elf64(true)).contains("takes no modules"));
    bench.mib = 3;
    let message = bench.refusal(&multiboot());
    assert!(message.contains("needs 4 MiB"), "{message}");
    bench.mib = 64;
    bench.modules[0].1 = "x".repeat(0x4_0000);
    assert!(
        bench
            .refusal(&multiboot())
            .contains("there is room for 262144")
    );
}

#[test]
fn a_multiboot_kernel_may_lie_below_one_mebibyte() {
    let mut image = multiboot();
    let low = |at: u32| at - 0x10_0000 + 0x4000;
    for (index, value) in [0x10_0010, 0x10_0000, 0x10_0400, 0x10_2000, 0x10_0020]
        .into_iter()
        .enumerate()
    {
        put(&mut image, 28 + 4 * index, &low(value).to_le_bytes());
    }
    let mut bench = Bench::new();
    bench.initrd = Some(bench.file("module", b"m"));
    let (memory, loaded) = bench.boot(&image);
    assert_eq!(loaded.state.rip, 0x4020);
    assert_eq!(loaded.kernel, (0x4000, 0x2000));
    assert_eq!(
        loaded.state.gpr[gpr::RBX],
        HIGH_RAM,
        "out of the kernel's way"
    );
    let module = word(&memory, HIGH_RAM + 24).into();
    assert!(u64::from(word(&memory, module)) >= HIGH_RAM + 0x4_0000);
    for (load, end) in [
        (0x800u32, 0x2000u32),
        (0x9_0000, 0xa_0000),
        (0xe_0000, 0xe_1000),
    ] {
        put(&mut image, 28, &(load + 0x10).to_le_bytes());
        put(&mut image, 32, &load.to_le_bytes());
        put(&mut image, 36, &(load + 0x400).to_le_bytes());
        put(&mut image, 40, &end.to_le_bytes());
        assert!(bench.refusal(&image).contains("below 1 MiB"), "{load:#x}");
    }
}

#[test]
fn a_64_bit_multiboot_kernel_is_refused_unless_it_says_where_it_goes() {
    let mut image = elf64(false);
    let header = |flags: u32| {
        let magic = 0x1bad_b002u32;
        let sum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
        let addresses = [0x10_0800, 0x10_0000, 0, 0, 0x10_0000u32];
        let words = [magic, flags, sum].into_iter().chain(addresses);
        words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
    };
    put(&mut image, 0x800, &header(0));
    let message = Bench::new().refusal(&image);
    assert!(message.contains("give a 32-bit one"), "{message}");
    put(&mut image, 0x800, &header(1 << 16));
    let (memory, loaded) = Bench::new().boot(&image);
    assert_eq!(loaded.state.rip, 0x10_0000);
    assert_eq!(word(&memory, 0x10_0000), 0x464c_457f);
}

#[test]
fn bad_kernels_are_refused_in_one_line_with_a_remedy() {
    let bench = Bench::new();
    let random: Vec<u8> = (0u32..40_000)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut old = bzimage();
    put(&mut old, 0x206, &[4, 2]);
    let table: [(&str, Vec<u8>, &str); 8] = [
        ("empty", vec![], "is empty"),
        ("random", random, "in no known kernel format"),
        (
            "cut in the code",
            bzimage()[..3000].to_vec(),
            "truncated: it has 3000 of 5120 bytes",
        ),
        (
            "cut in the header",
            bzimage()[..0x220].to_vec(),
            "truncated: the header",
        ),
        ("protocol 2.04", old, "boot protocol 2.04"),
        (
            "cut ELF",
            elf64(true)[..0x280].to_vec(),
            "truncated: a segment ends at byte",
        ),
        ("ELF without a note", elf64(false), "without a PVH note"),
        (
            "gzip",
            b"\x1f\x8b\x08\0\0\0\0\0".to_vec(),
            "is gzip-compressed",
        ),
    ];
    for (name, kernel, expected) in table {
        let message = bench.refusal(&kernel);
        assert!(message.contains(expected), "{name}: {message}");
    }
}

#[test]
fn paths_that_are_no_files_are_refused() {
    let bench = Bench::new();
    let missing = bench
        .try_boot(&bench.dir.path().join("missing"))
        .unwrap_err();
    assert!(missing.to_string().contains("No such file"), "{missing}");
    let directory = bench.try_boot(bench.dir.path()).unwrap_err();
    assert!(
        directory.to_string().contains("not a regular file"),
        "{directory}"
    );
}

#[test]
fn too_little_memory_is_refused_with_what_would_do() {
    let mut bench = Bench::new();
    bench.mib = 24;
    let message = bench.refusal(&bzimage());
    assert!(
        message.contains("needs 32 MiB") && message.contains("has 24 MiB"),
        "{message}"
    );
    bench.mib = 33;
    let message = bench.initrd_refusal(&cpio(2 << 20));
    assert!(
        message.contains("with its initrd needs 35 MiB"),
        "{message}"
    );
    bench.mib = 1;
    assert!(bench.refusal(&multiboot()).contains("needs 2 MiB"));
}

#[test]
fn the_command_line_is_measured_by_the_kernels_own_limit() {
    let mut bench = Bench::new();
    bench.command_line = "x".repeat(2047);
    let _loaded = bench.boot(&bzimage());
    bench.command_line.push('x');
    assert!(
        bench
            .refusal(&bzimage())
            .contains("2048 bytes, this kernel takes at most 2047")
    );
    assert!(bench.refusal(&elf64(true)).contains("at most 2047"));
    let mut wide = bzimage();
    put(&mut wide, 0x238, &u32::MAX.to_le_bytes());
    let _loaded = bench.boot(&wide);
    bench.command_line = "x".repeat(0x1_0000);
    assert!(bench.refusal(&wide).contains("at most 65535"));
    bench.command_line = "a\0b".into();
    assert!(bench.refusal(&wide).contains("zero byte"));
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn good_initrds_pass_and_cut_ones_do_not() {
    // One stored block of 3 bytes: zstd magic, single-segment frame, last raw block.
    let zstd = b"\x28\xb5\x2f\xfd\x20\x03\x19\0\0abc".to_vec();
    let lz4 = b"\x02\x21\x4c\x18\x04\0\0\0\x30abc".to_vec();
    let xz = b"\xfd7zXZ\0\0\x04 body YZ".to_vec();
    let two = [cpio(600), vec![0; 512], gzip(&cpio(700))].concat();
    let table = [
        ("cpio", cpio(10_000)),
        ("gzip", gzip(&cpio(10_000))),
        ("zstd", zstd),
        ("lz4", lz4),
        ("xz", xz),
        ("cpio and gzip", two),
    ];
    for (name, initrd) in table {
        let mut bench = Bench::new();
        bench.initrd = Some(bench.file("initrd", &initrd));
        let _loaded = bench.boot(&bzimage());
        // A cpio archive is padded; its trailer's name ends four bytes before it.
        let cut = if name == "cpio" { 4 } else { 2 };
        let message = bench.initrd_refusal(&initrd[..initrd.len() - cut]);
        assert!(message.contains("truncated"), "{name}: {message}");
    }
}

#[test]
fn bad_initrds_are_refused_in_one_line_with_a_remedy() {
    let mut bench = Bench::new();
    assert!(bench.initrd_refusal(b"").contains("the initrd"));
    assert!(
        bench
            .initrd_refusal(&[0; 100])
            .contains("no known initrd format")
    );
    assert!(
        bench
            .initrd_refusal(&[7; 5000])
            .contains("no known initrd format")
    );
    assert!(
        bench
            .initrd_refusal(&cpio(5000)[..3000])
            .contains("a file of the cpio archive")
    );
    let no_trailer = cpio(5000).len() - 124;
    assert!(
        bench
            .initrd_refusal(&cpio(5000)[..no_trailer])
            .contains("without its trailer")
    );
    let mut odd = cpio(100);
    odd[54..62].fill(b'z');
    assert!(bench.initrd_refusal(&odd).contains("broken at byte 0"));
}

#[test]
fn no_cut_and_no_flipped_byte_of_any_format_panics() {
    let bench = Bench::new();
    for image in [bzimage(), elf64(true), multiboot()] {
        for cut in (0..image.len()).step_by(31) {
            let _ = bench.try_boot(&bench.file("kernel", &image[..cut]));
        }
        for at in 0..0x420.min(image.len()) {
            for value in [0xff, image[at] ^ 1] {
                let mut damaged = image.clone();
                damaged[at] = value;
                let _ = bench.try_boot(&bench.file("kernel", &damaged));
            }
        }
    }
}

#[test]
fn a_real_kernel_loads_and_is_refused_when_cut() {
    let Some(path) = std::env::var_os("UMBRA_TEST_KERNEL").map(PathBuf::from) else {
        eprintln!("skipped: UMBRA_TEST_KERNEL names no bzImage");
        return;
    };
    let mut bench = Bench::new();
    bench.mib = 256;
    let (_, loaded) = bench.try_boot(&path).unwrap();
    assert_eq!(loaded.protocol, Protocol::Linux64);
    let bytes = fs::read(&path).unwrap();
    for part in [3, 10, 50, 90] {
        let message = bench.refusal(&bytes[..bytes.len() * part / 100]);
        assert!(message.contains("truncated"), "{part} %: {message}");
    }
}
