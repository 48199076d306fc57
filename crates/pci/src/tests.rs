//! The root bus as a guest sees it: by ECAM and ports, with a function that has BARs.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;
use proptest::prelude::*;
use umbra_bus::{Bus, MmioDevice};
use umbra_slots::{AddressSpace, Gpa, GpaRange, IoId, Options};
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress};
use vm_device::{DeviceMmio, DevicePio};

use crate::*;

const ECAM: u64 = 0xe000_0000;
const LOW: u64 = 0xc000_0000;
const HIGH: u64 = 0x80_0000_0000;
const DEVICE: Address = Address::new(3, 0).unwrap();

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).unwrap()
}

/// What is behind a BAR: reads as its name; a write of it calls.
struct Named(u8, Mutex<Option<Sender<u8>>>);

impl DeviceMmio for Named {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        data.fill(self.0);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, data: &[u8]) {
        if let Some(sender) = &*self.1.lock() {
            sender.send(data[0]).unwrap();
        }
    }
}

/// A function with a 64-bit BAR 0 of 64 KiB and a 32-bit BAR 2 of 4 KiB.
struct Card {
    config: Mutex<ConfigSpace>,
    attached: Mutex<Vec<(u8, IoId)>>,
}

impl Card {
    fn new() -> Arc<Self> {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1234,
            revision: 7,
            class: 0xff_00_00,
            subsystem: (0, 0),
        });
        config.add_bar(0, 0x1_0000, Width::Bits64).unwrap();
        config.add_bar(2, 0x1000, Width::Bits32).unwrap();
        Arc::new(Self {
            config: Mutex::new(config),
            attached: Mutex::default(),
        })
    }
}

impl Function for Card {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        self.config.lock().read(register, data);
    }

    fn write_config(&self, register: u16, data: &[u8]) {
        self.config.lock().write(register, data);
    }

    fn bars(self: Arc<Self>) -> Vec<(u8, MmioDevice)> {
        let named = |name| -> MmioDevice { Arc::new(Named(name, Mutex::new(None))) };
        vec![(0, named(0x10)), (2, named(0x12))]
    }

    fn decoded(&self, bar: u8) -> Option<GpaRange> {
        self.config.lock().decoded(bar)
    }

    fn attach(&self, bar: u8, id: IoId) {
        self.attached.lock().push((bar, id));
    }
}

/// A machine with ECAM, a host bridge and a card.
struct Bench {
    space: Arc<AddressSpace>,
    bus: Arc<Bus>,
    root: Arc<RootBus>,
    card: Arc<Card>,
}

impl Bench {
    fn new() -> Self {
        let space = AddressSpace::new(Options::default());
        let bus = Arc::new(Bus::new(space.clone()));
        let windows = Windows {
            low: range(LOW, 0x1000_0000),
            high: Some(range(HIGH, 0x1_0000_0000)),
        };
        let root = Arc::new(RootBus::new(&bus, windows));
        let ecam = Arc::new(Ecam::new(root.clone()));
        bus.insert(range(ECAM, Ecam::LEN), ecam).unwrap();
        let bridge = Address::new(0, 0).unwrap();
        root.add(bridge, Arc::new(HostBridge::new())).unwrap();
        let card = Card::new();
        root.add(DEVICE, card.clone()).unwrap();
        Self {
            space,
            bus,
            root,
            card,
        }
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.bus.read(&self.space.load_full(), Gpa(at), &mut data);
        data
    }

    fn write(&self, at: u64, data: &[u8]) {
        self.bus.write(&self.space.load_full(), Gpa(at), data);
    }

    /// Writes a register of the card; returns by how much the generation went up.
    fn set(&self, register: u64, value: u32) -> u64 {
        let before = self.space.generation().0;
        self.write(ECAM + 0x1_8000 + register, &value.to_le_bytes());
        self.space.generation().0 - before
    }

    fn get(&self, register: u64) -> u32 {
        u32::from_le_bytes(self.read(ECAM + 0x1_8000 + register))
    }
}

#[test]
fn a_guest_finds_the_functions_that_there_are() {
    let bench = Bench::new();
    let mut found = Vec::new();
    for function in 0..256u64 {
        let id = u32::from_le_bytes(bench.read(ECAM + (function << 12)));
        if id != u32::MAX {
            found.push((function, id));
        }
    }
    assert_eq!(found, [(0, 0x0008_1b36), (3 << 3, 0x1234_1af4)]);
    assert_eq!(bench.read(ECAM + 8), [0, 0, 0, 6], "a host bridge");
}

