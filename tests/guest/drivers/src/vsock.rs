//! `vsock PLACE PORT`: connects to the host, which sends back what it gets.

use alloc::vec;
use alloc::vec::Vec;

use virtio_drivers::device::socket::{
    SocketError, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEventType,
};
use virtio_drivers::transport::{DeviceType, SomeTransport};
use virtio_drivers::{Error, Result};

use crate::device::{Place, checksum, failed, find};
use crate::pages::OneToOne;

/// The host (virtio 1.3, 5.10.4).
const HOST: u64 = 2;

/// The guest's own port.
const PORT: u32 = 1234;

/// How much goes there and back: many times what a connection has room for.
const LEN: usize = 40_000;

/// One packet at most.
const PIECE: usize = 3000;

/// How much comes before it is taken.
const ROOM: u32 = 8192;

/// Prints `vsock cid CID`, and `echo CHECKSUM` of what came back; then ends the connection.
pub fn run(place: Place, port: usize) -> core::result::Result<(), &'static str> {
    let transport = find(place, DeviceType::Socket)?;
    let driver = VirtIOSocket::<OneToOne, _>::new(transport)
        .map_err(failed("the device cannot be initialised"))?;
    let mut talk = Talk {
        sockets: VsockConnectionManager::new_with_capacity(driver, ROOM),
        host: VsockAddr {
            cid: HOST,
            port: port as u32,
        },
        there: false,
        over: false,
    };
    crate::println!("vsock cid {}", talk.sockets.guest_cid());
    // More than the stack has room for.
    let sent: Vec<u8> = (0..LEN).map(|at| (at * 5 / 3) as u8).collect();
    let mut got = vec![0; LEN];
    talk.connect().map_err(failed("the connection"))?;
    if !talk.there {
        return Err("the host refuses the connection");
    }
    talk.echo(&sent, &mut got)
        .map_err(failed("what goes there and back"))?;
    if sent != got {
        return Err("what comes back is not what went there");
    }
    crate::println!("echo {:#x}", checksum(&got));
    talk.end().map_err(failed("the end of the connection"))
}

struct Talk {
    sockets: VsockConnectionManager<OneToOne, SomeTransport<'static>>,
    host: VsockAddr,
    /// The host has accepted.
    there: bool,
    /// The connection has ended.
    over: bool,
}

impl Talk {
    fn poll(&mut self) -> Result<()> {
        if let Some(event) = self.sockets.poll()? {
            match event.event_type {
                VsockEventType::Connected => self.there = true,
                VsockEventType::Disconnected { .. } => self.over = true,
                _ => (),
            }
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<()> {
        self.sockets.connect(self.host, PORT)?;
        while !self.there && !self.over {
            self.poll()?;
        }
        Ok(())
    }

    fn echo(&mut self, mut left: &[u8], got: &mut [u8]) -> Result<()> {
        let mut came = 0;
        while came < got.len() && !self.over {
            let piece = &left[..left.len().min(PIECE)];
            if !piece.is_empty() {
                match self.sockets.send(self.host, PORT, piece) {
                    Ok(()) => left = &left[piece.len()..],
                    Err(Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer)) => (),
                    Err(error) => return Err(error),
                }
            }
            self.poll()?;
            let taken = self.sockets.recv(self.host, PORT, &mut got[came..])?;
            if taken > 0 {
                came += taken;
                self.sockets.update_credit(self.host, PORT)?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.sockets.shutdown(self.host, PORT)?;
        while !self.over {
            self.poll()?;
        }
        Ok(())
    }
}
