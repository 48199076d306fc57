//! What a device needs of its back end, whoever that is: another process, or the host's kernel.
//!
//! ```text
//!   set_features ── memory: set_table, or add_piece ... ── start ── ... ── stop
//! ```
//! A [`Link`](crate::link::Link) asks for this, one thing after the other and under its lock. When a request returns,
//! the back end has done it; after [`cut`](BackEnd::cut) it has nothing more to do with this process.

use std::fmt::Debug;

use umbra_virtio::Features;

use crate::BackEndError;
use crate::link::Started;
use crate::table::Piece;

/// What a back end offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Virtio features, without those of the protocol.
    pub features: Features,
    /// Queues at most; `None` if it does not say.
    pub queues: Option<u64>,
    /// Pieces of memory at most.
    pub pieces: usize,
    /// How its memory becomes another one.
    pub changes: Changes,
    /// Where in its table of memory our rings can be.
    pub rings_at: u64,
    /// It has a configuration.
    pub has_config: bool,
    /// Its device can be reset.
    pub resets: bool,
}

/// How the memory of a back end becomes another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Piece by piece, beside those that stay.
    Pieces,
    /// As a whole table, while its queues stand still.
    Tables,
    /// As a whole table, in one step for each queue: they go on with what is in both.
    Swaps,
    /// Piece by piece, and its queues cannot stand still.
    PiecesOnly,
}

impl Changes {
    /// Tells whether pieces are added and removed, and not tables replaced.
    pub fn are_of_pieces(self) -> bool {
        matches!(self, Self::Pieces | Self::PiecesOnly)
    }
}

/// Where a queue is, for a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// Its descriptors.
    pub size: u16,
    /// Descriptor table, available ring, used ring: addresses in the table of memory.
    pub addresses: [u64; 3],
    /// The same as addresses of this process.
    pub host: [u64; 3],
    /// The index in the available ring from which on nothing was taken.
    pub base: u16,
}

/// A back end that is there.
pub trait BackEnd: Debug + Send + Sync {
    /// Returns what it offers.
    fn offer(&self) -> &Offer;

    /// Lets go of it: when this returns it works on nothing any more, or is another process that can reach nothing
    /// but what it had mapped.
    fn cut(&self);

    /// Says what the driver has accepted.
    ///
    /// # Errors
    /// If the back end refuses.
    fn set_features(&self, features: Features) -> Result<(), BackEndError>;

    /// Replaces the whole table of memory. When this returns, the back end has no other.
    ///
    /// # Errors
    /// If the back end refuses; then it has the old table.
    fn set_table(&self, pieces: &[Piece]) -> Result<(), BackEndError>;

    /// Adds a piece of memory. When this returns, the back end has it.
    ///
    /// # Errors
    /// If the back end refuses; then it has what it had.
    fn add_piece(&self, piece: &Piece) -> Result<(), BackEndError>;

    /// Takes a piece of memory away. When this returns, the back end has it no more.
    ///
    /// # Errors
    /// If the back end refuses.
    fn remove_piece(&self, piece: &Piece) -> Result<(), BackEndError>;

    /// Lets the back end work on queues, each from its [`base`](RingPlace::base) on.
    ///
    /// # Errors
    /// If the back end refuses.
    fn start(&self, rings: &[Started]) -> Result<(), BackEndError>;

    /// Has the back end stop working on queues, and learns their [`base`](RingPlace::base). When this returns it
    /// works on nothing of them any more.
    ///
    /// # Errors
    /// If the back end refuses.
    fn stop(&self, rings: &mut [Started]) -> Result<(), BackEndError>;

    /// Resets the device, if the back end can.
    ///
    /// # Errors
    /// If the back end refuses.
    fn reset(&self) -> Result<(), BackEndError>;
}
