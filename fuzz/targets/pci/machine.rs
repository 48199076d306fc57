//! A root bus with places for functions, and what the map must say of them.

use std::io;
use std::sync::{Arc, Mutex};

use umbra_bus::{Bus, Ports};
use umbra_devices::virtio::Rng;
use umbra_fuzz::{Memory, region};
use umbra_irq::{Msi, MsiTarget};
use umbra_pci::{Address, ConfigPorts, Ecam, HostBridge, MEMORY_SPACE, RootBus, Windows};
use umbra_slots::{Backing, Flags, Gpa, GpaRange, Slot};
use umbra_virtio::{PciTransport, Transport};

/// Where BARs may be.
pub const LOW: u64 = 0xc000_0000;
pub const LOW_LEN: u64 = 0x1000_0000;
pub const HIGH: u64 = 0x80_0000_0000;
const HIGH_LEN: u64 = 0x1_0000_0000;
/// What else is there: memory, and the configuration registers.
pub const OTHER_RAM: u64 = LOW + 0x10_0000;
pub const ECAM: u64 = LOW + 0xf00_0000;

/// Where functions come and go.
pub const PLACES: [Address; 3] = [
    Address::new(1, 0).unwrap(),
    Address::new(3, 5).unwrap(),
    Address::new(31, 7).unwrap(),
];

/// The last message that was sent.
#[derive(Default)]
pub struct Messages(Mutex<Option<Msi>>);

impl Messages {
    pub fn take(&self) -> Option<Msi> {
        self.0.lock().expect("nobody panics with it").take()
    }
}

impl MsiTarget for Messages {
    fn send(&self, msi: Msi) {
        *self.0.lock().expect("nobody panics with it") = Some(msi);
    }
}

/// Where a function may be.
#[derive(Default)]
struct Place {
    function: Option<Arc<PciTransport>>,
    /// Where something else was when its BAR came there, so that it has no window until it is written again.
    blocked: Option<GpaRange>,
}

/// The machine.
pub struct Machine {
    pub memory: Memory,
    pub ports: Ports,
    pub messages: Arc<Messages>,
    bus: Arc<Bus>,
    root: Arc<RootBus>,
    places: [Place; PLACES.len()],
}

fn range(start: u64, len: u64) -> GpaRange {
    GpaRange::new(Gpa(start), len).expect("it is some range")
}

/// Bytes that are the same in every run.
fn bytes(to: &mut [u8]) -> io::Result<usize> {
    to.fill(0x5a);
    Ok(to.len())
}

/// Bits 12 to 19 of the address of configuration registers.
pub fn function_bits(place: usize) -> u64 {
    let address = PLACES[place];
    u64::from(address.device()) << 3 | u64::from(address.function())
}

impl Machine {
    pub fn new() -> Self {
        let memory = Memory::new();
        let other = memory.space.update("memory in a window", |edit| {
            edit.add_ram(Gpa(OTHER_RAM), region(0x1000), 0, 0x1000, Flags::default())
        });
        other.expect("there is room").wait();
        let bus = Arc::new(Bus::new(memory.space.clone()));
        let windows = Windows {
            low: range(LOW, LOW_LEN),
            high: Some(range(HIGH, HIGH_LEN)),
        };
        let root = Arc::new(RootBus::new(&bus, windows));
        let bridge = Address::new(0, 0).expect("there is device 0");
        root.add(bridge, Arc::new(HostBridge::new()))
            .expect("it is the first one");
        bus.insert(range(ECAM, Ecam::LEN), Arc::new(Ecam::new(root.clone())))
            .expect("there is room");
        let ports = Ports::new();
        let config = Arc::new(ConfigPorts::new(root.clone(), None));
        ports
            .insert(ConfigPorts::FIRST, ConfigPorts::LEN, config)
            .expect("they are free");
        let mut machine = Self {
            memory,
            ports,
            messages: Arc::default(),
            bus,
            root,
            places: Default::default(),
        };
        (0..PLACES.len()).for_each(|place| machine.add(place));
        machine
    }

    /// Adds a function, if there is none.
    pub fn add(&mut self, place: usize) {
        let device = Box::new(Rng::with_source(Arc::new(bytes)));
        let function = PciTransport::new(device, self.memory.dma(), self.messages.clone(), None);
        let function = function.expect("it has room");
        let added = self.root.add(PLACES[place], function.clone());
        let there = &mut self.places[place];
        assert_eq!(added.is_ok(), there.function.is_none());
        if added.is_ok() {
            there.function = Some(function);
        }
    }

