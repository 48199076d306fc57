//! The firmware configuration device of QEMU's PC (QEMU `docs/specs/fw_cfg.rst`).
//!
//! ```text
//!   0x510   selector: a 16-bit write chooses an item and goes back to its beginning
//!   0x511   data: each byte read is the item's next one, zeros after its end
//!   0x514   address of a transfer, 64 bits big-endian; writing the lower half starts it.
//!           Reads as "QEMU CFG"
//! ```
//! A transfer is described by sixteen bytes in guest memory ([`transfer`]). No item can be written:
//! the guest that tries finds the error bit set.

mod items;
mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use umbra_slots::Dma;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

pub use items::{FileError, Items, key};

/// What the address register reads as.
const SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Features: the two registers, and transfers.
const FEATURES: u32 = 1 << 0 | 1 << 1;

/// Which item is read, and from where on.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    item: u16,
    offset: usize,
}

#[derive(Debug, Default)]
struct State {
    cursor: Cursor,
    /// The address register.
    address: u64,
}

/// The device.
pub struct FwCfg {
    items: BTreeMap<u16, Vec<u8>>,
    memory: Arc<dyn Dma>,
    state: Mutex<State>,
}

impl FwCfg {
    /// The selector's port; the data port is the next one.
    pub const SELECTOR: u16 = 0x510;
    /// How many ports the two take.
    pub const SELECTOR_PORTS: u16 = 2;
    /// First port of the address register.
    pub const ADDRESS: u16 = 0x514;
    /// How many ports it takes.
    pub const ADDRESS_PORTS: u16 = 8;

    /// Makes the device; transfers go to `memory`.
    pub fn new(mut items: Items, memory: Arc<dyn Dma>) -> Self {
        items.set(key::SIGNATURE, &SIGNATURE[..4]);
        items.set_u32(key::ID, FEATURES);
        Self {
            items: items.finish(),
            memory,
            state: Mutex::new(State::default()),
        }
    }

    /// What is left of the selected item.
    fn rest(&self, cursor: Cursor) -> &[u8] {
        let item = self.items.get(&cursor.item).map_or(&[][..], Vec::as_slice);
        item.get(cursor.offset..).unwrap_or_default()
    }

    fn select(&self, state: &mut State, selector: u16) {
        state.cursor = Cursor {
            item: items::item_of(selector),
            offset: 0,
        };
    }

    fn next_byte(&self) -> u8 {
        let mut state = self.state.lock();
        match self.rest(state.cursor).first() {
            Some(byte) => {
                state.cursor.offset += 1;
                *byte
            }
            None => 0,
        }
    }

    fn write_address(&self, offset: u16, data: &[u8]) {
        let Ok(half) = <[u8; 4]>::try_from(data).map(u32::from_be_bytes) else {
            return;
        };
        let mut state = self.state.lock();
        match offset {
            0 => state.address = u64::from(half) << 32,
            4 => {
                let address = std::mem::take(&mut state.address) | u64::from(half);
                self.transfer(&mut state, address);
            }
            _ => {}
        }
    }
}

impl DevicePio for FwCfg {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        if base.0 == Self::ADDRESS {
            for (at, byte) in (usize::from(offset)..).zip(data) {
                *byte = SIGNATURE.get(at).copied().unwrap_or(0);
            }
            return;
        }
        match data {
            [byte] => *byte = self.next_byte(),
            // The data register is eight bits wide, and the selector cannot be read.
            _ => data.fill(0),
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        match (base.0, data) {
            (Self::ADDRESS, _) => self.write_address(offset, data),
            (_, [low, high]) => {
                self.select(&mut self.state.lock(), u16::from_le_bytes([*low, *high]));
            }
            // Data cannot be written through its port.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