#[test]
fn ecam_takes_aligned_accesses() {
    let bench = Bench::new();
    let at = ECAM + 0x1_8000;
    assert_eq!(bench.read(at), [0xf4]);
    assert_eq!(bench.read(at + 2), [0x34, 0x12]);
    assert_eq!(bench.read(at), [0xf4, 0x1a, 0x34, 0x12, 0, 0, 0, 0]);
    assert_eq!(bench.read(at + 1), [0xff, 0xff]);
    assert_eq!(bench.read(at + 4), [0xff; 8]);
    assert_eq!(bench.read(at + 0x100), [0xff; 4], "no extended registers");
    bench.write(at + 2, &[0xff; 4]);
    bench.write(at + 0x3b, &[0xff; 2]);
    assert_eq!(bench.get(0x3c), 0);
    bench.write(at + 0x38, &[0xff; 8]);
    assert_eq!(bench.get(0x3c), 0xff);
}

#[test]
fn a_bar_is_a_window_while_memory_space_is_on() {
    let bench = Bench::new();
    assert_eq!(bench.set(0x18, LOW as u32), 0, "memory space is off");
    assert_eq!(bench.read(LOW), [0xff]);
    assert_eq!(bench.set(0x04, 2), 1, "R25: one bump");
    assert_eq!(bench.read(LOW + 0xfff), [0x12]);
    assert_eq!(bench.set(0x04, 2), 0, "nothing has changed");
    assert_eq!(
        bench.set(0x18, LOW as u32 + 0x1000),
        1,
        "a move is one change"
    );
    assert_eq!(
        (bench.read(LOW), bench.read(LOW + 0x1000)),
        ([0xff], [0x12])
    );
    assert_eq!(bench.set(0x04, 0), 1);
    assert_eq!(bench.read(LOW + 0x1000), [0xff]);
}

#[test]
fn a_bar_of_64_bits_moves_above_4_gib() {
    let bench = Bench::new();
    bench.set(0x10, LOW as u32);
    bench.set(0x04, 2);
    assert_eq!(bench.read(LOW), [0x10]);
    assert_eq!(bench.set(0x10, 0), 1, "not in a window: hidden");
    assert_eq!(bench.set(0x14, (HIGH >> 32) as u32), 1);
    assert_eq!(bench.read(HIGH + 0xffff), [0x10]);
}

#[test]
fn a_bar_is_shown_only_in_the_windows_and_where_nothing_is() {
    let bench = Bench::new();
    bench.set(0x04, 2);
    for outside in [0, 0x1000, ECAM as u32, LOW as u32 - 0x1000, 0xd000_0000] {
        assert_eq!(bench.set(0x18, outside), 0, "{outside:#x}");
    }
    bench.set(0x10, LOW as u32);
    assert_eq!(bench.set(0x18, LOW as u32 + 0x2000), 0, "on the other BAR");
    assert_eq!(bench.read(LOW + 0x2000), [0x10]);
    bench.set(0x10, LOW as u32 + 0x10_0000);
    assert_eq!(bench.read(LOW + 0x2000), [0x12], "tried again");
    // The same from where it was shown: it is no longer there, and not at its new place.
    bench.set(0x18, LOW as u32 + 0x10_0000);
    assert_eq!(bench.read(LOW + 0x2000), [0xff]);
    assert_eq!(bench.read(LOW + 0x10_0000), [0x10]);
}

#[test]
fn a_bar_that_comes_and_goes_keeps_its_id() {
    let bench = Bench::new();
    bench.set(0x18, LOW as u32);
    for _ in 0..100 {
        bench.set(0x04, 2);
        bench.set(0x04, 0);
    }
    let ids: Vec<u32> = bench.card.attached.lock().iter().map(|a| a.1.0).collect();
    let next = bench.bus.register(Arc::new(Named(0, Mutex::new(None))));
    assert_eq!(next.0, ids[1] + 1);
}

#[test]
fn a_removed_function_is_gone_with_its_windows() {
    let bench = Bench::new();
    bench.set(0x18, LOW as u32);
    bench.set(0x04, 2);
    let before = bench.space.generation().0;
    let unplugged = bench.root.remove(DEVICE).unwrap();
    assert_eq!(bench.space.generation().0, before + 1);
    assert_eq!((bench.get(0), bench.read(LOW)), (u32::MAX, [0xff]));
    assert_eq!(bench.set(0x04, 2), 0);
    drop(unplugged.wait());
    assert_eq!(Arc::strong_count(&bench.card), 1, "nobody keeps it");
    assert!(bench.root.remove(DEVICE).is_none() && !bench.root.has(DEVICE));
    bench.root.add(DEVICE, bench.card.clone()).unwrap();
    assert_eq!(bench.get(0), 0x1234_1af4);
    let refused = bench.root.add(DEVICE, bench.card.clone());
    assert_eq!(refused, Err(PciError::Taken { address: DEVICE }));
}

