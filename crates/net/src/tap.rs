//! TAP interfaces (Linux `Documentation/networking/tuntap.rst`).
//!
//! Frames have a virtio header before them, which the kernel reads and writes itself. An interface of
//! several queues has one descriptor for each.
//!
//! Unsafe because these are `ioctl`s: each takes or gives a plain value.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{
    IFF_ATTACH_QUEUE, IFF_DETACH_QUEUE, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, IFNAMSIZ,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::ioctl_iow_nr;

use crate::{Header, Offloads, Port, Sent};

const DEVICE: &str = "/dev/net/tun";
/// `'T'`.
const TUN: u32 = 0x54;

ioctl_iow_nr!(TUNSETIFF, TUN, 202, libc::c_int);
ioctl_iow_nr!(TUNSETOFFLOAD, TUN, 208, libc::c_uint);
ioctl_iow_nr!(TUNSETVNETHDRSZ, TUN, 216, libc::c_int);
ioctl_iow_nr!(TUNSETQUEUE, TUN, 217, libc::c_int);

/// `TUN_F_…` (linux/if_tun.h).
const F_CSUM: libc::c_ulong = 1;
const F_TSO4: libc::c_ulong = 2;
const F_TSO6: libc::c_ulong = 4;
const F_TSO_ECN: libc::c_ulong = 8;

/// `struct ifreq` with flags.
#[repr(C)]
struct Request {
    name: [u8; IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Why there is no such interface.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// No name.
    #[error("{name:?} is no name of an interface: 1 to 15 characters, no slash, no space")]
    Name {
        /// What was asked for.
        name: String,
    },
    /// The host has no TAP interfaces.
    #[error("cannot open {DEVICE}: load the kernel's module tun, or give this process the device")]
    Device(#[source] io::Error),
    /// The user may not.
    #[error(
        "not permitted to use the TAP interface {name:?}: make it for this user with \
         'ip tuntap add dev {name} mode tap vnet_hdr{more} user NAME', or run as root"
    )]
    Permission {
        /// The interface.
        name: String,
        /// What else the command needs.
        more: &'static str,
    },
    /// Somebody else uses it.
    #[error(
        "the TAP interface {name:?} is in use by another process; stop that one, or take another"
    )]
    Busy {
        /// The interface.
        name: String,
    },
    /// It was made otherwise.
    #[error(
        "the interface {name:?} is no TAP interface with {queues} queue(s): make it with \
         'ip tuntap add dev {name} mode tap vnet_hdr{more}'"
    )]
    Kind {
        /// The interface.
        name: String,
        /// How many queues were wanted.
        queues: usize,
        /// What else the command needs.
        more: &'static str,
    },
    /// The host refused something.
    #[error("the host refused {call} for the TAP interface {name:?}")]
    Host {
        /// The interface.
        name: String,
        /// Which call.
        call: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
}

/// One queue of a TAP interface.
#[derive(Debug)]
pub struct Tap {
    file: File,
    enabled: bool,
    several: bool,
}

impl Tap {
    /// Opens an interface with so many queues, at least one. It is made if there is none and the user may
    /// make one; then it goes with the last queue.
    ///
    /// # Errors
    /// If it cannot be had.
    pub fn open(name: &str, queues: usize) -> Result<Vec<Self>, TapError> {
        let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c == '\0';
        if name.is_empty()
            || name.len() >= IFNAMSIZ
            || name == "."
            || name == ".."
            || name.contains(bad)
        {
            return Err(TapError::Name {
                name: name.to_owned(),
            });
        }
        (0..queues.max(1))
            .map(|_| Self::open_queue(name, queues))
            .collect()
    }

