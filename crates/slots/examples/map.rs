//! A guest's RAM and a device's window: who sees which change, and what was written.
use std::error::Error;

use umbra_slots::{AddressSpace, Flags, Gfn, Gpa, GpaRange, HugePages, IoId, Options};
use umbra_slots::{RamOptions, RamRegion, Target};
use vm_memory::{Bytes, GuestAddress};

const RAM: u64 = 2 << 20;
const LOGGED: Flags = Flags {
    read_only: false,
    dirty_log: true,
};

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let space = AddressSpace::new(Options::default());
    let region = RamRegion::new(RamOptions {
        len: RAM,
        huge: HugePages::No,
        prefault: false,
    })?;
    let window = GpaRange::new(Gpa(0xd000_0000), 0x1000).ok_or("no such range")?;
    // One publication: nobody sees the RAM without the window.
    let added = space.update("the machine is built", |map| {
        let ram = map.add_ram(Gpa(0), region, 0, RAM, LOGGED)?;
        Ok((ram, map.add_io(window, IoId(7))?))
    })?;
    let (ram, device) = added.wait();

    // Whatever takes guest memory of `vm-memory` takes this, and its stores are in the log.
    let memory = space.load().guest_memory();
    memory.write_obj(0x1234_u64, GuestAddress(0x3008))?;
    let written: Vec<Gfn> = space.harvest(ram)?.iter().collect();
    assert_eq!(written, [Gfn(3)]);
    println!("written: {written:?}");

    // A reader decides by one map, and can tell that it is no longer the current one.
    let old = space.load_full();
    let there = Gpa(0xe000_0000);
    let moved = space.update("the window moves", |map| map.move_to(device, there))?;
    moved.wait();
    let new = space.load_full();
    assert!(matches!(old.resolve(window.start()), Target::Io { .. }));
    assert!(matches!(new.resolve(window.start()), Target::Nothing));
    assert_eq!(new.generation().0, old.generation().0 + 1);
    println!("{}: {:?}", old.generation(), old.resolve(window.start()));
    println!("{}: {:?}", new.generation(), new.resolve(there));
    Ok(())
}
