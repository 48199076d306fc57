//! A port that takes out of a guest's frames what is for the metadata service.
//!
//! ARP is answered here, and packets have their Ethernet header off and on here, so that [`Stack`] knows IP only. What
//! the service sends goes to whoever has asked last: there is one guest on the link.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use umbra_net::{FRAME_MAX, Header, Offloads, Port, Sent};

use crate::data::{Metadata, MetadataConfig};
use crate::stack::Stack;

/// The service's own address on the link: one that is administered locally.
const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Types of frames.
const TYPE_IP: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Bytes of an ARP message over Ethernet and IP.
const ARP: usize = 28;
/// The beginning of one that asks, and of one that answers (RFC 826).
const ARP_REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
const ARP_REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];
/// Answers to ARP that wait; more questions are not answered.
const REPLIES: usize = 8;

/// A port with the service before it.
pub struct MetadataPort {
    inner: Box<dyn Port>,
    address: Ipv4Addr,
    stack: Stack,
    /// Frames that answer ARP, whole.
    replies: Vec<[u8; ETHERNET + ARP]>,
    /// Who asked last.
    guest: [u8; 6],
}

/// What a frame is.
#[derive(Debug, PartialEq, Eq)]
enum Frame<'a> {
    /// A question for the service's address, and who asks.
    Arp([u8; ARP]),
    /// A packet for the service.
    Packet(&'a [u8]),
    /// Somebody else's.
    Other,
}

impl MetadataPort {
    /// Puts the service before a port.
    pub fn new(inner: Box<dyn Port>, data: Metadata, config: MetadataConfig) -> Self {
        Self {
            inner,
            address: config.address,
            stack: Stack::new(data, config, Instant::now()),
            replies: Vec::new(),
            guest: [0xff; 6],
        }
    }

    /// Answers a question (the message is one, for this address).
    fn reply(&mut self, message: [u8; ARP]) {
        let (asker, address) = (&message[8..14], &message[14..18]);
        let mut frame = [0; ETHERNET + ARP];
        frame[..6].copy_from_slice(asker);
        frame[6..12].copy_from_slice(&MAC);
        frame[12..14].copy_from_slice(&TYPE_ARP);
        let reply = &mut frame[ETHERNET..];
        reply[..8].copy_from_slice(&ARP_REPLY);
        reply[8..14].copy_from_slice(&MAC);
        reply[14..18].copy_from_slice(&self.address.octets());
        reply[18..24].copy_from_slice(asker);
        reply[24..28].copy_from_slice(address);
        if self.replies.len() < REPLIES {
            self.replies.push(frame);
        }
    }

    /// The next frame of the service's own, behind its header; its length.
    fn own(&mut self, frame: &mut [u8]) -> Option<usize> {
        frame.get_mut(..Header::LEN)?.fill(0);
        if !self.replies.is_empty() {
            let reply = self.replies.remove(0);
            frame
                .get_mut(Header::LEN..)?
                .get_mut(..reply.len())?
                .copy_from_slice(&reply);
            return Some(Header::LEN + reply.len());
        }
        let packet = self.stack.give()?;
        let len = Header::LEN + ETHERNET + packet.len();
        let ethernet = frame.get_mut(Header::LEN..len)?;
        ethernet[..6].copy_from_slice(&self.guest);
        ethernet[6..12].copy_from_slice(&MAC);
        ethernet[12..14].copy_from_slice(&TYPE_IP);
        ethernet[ETHERNET..].copy_from_slice(&packet);
        Some(len)
    }
}

/// Looks at a frame without its virtio header.
fn classify(frame: &[u8], address: Ipv4Addr) -> Frame<'_> {
    let Some((ethernet, payload)) = frame.split_at_checked(ETHERNET) else {
        return Frame::Other;
    };
    let kind = [ethernet[12], ethernet[13]];
    if kind == TYPE_ARP
        && let Some(message) = payload.first_chunk::<ARP>()
        && message[..8] == ARP_REQUEST
        && message[24..28] == address.octets()
        // Its own address is no question of a guest that means well: it is about to take it.
        && message[14..18] != address.octets()
    {
        return Frame::Arp(*message);
    }
    let is_ip = kind == TYPE_IP && payload.first().is_some_and(|byte| byte >> 4 == 4);
    match is_ip && payload.get(16..20) == Some(&address.octets()) {
        true => Frame::Packet(payload),
        false => Frame::Other,
    }
}

impl Port for MetadataPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd()
    }

    fn can_offload(&self) -> bool {
        self.inner.can_offload()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.inner.set_offloads(offloads)
    }

    fn enable(&mut self, on: bool) -> io::Result<()> {
        self.inner.enable(on)
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<Sent> {
        let Some((_, ethernet)) = frame.split_at_checked(Header::LEN) else {
            return self.inner.send(frame);
        };
        match classify(ethernet, self.address) {
            Frame::Other => return self.inner.send(frame),
            Frame::Arp(message) => self.reply(message),
            Frame::Packet(packet) => {
                self.guest.copy_from_slice(&ethernet[6..12]);
                self.stack.take(packet, Instant::now());
            }
        }
        Ok(Sent::Done)
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        debug_assert!(frame.len() >= FRAME_MAX);
        let now = Instant::now();
        if self.stack.due(now).is_some_and(|due| due <= now) {
            self.stack.work(now);
        }
        match self.own(frame) {
            Some(len) => Ok(Some(len)),
            None => self.inner.receive(frame),
        }
    }

    fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        match self.replies.is_empty() {
            true => self.stack.due(now),
            false => Some(now),
        }
    }

    fn has_unsent(&self) -> bool {
        self.inner.has_unsent()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests;
