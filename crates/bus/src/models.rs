//! Every interleaving of a removal, or a move, with accesses: `cargo xtask loom` (R6, R9, R10, R27,
//! R28).

use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread;
use umbra_slots::{AddressSpace, Gpa, GpaRange, Options};
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

use crate::{Bus, LastHit, Ports};

const OLD: Gpa = Gpa(0x1000);
const NEW: Gpa = Gpa(0x2000);

/// A device that must not be called any more once it is `gone`.
struct Mortal {
    gone: AtomicBool,
    inside: AtomicUsize,
}

impl Mortal {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            gone: AtomicBool::new(false),
            inside: AtomicUsize::new(0),
        })
    }

    fn called(&self) {
        self.inside.fetch_add(1, Ordering::Relaxed);
        // Where others may run.
        thread::yield_now();
        assert!(!self.gone.load(Ordering::Relaxed), "R28");
        self.inside.fetch_sub(1, Ordering::Relaxed);
    }

    /// What a remover does with a device that was given back.
    fn bury(&self) {
        assert_eq!(self.inside.load(Ordering::Relaxed), 0, "R28");
        self.gone.store(true, Ordering::Relaxed);
    }
}

impl DeviceMmio for Mortal {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        self.called();
        data.fill(1);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

impl DevicePio for Mortal {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        self.called();
        data.fill(1);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {}
}

fn window(at: Gpa) -> GpaRange {
    GpaRange::new(at, 0x1000).expect("one page")
}

fn read(bus: &Bus, space: &AddressSpace, at: Gpa) -> u8 {
    let mut data = [0];
    bus.read(&space.load_full(), at, &mut data);
    data[0]
}

fn model(scene: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(3));
    builder.check(scene);
}

#[test]
fn r28_no_handler_runs_when_the_removal_has_been_waited_for() {
    model(|| {
        let space = AddressSpace::new(Options::default());
        let bus = Arc::new(Bus::new(space.clone()));
        let device = Mortal::new();
        let id = bus.insert(window(OLD), device.clone()).unwrap();
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (bus, space) = (bus.clone(), space.clone());
                thread::spawn(move || assert!([1, 0xff].contains(&read(&bus, &space, OLD))))
            })
            .collect();
        drop(bus.remove(id).unwrap().wait());
        device.bury();
        assert_eq!(read(&bus, &space, OLD), 0xff);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

#[test]
fn r28_the_same_for_ports() {
    model(|| {
        let ports = Arc::new(Ports::new());
        let device = Mortal::new();
        ports.insert(0x60, 1, device.clone()).unwrap();
        let reader = {
            let ports = ports.clone();
            thread::spawn(move || ports.read(0x60, &mut [0]))
        };
        drop(ports.remove(0x60).unwrap().wait());
        device.bury();
        ports.read(0x60, &mut [0]);
        reader.join().unwrap();
    });
}

/// R6: where a device is and which map says so are one object. Whoever sees the device at its new
/// place has the new number, and with one map it is at exactly one place (R27).
#[test]
fn r6_a_window_and_the_number_of_its_map_are_seen_together() {
    model(|| {
        let space = AddressSpace::new(Options::default());
        let bus = Arc::new(Bus::new(space.clone()));
        let id = bus.insert(window(OLD), Mortal::new()).unwrap();
        let before = space.generation();
        let mover = {
            let bus = bus.clone();
            thread::spawn(move || bus.move_to(id, NEW).unwrap())
        };
        let map = space.load_full();
        let see = |at| {
            let mut data = [0];
            bus.read(&map, at, &mut data);
            data[0] == 1
        };
        let moved = map.generation() != before;
        assert_eq!((see(OLD), see(NEW)), (!moved, moved));
        let later = space.load_full();
        assert!(later.generation() >= map.generation());
        mover.join().unwrap();
        assert_eq!(read(&bus, &space, NEW), 1);
    });
}

/// R23: of two changes at once none is lost, and each has a number of its own (R5).
#[test]
fn r23_two_writers_do_not_lose_each_others_changes() {
    model(|| {
        let space = AddressSpace::new(Options::default());
        let bus = Arc::new(Bus::new(space.clone()));
        let other = {
            let bus = bus.clone();
            thread::spawn(move || bus.insert(window(OLD), Mortal::new()))
        };
        let mine = bus.insert(window(NEW), Mortal::new());
        assert!(mine.is_ok() && other.join().is_ok_and(|inserted| inserted.is_ok()));
        assert_eq!((read(&bus, &space, OLD), read(&bus, &space, NEW)), (1, 1));
        assert_eq!(space.generation().0, 2);
    });
}

/// A device that appears is known to the bus before its window can be seen.
#[test]
fn a_window_that_is_seen_has_its_device() {
    model(|| {
        let space = AddressSpace::new(Options::default());
        let bus = Arc::new(Bus::new(space.clone()));
        let adder = {
            let bus = bus.clone();
            thread::spawn(move || bus.insert(window(OLD), Mortal::new()).unwrap())
        };
        let map = space.load_full();
        let mut data = [0];
        bus.read(&map, OLD, &mut data);
        assert_eq!(data[0] == 1, !map.slots().is_empty());
        adder.join().unwrap();
    });
}

/// A processor whose record is primed reads while the device goes and another one comes to its place.
#[test]
fn r9_r10_what_a_processor_remembers_of_the_bus_is_stale_with_the_map() {
    model(|| {
        let space = AddressSpace::new(Options::default());
        let bus = Arc::new(Bus::new(space.clone()));
        let device = Mortal::new();
        let id = bus.insert(window(OLD), device.clone()).unwrap();
        let reader = {
            let (bus, space) = (bus.clone(), space.clone());
            let mut last = LastHit::default();
            last.fill(&space, &bus, &space.load_full(), OLD);
            thread::spawn(move || {
                // As a processor does: the record first, then the map.
                let mut data = [0];
                if !last.read(&space, OLD, &mut data) {
                    let map = space.load_full();
                    last.fill(&space, &bus, &map, OLD);
                    bus.read(&map, OLD, &mut data);
                }
                assert!([1, 0xff].contains(&data[0]));
                last
            })
        };
        drop(bus.remove(id).unwrap().wait());
        device.bury();
        let mut last = reader.join().unwrap();
        assert!(!last.read(&space, OLD, &mut [0]), "nobody is there");
    });
}
