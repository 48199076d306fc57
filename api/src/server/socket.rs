//! The socket: one's own, and nobody's who is there already.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody listens there.
    #[error("another process serves at {path:?}; end that one, or take another path")]
    Live {
        /// Where.
        path: PathBuf,
    },
    /// Something is there that is no socket.
    #[error("{path:?} is there, and no socket; take another path")]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
    /// The host refused it.
    #[error("cannot make the socket {path:?}; check that its folder is there and can be written")]
    Host {
        /// Where.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// There is no thread for it.
    #[error("cannot start the thread that serves; raise the limit of processes")]
    Thread {
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

/// Makes a socket that its user alone can reach.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    clear(path)?;
    let host = |source| BindError::Host {
        path: path.into(),
        source,
    };
    // Between making it and changing its mode nobody could connect who may not: the mask is the process's, and other
    // threads make files, too. So it is made elsewhere in the folder, and comes with its mode.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let hidden = PathBuf::from(name);
    // One of a process that had this number before.
    let _ = std::fs::remove_file(&hidden);
    let listener = UnixListener::bind(&hidden).map_err(host)?;
    let shown = rustix::fs::chmod(&hidden, Mode::from_raw_mode(0o600))
        .map_err(io::Error::from)
        // A link does not replace what has come meanwhile, as renaming would.
        .and_then(|()| std::fs::hard_link(&hidden, path));
    let _ = std::fs::remove_file(&hidden);
    shown.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => BindError::Live { path: path.into() },
        _ => host(error),
    })?;
    Ok(listener)
}

/// Takes away a socket that nobody listens on any more.
fn clear(path: &Path) -> Result<(), BindError> {
    let host = |source| BindError::Host {
        path: path.into(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(host(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NoSocket { path: path.into() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(host)
        }
        // A full backlog is that of somebody who lives.
        _ => Err(BindError::Live { path: path.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_is_its_users_alone_and_a_live_one_is_left() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("api.sock");
        let first = bind(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
        assert!(matches!(bind(&path), Err(BindError::Live { .. })));
        UnixStream::connect(&path).unwrap();
        drop(first);
        let _second = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_left() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("api.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(BindError::NoSocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let nowhere = place.path().join("no/api.sock");
        assert!(matches!(bind(&nowhere), Err(BindError::Host { .. })));
    }
}
