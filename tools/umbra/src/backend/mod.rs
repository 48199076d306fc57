//! `umbra backend`: a virtio device by itself, for the monitor of another process.
//!
//! ```text
//!   files, helpers, socket ── the device ── signals ── the filter of system calls ── "… listens at PATH"
//!                                                        └─ front ends, one after the other
//! ```
//!
//! What needs the host's file system or another program is done first: from the filter on, which comes before the
//! first front end, none of that is possible any more.

mod filter;
mod signals;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use umbra_vhost_backend::{ListenError, Server, Socket, Visits};
use umbra_vmm::{ApartError, Device, Helpers, VirtioSpec, device_apart};

use crate::args::{BackendCommand, Serve};
use crate::limits;
use crate::report::BadInput;
use crate::status::Status;
use signals::Signals;

/// How long a disk is waited for that another process holds.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(20);

/// Serves a device until a signal, or the end of the only visit.
pub fn run(arguments: &BackendCommand) -> Result<Status> {
    let spec = arguments.device().map_err(BadInput)?;
    let serve = arguments.serve();
    limits::survive();
    limits::raise(std::slice::from_ref(&spec));
    let socket = socket(serve)?;
    let (device, helpers) = device(&spec)?;
    let server = Server::new(socket, device)?;
    let signals = Signals::start(server.stopper()).context("cannot handle signals")?;
    if !serve.no_seccomp {
        filter::confine(&spec.kind).context("cannot confine this process; see --no-seccomp")?;
    }
    announce(&spec, serve);
    let served = server.serve(match serve.once {
        true => Visits::Once,
        false => Visits::Many,
    });
    // The device before those who work for it.
    drop(server);
    drop(helpers);
    drop(signals);
    served?;
    Ok(Status::Success)
}

/// Makes the device. Its files may still be those of a back end before, which was killed.
fn device(spec: &VirtioSpec) -> Result<(Box<dyn Device>, Helpers), ApartError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match device_apart(spec) {
            Err(error) if error.is_held_elsewhere() && Instant::now() < deadline => {
                std::thread::sleep(LOOK);
            }
            made => return made,
        }
    }
}

fn socket(serve: &Serve) -> Result<Socket> {
    let socket = match (&serve.socket, serve.socket_fd) {
        (Some(path), _) => Socket::bind(path),
        (None, Some(number)) => Socket::adopt(handed_over(number)?),
        (None, None) => unreachable!("the command line has one of both"),
    };
    socket.map_err(|error| match error {
        ListenError::Host { .. } => error.into(),
        wrong => BadInput(wrong.to_string()).into(),
    })
}

/// Takes a copy of a descriptor that somebody has opened for this process.
fn handed_over(number: u16) -> Result<OwnedFd> {
    let take = || {
        let this = pidfd_open(getpid(), PidfdFlags::empty())?;
        pidfd_getfd(this, number.into(), PidfdGetfdFlags::empty())
    };
    take().map_err(|error| {
        BadInput(format!(
            "--socket-fd {number} is no open descriptor ({error})"
        ))
        .into()
    })
}

/// Says in one line, for who waits for it, that front ends can come.
fn announce(spec: &VirtioSpec, serve: &Serve) {
    let place = match (&serve.socket, serve.socket_fd) {
        (Some(path), _) => format!("{path:?}"),
        (None, number) => format!("descriptor {}", number.unwrap_or_default()),
    };
    let mut out = std::io::stdout();
    // Who has closed it does not wait for anything.
    let _ = writeln!(
        out,
        "umbra: virtio-{} {:?} listens at {place}",
        spec.kind.name(),
        spec.id
    )
    .and_then(|()| out.flush());
}
