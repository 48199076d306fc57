//! The socket device, and its socket on the host.

use umbra_devices::virtio::{Vsock, VsockOptions};

use crate::error::BuildError;
use crate::spec::VsockSpec;

/// Makes the device.
pub fn device(id: &str, spec: &VsockSpec) -> Result<Vsock, BuildError> {
    let options = VsockOptions {
        name: id.to_owned(),
        cid: spec.cid,
        path: spec.path.clone(),
        stays: spec.stays,
    };
    Vsock::new(options).map_err(|source| BuildError::Vsock {
        id: id.to_owned(),
        source,
    })
}