    /// Removes a function, if there is one.
    pub fn remove(&mut self, place: usize) {
        let removed = self.root.remove(PLACES[place]);
        let there = std::mem::take(&mut self.places[place]);
        assert_eq!(removed.is_some(), there.function.is_some());
        if let Some(removed) = removed {
            drop(removed.wait());
        }
        if let Some(function) = there.function {
            function.shut_down();
            assert!(!function.is_active());
        }
    }

    /// Has a device stop, and keep what it has, or go on.
    pub fn pause(&self, place: usize, pause: bool) {
        match (&self.places[place].function, pause) {
            (Some(function), true) => function.pause(),
            (Some(function), false) => function.resume(),
            (None, _) => {}
        }
    }

    /// Reads as a processor does.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        let map = self.memory.space.load_full();
        self.bus.read(&map, Gpa(at), data);
    }

    /// Writes as one.
    pub fn write(&self, at: u64, data: &[u8]) {
        let map = self.memory.space.load_full();
        self.bus.write(&map, Gpa(at), data);
    }

    /// Reads a configuration register.
    pub fn config<const N: usize>(&self, place: usize, register: u64) -> [u8; N] {
        let mut data = [0; N];
        self.read(ECAM + (function_bits(place) << 12) + register, &mut data);
        data
    }

    /// Writes a configuration register.
    pub fn set_config(&self, place: usize, register: u64, data: &[u8]) {
        self.write(ECAM + (function_bits(place) << 12) + register, data);
    }

    /// Returns where a BAR has been put, whether that is a good place or not.
    pub fn bar(&self, place: usize) -> u64 {
        u64::from_le_bytes(self.config(place, PciTransport::BAR_REGISTER.into())) & !0xf
    }

    /// Returns where a BAR should have a window, unless something else is there.
    fn wanted(&self, place: usize) -> Option<GpaRange> {
        self.places[place].function.as_ref()?;
        let command = u16::from_le_bytes(self.config(place, 4));
        let wanted = GpaRange::new(Gpa(self.bar(place)), PciTransport::BAR_LEN.into())?;
        let inside = |start: u64, len: u64| {
            let window = range(start, len);
            window.contains(wanted.start()) && window.contains(wanted.last())
        };
        let good = inside(LOW, LOW_LEN) || inside(HIGH, HIGH_LEN);
        (good && command & MEMORY_SPACE != 0).then_some(wanted)
    }

    /// Checks that the windows in the map are those that functions decode: all of them, but those that were put
    /// where something else was.
    pub fn check_map(&mut self) {
        let map = self.memory.space.load_full();
        let slots = map.slots();
        let is_io = |backing: &Backing| matches!(backing, Backing::Io(_));
        let windows = slots.iter().filter(|slot| is_io(slot.backing())).count();
        let mut expected = 1;
        for place in 0..PLACES.len() {
            let wanted = self.wanted(place);
            let Some(range) = wanted else {
                self.places[place].blocked = None;
                continue;
            };
            let mine = |slot: &Slot| is_io(slot.backing()) && slot.range() == range;
            let mut others = (0..PLACES.len()).filter(|other| *other != place);
            let same = others.any(|other| self.wanted(other) == wanted);
            let there = slots.iter().any(mine);
            let meets = slots.iter().any(|slot| slot.range().overlaps(&range));
            let blocked = &mut self.places[place].blocked;
            match (there, meets) {
                // Two at the same place: one of both has it.
                (true, _) if same => {
                    *blocked = wanted;
                    expected += usize::from(place == self.first_at(range));
                }
                (true, _) => {
                    *blocked = None;
                    expected += 1;
                }
                (false, true) => *blocked = wanted,
                (false, false) => {
                    assert_eq!(
                        *blocked, wanted,
                        "{range} has no window, and nothing is there"
                    );
                }
            }
        }
        assert_eq!(windows, expected, "windows that nobody decodes");
    }

    fn first_at(&self, range: GpaRange) -> usize {
        (0..PLACES.len())
            .find(|place| self.wanted(*place) == Some(range))
            .expect("the one that asks is there")
    }
}
