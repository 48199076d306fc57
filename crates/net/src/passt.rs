//! User-mode networking by passt (<https://passt.top>): a process that speaks for the guest with the
//! host's own sockets. No root, no interface; the guest gets an address by DHCP, and sees the host's network
//! as the host does.

use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{FRAME_MAX, Header, Mac, Port, Stream};

/// Why there is no user-mode network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PasstError {
    /// The program is not there.
    #[error(
        "{program:?} was not found, which user-mode networking needs; install the package passt"
    )]
    Missing {
        /// What was looked for.
        program: PathBuf,
    },
    /// It did not start.
    #[error("cannot start {program:?} for user-mode networking")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It ended at once.
    #[error("{program:?} ended at once ({status}): {message}")]
    Ended {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it said last.
        message: String,
    },
    /// It does not speak.
    #[error("{program:?} runs and does not answer; is it passt?")]
    Silent {
        /// The program.
        program: PathBuf,
    },
}

/// The process. Ends when it is dropped, and when its connection is closed.
#[derive(Debug)]
pub struct Passt {
    child: Child,
    complaints: Complaints,
}

/// The largest frame that the guest is told of (DHCP, NDP). A frame of up to some 48 KiB is one piece in the
/// kernel's socket: it is taken whole or not at all, and read whole. Larger ones are cut, and a passt older
/// than September 2024 loses track of a stream in which the rest of a frame comes in several pieces.
const MTU: u16 = 32768;

/// Bytes that may be under way in the socket, if the host lets them.
const SOCKET_BUFFER: usize = 16 << 20;

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many of its complaints are logged.
const LOGGED: usize = 20;
/// What a shell says of a program that is not there.
const NOT_FOUND: i32 = 127;

impl Passt {
    /// The program, looked for as a shell does.
    pub const PROGRAM: &'static str = "passt";

    /// Starts it for a guest with this address, with more arguments of its own (`-t 8022:22` forwards a
    /// port, say; the MTU is set already), and waits until it answers: some milliseconds.
    ///
    /// # Errors
    /// If it is not there, or does not work here.
    pub fn start(
        program: &Path,
        arguments: &[String],
        guest: Mac,
        mtu: Option<u16>,
    ) -> Result<(Self, Stream), PasstError> {
        let failed = |source: io::Error| PasstError::Start {
            program: program.to_owned(),
            source,
        };
        let (here, there) = UnixStream::pair().map_err(failed)?;
        for end in [&here, &there] {
            // As passt does with a socket that it accepts: what does not fit it drops, and TCP has to
            // notice. The kernel gives what it allows.
            let set = rustix::net::sockopt::set_socket_send_buffer_size(end, SOCKET_BUFFER);
            set.map_err(|errno| failed(errno.into()))?;
        }
        // By the shell's means: the standard library passes no other descriptors than these three.
        let mut child = Command::new("/bin/sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 </dev/null"])
            .arg(program)
            .args(["--foreground", "--quiet", "--stderr", "--fd", "3"])
            .args(["--mtu", &mtu.unwrap_or(MTU).to_string()])
            .args(arguments)
            .stdin(OwnedFd::from(there))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let complaints = Complaints::start(child.stderr.take()).map_err(failed)?;
        let mut passt = Self { child, complaints };
        let mut stream = Stream::new(here).map_err(failed)?;
        if stream.send(&question(guest)).is_ok()
            && answers_within(&mut stream, PATIENCE).map_err(failed)?
        {
            return Ok((passt, stream));
        }
        drop(stream);
        Err(passt.why(program))
    }

    /// Tells why it does not answer.
    fn why(&mut self, program: &Path) -> PasstError {
        let program = program.to_owned();
        let until = Instant::now() + Duration::from_secs(1);
        // One that has ended has closed its connection a moment before.
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.try_wait() {
                let message = self.complaints.last();
                return match status.code() {
                    Some(NOT_FOUND) => PasstError::Missing { program },
                    _ => PasstError::Ended {
                        program,
                        status,
                        message,
                    },
                };
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        PasstError::Silent { program }
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // One that has ended cannot be killed, and is waited for all the same.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.complaints.end();
    }
}

/// Asks who has an address, which passt answers for all the world (RFC 826).
fn question(guest: Mac) -> Vec<u8> {
    let mut frame = vec![0; Header::LEN];
    frame.extend([0xff; 6]);
    frame.extend(guest.0);
    // ARP; Ethernet and IPv4; a request.
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(guest.0);
    // From nobody yet (RFC 5227), about an address for documentation (RFC 5737).
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend([192, 0, 2, 1]);
    frame
}

/// Waits for some frame; `false` if none comes.
fn answers_within(stream: &mut Stream, patience: Duration) -> io::Result<bool> {
    let until = Instant::now() + patience;
    let mut frame = vec![0; FRAME_MAX];
    loop {
        match stream.receive(&mut frame) {
            Ok(Some(_)) => return Ok(true),
            Ok(None) => {}
            Err(_) => return Ok(false),
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        poll(
            &mut [PollFd::new(&stream.fd(), PollFlags::IN)],
            Some(&timeout),
        )?;
    }
}

/// What it writes to its standard error: into the log, as far as that is of use.
#[derive(Debug)]
struct Complaints {
    last: Arc<Mutex<String>>,
    thread: JoinHandle<()>,
}

impl Complaints {
    fn start(from: Option<ChildStderr>) -> io::Result<Self> {
        let last = Arc::<Mutex<String>>::default();
        let kept = last.clone();
        let thread = std::thread::Builder::new()
            .name("passt-log".into())
            .spawn(move || {
                let lines = from
                    .into_iter()
                    .flat_map(|from| BufReader::new(from).lines());
                // An error is the end; lines that are no text are none.
                for (number, line) in lines.map_while(Result::ok).enumerate() {
                    match number {
                        0..LOGGED => tracing::info!(passt = %line),
                        LOGGED => tracing::info!("passt says more, which is not logged"),
                        _ => {}
                    }
                    if !line.trim().is_empty() {
                        *kept.lock().unwrap_or_else(PoisonError::into_inner) = line;
                    }
                }
            })?;
        Ok(Self { last, thread })
    }

    /// Waits for the process, which has ended, to have said everything; not for ever, as it may have left
    /// a process behind that could say more.
    fn end(&mut self) {
        let until = Instant::now() + Duration::from_millis(200);
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns its last words; it has ended.
    fn last(&mut self) -> String {
        self.end();
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_empty() {
            "it said nothing".to_owned()
        } else {
            last.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn refusal(program: &str, arguments: &[&str]) -> PasstError {
        let arguments: Vec<String> = arguments.iter().map(|word| (*word).to_owned()).collect();
        Passt::start(Path::new(program), &arguments, GUEST, None).unwrap_err()
    }

    #[test]
    fn one_that_is_not_there_or_ends_says_so() {
        let missing = refusal("no-such-passt", &[]);
        assert!(matches!(missing, PasstError::Missing { .. }), "{missing}");
        assert!(missing.to_string().contains("install the package passt"));
        let ended = refusal("/bin/ls", &[]);
        let text = ended.to_string();
        assert!(
            text.contains("exit status: 2") && text.contains("--help"),
            "{text}"
        );
    }

    #[test]
    fn one_that_does_not_speak_is_waited_for_in_vain() {
        let (here, _there) = UnixStream::pair().unwrap();
        let mut stream = Stream::new(here).unwrap();
        assert!(!answers_within(&mut stream, Duration::from_millis(20)).unwrap());
    }
}
