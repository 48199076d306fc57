//! The other end of a network interface: answers ARP for any address but the guest's own, and pings.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xaa];
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
/// For experiments: nobody in a guest wants it (IEEE 802).
const UNKNOWN: [u8; 2] = [0x88, 0xb5];
const ICMP: u8 = 1;
const ECHO_REQUEST: u8 = 8;

/// It answers as long as somebody is connected.
#[derive(Clone, Default)]
pub struct Peer(Arc<Mutex<Option<UnixStream>>>);

impl Peer {
    /// Serves a socket, for one machine after the other.
    pub fn serve(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let peer = Self::default();
        let theirs = peer.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                *theirs.0.lock().unwrap() = Some(stream.try_clone().unwrap());
                // It ends when the machine does.
                let _ = theirs.answer(stream);
            }
        });
        peer
    }

    /// Sends so many frames to everybody that nobody knows what to do with.
    pub fn send(&self, count: usize) {
        for _ in 0..count {
            let frame = [&[0xff; 6][..], &MAC, &UNKNOWN, &[0; 46]].concat();
            self.put(&frame).unwrap();
        }
    }

    fn put(&self, frame: &[u8]) -> io::Result<()> {
        let mut stream = self.0.lock().unwrap();
        let stream = stream.as_mut().expect("somebody is connected");
        let len = (frame.len() as u32).to_be_bytes();
        stream.write_all(&[&len, frame].concat())
    }

    fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let mut len = [0; 4];
            stream.read_exact(&mut len)?;
            let mut frame = vec![0; u32::from_be_bytes(len) as usize];
            stream.read_exact(&mut frame)?;
            let is_arp = frame.len() >= 42 && frame[12..14] == ARP && frame[21] == 1;
            let is_ip = frame.len() >= 42 && frame[12..14] == IPV4 && frame[14] == 0x45;
            // Who asks for its own address wants to know whether somebody else has it.
            if is_arp && frame[28..32] != frame[38..42] && frame[28..32] != [0; 4] {
                self.put(&arp_reply(&frame))?;
            } else if is_ip && frame[23] == ICMP && frame[34] == ECHO_REQUEST {
                self.put(&echo_reply(frame))?;
            }
        }
    }
}

/// Says that the address which was asked for is ours.
fn arp_reply(asked: &[u8]) -> Vec<u8> {
    let (mac, ip, wanted) = (&asked[22..28], &asked[28..32], &asked[38..42]);
    let reply = [0, 2];
    [
        mac,
        &MAC,
        &ARP,
        &asked[14..20],
        &reply,
        &MAC,
        wanted,
        mac,
        ip,
    ]
    .concat()
}

/// Sends a ping back.
fn echo_reply(mut frame: Vec<u8>) -> Vec<u8> {
    let (from, to) = (frame[26..30].to_vec(), frame[30..34].to_vec());
    frame.copy_within(6..12, 0);
    frame[6..12].copy_from_slice(&MAC);
    frame[26..30].copy_from_slice(&to);
    frame[30..34].copy_from_slice(&from);
    // The request's number was 8: the checksum, a sum of complements, is larger by that.
    frame[34] = 0;
    let sum = u32::from(u16::from_be_bytes([frame[36], frame[37]])) + 0x0800;
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[36..38].copy_from_slice(&(folded as u16).to_be_bytes());
    frame
}
