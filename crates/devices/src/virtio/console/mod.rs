//! The console device (virtio 1.3, 5.3): ports of bytes, the first of which may be a console.
//!
//! ```text
//!   queues 0, 1      port 0   ┐                    PortHost of each: a terminal,
//!   queues 4, 5 …    port 1 … ├── Ports, a thread ── a socket that listens, a file
//!   queues 2, 3      control  ┘
//!   ConsoleControl ── size of the terminal ──> configuration, and RESIZE
//!   emerg_wr ── without a driver: at once; else by the thread ──> port 0
//! ```
//!
//! Ports are told by control messages (VIRTIO_CONSOLE_F_MULTIPORT): which there are, what they are called, and
//! whether somebody is at the host's end. A single console has them, too: Linux says by one when it takes
//! input, and drops what comes before. A driver without them has the first port, and that is always open.
//!
//! **Bytes wait where they are.** What the host's end does not take stays in the driver's buffer, and what the
//! guest does not read stays in the host's socket: the device holds one piece at a time. While nobody is at the
//! host's end of a port its output is dropped, as on a line that is not plugged in; an end that is there and
//! takes nothing holds the guest's writers up. A driver that has not opened a port gets nothing by it.
//!
//! **Size.** The control message RESIZE has columns first, as the specification (5.3.6.2) and Debian's kernels
//! 6.1 have it. QEMU and other versions of Linux have rows first: there a size arrives the other way round.
//!
//! Not here: ports that come and go while the driver runs.

mod host;
mod message;
mod port;
mod shared;
mod work;

use std::io;
use std::sync::Arc;

use umbra_virtio::{ActivateError, Activation, Device, Features, Queue, Worker, read_config};

use port::Port;
use shared::Shared;
use work::{Ports, Sorted};

pub use host::{FileHost, ListenError, PortHost, SocketHost, Wants};
pub use shared::ConsoleControl;

/// Feature bits (5.3.3).
mod feature {
    use umbra_virtio::Features;

    pub const SIZE: Features = Features::bit(0);
    pub const MULTIPORT: Features = Features::bit(1);
    pub const EMERG_WRITE: Features = Features::bit(2);
}

/// A port of a device to be made.
pub struct PortOptions {
    /// What the guest calls it; a console needs no name.
    pub name: Option<String>,
    /// It is a console: the guest may have its messages and logins there.
    pub is_console: bool,
    /// The host's end.
    pub host: Box<dyn PortHost>,
}

/// How a console device is made.
pub struct ConsoleOptions {
    /// What the log calls it.
    pub name: String,
    /// Its ports, 1 to [`Console::PORTS_MAX`].
    pub ports: Vec<PortOptions>,
    /// The first port has a size, which may change: columns and rows.
    pub size: Option<(u16, u16)>,
}

/// The device.
pub struct Console {
    shared: Arc<Shared>,
    sizes: Vec<u16>,
    resizable: bool,
    /// While no thread has them; gone if one has panicked.
    ports: Option<Vec<Port>>,
    worker: Option<Worker<Ports>>,
}

impl Console {
    /// Its device type.
    pub const ID: u32 = 3;
    /// The most ports.
    pub const PORTS_MAX: usize = 31;
    /// The longest name of a port, in bytes.
    pub const NAME_MAX: usize = 128;
    const QUEUE_SIZE: u16 = 128;

    /// Makes a device, and what changes it while it runs.
    ///
    /// # Errors
    /// If the host refuses an event.
    ///
    /// # Panics
    /// If there is no port, there are too many, or a name is too long.
    pub fn new(options: ConsoleOptions) -> io::Result<(Self, ConsoleControl)> {
        let count = options.ports.len();
        assert!((1..=Self::PORTS_MAX).contains(&count), "1 to 31 ports");
        let resizable = options.size.is_some();
        let shared = Arc::new(Shared::new(options.name, count, options.size)?);
        let console = Self {
            shared: shared.clone(),
            sizes: vec![Self::QUEUE_SIZE; 2 + 2 * count],
            resizable,
            ports: Some(options.ports.into_iter().map(Port::new).collect()),
            worker: None,
        };
        Ok((console, ConsoleControl(shared)))
    }
}

impl Device for Console {
    fn id(&self) -> u32 {
        Self::ID
    }

    fn features(&self) -> Features {
        let mut features = Features::RINGS
            .with(feature::EMERG_WRITE)
            .with(feature::MULTIPORT);
        if self.resizable {
            features = features.with(feature::SIZE);
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.shared.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let at = shared::EMERGENCY.checked_sub(offset);
        let byte = at.and_then(|at| data.get(usize::try_from(at).ok()?));
        let Some(byte) = byte else { return };
        match &mut self.ports {
            // A driver need not be there, nor have done anything (5.3.4).
            Some(ports) => ports[0].cry(&[*byte]),
            None => self.shared.cry(*byte),
        }
    }

    fn config_generation(&self) -> u32 {
        self.shared.generation()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let host = |source| ActivateError::Host {
            what: "a thread",
            source,
        };
        let lost = || host(io::Error::other("the one before has panicked"));
        let mut ports = self.ports.take().ok_or_else(lost)?;
        let has_control = activation.features.has(feature::MULTIPORT);
        if !has_control {
            ports[0].is_open = true;
        }
        let Activation {
            features,
            queues,
            memory,
            interrupt,
        } = activation;
        let control = Sorted::sort(queues, &mut ports, has_control);
        let sized = features.has(feature::SIZE);
        let ports = Ports::new(
            self.shared.clone(),
            (ports, control),
            sized,
            memory,
            interrupt,
        );
        // A thread that does not start takes the ports with it.
        let worker = Worker::start("virtio-console", move |stop| ports.run(stop));
        self.worker = Some(worker.map_err(host)?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        let Some(ports) = self.worker.take().and_then(Worker::stop) else {
            return Vec::new();
        };
        let (ports, queues) = ports.dismantle();
        self.ports = Some(ports);
        queues
    }

    fn reset(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            port.reset();
        }
    }
}

#[cfg(test)]
mod tests;
