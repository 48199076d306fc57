//! The network device (virtio 1.3, 5.1): frames between the driver's queues and ports of the host.
//!
//! ```text
//!   pair n, a thread each:   transmit queue ──> Pair ──> Port n
//!                            receive queue  <──      <──
//!   pair 0 besides:          control queue: how many pairs are in use, the address
//! ```
//!
//! Frames are copied through a buffer of the pair's, so what the driver changes meanwhile is not seen,
//! and a port gets each in one piece. A driver that takes merged buffers gets a frame in as many as it
//! needs, all in one step.
//!
//! Frames to receive wait in the port while the driver has no buffers, and frames to send wait in the
//! queue while the port has no room. What may be left to the receiver (checksums, segmentation) is offered
//! if the ports can do it. A port that has gone (its interface was deleted, its server ended) is a link
//! that is down: the driver is told, the log says it once, and the device lives on.
//!
//! Each direction has limits of its own, for all pairs together. A frame that has to wait for them is looked at again
//! when its tokens are there, or the limits are others: the thread sleeps until then, and serves the other direction.
//! While the link is down all frames are dropped at once, those that wait as well.
//!
//! Filters of addresses that the driver sets are accepted and not used: it sees all that the port gives.

mod control;
mod pair;
mod shared;
mod throttle;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use umbra_net::{Mac, Offloads, Port};
use umbra_virtio::{ActivateError, Activation, Device, Features, Queue, Worker, read_config};

use super::limiter::Limits;
use pair::{Pair, Queues, Source};
use shared::Shared;

pub use shared::{NetControl, NetStatistics};

/// Feature bits (5.1.3).
mod feature {
    use umbra_virtio::Features;

    pub const CSUM: Features = Features::bit(0);
    pub const GUEST_CSUM: Features = Features::bit(1);
    pub const MTU: Features = Features::bit(3);
    pub const MAC: Features = Features::bit(5);
    pub const GUEST_TSO4: Features = Features::bit(7);
    pub const GUEST_TSO6: Features = Features::bit(8);
    pub const GUEST_ECN: Features = Features::bit(9);
    pub const HOST_TSO4: Features = Features::bit(11);
    pub const HOST_TSO6: Features = Features::bit(12);
    pub const HOST_ECN: Features = Features::bit(13);
    pub const MRG_RXBUF: Features = Features::bit(15);
    pub const STATUS: Features = Features::bit(16);
    pub const CTRL_VQ: Features = Features::bit(17);
    pub const CTRL_RX: Features = Features::bit(18);
    pub const MQ: Features = Features::bit(22);
    pub const CTRL_MAC_ADDR: Features = Features::bit(23);
}

/// What a network device tells its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetOptions {
    /// What the log calls it.
    pub name: String,
    /// Its address.
    pub mac: Mac,
    /// The largest frame without its Ethernet header, 68 to 65535; the driver's own idea if there is none.
    pub mtu: Option<u16>,
    /// Limits of all that the driver receives.
    pub receive: Limits,
    /// Limits of all that it sends.
    pub transmit: Limits,
}

/// The device.
pub struct Net {
    shared: Arc<Shared>,
    mtu: Option<u16>,
    can_offload: bool,
    sizes: Vec<u16>,
    /// Of the pairs that do not run. One whose thread has panicked is gone.
    sources: Vec<Option<Source>>,
    running: Vec<Worker<Pair>>,
}

impl Net {
    /// Its device type.
    pub const ID: u32 = 1;
    /// The most pairs of queues.
    pub const MAX_PAIRS: usize = 16;
    const QUEUE_SIZE: u16 = 256;

    /// Makes a device with a pair of queues for each port, and what changes it while it runs.
    ///
    /// # Errors
    /// If the host refuses events.
    ///
    /// # Panics
    /// If there is no port, or there are more than [`MAX_PAIRS`](Self::MAX_PAIRS).
    pub fn new(ports: Vec<Box<dyn Port>>, options: NetOptions) -> io::Result<(Self, NetControl)> {
        assert!(
            (1..=Self::MAX_PAIRS).contains(&ports.len()),
            "1 to 16 pairs"
        );
        let shared = Arc::new(Shared::new(&options, ports.len())?);
        let net = Self {
            shared: shared.clone(),
            mtu: options.mtu,
            can_offload: ports.iter().all(|port| port.can_offload()),
            sizes: vec![Self::QUEUE_SIZE; 2 * ports.len() + 1],
            sources: ports.into_iter().map(idle).collect(),
            running: Vec::new(),
        };
        Ok((net, NetControl(shared)))
    }

