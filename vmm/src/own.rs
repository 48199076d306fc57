//! What an embedder brings along: devices and processors of its own, by trait.

use std::fmt;
use std::sync::Arc;

use umbra_bus::{Bus, MmioDevice, PioDevice, Ports};
use umbra_clock::Clock;
use umbra_cpu::{Backend, CpuError};
use umbra_slots::{AddressSpace, GpaRange};
use umbra_virtio::Device;

use crate::error::BuildError;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A virtio device of one's own: what makes it. It is called whenever the device is made: when a machine is built, each
/// time that it is reset, and when the device is added to one that runs.
#[derive(Clone)]
pub struct OwnDevice(Arc<dyn Fn() -> Result<Box<dyn Device>, Failure> + Send + Sync>);

impl OwnDevice {
    /// Takes what makes the device, or tells why it cannot be made.
    pub fn new<D, E>(make: impl Fn() -> Result<D, E> + Send + Sync + 'static) -> Self
    where
        D: Device + 'static,
        E: Into<Failure>,
    {
        Self(Arc::new(move || match make() {
            Ok(device) => Ok(Box::new(device)),
            Err(error) => Err(error.into()),
        }))
    }

    pub(crate) fn make(&self, id: &str) -> Result<Box<dyn Device>, BuildError> {
        (self.0)().map_err(|source| BuildError::Own {
            id: id.to_owned(),
            source,
        })
    }
}

/// One is equal to itself.
impl PartialEq for OwnDevice {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for OwnDevice {}

impl fmt::Debug for OwnDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnDevice")
    }
}

/// What a processor of one's own is made for.
pub struct BackendParts {
    /// The map of the machine's memory, in which its RAM is.
    pub space: Arc<AddressSpace>,
    /// The guest's time.
    pub clock: Clock,
    /// Number of processors.
    pub cpus: u32,
}

/// Makes what executes the guest; once for each life of the machine.
pub(crate) type MakeBackend =
    Arc<dyn Fn(BackendParts) -> Result<Arc<dyn Backend>, CpuError> + Send + Sync>;

/// What is in every life of a machine, and no part of its specification.
#[derive(Clone, Default)]
pub(crate) struct Own {
    pub backend: Option<MakeBackend>,
    pub mmio: Vec<(GpaRange, MmioDevice)>,
    pub ports: Vec<(u16, u16, PioDevice)>,
    /// It is counted and sampled where the software processor's time goes.
    pub measure: bool,
}

impl Own {
    /// Puts devices at their places.
    pub fn add(&self, bus: &Bus, ports: &Ports) -> Result<(), BuildError> {
        for (range, device) in &self.mmio {
            bus.insert(*range, device.clone())?;
        }
        for (first, len, device) in &self.ports {
            ports.insert(*first, *len, device.clone())?;
        }
        Ok(())
    }
}
