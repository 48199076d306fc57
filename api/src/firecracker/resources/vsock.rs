//! `/vsock`: sockets between guest and host.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use umbra_vmm::{VirtioKind, VsockSpec};

use crate::firecracker::fault::Fault;

/// A socket device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// The guest's context identifier, from 3 on: a machine with another one does not start.
    pub guest_cid: u32,
    /// The unix socket that is made for programs of the host.
    pub uds_path: PathBuf,
    /// A name; deprecated, and of no use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub vsock_id: Option<String>,
}

impl Vsock {
    /// Checks that the socket can be made.
    pub fn check(&self) -> Result<(), Fault> {
        let cannot = |why: &str| {
            Fault::VsockConfig(format!(
                "Cannot create backend for vsock device: Error binding to the host-side Unix socket: {}: {why}",
                self.uds_path.display()
            ))
        };
        if std::fs::symlink_metadata(&self.uds_path).is_ok() {
            return Err(cannot("Address in use (os error 98)"));
        }
        let folder = self
            .uds_path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        match folder {
            Some(folder) if !folder.is_dir() => {
                Err(cannot("No such file or directory (os error 2)"))
            }
            _ => Ok(()),
        }
    }

    /// The device that it asks for.
    pub fn kind(&self) -> VirtioKind {
        VirtioKind::Vsock(VsockSpec {
            // Clients of Firecracker remove it themselves.
            stays: true,
            ..VsockSpec::new(self.guest_cid.into(), &self.uds_path)
        })
    }
}
