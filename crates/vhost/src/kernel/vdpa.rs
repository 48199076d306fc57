//! vhost-vdpa: a virtio device of the host's, hardware or a simulation, whose queues the guest uses without anybody in
//! between (Linux, `drivers/vhost/vdpa.c`).
//!
//! ```text
//!   open     SET_OWNER, GET_BACKEND_FEATURES, SET_BACKEND_FEATURES, GET_FEATURES, VDPA_GET_DEVICE_ID, ...,
//!            VDPA_SET_CONFIG_CALL
//!   begin    VDPA_SET_STATUS 0, ACKNOWLEDGE, DRIVER; SET_FEATURES; FEATURES_OK, which has to stay
//!            memory: a message (a write) for each piece, IOTLB_UPDATE
//!            each ring, as in `node`; VDPA_SET_VRING_ENABLE for each; DRIVER_OK
//!   change   IOTLB_UPDATE, IOTLB_INVALIDATE
//!   end      VDPA_SET_STATUS 0
//! ```
//! Such a device finds rings and buffers by guest-physical addresses, so it is told where these are in this process,
//! piece by piece, and **the host locks all of it** (`RLIMIT_MEMLOCK`). A device may forget its memory when it is
//! reset, and the kernel does not: so after a reset all of it is said anew.
//!
//! It can be stopped only by a reset, after which it does not know how far it had come. The relay does: what was not
//! done is lent again, in new rings. But nothing can stand still for a moment in the middle: other memory in the place
//! of what it works on is refused.

use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use umbra_virtio::{Event, Features, Status};
use vhost::vdpa::VhostVdpa;
use vhost::vhost_kern::VhostKernFeatures;
use vhost::vhost_kern::vdpa::VhostKernVdpa;
use vhost::{VhostBackend, VringConfigData};
use vm_memory::GuestMemoryMmap;

use super::node::{Origin, cause, nothing, open, refused};
use crate::BackEndError;
use crate::back_end::{BackEnd, Changes, Offer};
use crate::channel::eventfd;
use crate::kind::DEVICE_BITS;
use crate::link::Started;
use crate::ring::RINGS_AT;
use crate::table::Piece;

const ORIGIN: Origin = Origin {
    module: "vhost_vdpa",
    instead: "use one of the monitor's own devices; 'vdpa dev show' lists what the host has",
};
/// VHOST_BACKEND_F_IOTLB_MSG_V2, the only one of what the kernel's part offers that is used.
const IOTLB_MSG_V2: u64 = 1 << 1;
/// VIRTIO_F_ACCESS_PLATFORM: it reaches memory by what it is told, which some insist on. The guest need not know.
const ACCESS_PLATFORM: Features = Features::bit(33);
/// What is passed on.
const THEIRS: Features = DEVICE_BITS
    .with(Features::VERSION_1)
    .with(Features::INDIRECT_DESC)
    .with(Features::EVENT_IDX)
    .with(ACCESS_PLATFORM);
/// Room for rings.
const RINGS_ROOM: u64 = 1 << 36;

type Handle = VhostKernVdpa<Arc<GuestMemoryMmap<()>>>;

/// The device.
pub struct Vdpa {
    path: PathBuf,
    offer: Offer,
    /// What it is.
    pub id: u32,
    /// Bytes of its configuration.
    pub config_len: usize,
    /// The most descriptors of a queue.
    pub queue_size: u16,
    inner: Mutex<Inner>,
}

struct Inner {
    /// None after the end.
    handle: Option<Handle>,
    mapped: Vec<Piece>,
}

impl std::fmt::Debug for Vdpa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vdpa({})", self.path.display())
    }
}

impl Vdpa {
    /// Opens one. `changed` will be signalled when its configuration has changed.
    ///
    /// # Errors
    /// If it is not there, somebody else has it, or it lacks what is needed.
    pub fn open(path: &Path, changed: &Event) -> Result<Self, BackEndError> {
        let file = open(path, ORIGIN)?;
        let mut handle = VhostKernVdpa::with(file, nothing(), 0);
        let ask = Ask(path);
        ask.call("SET_OWNER", handle.set_owner())?;
        let own = ask.call("GET_BACKEND_FEATURES", handle.get_backend_features())?;
        let own = own & IOTLB_MSG_V2;
        ask.call("SET_BACKEND_FEATURES", handle.set_backend_features(own))?;
        let features = ask.call("GET_FEATURES", handle.get_features())?;
        let features = Features::from_low(features).common(THEIRS);
        if !features.has(Features::VERSION_1) {
            return Err(BackEndError::Lacks("VIRTIO_F_VERSION_1"));
        }
        let id = ask.call("VDPA_GET_DEVICE_ID", handle.get_device_id())?;
        let most = ask.call("VDPA_GET_VRING_NUM", handle.get_vring_num())?;
        let queues = ask.call("VDPA_GET_VQS_COUNT", handle.get_vqs_count())?;
        let config_len = ask.call("VDPA_GET_CONFIG_SIZE", handle.get_config_size())?;
        let range = ask.call("VDPA_GET_IOVA_RANGE", handle.get_iova_range())?;
        let changed = eventfd(changed)?;
        ask.call("VDPA_SET_CONFIG_CALL", handle.set_config_call(&changed))?;
        Ok(Self {
            path: path.to_owned(),
            offer: Offer {
                features,
                queues: Some(queues.into()),
                pieces: usize::MAX,
                changes: Changes::PiecesOnly,
                rings_at: rings_at(range.first..=range.last)?,
                has_config: config_len != 0,
                resets: true,
            },
            id,
            config_len: config_len.min(CONFIG_MAX) as usize,
            queue_size: largest_power(most),
            inner: Mutex::new(Inner {
                handle: Some(handle),
                mapped: Vec::new(),
            }),
        })
    }

