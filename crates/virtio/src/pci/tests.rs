//! The function as a driver sees it on a root bus, with a device that echoes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use proptest::prelude::*;
use umbra_bus::Bus;
use umbra_irq::{Msi, MsiTarget};
use umbra_pci::{Address, RootBus, Windows};
use umbra_slots::{Gpa, GpaRange};

use crate::echo::{self, Knobs, OWN};
use crate::testing::{Bells, Memory, NEXT, RINGS, WRITE};
use crate::{Features, PciTransport, Transport};

const SLOT: Address = Address::new(4, 0).unwrap();
const BAR: u64 = 0xc000_0000;
const ELSEWHERE: u64 = 0xc800_0000;
const FROM: u64 = 0x2000;
const TO: u64 = 0x3000;
/// Command register: memory space, and bus master too.
const MEMORY: u16 = 2;
const MASTER: u16 = 6;

#[derive(Default)]
struct Messages(Mutex<Vec<u32>>);

impl MsiTarget for Messages {
    fn send(&self, msi: Msi) {
        self.0.lock().push(msi.data);
    }
}

struct Bench {
    memory: Arc<Memory>,
    bus: Arc<Bus>,
    root: RootBus,
    transport: Arc<PciTransport>,
    knobs: Arc<Knobs>,
    messages: Arc<Messages>,
    bells: Arc<Bells>,
    bar: u64,
    offered: u16,
}

impl Bench {
    /// Has a function whose BAR is at [`BAR`], and which may be bus master.
    fn new() -> Self {
        let (memory, messages) = (Memory::new(), Arc::new(Messages::default()));
        let bus = Arc::new(Bus::new(memory.space.clone()));
        let low = GpaRange::new(Gpa(BAR), 0x1000_0000).unwrap();
        let root = RootBus::new(&bus, Windows { low, high: None });
        let (device, knobs) = echo::device();
        let bells = Arc::new(Bells::default());
        let transport = PciTransport::new(
            Box::new(device),
            memory.dma(),
            messages.clone(),
            Some(bells.clone()),
        );
        let transport = transport.unwrap();
        root.add(SLOT, transport.clone()).unwrap();
        let mut bench = Self {
            memory,
            bus,
            root,
            transport,
            knobs,
            messages,
            bells,
            bar: 0,
            offered: 0,
        };
        bench.move_to(BAR);
        bench.command(MASTER);
        bench
    }

    fn get_config<const N: usize>(&self, register: u16) -> [u8; N] {
        let mut data = [0xaa; N];
        self.root.read_config(SLOT, register, &mut data);
        data
    }

    fn word(&self, register: u16) -> u32 {
        u32::from_le_bytes(self.get_config(register))
    }

    fn set_config(&self, register: u16, data: &[u8]) {
        self.root.write_config(SLOT, register, data);
    }

    fn command(&self, bits: u16) {
        self.set_config(4, &bits.to_le_bytes());
    }

    fn move_to(&mut self, address: u64) {
        self.set_config(0x10, &(address as u32).to_le_bytes());
        self.bar = address;
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        let map = self.memory.space.load_full();
        self.bus.read(&map, Gpa(self.bar + offset), &mut data);
        data
    }

    fn put(&self, offset: u64, data: &[u8]) {
        let map = self.memory.space.load_full();
        self.bus.write(&map, Gpa(self.bar + offset), data);
    }

    fn get16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    fn put16(&self, offset: u64, value: u16) {
        self.put(offset, &value.to_le_bytes());
    }

