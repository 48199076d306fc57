//! vhost-net: for each pair of queues a node, which moves frames between them and a queue of a TAP interface.
//!
//! The interface reads and writes the header of virtio before each frame itself, 12 bytes of it, as it does for the
//! in-process device; so the kernel's vhost need not (`VHOST_NET_F_VIRTIO_NET_HDR` is not accepted). What a frame may
//! leave to its receiver is agreed on with the interface, not with vhost.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use umbra_net::{Offloads, Port};
use umbra_virtio::Features;

use super::node::{Node, Origin, pieces_max};
use crate::BackEndError;
use crate::back_end::{BackEnd, Changes, Offer};
use crate::channel::host;
use crate::link::Started;
use crate::ring::RINGS_AT;
use crate::table::Piece;

/// VIRTIO_NET_F_MRG_RXBUF.
pub const MRG_RXBUF: Features = Features::bit(15);
/// What vhost does, rather than the interface.
const THEIRS: Features = MRG_RXBUF
    .with(Features::VERSION_1)
    .with(Features::INDIRECT_DESC)
    .with(Features::EVENT_IDX);

const ORIGIN: Origin = Origin {
    module: "vhost_net",
    instead: "leave ',vhost' away: the interface works without it",
};

/// The host's end of an interface: a port for each pair of queues.
pub struct Ports(Mutex<Vec<Box<dyn Port>>>);

impl Ports {
    /// Takes ports, which are queues of one interface.
    pub fn new(ports: Vec<Box<dyn Port>>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(ports)))
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Tells whether frames may leave work to their receiver.
    pub fn can_offload(&self) -> bool {
        self.0.lock().iter().all(|port| port.can_offload())
    }

    /// Has frames come by the first ones, so many, only.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn enable(&self, count: usize) -> std::io::Result<()> {
        let mut ports = self.0.lock();
        let mut all = ports.iter_mut().enumerate();
        all.try_for_each(|(index, port)| port.enable(index < count))
    }

    /// Says what frames may leave to the driver. That is the same for all: it is the interface's.
    fn set_offloads(&self, offloads: Offloads) -> std::io::Result<()> {
        let mut ports = self.0.lock();
        // One that is detached takes none.
        ports
            .iter_mut()
            .take(1)
            .try_for_each(|port| port.set_offloads(offloads))
    }
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ports({})", self.len())
    }
}

/// The nodes of an interface.
#[derive(Debug)]
pub struct Net {
    /// None after the end.
    nodes: Mutex<Vec<Node>>,
    ports: Arc<Ports>,
    offer: Offer,
}

impl Net {
    /// Opens a node for each port.
    ///
    /// # Errors
    /// If there are none, or the kernel refuses.
    pub fn open(path: &Path, ports: &Arc<Ports>) -> Result<Self, BackEndError> {
        let nodes = (0..ports.len()).map(|_| Node::open(path, ORIGIN));
        let nodes: Vec<_> = nodes.collect::<Result<_, _>>()?;
        let each = nodes.iter().map(Node::features);
        let features = each.reduce(|all, one| Ok(all?.common(one?)));
        let features = features.unwrap_or(Ok(Features::NONE))?;
        if !features.has(Features::VERSION_1) {
            return Err(BackEndError::Lacks("VIRTIO_F_VERSION_1"));
        }
        Ok(Self {
            offer: offer(features.common(THEIRS), 2 * nodes.len()),
            nodes: Mutex::new(nodes),
            ports: ports.clone(),
        })
    }

    fn each(
        &self,
        call: impl FnMut(&Node) -> Result<(), BackEndError>,
    ) -> Result<(), BackEndError> {
        self.nodes.lock().iter().try_for_each(call)
    }
}

/// What a node with a table of memory offers.
pub fn offer(features: Features, queues: usize) -> Offer {
    Offer {
        features,
        queues: Some(queues as u64),
        pieces: pieces_max(),
        changes: Changes::Swaps,
        rings_at: RINGS_AT,
        has_config: false,
        resets: true,
    }
}

/// Which node a queue is on, and its number there.
fn place(ring: &Started) -> (usize, usize) {
    let index = usize::from(ring.index);
    (index / 2, index % 2)
}

impl BackEnd for Net {
    fn offer(&self) -> &Offer {
        &self.offer
    }

    fn cut(&self) {
        self.nodes.lock().clear();
    }

    fn set_features(&self, features: Features) -> Result<(), BackEndError> {
        let offloads = Offloads::accepted(features.low());
        let refused = host("the offloads of an interface");
        self.ports.set_offloads(offloads).map_err(refused)?;
        self.each(|node| node.accept(features.common(THEIRS)))
    }

    fn set_table(&self, pieces: &[Piece]) -> Result<(), BackEndError> {
        self.each(|node| node.set_table(pieces))
    }

    fn add_piece(&self, _: &Piece) -> Result<(), BackEndError> {
        Err(BackEndError::Lacks("pieces that come one by one"))
    }

    fn remove_piece(&self, _: &Piece) -> Result<(), BackEndError> {
        Err(BackEndError::Lacks("pieces that go one by one"))
    }

    fn start(&self, rings: &[Started]) -> Result<(), BackEndError> {
        let nodes = self.nodes.lock();
        let ports = self.ports.0.lock();
        let on = |ring: &Started| {
            let (node, index) = place(ring);
            let gone = BackEndError::Gone { request: "a start" };
            nodes
                .get(node)
                .map(|found| (found, node, index))
                .ok_or(gone)
        };
        for ring in rings {
            let (node, _, index) = on(ring)?;
            node.set_ring(index, ring)?;
        }
        for ring in rings {
            let (node, at, index) = on(ring)?;
            node.connect(index, Some(ports[at].fd()))?;
        }
        Ok(())
    }

    fn stop(&self, rings: &mut [Started]) -> Result<(), BackEndError> {
        let nodes = self.nodes.lock();
        let on = |ring: &Started| {
            let (node, index) = place(ring);
            nodes.get(node).map(|node| (node, index))
        };
        for (node, index) in rings.iter().filter_map(on) {
            node.connect(index, None)?;
        }
        for ring in rings {
            if let Some((node, index)) = on(ring) {
                ring.place.base = node.base(index)?;
            }
        }
        Ok(())
    }

    /// Nothing is left of what has stopped.
    fn reset(&self) -> Result<(), BackEndError> {
        Ok(())
    }
}
