//! The guest's memory, in a file of which a part is never shown, and its driver of a disk.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use umbra_fuzz::{GUARD, NEXT, Source, WRITE};

/// Bytes of memory.
pub const RAM: u64 = 0x4_0000;
/// What a mapping of it is called.
pub const NAME: &str = "umbra-fuzz-guest";
/// Rings.
pub const RINGS: usize = 2;
/// Descriptors of each.
pub const SIZE: u16 = 8;
const STRIDE: u64 = 0x1000;
const HEADERS: u64 = 0x5000;
const STATUSES: u64 = 0x6000;
const DATA: u64 = 0x8000;
const PATTERN: u8 = 0xa5;

/// The guest.
pub struct Guest {
    file: File,
    /// By which it notifies, by ring.
    pub kicks: [OwnedFd; RINGS],
    available: [u16; RINGS],
}

/// Makes a file in memory that stays as long as it is.
pub fn file(name: &str, len: u64) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags).expect("the host has memory"));
    file.set_len(len).expect("the host has memory");
    fcntl_add_seals(&file, SealFlags::SHRINK).expect("it can be sealed");
    file
}

/// Makes an event.
pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("the host has events")
}

/// Descriptor table, available ring and used ring.
pub fn rings(ring: usize) -> [u64; 3] {
    [0x1000, 0x1400, 0x1800].map(|at| at + STRIDE * ring as u64)
}

impl Guest {
    pub fn new() -> Self {
        let file = file(NAME, RAM + 2 * GUARD as u64);
        for side in [0, GUARD as u64 + RAM] {
            let written = file.write_all_at(&[PATTERN; GUARD], side);
            written.expect("the host has memory");
        }
        Self {
            file,
            kicks: [event(), event()],
            available: [0; RINGS],
        }
    }

    /// Returns the file, of which RAM begins behind [`GUARD`].
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes memory; what is outside is dropped.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        if at + bytes.len() as u64 <= RAM {
            let written = self.file.write_all_at(bytes, GUARD as u64 + at);
            written.expect("it is in the file");
        }
    }

    /// Reads memory.
    pub fn load<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let read = self.file.read_exact_at(&mut bytes, GUARD as u64 + at);
        read.expect("it is in the file");
        bytes
    }

    /// Begins anew, with empty rings.
    pub fn begin(&mut self) {
        for ring in 0..RINGS {
            self.put(rings(ring)[0], &[0; STRIDE as usize]);
        }
        self.available = [0; RINGS];
    }

    fn describe(&self, ring: usize, index: u16, (at, len, flags): (u64, u32, u16)) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend((index + 1).to_le_bytes());
        self.put(rings(ring)[0] + 16 * u64::from(index), &bytes);
    }

    /// Makes a request of one buffer of data, and notifies.
    pub fn request(&mut self, ring: usize, (kind, sector): (u32, u64), (at, len): (u64, u32)) {
        let head = 3 * (self.available[ring] & 1);
        let header = HEADERS + 0x20 * u64::from(head) + 0x200 * ring as u64;
        self.put(header, &kind.to_le_bytes());
        self.put(header + 8, &sector.to_le_bytes());
        let writes = if kind == 0 { WRITE } else { 0 };
        self.describe(ring, head, (header, 16, NEXT));
        self.describe(ring, head + 1, (at, len, NEXT | writes));
        self.describe(ring, head + 2, (STATUSES + ring as u64, 1, WRITE));
        self.offer(ring, head);
    }

    fn offer(&mut self, ring: usize, head: u16) {
        let available = &mut self.available[ring];
        let slot = rings(ring)[1] + 4 + 2 * u64::from(*available % SIZE);
        *available = available.wrapping_add(1);
        let index = *available;
        self.put(slot, &head.to_le_bytes());
        self.put(rings(ring)[1] + 2, &index.to_le_bytes());
        let _ = rustix::io::write(&self.kicks[ring], &1u64.to_ne_bytes());
    }

    /// Does one thing, which may be nothing that a driver does.
    pub fn step(&mut self, source: &mut Source<'_>) {
        let ring = source.below(RINGS);
        if source.below(3) == 0 {
            let at = source.pick(&rings(ring)) + u64::from(source.u8());
            return self.put(at, source.bytes(8));
        }
        let kind = source.pick(&[0, 0, 1, 4, 8, 11, 13, 0xffff]);
        let sector = u64::from(source.u8());
        let at = match source.below(8) {
            0 => RAM - u64::from(source.u8()),
            1 => source.u64(),
            2 => rings(ring)[2],
            _ => DATA + 0x200 * u64::from(source.u8()),
        };
        self.request(ring, (kind, sector), (at, 0x200 * (source.u8() as u32 & 7)));
    }

    /// Reads a sector as drivers do, through a ring that has just begun.
    pub fn read(&mut self, ring: usize, sector: u64, patience: Duration) -> [u8; 512] {
        self.put(STATUSES + ring as u64, &[0xee]);
        self.request(ring, (0, sector), (DATA, 512));
        let begin = Instant::now();
        while self.load::<2>(rings(ring)[2] + 2) != [1, 0] {
            assert!(begin.elapsed() < patience, "nothing comes back");
            std::thread::yield_now();
        }
        assert_eq!(self.load::<1>(STATUSES + ring as u64), [0], "it was done");
        self.load(DATA)
    }

    /// Looks at what was never shown.
    pub fn check(&self) {
        for side in [0, GUARD as u64 + RAM] {
            let mut bytes = [0; GUARD];
            let read = self.file.read_exact_at(&mut bytes, side);
            read.expect("it is in the file");
            assert!(bytes == [PATTERN; GUARD], "a write outside of {side:#x}");
        }
    }
}
