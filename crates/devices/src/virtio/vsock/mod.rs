//! The socket device (virtio 1.3, 5.10): streams between programs of the guest and programs of the host.
//!
//! ```text
//!   a program of the host ── connect ──> PATH       "CONNECT PORT\n" ──> the guest's PORT
//!                                                    <── "OK HOST_PORT\n", then bytes
//!   a program of the guest ── connect ──> CID 2, PORT ──> PATH_PORT, which a program of the host serves
//! ```
//!
//! That is how Firecracker and Cloud Hypervisor have it: tools made for those work here.
//!
//! One thread has all connections: it reads from sockets straight into the driver's buffers, one packet of
//! one connection after the other. What the guest sends goes to the host's socket at once, and waits where
//! that takes no more: at most as much as the guest was told that there is room for. A guest that sends more
//! than that, or what makes no sense for a connection, loses the connection; a driver whose chains make no
//! sense has the device ask for a reset.
//!
//! Connections outlive a pause ([`Device::deactivate`] and [`Device::activate`] again), and end with a reset
//! by the driver, or when the device needs one. While the device does not work, programs that connect wait.
//!
//! Not there: SOCK_SEQPACKET (VIRTIO_VSOCK_F_SEQPACKET), and the event queue has no events: its only one tells
//! a guest that it has been moved.

mod connection;
mod credit;
mod handshake;
mod packet;
mod room;
mod socket;
mod switch;
mod work;

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use umbra_virtio::{ActivateError, Activation, Device, Features, Queue, Worker, read_config};

use socket::Listener;
use switch::Switch;
use work::{Queues, Work};

pub use socket::{VSOCK_PATH_MAX, VsockError};

/// Feature bits (5.10.3).
mod feature {
    use umbra_virtio::Features;

    pub const STREAM: Features = Features::bit(0);
    pub const NO_IMPLIED_STREAM: Features = Features::bit(2);
}

/// The number of a socket.
type Id = u64;

/// What a socket device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockOptions {
    /// What the log calls it.
    pub name: String,
    /// The guest's context identifier, one of [`Vsock::CIDS`].
    pub cid: u64,
    /// Where programs of the host connect. Nothing is there yet.
    pub path: PathBuf,
    /// The socket's file is not removed with the device.
    pub stays: bool,
}

/// The device.
pub struct Vsock {
    cid: u64,
    /// Where it does not run. One whose thread has panicked is gone.
    switch: Option<Switch>,
    running: Option<Worker<Work>>,
    /// Since when it does not run.
    idle: Instant,
}

impl Vsock {
    /// Its device type.
    pub const ID: u32 = 19;
    /// The context identifiers that a guest may have; others are reserved (5.10.4).
    pub const CIDS: std::ops::RangeInclusive<u64> = 3..=0xffff_fffe;
    const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

    /// Makes a device, and the socket that programs connect to. Its file is removed with the device, unless it stays.
    ///
    /// # Errors
    /// If something is at the path, or the host refuses.
    ///
    /// # Panics
    /// If the context identifier is reserved.
    pub fn new(options: VsockOptions) -> Result<Self, VsockError> {
        let VsockOptions {
            name,
            cid,
            path,
            stays,
        } = options;
        assert!(Self::CIDS.contains(&cid), "CID {cid} is reserved");
        let listener = Listener::new(&path, stays)?;
        let switch = Switch::new(name, cid, listener);
        let switch = switch.map_err(|source| VsockError::Host { path, source })?;
        Ok(Self {
            cid,
            switch: Some(switch),
            running: None,
            idle: Instant::now(),
        })
    }
}

impl Device for Vsock {
    fn id(&self) -> u32 {
        Self::ID
    }

    fn features(&self) -> Features {
        Features::RINGS
            .with(feature::STREAM)
            .with(feature::NO_IMPLIED_STREAM)
    }

    fn queue_sizes(&self) -> &[u16] {
        &Self::QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            features,
            queues,
            memory,
            interrupt,
        } = activation;
        let host = |what| move |source| ActivateError::Host { what, source };
        let lost = || io::Error::other("its thread has failed before");
        let mut switch = self
            .switch
            .take()
            .ok_or_else(lost)
            .map_err(host("sockets"))?;
        let implied = !features.has(feature::NO_IMPLIED_STREAM);
        switch.streams = implied || features.has(feature::STREAM);
        switch.delay(self.idle.elapsed());
        let work = Work::new(switch, Queues::sort(queues), memory, interrupt);
        // A thread that does not start takes the sockets with it.
        let worker = Worker::start("virtio-vsock", move |stop| work.run(stop));
        self.running = Some(worker.map_err(host("a thread"))?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        let stopped = self.running.take().and_then(Worker::stop);
        self.idle = Instant::now();
        let Some((switch, queues)) = stopped.map(Work::dismantle) else {
            return Vec::new();
        };
        self.switch = Some(switch);
        queues
    }

    fn reset(&mut self) {
        if let Some(switch) = &mut self.switch {
            switch.clear();
        }
    }
}

#[cfg(test)]
mod tests;
