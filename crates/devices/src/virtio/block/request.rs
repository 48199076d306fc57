//! What a chain asks for (virtio 1.3, 5.2.6).
//!
//! ```text
//!   readable: type le32, reserved le32, sector le64 | data of OUT, DISCARD, WRITE_ZEROES
//!   writable: data of IN, GET_ID                    | status
//! ```
//! The borders of buffers mean nothing: the header is the first 16 bytes to be read, the status the last
//! byte to be written. A chain without room for both cannot be answered, and neither can one that is
//! not in memory: the device needs a reset. Everything else is answered, and nothing of a request that
//! is wrong anywhere is done.

use umbra_block::{Access, Buffers, Extent, Operation, OutOfReach, SECTOR, Unmap};
use umbra_slots::{DmaMemory, Gpa};
use umbra_virtio::{Chain, Features, QueueError};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions};

use super::config::{DISCARD, WRITE_ZEROES, ZEROES_MAX_SECTORS};
use super::config::{DISCARD_MAX_SECTORS, DISCARD_MAX_SEGMENTS, ZEROES_MAX_SEGMENTS};
use super::ranges::Ranges;

/// Bytes of a header.
const HEADER: u64 = 16;
/// Bytes of a segment of DISCARD and WRITE_ZEROES.
const SEGMENT: u64 = 16;
/// The segment's flag that allows to give room back.
const UNMAP: u32 = 1;
/// Bytes that GET_ID returns.
pub const ID_LEN: usize = 20;

/// How a request ended, the last byte of its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It was done.
    Ok = 0,
    /// It is wrong, or the host failed.
    IoErr = 1,
    /// The device does not do such things.
    Unsupported = 2,
}

/// What is asked for, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    In,
    Out,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    Other,
}

impl From<u32> for Kind {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::In,
            1 => Self::Out,
            4 => Self::Flush,
            8 => Self::GetId,
            11 => Self::Discard,
            13 => Self::WriteZeroes,
            _ => Self::Other,
        }
    }
}

/// What a request may do.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Sectors of the disk.
    pub capacity: u64,
    pub read_only: bool,
    /// What the driver accepted.
    pub features: Features,
}

/// What a chain asks for.
#[derive(Debug)]
pub struct Request {
    /// Its first descriptor.
    pub head: u16,
    /// Where its status is to be written.
    pub status: Gpa,
    pub kind: Kind,
    sector: u64,
    /// What follows the header.
    sent: Ranges,
    /// Room before the status.
    room: Ranges,
}

/// What to do for a request.
#[derive(Debug)]
pub enum Plan {
    /// It is answered at once.
    Answer(Status),
    /// Its room is filled with the device's name.
    Name(Buffers),
    /// The disk is asked.
    Ask {
        operation: Operation,
        /// Bytes that go to the disk or come from it.
        bytes: u64,
    },
}

impl Request {
    /// Reads the header.
    ///
    /// # Errors
    /// If there is none, or no status, or they are not in memory.
    pub fn read(chain: &Chain<'_>, memory: &DmaMemory) -> Result<Self, QueueError> {
        let head = chain.head();
        let buffers = chain.buffers()?;
        let side = |writable| {
            let side = buffers.iter().filter(move |b| b.is_writable == writable);
            Ranges::new(side.map(|buffer| (buffer.at, buffer.len)))
        };
        let (mut sent, mut room) = (side(false), side(true));
        let status = room.pop_byte().ok_or(QueueError::Short { head })?;
        if !memory.check_range(GuestAddress(status.0), 1, Permissions::Write) {
            let source = GuestMemoryError::InvalidGuestAddress(GuestAddress(status.0));
            return Err(QueueError::Memory { head, source });
        }
        let header = sent.split_front(HEADER);
        if header.len() != HEADER {
            return Err(QueueError::Short { head });
        }
        let mut bytes = [0; HEADER as usize];
        copy(head, memory, &header, &mut bytes)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = bytes;
        Ok(Self {
            head,
            status,
            kind: u32::from_le_bytes([a, b, c, d]).into(),
            sector: u64::from_le_bytes(sector),
            sent,
            room,
        })
    }

