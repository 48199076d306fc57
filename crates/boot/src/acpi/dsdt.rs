//! The DSDT: what cannot be found by looking (ACPI 6.5, 5.2.11.1).

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, ONE, Package, Path, ResourceTemplate,
    ZERO,
};
use acpi_tables::sdt::Sdt;

use super::{KeyboardController, OEM, OEM_REVISION, OEM_TABLE, Platform, VirtioMmio, events, pci};

/// What the guest writes into the sleep control register to power off (SLP_TYPx).
pub const SLEEP_TYPE_OFF: u8 = 5;

/// Makes the table.
pub fn table(platform: &Platform) -> Sdt {
    const HEADER: u32 = 36;
    let mut code = Vec::new();
    let soft_off = Package::new(vec![&SLEEP_TYPE_OFF, &ZERO, &ZERO, &ZERO]);
    Name::new(Path::new("_S5_"), &soft_off).to_aml_bytes(&mut code);
    if let Some((port, interrupt)) = platform.serial {
        serial(port, interrupt, &mut code);
    }
    if let Some(port) = platform.cmos {
        clock(port, &mut code);
    }
    if let Some(controller) = &platform.keyboard {
        keyboard(controller, &mut code);
    }
    if let Some(port) = platform.panic_port {
        panic(port, &mut code);
    }
    for (number, device) in (0..).zip(&platform.virtio_mmio) {
        virtio(number, device, &mut code);
    }
    if let Some(root) = &platform.pci {
        pci::add(root, &mut code);
    }
    events::add(platform, &mut code);
    let mut table = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&code);
    table
}

/// A 16550 (PNP0501) with an edge-triggered, active-high interrupt.
fn serial(port: u16, interrupt: u32, code: &mut Vec<u8>) {
    let ports = IO::new(port, port, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, interrupt);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .to_aml_bytes(code);
}

/// A CMOS clock (PNP0B00) without an interrupt: it tells the time and has no alarm.
fn clock(port: u16, code: &mut Vec<u8>) {
    let ports = IO::new(port, port, 1, 2);
    let resources = ResourceTemplate::new(vec![&ports]);
    Device::new(
        Path::new("_SB_.RTC0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .to_aml_bytes(code);
}

/// A keyboard (PNP0303) with its controller's ports and interrupt.
fn keyboard(controller: &KeyboardController, code: &mut Vec<u8>) {
    let KeyboardController {
        data,
        command,
        interrupt,
    } = *controller;
    let (data, command) = (IO::new(data, data, 1, 1), IO::new(command, command, 1, 1));
    let interrupt = Interrupt::new(true, true, false, false, interrupt);
    let resources = ResourceTemplate::new(vec![&data, &command, &interrupt]);
    Device::new(
        Path::new("_SB_.KBD0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0303")),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .to_aml_bytes(code);
}

/// The port by which a kernel says that it has crashed: `QEMU0001` is what Linux and others know it by.
fn panic(port: u16, code: &mut Vec<u8>) {
    let port = IO::new(port, port, 1, 1);
    let resources = ResourceTemplate::new(vec![&port]);
    Device::new(
        Path::new("_SB_.PEVT"),
        vec![
            &Name::new(Path::new("_HID"), &"QEMU0001"),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .to_aml_bytes(code);
}

/// A virtio device behind memory: `LNRO0005` is what Linux and others know it by. The device sees
/// memory as processors do (_CCA).
fn virtio(number: u32, device: &VirtioMmio, code: &mut Vec<u8>) {
    let memory = Memory32Fixed::new(true, device.address, device.len);
    let interrupt = Interrupt::new(true, false, false, true, device.interrupt);
    let resources = ResourceTemplate::new(vec![&memory, &interrupt]);
    // A name has four characters.
    let name = format!("_SB_.V{:03X}", number & 0xfff);
    Device::new(
        Path::new(&name),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &number),
            &Name::new(Path::new("_CCA"), &ONE),
            &Name::new(Path::new("_CRS"), &resources),
        ],
    )
    .to_aml_bytes(code);
}
