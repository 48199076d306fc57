//! `/pmem/{id}`: files as memory.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use umbra_vmm::{PmemSpec, VirtioKind};

use super::ID_PATTERN;
use super::limits::RateLimiter;
use crate::firecracker::fault::Fault;
use crate::firecracker::files::{self, Use};

/// A file that the guest has as memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pmem {
    /// Its name, as in the path.
    #[schemars(regex(pattern = ID_PATTERN))]
    pub id: String,
    /// The file.
    pub path_on_host: PathBuf,
    /// It has the root file system. One device can.
    #[serde(default)]
    pub root_device: bool,
    /// The guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// Limits of its flushes.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiter>,
}

impl Pmem {
    /// Checks it by itself: that its file can be opened, and has something in it.
    pub fn check(&self) -> Result<(), Fault> {
        let cannot = |why: String| {
            Fault::PmemDevice(format!(
                "Error backing file {:?}: {why}",
                self.path_on_host.display()
            ))
        };
        let how = if self.read_only {
            Use::Read
        } else {
            Use::Write
        };
        let file =
            files::open(&self.path_on_host, how).map_err(|error| cannot(error.to_string()))?;
        match file.metadata() {
            Ok(metadata) if metadata.is_file() && metadata.len() == 0 => {
                Err(cannot("it has no bytes".into()))
            }
            _ => Ok(()),
        }
    }

    /// The device that it asks for.
    pub fn kind(&self) -> VirtioKind {
        VirtioKind::Pmem(PmemSpec {
            read_only: self.read_only,
            limits: self.rate_limiter.unwrap_or_default().limits(),
            ..PmemSpec::new(&self.path_on_host)
        })
    }
}

/// A change of one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PartialPmem {
    /// Which, as in the path.
    #[schemars(regex(pattern = ID_PATTERN))]
    pub id: String,
    /// Other limits.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiter>,
}
