//! A PCI root bus in the tables: the MCFG (PCI Firmware 3.3, 4.1.2), the host bridge, and how functions
//! come and go (ACPI 6.5, 6.3.3).
//!
//! ```text
//!   monitor ── sets bits, pulses the interrupt ──> GED0._EVT ──> PSCN: reads UP and DOWN
//!                                                       │   Notify(slot, 1): look there
//!                                                       └   Notify(slot, 3): please let it go
//!   guest ── has let it go: slot._EJ0 ──> writes EJCT
//! ```
//! The registers are 32 bits each, bit n for device n: which functions have come (UP, reading clears),
//! which shall go (DOWN, reading clears), and which the guest has let go (EJCT, written).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Local, Memory32Fixed, Method, Name, Notify, ONE,
    OpRegion, OpRegionSpace, Path, ResourceTemplate, Store, ZERO,
};
use acpi_tables::mcfg::MCFG;

use super::{OEM, OEM_REVISION, OEM_TABLE, PciRoot};

/// Configuration registers of one bus as memory.
const ECAM_LEN: u32 = 1 << 20;
/// The ports of configuration accesses.
const CONFIG_PORTS: u16 = 0xcf8;
const CONFIG_PORTS_LEN: u8 = 8;
/// Bytes of the hot-plug registers.
const HOTPLUG_LEN: u8 = 12;
/// Devices that can come and go: all but the host bridge.
const SLOTS: std::ops::RangeInclusive<u32> = 1..=31;

/// What a slot's device is notified of (ACPI 6.5, 5.6.6).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// The method that looks at the registers.
pub const SCAN: &str = "\\_SB_.PCI0.PSCN";

/// Makes the MCFG.
pub fn mcfg(root: &PciRoot) -> MCFG {
    let mut table = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    table.add_ecam(root.ecam.into(), 0, 0, 0);
    table
}

/// Adds the host bridge and its slots.
pub fn add(root: &PciRoot, code: &mut Vec<u8>) {
    reservation(root, code);
    bridge(root, code);
}

/// Linux uses the configuration registers in memory only if a motherboard device has them.
fn reservation(root: &PciRoot, code: &mut Vec<u8>) {
    let ecam = Memory32Fixed::new(true, root.ecam, ECAM_LEN);
    let port = root.hotplug;
    let ports = IO::new(port, port, 1, HOTPLUG_LEN);
    let resources = ResourceTemplate::new(vec![&ecam, &ports]);
    Device::new(
        Path::new("_SB_.MRES"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .to_aml_bytes(code);
}

fn bridge(root: &PciRoot, code: &mut Vec<u8>) {
    let (first, last) = root.window;
    let bus = AddressSpace::new_bus_number(0u16, 0);
    let config = IO::new(CONFIG_PORTS, CONFIG_PORTS, 1, CONFIG_PORTS_LEN);
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let window = AddressSpace::new_memory(cacheable, true, first, last, None);
    let resources = ResourceTemplate::new(vec![&bus, &config, &window]);
    let region = OpRegion::new(
        Path::new("HPRG"),
        OpRegionSpace::SystemIO,
        &root.hotplug,
        &HOTPLUG_LEN,
    );
    let registers = Field::new(
        Path::new("HPRG"),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        [*b"UP__", *b"DOWN", *b"EJCT"]
            .map(|name| FieldEntry::Named(name, 32))
            .to_vec(),
    );
    let slots: Vec<Raw> = SLOTS.map(slot).collect();
    let scan = scan();
    let names: [(&str, &dyn Aml); 6] = [
        ("_HID", &EISAName::new("PNP0A08")),
        ("_CID", &EISAName::new("PNP0A03")),
        ("_UID", &ZERO),
        ("_SEG", &ZERO),
        // Devices see memory as processors do.
        ("_CCA", &ONE),
        ("_CRS", &resources),
    ];
    let names = names.map(|(name, value)| Name::new(Path::new(name), value));
    let mut children: Vec<&dyn Aml> = names.iter().map(|name| name as &dyn Aml).collect();
    children.extend([&region as &dyn Aml, &registers]);
    children.extend(slots.iter().map(|slot| slot as &dyn Aml));
    children.push(&scan);
    Device::new(Path::new("_SB_.PCI0"), children).to_aml_bytes(code);
}

/// Code that was made already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn slot_path(number: u32) -> Path {
    Path::new(&format!("S{number:03X}"))
}

/// A slot, whatever is in it.
fn slot(number: u32) -> Raw {
    let (address, bit) = (number << 16, 1u32 << number);
    let register = Path::new("EJCT");
    let eject = Store::new(&register, &bit);
    let mut code = Vec::new();
    Device::new(
        slot_path(number),
        vec![
            &Name::new(Path::new("_ADR"), &address),
            &Name::new(Path::new("_SUN"), &number),
            &Method::new(Path::new("_EJ0"), 1, false, vec![&eject]),
        ],
    )
    .to_aml_bytes(&mut code);
    Raw(code)
}

/// The method that looks at the registers and tells the slots.
fn scan() -> Raw {
    let seen = Local(0);
    let (up, down) = (Path::new("UP__"), Path::new("DOWN"));
    let (take_up, take_down) = (Store::new(&seen, &up), Store::new(&seen, &down));
    let tell = |what: u8| -> Vec<Raw> {
        let one = |number: u32| {
            let (bit, slot) = (1u32 << number, slot_path(number));
            let (mask, notify) = (And::new(&ZERO, &seen, &bit), Notify::new(&slot, &what));
            let mut code = Vec::new();
            If::new(&mask, vec![&notify]).to_aml_bytes(&mut code);
            Raw(code)
        };
        SLOTS.map(one).collect()
    };
    let (come, go) = (tell(DEVICE_CHECK), tell(EJECT_REQUEST));
    let mut body: Vec<&dyn Aml> = vec![&take_up];
    body.extend(come.iter().map(|code| code as &dyn Aml));
    body.push(&take_down);
    body.extend(go.iter().map(|code| code as &dyn Aml));
    let mut code = Vec::new();
    Method::new(Path::new("PSCN"), 0, true, body).to_aml_bytes(&mut code);
    Raw(code)
}
