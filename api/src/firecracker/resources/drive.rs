//! `/drives/{drive_id}`: disks.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use umbra_vmm::{Cache, DiskSpec, EngineKind, VhostKind, VhostUserSpec, VirtioKind};

use super::ID_PATTERN;
use super::limits::RateLimiter;
use crate::firecracker::fault::Fault;
use crate::firecracker::files::{self, Use};

/// What becomes of writes that the guest wants to be durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum CacheType {
    /// The guest cannot ask for it.
    #[default]
    Unsafe,
    /// The guest asks, and they are.
    Writeback,
}

/// What serves a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum FileEngine {
    /// Threads that call the file system and wait.
    #[default]
    Sync,
    /// io_uring.
    Async,
}

/// A disk: a file of the host, or a vhost-user back end that some program serves.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [
    {
        "title": "A file",
        "required": ["path_on_host"],
        "properties": { "path_on_host": { "type": "string" }, "socket": { "type": "null" } },
    },
    {
        "title": "A vhost-user back end",
        "required": ["socket"],
        "properties": {
            "socket": { "type": "string" },
            "path_on_host": { "type": "null" },
            "is_read_only": { "type": "null" },
            "rate_limiter": { "type": "null" },
            "io_engine": { "type": "null" },
        },
    },
]))]
pub struct Drive {
    /// Its name, as in the path.
    #[schemars(regex(pattern = ID_PATTERN))]
    pub drive_id: String,
    /// The partition that is the root file system, of the root device.
    #[serde(default)]
    pub partuuid: Option<String>,
    /// It has the root file system. One device can.
    pub is_root_device: bool,
    /// What becomes of writes that the guest wants to be durable.
    #[serde(default)]
    pub cache_type: CacheType,
    /// The guest may only read it; of a file.
    #[serde(default)]
    pub is_read_only: Option<bool>,
    /// The file.
    #[serde(default)]
    pub path_on_host: Option<PathBuf>,
    /// Its limits; of a file.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiter>,
    /// What serves it, `Sync` if nothing is said; of a file.
    #[serde(default, rename = "io_engine")]
    pub file_engine: Option<FileEngine>,
    /// The socket of a vhost-user back end, instead of a file.
    #[serde(default)]
    pub socket: Option<PathBuf>,
}

/// What is a disk's in the host.
enum Host<'a> {
    File(&'a Path),
    Socket(&'a Path),
}

impl Drive {
    fn host(&self) -> Result<Host<'_>, Fault> {
        let of_files = self.is_read_only.is_some()
            || self.rate_limiter.is_some()
            || self.file_engine.is_some();
        match (&self.path_on_host, &self.socket) {
            (Some(path), None) => Ok(Host::File(path)),
            (None, Some(socket)) if !of_files => Ok(Host::Socket(socket)),
            _ => Err(Fault::DriveConfig(
                "Unable to create the virtio block device: it has either path_on_host or socket; and \
                 is_read_only, rate_limiter and io_engine only with path_on_host"
                    .into(),
            )),
        }
    }

    /// Checks it by itself: that its file can be opened.
    pub fn check(&self) -> Result<(), Fault> {
        match self.host()? {
            Host::File(path) => check_file(path, self.is_read_only()),
            Host::Socket(socket) => std::os::unix::net::UnixStream::connect(socket)
                .map(drop)
                .map_err(|error| {
                    Fault::DriveConfig(format!(
                        "Unable to create the vhost-user block device: cannot connect to {}: {error}",
                        socket.display()
                    ))
                }),
        }
    }

    /// The guest may only read it.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only.unwrap_or(false)
    }

    /// Its limits, if there are any.
    pub fn limiter(&self) -> RateLimiter {
        self.rate_limiter.unwrap_or_default()
    }

    /// As the answer of a server that knows the defaults.
    pub fn normalized(mut self) -> Self {
        if self.path_on_host.is_some() {
            self.is_read_only.get_or_insert(false);
            self.file_engine.get_or_insert(FileEngine::Sync);
        }
        self
    }

    /// The device that it asks for.
    pub fn kind(&self) -> Result<VirtioKind, Fault> {
        Ok(match self.host()? {
            Host::File(path) => VirtioKind::Block(DiskSpec {
                read_only: self.is_read_only(),
                cache: match self.cache_type {
                    CacheType::Unsafe => Cache::Unsafe,
                    CacheType::Writeback => Cache::Writeback,
                },
                serial: serial(&self.drive_id),
                engine: match self.file_engine {
                    Some(FileEngine::Async) => EngineKind::IoUring,
                    _ => EngineKind::Threads,
                },
                limits: self.limiter().limits(),
                ..DiskSpec::new(path)
            }),
            Host::Socket(socket) => {
                VirtioKind::VhostUser(VhostUserSpec::new(VhostKind::Block, socket))
            }
        })
    }
}

/// What a disk says its serial number is: as much of its name as there is room for.
fn serial(id: &str) -> String {
    id.chars().take(20).collect()
}

/// Checks that a disk's file can be opened as it will be.
pub fn check_file(path: &Path, read_only: bool) -> Result<(), Fault> {
    let opened = files::open(path, if read_only { Use::Read } else { Use::Write });
    opened.map(drop).map_err(|error| {
        Fault::DriveConfig(format!(
            "Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: \
             {error} {}",
            path.display()
        ))
    })
}

/// A change of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartialDrive {
    /// Which, as in the path.
    #[schemars(regex(pattern = ID_PATTERN))]
    pub drive_id: String,
    /// Another file; the same one is looked at again.
    #[serde(default)]
    pub path_on_host: Option<PathBuf>,
    /// Other limits.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiter>,
}