    /// Bytes that the driver can rely on from the front of its room (virtio 1.3, 2.7.8.2). The status
    /// comes last, so it counts only if everything before it was written.
    pub fn written(&self, status: Status) -> u32 {
        let room = u32::try_from(self.room.len()).unwrap_or(u32::MAX - 1);
        match (self.kind, status) {
            (Kind::GetId, Status::Ok) if room > ID_LEN as u32 => ID_LEN as u32,
            (Kind::In | Kind::GetId, Status::Ok) => room.saturating_add(1),
            _ if room == 0 => 1,
            _ => 0,
        }
    }

    /// Tells what to do.
    ///
    /// # Errors
    /// If the data are not in memory.
    pub fn plan(&self, memory: &DmaMemory, rules: &Rules) -> Result<Plan, QueueError> {
        let plan = match self.kind {
            Kind::In => self.plan_in(memory, rules)?,
            Kind::Out => self.plan_out(memory, rules)?,
            Kind::Flush => self.plan_flush(),
            Kind::GetId => self.plan_name(memory)?,
            Kind::Discard => self.plan_discard(memory, rules)?,
            Kind::WriteZeroes => self.plan_zeroes(memory, rules)?,
            Kind::Other => Err(Status::Unsupported),
        };
        Ok(plan.unwrap_or_else(Plan::Answer))
    }

    fn plan_in(&self, memory: &DmaMemory, rules: &Rules) -> Result<Planned, QueueError> {
        let extent = match self.extent(&self.room, &self.sent, rules) {
            Ok(extent) => extent,
            Err(status) => return Ok(Err(status)),
        };
        let to = self.buffers(memory, &self.room, Access::Write)?;
        Ok(Ok(Plan::Ask {
            operation: Operation::Read {
                offset: extent.offset,
                to,
            },
            bytes: extent.len,
        }))
    }

    fn plan_out(&self, memory: &DmaMemory, rules: &Rules) -> Result<Planned, QueueError> {
        let extent = match self.extent(&self.sent, &self.room, rules) {
            Ok(extent) if !rules.read_only => extent,
            Ok(_) => return Ok(Err(Status::IoErr)),
            Err(status) => return Ok(Err(status)),
        };
        let from = self.buffers(memory, &self.sent, Access::Read)?;
        Ok(Ok(Plan::Ask {
            operation: Operation::Write {
                offset: extent.offset,
                from,
            },
            bytes: extent.len,
        }))
    }

    fn plan_flush(&self) -> Planned {
        Ok(Plan::Ask {
            operation: Operation::Flush,
            bytes: 0,
        })
    }

    /// A driver whose room is shorter gets the beginning.
    fn plan_name(&self, memory: &DmaMemory) -> Result<Planned, QueueError> {
        if self.room.len() == 0 {
            return Ok(Err(Status::IoErr));
        }
        let front = self.room.clone().split_front(ID_LEN as u64);
        let to = self.buffers(memory, &front, Access::Write)?;
        Ok(Ok(Plan::Name(to)))
    }

    fn plan_discard(&self, memory: &DmaMemory, rules: &Rules) -> Result<Planned, QueueError> {
        let bounds = Bounds {
            feature: DISCARD,
            segments: DISCARD_MAX_SEGMENTS,
            sectors: DISCARD_MAX_SECTORS,
            // The unmap bit is for WRITE_ZEROES (5.2.6.1).
            flags: 0,
        };
        let segments = match self.segments(memory, rules, &bounds)? {
            Ok(segments) => segments,
            Err(status) => return Ok(Err(status)),
        };
        let extents = segments.into_iter().map(|(extent, _)| extent).collect();
        Ok(Ok(Plan::Ask {
            operation: Operation::Discard(extents),
            bytes: 0,
        }))
    }

    fn plan_zeroes(&self, memory: &DmaMemory, rules: &Rules) -> Result<Planned, QueueError> {
        let bounds = Bounds {
            feature: WRITE_ZEROES,
            segments: ZEROES_MAX_SEGMENTS,
            sectors: ZEROES_MAX_SECTORS,
            flags: UNMAP,
        };
        let segments = match self.segments(memory, rules, &bounds)? {
            Ok(segments) => segments,
            Err(status) => return Ok(Err(status)),
        };
        let bytes = segments.iter().map(|(extent, _)| extent.len).sum();
        Ok(Ok(Plan::Ask {
            operation: Operation::WriteZeroes(segments),
            bytes,
        }))
    }

