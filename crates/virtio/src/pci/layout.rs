//! What is where in the BAR, and the capabilities that say so (virtio 1.3, 4.1.4).

use umbra_pci::{ConfigError, ConfigSpace};

/// The only BAR.
pub const BAR: u8 = 0;
/// Its bytes.
pub const BAR_LEN: u64 = 0x1_0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
/// Where notifications go.
pub const NOTIFY: u64 = 0x3000;
/// Where the MSI-X table is.
pub const TABLE: u64 = 0x4000;
/// Where its pending bits are.
pub const PENDING: u64 = 0xc000;
/// Bytes between the places of two queues.
pub const NOTIFY_MULTIPLIER: u64 = 4;
/// Most queues that there are places for.
pub const QUEUES_MAX: usize = ((TABLE - NOTIFY) / NOTIFY_MULTIPLIER) as usize;

/// A part of the BAR, with an offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    Common(u64),
    Isr(u64),
    Device(u64),
    Notify(u64),
    Table(u64),
    Pending(u64),
}

impl Region {
    /// Returns what is at an offset of the BAR.
    pub fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0..ISR => Self::Common(offset),
            ISR..DEVICE => Self::Isr(offset - ISR),
            DEVICE..NOTIFY => Self::Device(offset - DEVICE),
            NOTIFY..TABLE => Self::Notify(offset - NOTIFY),
            TABLE..PENDING => Self::Table(offset - TABLE),
            PENDING..BAR_LEN => Self::Pending(offset - PENDING),
            _ => return None,
        })
    }
}

/// Identifier of a vendor's capability.
const VENDOR_SPECIFIC: u8 = 0x09;
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// A capability of `len` bytes without its first two.
fn capability(len: u8, kind: u8, start: u64, size: u64) -> Vec<u8> {
    // Length, type, BAR, number among those of its type, two unused bytes, place.
    let mut body = vec![len, kind, BAR, 0, 0, 0];
    body.extend((start as u32).to_le_bytes());
    body.extend((size as u32).to_le_bytes());
    body
}

/// Adds what a driver needs to find the parts of the BAR.
pub fn add_capabilities(config: &mut ConfigSpace) -> Result<Window, ConfigError> {
    let mut add =
        |body: &[u8], writable: &[u8]| config.add_capability(VENDOR_SPECIFIC, body, writable);
    add(&capability(16, COMMON_CFG, 0, ISR), &[])?;
    add(&capability(16, ISR_CFG, ISR, 1), &[])?;
    add(&capability(16, DEVICE_CFG, DEVICE, NOTIFY - DEVICE), &[])?;
    let mut notify = capability(20, NOTIFY_CFG, NOTIFY, TABLE - NOTIFY);
    notify.extend((NOTIFY_MULTIPLIER as u32).to_le_bytes());
    add(&notify, &[])?;
    let mut window = capability(20, PCI_CFG, 0, 0);
    window.extend([0; 4]);
    // BAR, place and length can be written.
    let writable = [
        0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    Ok(Window(add(&window, &writable)?))
}

/// VIRTIO_PCI_CAP_PCI_CFG: a register that stands for 1, 2 or 4 bytes of the BAR, for who cannot reach the
/// BAR itself (4.1.4.9).
#[derive(Clone, Copy, Debug)]
pub struct Window(u16);

impl Window {
    const BAR: u16 = 4;
    const OFFSET: u16 = 8;
    const LENGTH: u16 = 12;
    const DATA: u16 = 16;

    /// Returns which offset of the BAR an access of `len` bytes to a register is meant for; `None` if it is
    /// for the register itself.
    pub fn leads_to(self, config: &ConfigSpace, register: u16, len: usize) -> Option<u64> {
        if register != self.0 + Self::DATA {
            return None;
        }
        let mut bar = [0];
        config.read(self.0 + Self::BAR, &mut bar);
        let offset = u64::from(config.double_word(self.0 + Self::OFFSET));
        let wanted = config.double_word(self.0 + Self::LENGTH) as usize;
        let good = bar == [BAR]
            && wanted == len
            && matches!(wanted, 1 | 2 | 4)
            && offset.is_multiple_of(wanted as u64)
            && offset < BAR_LEN;
        good.then_some(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_is_in_one_part() {
        let table = [
            (0, Some(Region::Common(0))),
            (0xfff, Some(Region::Common(0xfff))),
            (0x1000, Some(Region::Isr(0))),
            (0x2000, Some(Region::Device(0))),
            (0x3004, Some(Region::Notify(4))),
            (0x4010, Some(Region::Table(0x10))),
            (0xc000, Some(Region::Pending(0))),
            (0xffff, Some(Region::Pending(0x3fff))),
            (0x1_0000, None),
            (u64::MAX, None),
        ];
        for (offset, region) in table {
            assert_eq!(Region::at(offset), region, "{offset:#x}");
        }
    }
}
