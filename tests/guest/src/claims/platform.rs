//! The machine around the processor, as QEMU's test kernels expect it: firmware configuration, test
//! device, tables.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ptr;

use super::{Check, claims};
use crate::page::{self, AT, bit};
use crate::{cpu, ensure, needs, same, smp};

const SELECTOR: u16 = 0x510;
const DATA: u16 = 0x511;
const ADDRESS: u16 = 0x514;

const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const RAM_SIZE: u16 = 0x03;
const NB_CPUS: u16 = 0x05;
const FILE_DIR: u16 = 0x19;

const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

fn out16(port: u16, value: u16) {
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value) }
}

fn out32(port: u16, value: u32) {
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value) }
}

fn in32(port: u16) -> u32 {
    let value;
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value) }
    value
}

/// The first bytes of an item.
fn item<const N: usize>(key: u16) -> [u8; N] {
    out16(SELECTOR, key);
    core::array::from_fn(|_| cpu::in8(DATA))
}

fn has_fw_cfg() -> bool {
    item(SIGNATURE) == *b"QEMU"
}

/// Has a transfer done; returns the control field when it is over.
fn transfer(control: u32, length: u32, address: u64) -> u32 {
    let mut request = [control.to_be(), length.to_be(), 0, 0];
    request[2] = ((address >> 32) as u32).to_be();
    request[3] = (address as u32).to_be();
    let at = &raw mut request as u64;
    out32(ADDRESS, ((at >> 32) as u32).to_be());
    out32(ADDRESS + 4, (at as u32).to_be());
    // SAFETY: the device wrote there.
    u32::from_be(unsafe { ptr::read_volatile(at as *const u32) })
}

fn the_firmware_configuration_describes_the_machine() -> Check {
    needs!(has_fw_cfg(), "no fw_cfg");
    same!(item::<4>(ID), [3, 0, 0, 0], "registers and transfers");
    let cpus = u16::from_le_bytes(item(NB_CPUS));
    same!(u32::from(cpus), 1 + smp::start(), "processors");
    let ram = u64::from_le_bytes(item(RAM_SIZE));
    ensure!(
        ram >= 128 << 20 && ram.is_multiple_of(0x1000),
        "RAM is {ram}"
    );
    same!(&item::<6>(NB_CPUS)[2..], &[0u8; 4][..], "beyond the end");
    same!(
        [in32(ADDRESS), in32(ADDRESS + 4)].map(u32::to_le_bytes),
        [*b"QEMU", *b" CFG"],
        "the address register"
    );
    Ok(())
}

fn files_are_listed_by_name() -> Check {
    needs!(has_fw_cfg(), "no fw_cfg");
    let count = u32::from_be_bytes(item(FILE_DIR));
    ensure!((4..100).contains(&count), "{count} files");
    let (mut before, mut tables) = ([0u8; 56], false);
    for _ in 0..count {
        let entry: [u8; 64] = core::array::from_fn(|_| cpu::in8(DATA));
        let name: [u8; 56] = core::array::from_fn(|n| entry[8 + n]);
        ensure!(before < name, "the order of {name:x?}");
        ensure!(entry[4..6] >= [0, 0x20][..], "a key");
        tables |= name.starts_with(b"etc/acpi/tables\0");
        before = name;
    }
    ensure!(tables, "no ACPI tables");
    Ok(())
}

fn transfers_reach_memory_and_nothing_else() -> Check {
    needs!(has_fw_cfg(), "no fw_cfg");
    let mut bytes = [0xaau8; 16];
    let to = &raw mut bytes as u64;
    let control = u32::from(SIGNATURE) << 16 | SELECT;
    same!(transfer(control | READ, 8, to), 0, "a read");
    let seen = unsafe { ptr::read_volatile(&raw const bytes) };
    same!(&seen[..8], &b"QEMU\0\0\0\0"[..], "the item, and zeros");
    same!(seen[8], 0xaa, "and no more");
    same!(transfer(control | SKIP, 2, 0), 0, "a skip");
    same!(cpu::in8(DATA), b'M', "behind it");
    same!(transfer(control | WRITE, 4, to), 1, "a write");
    same!(
        transfer(control | READ, 8, 0xf000_0000),
        1,
        "a read into nothing"
    );
    same!(
        transfer(control | READ, 8, u64::MAX - 3),
        1,
        "a read beyond everything"
    );
    Ok(())
}

