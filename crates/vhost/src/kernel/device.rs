//! A device whose work the host's kernel does.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use umbra_net::{Mac, Port};
use umbra_virtio::{ActivateError, Activation, Device, Event, Features, Queue, Worker};

use super::commands::Commands;
use super::net::{MRG_RXBUF, Net, Ports};
use super::vdpa::Vdpa;
use super::vsock::Vsock;
use crate::activity::Activity;
use crate::back_end::BackEnd;
use crate::channel::host;
use crate::config::Config;
use crate::gate::Gate;
use crate::kind::DEVICE_BITS;
use crate::link::{BackEndState, Link};
use crate::relay::{Loss, Relay};
use crate::session::Session;
use crate::{BackEndError, Hub};

/// Feature bits of an interface (virtio 1.3, 5.1.3).
mod feature {
    use umbra_virtio::Features;

    pub const MTU: Features = Features::bit(3);
    pub const MAC: Features = Features::bit(5);
    pub const STATUS: Features = Features::bit(16);
    pub const CTRL_VQ: Features = Features::bit(17);
    pub const MQ: Features = Features::bit(22);
    /// CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6, HOST_ECN.
    pub const OFFLOADS: Features = Features::from_low(0b11 | 0b111 << 7 | 0b111 << 11);
}

/// The device type of an interface, and that of sockets.
const NET: u32 = 1;
const VSOCK: u32 = 19;
/// Descriptors of a queue of frames, of one of packets, and of the one for events.
const NET_QUEUE: u16 = 256;
const VSOCK_QUEUE: u16 = 128;
const EVENT_QUEUE: u16 = 8;

/// What the log says of a device whose node is lost.
const MEANWHILE: &str = "it does nothing until its driver resets it";

/// An interface of the kernel's.
pub struct VhostNetOptions {
    /// What the device is called, for the log.
    pub name: String,
    /// Where the kernel's node is, as [`nodes::NET`](super::nodes::NET).
    pub node: PathBuf,
    /// Queues of one TAP interface, a pair of the guest's for each: 1 to 16.
    pub ports: Vec<Box<dyn Port>>,
    /// Its address.
    pub mac: Mac,
    /// The largest frame without its Ethernet header; the driver's own idea if there is none.
    pub mtu: Option<u16>,
}

/// Sockets of the kernel's.
#[derive(Clone, Debug)]
pub struct VhostVsockOptions {
    /// What the device is called, for the log.
    pub name: String,
    /// Where the kernel's node is, as [`nodes::VSOCK`](super::nodes::VSOCK).
    pub node: PathBuf,
    /// The guest's context identifier: from 3 on, and no other guest's of this host.
    pub cid: u64,
}

/// A device of the host's that a guest may use.
#[derive(Clone, Debug)]
pub struct VdpaOptions {
    /// What the device is called, for the log.
    pub name: String,
    /// Where its node is, as `/dev/vhost-vdpa-0`.
    pub node: PathBuf,
}

/// The device.
pub struct VhostKernel {
    way: Way,
    id: u32,
    features: Features,
    sizes: Vec<u16>,
    shared: Arc<Shared>,
    activity: Activity,
    /// Stops when it is dropped.
    _watcher: Option<Worker<()>>,
}

/// How the kernel's part is had.
enum Way {
    Net { node: PathBuf, ports: Arc<Ports> },
    Vsock { node: PathBuf, cid: u64 },
    Vdpa { node: PathBuf, changed: Arc<Event> },
}

/// What the device's threads know.
struct Shared {
    link: Arc<Link<dyn BackEnd>>,
    /// Who has the configuration, if that is not the monitor.
    theirs: Mutex<Option<Arc<Vdpa>>>,
    config: Config,
}

