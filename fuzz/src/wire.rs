//! Messages of vhost-user as bytes, with the files that come with them.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Bytes of a header: request, flags, size.
pub const HEADER: usize = 12;
/// Flags of a reply.
pub const REPLY: u32 = 5;
/// A flag: an answer is wanted.
pub const NEED_REPLY: u32 = 8;
/// More files than one message may bring.
const FILES: usize = 64;

/// Returns a header.
pub fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size].map(u32::to_ne_bytes).concat()
}

/// Returns the word at an offset, or 0.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u32::from_ne_bytes(*chunk.unwrap_or(&[0; 4]))
}

/// Returns the double word at an offset, or 0.
pub fn long(bytes: &[u8], at: usize) -> u64 {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk());
    u64::from_ne_bytes(*chunk.unwrap_or(&[0; 8]))
}

/// Sends what there is room for. Whoever is not there any more gets nothing.
pub fn send(socket: &UnixStream, bytes: &[u8]) -> bool {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::send(socket, bytes, flags).is_ok_and(|sent| sent == bytes.len())
}

/// Sends bytes with files, as far as there is room.
pub fn send_with_files(socket: &UnixStream, bytes: &[u8], files: &[BorrowedFd<'_>]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(
        &files[..files.len().min(FILES)],
    ));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags);
    sent.is_ok_and(|sent| sent == bytes.len())
}

/// Receives exactly so many bytes; `None` at the end.
pub fn receive(socket: &UnixStream, len: usize, files: &mut Vec<File>) -> Option<Vec<u8>> {
    let (mut bytes, mut at) = (vec![0; len], 0);
    while at < len {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes[at..])];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(socket, &mut into, &mut ancillary, flags).ok()?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                files.extend(more.map(File::from));
            }
        }
        if received.bytes == 0 {
            return None;
        }
        at += received.bytes;
    }
    Some(bytes)
}
