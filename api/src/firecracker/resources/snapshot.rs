//! `/snapshot/…`: checked like Firecracker's, and refused where that would begin to work.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which pages are saved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SnapshotType {
    /// All.
    #[default]
    Full,
    /// What has changed.
    Diff,
}

/// What is saved, and where to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreateParams {
    /// Which pages are saved.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
    /// The state.
    pub snapshot_path: PathBuf,
    /// The memory.
    pub mem_file_path: PathBuf,
}

/// Where memory comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum MemBackendType {
    /// A file.
    File,
    /// A process that serves page faults.
    Uffd,
}

/// Where memory comes from.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemBackend {
    /// What serves it.
    pub backend_type: MemBackendType,
    /// The file, or that process's socket.
    pub backend_path: PathBuf,
}

/// Another TAP interface than before.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// Whose.
    pub iface_id: String,
    /// Which.
    pub host_dev_name: String,
}

/// Another socket than before.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// Which.
    pub uds_path: PathBuf,
}

/// Pages of the host for the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SnapshotPages {
    /// As they were.
    #[default]
    Snapshot,
    /// What the host likes.
    None,
    /// Large ones where the host has them.
    Transparent,
    /// Reserved ones of 2 MiB.
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// What is loaded, and how.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    {
        "required": ["mem_backend"],
        "properties": { "mem_backend": { "type": "object" }, "mem_file_path": { "type": "null" } },
    },
    {
        "required": ["mem_file_path"],
        "properties": { "mem_file_path": { "type": "string" }, "mem_backend": { "type": "null" } },
    },
]))]
pub struct SnapshotLoadParams {
    /// The state.
    pub snapshot_path: PathBuf,
    /// The memory.
    #[serde(default)]
    pub mem_backend: Option<MemBackend>,
    /// The memory; deprecated.
    #[serde(default)]
    #[schemars(extend("deprecated" = true))]
    pub mem_file_path: Option<PathBuf>,
    /// Remember which pages are written.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// The same; deprecated.
    #[serde(default)]
    #[schemars(extend("deprecated" = true))]
    pub enable_diff_snapshots: Option<bool>,
    /// Let it run.
    #[serde(default)]
    pub resume_vm: bool,
    /// Other TAP interfaces.
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another socket.
    #[serde(default)]
    pub vsock_override: Option<VsockOverride>,
    /// The guest's clock is set.
    #[serde(default)]
    pub clock_realtime: bool,
    /// Pages of the host.
    #[serde(default)]
    pub huge_pages: SnapshotPages,
}

impl SnapshotLoadParams {
    /// A deprecated field is used.
    pub fn is_deprecated(&self) -> bool {
        self.mem_file_path.is_some() || self.enable_diff_snapshots.is_some()
    }
}