    /// Returns its configuration.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn config(&self) -> Result<Vec<u8>, BackEndError> {
        let mut bytes = vec![0; self.config_len];
        if !bytes.is_empty() {
            self.call("VDPA_GET_CONFIG", |h| h.get_config(0, &mut bytes))?;
        }
        Ok(bytes)
    }

    /// Writes its configuration, inside of its length.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn write_config(&self, offset: u32, bytes: &[u8]) -> Result<(), BackEndError> {
        self.call("VDPA_SET_CONFIG", |h| h.set_config(offset, bytes))
    }

    fn call<T>(
        &self,
        call: &'static str,
        with: impl FnOnce(&Handle) -> vhost::Result<T>,
    ) -> Result<T, BackEndError> {
        self.inner.lock().call(&self.path, call, with)
    }
}

/// No device has more.
const CONFIG_MAX: u32 = 4096;

/// Where there is room for rings that no guest has memory at.
fn rings_at(range: RangeInclusive<u64>) -> Result<u64, BackEndError> {
    let usual = RINGS_AT..=RINGS_AT + RINGS_ROOM - 1;
    if range.contains(usual.start()) && range.contains(usual.end()) {
        return Ok(RINGS_AT);
    }
    // At the end, on a boundary.
    let end = range.end().checked_add(1).unwrap_or(!(RINGS_ROOM - 1));
    let at = (end & !(RINGS_ROOM - 1)).checked_sub(RINGS_ROOM);
    let at = at.filter(|at| range.contains(at) && *at != 0);
    at.ok_or(BackEndError::Lacks(
        "addresses for rings beside the guest's memory",
    ))
}

/// The largest power of two that is not larger; 256 at most, which is usual.
fn largest_power(most: u16) -> u16 {
    match most.clamp(1, 256) {
        most if most.is_power_of_two() => most,
        most => most.next_power_of_two() / 2,
    }
}

/// Whom is asked.
struct Ask<'a>(&'a Path);

impl Ask<'_> {
    fn call<T>(&self, call: &'static str, done: vhost::Result<T>) -> Result<T, BackEndError> {
        done.map_err(|error| refused(self.0, call, cause(error)))
    }
}

impl Inner {
    fn call<T>(
        &self,
        path: &Path,
        call: &'static str,
        with: impl FnOnce(&Handle) -> vhost::Result<T>,
    ) -> Result<T, BackEndError> {
        let gone = BackEndError::Gone { request: call };
        let handle = self.handle.as_ref().ok_or(gone)?;
        Ask(path).call(call, with(handle))
    }

    fn set_status(&self, path: &Path, status: Status) -> Result<(), BackEndError> {
        self.call(path, "VDPA_SET_STATUS", |h| h.set_status(status.0 as u8))
    }

    fn map(&self, path: &Path, piece: &Piece) -> Result<(), BackEndError> {
        let mapped = self.call(path, "IOTLB_UPDATE", |h| {
            h.dma_map(
                piece.start(),
                piece.len(),
                piece.host_addr() as *const u8,
                false,
            )
        });
        mapped.map_err(|error| match error {
            BackEndError::Call { node, source, .. }
                if source.kind() == io::ErrorKind::OutOfMemory =>
            {
                let len = piece.len();
                BackEndError::Locked { node, len, source }
            }
            BackEndError::Call { node, source, .. } => BackEndError::Memory {
                node,
                pieces: 1,
                source,
            },
            other => other,
        })
    }

    fn unmap(&self, path: &Path, piece: &Piece) -> Result<(), BackEndError> {
        self.call(path, "IOTLB_INVALIDATE", |h| {
            h.dma_unmap(piece.start(), piece.len())
        })
    }

    /// Says all memory anew.
    fn map_again(&self, path: &Path) -> Result<(), BackEndError> {
        for piece in &self.mapped {
            self.unmap(path, piece)?;
            self.map(path, piece)?;
        }
        Ok(())
    }

