//! Random changes of the guest-physical map.

use std::sync::Arc;

use umbra_fuzz::Source;
use umbra_slots::{
    AddressSpace, Editor, Flags, Gpa, GpaRange, HugePages, IoId, RamOptions, RamRegion, SlotError,
    SlotId,
};

/// Where the guest's tables and some data are.
const FIRST_LEN: u64 = 16 << 20;
/// Where small slots come and go.
pub const SECOND: u64 = FIRST_LEN;
/// Where a slot of 1 GiB comes and goes.
pub const BIG: u64 = 1 << 30;
/// Where windows open and close.
pub const HOLE: u64 = 0xfee0_0000;
/// More slots than this are not made.
const SLOTS: usize = 8;

fn region(len: u64) -> Arc<RamRegion> {
    RamRegion::new(RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    })
    .expect("the host has memory")
}

/// Adds the RAM that the guest begins with.
pub fn first(space: &AddressSpace) {
    let ram = region(FIRST_LEN);
    space
        .update("first", |edit| {
            edit.add_ram(Gpa(0), ram, 0, FIRST_LEN, Flags::default())
        })
        .expect("an empty map has room")
        .wait();
}

fn flags(choice: u8) -> Flags {
    Flags {
        read_only: choice & 1 != 0,
        dirty_log: choice & 2 != 0,
    }
}

/// Places that slots like to be at.
fn start(source: &mut Source<'_>) -> Gpa {
    let step = u64::from(source.u8());
    Gpa(match source.below(5) {
        0 => SECOND + (step << 21),
        1 => SECOND + (step << 12),
        2 => BIG + (step << 21),
        3 => HOLE + (step << 8),
        _ => step << 12,
    })
}

fn len(source: &mut Source<'_>) -> u64 {
    let pages = u64::from(source.u8());
    match source.below(4) {
        0 => 0x20_0000,
        1 => FIRST_LEN - pages * 0x1000,
        _ => pages * 0x1000,
    }
}

/// One operation. What does not fit is refused, which is an answer, too.
fn edit(edit: &mut Editor, source: &mut Source<'_>) -> Result<(), SlotError> {
    let ids: Vec<SlotId> = edit.slots().iter().map(|slot| slot.id()).collect();
    let any = |source: &mut Source<'_>| ids[source.below(ids.len())];
    let full = ids.len() >= SLOTS;
    let choice = source.below(8);
    match choice {
        3.. if ids.is_empty() => Ok(()),
        0 if !full => {
            let (start, len) = (start(source), len(source).max(0x1000));
            let offset = u64::from(source.u8() & 3) << 12;
            let flags = flags(source.u8());
            // A region of its own each: the same memory at two addresses is not what a map is for.
            edit.add_ram(start, region(offset + len), offset, len, flags)
                .map(drop)
        }
        1 if !full => {
            let flags = flags(source.u8());
            edit.add_ram(Gpa(BIG), region(BIG), 0, BIG, flags).map(drop)
        }
        2 if !full => {
            let (start, len) = (start(source), u64::from(source.u16()));
            match GpaRange::new(start, len) {
                Some(range) => edit.add_io(range, IoId(source.u8().into())).map(drop),
                None => Ok(()),
            }
        }
        3 => edit.remove(any(source)),
        4 => edit.move_to(any(source), start(source)),
        5 => edit.resize(any(source), len(source)),
        6 => edit.set_flags(any(source), flags(source.u8())),
        _ => Ok(()),
    }
}

/// One publication of up to three operations; waited for or not.
pub fn change(space: &AddressSpace, source: &mut Source<'_>) {
    let choice = source.u8();
    let updated = space.update("fuzz", |editor| {
        (0..=choice & 3).try_for_each(|_| edit(editor, source))
    });
    match updated {
        Ok(updated) if choice & 4 == 0 => updated.wait(),
        // Not waiting is allowed: whoever still writes there finds the memory mapped.
        Ok(updated) => drop(updated.stale),
        Err(_) => {}
    }
}

/// Takes the dirty bits of some slot.
pub fn harvest(space: &AddressSpace, source: &mut Source<'_>) {
    let ids: Vec<SlotId> = space.load().slots().iter().map(|slot| slot.id()).collect();
    if ids.is_empty() {
        return;
    }
    // A window has no dirty bits: that is refused.
    let _ = space.harvest(ids[source.below(ids.len())]);
}
