//! The two ways to configuration registers: a window of memory (ECAM, PCI Express 5.0, 7.2.2) and the
//! ports 0xcf8 and 0xcfc (PCI Local Bus 3.0, 3.2.2.3.2).
//!
//! An access is 1, 2 or 4 bytes and aligned; the window takes 8 aligned bytes as two accesses. Whatever
//! else comes reads as all ones and is dropped when written.

use std::sync::Arc;

use parking_lot::Mutex;
use umbra_bus::PioDevice;
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

use crate::{Address, RootBus};

/// Splits an access into aligned ones of 4 bytes at most; `None` if it is none that is taken.
fn step(offset: u64, len: usize) -> Option<usize> {
    let aligned = matches!(len, 1 | 2 | 4 | 8) && offset.is_multiple_of(len as u64);
    aligned.then_some(len.min(4))
}

/// The configuration registers of a root bus as memory: bits 0 to 11 of an address are the register,
/// 12 to 19 device and function, 20 to 27 the bus.
pub struct Ecam(Arc<RootBus>);

impl Ecam {
    /// Bytes of the window for bus 0, which is all there is.
    pub const LEN: u64 = 1 << 20;

    /// Makes the window's device. It must be inserted in the bus that the root bus has.
    pub fn new(root: Arc<RootBus>) -> Self {
        Self(root)
    }

    fn parse(offset: u64) -> Option<(Address, u16)> {
        (offset < Self::LEN).then_some((
            Address::from_bits((offset >> 12) as u8),
            (offset & 0xfff) as u16,
        ))
    }
}

impl DeviceMmio for Ecam {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        let Some(step) = step(offset, data.len()) else {
            return;
        };
        for (n, piece) in (0..).zip(data.chunks_mut(step)) {
            // It is aligned, so this does not wrap.
            if let Some((address, register)) = Self::parse(offset + 4 * n) {
                self.0.read_config(address, register, piece);
            }
        }
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let Some(step) = step(offset, data.len()) else {
            return;
        };
        for (n, piece) in (0..).zip(data.chunks(step)) {
            // It is aligned, so this does not wrap.
            if let Some((address, register)) = Self::parse(offset + 4 * n) {
                self.0.write_config(address, register, piece);
            }
        }
    }
}

/// CONFIG_ADDRESS: the data port leads somewhere.
const ENABLE: u32 = 1 << 31;
/// Offset of CONFIG_DATA.
const DATA: u16 = 4;

/// The configuration registers of a root bus behind eight ports from 0xcf8 on.
///
/// CONFIG_ADDRESS is a register of 32 bits and takes no other width. A PC has its reset register among
/// its bytes, at 0xcf9: a device of one port among the first four can be given, which gets what is written
/// there in another width.
pub struct ConfigPorts {
    root: Arc<RootBus>,
    address: Mutex<u32>,
    narrow: Option<(u16, PioDevice)>,
}

impl ConfigPorts {
    /// First port.
    pub const FIRST: u16 = 0xcf8;
    /// Number of ports.
    pub const LEN: u16 = 8;

    /// Makes the device, and with it one for the port `narrow.0`.
    pub fn new(root: Arc<RootBus>, narrow: Option<(u16, PioDevice)>) -> Self {
        Self {
            root,
            address: Mutex::new(0),
            narrow,
        }
    }

    /// Returns the other device, as if it had been put at its port, if this is where.
    fn narrow(&self, base: PioAddress, offset: u16) -> Option<(PioAddress, &PioDevice)> {
        let (port, device) = self.narrow.as_ref()?;
        (base.0.checked_add(offset) == Some(*port)).then_some((PioAddress(*port), device))
    }

    fn selected(&self, offset: u16, len: usize) -> Option<(Address, u16)> {
        let select = *self.address.lock();
        let bus = select >> 16 & 0xff;
        let taken = matches!(step(offset.into(), len), Some(step) if step == len);
        if select & ENABLE == 0 || bus != 0 || !taken {
            return None;
        }
        let register = (select & 0xfc) as u16 + (offset - DATA);
        Some((Address::from_bits((select >> 8) as u8), register))
    }
}

impl DevicePio for ConfigPorts {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        if offset >= DATA {
            if let Some((address, register)) = self.selected(offset, data.len()) {
                self.root.read_config(address, register, data);
            }
        } else if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = self.address.lock().to_le_bytes();
        } else if let Some((port, device)) = self.narrow(base, offset) {
            device.pio_read(port, 0, data);
        }
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if offset >= DATA {
            if let Some((address, register)) = self.selected(offset, data.len()) {
                self.root.write_config(address, register, data);
            }
        } else if let (0, Ok(data)) = (offset, data.try_into()) {
            // Bits 24 to 30, 0 and 1 do not exist.
            *self.address.lock() = u32::from_le_bytes(data) & 0x80ff_fffc;
        } else if let Some((port, device)) = self.narrow(base, offset) {
            device.pio_write(port, 0, data);
        }
    }
}
