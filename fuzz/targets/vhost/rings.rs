//! The memory that a back end was given, and the rings in it.
//!
//! Memory is read and written by its files, which is the same memory as that of the mappings.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// What a buffer is filled with.
pub const FILL: u8 = 0x5a;
/// Most bytes that are filled of a buffer.
const FILL_MAX: usize = 0x1000;

/// A piece of memory.
pub struct Piece {
    pub start: u64,
    pub len: u64,
    pub offset: u64,
    pub file: File,
}

/// All of it.
#[derive(Default)]
pub struct Pieces(pub Vec<Piece>);

impl Pieces {
    fn find(&self, at: u64, len: usize) -> Option<(&File, u64)> {
        let piece = self.0.iter().find(|piece| {
            let inside = at.checked_sub(piece.start);
            inside.is_some_and(|inside| inside < piece.len && piece.len - inside >= len as u64)
        })?;
        Some((&piece.file, piece.offset + (at - piece.start)))
    }

    /// Writes; nothing where it has no memory.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        if let Some((file, at)) = self.find(at, bytes.len()) {
            let _ = file.write_all_at(bytes, at);
        }
    }

    /// Reads; zeros where it has no memory.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some((file, at)) = self.find(at, N) {
            let _ = file.read_exact_at(&mut bytes, at);
        }
        bytes
    }

    fn half(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at))
    }
}

/// A ring.
#[derive(Default)]
pub struct Ring {
    pub size: u16,
    /// Descriptor table, available ring, used ring.
    pub at: [u64; 3],
    /// What is taken next.
    pub base: u16,
    /// What is used next; it is read when the ring begins.
    pub used: Option<u16>,
    pub kick: Option<OwnedFd>,
    pub call: Option<OwnedFd>,
    pub fault: Option<OwnedFd>,
    pub enabled: bool,
    /// It does nothing until there are two chains: see [`Ring::twice`].
    pub waits_for_two: bool,
}

/// A buffer of a chain.
struct Buffer {
    at: u64,
    len: u32,
    is_writable: bool,
}

fn signal(event: Option<&OwnedFd>) {
    if let Some(event) = event {
        let _ = rustix::io::write(event, &1u64.to_ne_bytes());
    }
}

impl Ring {
    /// Tells whether it can be worked on.
    pub fn runs(&self) -> bool {
        self.enabled && self.kick.is_some() && self.size.is_power_of_two()
    }

    /// Notifies.
    pub fn call(&self) {
        signal(self.call.as_ref());
    }

    /// Says that it cannot go on.
    pub fn fault(&self) {
        signal(self.fault.as_ref());
    }

    /// Chains that are available, bounded.
    fn waiting(&self, memory: &Pieces) -> u16 {
        let by = memory.half(self.at[1] + 2).wrapping_sub(self.base);
        by.min(self.size)
    }

    fn head(&self, memory: &Pieces, turn: u16) -> u16 {
        memory.half(self.at[1] + 4 + 2 * u64::from(turn % self.size))
    }

    /// A table from one of its descriptors on.
    fn chain(&self, memory: &Pieces, table: u64, first: u16, buffers: &mut Vec<Buffer>) {
        let mut index = first;
        while buffers.len() < 16 {
            let bytes: [u8; 16] = memory.read(table + 16 * u64::from(index));
            let at = u64::from_le_bytes(*bytes.first_chunk().expect("it has eight"));
            let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
            let len = u32::from(half(8)) | u32::from(half(10)) << 16;
            let flags = half(12);
            if flags & INDIRECT != 0 {
                if table == self.at[0] {
                    self.chain(memory, at, 0, buffers);
                }
                return;
            }
            buffers.push(Buffer {
                at,
                len,
                is_writable: flags & WRITE != 0,
            });
            if flags & NEXT == 0 {
                return;
            }
            index = half(14);
        }
    }

    /// Fills what may be written of a chain; returns how much that was.
    fn fill(&self, memory: &Pieces, head: u16) -> u32 {
        let mut buffers = Vec::new();
        self.chain(memory, self.at[0], head, &mut buffers);
        let mut written = 0;
        for buffer in buffers.iter().filter(|buffer| buffer.is_writable) {
            let mut left = buffer.len as usize;
            let mut at = buffer.at;
            // It may be in two pieces, which byte by byte is no matter.
            if left <= FILL_MAX && memory.find(at, left).is_some() {
                memory.write(at, &vec![FILL; left]);
                left = 0;
            }
            for _ in 0..left.min(FILL_MAX) {
                memory.write(at, &[FILL]);
                at = at.wrapping_add(1);
            }
            written = u32::wrapping_add(written, buffer.len);
        }
        written
    }

    fn used(&mut self, memory: &Pieces) -> u16 {
        let at = self.at[2] + 2;
        *self.used.get_or_insert_with(|| memory.half(at))
    }

    /// Writes a used element.
    pub fn element(&mut self, memory: &Pieces, id: u32, len: u32) {
        let slot = u64::from(self.used(memory) % self.size);
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        memory.write(self.at[2] + 4 + 8 * slot, &bytes);
    }

    /// Shows so many used elements.
    pub fn show(&mut self, memory: &Pieces, by: u16) {
        let used = self.used(memory).wrapping_add(by);
        self.used = Some(used);
        memory.write(self.at[2] + 2, &used.to_le_bytes());
        self.call();
    }

    /// Says whether it wants to be notified, in both ways.
    pub fn hint(&mut self, memory: &Pieces, value: u16) {
        memory.write(self.at[2], &value.to_le_bytes());
        let event = self.at[2] + 4 + 8 * u64::from(self.size);
        memory.write(event, &value.to_le_bytes());
    }

    /// Does one chain: the last one that there is, or the first. `length` says what is written instead of filling.
    pub fn one(&mut self, memory: &Pieces, last: bool, length: Option<u32>) {
        let waiting = self.waiting(memory);
        if waiting == 0 {
            return;
        }
        let turn = match last {
            true => self.base.wrapping_add(waiting - 1),
            false => self.base,
        };
        let head = self.head(memory, turn);
        if last {
            // The first one takes its place.
            let first = self.head(memory, self.base);
            let slot = self.at[1] + 4 + 2 * u64::from(turn % self.size);
            memory.write(slot, &first.to_le_bytes());
        }
        self.base = self.base.wrapping_add(1);
        let length = length.unwrap_or_else(|| self.fill(memory, head));
        self.element(memory, head.into(), length);
        self.show(memory, 1);
    }

    /// Does one chain twice, as soon as there is another one that it could be.
    pub fn twice(&mut self, memory: &Pieces) {
        self.waits_for_two = self.waiting(memory) < 2;
        if self.waits_for_two {
            return;
        }
        let head = self.head(memory, self.base);
        self.base = self.base.wrapping_add(1);
        for _ in 0..2 {
            self.element(memory, head.into(), 0);
            self.show(memory, 1);
        }
    }

    /// Does all that there is. One that has spoiled its memory does not write where that says.
    pub fn work(&mut self, memory: &Pieces, spoiled: bool) {
        loop {
            // From now on it is notified.
            memory.write(self.at[2], &[0; 2]);
            let event = self.at[2] + 4 + 8 * u64::from(self.size);
            memory.write(event, &self.base.to_le_bytes());
            let waiting = self.waiting(memory);
            if waiting == 0 {
                return;
            }
            for _ in 0..waiting {
                self.one(memory, false, spoiled.then_some(1));
            }
        }
    }
}
