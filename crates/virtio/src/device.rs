//! What a device is, whichever transport it is behind.

use std::io;
use std::sync::Arc;

use umbra_slots::DmaSpace;

use crate::{Features, Interrupt, Queue, QueueError};

/// A virtio device.
///
/// Its transport owns it and calls it under the transport's lock, on the thread of the processor that
/// accesses a register: no method may wait for a processor. The work on queues is done elsewhere, on a
/// thread of the device's own, between [`activate`](Self::activate) and
/// [`deactivate`](Self::deactivate) ([`QueueWorker`](crate::QueueWorker) is enough for most).
pub trait Device: Send {
    /// Returns the device type (virtio 1.3, 5).
    fn id(&self) -> u32;

    /// Returns what the device offers; the same every time. [`Features::VERSION_1`] is always added.
    fn features(&self) -> Features;

    /// Returns the largest size of each queue: powers of two, 32768 at most; the same every time.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the device-specific configuration into `data`, which is zeros: bytes beyond its end stay
    /// as they are. Any offset, 1 to 8 bytes.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = (offset, data);
    }

    /// Writes the device-specific configuration. Any offset, 1 to 8 bytes; what cannot be written is
    /// dropped.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Returns a number that is another one whenever the configuration has changed by itself. Both
    /// change in one step: who reads the number, the configuration, and the same number again has
    /// read one configuration (virtio 1.3, 2.5).
    fn config_generation(&self) -> u32 {
        0
    }

    /// Begins to work. From now on notifications of the driver signal the queues' events; the first
    /// may have been before.
    ///
    /// # Errors
    /// If the host refuses what is needed. The device then needs a reset and is not active.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops working. When this returns the device neither touches guest memory nor notifies the
    /// driver, and whatever it had taken from a queue is completed or given up. Returns the queues as
    /// far as the device has come, so that it can be activated again and go on.
    ///
    /// Only called when active. Waits for work in progress, which has to be short.
    fn deactivate(&mut self) -> Vec<Queue>;

    /// Forgets what a driver has told it other than by queues and features. Called when the driver
    /// resets the device, after [`deactivate`](Self::deactivate).
    fn reset(&mut self) {}
}

/// What a device works with.
#[derive(Debug)]
pub struct Activation {
    /// What the driver accepted.
    pub features: Features,
    /// The queues that the driver has set up, by ascending index; it may leave some out.
    pub queues: Vec<Queue>,
    /// Guest memory.
    pub memory: DmaSpace,
    /// The way to notify the driver.
    pub interrupt: Arc<Interrupt>,
}

/// Why a device cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivateError {
    /// A queue is nothing that a device could work with.
    #[error("the driver has set up queue {queue} wrongly")]
    Queue {
        /// Which.
        queue: u16,
        /// What is wrong.
        #[source]
        source: QueueError,
    },
    /// The host refused.
    #[error("the host refused {what}")]
    Host {
        /// What was asked for.
        what: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
}

/// Reads from a configuration that is bytes in memory, for [`Device::read_config`].
pub fn read_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|at| config.get(at..));
    for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_beyond_the_end_of_a_configuration_are_left() {
        let table = [
            (0, [1, 2, 3, 0]),
            (2, [3, 0, 0, 0]),
            (3, [0; 4]),
            (u64::MAX, [0; 4]),
        ];
        for (offset, expected) in table {
            let mut data = [0; 4];
            read_config(&[1, 2, 3], offset, &mut data);
            assert_eq!(data, expected, "{offset}");
        }
    }
}
