//! What a front end can do wrong, and what the host can refuse.

use std::io;
use std::path::PathBuf;

use umbra_slots::{Gpa, RamError, SlotError};
use umbra_virtio::{ActivateError, QueueError};
use vhost::vhost_user;

/// Why a front end is let go.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A message is none, or comes where it may not.
    #[error("the front end's message is wrong")]
    Protocol(#[source] vhost_user::Error),
    /// It asks for something that is not offered.
    #[error("{0} was not offered")]
    NotOffered(&'static str),
    /// Features that were not offered.
    #[error("the front end accepts features {accepted:#x}, of {offered:#x}")]
    Features {
        /// What was offered.
        offered: u64,
        /// What it accepts.
        accepted: u64,
    },
    /// A driver from before virtio 1.0.
    #[error("a ring is started without VIRTIO_F_VERSION_1: legacy drivers are not served")]
    Legacy,
    /// Something is changed that a running ring depends on.
    #[error("{what} cannot change while rings run")]
    Running {
        /// What.
        what: &'static str,
    },
    /// There is no such ring.
    #[error("there is no ring {ring}, of {count}")]
    NoRing {
        /// Which was named.
        ring: u32,
        /// How many there are.
        count: usize,
    },
    /// A number that cannot be an index into a ring.
    #[error("ring {ring} cannot begin at {base}")]
    Base {
        /// Which ring.
        ring: u32,
        /// What was said.
        base: u32,
    },
    /// The size of a ring is none that it can have.
    #[error("ring {ring} cannot have {size} descriptors: it is a power of two, {max} at most")]
    Size {
        /// Which ring.
        ring: u32,
        /// What was said.
        size: u32,
        /// The most.
        max: u16,
    },
    /// A ring is to be polled for.
    #[error("ring {ring} has no descriptor for notifications, and rings are not polled here")]
    Polling {
        /// Which ring.
        ring: u32,
    },
    /// A descriptor is nothing to wait for.
    #[error("the notifications of ring {ring} come by no eventfd")]
    Kick {
        /// Which ring.
        ring: u32,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// A ring is in no memory that the front end has shown.
    #[error("the {part} of ring {ring} is at {address:#x}, which is in no memory region")]
    Address {
        /// Which ring.
        ring: u32,
        /// Which part of it.
        part: &'static str,
        /// Where it is in the front end.
        address: u64,
    },
    /// A ring cannot be used.
    #[error("ring {ring} cannot be used")]
    Queue {
        /// Which ring.
        ring: u32,
        /// What is wrong.
        #[source]
        source: QueueError,
    },
    /// A region of memory cannot be mapped.
    #[error("the memory of {len:#x} bytes at {gpa} cannot be mapped")]
    Region {
        /// Where the guest has it.
        gpa: Gpa,
        /// Its length.
        len: u64,
        /// Why.
        #[source]
        source: RamError,
    },
    /// A region does not fit the others.
    #[error("the memory of the guest cannot be so")]
    Map(#[from] SlotError),
    /// A region is taken away that is not there.
    #[error("there is no memory of {len:#x} bytes at {gpa}")]
    NoRegion {
        /// Where.
        gpa: Gpa,
        /// Its length.
        len: u64,
    },
    /// Too many regions.
    #[error("there can be {max} memory regions at most")]
    Regions {
        /// The most.
        max: usize,
    },
    /// A region was taken away, and the device still has it.
    #[error("requests that the host does not complete still use memory that was taken away")]
    StillUsed,
    /// A shared file for logging, or for requests in flight, cannot be used.
    #[error("the file of {what} cannot be used: {len:#x} bytes at {offset:#x}")]
    File {
        /// What it is for.
        what: &'static str,
        /// Bytes.
        len: u64,
        /// Where in the file.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The log has no bit for some page.
    #[error("the dirty log has {have:#x} bytes, and the guest's memory needs {needed:#x}")]
    Log {
        /// Bytes that there are.
        have: u64,
        /// Bytes that it needs.
        needed: u64,
    },
    /// The region for requests in flight is none.
    #[error("the region of requests in flight is wrong: {0}")]
    Inflight(&'static str),
    /// The device does not start.
    #[error("the device does not start")]
    Activate(#[source] ActivateError),
    /// The host refused.
    #[error("the host refused {what}")]
    Host {
        /// What.
        what: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: the host refused something.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            what,
            source: source.into(),
        }
    }
}

/// As the library passes it through.
impl From<Error> for vhost_user::Error {
    fn from(error: Error) -> Self {
        Self::ReqHandlerError(io::Error::other(error))
    }
}

impl From<vhost_user::Error> for Error {
    fn from(error: vhost_user::Error) -> Self {
        match error {
            vhost_user::Error::ReqHandlerError(inner) => match inner.downcast::<Error>() {
                Ok(ours) => ours,
                Err(inner) => Self::Protocol(vhost_user::Error::ReqHandlerError(inner)),
            },
            other => Self::Protocol(other),
        }
    }
}

/// Why nobody can connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody is there.
    #[error("somebody serves {path:?} already: stop that one first, or choose another path")]
    Taken {
        /// Where.
        path: PathBuf,
    },
    /// Something is there that is no socket.
    #[error("{path:?} is there, and is no socket: choose another path")]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
    /// What was handed over does not listen.
    #[error("descriptor {fd} is no unix socket that listens")]
    NotListening {
        /// Which.
        fd: i32,
    },
    /// The host refused.
    #[error("the host refused the socket {path:?}; check that its directory can be written")]
    Host {
        /// Where.
        path: PathBuf,
        /// Its error.
        #[source]
        source: io::Error,
    },
}
