//! The FADT of a hardware-reduced machine (ACPI 6.5, 5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM, OEM_REVISION, OEM_TABLE, Platform};

/// IA-PC boot architecture flags (5.2.9.3): no VGA, no PCIe ASPM.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 4;
/// There is a keyboard controller.
const I8042: u16 = 1 << 1;
/// There is no CMOS clock.
const NO_CMOS: u16 = 1 << 5;

/// Where the two pointers to the DSDT are (table 5.9).
pub const DSDT: usize = 40;
pub const X_DSDT: usize = 140;

fn port(address: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        address.into(),
    )
}

/// Makes the table; the DSDT is at `dsdt`.
pub fn table(platform: &Platform, dsdt: u64) -> FADT {
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::Wbinvd)
        // A power button is a device of the DSDT; there is no sleep button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    let (reset, value) = platform.reset;
    let no_cmos = if platform.cmos.is_none() { NO_CMOS } else { 0 };
    let keyboard = if platform.keyboard.is_some() {
        I8042
    } else {
        0
    };
    table.iapc_boot_arch = (BOOT_ARCH | no_cmos | keyboard).into();
    table.reset_reg = port(reset);
    table.reset_value = value;
    // Ignored on a hardware-reduced machine; there for those who look for a timer nevertheless.
    table.pm_tmr_blk = u32::from(platform.timer).into();
    table.pm_tmr_len = 4;
    table.dsdt = (dsdt as u32).into();
    table.sleep_control_reg = port(platform.sleep_control);
    table.sleep_status_reg = port(platform.sleep_control + 1);
    table.finalize()
}