impl VhostKernel {
    /// Makes an interface.
    ///
    /// # Errors
    /// If the kernel has no vhost-net, or does not give it to this process.
    pub fn net(options: VhostNetOptions, hub: &Arc<Hub>) -> Result<Self, BackEndError> {
        let ports = Ports::new(options.ports);
        let pairs = ports.len();
        let net = Arc::new(Net::open(&options.node, &ports)?);
        let mut features = net.offer().features.common(MRG_RXBUF);
        features = features.with(feature::MAC).with(feature::STATUS);
        if ports.can_offload() {
            features = features.with(feature::OFFLOADS);
        }
        if options.mtu.is_some() {
            features = features.with(feature::MTU);
        }
        let mut sizes = vec![NET_QUEUE; 2 * pairs];
        if pairs > 1 {
            features = features.with(feature::CTRL_VQ).with(feature::MQ);
            sizes.push(NET_QUEUE);
        }
        let mut config = options.mac.0.to_vec();
        // VIRTIO_NET_S_LINK_UP, the pairs, the MTU.
        for word in [1, pairs as u16, options.mtu.unwrap_or(0)] {
            config.extend(word.to_le_bytes());
        }
        let node = options.node;
        let link = link(&options.name, &node, net)?;
        let device = Self::new((Way::Net { node, ports }, NET), link, (config, None), hub);
        Ok(device.offering(features, sizes))
    }

    /// Makes a device of sockets.
    ///
    /// # Errors
    /// If the kernel has no vhost-vsock, does not give it to this process, or another guest has the identifier.
    pub fn vsock(options: VhostVsockOptions, hub: &Arc<Hub>) -> Result<Self, BackEndError> {
        let VhostVsockOptions { name, node, cid } = options;
        let vsock = Arc::new(Vsock::open(&node, cid)?);
        let features = vsock.offer().features;
        let link = link(&name, &node, vsock)?;
        let config = cid.to_le_bytes().to_vec();
        let device = Self::new((Way::Vsock { node, cid }, VSOCK), link, (config, None), hub);
        let sizes = vec![VSOCK_QUEUE, VSOCK_QUEUE, EVENT_QUEUE];
        Ok(device.offering(features.common(DEVICE_BITS), sizes))
    }

    /// Makes a device of one that the host has.
    ///
    /// # Errors
    /// If it is not there, somebody else has it, or it lacks what is needed.
    pub fn vdpa(options: VdpaOptions, hub: &Arc<Hub>) -> Result<Self, BackEndError> {
        let VdpaOptions { name, node } = options;
        let changed = Arc::new(Event::new().map_err(host("an event"))?);
        let vdpa = Arc::new(Vdpa::open(&node, &changed)?);
        let config = vdpa.config()?;
        let (features, id) = (vdpa.offer().features, vdpa.id);
        let count = vdpa.offer().queues.unwrap_or(1) as usize;
        let sizes = vec![vdpa.queue_size; count];
        let link = link(&name, &node, vdpa.clone())?;
        let way = Way::Vdpa {
            node,
            changed: changed.clone(),
        };
        let mut device = Self::new((way, id), link, (config, Some(vdpa)), hub);
        let shared = device.shared.clone();
        let watcher = Worker::start("vdpa-config", move |stop| shared.watch(&changed, stop));
        device._watcher = Some(watcher.map_err(host("a thread"))?);
        Ok(device.offering(features.common(DEVICE_BITS), sizes))
    }

    fn new(
        (way, id): (Way, u32),
        link: Arc<Link<dyn BackEnd>>,
        (bytes, theirs): (Vec<u8>, Option<Arc<Vdpa>>),
        hub: &Arc<Hub>,
    ) -> Self {
        hub.join(&link);
        Self {
            way,
            id,
            features: Features::NONE,
            sizes: Vec::new(),
            shared: Arc::new(Shared {
                link,
                theirs: Mutex::new(theirs),
                config: Config::new(bytes),
            }),
            activity: Activity::default(),
            _watcher: None,
        }
    }

    fn offering(self, features: Features, sizes: Vec<u16>) -> Self {
        Self {
            features: features.with(Features::RINGS),
            sizes,
            ..self
        }
    }

    /// Returns what tells how the kernel's part is.
    pub fn control(&self) -> VhostKernelControl {
        VhostKernelControl(self.shared.clone())
    }

    /// Opens the node anew.
    fn reopen(&self) -> Result<(), BackEndError> {
        let channel: Arc<dyn BackEnd> = match &self.way {
            Way::Net { node, ports } => Arc::new(Net::open(node, ports)?),
            Way::Vsock { node, cid } => Arc::new(Vsock::open(node, *cid)?),
            Way::Vdpa { node, changed } => {
                let vdpa = Arc::new(Vdpa::open(node, changed)?);
                *self.shared.theirs.lock() = Some(vdpa.clone());
                vdpa
            }
        };
        self.shared.link.set(channel);
        Ok(())
    }

