//! The header that every packet begins with (virtio 1.3, 5.10.6). Only this file knows its layout.
//!
//! The crate `virtio-vsock` has one too. Its packets want guest memory that is one piece a buffer, and data
//! in one buffer; a chain may be cut anywhere (2.7.4).

/// The context identifier of the host (5.10.4).
pub const HOST_CID: u64 = 2;

/// A socket that is a stream of bytes: VIRTIO_VSOCK_TYPE_STREAM.
pub const STREAM: u16 = 1;

/// Flags of [`Op::Shutdown`]: the sender will not receive any more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender will not send any more.
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Asks for a connection.
    Request,
    /// Grants it.
    Response,
    /// Ends a connection at once, or refuses it.
    Reset,
    /// Ends one or both directions.
    Shutdown,
    /// Carries bytes.
    Data,
    /// Says how much room there is.
    CreditUpdate,
    /// Asks how much room there is.
    CreditRequest,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// Returns the number that a header has.
    pub fn number(self) -> u16 {
        self as u16 + 1
    }

    /// Returns what a number means, if anything.
    pub fn of(number: u16) -> Option<Self> {
        let index = usize::from(number).checked_sub(1)?;
        Self::ALL.get(index).copied()
    }
}

/// The header: what is in it, whether or not it makes sense.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Whose packet it is.
    pub src_cid: u64,
    /// Whom it is for.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes behind the header.
    pub len: u32,
    /// The type of the socket.
    pub kind: u16,
    /// What it does; see [`Op`].
    pub op: u16,
    /// Of [`Op::Shutdown`].
    pub flags: u32,
    /// Bytes that the sender has room for, whether or not they are in use.
    pub buf_alloc: u32,
    /// Bytes of the connection that have left that room again.
    pub fwd_cnt: u32,
}

impl Header {
    /// Its length in bytes.
    pub const LEN: usize = 44;

    /// Reads one.
    pub fn of(bytes: &[u8; Self::LEN]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Returns it as it is in memory.
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut rest = &mut bytes[..];
        put(&mut rest, self.src_cid.to_le_bytes());
        put(&mut rest, self.dst_cid.to_le_bytes());
        put(&mut rest, self.src_port.to_le_bytes());
        put(&mut rest, self.dst_port.to_le_bytes());
        put(&mut rest, self.len.to_le_bytes());
        put(&mut rest, self.kind.to_le_bytes());
        put(&mut rest, self.op.to_le_bytes());
        put(&mut rest, self.flags.to_le_bytes());
        put(&mut rest, self.buf_alloc.to_le_bytes());
        put(&mut rest, self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// Makes the reset that answers this packet of the guest with this CID. The type is the one that it has,
    /// known or not: the driver looks its sockets up by it.
    pub fn refusal(&self, guest_cid: u64) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: guest_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset.number(),
            ..Self::default()
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (bytes, behind) = rest
        .split_first_chunk()
        .expect("the fields are as long as a header");
    *rest = behind;
    *bytes
}

fn put<const N: usize>(rest: &mut &mut [u8], bytes: [u8; N]) {
    let (place, behind) = std::mem::take(rest)
        .split_first_chunk_mut()
        .expect("the fields are as long as a header");
    *place = bytes;
    *rest = behind;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let header = Header {
            src_cid: 0x0102,
            dst_cid: 2,
            src_port: 0x11,
            dst_port: 0x22,
            len: 0x33,
            kind: STREAM,
            op: Op::Data.number(),
            flags: 0x44,
            buf_alloc: 0x55,
            fwd_cnt: 0xffff_fff0,
        };
        let bytes = header.bytes();
        for (at, byte) in [
            (0, 2),
            (1, 1),
            (8, 2),
            (16, 0x11),
            (20, 0x22),
            (24, 0x33),
            (28, 1),
            (30, 5),
            (32, 0x44),
            (36, 0x55),
            (40, 0xf0),
            (43, 0xff),
        ] {
            assert_eq!(bytes[at], byte, "{at}");
        }
        assert_eq!(Header::of(&bytes), header);
    }

    #[test]
    fn operations_have_the_numbers_1_to_7() {
        for number in 1..=7 {
            assert_eq!(Op::of(number).map(Op::number), Some(number));
        }
        for number in [0, 8, u16::MAX] {
            assert_eq!(Op::of(number), None);
        }
        let some = [Op::Request, Op::Reset, Op::Data, Op::CreditRequest];
        assert_eq!(some.map(Op::number), [1, 3, 5, 7]);
    }

    #[test]
    fn a_refusal_goes_back_to_where_the_packet_came_from() {
        let header = Header {
            src_cid: 9,
            dst_cid: 7,
            src_port: 1,
            dst_port: 2,
            kind: 5,
            ..Header::default()
        };
        let refusal = header.refusal(3);
        assert_eq!((refusal.src_cid, refusal.dst_cid), (7, 3));
        assert_eq!((refusal.src_port, refusal.dst_port), (2, 1));
        assert_eq!((refusal.kind, refusal.op, refusal.len), (5, 3, 0));
    }
}
