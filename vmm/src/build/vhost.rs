//! Devices whose work is done by a back end: of another process, or of the host's kernel.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use umbra_net::Mac;
use umbra_slots::AddressSpace;
use umbra_vhost::{
    BackEndError, Hub, VdpaOptions, VhostKernel, VhostNetOptions, VhostUser, VhostUserOptions,
    VhostVsockOptions, nodes,
};

use super::virtio::{Control, Made, Surroundings, connect};
use crate::error::BuildError;
use crate::spec::{NetSpec, VdpaSpec, VhostUserSpec, VhostVsockSpec};

/// How long a back end is waited for that may have been started a moment ago.
const WAIT: Duration = Duration::from_secs(5);

/// What they have in common, as soon as there is one.
#[derive(Default)]
pub struct Vhost(OnceLock<Arc<Hub>>);

impl Vhost {
    fn hub(&self, space: &Arc<AddressSpace>) -> Result<&Arc<Hub>, BackEndError> {
        if self.0.get().is_none() {
            let hub = Hub::new(space).map_err(|source| BackEndError::Host {
                what: "a thread",
                source,
            })?;
            // Devices are made one after the other.
            let _ = self.0.set(hub);
        }
        Ok(self.0.get().expect("it was set"))
    }
}

/// Makes one. Waits for its back end.
pub fn device(
    id: &str,
    spec: &VhostUserSpec,
    around: &Surroundings<'_>,
) -> Result<VhostUser, BuildError> {
    let options = VhostUserOptions {
        name: id.to_owned(),
        socket: spec.socket.clone(),
        kind: spec.kind.clone(),
        queues: spec.queues,
        queue_size: spec.queue_size,
        wait: WAIT,
    };
    let device = around
        .vhost
        .hub(around.space)
        .and_then(|hub| VhostUser::connect(options, hub));
    device.map_err(|source| BuildError::VhostUser {
        id: id.to_owned(),
        source,
    })
}

/// A device of the kernel's, with what tells how it is.
pub fn made(device: VhostKernel) -> Made {
    Made {
        control: Some(Control::VhostKernel(device.control())),
        ..Made::plain(device)
    }
}

/// Makes an interface whose frames the kernel moves.
pub fn net(id: &str, spec: &NetSpec, around: &Surroundings<'_>) -> Result<VhostKernel, BuildError> {
    let mac = spec.mac.unwrap_or_else(Mac::random);
    let (ports, _) = connect(&spec.host, mac, spec.mtu).map_err(|source| BuildError::Net {
        id: id.to_owned(),
        source,
    })?;
    let options = VhostNetOptions {
        name: id.to_owned(),
        node: nodes::NET.into(),
        ports,
        mac,
        mtu: spec.mtu,
    };
    kernel(id, around, |hub| VhostKernel::net(options, hub))
}

/// Makes sockets that the kernel connects.
pub fn vsock(
    id: &str,
    spec: &VhostVsockSpec,
    around: &Surroundings<'_>,
) -> Result<VhostKernel, BuildError> {
    let options = VhostVsockOptions {
        name: id.to_owned(),
        node: nodes::VSOCK.into(),
        cid: spec.cid,
    };
    kernel(id, around, |hub| VhostKernel::vsock(options, hub))
}

/// Makes a device of one of the host's.
pub fn vdpa(
    id: &str,
    spec: &VdpaSpec,
    around: &Surroundings<'_>,
) -> Result<VhostKernel, BuildError> {
    let options = VdpaOptions {
        name: id.to_owned(),
        node: spec.node.clone(),
    };
    kernel(id, around, |hub| VhostKernel::vdpa(options, hub))
}

fn kernel(
    id: &str,
    around: &Surroundings<'_>,
    make: impl FnOnce(&Arc<Hub>) -> Result<VhostKernel, BackEndError>,
) -> Result<VhostKernel, BuildError> {
    let device = around.vhost.hub(around.space).and_then(make);
    device.map_err(|source| BuildError::VhostKernel {
        id: id.to_owned(),
        source,
    })
}
