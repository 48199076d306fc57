//! The ACPI tables of a hardware-reduced machine (ACPI 6.5, 4.1): RSDP, RSDT and XSDT, FADT, MADT,
//! MCFG, DSDT.
//!
//! They lie one behind the other from [`ACPI`], the RSDP first. Everything that the machine lacks
//! is said to be missing, so that a kernel does not look for it. The RSDT says what the XSDT says,
//! for kernels that know no other.

mod dsdt;
mod events;
mod fadt;
mod link;
mod madt;
mod pci;

use acpi_tables::Aml;
use acpi_tables::sdt::Sdt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::error::Error;
use crate::layout::{ACPI, RESET_VECTOR};

pub use link::Linkable;

const OEM: [u8; 6] = *b"UMBRA ";
const OEM_TABLE: [u8; 8] = *b"UMBRAVM ";
const OEM_REVISION: u32 = 1;

/// What the tables describe: addresses and numbers of the machine's devices.
#[derive(Clone, Debug)]
pub struct Platform {
    /// Number of processors; their local APIC ids are 0 to this less one.
    pub cpus: u32,
    /// Address of the local APICs.
    pub local_apic: u32,
    /// Address of the IOAPIC, whose pins are interrupts 0 to 23. Interrupt 0 is wired to pin 2.
    pub ioapic: u32,
    /// First of the eight ports of a 16550, and its interrupt.
    pub serial: Option<(u16, u32)>,
    /// Index port of a CMOS clock; its data port is the next one.
    pub cmos: Option<u16>,
    /// Virtio devices behind memory.
    pub virtio_mmio: Vec<VirtioMmio>,
    /// A keyboard controller with a keyboard.
    pub keyboard: Option<KeyboardController>,
    /// A PCI root bus.
    pub pci: Option<PciRoot>,
    /// Port of a register that reads as one if the power button was pressed since the last time.
    pub power_button: Option<u16>,
    /// The port by which a kernel says that it has crashed.
    pub panic_port: Option<u16>,
    /// The edge-triggered interrupt that has the guest look at the registers of hot-plug and of the button.
    pub event_interrupt: u32,
    /// Port of the sleep control register; the sleep status register is the next one.
    pub sleep_control: u16,
    /// First of the four ports of the power-management timer.
    pub timer: u16,
    /// Port of the reset register, and the value that resets.
    pub reset: (u16, u8),
}

/// Where the registers of a virtio device are (virtio 1.3, 4.2), and its interrupt, which is
/// level-triggered, active-high, and may be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// First address.
    pub address: u32,
    /// Number of bytes.
    pub len: u32,
    /// Interrupt.
    pub interrupt: u32,
}

/// Where an 8042 with a keyboard is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyboardController {
    /// Data port.
    pub data: u16,
    /// Command and status port.
    pub command: u16,
    /// Interrupt, edge-triggered.
    pub interrupt: u32,
}

/// Bus 0 of PCI segment 0, whose functions come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciRoot {
    /// Where the configuration registers are as memory (ECAM), 1 MiB.
    pub ecam: u32,
    /// First and last address that a BAR may have.
    pub window: (u32, u32),
    /// First of twelve ports with the registers of hot-plug, 32 bits each: functions that have come,
    /// functions that shall go, and functions that the guest has let go, bit n for device n.
    pub hotplug: u16,
}

/// Bytes of the RSDP, and the room that it takes before the first table.
const RSDP_LEN: usize = 36;
const RSDP_ROOM: u64 = 48;

/// Writes the tables.
pub fn write<M: GuestMemoryBackend>(memory: &M, platform: &Platform) -> Result<(), Error> {
    let tables = Tables::new(platform, ACPI + RSDP_ROOM);
    let mut bytes = tables.rsdp().to_vec();
    bytes.resize(RSDP_ROOM as usize, 0);
    bytes.extend(tables.bytes);
    debug_assert!(
        bytes.len() as u64 <= RESET_VECTOR - ACPI,
        "thousands of processors fit"
    );
    memory
        .write_slice(&bytes, GuestAddress(ACPI))
        .map_err(Error::memory("the ACPI tables"))
}

/// A table, by where it begins and how long it is, in bytes from the first table.
type Extent = (usize, usize);

