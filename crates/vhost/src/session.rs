//! What a back end knew and its successor does not: what a guest is told then.
//!
//! Most devices forget nothing that matters: a disk is the same for whoever opens it. These do:
//!
//! * **A file system** (FUSE) gives its guest numbers of files and handles that only it understands; for
//!   another one they may be other files. So when it is gone, a mount is dead: everything that is asked is
//!   answered with ENOTCONN, until somebody mounts anew (FUSE_INIT), which the next back end gets to see.
//! * **Sockets** are connections that are no more. The guest is told so by an event (virtio 1.3, 5.10.6.7,
//!   VIRTIO_VSOCK_EVENT_TRANSPORT_RESET), and its programs get ECONNRESET instead of waiting for nobody.
//!
//! And a queue that a back end does not have is [ours](Session::is_ours): the kernel knows neither the events of
//! sockets nor the commands of an interface.

use umbra_slots::DmaMemory;
use umbra_virtio::ChainBuffer;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::Kind;
use crate::kernel::Commands;

/// Bytes of `struct fuse_in_header` that are looked at: length, opcode, number.
const IN: usize = 16;
/// Bytes of `struct fuse_out_header`: length, error, number.
const OUT: usize = 16;
const FUSE_FORGET: u32 = 2;
const FUSE_INIT: u32 = 26;
const FUSE_INTERRUPT: u32 = 36;
const FUSE_DESTROY: u32 = 38;
const FUSE_BATCH_FORGET: u32 = 42;
/// ENOTCONN, as every Linux has it.
const NOT_CONNECTED: i32 = 107;

/// The queue of a socket device on which events are.
const VSOCK_EVENTS: u16 = 2;
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// What is between a driver and its back end.
#[derive(Clone, Debug)]
pub enum Session {
    /// Nothing that would be lost.
    None,
    /// A mount, if the back end that is there has seen it begin.
    Mount {
        /// It has.
        alive: bool,
    },
    /// Connections.
    Sockets,
    /// Connections of the kernel's, which has no events.
    KernelSockets,
    /// An interface of the kernel's, and who obeys its commands.
    KernelNet(Commands),
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The back end does it.
    Theirs,
    /// It is done, with so many bytes written.
    Done(u32),
    /// It waits for a back end.
    Waits,
}

impl Session {
    /// What there is between the driver of a device and its back end when both begin.
    pub fn of(kind: &Kind) -> Self {
        match kind {
            Kind::Fs { .. } => Self::Mount { alive: true },
            Kind::Vsock => Self::Sockets,
            Kind::Block | Kind::Net { .. } | Kind::Other { .. } => Self::None,
        }
    }

    /// The back end is gone.
    pub fn lost(&mut self) {
        if let Self::Mount { alive } = self {
            *alive = false;
        }
    }

    /// Tells whether a queue is none of the back end's.
    pub fn is_ours(&self, queue: u16) -> bool {
        match self {
            Self::KernelSockets => queue == VSOCK_EVENTS,
            Self::KernelNet(commands) => queue >= commands.queue(),
            Self::None | Self::Mount { .. } | Self::Sockets => false,
        }
    }

    /// Says what becomes of a request, now that there is a back end that has its queue, or there is none.
    ///
    /// # Errors
    /// If its memory is gone.
    pub fn fate(
        &mut self,
        queue: u16,
        buffers: &[ChainBuffer],
        memory: &DmaMemory,
        connected: bool,
    ) -> Result<Fate, GuestMemoryError> {
        let alive = match self {
            Self::Mount { alive } => alive,
            Self::KernelNet(commands) if queue == commands.queue() => {
                return commands.obey(buffers, memory).map(Fate::Done);
            }
            _ => return Ok(if connected { Fate::Theirs } else { Fate::Waits }),
        };
        if *alive && connected {
            return Ok(Fate::Theirs);
        }
        let header = gather::<IN>(buffers, memory)?;
        let opcode = u32::from_le_bytes(*header[4..].first_chunk().expect("four bytes"));
        match opcode {
            FUSE_INIT if connected => {
                *alive = true;
                Ok(Fate::Theirs)
            }
            // Nobody answers these.
            FUSE_FORGET | FUSE_BATCH_FORGET | FUSE_INTERRUPT => Ok(Fate::Done(0)),
            FUSE_DESTROY => answer(buffers, memory, &header, 0),
            _ => answer(buffers, memory, &header, -NOT_CONNECTED),
        }
    }

    /// Says what a buffer that waits in a queue is filled with because the back end is gone.
    pub fn news(&self, queue: u16) -> Option<&'static [u8]> {
        match self {
            Self::Sockets if queue == VSOCK_EVENTS => Some(&TRANSPORT_RESET),
            _ => None,
        }
    }
}

/// Reads the first bytes of what a driver has written; zeros behind its end.
pub fn gather<const N: usize>(
    buffers: &[ChainBuffer],
    memory: &DmaMemory,
) -> Result<[u8; N], GuestMemoryError> {
    let (mut bytes, mut at) = ([0; N], 0);
    for buffer in buffers.iter().filter(|buffer| !buffer.is_writable) {
        let len = (N - at).min(buffer.len as usize);
        memory.read_slice(&mut bytes[at..at + len], GuestAddress(buffer.at.0))?;
        at += len;
    }
    Ok(bytes)
}

