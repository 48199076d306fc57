//! System calls that no safe crate has for memory which others may change, and locks of open files.
//!
//! Unsafe because they take raw pointers; each is good for the reasons beside it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Buffers;

/// Most pieces that the kernel takes at a time.
pub(crate) const PIECES_MAX: usize = 1024;

/// Fills all of `to` from a file.
pub(crate) fn read(file: BorrowedFd<'_>, offset: u64, to: &Buffers) -> io::Result<()> {
    all(
        offset,
        to,
        "the file ends before the disk does",
        |pieces, at| {
            // SAFETY: 1. the pieces lie in `to`, which keeps them mapped; 2. they are never under a
            // reference; 3. there are as many as is said.
            unsafe { libc::preadv(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32, at) }
        },
    )
}

/// Writes all of `from` to a file.
pub(crate) fn write(file: BorrowedFd<'_>, offset: u64, from: &Buffers) -> io::Result<()> {
    all(
        offset,
        from,
        "the file takes no more bytes",
        |pieces, at| {
            // SAFETY: 1. the pieces lie in `from`, which keeps them mapped; 2. they are only read; 3. there
            // are as many as is said.
            unsafe { libc::pwritev(file.as_raw_fd(), pieces.as_ptr(), pieces.len() as i32, at) }
        },
    )
}

/// Repeats a call until all bytes were moved.
fn all(
    offset: u64,
    buffers: &Buffers,
    ended: &'static str,
    call: impl Fn(&[libc::iovec], i64) -> isize,
) -> io::Result<()> {
    let mut done = 0;
    while done < buffers.len() {
        let part = buffers.part(done, buffers.len() - done);
        let pieces: Vec<_> = part.take(PIECES_MAX).collect();
        let at = offset.checked_add(done as u64);
        let at = at
            .and_then(|at| i64::try_from(at).ok())
            .ok_or(io::ErrorKind::InvalidInput)?;
        match call(&pieces, at) {
            0 => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, ended)),
            moved if moved > 0 => done += moved as usize,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Who else may open a file that is locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Those who only read.
    Readers,
    /// Nobody.
    Nobody,
}

/// Locks a whole file for as long as it is open (an open-file-description lock: it belongs to the open
/// file, not to the process). `WouldBlock` if somebody else holds one that it does not go with.
pub(crate) fn lock(file: BorrowedFd<'_>, sharing: Sharing) -> io::Result<()> {
    let kind = match sharing {
        Sharing::Readers => libc::F_RDLCK,
        Sharing::Nobody => libc::F_WRLCK,
    };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // SAFETY: the kernel reads one `flock`, which is there.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &whole) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(io::ErrorKind::WouldBlock.into()),
        _ => Err(error),
    }
}
