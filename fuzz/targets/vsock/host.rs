//! Programs of the host: those that connect, and those that are connected to.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use umbra_fuzz::Source;

/// A port that is served, and one where nobody is taken.
pub const SERVED: u32 = 5;
pub const BUSY: u32 = 6;
/// More programs than this only cost time.
const PROGRAMS: usize = 16;

/// The programs.
pub struct Host {
    path: PathBuf,
    servers: [UnixListener; 2],
    programs: Vec<UnixStream>,
}

impl Host {
    /// Says where the device has its socket.
    pub fn path() -> PathBuf {
        std::env::temp_dir().join(format!("umbra-fuzz-{}", std::process::id()))
    }

    /// Starts the servers.
    pub fn new() -> Self {
        let path = Self::path();
        let servers = [SERVED, BUSY].map(|port| {
            let path = format!("{}_{port}", path.display());
            let _ = std::fs::remove_file(&path);
            let server = UnixListener::bind(path).expect("the host has sockets");
            server.set_nonblocking(true).expect("it is a socket");
            server
        });
        // One waits there, and no other has a place.
        rustix::net::listen(&servers[1], 0).expect("it is a socket");
        Self {
            path,
            servers,
            programs: Vec::new(),
        }
    }

    /// Keeps a program.
    fn keep(&mut self, program: UnixStream) {
        program.set_nonblocking(true).expect("it is a socket");
        self.programs.truncate(PROGRAMS - 1);
        self.programs.push(program);
    }

    /// Connects a program to the device.
    pub fn connect(&mut self) -> Option<&mut UnixStream> {
        // Too many that the device has not looked at yet.
        let program = UnixStream::connect(&self.path).ok()?;
        self.keep(program);
        self.programs.last_mut()
    }

    /// Does one thing. What is refused is no matter.
    pub fn step(&mut self, source: &mut Source<'_>) {
        let choice = source.below(9);
        if choice < 3 {
            return self.arrive(choice, source);
        }
        let count = self.programs.len();
        if count == 0 {
            return;
        }
        let number = source.below(count);
        let program = &mut self.programs[number];
        let mut bytes = [0; 0x4000];
        let len = 1 << source.below(15);
        match choice {
            3 => drop(self.programs.swap_remove(number)),
            4 => {
                let how = source.pick(&[Shutdown::Read, Shutdown::Write, Shutdown::Both]);
                let _ = program.shutdown(how);
            }
            5 | 6 => {
                let _ = program.write(&bytes[..len]);
            }
            _ => {
                let _ = program.read(&mut bytes[..len]);
            }
        }
    }

    fn arrive(&mut self, choice: usize, source: &mut Source<'_>) {
        match choice {
            0 => {
                let text = format!("CONNECT {}\n", source.below(4));
                let cut = source.below(text.len() + 1);
                let Some(program) = self.connect() else {
                    return;
                };
                let whole = source.below(4) != 0;
                let text = if whole { &text[..] } else { &text[..cut] };
                let _ = program.write(text.as_bytes());
            }
            1 => {
                let text = source.bytes(20).to_vec();
                if let Some(program) = self.connect() {
                    let _ = program.write(&text);
                }
            }
            _ => {
                let server = &self.servers[usize::from(source.below(8) == 0)];
                if let Ok((program, _)) = server.accept() {
                    self.keep(program);
                }
            }
        }
    }

    /// Waits for what a program hears; `None` if it has ended.
    pub fn hear(program: &mut UnixStream, wanted: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; wanted];
        let mut len = 0;
        while len < wanted {
            match program.read(&mut bytes[len..]) {
                Ok(0) => return None,
                Ok(some) => len += some,
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                Err(_) => return None,
            }
        }
        Some(bytes)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for port in [SERVED, BUSY] {
            let _ = std::fs::remove_file(format!("{}_{port}", self.path.display()));
        }
    }
}
