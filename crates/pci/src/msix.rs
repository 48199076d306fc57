//! MSI-X: a table of messages, each of which can be masked (PCI Local Bus 3.0, 6.8.2).
//!
//! ```text
//!   capability   control: enable, function mask ─┐        table      16 bytes a vector: address,
//!   command      bus master ─────────────────────┤                   data, mask
//!                                                v        PBA        one bit a vector, read-only
//!   device ── raise(vector) ── masked? ── no ──> MsiTarget::send
//!                                └── yes: pending, until it is unmasked
//! ```
//! Disabled, nothing is sent and nothing becomes pending; what is pending already stays. A function that
//! may not be bus master counts as masked, since a message is a write to memory.

use std::sync::Arc;

use parking_lot::Mutex;
use umbra_irq::{Msi, MsiTarget};

use crate::{BUS_MASTER, ConfigError, ConfigSpace};

/// Identifier of the capability.
const ID: u8 = 0x11;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Vector control: masked.
const MASKED: u32 = 1;
/// Bytes of an entry of the table.
const ENTRY: u64 = 16;

#[derive(Clone, Copy)]
struct Vector {
    /// Address, upper address, data, control.
    words: [u32; 4],
    pending: bool,
}

impl Vector {
    /// After a reset: masked, and everything else is undefined, so zero.
    const RESET: Self = Self {
        words: [0, 0, 0, MASKED],
        pending: false,
    };

    fn message(&self) -> Msi {
        let [low, high, data, _] = self.words;
        Msi {
            address: u64::from(high) << 32 | u64::from(low),
            data,
        }
    }

    fn is_masked(&self) -> bool {
        self.words[3] & MASKED != 0
    }
}

struct State {
    vectors: Vec<Vector>,
    control: u16,
    bus_master: bool,
}

/// The vectors of a function. Its lock comes before those of interrupt controllers.
pub struct Msix {
    state: Mutex<State>,
    target: Arc<dyn MsiTarget>,
    /// Where the capability is.
    at: u16,
}

impl Msix {
    /// Most vectors of a function.
    pub const MAX: u16 = 2048;

    /// Adds a capability for `vectors` vectors, 1 to [`Msix::MAX`], to a function. Table and pending
    /// bits are in `bar` at these offsets, multiples of 8.
    ///
    /// # Errors
    /// If there is no room for the capability.
    ///
    /// # Panics
    /// If the number of vectors is no such number: that is for the function's author to know.
    pub fn new(
        config: &mut ConfigSpace,
        vectors: u16,
        (bar, table, pending): (u8, u32, u32),
        target: Arc<dyn MsiTarget>,
    ) -> Result<Self, ConfigError> {
        assert!((1..=Self::MAX).contains(&vectors), "{vectors} vectors");
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        for offset in [table, pending] {
            body.extend((offset & !7 | u32::from(bar & 7)).to_le_bytes());
        }
        let writable = (ENABLE | FUNCTION_MASK).to_le_bytes();
        Ok(Self {
            at: config.add_capability(ID, &body, &writable)?,
            state: Mutex::new(State {
                vectors: vec![Vector::RESET; vectors.into()],
                control: 0,
                bus_master: false,
            }),
            target,
        })
    }

    /// Returns the number of vectors.
    pub fn vectors(&self) -> u16 {
        // At most MAX.
        self.state.lock().vectors.len() as u16
    }

    /// Bytes of the table.
    pub fn table_len(&self) -> u64 {
        ENTRY * u64::from(self.vectors())
    }

    /// Tells whether the driver has enabled it.
    pub fn is_enabled(&self) -> bool {
        self.state.lock().control & ENABLE != 0
    }

    /// Follows the command register and the capability; to be called after each write to the
    /// configuration space.
    pub fn follow(&self, config: &ConfigSpace) {
        let mut state = self.state.lock();
        state.control = config.word(self.at + 2);
        state.bus_master = config.command_has(BUS_MASTER);
        for vector in 0..state.vectors.len() {
            self.deliver(&mut state, vector);
        }
    }

    /// Sends the message of a vector, or lets it wait until it is unmasked. Nothing if there is no such
    /// vector, or MSI-X is disabled.
    pub fn raise(&self, vector: u16) {
        let mut state = self.state.lock();
        if state.control & ENABLE == 0 {
            return;
        }
        let vector = usize::from(vector);
        if let Some(entry) = state.vectors.get_mut(vector) {
            entry.pending = true;
            self.deliver(&mut state, vector);
        }
    }

    /// Forgets what is pending in a vector.
    pub fn withdraw(&self, vector: u16) {
        if let Some(entry) = self.state.lock().vectors.get_mut(usize::from(vector)) {
            entry.pending = false;
        }
    }

    fn deliver(&self, state: &mut State, vector: usize) {
        let open = state.control & (ENABLE | FUNCTION_MASK) == ENABLE && state.bus_master;
        let entry = &mut state.vectors[vector];
        if open && !entry.is_masked() && std::mem::take(&mut entry.pending) {
            self.target.send(entry.message());
        }
    }

    /// Reads the table: 4 or 8 bytes, aligned. Anything else, and what is beyond it, reads as all
    /// ones.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if !is_table_access(offset, data.len()) {
            return;
        }
        let state = self.state.lock();
        for (n, piece) in (0..).zip(data.chunks_mut(4)) {
            // It is aligned, so this does not wrap.
            let (index, word) = place(offset + 4 * n);
            if let Some(entry) = state.vectors.get(index) {
                piece.copy_from_slice(&entry.words[word].to_le_bytes());
            }
        }
    }

    /// Writes the table: 4 or 8 bytes, aligned; anything else is dropped. A vector that this unmasks
    /// sends what is pending.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        if !is_table_access(offset, data.len()) {
            return;
        }
        let mut state = self.state.lock();
        for (n, piece) in (0..).zip(data.chunks_exact(4)) {
            // It is aligned, so this does not wrap.
            let (index, word) = place(offset + 4 * n);
            let Some(entry) = state.vectors.get_mut(index) else {
                return;
            };
            let value = u32::from_le_bytes([piece[0], piece[1], piece[2], piece[3]]);
            entry.words[word] = match word {
                // Two low bits of an address are always zero, and one bit of the control exists.
                0 => value & !3,
                3 => value & MASKED,
                _ => value,
            };
            self.deliver(&mut state, index);
        }
    }

    /// Reads pending bits, any offset and width; beyond the last vector they are zero.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = self.state.lock();
        for (at, byte) in (0..).zip(data) {
            let first = offset.saturating_add(at).saturating_mul(8);
            let bit = |n: u64| {
                let index = usize::try_from(first.saturating_add(n)).ok();
                let entry = index.and_then(|index| state.vectors.get(index));
                u8::from(entry.is_some_and(|entry| entry.pending)) << n
            };
            *byte = (0..8).map(bit).fold(0, |bits, bit| bits | bit);
        }
    }
}

fn is_table_access(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64)
}

/// The vector at an offset, and which word of it.
fn place(offset: u64) -> (usize, usize) {
    let index = usize::try_from(offset / ENTRY).unwrap_or(usize::MAX);
    (index, (offset % ENTRY / 4) as usize)
}

#[cfg(test)]
#[path = "msix_tests.rs"]
mod tests;
