//! Requests and answers (virtio 1.3, 5.15.6.2).

use std::io::{Read, Write};

use umbra_virtio::{Chain, Fault, QueueError};

/// Bytes of a request.
const LEN: usize = 24;

/// What a driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To have blocks from an address on.
    Plug(Blocks),
    /// To give them back.
    Unplug(Blocks),
    /// To give all back.
    UnplugAll,
    /// Which of them are plugged.
    State(Blocks),
    /// Something that does not exist.
    Unknown,
}

/// Some blocks, as a driver names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    pub address: u64,
    pub count: u16,
}

/// The device's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Ack,
    /// It is done, and so are blocks.
    State(Plugged),
    /// The requested size does not allow it.
    Nack,
    /// Not now.
    Busy,
    /// Not ever: it makes no sense.
    Error,
}

/// How many of some blocks are plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plugged {
    All = 0,
    None = 1,
    Some = 2,
}

impl Request {
    /// Reads one.
    pub fn read(chain: &Chain<'_>) -> Result<Self, Fault> {
        let mut bytes = [0; LEN];
        let read = chain.reader()?.read_exact(&mut bytes);
        read.map_err(|_| QueueError::Short { head: chain.head() })?;
        Ok(Self::parse(&bytes))
    }

    fn parse(bytes: &[u8; LEN]) -> Self {
        let [kind, _, _, _, rest @ ..] = bytes.as_chunks::<2>().0 else {
            unreachable!("it is longer");
        };
        let mut address = [0; 8];
        address.copy_from_slice(rest[..4].as_flattened());
        let blocks = Blocks {
            address: u64::from_le_bytes(address),
            count: u16::from_le_bytes(rest[4]),
        };
        match u16::from_le_bytes(*kind) {
            0 => Self::Plug(blocks),
            1 => Self::Unplug(blocks),
            2 => Self::UnplugAll,
            3 => Self::State(blocks),
            _ => Self::Unknown,
        }
    }
}

impl Answer {
    /// Bytes of an answer.
    const LEN: usize = 10;

    /// Looks whether there is room for one.
    pub fn check_room(chain: &Chain<'_>) -> Result<(), Fault> {
        match chain.writer()?.available_bytes() {
            len if len < Self::LEN => Err(QueueError::Short { head: chain.head() }.into()),
            _ => Ok(()),
        }
    }

    /// Writes it; returns how many bytes that were.
    pub fn write(self, chain: &Chain<'_>) -> Result<u32, Fault> {
        chain.writer()?.write_all(&self.bytes())?;
        Ok(Self::LEN as u32)
    }

    fn bytes(self) -> [u8; Self::LEN] {
        let (kind, state) = match self {
            Self::Ack => (0, 0),
            Self::State(plugged) => (0, plugged as u8),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
        };
        let mut bytes = [0; Self::LEN];
        bytes[0] = kind;
        bytes[8] = state;
        bytes
    }
}