    fn open_queue(name: &str, queues: usize) -> Result<Self, TapError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(TapError::Device)?;
        let several = queues > 1;
        let more = if several { " multi_queue" } else { "" };
        let queue_flag = if several { IFF_MULTI_QUEUE } else { 0 };
        let mut request = Request {
            name: [0; IFNAMSIZ],
            flags: (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | queue_flag) as libc::c_short,
            rest: [0; 22],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        let failed = |call, source: io::Error| {
            let name = name.to_owned();
            match source.raw_os_error() {
                Some(libc::EPERM | libc::EACCES) => TapError::Permission { name, more },
                Some(libc::EBUSY) => TapError::Busy { name },
                Some(libc::EINVAL) => TapError::Kind { name, queues, more },
                _ => TapError::Host { name, call, source },
            }
        };
        // SAFETY: the kernel reads and writes a `struct ifreq`, which the request is as large as.
        check(unsafe { ioctl_with_mut_ref(&file, TUNSETIFF(), &mut request) })
            .map_err(|error| failed("TUNSETIFF", error))?;
        let len = Header::LEN as libc::c_int;
        // SAFETY: the kernel reads one integer.
        check(unsafe { ioctl_with_ref(&file, TUNSETVNETHDRSZ(), &len) })
            .map_err(|error| failed("TUNSETVNETHDRSZ", error))?;
        Ok(Self {
            file,
            enabled: true,
            several,
        })
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Port for Tap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn can_offload(&self) -> bool {
        true
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let Offloads {
            checksum,
            tso4,
            tso6,
            ecn,
        } = offloads;
        let flags = [
            (checksum, F_CSUM),
            (tso4, F_TSO4),
            (tso6, F_TSO6),
            (ecn, F_TSO_ECN),
        ];
        let set = flags.iter().filter(|(wanted, _)| *wanted);
        let value = set.fold(0, |value, (_, flag)| value | flag);
        // SAFETY: the argument is a plain number.
        check(unsafe { ioctl_with_val(&self.file, TUNSETOFFLOAD(), value) })
    }

    fn enable(&mut self, on: bool) -> io::Result<()> {
        if !self.several || self.enabled == on {
            return Ok(());
        }
        let flag = if on {
            IFF_ATTACH_QUEUE
        } else {
            IFF_DETACH_QUEUE
        };
        let request = Request {
            name: [0; IFNAMSIZ],
            flags: flag as libc::c_short,
            rest: [0; 22],
        };
        // SAFETY: the kernel reads a `struct ifreq`, which the request is as large as.
        check(unsafe { ioctl_with_ref(&self.file, TUNSETQUEUE(), &request) })?;
        self.enabled = on;
        Ok(())
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<Sent> {
        // A frame is written whole or not at all.
        match rustix::io::write(&self.file, frame).map_err(io::Error::from) {
            Ok(_) => Ok(Sent::Done),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Ok(Sent::Later),
                // The queue or the interface has gone.
                Some(libc::EBADFD | libc::ENODEV) => Err(error),
                // It is down, the frame is nonsense, or the host is short of memory.
                _ => Ok(Sent::Dropped),
            },
        }
    }

    fn receive(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        match self.file.read(frame) {
            Ok(0) => Ok(None),
            Ok(len) => Ok(Some(len)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        for name in ["", "a/b", "a b", ".", "..", "sixteen-letters-", "tap%d"] {
            let refused = Tap::open(name, 1);
            assert!(matches!(refused, Err(TapError::Name { .. })), "{name}");
        }
    }

    #[test]
    fn the_request_is_as_large_as_the_kernels() {
        assert_eq!(size_of::<Request>(), size_of::<libc::ifreq>());
    }

    /// Needs the right to make interfaces; without it the refusal says what to do.
    #[test]
    fn an_interface_that_is_not_there_is_made_and_goes_with_its_last_queue() {
        let name = format!("umbra{}", std::process::id() % 1_000_000);
        let there = || std::path::Path::new("/sys/class/net").join(&name).exists();
        assert!(!there());
        for queues in [1, 2] {
            match Tap::open(&name, queues) {
                Ok(taps) => {
                    assert_eq!((taps.len(), there()), (queues, true));
                    drop(taps);
                    // The kernel ends it in its own time.
                    let begin = std::time::Instant::now();
                    while there() && begin.elapsed() < std::time::Duration::from_secs(10) {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                    assert!(!there());
                }
                Err(error @ TapError::Permission { .. }) => {
                    assert!(error.to_string().contains("ip tuntap add"), "{error}");
                }
                Err(TapError::Device(_)) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}