/// All tables but the RSDP, as they are at some address.
struct Tables {
    base: u64,
    bytes: Vec<u8>,
    /// Each table.
    extents: Vec<Extent>,
    /// Each pointer from one table to another: where it is, and its width in bytes.
    pointers: Vec<(usize, u8)>,
    rsdt: u64,
    xsdt: u64,
}

impl Tables {
    /// Makes the tables for `base` and what follows it.
    fn new(platform: &Platform, base: u64) -> Self {
        let mut tables = Self {
            base,
            bytes: Vec::new(),
            extents: Vec::new(),
            pointers: Vec::new(),
            rsdt: 0,
            xsdt: 0,
        };
        let dsdt = tables.append(&dsdt::table(platform));
        let fadt = tables.append(&fadt::table(platform, dsdt));
        let at = (fadt - base) as usize;
        tables
            .pointers
            .extend([(at + fadt::DSDT, 4), (at + fadt::X_DSDT, 8)]);
        let madt = tables.append(&madt::table(platform));
        let mut all = vec![fadt, madt];
        if let Some(root) = &platform.pci {
            all.push(tables.append(&pci::mcfg(root)));
        }
        tables.rsdt = tables.append_root(*b"RSDT", 1, 4, &all);
        tables.xsdt = tables.append_root(*b"XSDT", 1, 8, &all);
        tables
    }

    /// Adds a table on a 16-byte border; returns its address.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        let start = self.bytes.len().next_multiple_of(16);
        self.bytes.resize(start, 0);
        table.to_aml_bytes(&mut self.bytes);
        self.extents.push((start, self.bytes.len() - start));
        self.base + start as u64
    }

    /// Adds a table of `width`-byte pointers (ACPI 6.5, 5.2.7 and 5.2.8).
    fn append_root(&mut self, name: [u8; 4], revision: u8, width: u8, to: &[u64]) -> u64 {
        const HEADER: usize = 36;
        let mut table = Sdt::new(name, HEADER as u32, revision, OEM, OEM_TABLE, OEM_REVISION);
        for pointer in to {
            table.append_slice(&pointer.to_le_bytes()[..usize::from(width)]);
        }
        let address = self.append(&table);
        let first = (address - self.base) as usize + HEADER;
        let places = (0..to.len()).map(|n| (first + n * usize::from(width), width));
        self.pointers.extend(places);
        address
    }

    /// Makes the RSDP (5.2.5.3), revision 2: with a pointer to the RSDT and one to the XSDT.
    fn rsdp(&self) -> [u8; RSDP_LEN] {
        let mut rsdp = [0; RSDP_LEN];
        rsdp[..8].copy_from_slice(b"RSD PTR ");
        rsdp[9..15].copy_from_slice(&OEM);
        rsdp[15] = 2;
        // All addresses are below 4 GiB.
        rsdp[link::RSDP_RSDT..][..4].copy_from_slice(&(self.rsdt as u32).to_le_bytes());
        rsdp[20..24].copy_from_slice(&(RSDP_LEN as u32).to_le_bytes());
        rsdp[link::RSDP_XSDT..][..8].copy_from_slice(&self.xsdt.to_le_bytes());
        rsdp[link::RSDP_CHECKSUM] = checksum(&rsdp[..link::RSDP_SHORT]);
        rsdp[link::RSDP_EXTENDED_CHECKSUM] = checksum(&rsdp);
        rsdp
    }
}

