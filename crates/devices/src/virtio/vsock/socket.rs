//! Sockets of the host: the one that programs connect to, and the ones that the guest is connected to.
//! None of them blocks.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with,
    connect, recv, send, socket_with,
};

/// Bytes of the longest path of a socket: 108 with the zero at its end (unix(7)).
const PATH_MAX: usize = 107;
/// Bytes of the longest `_PORT` behind it.
const SUFFIX_MAX: usize = 11;

/// Why there is no such socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VsockError {
    /// Something is there.
    #[error(
        "the socket {path:?} exists already: remove it if nobody uses it, or choose another path"
    )]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// With the number of a port it would be no path of a socket any more.
    #[error("the socket's path {path:?} has {len} bytes, of {max} at most; choose a shorter one")]
    Path {
        /// The path.
        path: PathBuf,
        /// Its length.
        len: usize,
        /// The longest.
        max: usize,
    },
    /// The host refused.
    #[error(
        "the host refused the socket {path:?}; check that its directory exists and can be written"
    )]
    Host {
        /// Where.
        path: PathBuf,
        /// Its error.
        #[source]
        source: io::Error,
    },
}

/// The most bytes that the path of the device's socket may have: the number of a port follows.
pub const VSOCK_PATH_MAX: usize = PATH_MAX - SUFFIX_MAX;

/// The socket that programs of the host connect to. Its file is removed in the end, if it still is the one and does not stay.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Makes it.
    pub fn new(path: &Path, stays: bool) -> Result<Self, VsockError> {
        let len = path.as_os_str().as_bytes().len();
        let path = path.to_owned();
        if len > VSOCK_PATH_MAX {
            let max = VSOCK_PATH_MAX;
            return Err(VsockError::Path { path, len, max });
        }
        let socket = match UnixListener::bind(&path) {
            Ok(socket) => socket,
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(VsockError::Exists { path });
            }
            Err(source) => return Err(VsockError::Host { path, source }),
        };
        let file = identity(&path);
        // From here on it is removed if something fails.
        let mut listener = Self { socket, path, file };
        match listener.socket.set_nonblocking(true) {
            Ok(()) => {
                if stays {
                    listener.file = None;
                }
                Ok(listener)
            }
            Err(source) => Err(VsockError::Host {
                path: listener.path.clone(),
                source,
            }),
        }
    }

    /// Returns what to wait for.
    pub fn socket(&self) -> &UnixListener {
        &self.socket
    }

    /// Takes a connection; `None` if there is none.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            match accept_with(&self.socket, flags) {
                Ok(socket) => return Ok(Some(socket)),
                Err(Errno::AGAIN) => return Ok(None),
                // Whoever it was has gone.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Connects to whoever serves a port; `WouldBlock` if that one is asked by too many at the moment.
    pub fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(&*path)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        loop {
            match connect(&socket, &address) {
                Ok(()) => return Ok(socket),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_some() && identity(&self.path) == self.file {
            // Somebody may be faster.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Which file a path names, without following a link at its end.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.st_dev(), found.st_ino()))
}

/// Sends bytes; returns how many the host has taken now.
pub fn send_some(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(len) => return Ok(len),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives bytes, and leaves them in the socket where `peek` says so. `None` if there are none now.
pub fn receive_some(socket: &OwnedFd, to: &mut [u8], peek: Peek) -> io::Result<Option<usize>> {
    let flags = match peek {
        Peek::Leave => RecvFlags::PEEK | RecvFlags::DONTWAIT,
        Peek::Take => RecvFlags::DONTWAIT,
    };
    loop {
        match recv(socket, &mut *to, flags) {
            Ok((_, len)) => return Ok(Some(len)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether bytes that are received stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek {
    /// They stay.
    Leave,
    /// They do not.
    Take,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_is_no_place_for_the_socket() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("v.sock");
        let first = Listener::new(&path, false).unwrap();
        let refused = Listener::new(&path, false).unwrap_err().to_string();
        assert!(
            refused.contains("v.sock") && refused.contains("remove it"),
            "{refused}"
        );
        drop(first);
        assert!(!path.exists(), "it is removed in the end");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(
            Listener::new(&path, false),
            Err(VsockError::Exists { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn only_the_own_file_is_removed() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("v.sock");
        let listener = Listener::new(&path, false).unwrap();
        // An inode that is free may be given to the next file: the old one stays.
        std::fs::rename(&path, place.path().join("moved")).unwrap();
        std::fs::write(&path, "somebody else's").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_path_has_room_for_the_number_of_a_port() {
        let place = tempfile::tempdir_in("/tmp").unwrap();
        let fill = VSOCK_PATH_MAX - place.path().as_os_str().len() - 1;
        let longest = place.path().join("x".repeat(fill));
        let served = UnixListener::bind(format!("{}_{}", longest.display(), u32::MAX)).unwrap();
        let listener = Listener::new(&longest, false).unwrap();
        listener.connect(u32::MAX).unwrap();
        served.accept().unwrap();
        let refused = Listener::new(&place.path().join("x".repeat(fill + 1)), false);
        assert!(matches!(
            refused,
            Err(VsockError::Path {
                len: 97,
                max: 96,
                ..
            })
        ));
        let nowhere = Listener::new(&place.path().join("no/v"), false).unwrap_err();
        assert!(nowhere.to_string().contains("directory"));
    }
}
