//! The MADT: processors and interrupt controllers (ACPI 6.5, 5.2.12).

use acpi_tables::sdt::Sdt;

use super::{OEM, OEM_REVISION, OEM_TABLE, Platform};

const HEADER: u32 = 44;
/// PCAT_COMPAT: there is an 8259 pair too.
const PCAT_COMPAT: u32 = 1;
const ENABLED: u32 = 1;
/// Local APIC ids from here on need the wide structure (5.2.12.12).
const FIRST_WIDE: u32 = 255;

/// Structure types and lengths (table 5.21).
const LOCAL_APIC: [u8; 2] = [0, 8];
const IOAPIC: [u8; 2] = [1, 12];
const SOURCE_OVERRIDE: [u8; 2] = [2, 10];
const LOCAL_NMI: [u8; 2] = [4, 6];
const LOCAL_X2APIC: [u8; 2] = [9, 16];
const LOCAL_X2APIC_NMI: [u8; 2] = [10, 12];

/// Makes the table.
pub fn table(platform: &Platform) -> Sdt {
    let mut table = Sdt::new(*b"APIC", HEADER, 5, OEM, OEM_TABLE, OEM_REVISION);
    table.write_u32(36, platform.local_apic);
    table.write_u32(40, PCAT_COMPAT);
    let mut body = Vec::new();
    for id in 0..platform.cpus {
        processor(id, &mut body);
    }
    ioapic(platform.ioapic, &mut body);
    timer_override(&mut body);
    nmi_pins(platform.cpus, &mut body);
    table.append_slice(&body);
    table
}

/// Processor `id`, whose ACPI id is the same number.
fn processor(id: u32, body: &mut Vec<u8>) {
    if id < FIRST_WIDE {
        body.extend(LOCAL_APIC);
        body.extend([id as u8, id as u8]);
        body.extend(ENABLED.to_le_bytes());
    } else {
        body.extend(LOCAL_X2APIC);
        body.extend([0; 2]);
        for field in [id, ENABLED, id] {
            body.extend(field.to_le_bytes());
        }
    }
}

fn ioapic(address: u32, body: &mut Vec<u8>) {
    body.extend(IOAPIC);
    body.extend([0; 2]);
    body.extend(address.to_le_bytes());
    body.extend(0u32.to_le_bytes());
}

/// ISA interrupt 0 comes in at pin 2; polarity and trigger are those of the bus.
fn timer_override(body: &mut Vec<u8>) {
    body.extend(SOURCE_OVERRIDE);
    body.extend([0, 0]);
    body.extend(2u32.to_le_bytes());
    body.extend([0; 2]);
}

/// LINT1 of every processor is its NMI.
fn nmi_pins(cpus: u32, body: &mut Vec<u8>) {
    body.extend(LOCAL_NMI);
    body.extend([0xff, 0, 0, 1]);
    if cpus > FIRST_WIDE {
        body.extend(LOCAL_X2APIC_NMI);
        body.extend([0; 2]);
        body.extend(u32::MAX.to_le_bytes());
        body.extend([1, 0, 0, 0]);
    }
}