    /// What is between a driver that accepts these features and the kernel.
    fn session(&self, features: Features) -> std::io::Result<Session> {
        Ok(match &self.way {
            Way::Net { ports, .. } => {
                ports.enable(1)?;
                let commands = match features.has(feature::MQ) {
                    true => 2 * ports.len() as u16,
                    false => 2,
                };
                Session::KernelNet(Commands::new(commands, ports.clone()))
            }
            Way::Vsock { .. } => Session::KernelSockets,
            Way::Vdpa { .. } => Session::None,
        })
    }
}

fn link(
    name: &str,
    node: &std::path::Path,
    channel: Arc<dyn BackEnd>,
) -> Result<Arc<Link<dyn BackEnd>>, BackEndError> {
    // It finishes what it has before it stops.
    Link::new(name, (node, MEANWHILE, Gate::new(false)), channel)
}

impl Shared {
    /// Waits for the configuration to change, until it is stopped.
    fn watch(&self, changed: &Event, stop: &Event) {
        loop {
            let mut watched = [
                PollFd::new(stop, PollFlags::IN),
                PollFd::new(changed, PollFlags::IN),
            ];
            // After a signal, or without memory, it is looked again.
            let _ = poll(&mut watched, None);
            if stop.take() {
                return;
            }
            if changed.take() {
                self.refresh_config();
            }
        }
    }

    /// Reads the configuration, and tells the driver if it has changed.
    fn refresh_config(&self) {
        let Some(theirs) = self.theirs.lock().clone() else {
            return;
        };
        let bytes = match theirs.config() {
            Ok(bytes) => bytes,
            Err(error) => {
                let device = self.link.name();
                tracing::debug!(device, %error, "a configuration cannot be read");
                return;
            }
        };
        self.config.replace(bytes);
    }
}

impl Device for VhostKernel {
    fn id(&self) -> u32 {
        self.id
    }

    fn features(&self) -> Features {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.shared.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let Some(theirs) = self.shared.theirs.lock().clone() else {
            return;
        };
        if !self.shared.config.has(offset, data.len()) {
            return;
        }
        // It is inside of the configuration, which is short.
        if let Err(error) = theirs.write_config(offset as u32, data) {
            let device = self.shared.link.name();
            tracing::debug!(device, %error, "the kernel does not take a configuration");
        }
        self.shared.refresh_config();
    }

    fn config_generation(&self) -> u32 {
        self.shared.config.generation()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let refused = |source| ActivateError::Host {
            what: "a thread, or queues of an interface",
            source,
        };
        if self.shared.link.channel().is_none() {
            let opened = self.reopen();
            opened.map_err(|error| ActivateError::Host {
                what: "a node of the kernel's",
                source: std::io::Error::other(error),
            })?;
        }
        // One that was stopped for a moment goes on.
        let session = match self.activity.session() {
            Some(session) => session,
            None => self.session(activation.features).map_err(refused)?,
        };
        let features = activation.features.common(DEVICE_BITS);
        let work = (features.with(Features::VERSION_1), activation.memory);
        let interrupt = activation.interrupt;
        self.shared.config.tell(Some(interrupt.clone()));
        let (link, what) = (self.shared.link.clone(), (session, Loss::NeedsReset));
        let relay = |left| Relay::new(link, what, work, interrupt, left);
        let begun = self.activity.begin(activation.queues, relay);
        begun.map_err(refused)
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        let queues = self.activity.end();
        self.shared.config.tell(None);
        queues
    }

    fn reset(&mut self) {
        self.activity.forget();
        let Some(channel) = self.shared.link.channel() else {
            return;
        };
        if let Err(error) = channel.reset() {
            self.shared.link.lose(&channel, &error);
        }
    }
}

/// A device as the machine sees it, whoever owns it. Any thread may use it.
#[derive(Clone)]
pub struct VhostKernelControl(Arc<Shared>);

impl VhostKernelControl {
    /// Tells how the kernel's part is.
    pub fn state(&self) -> BackEndState {
        self.0.link.state()
    }
}
