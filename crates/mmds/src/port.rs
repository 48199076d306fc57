//! Ports that take out of a guest's frames what is for the metadata service.
//!
//! ARP is answered here, and packets have their Ethernet header off and on here, so that [`Stack`] knows IP only. What
//! the service sends goes to whoever has asked last: there is one guest on the link.
//!
//! # Several queues
//!
//! An interface has a port for each pair of queues, and one service behind all of them. A connection is not one
//! queue's: Linux chooses another one for a socket whenever nothing of it is under way, by the processor that sends
//! (`skb->ooo_okay` in `netdev_pick_tx`), so that what begins on one queue goes on by another one.
//!
//! What the service has for the guest is given by the port by which the guest has spoken last, which is its *voice*:
//! its thread is awake, and two threads would mix up the order of segments. Another port becomes the voice with its
//! next frame for the service; what waits goes there. If the driver takes nothing from the voice's queue, it waits
//! until the guest says it again by another one, as TCP does.
//!
//! A port by which nothing was said to the service, or all was answered, does not look at the lock: the frames of the
//! host cost nothing more.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
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
    /// Which of the interface's ports it is.
    index: usize,
    /// It may be the voice, and the service may have something.
    listens: bool,
    /// Taken after no other lock; the data's is taken under it.
    service: Arc<Mutex<Service>>,
}

/// The service of an interface.
struct Service {
    begin: Instant,
    stack: Stack,
    /// Frames that answer ARP, whole.
    replies: VecDeque<[u8; ETHERNET + ARP]>,
    /// Who asked last.
    guest: [u8; 6],
    /// The port by which the guest has spoken last.
    voice: usize,
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
    /// Puts a service before the ports of an interface, one for each pair of queues.
    ///
    /// # Panics
    /// If [`MetadataConfig::is_valid`] does not hold.
    pub fn before(ports: Vec<Box<dyn Port>>, data: Metadata, config: MetadataConfig) -> Vec<Self> {
        assert!(config.is_valid(), "{} is not link local", config.address);
        let begin = Instant::now();
        let service = Arc::new(Mutex::new(Service {
            begin,
            stack: Stack::new(data, config, begin),
            replies: VecDeque::new(),
            guest: [0xff; 6],
            voice: 0,
        }));
        let before = |(index, inner)| Self {
            inner,
            address: config.address,
            index,
            listens: false,
            service: Arc::clone(&service),
        };
        ports.into_iter().enumerate().map(before).collect()
    }

    /// The service's next frame for the guest, behind its header; its length. `None` if there is none for this port.
    fn own(&mut self, frame: &mut [u8]) -> Option<usize> {
        if !self.listens {
            return None;
        }
        let now = Instant::now();
        let mut service = self.service.lock();
        let given = match service.voice == self.index {
            true => service.give(frame, now),
            false => None,
        };
        // Nothing comes of itself where nothing is due.
        self.listens = given.is_some() || service.due(self.index).is_some();
        given
    }
}

impl Service {
    /// Answers a question (the message is one, for this address).
    fn reply(&mut self, message: [u8; ARP], own: Ipv4Addr) {
        let (asker, address) = (&message[8..14], &message[14..18]);
        let mut frame = [0; ETHERNET + ARP];
        frame[..6].copy_from_slice(asker);
        frame[6..12].copy_from_slice(&MAC);
        frame[12..14].copy_from_slice(&TYPE_ARP);
        let reply = &mut frame[ETHERNET..];
        reply[..8].copy_from_slice(&ARP_REPLY);
        reply[8..14].copy_from_slice(&MAC);
        reply[14..18].copy_from_slice(&own.octets());
        reply[18..24].copy_from_slice(asker);
        reply[24..28].copy_from_slice(address);
        if self.replies.len() < REPLIES {
            self.replies.push_back(frame);
        }
    }

    /// The next frame, behind its header; its length.
    fn give(&mut self, frame: &mut [u8], now: Instant) -> Option<usize> {
        if self.stack.due().is_some_and(|due| due <= now) {
            self.stack.work(now);
        }
        frame.get_mut(..Header::LEN)?.fill(0);
        if let Some(reply) = self.replies.pop_front() {
            let len = Header::LEN + reply.len();
            frame.get_mut(Header::LEN..len)?.copy_from_slice(&reply);
            return Some(len);
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

    /// When there is something for a port, or to do.
    fn due(&self, port: usize) -> Option<Instant> {
        match self.replies.is_empty() {
            _ if port != self.voice => None,
            true => self.stack.due(),
            false => Some(self.begin),
        }
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
        let kind = classify(ethernet, self.address);
        if kind == Frame::Other {
            return self.inner.send(frame);
        }
        let mut service = self.service.lock();
        service.voice = self.index;
        self.listens = true;
        match kind {
            Frame::Other => {}
            Frame::Arp(message) => service.reply(message, self.address),
            Frame::Packet(packet) => {
                service.guest.copy_from_slice(&ethernet[6..12]);
                service.stack.take(packet, Instant::now());
            }
        }
        Ok(Sent::Done)
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        debug_assert!(frame.len() >= FRAME_MAX);
        match self.own(frame) {
            Some(len) => Ok(Some(len)),
            None => self.inner.receive(frame),
        }
    }

    fn due(&self) -> Option<Instant> {
        if !self.listens {
            return self.inner.due();
        }
        let own = self.service.lock().due(self.index);
        own.into_iter().chain(self.inner.due()).min()
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
