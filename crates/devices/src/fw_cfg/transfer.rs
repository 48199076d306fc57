//! Transfers between an item and guest memory, described by the guest in sixteen bytes:
//!
//! ```text
//!   +0   control   1 error, 2 read, 4 skip, 8 select (the item is the upper half), 16 write
//!   +4   length    all big-endian
//!   +8   address
//! ```
//! When it is over, control is zero, or 1 for a transfer that failed. It is over when the guest's
//! OUT is: nothing is under way that somebody would have to wait for.

use umbra_slots::{AccessError, Gpa};

use super::{FwCfg, State};

const ERROR: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const SKIP: u32 = 1 << 2;
const SELECT: u32 = 1 << 3;
const WRITE: u32 = 1 << 4;

/// Zeros behind the end of an item are written in pieces of this size.
static ZEROS: [u8; 0x1000] = [0; 0x1000];

/// What the guest asked for.
struct Request {
    control: u32,
    length: u32,
    address: u64,
}

impl Request {
    fn parse(bytes: &[u8; 16]) -> Self {
        let word = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            control: word(0),
            length: word(4),
            address: u64::from(word(8)) << 32 | u64::from(word(12)),
        }
    }

    fn has(&self, bit: u32) -> bool {
        self.control & bit != 0
    }
}

impl FwCfg {
    /// Does what the sixteen bytes at `address` say, and tells the guest how it went.
    pub(super) fn transfer(&self, state: &mut State, address: u64) {
        let mut bytes = [0; 16];
        let result = match self.memory.read(Gpa(address), &mut bytes) {
            Ok(()) => self.serve(state, &Request::parse(&bytes)),
            Err(_) => Err(Refused),
        };
        let control = if result.is_ok() { 0 } else { ERROR };
        // A guest that put its request where there is no RAM cannot be told.
        if let Err(error) = self.memory.write(Gpa(address), &control.to_be_bytes()) {
            tracing::debug!(%error, "a transfer was asked for from no RAM");
        }
    }

    fn serve(&self, state: &mut State, request: &Request) -> Result<(), Refused> {
        if request.has(SELECT) {
            self.select(state, (request.control >> 16) as u16);
        }
        let length = request.length as usize;
        if request.has(READ) {
            let rest = self.rest(state.cursor);
            let data = &rest[..length.min(rest.len())];
            self.copy_out(request.address, data, length)?;
            state.cursor.offset += data.len();
        } else if request.has(WRITE) {
            // Nothing can be written; of nothing there is nothing to refuse.
            return if length == 0 { Ok(()) } else { Err(Refused) };
        } else if request.has(SKIP) {
            let rest = self.rest(state.cursor).len();
            state.cursor.offset += length.min(rest);
        }
        Ok(())
    }

    /// Writes `data`, and zeros up to `length` bytes.
    fn copy_out(&self, address: u64, data: &[u8], length: usize) -> Result<(), Refused> {
        self.memory.write(Gpa(address), data)?;
        let mut done = data.len();
        while done < length {
            let at = address.checked_add(done as u64).ok_or(Refused)?;
            let piece = (length - done).min(ZEROS.len());
            self.memory.write(Gpa(at), &ZEROS[..piece])?;
            done += piece;
        }
        Ok(())
    }
}

/// The transfer failed; the guest is told no more than that.
#[derive(Debug)]
struct Refused;

impl From<AccessError> for Refused {
    fn from(_: AccessError) -> Self {
        Self
    }
}
