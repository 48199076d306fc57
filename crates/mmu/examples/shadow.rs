//! A guest's page tables: walked once, then remembered until the map changes.
use std::collections::BTreeMap;

use umbra_mmu::{Access, AccessKind, Config, Mmu, PagingRegs};
use umbra_slots::{AddressSpace, Flags, Gpa, HugePages, Options, RamOptions, RamRegion};
use umbra_x86::{Gva, cr0, cr4, efer, pte};
use vm_memory::{Bytes, GuestAddress};

const RAM: RamOptions = RamOptions {
    len: 1 << 20,
    huge: HugePages::No,
    prefault: false,
};
const READ: Access = Access {
    kind: AccessKind::Read,
    user: false,
    ac: false,
};

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (space, region) = (AddressSpace::new(Options::default()), RamRegion::new(RAM)?);
    let (len, flags) = (RAM.len, Flags::default());
    let added = space.update("RAM", |map| map.add_ram(Gpa(0), region, 0, len, flags))?;
    added.wait();
    // Four levels of tables; linear page 5 is RAM, linear page 6 is registers of a device.
    let memory = space.load().guest_memory();
    let map = |at, to: u64| memory.write_obj(to | pte::P | pte::RW, GuestAddress(at));
    (1..4).try_for_each(|table| map(table << 12, (table + 1) << 12))?;
    map(0x4028, 0x8000)?;
    map(0x4030, 0xfed0_0000)?;
    let mmu = Mmu::new(space.clone(), Config::default());
    let mut vcpu = mmu.attach(Box::new(|| {}));
    vcpu.set_regs(&PagingRegs {
        cr0: cr0::PE | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        pkru: 0,
    });
    let mut walks_after = |at| {
        let found = vcpu.translate(Gva(at), READ).expect("the guest maps it");
        println!("{at:#x} is {}: {:?}", found.gpa, found.kind);
        BTreeMap::from_iter(mmu.statistics())["slow_faults"]
    };
    assert_eq!((walks_after(0x5123), walks_after(0x5123)), (1, 1));
    assert_eq!((walks_after(0x6010), walks_after(0x6010)), (2, 2));
    space.update("a device comes", |_| Ok(()))?.wait();
    assert_eq!((walks_after(0x6010), walks_after(0x5123)), (3, 3));
    Ok(())
}
