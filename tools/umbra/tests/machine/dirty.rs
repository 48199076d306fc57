//! Copying a guest's memory while it writes, by its dirty log, as a migration does (rule R39).
//!
//! The oracle is the memory itself: pages are copied only when a harvest reports them, and once the
//! guest stands still and the log is empty the copy must be the memory, byte by byte.

use std::sync::Arc;

use umbra_slots::{Flags, Gpa, GpaRange, RamRegion, SlotId};
use umbra_vmm::{Backend, IrqchipMode, KvmSpec, Outcome, Spec};

use crate::support::backend::any_kvm;
use crate::support::watched::{MAILBOX, Watched, region, spec};

const REQUEST: u64 = MAILBOX;
const COMPLETED: u64 = MAILBOX + 8;
const STOP: u64 = MAILBOX + 16;
const SEED: u64 = MAILBOX + 24;
/// The memory that is copied: a slot of its own.
const START: u64 = 0x1000_0000;
const PAGES: u64 = 700;
const PAGE: u64 = 0x1000;

const LOGGED: Flags = Flags {
    read_only: false,
    dirty_log: true,
};

struct Copier {
    guest: Watched,
    slot: SlotId,
    region: Arc<RamRegion>,
    copy: Vec<u8>,
    reported: u64,
}

impl Copier {
    fn start(spec: Spec) -> Self {
        let region = region(2 * PAGES * PAGE);
        let (guest, slot) = Watched::start(spec, |machine| {
            let added = machine.space().update("memory to copy", |e| {
                e.add_ram(Gpa(START), region.clone(), 0, PAGES * PAGE, LOGGED)
            });
            added.unwrap().wait()
        });
        Self {
            guest,
            slot,
            region,
            copy: vec![0; (PAGES * PAGE) as usize],
            reported: 0,
        }
    }

    fn page(&self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE as usize];
        let at = Gpa(START + number * PAGE);
        self.guest.space.load().read(at, &mut bytes).unwrap();
        bytes
    }

    /// Copies what a harvest of part of the memory reports; returns how many pages.
    fn harvest(&mut self, first: u64, pages: u64) -> u64 {
        let part = GpaRange::new(Gpa(START + first * PAGE), pages * PAGE).unwrap();
        let dirty = self.guest.space.harvest_range(self.slot, part).unwrap();
        for gfn in dirty.iter() {
            let number = gfn.0 - START / PAGE;
            assert!((first..first + pages).contains(&number), "{number}");
            let bytes = self.page(number);
            self.copy[(number * PAGE) as usize..][..PAGE as usize].copy_from_slice(&bytes);
        }
        self.reported += dirty.count();
        dirty.count()
    }

    /// Lets the guest write about a third of the pages.
    fn request(&self, number: u64) {
        self.guest.set_word(SEED, number.wrapping_mul(0x9e37_79b9));
        self.guest.set_word(REQUEST, number);
    }

    fn completed(&self, number: u64) -> bool {
        self.guest.word(COMPLETED) == number
    }

    fn assert_copied(&mut self) {
        self.harvest(0, PAGES);
        assert_eq!(self.harvest(0, PAGES), 0, "nobody writes any more");
        for number in 0..PAGES {
            let copied = &self.copy[(number * PAGE) as usize..][..PAGE as usize];
            assert!(copied == self.page(number), "page {number} was lost");
        }
    }

    fn set_flags(&self, flags: Flags) {
        let slot = self.slot;
        let changed = self
            .guest
            .space
            .update("flags", |e| e.set_flags(slot, flags));
        changed.unwrap().wait();
    }

    fn move_to(&self, start: u64) {
        let slot = self.slot;
        let changed = self
            .guest
            .space
            .update("place", |e| e.move_to(slot, Gpa(start)));
        changed.unwrap().wait();
    }

    fn resize(&self, pages: u64) {
        let slot = self.slot;
        let changed = self
            .guest
            .space
            .update("size", |e| e.resize(slot, pages * PAGE));
        changed.unwrap().wait();
    }
}

fn nothing_that_is_written_is_missed(spec: Spec) {
    let mut copier = Copier::start(spec);

    // Round after round, harvested in between.
    for number in 1..=20 {
        copier.request(number);
        while !copier.completed(number) {
            std::thread::yield_now();
        }
        let reported = copier.harvest(0, PAGES);
        assert!(
            (PAGES / 4..PAGES / 2).contains(&reported),
            "{reported} pages of about {}",
            PAGES / 3
        );
    }
    copier.assert_copied();

    // Harvested while the guest writes, in parts of odd sizes.
    let mut first = 0;
    for number in 21..=60 {
        copier.request(number);
        while !copier.completed(number) {
            let pages = (37 + number % 90).min(PAGES - first);
            copier.harvest(first, pages);
            first = (first + pages) % PAGES;
            // A harvest may hold the processors: they need some time of their own.
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }
    copier.assert_copied();

    // The slot grows, is cut and moves away and back while it is logged: what is marked stays marked.
    for number in 61..=80 {
        copier.request(number);
        copier.resize(PAGES + 8 * (number % 5));
        while !copier.completed(number) {
            std::thread::yield_now();
        }
        copier.resize(PAGES - 1 - number % 50);
        copier.resize(PAGES);
        if number % 3 == 0 {
            copier.move_to(START + 0x1000_0000);
            copier.move_to(START);
        }
    }
    copier.assert_copied();

    // A log that is turned on begins clean; what is written before is not reported, and all after.
    copier.set_flags(Flags::default());
    copier.request(81);
    while !copier.completed(81) {
        std::thread::yield_now();
    }
    copier.set_flags(LOGGED);
    assert_eq!(copier.harvest(0, PAGES), 0);
    for number in 0..PAGES {
        let bytes = copier.page(number);
        copier.copy[(number * PAGE) as usize..][..PAGE as usize].copy_from_slice(&bytes);
    }
    copier.request(82);
    // Devices and the host mark, too.
    let last = Gpa(START + (PAGES - 1) * PAGE + 0x800);
    copier.guest.space.load().write(last, &[7; 8]).unwrap();
    while !copier.completed(82) {
        std::thread::yield_now();
    }
    copier.assert_copied();

    println!("{} pages were reported", copier.reported);
    copier.guest.set_word(STOP, 1);
    assert!(copier.region.len() > PAGES * PAGE);
    assert_eq!(copier.guest.finish().outcome, Outcome::Exit(0));
}

fn command() -> Spec {
    spec(&format!("dirty {START:#x} {PAGES} {MAILBOX:#x}"))
}

mod soft {
    use super::*;

    #[test]
    fn nothing_that_is_written_is_missed() {
        super::nothing_that_is_written_is_missed(command().backend(Backend::Soft));
    }
}

mod kvm {
    use super::*;

    fn on_kvm(dirty_ring: Option<u32>) {
        if any_kvm() {
            super::nothing_that_is_written_is_missed(Spec {
                backend: Backend::Kvm,
                kvm: KvmSpec {
                    dirty_ring,
                    irqchip: IrqchipMode::Auto,
                    ..KvmSpec::default()
                },
                ..command()
            });
        }
    }

    #[test]
    fn nothing_that_is_written_is_missed_with_bitmaps() {
        on_kvm(None);
    }

    #[test]
    fn nothing_that_is_written_is_missed_with_large_rings() {
        on_kvm(Some(4096));
    }

    /// Smaller than what a round writes: processors leave the guest because theirs is full.
    #[test]
    fn nothing_that_is_written_is_missed_with_small_rings() {
        on_kvm(Some(256));
    }
}