/// Writes into what may be written, as far as there is room. Returns how much that was.
///
/// # Errors
/// If the memory is gone.
pub fn scatter(
    buffers: &[ChainBuffer],
    memory: &DmaMemory,
    bytes: &[u8],
) -> Result<u32, GuestMemoryError> {
    let mut rest = bytes;
    for buffer in buffers.iter().filter(|buffer| buffer.is_writable) {
        let (now, later) = rest.split_at(rest.len().min(buffer.len as usize));
        memory.write_slice(now, GuestAddress(buffer.at.0))?;
        rest = later;
    }
    Ok((bytes.len() - rest.len()) as u32)
}

/// Answers a request of FUSE's with an error, or none.
fn answer(
    buffers: &[ChainBuffer],
    memory: &DmaMemory,
    header: &[u8; IN],
    error: i32,
) -> Result<Fate, GuestMemoryError> {
    let mut out = [0; OUT];
    out[..4].copy_from_slice(&(OUT as u32).to_le_bytes());
    out[4..8].copy_from_slice(&error.to_le_bytes());
    out[8..].copy_from_slice(&header[8..]);
    scatter(buffers, memory, &out).map(Fate::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_slots::Gpa;
    use umbra_virtio::testing::Memory;

    fn buffer(at: u64, len: u32, is_writable: bool) -> ChainBuffer {
        ChainBuffer {
            at: Gpa(at),
            len,
            is_writable,
        }
    }

    /// A request in pieces, and room in pieces.
    fn request(memory: &Memory, opcode: u32) -> Vec<ChainBuffer> {
        let mut header = 40u32.to_le_bytes().to_vec();
        header.extend(opcode.to_le_bytes());
        header.extend(0x1122_3344_5566_7788u64.to_le_bytes());
        memory.put(0x1000, &header[..6]);
        memory.put(0x2000, &header[6..]);
        vec![
            buffer(0x1000, 6, false),
            buffer(0x2000, 34, false),
            buffer(0x3000, 7, true),
            buffer(0x4000, 100, true),
        ]
    }

    fn answer_of(memory: &Memory) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..7].copy_from_slice(&memory.get::<7>(0x3000));
        bytes[7..].copy_from_slice(&memory.get::<9>(0x4000));
        bytes
    }

    #[test]
    fn a_mount_whose_back_end_died_is_dead_until_somebody_mounts_anew() {
        const GETATTR: u32 = 3;
        let memory = Memory::new();
        let mut session = Session::of(&Kind::Fs { tag: None });
        let fate = |session: &mut Session, opcode, connected| {
            let buffers = request(&memory, opcode);
            let fate = session.fate(0, &buffers, &memory.dma().memory(), connected);
            (fate.unwrap(), answer_of(&memory))
        };
        assert_eq!(fate(&mut session, GETATTR, true).0, Fate::Theirs);
        session.lost();
        let table = [
            (GETATTR, -NOT_CONNECTED),
            (FUSE_INIT, -NOT_CONNECTED),
            (FUSE_DESTROY, 0),
        ];
        for (opcode, error) in table {
            let (fate, said) = fate(&mut session, opcode, false);
            assert_eq!(fate, Fate::Done(16));
            assert_eq!(said[..4], 16u32.to_le_bytes());
            assert_eq!(said[4..8], error.to_le_bytes());
            assert_eq!(said[8..], 0x1122_3344_5566_7788u64.to_le_bytes());
        }
        for opcode in [FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_INTERRUPT] {
            assert_eq!(fate(&mut session, opcode, true).0, Fate::Done(0));
        }
        // Another one is there, which knows nothing of it.
        assert_eq!(fate(&mut session, GETATTR, true).0, Fate::Done(16));
        assert_eq!(fate(&mut session, FUSE_INIT, true).0, Fate::Theirs);
        assert_eq!(fate(&mut session, GETATTR, true).0, Fate::Theirs);
    }

    #[test]
    fn what_has_no_session_waits() {
        let memory = Memory::new().dma().memory();
        for kind in [Kind::Block, Kind::Vsock] {
            let mut session = Session::of(&kind);
            session.lost();
            let fate = |session: &mut Session, connected| session.fate(0, &[], &memory, connected);
            assert_eq!(fate(&mut session, false).unwrap(), Fate::Waits);
            assert_eq!(fate(&mut session, true).unwrap(), Fate::Theirs);
        }
    }

    #[test]
    fn an_answer_for_which_there_is_no_room_is_cut() {
        let memory = Memory::new();
        let mut session = Session::Mount { alive: false };
        let mut buffers = request(&memory, 3);
        buffers.truncate(3);
        let fate = session.fate(0, &buffers, &memory.dma().memory(), true);
        assert_eq!(fate.unwrap(), Fate::Done(7));
    }
}
