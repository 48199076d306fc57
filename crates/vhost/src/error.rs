//! Why a back end cannot be used.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use umbra_virtio::Features;

use crate::patience::PATIENCE;
use crate::requests::Malformed;

/// Why a back end cannot be used, or not any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackEndError {
    /// Nobody answers at the socket.
    #[error("no back end answers at {}: start it first, with a socket there that may be used", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not answer in time. The connection has been cut.
    #[error(
        "the back end has not answered {request} within {}: does it hang, or serve somebody else?",
        within(*after)
    )]
    Late {
        /// What was asked.
        request: &'static str,
        /// How long it had.
        after: Duration,
    },
    /// It has closed the connection while nothing was asked.
    #[error("the back end has closed the connection, or has died")]
    Closed,
    /// It has closed the connection, or the host has.
    #[error("the back end is gone: its connection broke in {request}")]
    Gone {
        /// What was asked last.
        request: &'static str,
    },
    /// It said no.
    #[error("the back end refuses {request}")]
    Refused {
        /// What was asked.
        request: &'static str,
    },
    /// It answered something that is no answer.
    #[error("the back end answers {request} with what is no answer: {what}")]
    Wrong {
        /// What was asked.
        request: &'static str,
        /// What is wrong.
        what: String,
    },
    /// It says that it cannot go on with a queue.
    #[error("the back end says that it cannot go on with a queue")]
    Faulted,
    /// It has asked for something that is no request.
    #[error("the back end asks for what is no request")]
    Asked(#[from] Malformed),
    /// It lacks what a device needs.
    #[error("the back end lacks {0}")]
    Lacks(&'static str),
    /// It came back with less than the device has offered.
    #[error("the back end offers {offered:?} now, and the guest was offered {needed:?}")]
    Less {
        /// What it offers.
        offered: Features,
        /// What is needed.
        needed: Features,
    },
    /// It has fewer queues than are asked for.
    #[error("the back end has {offered} queues, and {wanted} are asked for")]
    Queues {
        /// How many are needed.
        wanted: u16,
        /// How many it has.
        offered: u64,
    },
    /// The guest's memory is in more pieces than it takes.
    #[error("the back end takes {max} pieces of memory at most, and the guest has {needed}")]
    Pieces {
        /// The limit.
        max: usize,
        /// How many there are.
        needed: usize,
    },
    /// The host's kernel has no such device, or this process may not use it.
    #[error(
        "cannot open {}: load the kernel's module {module} ('modprobe {module}') and give this process the node, or \
         {instead}", path.display()
    )]
    Node {
        /// The node.
        path: PathBuf,
        /// Who makes it.
        module: &'static str,
        /// What can be done without it.
        instead: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device of the host's is somebody else's.
    #[error("{} is in use by another process: stop that one, or take another device", path.display())]
    NodeInUse {
        /// The node.
        path: PathBuf,
    },
    /// The host's kernel says no.
    #[error("the kernel refuses {call} of {}", node.display())]
    Call {
        /// The call.
        call: &'static str,
        /// Of what.
        node: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host's kernel does not take the guest's memory; it has what it had.
    #[error("the kernel does not take {pieces} pieces of memory for {}", node.display())]
    Memory {
        /// For whom.
        node: PathBuf,
        /// How many.
        pieces: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device of the kernel's has guest memory locked, and the host does not lock so much.
    #[error(
        "the kernel does not lock {len} bytes of memory for {}: raise the limit of locked memory ('ulimit -l') above \
         what the guest has", node.display()
    )]
    Locked {
        /// For whom.
        node: PathBuf,
        /// How many.
        len: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another guest of the host has the context identifier.
    #[error("context identifier {cid} is another guest's on this host: choose one that is free")]
    CidInUse {
        /// Which.
        cid: u64,
    },
    /// Other memory is to be where it has some that it works on.
    #[error(
        "the back end cannot be given other memory in the place of what it works on: take that away first"
    )]
    Replaced,
    /// It has written something into the rings that is nothing.
    #[error("the back end has broken its rings")]
    Ring(#[from] RingError),
    /// The host refused something.
    #[error("the host refused {what}")]
    Host {
        /// What.
        what: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
}

impl BackEndError {
    /// Tells whether the back end has said no, and all is as it was.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused { .. }
                | Self::Pieces { .. }
                | Self::Memory { .. }
                | Self::Locked { .. }
                | Self::Replaced
        )
    }
}

/// What a device has written into a used ring and must not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// More is used than was lent.
    #[error("the used index went on by {by}, and {lent} chains were lent")]
    Index {
        /// By how many.
        by: u16,
        /// How many it could be.
        lent: u16,
    },
    /// A chain is used that nobody has lent.
    #[error("chain {0} was used, and is not lent")]
    NotLent(u32),
}

/// Says how long an answer was waited for.
fn within(after: Duration) -> String {
    let (after, most) = (after.as_millis(), PATIENCE.as_millis());
    match after == most {
        true => format!("{after} ms"),
        false => format!("{after} ms, all that late answers before have left of {most}"),
    }
}
