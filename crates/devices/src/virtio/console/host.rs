//! What is at the host's end of a port.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What a port would do, if its host's end were ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// Read.
    pub input: bool,
    /// Write.
    pub output: bool,
}

/// The host's end of a port. Only the device's thread calls it; nothing may block.
pub trait PortHost: Send {
    /// Adds what has to be waited for. What is ready is found by trying.
    fn watch<'a>(&'a self, wants: Wants, fds: &mut Vec<PollFd<'a>>);

    /// Looks who has come or gone.
    fn tend(&mut self) {}

    /// Tells whether somebody is there.
    fn is_open(&self) -> bool;

    /// Reads into the front of `to`; nothing if there is nothing now.
    fn read(&mut self, to: &mut [u8]) -> usize;

    /// Takes bytes from the front of `from`; none if there is no room now. All are taken, and dropped, where
    /// nobody is there.
    fn write(&mut self, from: &[u8]) -> usize;
}

/// Why nobody can be listened to at a socket.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen at the socket {path:?}: name a path in a directory that can be written, where nobody listens"
)]
pub struct ListenError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A unix socket where one client at a time is served; others wait until it has gone.
#[derive(Debug)]
pub struct SocketHost {
    listener: UnixListener,
    path: PathBuf,
    client: Option<Client>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    /// It sends nothing more.
    ended: bool,
    /// It is no more; what it has sent may be here yet.
    gone: bool,
}

impl SocketHost {
    /// Listens at a path. A socket that somebody has left there is replaced. The socket goes with this.
    ///
    /// # Errors
    /// If the path is taken, or the host refuses it.
    pub fn listen(path: &Path) -> Result<Self, ListenError> {
        let failed = |source| ListenError {
            path: path.to_owned(),
            source,
        };
        remove_stale(path);
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            client: None,
        })
    }

    fn accept(&mut self) -> Option<Client> {
        // A client that has gone again, or for whom there is no descriptor, is none.
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(Client {
            stream,
            ended: false,
            gone: false,
        })
    }
}

/// Removes a socket that nobody listens at.
fn remove_stale(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(refused) {
        // If that fails binding says why.
        let _ = std::fs::remove_file(path);
    }
}

impl Drop for SocketHost {
    fn drop(&mut self) {
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Client {
    fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl PortHost for SocketHost {
    fn watch<'a>(&'a self, wants: Wants, fds: &mut Vec<PollFd<'a>>) {
        match &self.client {
            None => fds.push(PollFd::new(&self.listener, PollFlags::IN)),
            // Its end is known, and would be heard of for ever.
            Some(Client { gone: true, .. }) => {}
            Some(client) => {
                let mut flags = PollFlags::empty();
                if wants.input && !client.ended {
                    flags |= PollFlags::IN;
                }
                if wants.output {
                    flags |= PollFlags::OUT;
                }
                fds.push(PollFd::new(&client.stream, flags));
            }
        }
    }

    fn tend(&mut self) {
        if let Some(client) = &mut self.client {
            client.gone |= client.has_hung_up();
        }
        if self
            .client
            .as_ref()
            .is_some_and(|client| client.gone && client.ended)
        {
            self.client = None;
            // The next one is heard of when the guest was told that this one has gone.
            return;
        }
        if self.client.is_none() {
            self.client = self.accept();
        }
    }

    fn is_open(&self) -> bool {
        self.client.as_ref().is_some_and(|client| !client.gone)
    }

    fn read(&mut self, to: &mut [u8]) -> usize {
        let Some(client) = self.client.as_mut().filter(|client| !client.ended) else {
            return 0;
        };
        match client.stream.read(to) {
            Ok(0) if to.is_empty() => return 0,
            Ok(0) => client.ended = true,
            Ok(len) => return len,
            Err(error) if is_later(&error) => return 0,
            Err(_) => (client.ended, client.gone) = (true, true),
        }
        // That was the rest of what it had sent.
        self.client.take_if(|client| client.gone);
        0
    }

    fn write(&mut self, from: &[u8]) -> usize {
        let Some(client) = self.client.as_mut().filter(|client| !client.gone) else {
            return from.len();
        };
        match client.stream.write(from) {
            Ok(len) => len,
            Err(error) if is_later(&error) => 0,
            Err(_) => {
                client.gone = true;
                self.client.take_if(|client| client.ended);
                from.len()
            }
        }
    }
}

/// A file that output goes to. There is no input.
#[derive(Debug)]
pub struct FileHost {
    file: File,
    path: PathBuf,
    has_failed: bool,
}

impl FileHost {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::create(path)?,
            path: path.to_owned(),
            has_failed: false,
        })
    }
}

impl PortHost for FileHost {
    fn watch<'a>(&'a self, _: Wants, _: &mut Vec<PollFd<'a>>) {}

    fn is_open(&self) -> bool {
        true
    }

    fn read(&mut self, _: &mut [u8]) -> usize {
        0
    }

    fn write(&mut self, from: &[u8]) -> usize {
        if let Err(error) = self.file.write_all(from)
            && !self.has_failed
        {
            self.has_failed = true;
            let path = &self.path;
            tracing::warn!(?path, %error, "a file loses output of a console");
        }
        from.len()
    }
}
