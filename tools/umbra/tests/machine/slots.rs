//! RAM that changes under a guest which runs in it.

use std::io::Write;

use umbra_slots::{FileAccess, Flags, Gpa, RamRegion, SlotError, SlotId};
use umbra_vmm::{Backend, Machine, Outcome};

use crate::support::backend::{any_kvm, backend, on_each_backend};
use crate::support::watched::{MAILBOX, Watched, region, spec};

const COUNT: u64 = MAILBOX;
const STOP: u64 = MAILBOX + 16;
const MIB: u64 = 1 << 20;
/// Memory beside the guest's own.
const EXTRA: u64 = 0x1000_0000;

fn main_slot(machine: &Machine) -> SlotId {
    machine.space().load().slot_at(Gpa(0)).unwrap().id()
}

/// Writes at `at` until it is stopped.
fn hammer<T>(backend: Backend, at: u64, prepare: impl FnOnce(&Machine) -> T) -> (Watched, T) {
    let spec = spec(&format!("hammer 1 {at:#x} {MAILBOX:#x}")).backend(backend);
    let (guest, prepared) = Watched::start(spec, prepare);
    guest.wait(COUNT, |count| count > 0);
    (guest, prepared)
}

fn goes_on(guest: &Watched) {
    let before = guest.word(COUNT);
    guest.wait(COUNT, |count| count > before);
}

fn stop(guest: Watched) {
    guest.set_word(STOP, 1);
    assert_eq!(guest.finish().outcome, Outcome::Exit(0));
}

/// Code, stack, page tables and data of the guest are in the slot: at no moment may they be missing.
fn a_slot_shrinks_and_grows_under_the_guest_that_executes_from_it(name: &str) {
    let (guest, slot) = hammer(backend(name), 0xd000_0000, main_slot);
    for round in 0..600u64 {
        let size = [31, 30, 32, 29, 32][round as usize % 5] * MIB;
        let resized = guest.space.update("size", |e| e.resize(slot, size));
        resized.unwrap().wait();
        if round % 10 == 0 {
            goes_on(&guest);
        }
    }
    goes_on(&guest);
    stop(guest);
}

fn writes_to_read_only_memory_are_dropped_and_reach_it_again_later(name: &str) {
    let region = region(MIB);
    let (guest, slot) = hammer(backend(name), EXTRA, |machine| {
        let flags = Flags::default();
        let added = machine.space().update("extra", |e| {
            e.add_ram(Gpa(EXTRA), region.clone(), 0, MIB, flags)
        });
        added.unwrap().wait()
    });
    for _ in 0..50 {
        for read_only in [true, false] {
            let flags = Flags {
                read_only,
                dirty_log: false,
            };
            let changed = guest.space.update("flags", |e| e.set_flags(slot, flags));
            changed.unwrap().wait();
            guest.set_word(EXTRA, u64::MAX);
            goes_on(&guest);
            goes_on(&guest);
            // The guest writes zeros, 32 bits wide.
            let wanted = if read_only { u64::MAX } else { u64::MAX << 32 };
            assert_eq!(guest.word(EXTRA), wanted, "read-only: {read_only}");
        }
    }
    stop(guest);
}

/// A file that is only read is mapped so: a write that got through would end this process.
fn a_file_is_memory_that_is_written_or_only_read(name: &str) {
    for access in [FileAccess::Read, FileAccess::ReadWrite] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![0xff; MIB as usize]).unwrap();
        let opened = std::fs::File::options()
            .read(true)
            .write(access == FileAccess::ReadWrite)
            .open(file.path());
        let region = RamRegion::of_file(opened.unwrap(), MIB, access).unwrap();
        let (guest, slot) = hammer(backend(name), EXTRA, |machine| {
            let flags = Flags {
                read_only: region.is_read_only(),
                dirty_log: false,
            };
            let added = machine.space().update("file", |e| {
                e.add_ram(Gpa(EXTRA), region.clone(), 0, MIB, flags)
            });
            added.unwrap().wait()
        });
        goes_on(&guest);
        let removed = guest.space.update("file", |e| e.remove(slot));
        removed.unwrap().wait();
        goes_on(&guest);
        stop(guest);
        let bytes = std::fs::read(file.path()).unwrap();
        // The guest writes zeros, 32 bits wide.
        let zeros = match access {
            FileAccess::Read => 0,
            FileAccess::ReadWrite => 4,
        };
        assert!(bytes[..zeros].iter().all(|byte| *byte == 0), "{access:?}");
        assert!(
            bytes[zeros..].iter().all(|byte| *byte == 0xff),
            "{access:?}"
        );
    }
}

on_each_backend! {
    a_file_is_memory_that_is_written_or_only_read,
    a_slot_shrinks_and_grows_under_the_guest_that_executes_from_it,
    writes_to_read_only_memory_are_dropped_and_reach_it_again_later,
}

mod refusals {
    mod kvm {
        use crate::slots::*;

        /// KVM takes no slot of 2^31 pages.
        #[test]
        fn memory_that_kvm_refuses_is_taken_back_and_the_guest_goes_on() {
            if !any_kvm() {
                return;
            }
            const TOO_LARGE: u64 = 1 << 43;
            let (guest, ()) = hammer(Backend::Kvm, 0xd000_0000, |_| ());
            let region = region(TOO_LARGE);
            let before = guest.space.load_full();
            let at = Gpa(1 << 44);
            let added = guest.space.update("too much", |e| {
                e.add_ram(at, region, 0, TOO_LARGE, Flags::default())
            });
            let Err(SlotError::Host { call, .. }) = added else {
                panic!("{added:?}")
            };
            assert_eq!(call, "KVM_SET_USER_MEMORY_REGION");
            let after = guest.space.load_full();
            assert_eq!(after.generation().0, before.generation().0 + 2);
            assert_eq!(after.slots().len(), before.slots().len());
            goes_on(&guest);

            let fits = guest.space.update("as much as fits", |e| {
                e.add_ram(
                    at,
                    crate::support::watched::region(MIB),
                    0,
                    MIB,
                    Flags::default(),
                )
            });
            fits.unwrap().wait();
            goes_on(&guest);
            stop(guest);
        }
    }
}