    fn put32(&self, offset: u64, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u8 {
        self.get::<1>(0x14)[0]
    }

    fn set_status(&self, value: u8) {
        self.put(0x14, &[value]);
    }

    /// Gives every vector its number as the message, and enables MSI-X.
    fn enable_msix(&self) {
        let capability = self.capabilities().into_iter().find(|c| c.0 == 0x11);
        let at = capability.unwrap().1;
        for vector in 0..3u64 {
            let entry = 0x4000 + 16 * vector;
            self.put32(entry, 0xfee0_0000);
            self.put32(entry + 8, vector as u32);
            self.put32(entry + 12, 0);
        }
        self.set_config(at + 2, &0x8000u16.to_le_bytes());
    }

    /// Returns identifier and place of each capability.
    fn capabilities(&self) -> Vec<(u8, u16)> {
        let mut found = Vec::new();
        let mut at = u16::from(self.get_config::<1>(0x34)[0]);
        while at != 0 {
            let [id, next] = self.get_config(at);
            found.push((id, at));
            at = next.into();
        }
        found
    }

    /// Goes from reset to DRIVER_OK with the vectors 1 for the first queue, 2 for the configuration.
    fn start(&mut self) {
        self.set_status(0);
        self.set_status(3);
        let features = Features::VERSION_1;
        for select in 0..4 {
            self.put32(0x08, select);
            self.put32(0x0c, features.word(select));
        }
        self.set_status(11);
        assert_eq!(self.status(), 11);
        self.put16(0x10, 2);
        self.put16(0x16, 0);
        self.put16(0x1a, 1);
        for (field, address) in [0x20, 0x28, 0x30].into_iter().zip(RINGS) {
            self.put(field, &address.to_le_bytes());
        }
        self.memory.put(RINGS[1], &[0; 4]);
        self.memory.put(RINGS[2], &[0; 4]);
        self.offered = 0;
        self.put16(0x1c, 1);
        self.set_status(15);
        assert_eq!(self.status(), 15);
    }

    /// Offers a chain that has 4 bytes copied, without a notification.
    fn offer(&mut self, bytes: [u8; 4]) {
        self.memory.put(FROM, &bytes);
        self.memory.put(TO, &[0; 4]);
        for (index, (at, flags, next)) in [(0, (FROM, NEXT, 1u16)), (1, (TO, WRITE, 0))] {
            let mut descriptor = at.to_le_bytes().to_vec();
            descriptor.extend(4u32.to_le_bytes());
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend(next.to_le_bytes());
            self.memory.put(RINGS[0] + 16 * index, &descriptor);
        }
        let slot = RINGS[1] + 4 + 2 * u64::from(self.offered % 8);
        self.memory.put(slot, &0u16.to_le_bytes());
        self.offered += 1;
        self.memory.put(RINGS[1] + 2, &self.offered.to_le_bytes());
    }

    fn used(&self) -> u16 {
        self.memory.get_u16(RINGS[2] + 2)
    }

    fn wait(&self, what: impl Fn(&Self) -> bool) {
        let begin = Instant::now();
        while !what(self) {
            assert!(begin.elapsed() < Duration::from_secs(10), "never");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Has a chain used by a notification.
    fn round_trip(&mut self) {
        self.offer(*b"echo");
        self.put16(0x3000, 0);
        self.wait(|b| b.used() == b.offered);
        assert_eq!(&self.memory.get(TO), b"echo");
    }
}

#[test]
fn a_function_says_which_device_it_is() {
    let bench = Bench::new();
    let table = [
        (0x00, 0x106a_1af4),
        (0x08, 0xff00_0001),
        (0x2c, 0x1100_1af4),
        (0x3c, 0),
    ];
    for (register, value) in table {
        assert_eq!(bench.word(register), value, "{register:#x}");
    }
    assert_eq!(bench.transport.device_id(), 42);
}

#[test]
fn capabilities_lead_to_the_parts_of_the_bar() {
    let bench = Bench::new();
    let place = |at| (bench.word(at + 8), bench.word(at + 12));
    let found = bench.capabilities().into_iter().map(|(id, at)| match id {
        9 => {
            let [len, kind, bar] = bench.get_config(at + 2);
            assert_eq!(bar, 0);
            (kind, len, place(at))
        }
        _ => (id, 12, (bench.word(at + 4), bench.word(at + 8))),
    });
    let expected = [
        (1, 16, (0, 0x1000)),
        (3, 16, (0x1000, 1)),
        (4, 16, (0x2000, 0x1000)),
        (2, 20, (0x3000, 0x1000)),
        (5, 20, (0, 0)),
        (0x11, 12, (0x4000, 0xc000)),
    ];
    assert_eq!(found.collect::<Vec<_>>(), expected);
    let notify = bench.capabilities()[3].1;
    assert_eq!(bench.word(notify + 16), 4, "notify_off_multiplier");
}

#[test]
fn fields_begin_as_the_specification_says() {
    let bench = Bench::new();
    assert_eq!(bench.get16(0x12), 2, "num_queues");
    assert_eq!((bench.get16(0x10), bench.status()), (0xffff, 0));
    bench.knobs.generation.store(0x1_07, Ordering::SeqCst);
    assert_eq!(bench.get(0x15), [7]);
    for (queue, size) in [(0, 8), (1, 64), (2, 0), (0xffff, 0)] {
        bench.put16(0x16, queue);
        let fields = [0x16, 0x18, 0x1a, 0x1c].map(|at| bench.get16(at));
        assert_eq!(fields, [queue, size, 0xffff, 0]);
    }
    let offer = |select: u32| {
        bench.put32(0x00, select);
        u32::from_le_bytes(bench.get(0x04))
    };
    let all = OWN.with(Features::RINGS);
    for select in [0, 1, 2, 3, 4, u32::MAX] {
        assert_eq!(offer(select), all.word(select), "{select}");
    }
    assert_eq!(&bench.get(0x2000), b"config");
}

#[test]
fn a_field_is_accessed_in_its_own_width() {
    let bench = Bench::new();
    bench.put16(0x16, 1);
    bench.put(0x20, &0x1234_5678_9abc_def0u64.to_le_bytes());
    assert_eq!(bench.get(0x20), 0x1234_5678_9abc_def0u64.to_le_bytes());
    assert_eq!(bench.get(0x24), 0x1234_5678u32.to_le_bytes());
    // None of these is an access to a field.
    for (at, data) in [
        (0x16, &[0u8][..]),
        (0x16, &[0; 4]),
        (0x15, &[0; 2]),
        (0x14, &[1, 0]),
        (0x20, &[0; 2]),
        (0x1c, &[1, 0, 0, 0]),
        (0x1e, &[9, 9]),
        (0x38, &[1, 0]),
        (0xfff, &[1]),
    ] {
        bench.put(at, data);
    }
    assert_eq!((bench.get16(0x16), bench.get16(0x1c)), (1, 0));
    assert_eq!(bench.get(0x20), 0x1234_5678_9abc_def0u64.to_le_bytes());
    assert_eq!(bench.status(), 0);
    assert_eq!(bench.get(0x16), [0u8; 4]);
    assert_eq!((bench.get(0x3000), bench.get(0x38)), ([0; 2], [0; 8]));
}

#[test]
fn used_buffers_and_configuration_changes_have_their_messages() {
    let mut bench = Bench::new();
    bench.enable_msix();
    bench.start();
    bench.round_trip();
    bench.wait(|b| *b.messages.0.lock() == [1]);
    // A chain that nobody can write is the end of it.
    bench.memory.put(RINGS[0] + 12, &[0; 2]);
    bench.offered += 1;
    bench.memory.put(RINGS[1] + 2, &bench.offered.to_le_bytes());
    bench.put16(0x3000, 0);
    bench.wait(|b| *b.messages.0.lock() == [1, 2]);
    assert_eq!((bench.status(), bench.get(0x1000)), (15 | 64, [2]));
}

#[test]
fn a_vector_that_does_not_exist_reads_back_as_none() {
    let bench = Bench::new();
    for (vector, expected) in [(2, 2), (3, 0xffff), (1, 1), (0xfffe, 0xffff)] {
        bench.put16(0x10, vector);
        bench.put16(0x1a, vector);
        assert_eq!((bench.get16(0x10), bench.get16(0x1a)), (expected, expected));
    }
    bench.put16(0x16, 2);
    bench.put16(0x1a, 1);
    assert_eq!(bench.get16(0x1a), 0xffff, "there is no such queue");
}

#[test]
fn without_messages_the_isr_status_says_what_happened_once() {
    let mut bench = Bench::new();
    bench.start();
    bench.round_trip();
    bench.wait(|b| b.get(0x1000) == [1]);
    assert_eq!(bench.get(0x1000), [0]);
    assert!(bench.messages.0.lock().is_empty());
}

#[test]
fn a_function_that_is_not_bus_master_stands_still() {
    let mut bench = Bench::new();
    bench.start();
    bench.round_trip();
    bench.command(MEMORY);
    bench.offer(*b"late");
    bench.put16(0x3000, 0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((bench.used(), bench.status()), (1, 15));
    bench.command(MASTER);
    bench.wait(|b| b.used() == 2);
    assert_eq!(&bench.memory.get(TO), b"late");
}

#[test]
fn a_device_that_is_started_before_it_may_be_bus_master_begins_then() {
    let mut bench = Bench::new();
    bench.command(MEMORY);
    assert!(!bench.transport.is_active());
    bench.start();
    assert!(bench.transport.is_active());
    assert_eq!(bench.knobs.count()[0], 0);
    bench.offer(*b"wait");
    bench.put16(0x3000, 0);
    bench.transport.pause();
    bench.command(MASTER);
    assert_eq!(bench.knobs.count()[0], 0, "the machine is paused, too");
    bench.transport.resume();
    bench.wait(|b| b.used() == 1);
}

#[test]
fn a_bar_that_moves_takes_its_registers_and_its_doorbells_along() {
    let mut bench = Bench::new();
    bench.start();
    let [(window, bell)] = bench.bells.hung()[..] else {
        panic!("{:?}", bench.bells.hung());
    };
    assert_eq!(bell, 0x3000);
    bench.round_trip();
    bench.move_to(ELSEWHERE);
    bench.round_trip();
    bench.bar = BAR;
    assert_eq!(bench.get(0x14), [0xff], "nobody is there any more");
    bench.bar = ELSEWHERE;
    bench.offer(*b"ring");
    bench.bells.ring(window, bell);
    bench.wait(|b| b.used() == 3);
    bench.set_status(0);
    assert_eq!(bench.bells.hung(), []);
}

#[test]
fn a_notification_has_any_width_and_value() {
    let mut bench = Bench::new();
    bench.start();
    for data in [&[7][..], &[1, 2], &[0xff; 4], &[0; 8]] {
        bench.offer(*b"echo");
        bench.put(0x3000, data);
        bench.wait(|b| b.used() == b.offered);
    }
    for beside in [0x3001, 0x3002, 0x3004, 0x3008, 0x3ffc] {
        bench.put16(beside, 0);
    }
    assert_eq!(bench.status(), 15);
}

#[test]
fn there_is_a_way_around_the_bar() {
    let bench = Bench::new();
    let at = bench.capabilities()[4].1;
    let aim = |offset: u32, len: u32| {
        bench.set_config(at + 4, &[0]);
        bench.set_config(at + 8, &offset.to_le_bytes());
        bench.set_config(at + 12, &len.to_le_bytes());
    };
    // It works without memory space.
    bench.command(0);
    aim(0x14, 1);
    bench.set_config(at + 16, &[3]);
    assert_eq!(bench.get_config(at + 16), [3]);
    aim(0x12, 2);
    assert_eq!(bench.get_config(at + 16), [2, 0]);
    aim(0x2000, 4);
    assert_eq!(&bench.get_config(at + 16), b"conf");
    for (offset, len) in [
        (0x14, 2),
        (0x15, 4),
        (0x1_0000, 4),
        (0x2000, 3),
        (u32::MAX, 1),
    ] {
        aim(offset, len);
        assert_eq!(bench.word(at + 16), 0, "{offset:#x}, {len}");
        bench.set_config(at + 16, &[0xff; 4]);
    }
    bench.set_config(at + 4, &[1]);
    aim(0x14, 1);
    bench.set_config(at + 4, &[1]);
    assert_eq!(bench.get_config(at + 16), [0], "there is no BAR 1");
}

#[test]
fn a_reset_is_complete_when_it_returns() {
    let mut bench = Bench::new();
    bench.enable_msix();
    bench.start();
    bench.knobs.delay_ms.store(50, Ordering::SeqCst);
    bench.offer(*b"late");
    bench.put16(0x3000, 0);
    bench.wait(|b| b.knobs.busy.load(Ordering::SeqCst));
    bench.set_status(0);
    bench.memory.put(TO, &[0; 4]);
    bench.messages.0.lock().clear();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(bench.memory.get_u32(TO), 0);
    assert!(bench.messages.0.lock().is_empty());
    assert_eq!((bench.status(), bench.get16(0x10)), (0, 0xffff));
    assert_eq!((bench.get16(0x18), bench.get16(0x1a)), (8, 0xffff));
    bench.knobs.delay_ms.store(0, Ordering::SeqCst);
    bench.start();
    bench.round_trip();
}

#[test]
fn a_function_that_is_removed_has_gone() {
    let mut bench = Bench::new();
    bench.start();
    bench.round_trip();
    let unplugged = bench.root.remove(SLOT).unwrap();
    drop(unplugged.wait());
    bench.transport.shut_down();
    assert_eq!((bench.knobs.count()[1], bench.bells.hung()), (1, vec![]));
    assert_eq!((bench.word(0), bench.get(0x14)), (u32::MAX, [0xff]));
    let Bench { transport, .. } = bench;
    assert_eq!(Arc::strong_count(&transport), 1, "nobody else has it");
}

#[derive(Clone, Debug)]
enum Action {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Config(u16, u32),
    Field(u64, u16),
    Start,
    Offer(u16),
}

fn action() -> impl Strategy<Value = Action> {
    let offset = prop_oneof![
        0u64..0x40,
        0x1000u64..0x1004,
        0x3000u64..0x3010,
        0x4000u64..0x4040,
        0u64..0x1_0000
    ];
    let width = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    let bytes = prop::collection::vec(any::<u8>(), 1..9);
    // Not BAR 0 itself: the driver would have to look for it.
    let register = prop_oneof![Just(4u16), 0x14u16..0x100];
    prop_oneof![
        1 => (offset.clone(), width).prop_map(|(at, width)| Action::Read(at, width)),
        2 => (offset, bytes).prop_map(|(at, data)| Action::Write(at, data)),
        2 => (register, any::<u32>()).prop_map(|(at, value)| Action::Config(at & !3, value)),
        3 => (0u64..0x14, any::<u16>()).prop_map(|(at, value)| Action::Field(0x10 + 2 * at, value)),
        2 => Just(Action::Start),
        2 => any::<u16>().prop_map(Action::Offer),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_drivers_harm_nobody_but_themselves(
        actions in prop::collection::vec(action(), 1..60)
    ) {
        let mut bench = Bench::new();
        for action in actions {
            match action {
                Action::Read(at, 1) => drop(bench.get::<1>(at)),
                Action::Read(at, 2) => drop(bench.get::<2>(at)),
                Action::Read(at, 4) => drop(bench.get::<4>(at)),
                Action::Read(at, _) => drop(bench.get::<8>(at)),
                Action::Write(at, data) => bench.put(at, &data),
                Action::Config(at, value) => bench.set_config(at, &value.to_le_bytes()),
                Action::Field(at, value) => bench.put16(at, value),
                Action::Start => {
                    bench.set_config(0x14, &[0; 4]);
                    bench.command(MASTER);
                    bench.start();
                }
                Action::Offer(head) => {
                    bench.offer(*b"echo");
                    bench.memory.put(RINGS[1] + 4, &(head % 9).to_le_bytes());
                    bench.put16(0x3000, 0);
                }
            }
        }
        bench.set_config(0x14, &[0; 4]);
        bench.move_to(BAR);
        bench.command(MASTER);
        bench.start();
        bench.round_trip();
    }
}