    fn set_ring(&self, path: &Path, ring: &Started) -> Result<(), BackEndError> {
        let (index, place) = (usize::from(ring.index), &ring.place);
        let [desc_table_addr, avail_ring_addr, used_ring_addr] = place.addresses;
        let config = VringConfigData {
            queue_max_size: place.size,
            queue_size: place.size,
            flags: 0,
            desc_table_addr,
            used_ring_addr,
            avail_ring_addr,
            log_addr: None,
        };
        let [kick, call, fault] = [&ring.kick, &ring.call, &ring.fault].map(|event| eventfd(event));
        let (kick, call, fault) = (kick?, call?, fault?);
        self.call(path, "SET_VRING_NUM", |h| {
            h.set_vring_num(index, place.size)
        })?;
        self.call(path, "SET_VRING_BASE", |h| {
            h.set_vring_base(index, place.base)
        })?;
        self.call(path, "SET_VRING_ADDR", |h| h.set_vring_addr(index, &config))?;
        self.call(path, "SET_VRING_KICK", |h| h.set_vring_kick(index, &kick))?;
        self.call(path, "SET_VRING_CALL", |h| h.set_vring_call(index, &call))?;
        self.call(path, "SET_VRING_ERR", |h| h.set_vring_err(index, &fault))
    }
}

impl BackEnd for Vdpa {
    fn offer(&self) -> &Offer {
        &self.offer
    }

    fn cut(&self) {
        let mut inner = self.inner.lock();
        inner.handle = None;
        inner.mapped.clear();
    }

    fn set_features(&self, features: Features) -> Result<(), BackEndError> {
        let inner = self.inner.lock();
        let path = &self.path;
        let told = features.common(self.offer.features);
        let told = told.with(self.offer.features.common(ACCESS_PLATFORM));
        let driver = Status::ACKNOWLEDGE.with(Status::DRIVER);
        let agreed = driver.with(Status::FEATURES_OK);
        inner.set_status(path, Status::default())?;
        inner.set_status(path, Status::ACKNOWLEDGE)?;
        inner.set_status(path, driver)?;
        inner.call(path, "SET_FEATURES", |h| h.set_features(told.low()))?;
        inner.set_status(path, agreed)?;
        let status = inner.call(path, "VDPA_GET_STATUS", |h| h.get_status())?;
        if !Status(status.into()).has(Status::FEATURES_OK) {
            return Err(BackEndError::Lacks("the features that it has offered"));
        }
        inner.map_again(path)
    }

    fn set_table(&self, _: &[Piece]) -> Result<(), BackEndError> {
        Err(BackEndError::Lacks("whole tables of memory"))
    }

    fn add_piece(&self, piece: &Piece) -> Result<(), BackEndError> {
        let mut inner = self.inner.lock();
        inner.map(&self.path, piece)?;
        inner.mapped.push(piece.clone());
        Ok(())
    }

    fn remove_piece(&self, piece: &Piece) -> Result<(), BackEndError> {
        let mut inner = self.inner.lock();
        inner.unmap(&self.path, piece)?;
        inner.mapped.retain(|mapped| mapped != piece);
        Ok(())
    }

    fn start(&self, rings: &[Started]) -> Result<(), BackEndError> {
        let inner = self.inner.lock();
        let path = &self.path;
        rings
            .iter()
            .try_for_each(|ring| inner.set_ring(path, ring))?;
        for ring in rings {
            let index = usize::from(ring.index);
            inner.call(path, "VDPA_SET_VRING_ENABLE", |h| {
                h.set_vring_enable(index, true)
            })?;
        }
        let agreed = Status::ACKNOWLEDGE
            .with(Status::DRIVER)
            .with(Status::FEATURES_OK);
        inner.set_status(path, agreed.with(Status::DRIVER_OK))
    }

    fn stop(&self, _: &mut [Started]) -> Result<(), BackEndError> {
        self.reset()
    }

    fn reset(&self) -> Result<(), BackEndError> {
        let inner = self.inner.lock();
        inner.set_status(&self.path, Status::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_where_a_device_can_reach_them() {
        let last = RINGS_AT + RINGS_ROOM - 1;
        let table = [
            (0..=u64::MAX, Some(RINGS_AT)),
            (0..=last, Some(RINGS_AT)),
            (0..=last - 1, Some(RINGS_AT - RINGS_ROOM)),
            (0..=(1 << 40) - 1, Some((1 << 40) - RINGS_ROOM)),
            (0x1000..=(1 << 40) + 5, Some((1 << 40) - RINGS_ROOM)),
            (0..=RINGS_ROOM - 1, None),
            (0..=0xffff_ffff, None),
        ];
        for (range, expected) in table {
            assert_eq!(rings_at(range.clone()).ok(), expected, "{range:x?}");
        }
    }

    #[test]
    fn a_queue_has_as_many_descriptors_as_the_device_takes() {
        for (most, size) in [(0, 1), (1, 1), (100, 64), (256, 256), (1024, 256)] {
            assert_eq!(largest_power(most), size);
        }
    }
}
