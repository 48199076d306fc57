//! Standard input to the guest: one thread reads, another sends, so that Ctrl-A x is heard also
//! while the guest reads nothing.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read};
use rustix::pipe::{PipeFlags, pipe_with};
use umbra_vmm::{ConsoleInput, Handle};

use super::escape::{Ask, Escape, HELP};

/// How many readings wait for the guest before nobody reads on.
const READINGS: usize = 256;
const READING: usize = 4096;

/// The two threads, until this is dropped.
pub struct Keyboard {
    /// Closing it ends the reader.
    quit: Option<OwnedFd>,
    threads: Vec<JoinHandle<()>>,
}

impl Keyboard {
    /// Starts the threads. The escape key counts only on a terminal: a pipe may hold any byte.
    pub fn start(machine: Handle, terminal: bool) -> io::Result<Self> {
        let (cancel, quit) = pipe_with(PipeFlags::CLOEXEC)?;
        let (to_sender, from_reader) = sync_channel(READINGS);
        let input = machine.console();
        let sender = std::thread::Builder::new()
            .name("console-send".into())
            .spawn(move || send_all(&input, &from_reader))?;
        let mut keyboard = Self {
            quit: Some(quit),
            threads: vec![sender],
        };
        let escape = terminal.then(Escape::default);
        let reader = std::thread::Builder::new()
            .name("console-read".into())
            .spawn(move || {
                Reader {
                    machine,
                    escape,
                    to_sender,
                }
                .read_all(&cancel)
            })?;
        keyboard.threads.push(reader);
        Ok(keyboard)
    }
}

impl Drop for Keyboard {
    /// Waits for both threads. The sender ends with the machine, which must have ended.
    fn drop(&mut self) {
        self.quit = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Sends until the reader or the machine ends.
fn send_all(input: &ConsoleInput, readings: &Receiver<Vec<u8>>) {
    while let Ok(reading) = readings.recv() {
        if input.send(&reading).is_err() {
            return;
        }
    }
}

struct Reader {
    machine: Handle,
    escape: Option<Escape>,
    to_sender: SyncSender<Vec<u8>>,
}

impl Reader {
    /// Reads until the input or the run ends. The end of the input is not the machine's end.
    fn read_all(mut self, cancel: &OwnedFd) {
        let mut buffer = [0; READING];
        while wait_for_input(cancel) {
            match read(io::stdin(), &mut buffer) {
                Err(Errno::INTR | Errno::AGAIN) => {}
                Ok(0) | Err(_) => return,
                Ok(len) => {
                    if self.take(&buffer[..len]).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Passes on what was typed; fails when nobody takes it any more.
    fn take(&mut self, mut typed: &[u8]) -> Result<(), ()> {
        let Some(escape) = &mut self.escape else {
            return self.to_sender.send(typed.to_vec()).map_err(drop);
        };
        let mut guest = Vec::new();
        while !typed.is_empty() {
            let (used, ask) = escape.filter(typed, &mut guest);
            typed = &typed[used..];
            match ask {
                Some(Ask::End) => self.machine.stop(),
                Some(Ask::Help) => {
                    let mut stdout = io::stdout();
                    // Help that cannot be shown is no reason to end.
                    let _ = stdout
                        .write_all(HELP.as_bytes())
                        .and_then(|()| stdout.flush());
                }
                None => {}
            }
        }
        if guest.is_empty() {
            Ok(())
        } else {
            self.to_sender.send(guest).map_err(drop)
        }
    }
}

/// Waits for input; false when the run has ended.
fn wait_for_input(cancel: &OwnedFd) -> bool {
    let stdin = io::stdin();
    loop {
        let mut fds = [
            PollFd::new(&stdin, PollFlags::IN),
            PollFd::new(cancel, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) if !fds[1].revents().is_empty() => return false,
            Ok(_) => return true,
        }
    }
}
