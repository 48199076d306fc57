//! What a device needs of the host.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Instant;

/// What the receiver of a frame may be left to do (virtio 1.3, 5.1.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums of TCP and UDP.
    pub checksum: bool,
    /// Segmentation of TCP over IPv4.
    pub tso4: bool,
    /// Segmentation of TCP over IPv6.
    pub tso6: bool,
    /// Segmentation of TCP with ECN.
    pub ecn: bool,
}

impl Offloads {
    /// What a driver that has accepted these features may be left to do, each with what it stands on: bits of
    /// VIRTIO_NET_F_GUEST_... (5.1.3), of which others are not looked at.
    pub const fn accepted(features: u64) -> Self {
        let checksum = features & 1 << 1 != 0;
        let tso4 = checksum && features & 1 << 7 != 0;
        let tso6 = checksum && features & 1 << 8 != 0;
        Self {
            checksum,
            tso4,
            tso6,
            ecn: (tso4 || tso6) && features & 1 << 9 != 0,
        }
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Sent {
    /// It is on its way.
    Done,
    /// There is no room for it now: try again when the port can be written.
    Later,
    /// It was dropped, as networks may: the interface is down, or the frame is nonsense.
    Dropped,
}

/// One queue of a network interface. Used by one thread.
pub trait Port: Send {
    /// What is polled: readable when a frame may have come, writable when [`Sent::Later`] is over.
    fn fd(&self) -> BorrowedFd<'_>;

    /// Tells whether frames may leave work to their receiver, in either direction.
    fn can_offload(&self) -> bool;

    /// Says what may be left to whoever receives frames from here.
    ///
    /// # Errors
    /// If the host refuses.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Lets frames come by this queue of several, or not. While they do not, nothing is polled.
    ///
    /// # Errors
    /// If the host refuses.
    fn enable(&mut self, on: bool) -> io::Result<()>;

    /// Sends a frame, which begins with a [`Header`](crate::Header) and has more than that.
    ///
    /// # Errors
    /// If the port is of no use any more.
    fn send(&mut self, frame: &[u8]) -> io::Result<Sent>;

    /// Receives a frame with a [`Header`](crate::Header) before it, and returns its length; `None` if there
    /// is none now. `frame` has room for [`FRAME_MAX`](crate::FRAME_MAX) bytes.
    ///
    /// # Errors
    /// If the port is of no use any more.
    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>>;

    /// Tells when the port has a frame, or something to do, by itself, without its descriptor being readable:
    /// [`receive`](Self::receive) is called then. What waits already is due at a time that has passed. `None` if
    /// never, as far as it knows.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// Tells whether something is left to send that was taken already: the port is polled for writing, and
    /// [`flush`](Self::flush) is called then.
    fn has_unsent(&self) -> bool {
        false
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// If the port is of no use any more.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