fn a_transfer_into_a_page_table_changes_the_page() -> Check {
    needs!(has_fw_cfg(), "no fw_cfg");
    page::prepare();
    let read =
        || crate::trap::attempt(|| unsafe { asm!("mov al, [{0}]", in(reg) AT, out("al") _) });
    for _ in 0..3 {
        page::set(1, page::DATA | bit::TABLE);
        ensure!(read().is_none(), "present");
        // What lies behind the end of an item is zero.
        let control = u32::from(NB_CPUS) << 16 | SELECT;
        same!(transfer(control | SKIP, 2, 0), 0, "to the end");
        same!(
            transfer(READ, 8, page::entry(1) as u64),
            0,
            "zeros into the entry"
        );
        cpu::invlpg(AT);
        same!(read().map(|f| f.error), Some(0), "absent");
    }
    page::prepare();
    Ok(())
}

fn the_test_devices_ports_echo() -> Check {
    out32(0xe0, 0x0403_0201);
    needs!(in32(0xe0) == 0x0403_0201, "no test device");
    same!(
        [0xe0, 0xe1, 0xe2, 0xe3].map(cpu::in8),
        [1, 2, 3, 4],
        "bytes"
    );
    cpu::out8(0xe2, 0x33);
    same!(in32(0xe8), 0x0433_0201, "at the second place");
    out32(0xe8, 0x0807_0605);
    same!(in32(0xe0), 0x0807_0605, "written there");
    out32(0xe4, 0);
    same!(in32(0xe0), 0x0807_0605, "a flush leaves it alone");
    Ok(())
}

/// Finds the RSDP as a kernel does without a loader that tells.
fn rsdp() -> Option<u64> {
    (0xe_0000..0x10_0000u64)
        .step_by(16)
        .find(|at| unsafe { (*at as *const [u8; 8]).read_volatile() } == *b"RSD PTR ")
}

fn sum(at: u64, len: u64) -> u8 {
    (at..at + len).fold(0, |sum, at| {
        sum.wrapping_add(unsafe { (at as *const u8).read_volatile() })
    })
}

fn word(at: u64) -> u64 {
    unsafe { (at as *const u32).read_unaligned() }.into()
}

fn tables_are_found_by_a_scan() -> Check {
    let at = rsdp();
    ensure!(at.is_some(), "no RSDP");
    let at = at.unwrap_or_default();
    same!(sum(at, 20), 0, "the RSDP's sum");
    let rsdt = word(at + 16);
    same!(
        (word(rsdt), sum(rsdt, word(rsdt + 4))),
        (u32::from_le_bytes(*b"RSDT").into(), 0),
        "the RSDT"
    );
    let tables = (word(rsdt + 4) - 36) / 4;
    let find = |name: &[u8; 4]| {
        (0..tables)
            .map(|n| word(rsdt + 36 + 4 * n))
            .find(|at| word(*at) == u64::from(u32::from_le_bytes(*name)))
    };
    let (fadt, madt) = (find(b"FACP"), find(b"APIC"));
    ensure!(fadt.is_some() && madt.is_some(), "no FADT, or no MADT");
    for at in [fadt, madt].into_iter().flatten() {
        same!(sum(at, word(at + 4)), 0, "a table's sum");
    }
    let timer = word(fadt.unwrap_or_default() + 76) as u16;
    let (first, mut last) = (in32(timer), 0);
    for _ in 0..100_000 {
        last = in32(timer);
        if last != first {
            break;
        }
    }
    ensure!(last != first, "the timer at {timer:#x} stands still");
    Ok(())
}

claims! {
    the_firmware_configuration_describes_the_machine: "QEMU docs/specs/fw_cfg",
    files_are_listed_by_name: "QEMU docs/specs/fw_cfg",
    transfers_reach_memory_and_nothing_else: "QEMU docs/specs/fw_cfg",
    a_transfer_into_a_page_table_changes_the_page: "SDM vol. 3, 4.10.4",
    the_test_devices_ports_echo: "QEMU hw/misc/pc-testdev",
    tables_are_found_by_a_scan: "ACPI 6.5, 5.2.5.1",
}
