//! What a machine looks like inside, for people and programs: the map, how it came to be, and what was counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;
use umbra_cpu::Statistics;
use umbra_slots::{AddressSpace, Backing, Change, Listener, Slot, Wait};

use crate::devices::VirtioInfo;
use crate::handle::Parts;
use crate::layout;
use crate::policy::Counted;

/// Counters by name: lower case, words joined by `_`.
pub type Counters = BTreeMap<String, u64>;

/// What a machine looks like inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[non_exhaustive]
pub struct Inspection {
    /// The number of the current map. Every change of slots or of the device bus has another one.
    pub generation: u64,
    /// The guest-physical map, by ascending address.
    pub map: Vec<MapEntry>,
    /// The last changes of the map, the oldest first.
    pub bumps: Vec<Bump>,
    /// What executes the guest.
    pub backend: String,
    /// All processors stand still.
    pub paused: bool,
    /// What the processors share: of the software processor its MMU.
    pub mmu: Counters,
    /// What each processor has counted, exits by their kind among it.
    pub cpus: Vec<CpuCounters>,
    /// What the machine has counted.
    pub machine: Counters,
    /// Its virtio devices.
    pub devices: Vec<DeviceReport>,
}

/// A slot of the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum MapEntry {
    /// Memory.
    Ram {
        /// First guest-physical address.
        start: u64,
        /// Bytes.
        len: u64,
        /// The guest may only read it.
        read_only: bool,
        /// Writes are recorded.
        dirty_log: bool,
    },
    /// Registers of a device.
    Window {
        /// First guest-physical address.
        start: u64,
        /// Bytes.
        len: u64,
        /// The bus knows the device by this number; it is never used again.
        device: u32,
        /// What it is: the name of a virtio device, or of what a PC has there; none for an embedder's own.
        owner: Option<String>,
    },
}

/// A change of the map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Bump {
    /// The number of the map from then on.
    pub generation: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// Who asked for it.
    pub cause: String,
    /// Slots of RAM in it.
    pub ram_slots: u64,
    /// Windows of devices in it.
    pub windows: u64,
}

/// What a processor has counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CpuCounters {
    /// Its number.
    pub cpu: usize,
    /// It is held by itself.
    pub held: bool,
    /// What, and how often.
    pub counters: Counters,
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DeviceReport {
    /// What it is called.
    pub id: String,
    /// What it is, as in `virtio-KIND`.
    pub kind: String,
    /// Device number on PCI bus 0; one without cannot be removed.
    pub pci_device: Option<u8>,
    /// A driver has started it.
    pub in_use: bool,
    /// It cannot go on until its driver resets it.
    pub needs_reset: bool,
    /// How its back end is, if it has one.
    pub back_end: Option<BackEndReport>,
    /// What it has counted.
    pub counters: Counters,
}

/// How a back end is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct BackEndReport {
    /// It is connected.
    pub connected: bool,
    /// How long that is so, in milliseconds.
    pub for_ms: u64,
    /// How often the connection was lost.
    pub losses: u64,
    /// Why it was lost last, or could not be made.
    pub error: Option<String>,
}

impl Inspection {
    /// Looks at all parts; `counted` is what the processors have told.
    pub(crate) fn of(parts: &Parts, counted: Counted) -> Self {
        let map = parts.space.load_full();
        let machine = vec![
            ("memory_accesses_that_hit_nothing", parts.bus.misses()),
            ("port_accesses_that_hit_nothing", parts.ports.misses()),
            ("console_bytes_lost", parts.serial.lost()),
            ("console_bytes_over_the_limit", parts.serial.dropped()),
        ];
        Self {
            generation: map.generation().0,
            map: map.slots().iter().map(|slot| entry(parts, slot)).collect(),
            bumps: parts.bumps.list(),
            backend: parts.backend.name().to_owned(),
            mmu: counters(parts.backend.statistics()),
            paused: counted.paused,
            cpus: (0..)
                .zip(counted.cpus)
                .map(|(cpu, count)| CpuCounters {
                    cpu,
                    held: counted.held.contains(&cpu),
                    counters: counters(count),
                })
                .collect(),
            machine: counters(machine),
            devices: parts.devices.list().into_iter().map(Into::into).collect(),
        }
    }
}

/// Names are for people where they are counted, and for programs here.
fn counters(counted: Statistics) -> Counters {
    let named = counted.into_iter();
    named
        .map(|(name, value)| (name.replace([' ', '-'], "_"), value))
        .collect()
}

fn entry(parts: &Parts, slot: &Slot) -> MapEntry {
    let (start, len) = (slot.range().start().0, slot.range().len());
    match slot.backing() {
        Backing::Ram { flags, .. } => MapEntry::Ram {
            start,
            len,
            read_only: flags.read_only,
            dirty_log: flags.dirty_log,
        },
        Backing::Io(id) => MapEntry::Window {
            start,
            len,
            device: id.0,
            owner: match u32::try_from(start) {
                Ok(layout::LOCAL_APIC) => Some("local APIC".into()),
                Ok(layout::IOAPIC) => Some("IOAPIC".into()),
                Ok(layout::PCI_CONFIG) => Some("PCI configuration".into()),
                _ => parts.devices.owner(start),
            },
        },
    }
}

impl From<VirtioInfo> for DeviceReport {
    fn from(info: VirtioInfo) -> Self {
        Self {
            id: info.id,
            kind: info.kind.to_owned(),
            pci_device: info.pci_device,
            in_use: info.in_use,
            needs_reset: info.needs_reset,
            back_end: info.back_end.map(|state| BackEndReport {
                connected: state.connected,
                for_ms: millis(state.since.elapsed()),
                losses: state.losses,
                error: state.error,
            }),
            counters: counters(info.counters),
        }
    }
}

fn millis(time: std::time::Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

/// Milliseconds since 1970; 0 before.
pub(crate) fn since_1970(at: SystemTime) -> u64 {
    millis(at.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Remembers the last changes of a map.
pub(crate) struct Bumps(Mutex<VecDeque<Bump>>);

impl Bumps {
    /// How many are remembered.
    const KEPT: usize = 1024;

    /// Remembers those of a map from now on.
    pub fn of(space: &AddressSpace) -> Arc<Self> {
        let bumps = Arc::new(Self(Mutex::default()));
        space.add_listener(bumps.clone());
        bumps
    }

    fn list(&self) -> Vec<Bump> {
        self.0.lock().iter().cloned().collect()
    }
}

impl Listener for Bumps {
    fn published(&self, change: &Change) -> Option<Wait> {
        let is_ram = |slot: &&Slot| matches!(slot.backing(), Backing::Ram { .. });
        let slots = change.new.slots();
        let ram_slots = slots.iter().filter(is_ram).count();
        let mut bumps = self.0.lock();
        if bumps.len() == Self::KEPT {
            bumps.pop_front();
        }
        bumps.push_back(Bump {
            generation: change.new.generation().0,
            at_ms: since_1970(SystemTime::now()),
            cause: change.cause.to_owned(),
            ram_slots: ram_slots as u64,
            windows: (slots.len() - ram_slots) as u64,
        });
        None
    }
}