#[test]
fn ports_lead_to_the_same_registers() {
    let bench = Bench::new();
    let narrow: Arc<Ports> = Arc::default();
    let ports = ConfigPorts::new(bench.root.clone(), Some((0xcf9, narrow.clone())));
    let read = |offset, len| {
        let mut data = vec![0; len];
        ports.pio_read(PioAddress(0xcf8), offset, &mut data);
        data
    };
    let select = |value: u32| ports.pio_write(PioAddress(0xcf8), 0, &value.to_le_bytes());
    assert_eq!(read(4, 4), [0xff; 4], "not enabled");
    select(0xffff_ffff);
    assert_eq!(read(0, 4), [0xfc, 0xff, 0xff, 0x80]);
    select(0x8000_1800);
    assert_eq!(read(4, 4), [0xf4, 0x1a, 0x34, 0x12]);
    assert_eq!((read(6, 2), read(7, 1)), (vec![0x34, 0x12], vec![0x12]));
    assert_eq!((read(5, 2), read(6, 4)), (vec![0xff; 2], vec![0xff; 4]));
    select(0x8001_1800);
    assert_eq!(read(4, 4), [0xff; 4], "no other bus");
    select(0x8000_183c);
    ports.pio_write(PioAddress(0xcf8), 4, &[9]);
    assert_eq!(bench.get(0x3c), 9);
    for offset in 0..4 {
        ports.pio_write(PioAddress(0xcf8), offset, &[6]);
    }
    assert_eq!(*narrow.0.lock(), [(0xcf9, 6)], "the reset register");
    assert_eq!(read(0, 4), [0x3c, 0x18, 0, 0x80], "was not changed by that");
}

#[derive(Default)]
struct Ports(Mutex<Vec<(u16, u8)>>);

impl DevicePio for Ports {
    fn pio_read(&self, _: PioAddress, _: u16, _: &mut [u8]) {}

    fn pio_write(&self, base: PioAddress, offset: u16, data: &[u8]) {
        self.0.lock().push((base.0 + offset, data[0]));
    }
}

/// Processors that turn BARs on and off while others are inside them, and while functions go.
#[test]
fn processors_in_configuration_registers_do_not_wait_for_each_other() {
    let bench = Bench::new();
    let other = Address::new(4, 0).unwrap();
    bench.root.add(other, Card::new()).unwrap();
    let (done, is_done) = channel();
    std::thread::scope(|scope| {
        for device in [3u64, 4] {
            let (bench, done) = (&bench, done.clone());
            scope.spawn(move || {
                let at = ECAM + (device << 15);
                for round in 0..500u32 {
                    let to = LOW as u32 + 0x1000 * (round % 4);
                    bench.write(at + 0x18, &to.to_le_bytes());
                    bench.write(at + 4, &(round & 2).to_le_bytes());
                    bench.read::<4>(to.into());
                }
                done.send(()).unwrap();
            });
        }
        for _ in 0..100 {
            drop(bench.root.remove(other).map(Unplugged::wait));
            bench.root.add(other, Card::new()).unwrap();
        }
        for _ in 0..2 {
            is_done.recv().unwrap();
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_accesses_harm_nobody(
        accesses in prop::collection::vec(
            (
                prop_oneof![0u64..0x60, 0x1_8000u64..0x1_8060, 0..Ecam::LEN],
                prop::collection::vec(prop_oneof![Just(0xffu8), Just(0xc0), any::<u8>()], 1..9),
            ),
            1..80,
        )
    ) {
        let bench = Bench::new();
        for (offset, data) in accesses {
            bench.write(ECAM + offset, &data);
            bench.read::<8>(ECAM + offset);
            // Windows are where the function decodes, or nowhere.
            let map = bench.space.load_full();
            for slot in map.slots() {
                let start = slot.range().start().0;
                let mut places = vec![ECAM];
                let decoded = [0, 2].map(|bar| bench.card.decoded(bar));
                places.extend(decoded.into_iter().flatten().map(|range| range.start().0));
                prop_assert!(places.contains(&start), "{start:#x} of {places:x?}");
            }
        }
        bench.set(0x04, 0);
        // The other BAR may be anywhere: it makes room.
        bench.set(0x10, 0);
        bench.set(0x14, 0);
        bench.set(0x18, LOW as u32);
        bench.set(0x04, 2);
        prop_assert_eq!(bench.get(0), 0x1234_1af4);
        prop_assert_eq!(bench.read(LOW), [0x12]);
    }
}
