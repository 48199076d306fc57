//! Addresses, ports and interrupts of the default platform. Pure numbers.
//!
//! The tables that the guest reads, the bus and the wiring are all made from here.

use umbra_boot::layout::{HOLE, HOLE_END};

/// The local APICs' page after power-up.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// The IOAPIC's page, where every backend has it.
pub const IOAPIC: u32 = 0xfec0_0000;
/// First port of the serial port (COM1).
pub const SERIAL: u16 = 0x3f8;
/// Interrupt of the serial port.
pub const SERIAL_INTERRUPT: u32 = 4;
/// First port of the ACPI registers.
pub const POWER: u16 = 0x600;
/// Index port of the CMOS clock.
pub const CMOS: u16 = 0x70;
/// A range of guest-physical RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ram {
    /// First address.
    pub start: u64,
    /// Number of bytes, never zero.
    pub len: u64,
    /// Where in the machine's memory it begins.
    pub offset: u64,
}

/// Splits `bytes` of memory around the hole for devices below 4 GiB.
pub fn ram(bytes: u64) -> Vec<Ram> {
    let low = bytes.min(HOLE);
    let mut ranges = vec![Ram {
        start: 0,
        len: low,
        offset: 0,
    }];
    if bytes > low {
        ranges.push(Ram {
            start: HOLE_END,
            len: bytes - low,
            offset: low,
        });
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_up_to_the_hole_is_one_range() {
        assert_eq!(
            ram(3 * GIB),
            [Ram {
                start: 0,
                len: 3 * GIB,
                offset: 0
            }]
        );
    }

    #[test]
    fn memory_beyond_the_hole_goes_on_at_4_gib() {
        let high = Ram {
            start: 4 * GIB,
            len: 4096,
            offset: 3 * GIB,
        };
        assert_eq!(
            ram(3 * GIB + 4096),
            [
                Ram {
                    start: 0,
                    len: 3 * GIB,
                    offset: 0
                },
                high
            ]
        );
    }

    #[test]
    fn devices_lie_in_the_hole() {
        for page in [LOCAL_APIC, IOAPIC] {
            assert!((HOLE..HOLE_END).contains(&u64::from(page)));
        }
    }
}
