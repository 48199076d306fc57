//! What is asked with, and what is answered.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use umbra_vmm::{BackEndReport, Counters, Entry, News, VirtioKind};

/// What serves here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Server {
    /// The name of the monitor.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Where the description of this interface is.
    pub openapi: &'static str,
}

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// It is being described.
    NotStarted,
    /// Its processors execute.
    Running,
    /// They stand still.
    Paused,
    /// It has ended.
    Ended,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct VmInfo {
    /// Its name.
    pub id: String,
    /// Where it is in its life.
    pub state: VmState,
    /// How often its guest has begun; each reset counts.
    pub boots: u64,
    /// What executes the guest, while there is one.
    pub backend: Option<String>,
    /// Why that is not KVM, where KVM would have been preferred.
    pub fallback: Option<String>,
}

/// A processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Cpu {
    /// Its number.
    pub cpu: usize,
    /// It stands still: it is held by itself, or the machine is paused.
    pub paused: bool,
    /// It is held by itself.
    pub held: bool,
    /// What it has counted.
    pub counters: Counters,
}

/// A processor that stands still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct CpuState {
    /// Its number.
    pub cpu: usize,
    /// It was held before.
    pub already: bool,
    /// Where its next instruction is.
    pub rip: u64,
    /// Its flags.
    pub rflags: u64,
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub registers: Vec<u64>,
    /// CR0, which says how addresses are meant.
    pub cr0: u64,
    /// CR3: where the page tables are.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Device {
    /// Its name.
    pub id: String,
    /// What it is, with what was changed since.
    pub device: VirtioKind,
    /// How it is, while there is a guest.
    pub status: Option<DeviceStatus>,
}

/// How a device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct DeviceStatus {
    /// Device number on PCI bus 0. One without cannot be removed.
    pub pci_device: Option<u8>,
    /// The guest's driver has started it.
    pub in_use: bool,
    /// It cannot go on until its driver resets it.
    pub needs_reset: bool,
    /// How its back end is, if it has one.
    pub back_end: Option<BackEndReport>,
    /// What it has counted.
    pub counters: Counters,
}

/// What became of a device that was to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Removal {
    /// Its name.
    pub id: String,
    /// What became of it.
    pub state: RemovalState,
    /// How long the guest was waited for, in milliseconds.
    pub waited_ms: u64,
}

/// What became of a device that was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RemovalState {
    /// The guest has let it go, and what it had of the host is given back.
    LetGo,
    /// The guest did not let it go, and it was taken away.
    TakenAway,
    /// The guest was asked, and has not let it go yet. The event `device_removed` tells when it has.
    Asked,
}

/// Which processor is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WhichCpu {
    /// Its number; all if there is none.
    pub cpu: Option<usize>,
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct EventEntry {
    /// Its number: one more than that of the one before.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// What.
    #[serde(flatten)]
    pub news: News,
}

impl From<Entry> for EventEntry {
    fn from(entry: Entry) -> Self {
        let since = entry.at.duration_since(std::time::UNIX_EPOCH);
        let at_ms = since.unwrap_or_default().as_millis();
        Self {
            number: entry.number,
            at_ms: at_ms.try_into().unwrap_or(u64::MAX),
            news: entry.news,
        }
    }
}

/// A piece of what has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct EventPage {
    /// How many events before these are no longer kept.
    pub missed: u64,
    /// The number with which to ask for what follows.
    pub next_since: u64,
    /// What has happened, the oldest first.
    pub events: Vec<EventEntry>,
}

/// The tables by which a processor finds memory, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PageTables {
    /// Guest and shadow side by side.
    pub lines: Vec<String>,
}
