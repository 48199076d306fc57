//! `/`, `/version`, `/vm`, `/vm/config` and `/actions`: the machine as a whole.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::balloon::Balloon;
use super::boot_source::BootSource;
use super::drive::Drive;
use super::entropy::Entropy;
use super::machine_config::MachineConfiguration;
use super::memory_hotplug::MemoryHotplugConfig;
use super::mmds::MmdsConfig;
use super::net::NetworkInterface;
use super::pmem::Pmem;
use super::vsock::Vsock;

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub enum VmState {
    /// It is being configured.
    #[serde(rename = "Not started")]
    NotStarted,
    /// It runs.
    Running,
    /// It stands still.
    Paused,
}

/// What is asked first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct InstanceInfo {
    /// What the machine is called (`--id`).
    pub id: String,
    /// Where it is in its life.
    pub state: VmState,
    /// The version of Firecracker whose interface this is.
    pub vmm_version: String,
    /// `Firecracker`: what clients look for.
    pub app_name: String,
}

/// Which interface this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct FirecrackerVersion {
    /// The version of Firecracker whose interface this is.
    pub firecracker_version: String,
}

/// What shall become of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum WantedState {
    /// It shall stand still.
    Paused,
    /// It shall run.
    Resumed,
}

/// A change of its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// What shall become of it.
    pub state: WantedState,
}

/// What is done once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ActionType {
    /// Counters are written.
    FlushMetrics,
    /// The machine starts.
    InstanceStart,
    /// The guest's keyboard says Ctrl, Alt and Delete.
    SendCtrlAltDel,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceActionInfo {
    /// What is done.
    pub action_type: ActionType,
}

/// Everything that was said.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub struct FullVmConfiguration {
    pub balloon: Option<Balloon>,
    pub drives: Vec<Drive>,
    pub boot_source: BootSource,
    pub cpu_config: Option<()>,
    pub logger: Option<()>,
    pub machine_config: MachineConfiguration,
    pub metrics: Option<()>,
    pub mmds_config: Option<MmdsConfig>,
    pub network_interfaces: Vec<NetworkInterface>,
    pub vsock: Option<Vsock>,
    pub entropy: Option<Entropy>,
    pub pmem: Vec<Pmem>,
    pub memory_hotplug: Option<MemoryHotplugConfig>,
}
