//! The socket that a front end connects to.
//!
//! Its file is for the user alone (0600) from the moment on at which one can connect: a socket has a file when it is
//! bound, and takes connections when it listens. One that somebody has left is replaced; the last of two processes
//! that do that in the same moment wins.

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use crate::ListenError;

/// Connections that wait for the one before to end.
const BACKLOG: i32 = 8;

/// A socket that listens. Its file is removed in the end, if it still is the one.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    file: Option<(PathBuf, (u64, u64))>,
}

impl Socket {
    /// Listens at a path.
    ///
    /// # Errors
    /// If somebody does already, something else is there, or the host refuses.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let host = |source: io::Error| ListenError::Host {
            path: path.to_owned(),
            source,
        };
        make_room(path)?;
        let make = || -> io::Result<OwnedFd> {
            let address = SocketAddrUnix::new(path)?;
            let flags = SocketFlags::CLOEXEC;
            let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            bind(&fd, &address)?;
            std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
            listen(&fd, BACKLOG)?;
            Ok(fd)
        };
        let listener = make().map_err(host)?.into();
        Ok(Self {
            listener,
            file: identity(path).map(|file| (path.to_owned(), file)),
        })
    }

    /// Takes one over that listens already, and whose file is somebody else's to remove.
    ///
    /// # Errors
    /// If it is no unix socket that listens.
    pub fn adopt(fd: OwnedFd) -> Result<Self, ListenError> {
        let is_unix = socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
        if !is_unix || !socket_acceptconn(&fd).unwrap_or(false) {
            return Err(ListenError::NotListening { fd: fd.as_raw_fd() });
        }
        Ok(Self {
            listener: fd.into(),
            file: None,
        })
    }

    /// Takes the next connection. Waits for it.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().map(|(stream, _)| stream)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some((path, file)) = &self.file
            && identity(path) == Some(*file)
        {
            // Somebody may be faster.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let file = std::fs::symlink_metadata(path).ok()?;
    Some((file.st_dev(), file.st_ino()))
}

/// Removes a socket that nobody listens at.
fn make_room(path: &Path) -> Result<(), ListenError> {
    let path = path.to_owned();
    let Ok(file) = std::fs::symlink_metadata(&path) else {
        return Ok(());
    };
    if !file.file_type().is_socket() {
        return Err(ListenError::NoSocket { path });
    }
    match UnixStream::connect(&path) {
        Ok(_) => Err(ListenError::Taken { path }),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(&path).map_err(|source| ListenError::Host { path, source })
        }
        // Whether anybody serves it cannot be told: it is left alone.
        Err(source) => Err(ListenError::Host { path, source }),
    }
}
