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
/// Interrupt of the keyboard.
pub const KEYBOARD_INTERRUPT: u32 = 1;
/// First port of the ACPI registers.
pub const POWER: u16 = 0x600;
/// Port of the power button's register.
pub const POWER_BUTTON: u16 = 0x610;
/// Interrupt of what the guest is told by ACPI: ACPI's own on a PC.
pub const EVENT_INTERRUPT: u32 = 9;
/// Index port of the CMOS clock.
pub const CMOS: u16 = 0x70;
/// Where the windows of virtio devices begin, one behind the other, a page each.
pub const VIRTIO: u32 = 0xfeb0_0000;
/// How many fit.
pub const VIRTIO_MAX: usize = 64;
/// Interrupts of virtio devices: pins that no other device of a PC has, then those that nobody has
/// here. More devices than these share the first ones.
const VIRTIO_INTERRUPTS: [u32; 17] = [
    16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 12, 13, 14, 15,
];

/// Returns the first address of virtio window `number`, which is below [`VIRTIO_MAX`].
pub fn virtio_address(number: usize) -> u32 {
    VIRTIO + (number % VIRTIO_MAX) as u32 * 0x1000
}

/// Returns its interrupt.
pub fn virtio_interrupt(number: usize) -> u32 {
    VIRTIO_INTERRUPTS[number % VIRTIO_INTERRUPTS.len()]
}

/// Where the configuration registers of the PCI root bus are as memory.
pub const PCI_CONFIG: u32 = 0xe000_0000;
/// First and last address that a BAR may have.
pub const PCI_WINDOW: (u32, u32) = (0xc000_0000, 0xdfff_ffff);
/// First port of the registers of PCI hot-plug.
pub const PCI_HOTPLUG: u16 = 0x620;
/// How many functions there can be beside the host bridge.
pub const PCI_MAX: usize = 31;

/// What memory of devices above RAM begins at multiples of: guests with huge pages and those with large memory
/// blocks take it as it is.
pub const HIGH_ALIGNMENT: u64 = 1 << 30;

/// Returns the first address for memory of devices in a machine with `memory` bytes of RAM.
pub fn high(memory: u64) -> u64 {
    let end = HOLE_END + memory.saturating_sub(HOLE);
    end.next_multiple_of(HIGH_ALIGNMENT)
}

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
        for page in [
            LOCAL_APIC,
            IOAPIC,
            VIRTIO,
            PCI_CONFIG,
            PCI_WINDOW.0,
            PCI_WINDOW.1,
        ] {
            assert!((HOLE..HOLE_END).contains(&u64::from(page)));
        }
    }

    #[test]
    fn virtio_windows_end_before_the_ioapic_and_their_interrupts_are_nobody_elses() {
        assert!(virtio_address(VIRTIO_MAX - 1) + 0x1000 <= IOAPIC);
        let own: std::collections::BTreeSet<_> = (0..17).map(virtio_interrupt).collect();
        assert_eq!(own.len(), 17);
        for taken in [
            0,
            KEYBOARD_INTERRUPT,
            2,
            SERIAL_INTERRUPT,
            8,
            EVENT_INTERRUPT,
        ] {
            assert!(!own.contains(&taken), "{taken}");
        }
        assert_eq!(virtio_interrupt(17), virtio_interrupt(0));
    }
}
