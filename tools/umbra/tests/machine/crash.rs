//! A guest that crashes says where.

use std::time::Duration;

use crate::support::backend::on_each_backend;
use crate::support::{Input, Umbra, image};

/// Turns on 32-bit paging with the first 4 MiB mapped to themselves, takes the interrupt
/// descriptor table away and reads where nothing is mapped.
const PAGE_FAULT: [u8; 53] = [
    0xbb, 0x78, 0x56, 0x34, 0x12, // mov ebx, 0x12345678
    0xb8, 0x00, 0x00, 0x20, 0x00, // mov eax, 0x200000
    0xc7, 0x00, 0x83, 0x00, 0x00, 0x00, // mov dword [eax], present + writable + 4 MiB
    0x0f, 0x22, 0xd8, // mov cr3, eax
    0x0f, 0x20, 0xe0, // mov eax, cr4
    0x83, 0xc8, 0x10, // or eax, PSE
    0x0f, 0x22, 0xe0, // mov cr4, eax
    0x0f, 0x20, 0xc0, // mov eax, cr0
    0x0d, 0x00, 0x00, 0x00, 0x80, // or eax, PG
    0x0f, 0x22, 0xc0, // mov cr0, eax
    0x0f, 0x01, 0x1d, 0x00, 0x10, 0x20, 0x00, // lidt [0x201000]: zeros
    0x90, // nop
    0x3e, 0xa1, 0x00, 0xb0, 0xad, 0xde, // mov eax, ds:[0xdeadb000]
];
/// Where the last instruction is.
const FAULT: u32 = image::ENTRY + PAGE_FAULT.len() as u32 - 6;

fn a_triple_fault_prints_registers_and_the_last_page_walk(backend: &str) {
    let directory = tempfile::tempdir().unwrap();
    let kernel = image::multiboot(directory.path(), &PAGE_FAULT);
    let arguments = [
        "--kernel",
        kernel.to_str().unwrap(),
        "--memory",
        "16M",
        "--backend",
        backend,
    ];

    let ended = Umbra::run(&arguments, Input::Empty, Duration::from_secs(60));

    assert_eq!(ended.status, Some(4), "{ended}");
    let told = [
        "umbra: the guest crashed: ",
        &format!("rip {FAULT:016x}"),
        "rbx 0000000012345678",
        "cr2 00000000deadb000  cr3 0000000000200000",
        "last page walk:\n",
        "deadb000",
    ];
    for fact in told {
        assert!(ended.stderr.contains(fact), "no {fact:?}: {ended}");
    }
    assert!(ended.left_behind.is_empty(), "{:?}", ended.left_behind);
}

fn a_triple_fault_without_paging_prints_registers(backend: &str) {
    let directory = tempfile::tempdir().unwrap();
    // ud2, without an interrupt descriptor table.
    let kernel = image::multiboot(directory.path(), &[0x0f, 0x0b]);
    let arguments = [
        "--kernel",
        kernel.to_str().unwrap(),
        "--memory",
        "16M",
        "--backend",
        backend,
    ];

    let ended = Umbra::run(&arguments, Input::Empty, Duration::from_secs(60));

    assert_eq!(ended.status, Some(4), "{ended}");
    let rip = format!("rip {:016x}", image::ENTRY);
    assert!(ended.stderr.contains(&rip), "{ended}");
}

// A KVM without hardware help knows no 32-bit paging.
mod paging {
    use super::a_triple_fault_prints_registers_and_the_last_page_walk;
    use crate::support::backend::on_each_stock_backend;

    on_each_stock_backend! {
        a_triple_fault_prints_registers_and_the_last_page_walk,
    }
}

on_each_backend! {
    a_triple_fault_without_paging_prints_registers,
}
