//! The buffers of a chain, into which a packet for the guest is put.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use umbra_slots::{DmaMark, DmaMemory};
use umbra_virtio::{Chain, QueueError};
use vm_memory::{
    GuestAddress, GuestMemory, Permissions, ReadVolatile, VolatileMemoryError, VolatileSlice,
};

use super::packet::Header;

/// The room in a chain: what the device may write, in the order of the chain.
pub struct Room<'m> {
    head: u16,
    slices: Vec<VolatileSlice<'m, DmaMark<'m>>>,
    len: usize,
}

/// How a socket stands after it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// There may be more.
    More,
    /// There is nothing now.
    Nothing,
    /// There will be nothing any more.
    End,
    /// The host says that the connection is broken.
    Broken,
}

impl<'m> Room<'m> {
    /// Finds the room of a chain, which is enough for a header.
    pub fn of(chain: &Chain<'m>, memory: &'m DmaMemory) -> Result<Self, QueueError> {
        let head = chain.head();
        let wrong = |source| QueueError::Memory { head, source };
        let (mut slices, mut len) = (Vec::new(), 0);
        let buffers = chain.buffers()?;
        for buffer in buffers.iter().filter(|buffer| buffer.is_writable) {
            let at = GuestAddress(buffer.at.0);
            let found = memory.get_slices(at, buffer.len as usize, Permissions::Write);
            for slice in found.map_err(wrong)? {
                let slice = slice.map_err(wrong)?;
                len += slice.len();
                slices.push(slice);
            }
        }
        if len < Header::LEN {
            return Err(QueueError::Short { head });
        }
        Ok(Self { head, slices, len })
    }

    /// Returns how many bytes of data there is room for behind the header.
    ///
    /// # Errors
    /// If there is none.
    pub fn payload(&self) -> Result<usize, QueueError> {
        match self.len - Header::LEN {
            0 => Err(QueueError::Short { head: self.head }),
            payload => Ok(payload),
        }
    }

    /// Writes the header.
    pub fn put(&self, header: &Header) {
        let bytes = header.bytes();
        let mut rest = &bytes[..];
        for slice in &self.slices {
            let (piece, behind) = rest.split_at(rest.len().min(slice.len()));
            slice.copy_from(piece);
            rest = behind;
        }
    }

    /// Reads up to `limit` bytes of a socket that does not block into the room behind the header. Returns
    /// how many came.
    pub fn fill(&self, socket: &OwnedFd, limit: usize) -> (usize, Left) {
        let (mut skip, mut done) = (Header::LEN, 0);
        for slice in &self.slices {
            let start = skip.min(slice.len());
            skip -= start;
            let mut at = start;
            let end = slice.len().min(start.saturating_add(limit - done));
            while at < end {
                let mut part = slice
                    .subslice(at, end - at)
                    .expect("it is a part of the slice");
                match socket.as_fd().read_volatile(&mut part) {
                    Ok(0) => return (done, Left::End),
                    Ok(len) => {
                        at += len;
                        done += len;
                    }
                    Err(VolatileMemoryError::IOError(error)) => match error.kind() {
                        io::ErrorKind::Interrupted => {}
                        io::ErrorKind::WouldBlock => return (done, Left::Nothing),
                        _ => return (done, Left::Broken),
                    },
                    Err(_) => return (done, Left::Broken),
                }
            }
        }
        (done, Left::More)
    }
}
