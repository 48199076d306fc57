//! Devices that go while they are used, and devices that move themselves (R24, R26, R27, R28).

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use umbra_slots::{AddressSpace, Gpa, GpaRange, IoId, Options};
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

use crate::{Bus, Ports, Removed};

/// Long enough for a thread that is not held up to arrive.
const WHILE: Duration = Duration::from_millis(50);

fn range(start: u64) -> GpaRange {
    GpaRange::new(Gpa(start), 0x1000).unwrap()
}

fn bus() -> Arc<Bus> {
    Arc::new(Bus::new(AddressSpace::new(Options::default())))
}

fn read(bus: &Bus, space: &AddressSpace, gpa: u64) -> u8 {
    let mut data = [0xaa];
    bus.read(&space.load_full(), Gpa(gpa), &mut data);
    data[0]
}

/// A device whose read tells that it began, and ends when told so.
struct Slow {
    began: Mutex<Sender<()>>,
    end: Mutex<Receiver<()>>,
}

impl Slow {
    fn answer(&self, data: &mut [u8]) {
        self.began.lock().send(()).unwrap();
        self.end.lock().recv().unwrap();
        data.fill(1);
    }
}

impl DeviceMmio for Slow {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        self.answer(data);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

impl DevicePio for Slow {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        self.answer(data);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {}
}

fn slow() -> (Arc<Slow>, Receiver<()>, Sender<()>) {
    let ((began, has_begun), (let_end, end)) = (channel(), channel());
    let device = Slow {
        began: Mutex::new(began),
        end: Mutex::new(end),
    };
    (Arc::new(device), has_begun, let_end)
}

#[test]
fn a_removed_device_is_given_up_although_another_one_is_being_used() {
    let (bus, (used, began, end), (other, ..)) = (bus(), slow(), slow());
    bus.insert(range(0x1000), used).unwrap();
    let id = bus.insert(range(0x2000), other.clone()).unwrap();
    let theirs = bus.clone();
    let reader = thread::spawn(move || read(&theirs, theirs.space(), 0x1000));
    began.recv().unwrap();
    drop(bus.remove(id).map(Removed::wait));
    assert_eq!(Arc::strong_count(&other), 1);
    end.send(()).unwrap();
    assert_eq!(reader.join().unwrap(), 1);
}

#[test]
fn r28_a_removed_device_is_given_back_when_its_last_handler_has_returned() {
    let space = AddressSpace::new(Options::default());
    let bus = Arc::new(Bus::new(space.clone()));
    let (device, has_begun, let_end) = slow();
    let id = bus.insert(range(0x1000), device.clone()).unwrap();
    let reader = {
        let (bus, space) = (bus.clone(), space.clone());
        thread::spawn(move || read(&bus, &space, 0x1000))
    };
    has_begun.recv().unwrap();

    // The removal itself waits for nobody.
    let removed = bus.remove(id).unwrap();
    assert_eq!(read(&bus, &space, 0x1000), 0xff, "nobody enters any more");
    let (done, is_done) = channel();
    let waiter = thread::spawn(move || {
        let device = removed.wait();
        done.send(()).unwrap();
        drop(device);
    });
    assert!(is_done.recv_timeout(WHILE).is_err(), "a handler is inside");

    let_end.send(()).unwrap();
    is_done.recv().unwrap();
    waiter.join().unwrap();
    assert_eq!(reader.join().unwrap(), 1);
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn r28_the_same_for_ports() {
    let ports = Arc::new(Ports::new());
    let (device, has_begun, let_end) = slow();
    ports.insert(0x60, 1, device).unwrap();
    let read = |ports: &Ports| {
        let mut data = [0];
        ports.read(0x60, &mut data);
        data[0]
    };
    let reader = {
        let ports = ports.clone();
        thread::spawn(move || read(&ports))
    };
    has_begun.recv().unwrap();
    let removed = ports.remove(0x60).unwrap();
    assert_eq!(read(&ports), 0xff);
    let (done, is_done) = channel();
    thread::spawn(move || {
        drop(removed.wait());
        done.send(()).unwrap();
    });
    assert!(is_done.recv_timeout(WHILE).is_err(), "a handler is inside");
    let_end.send(()).unwrap();
    is_done.recv().unwrap();
    assert_eq!(reader.join().unwrap(), 1);
}

/// Somebody who took the map, or the table, before the device went still finds it there.
#[test]
fn r28_a_caller_with_an_older_map_does_not_reach_a_removed_device() {
    let space = AddressSpace::new(Options::default());
    let bus = Bus::new(space.clone());
    let (device, _has_begun, _let_end) = slow();
    let id = bus.insert(range(0x1000), device).unwrap();
    let old = space.load_full();
    drop(bus.remove(id).map(Removed::wait));
    let mut data = [0];
    bus.read(&old, Gpa(0x1000), &mut data);
    assert_eq!(data, [0xff]);
}

/// A window that a write to its first register moves, as a BAR does; reads as `name`.
struct Bar {
    name: u8,
    bus: Arc<Bus>,
    id: OnceLock<IoId>,
}

impl DeviceMmio for Bar {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        data.fill(self.name);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, data: &[u8]) {
        let to = u64::from_le_bytes(data.try_into().unwrap());
        self.bus.move_to(*self.id.get().unwrap(), Gpa(to)).unwrap();
    }
}

fn bar(bus: &Arc<Bus>, name: u8, at: u64) {
    let bar = Arc::new(Bar {
        name,
        bus: bus.clone(),
        id: OnceLock::new(),
    });
    let id = bus.insert(range(at), bar.clone()).unwrap();
    bar.id.set(id).unwrap();
}

#[test]
fn r26_after_a_move_the_same_thread_finds_the_window_at_its_new_place_only() {
    let space = AddressSpace::new(Options::default());
    let bus = Arc::new(Bus::new(space.clone()));
    bar(&bus, 7, 0x1000);
    let places = [0x8000u64, 0x1000, 0x1800, 0x8000];
    let mut at = 0x1000;
    for to in places {
        let generation = space.generation();
        bus.write(&space.load_full(), Gpa(at), &to.to_le_bytes());
        assert_eq!(space.generation().0, generation.0 + 1, "R25: one bump");
        if to.abs_diff(at) >= 0x1000 {
            assert_eq!(read(&bus, &space, at), 0xff);
        }
        assert_eq!(read(&bus, &space, to), 7);
        at = to;
    }
}

#[test]
fn r24_processors_that_move_windows_from_inside_their_handlers_do_not_wait_for_each_other() {
    let space = AddressSpace::new(Options::default());
    let bus = Arc::new(Bus::new(space.clone()));
    bar(&bus, 1, 0x10_0000);
    bar(&bus, 2, 0x20_0000);
    let first = space.generation();
    let movers: Vec<_> = [0x10_0000u64, 0x20_0000]
        .into_iter()
        .map(|base| {
            let (bus, space) = (bus.clone(), space.clone());
            thread::spawn(move || {
                let mut at = base;
                for round in 0..500u64 {
                    let to = base + ((round % 8) << 12);
                    bus.write(&space.load_full(), Gpa(at), &to.to_le_bytes());
                    at = to;
                    assert_eq!(read(&bus, &space, at) as u64, base >> 20);
                }
            })
        })
        .collect();
    for mover in movers {
        mover.join().unwrap();
    }
    assert_eq!(space.generation().0, first.0 + 1000);
}

/// Old hits end before new hits begin: whoever saw the device at its new place never sees it at
/// the old one again, and it is never nowhere.
#[test]
fn r27_a_window_that_moves_is_seen_at_exactly_one_place() {
    let space = AddressSpace::new(Options::default());
    let bus = bus_on(&space);
    bar(&bus, 9, 0x1000);
    let mover = {
        let (bus, space) = (bus.clone(), space.clone());
        thread::spawn(move || {
            for round in 0..2000u64 {
                let (at, to) = [(0x1000, 0x2000u64), (0x2000, 0x1000)][round as usize % 2];
                bus.write(&space.load_full(), Gpa(at), &to.to_le_bytes());
            }
        })
    };
    while !mover.is_finished() {
        let map = space.load_full();
        let see = |at| {
            let mut data = [0];
            bus.read(&map, Gpa(at), &mut data);
            data[0]
        };
        let seen = [see(0x1000), see(0x2000)];
        assert!(seen == [9, 0xff] || seen == [0xff, 9], "{seen:?}");
    }
    mover.join().unwrap();
}

fn bus_on(space: &Arc<AddressSpace>) -> Arc<Bus> {
    Arc::new(Bus::new(space.clone()))
}

#[test]
fn a_device_that_was_removed_may_be_inserted_again() {
    let bus = bus();
    let (device, has_begun, let_end) = slow();
    let id = bus.insert(range(0x1000), device).unwrap();
    let device = bus.remove(id).map(Removed::wait).unwrap();
    let space = AddressSpace::new(Options::default());
    let other = bus_on(&space);
    other.insert(range(0x2000), device).unwrap();
    let_end.send(()).unwrap();
    assert_eq!(read(&other, &space, 0x2000), 1);
    has_begun.recv().unwrap();
}

#[test]
fn a_device_that_is_hidden_and_shown_keeps_its_id() {
    let space = AddressSpace::new(Options::default());
    let bus = bus_on(&space);
    let device = Arc::new(Bar {
        name: 5,
        bus: bus.clone(),
        id: OnceLock::new(),
    });
    let first = space.generation();
    let id = bus.register(device);
    assert_eq!(space.generation(), first, "no window, no change of the map");
    for at in [0x1000, 0x4000] {
        bus.show(id, range(at)).unwrap();
        assert_eq!(read(&bus, &space, at), 5);
        bus.hide(id).unwrap();
        assert_eq!(read(&bus, &space, at), 0xff);
        assert!(bus.hide(id).is_err(), "it has no window");
    }
    assert_eq!(space.generation().0, first.0 + 4, "R25: one bump each");
    assert!(bus.remove(id).map(Removed::wait).is_some(), "while hidden");
    assert!(bus.remove(id).is_none());
    assert!(bus.show(id, range(0x1000)).is_err());
    assert_eq!(space.generation().0, first.0 + 4);
}
