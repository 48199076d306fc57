//! The control queue of an interface of the kernel's (virtio 1.3, 5.1.6.5): how many pairs of queues are in use.
//!
//! The kernel's vhost knows no commands, and most would be for filters that it has not. The one that matters is for an
//! interface of several pairs, of which the driver uses one until it says how many.

use std::sync::Arc;

use umbra_slots::DmaMemory;
use umbra_virtio::ChainBuffer;
use vm_memory::GuestMemoryError;

use super::net::Ports;
use crate::session::{gather, scatter};

const OK: u8 = 0;
const ERROR: u8 = 1;
/// VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET.
const PAIRS: [u8; 2] = [4, 0];

/// Who obeys.
#[derive(Clone, Debug)]
pub struct Commands {
    queue: u16,
    ports: Arc<Ports>,
}

impl Commands {
    /// Commands that come by a queue, for an interface of which one pair is in use.
    pub fn new(queue: u16, ports: Arc<Ports>) -> Self {
        Self { queue, ports }
    }

    /// Returns by which queue they come.
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Does what a chain says; returns how many bytes were written.
    ///
    /// # Errors
    /// If its memory is gone.
    pub fn obey(
        &self,
        buffers: &[ChainBuffer],
        memory: &DmaMemory,
    ) -> Result<u32, GuestMemoryError> {
        let [class, command, low, high] = gather(buffers, memory)?;
        let count = usize::from(u16::from_le_bytes([low, high]));
        let known = [class, command] == PAIRS && (1..=self.ports.len()).contains(&count);
        let answer = match known.then(|| self.ports.enable(count)) {
            Some(Ok(())) => OK,
            Some(Err(error)) => {
                tracing::warn!(%error, count, "the interface does not use so many queues");
                ERROR
            }
            None => ERROR,
        };
        scatter(buffers, memory, &[answer])
    }
}
