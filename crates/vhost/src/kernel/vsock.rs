//! vhost-vsock: a node that connects the guest's sockets to the host's (`AF_VSOCK`), for one context identifier.
//!
//! It has the queues for packets. The third one, for events, stays with the monitor and is never used: the only event
//! is that all connections are lost, and they are lost when the device is reset, as the driver knows by itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use umbra_virtio::Features;

use super::net::offer;
use super::node::{Node, Origin};
use crate::BackEndError;
use crate::back_end::{BackEnd, Offer};
use crate::link::Started;
use crate::table::Piece;

const ORIGIN: Origin = Origin {
    module: "vhost_vsock",
    instead: "say 'path=' of a unix socket instead of 'vhost': sockets work without it",
};
/// Queues of packets.
const QUEUES: usize = 2;

/// The node.
#[derive(Debug)]
pub struct Vsock {
    /// None after the end.
    node: Mutex<Option<Node>>,
    path: PathBuf,
    cid: u64,
    /// It has run since it was opened, so that there may be connections.
    has_run: AtomicBool,
    offer: Offer,
}

impl Vsock {
    /// Opens it for a guest. From then on the identifier is that guest's.
    ///
    /// # Errors
    /// If there is none, the identifier is another guest's, or the kernel refuses.
    pub fn open(path: &Path, cid: u64) -> Result<Self, BackEndError> {
        let node = Node::open(path, ORIGIN)?;
        let features = node.features()?;
        if !features.has(Features::VERSION_1) {
            return Err(BackEndError::Lacks("VIRTIO_F_VERSION_1"));
        }
        node.set_cid(cid)?;
        Ok(Self {
            node: Mutex::new(Some(node)),
            path: path.to_owned(),
            cid,
            has_run: AtomicBool::new(false),
            offer: offer(features.common(THEIRS), QUEUES),
        })
    }

    fn on<T>(
        &self,
        request: &'static str,
        call: impl FnOnce(&Node) -> Result<T, BackEndError>,
    ) -> Result<T, BackEndError> {
        let node = self.node.lock();
        call(node.as_ref().ok_or(BackEndError::Gone { request })?)
    }
}

/// VIRTIO_VSOCK_F_STREAM, VIRTIO_VSOCK_F_SEQPACKET, and what is of the rings.
const THEIRS: Features = Features::from_low(0b11)
    .with(Features::VERSION_1)
    .with(Features::INDIRECT_DESC)
    .with(Features::EVENT_IDX);

impl BackEnd for Vsock {
    fn offer(&self) -> &Offer {
        &self.offer
    }

    fn cut(&self) {
        *self.node.lock() = None;
    }

    fn set_features(&self, features: Features) -> Result<(), BackEndError> {
        self.on("SET_FEATURES", |node| node.accept(features.common(THEIRS)))
    }

    fn set_table(&self, pieces: &[Piece]) -> Result<(), BackEndError> {
        self.on("SET_MEM_TABLE", |node| node.set_table(pieces))
    }

    fn add_piece(&self, _: &Piece) -> Result<(), BackEndError> {
        Err(BackEndError::Lacks("pieces that come one by one"))
    }

    fn remove_piece(&self, _: &Piece) -> Result<(), BackEndError> {
        Err(BackEndError::Lacks("pieces that go one by one"))
    }

    fn start(&self, rings: &[Started]) -> Result<(), BackEndError> {
        self.on("a start", |node| {
            for ring in rings {
                node.set_ring(ring.index.into(), ring)?;
            }
            // A driver that has taken one of them back sends nothing, and gets nothing.
            if rings.len() < QUEUES {
                return Ok(());
            }
            self.has_run.store(true, Ordering::Relaxed);
            node.set_running(1)
        })
    }

    fn stop(&self, rings: &mut [Started]) -> Result<(), BackEndError> {
        self.on("a stop", |node| {
            node.set_running(0)?;
            for ring in rings {
                ring.place.base = node.base(ring.index.into())?;
            }
            Ok(())
        })
    }

    /// Ends all connections: the host's programs hear of it, and a guest that begins anew knows none of them. Only a
    /// node that is closed does that.
    fn reset(&self) -> Result<(), BackEndError> {
        let mut open = self.node.lock();
        if self.has_run.swap(false, Ordering::Relaxed) && open.take().is_some() {
            let node = Node::open(&self.path, ORIGIN)?;
            node.set_cid(self.cid)?;
            *open = Some(node);
        }
        Ok(())
    }
}
