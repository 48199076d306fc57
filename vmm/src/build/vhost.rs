//! Devices whose work is done by a back end.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use umbra_slots::AddressSpace;
use umbra_vhost::{BackEndError, Hub, VhostUser, VhostUserOptions};

use super::virtio::Surroundings;
use crate::error::BuildError;
use crate::spec::VhostUserSpec;

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