    fn pairs(&self) -> usize {
        self.sources.len()
    }

    fn start(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            features,
            queues,
            memory,
            interrupt,
        } = activation;
        let host = |what| move |source| ActivateError::Host { what, source };
        let offloads = Offloads::accepted(features.low());
        let control_at = match features.has(feature::MQ) {
            true => 2 * self.pairs(),
            false => 2,
        };
        let mut sorted = sort(queues, self.pairs(), control_at);
        self.shared.begin(&interrupt);
        for (index, slot) in self.sources.iter_mut().enumerate() {
            let queues = std::mem::take(&mut sorted[index]);
            if queues.is_empty() {
                continue;
            }
            let lost = || io::Error::other("its thread has panicked before");
            let mut source = slot.take().ok_or_else(lost).map_err(host("a port"))?;
            let port = &mut source.port;
            // A queue that is not in use takes no offloads; the thread switches it off again.
            if let Err(error) = port.enable(true).and_then(|()| port.set_offloads(offloads)) {
                *slot = Some(source);
                return Err(host("the offloads of a port")(error));
            }
            let pair = Pair::new(
                index,
                source,
                queues,
                features.has(feature::MRG_RXBUF),
                self.shared.clone(),
                memory.clone(),
                interrupt.clone(),
            );
            // A thread that does not start takes the port with it.
            let worker = Worker::start(&format!("virtio-net {index}"), move |stop| pair.run(stop));
            self.running.push(worker.map_err(host("a thread"))?);
        }
        Ok(())
    }

    /// Stops all pairs, and takes ports and queues back.
    fn stop(&mut self) -> Vec<Queue> {
        let mut queues = Vec::new();
        for worker in self.running.drain(..) {
            if let Some(pair) = worker.stop() {
                let (index, source, left) = pair.dismantle();
                self.sources[index] = Some(source);
                queues.extend(left);
            }
        }
        self.shared.end();
        queues.sort_by_key(Queue::index);
        queues
    }
}

/// A port from which nothing was taken.
fn idle(port: Box<dyn Port>) -> Option<Source> {
    Some(Source {
        port,
        pending: None,
    })
}

/// Gives each pair its queues, and pair 0 the control queue.
fn sort(queues: Vec<Queue>, pairs: usize, control_at: usize) -> Vec<Queues> {
    let mut sorted: Vec<Queues> = (0..pairs).map(|_| Queues::default()).collect();
    for queue in queues {
        let index = usize::from(queue.index());
        if index == control_at {
            sorted[0].control = Some(queue);
        } else if let Some(pair) = sorted.get_mut(index / 2) {
            match index % 2 {
                0 => pair.receive = Some(queue),
                _ => pair.transmit = Some(queue),
            }
        }
    }
    sorted
}

impl Device for Net {
    fn id(&self) -> u32 {
        Self::ID
    }

    fn features(&self) -> Features {
        use feature::*;
        let mut features = [MAC, MRG_RXBUF, STATUS, CTRL_VQ, CTRL_RX, CTRL_MAC_ADDR]
            .into_iter()
            .fold(Features::RINGS, Features::with);
        if self.can_offload {
            features = [
                CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6, HOST_ECN,
            ]
            .into_iter()
            .fold(features, Features::with);
        }
        if self.mtu.is_some() {
            features = features.with(MTU);
        }
        if self.pairs() > 1 {
            features = features.with(MQ);
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = Vec::with_capacity(12);
        config.extend(self.shared.mac().0);
        config.extend(u16::from(self.shared.is_up()).to_le_bytes());
        config.extend((self.pairs() as u16).to_le_bytes());
        config.extend(self.mtu.unwrap_or(0).to_le_bytes());
        read_config(&config, offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.shared.generation.load(Ordering::Acquire)
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let started = self.start(activation);
        if started.is_err() {
            drop(self.stop());
        }
        started
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.stop()
    }

    fn reset(&mut self) {
        self.shared.reset();
        for source in self.sources.iter_mut().flatten() {
            // It was for the driver that is no more.
            source.pending = None;
        }
    }
}

#[cfg(test)]
mod tests;
