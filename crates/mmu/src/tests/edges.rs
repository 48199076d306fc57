//! Edges that no other test comes to: writes to ROM, tables outside RAM that lead back into it.

use umbra_slots::{AccessError, Flags, Gpa};
use umbra_x86::{Exception, Gva, PageFaultError, cr0, vector};

use super::guest::*;
use crate::{Kind, PageFault, PagingRegs};

const ROM: u64 = 0x1000_0000;

#[test]
fn nobody_writes_rom_not_even_where_a_table_could_be() {
    let mut m = Machine::new(checked());
    let flags = Flags {
        read_only: true,
        dirty_log: false,
    };
    m.space
        .update("rom", |e| {
            e.add_ram(Gpa(ROM), ram(0x1000), 0, 0x1000, flags)
        })
        .unwrap()
        .wait_from(&mut m.vcpu);
    let refused = m.mmu.write_for_device(Gpa(ROM + 8), &[1]);
    assert_eq!(refused, Err(AccessError::ReadOnly(Gpa(ROM + 8))));
    let written = m.vcpu.tracked(Gpa(ROM), 8, |_| panic!("it was written"));
    assert!(written.is_none());
}

#[test]
fn r21_a_directory_outside_memory_may_lead_to_a_table_and_a_page_in_memory() {
    let mut m = Machine::new(checked());
    // A directory entry of all ones leads to the last table below 4 GiB.
    const LAST: u64 = 0xffff_f000;
    m.space
        .update("last", |e| {
            e.add_ram(Gpa(LAST), ram(0x1000), 0, 0x1000, Flags::default())
        })
        .unwrap()
        .wait_from(&mut m.vcpu);
    m.store(LAST, 0x60_0000 | PWU);
    m.regs = PagingRegs {
        cr0: cr0::PE | cr0::PG,
        cr3: HOLE.0,
        ..PagingRegs::default()
    };
    m.load_regs();
    let Kind::Ram(page) = m.kind(0x123, READ) else {
        panic!("RAM");
    };
    assert_eq!(page.page, m.host(0x60_0000));
    assert!(m.statistic("uncached") > 0);
    m.audit();
}

#[test]
fn a_page_fault_is_an_exception_with_its_address() {
    let fault = PageFault {
        gva: Gva(0x1234),
        error: PageFaultError(PageFaultError::WRITE),
    };
    let exception = Exception::from(fault);
    let expected = Exception::page_fault(0x1234, PageFaultError(PageFaultError::WRITE));
    assert_eq!((exception, exception.vector), (expected, vector::PF));
}
