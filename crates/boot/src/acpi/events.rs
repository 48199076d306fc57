//! What the guest is told while it runs: a generic event device (ACPI 6.5, 5.6.9), and the power button (4.8.2.2.1.2).
//!
//! ```text
//!   monitor ── sets a register, pulses the interrupt ──> GED0._EVT ──> each method that looks at registers
//!                                                                        └─ Notify(device, what)
//! ```
//! All events have one interrupt: each of the methods looks whether there is something for it.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If,
    Interrupt, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path, ResourceTemplate,
    ZERO,
};

use super::{Platform, pci};

/// Bytes of the button's register.
const BUTTON_LEN: u8 = 1;
/// What the button is notified of when it was pressed (table 5.164).
const PRESSED: u8 = 0x80;
const BUTTON_SCAN: &str = "\\_SB_.PWRB.SCAN";

/// Adds the button, and the device that has registers looked at.
pub fn add(platform: &Platform, code: &mut Vec<u8>) {
    let mut scans = Vec::new();
    if let Some(port) = platform.power_button {
        button(port, code);
        scans.push(BUTTON_SCAN);
    }
    if platform.pci.is_some() {
        scans.push(pci::SCAN);
    }
    if scans.is_empty() {
        return;
    }
    // Consumer, edge-triggered, active-high, not shared.
    let interrupt = Interrupt::new(true, true, false, false, platform.event_interrupt);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let scans: Vec<_> = scans
        .into_iter()
        .map(|scan| MethodCall::new(Path::new(scan), vec![]))
        .collect();
    let scans = scans.iter().map(|scan| scan as &dyn Aml).collect();
    Device::new(
        Path::new("_SB_.GED0"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &resources),
            &Method::new(Path::new("_EVT"), 1, true, scans),
        ],
    )
    .to_aml_bytes(code);
}

/// A power button (PNP0C0C), and the method that looks whether it was pressed.
fn button(port: u16, code: &mut Vec<u8>) {
    let region = OpRegion::new(
        Path::new("BREG"),
        OpRegionSpace::SystemIO,
        &port,
        &BUTTON_LEN,
    );
    let register = Field::new(
        Path::new("BREG"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"PRSD", 8)],
    );
    let pressed = Path::new("PRSD");
    let this = Path::new("\\_SB_.PWRB");
    let notify = Notify::new(&this, &PRESSED);
    let tell = If::new(&pressed, vec![&notify]);
    Device::new(
        Path::new("_SB_.PWRB"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C")),
            &Name::new(Path::new("_UID"), &ZERO),
            &region,
            &register,
            &Method::new(Path::new("SCAN"), 0, true, vec![&tell]),
        ],
    )
    .to_aml_bytes(code);
}