    /// Where on the disk the data are; nothing may be on the other side of the chain.
    fn extent(&self, data: &Ranges, other: &Ranges, rules: &Rules) -> Result<Extent, Status> {
        let len = data.len();
        // What was written has to be told in 32 bits, with the status.
        if other.len() != 0 || !len.is_multiple_of(SECTOR) || len >= u64::from(u32::MAX) {
            return Err(Status::IoErr);
        }
        within(self.sector, len / SECTOR, rules.capacity)
    }

    /// Reads the segments of DISCARD and WRITE_ZEROES.
    fn segments(
        &self,
        memory: &DmaMemory,
        rules: &Rules,
        bounds: &Bounds,
    ) -> Result<Result<Vec<(Extent, Unmap)>, Status>, QueueError> {
        if !rules.features.has(bounds.feature) {
            return Ok(Err(Status::Unsupported));
        }
        let len = self.sent.len();
        let most = SEGMENT * u64::from(bounds.segments);
        let good = len.is_multiple_of(SEGMENT) && (SEGMENT..=most).contains(&len);
        if !good || self.room.len() != 0 || rules.read_only {
            return Ok(Err(Status::IoErr));
        }
        let mut bytes = vec![0; len as usize];
        copy(self.head, memory, &self.sent, &mut bytes)?;
        let segments = bytes.chunks_exact(SEGMENT as usize);
        Ok(segments.map(|bytes| bounds.segment(bytes, rules)).collect())
    }

    fn buffers(
        &self,
        memory: &DmaMemory,
        ranges: &Ranges,
        access: Access,
    ) -> Result<Buffers, QueueError> {
        let head = self.head;
        Buffers::guest(memory, ranges.as_slice(), access)
            .map_err(|OutOfReach { source, .. }| QueueError::Memory { head, source })
    }
}

/// What to do, or what a wrong request is answered with.
type Planned = Result<Plan, Status>;

/// What segments of a kind may be.
struct Bounds {
    feature: Features,
    segments: u32,
    sectors: u32,
    flags: u32,
}

impl Bounds {
    /// Reads one: sector le64, number of sectors le32, flags le32.
    fn segment(&self, bytes: &[u8], rules: &Rules) -> Result<(Extent, Unmap), Status> {
        let (sector, rest) = bytes.split_at(8);
        let (count, flags) = rest.split_at(4);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        let (sector, count, flags) = (word(sector), word(count), word(flags));
        if flags & !u64::from(self.flags) != 0 {
            return Err(Status::Unsupported);
        }
        if count > self.sectors.into() {
            return Err(Status::IoErr);
        }
        let unmap = match flags & u64::from(UNMAP) {
            0 => Unmap::Forbidden,
            _ => Unmap::Allowed,
        };
        Ok((within(sector, count, rules.capacity)?, unmap))
    }
}

/// Sectors as bytes, if the disk has them.
fn within(sector: u64, count: u64, capacity: u64) -> Result<Extent, Status> {
    let end = sector.checked_add(count).filter(|end| *end <= capacity);
    // A disk has less than 2^64 bytes, so these do not overflow.
    end.map(|_| Extent {
        offset: sector * SECTOR,
        len: count * SECTOR,
    })
    .ok_or(Status::IoErr)
}

/// Copies out of the guest's memory as many bytes as there are in `to`.
fn copy(head: u16, memory: &DmaMemory, ranges: &Ranges, to: &mut [u8]) -> Result<(), QueueError> {
    let mut left = to;
    for (at, len) in ranges.as_slice() {
        let (piece, rest) = left.split_at_mut(left.len().min(*len as usize));
        memory
            .read_slice(piece, GuestAddress(at.0))
            .map_err(|source| QueueError::Memory { head, source })?;
        left = rest;
    }
    Ok(())
}
