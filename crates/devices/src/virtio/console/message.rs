//! Control messages (virtio 1.3, 5.3.6.2).

/// Bytes of a message without what follows it.
pub const LEN: usize = 8;

/// What the device says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say<'a> {
    /// VIRTIO_CONSOLE_DEVICE_ADD: there is a port.
    Add,
    /// VIRTIO_CONSOLE_CONSOLE_PORT: it is a console.
    Console,
    /// VIRTIO_CONSOLE_PORT_NAME.
    Name(&'a str),
    /// VIRTIO_CONSOLE_PORT_OPEN: whether somebody is at the host's end.
    Open(bool),
    /// VIRTIO_CONSOLE_RESIZE: columns, rows.
    Resize(u16, u16),
}

impl Say<'_> {
    /// Returns the message about a port.
    pub fn bytes(self, port: u32) -> Vec<u8> {
        let (event, value): (u16, u16) = match self {
            Self::Add => (1, 1),
            Self::Console => (4, 1),
            Self::Resize(..) => (5, 0),
            Self::Open(open) => (6, open.into()),
            Self::Name(_) => (7, 1),
        };
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        match self {
            Self::Name(name) => bytes.extend(name.as_bytes()),
            // As 5.3.6.2 has it; some versions of Linux read it the other way round.
            Self::Resize(columns, rows) => {
                bytes.extend(columns.to_le_bytes());
                bytes.extend(rows.to_le_bytes());
            }
            _ => {}
        }
        bytes
    }
}

/// What the driver says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hear {
    /// VIRTIO_CONSOLE_DEVICE_READY: it wants to know of the ports, or has failed.
    DeviceReady(bool),
    /// VIRTIO_CONSOLE_PORT_READY: it has added a port, or has failed to.
    PortReady(u32, bool),
    /// VIRTIO_CONSOLE_PORT_OPEN: somebody has opened a port in the guest, or closed it.
    PortOpen(u32, bool),
}

impl Hear {
    /// Reads a message; `None` if it is none that a driver sends.
    pub fn read(bytes: [u8; LEN]) -> Option<Self> {
        let [a, b, c, d, event, zero, value, high] = bytes;
        let port = u32::from_le_bytes([a, b, c, d]);
        let value = u16::from_le_bytes([value, high]) != 0;
        match u16::from_le_bytes([event, zero]) {
            0 => Some(Self::DeviceReady(value)),
            3 => Some(Self::PortReady(port, value)),
            6 => Some(Self::PortOpen(port, value)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_drivers_read_them() {
        let table: [(Say<'_>, &[u8]); 5] = [
            (Say::Add, &[2, 1, 0, 0, 1, 0, 1, 0]),
            (Say::Console, &[2, 1, 0, 0, 4, 0, 1, 0]),
            (Say::Open(false), &[2, 1, 0, 0, 6, 0, 0, 0]),
            (Say::Name("ab"), &[2, 1, 0, 0, 7, 0, 1, 0, b'a', b'b']),
            (
                Say::Resize(0x102, 0x304),
                &[2, 1, 0, 0, 5, 0, 0, 0, 2, 1, 4, 3],
            ),
        ];
        for (say, bytes) in table {
            assert_eq!(say.bytes(0x102), bytes, "{say:?}");
        }
        let table = [
            ([0, 0, 0, 0, 0, 0, 1, 0], Some(Hear::DeviceReady(true))),
            (
                [1, 2, 0, 0, 3, 0, 0, 0],
                Some(Hear::PortReady(0x201, false)),
            ),
            ([1, 0, 0, 0, 6, 0, 1, 0], Some(Hear::PortOpen(1, true))),
            ([1, 0, 0, 0, 1, 0, 1, 0], None),
            ([1, 0, 0, 0, 6, 1, 1, 0], None),
        ];
        for (bytes, hear) in table {
            assert_eq!(Hear::read(bytes), hear, "{bytes:?}");
        }
    }
}