/// The byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    0u8.wrapping_sub(bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn platform(cpus: u32) -> Platform {
        Platform {
            cpus,
            local_apic: 0xfee0_0000,
            ioapic: 0xfec0_0000,
            serial: Some((0x3f8, 4)),
            cmos: Some(0x70),
            virtio_mmio: vec![VirtioMmio {
                address: 0xfeb1_2000,
                len: 0x1000,
                interrupt: 0x13,
            }],
            keyboard: Some(KeyboardController {
                data: 0x60,
                command: 0x64,
                interrupt: 1,
            }),
            pci: Some(PciRoot {
                ecam: 0xe000_0000,
                window: (0xc000_0000, 0xdfff_ffff),
                hotplug: 0x620,
            }),
            power_button: Some(0x610),
            panic_port: Some(0x505),
            event_interrupt: 9,
            sleep_control: 0x600,
            timer: 0x608,
            reset: (0x602, 1),
        }
    }

    /// Every table of a machine by its signature, found as an operating system finds it.
    fn tables(cpus: u32) -> Vec<(String, Vec<u8>)> {
        let memory = crate::tests::memory(2);
        write(&memory, &platform(cpus)).unwrap();
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let number = |bytes: &[u8]| crate::image::le(bytes, 0, bytes.len());
        let table = |at: u64| {
            let len = number(&read(at + 4, 4)) as usize;
            let bytes = read(at, len);
            (String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes)
        };
        let rsdp = read(ACPI, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(sum(&rsdp[..20]), 0);
        assert_eq!(sum(&rsdp), 0);
        let xsdt = table(number(&rsdp[24..32]));
        let rsdt = table(number(&rsdp[16..20]));
        assert_eq!((&rsdt.0[..], sum(&rsdt.1)), ("RSDT", 0));
        let narrow = rsdt.1[36..].chunks(4).map(number);
        assert!(narrow.eq(xsdt.1[36..].chunks(8).map(number)));
        let mut found: Vec<_> = xsdt.1[36..]
            .chunks(8)
            .map(|entry| table(number(entry)))
            .collect();
        let dsdt = number(&found[0].1[140..148]);
        found.extend([table(dsdt), xsdt]);
        found
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn table(cpus: u32, signature: &str) -> Vec<u8> {
        tables(cpus)
            .into_iter()
            .find(|(name, _)| name == signature)
            .unwrap()
            .1
    }

    #[test]
    fn every_table_is_found_and_sums_to_zero() {
        let names: Vec<_> = tables(3)
            .into_iter()
            .map(|(name, bytes)| {
                assert_eq!(sum(&bytes), 0, "{name}");
                name
            })
            .collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG", "DSDT", "XSDT"]);
    }

    #[test]
    fn the_madt_lists_processors_by_the_width_of_their_id() {
        let madt = table(300, "APIC");
        let mut kinds = [0; 16];
        let mut at = 44;
        while at < madt.len() {
            kinds[usize::from(madt[at])] += 1;
            at += usize::from(madt[at + 1]);
        }
        assert_eq!(at, madt.len());
        assert_eq!(
            (kinds[0], kinds[9]),
            (255, 45),
            "local APIC and local x2APIC"
        );
        assert_eq!(
            (kinds[1], kinds[2]),
            (1, 1),
            "IOAPIC and interrupt source override"
        );
    }

    #[test]
    fn the_fadt_is_hardware_reduced_with_sleep_and_reset_registers() {
        let fadt = table(1, "FACP");
        let flags = crate::image::le(&fadt, 112, 4);
        assert_ne!(flags & 1 << 20, 0, "HW_REDUCED_ACPI");
        assert_ne!(flags & 1 << 10, 0, "RESET_REG_SUP");
        assert_eq!(&fadt[116..129], &[1, 8, 0, 1, 2, 6, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(&fadt[244..256], &[1, 8, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&fadt[256..268], &[1, 8, 0, 1, 1, 6, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn the_dsdt_says_where_virtio_devices_are() {
        let dsdt = table(1, "DSDT");
        let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|w| w == bytes);
        assert!(has(b"_SB_V000") && has(b"LNRO0005\0"));
        // A fixed range, writable (ACPI 6.5, 6.4.3.4), and an interrupt: consumer, level, high, shared
        // (6.4.3.6).
        assert!(has(&[
            0x86, 9, 0, 1, 0, 0x20, 0xb1, 0xfe, 0, 0x10, 0, 0, 0x89, 6, 0, 0b1001, 1, 0x13, 0, 0, 0
        ]));
    }

    #[test]
    fn the_tables_say_where_pci_is() {
        let mcfg = table(1, "MCFG");
        let ecam = [0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(mcfg[44..], ecam, "segment 0, bus 0 to 0");
        let dsdt = table(1, "DSDT");
        let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|w| w == bytes);
        // The motherboard has the same window, writable.
        assert!(has(&[0x86, 9, 0, 1, 0, 0, 0, 0xe0, 0, 0, 0x10, 0]));
        // Memory that the bridge hands down (6.4.3.5.2): fixed, not cacheable, writable.
        let window = [
            0x87, 23, 0, 0, 0b1100, 1, 0, 0, 0, 0, 0, 0, 0, 0xc0, 0xff, 0xff, 0xff, 0xdf, 0, 0, 0,
            0, 0, 0, 0, 0x20,
        ];
        assert!(has(&window));
    }

    #[test]
    fn every_slot_but_the_host_bridge_can_be_told_and_emptied() {
        let dsdt = table(1, "DSDT");
        let count = |bytes: &[u8]| dsdt.windows(bytes.len()).filter(|w| *w == bytes).count();
        for number in 1..=31u32 {
            let name = format!("S{number:03X}");
            // The device, and two notifications: to look there, and to let go.
            assert_eq!(count(name.as_bytes()), 3, "{name}");
            let notified = |what: &[u8]| {
                let notify = [&[0x86], name.as_bytes(), what].concat();
                assert_eq!(count(&notify), 1, "{name}");
            };
            notified(&[1]);
            notified(&[0x0a, 3]);
        }
        assert_eq!((count(b"S000"), count(b"_EJ0")), (0, 31));
        assert!(count(b"ACPI0013\0") == 1 && count(b"\\/\x03_SB_PCI0PSCN") == 1);
    }

    #[test]
    fn the_event_device_has_the_button_and_the_slots_looked_at() {
        let dsdt = table(1, "DSDT");
        let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|w| w == bytes);
        // PNP0C0C as an EISA name.
        assert!(has(b"_SB_PWRB") && has(&[0x41, 0xd0, 0x0c, 0x0c]));
        // `If (PRSD) { Notify (\\_SB.PWRB, 0x80) }`.
        let tell = [b"PRSD\x86\\.".as_slice(), b"_SB_PWRB", &[0x0a, 0x80]].concat();
        assert!(has(&tell));
        let calls = [b"\\/\x03_SB_PWRBSCAN".as_slice(), b"\\/\x03_SB_PCI0PSCN"].concat();
        assert!(has(&calls));
        // Consumer, edge-triggered, active-high, not shared: interrupt 9.
        assert!(has(&[0x89, 6, 0, 0b0011, 1, 9, 0, 0, 0]));
    }

    #[test]
    fn a_machine_without_events_has_no_event_device() {
        let memory = crate::tests::memory(2);
        let quiet = Platform {
            pci: None,
            power_button: None,
            ..platform(1)
        };
        write(&memory, &quiet).unwrap();
        let mut bytes = vec![0; 0x2000];
        memory.read_slice(&mut bytes, GuestAddress(ACPI)).unwrap();
        assert!(!bytes.windows(8).any(|w| w == b"ACPI0013"));
    }

    #[test]
    fn a_keyboard_is_in_the_dsdt_and_in_the_boot_flags_or_in_neither() {
        let (fadt, dsdt) = (table(1, "FACP"), table(1, "DSDT"));
        assert_ne!(crate::image::le(&fadt, 109, 2) & 2, 0, "8042");
        // PNP0303, ports 0x60 and 0x64, interrupt 1.
        assert!(dsdt.windows(4).any(|w| w == [0x41, 0xd0, 0x03, 0x03]));
        let ports = [
            0x47, 1, 0x60, 0, 0x60, 0, 1, 1, 0x47, 1, 0x64, 0, 0x64, 0, 1, 1,
        ];
        assert!(dsdt.windows(16).any(|w| w == ports));

        let without = Platform {
            keyboard: None,
            ..platform(1)
        };
        let mut bytes = Vec::new();
        fadt::table(&without, 0).to_aml_bytes(&mut bytes);
        assert_eq!(crate::image::le(&bytes, 109, 2) & 2, 0);
        bytes.clear();
        dsdt::table(&without).to_aml_bytes(&mut bytes);
        assert!(!bytes.windows(4).any(|w| w == [0x41, 0xd0, 0x03, 0x03]));
    }

    #[test]
    fn the_dsdt_knows_soft_off_and_the_serial_port() {
        let dsdt = table(1, "DSDT");
        assert!(dsdt.windows(4).any(|w| w == b"_S5_"));
        assert!(dsdt.windows(4).any(|w| w == b"COM1"));
        assert!(dsdt.windows(4).any(|w| w == b"RTC0"));
        assert!(dsdt.windows(8).any(|w| w == b"QEMU0001"));
        assert!(dsdt.windows(2).any(|w| w == [0x05, 0x05]));
        assert!(dsdt.windows(2).any(|w| w == [0xf8, 0x03]));
    }
}
