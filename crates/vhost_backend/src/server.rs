//! One front end after the other.
//!
//! ```text
//!   poll(stop, socket) ── accept ──> poll(stop, connection)
//!         ^                             peek: 0 bytes, it has gone
//!         │                             the message, by the library ──> Backend
//!         '── Backend::forget <── gone, or wrong
//! ```
//!
//! Whoever connects while a front end is there waits. A message is looked at before the library reads it, for the
//! one descriptor that it keeps to itself: that of the channel back to the front end (see `wire`). A look takes
//! descriptors as copies, and leaves the message.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, recvmsg, shutdown,
};
use umbra_virtio::{Device, Event};
use vhost::vhost_user::BackendReqHandler;
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES};

use crate::{Backend, Error, Socket};

/// For how long one failure is told, of all.
const QUIET: Duration = Duration::from_secs(1);

/// How many front ends are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visits {
    /// One.
    Once,
    /// One after the other, until it is stopped.
    Many,
}

/// A device that front ends find behind a socket.
pub struct Server {
    socket: Socket,
    backend: Arc<Mutex<Backend>>,
    stopper: Stopper,
}

/// Ends a [`Server`], from any thread.
#[derive(Clone)]
pub struct Stopper(Arc<Stop>);

struct Stop {
    event: Event,
    /// The connection that is there: whoever waits for it to be read or written goes on when it is shut.
    connection: parking_lot::Mutex<Option<OwnedFd>>,
}

impl Stopper {
    /// Has [`Server::serve`] return as soon as the device has stopped.
    pub fn stop(&self) {
        self.0.event.signal();
        if let Some(connection) = &*self.0.connection.lock() {
            // One that is not connected any more needs none.
            let _ = shutdown(connection, Shutdown::Both);
        }
    }
}

impl Server {
    /// Makes one for a device that no transport has.
    ///
    /// # Errors
    /// If the host refuses an event.
    pub fn new(socket: Socket, device: Box<dyn Device>) -> Result<Self, Error> {
        let stop = Stop {
            event: Event::new().map_err(Error::host("an event"))?,
            connection: parking_lot::Mutex::new(None),
        };
        Ok(Self {
            socket,
            backend: Arc::new(Mutex::new(Backend::new(device))),
            stopper: Stopper(Arc::new(stop)),
        })
    }

    /// Returns what ends it.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Serves front ends, until there shall be no more or it is stopped. The device has stopped then.
    ///
    /// # Errors
    /// If no connection can be taken; and of the only visit, what went wrong with it.
    pub fn serve(&self, visits: Visits) -> Result<(), Error> {
        let mut told = None;
        while self.wait(self.socket.as_fd())? {
            let stream = match self.socket.accept() {
                Ok(stream) => stream,
                // Who wanted in has gone again.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(Error::host("a connection")(error)),
            };
            tracing::debug!("a front end has come");
            let visit = self.visit(stream);
            self.lock().forget();
            *self.stopper.0.connection.lock() = None;
            match visit {
                visit if visits == Visits::Once => return visit,
                Ok(()) => tracing::debug!("the front end has gone"),
                Err(error) => tell(&error, &mut told),
            }
        }
        Ok(())
    }

    /// Waits until something can be read there; `false` if it is time to stop.
    fn wait(&self, fd: BorrowedFd<'_>) -> Result<bool, Error> {
        let stop = &self.stopper.0.event;
        let mut watched = [
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(&fd, PollFlags::IN),
        ];
        loop {
            match poll(&mut watched, None) {
                // The event stays signalled: whoever waits next stops as well.
                Ok(_) if !watched[0].revents().is_empty() => return Ok(false),
                Ok(_) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(error) => return Err(Error::host("to wait")(error)),
            }
        }
    }

    fn visit(&self, stream: UnixStream) -> Result<(), Error> {
        let clone = || stream.as_fd().try_clone_to_owned();
        let seen = clone().map_err(Error::host("a descriptor"))?;
        *self.stopper.0.connection.lock() = Some(clone().map_err(Error::host("a descriptor"))?);
        let mut library = BackendReqHandler::from_stream(stream, self.backend.clone());
        while self.wait(seen.as_fd())? {
            match look(seen.as_fd()).map_err(Error::host("to read a message"))? {
                Look::Gone => return Ok(()),
                Look::Channel(channel) => self.lock().announce_channel(channel),
                Look::Other => {}
            }
            if let Err(error) = library.handle_request() {
                return match self.is_stopped() {
                    true => Ok(()),
                    false => Err(error.into()),
                };
            }
        }
        Ok(())
    }

    fn is_stopped(&self) -> bool {
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut watched = [PollFd::new(&self.stopper.0.event, PollFlags::IN)];
        poll(&mut watched, Some(&now)).is_ok_and(|ready| ready != 0)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Backend> {
        // A panic under it ended `serve`, and nobody comes here again.
        self.backend.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says why a front end was let go, with all its causes. One that comes again and again does not fill the log.
fn tell(error: &Error, told: &mut Option<Instant>) {
    let mut causes = Vec::new();
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    let error = causes.join(": ");
    if told.is_some_and(|told| told.elapsed() < QUIET) {
        tracing::debug!(error, "a front end is let go");
        return;
    }
    *told = Some(Instant::now());
    tracing::warn!(error, "a front end is let go");
}

/// What is next on a connection.
enum Look {
    Gone,
    /// A message that brings the channel to the front end.
    Channel(UnixStream),
    Other,
}

fn look(connection: BorrowedFd<'_>) -> Result<Look, Errno> {
    let mut code = [0; 4];
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut into = [IoSliceMut::new(&mut code)];
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC;
    let seen = match recvmsg(connection, &mut into, &mut ancillary, flags) {
        Ok(seen) => seen.bytes,
        Err(Errno::CONNRESET) => return Ok(Look::Gone),
        Err(error) => return Err(error),
    };
    if seen == 0 {
        return Ok(Look::Gone);
    }
    let mut files = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => files.collect(),
        _ => Vec::new(),
    });
    let is_channel = u32::from_ne_bytes(code) == u32::from(FrontendReq::SET_BACKEND_REQ_FD);
    match files.next() {
        Some(file) if seen == code.len() && is_channel => Ok(Look::Channel(file.into())),
        _ => Ok(Look::Other),
    }
}
