//! Signals of a process that serves a machine.
//!
//! SIGTERM, SIGINT, SIGQUIT, SIGHUP and SIGXCPU end the machine in good order, and then the process, by that signal or
//! with the status that Firecracker has for it; a second one does not wait.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU};
use signal_hook::iterator::{Handle as Close, Signals as Received};
use signal_hook::low_level::emulate_default_handler;
use umbra_api::firecracker::instance::Message;

use crate::console::terminal;

/// A thread that waits for signals, until this is dropped.
pub struct Signals {
    first: Arc<AtomicI32>,
    close: Close,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    /// Starts it.
    pub fn start(owner: Sender<Message>) -> io::Result<Self> {
        let mut received = Received::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGXCPU, SIGCONT])?;
        let close = received.handle();
        let first = Arc::new(AtomicI32::new(0));
        let theirs = first.clone();
        let wait = move || {
            for signal in received.forever() {
                if signal == SIGCONT {
                    // The terminal may have gone meanwhile.
                    let _ = terminal::reenter();
                } else if theirs.swap(signal, Ordering::Relaxed) == 0 {
                    // Who does not hear it has ended.
                    let _ = owner.send(Message::Stop);
                } else {
                    terminal::restore();
                    std::process::exit(128 + signal);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("signals".into())
            .spawn(wait)?;
        Ok(Self {
            first,
            close,
            thread: Some(thread),
        })
    }

    /// Returns the signal that was to end the process, if one was.
    pub fn received(&self) -> Option<i32> {
        Some(self.first.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.close.close();
        if let Some(thread) = self.thread.take() {
            // It cannot panic, and if it did the hook has said so.
            let _ = thread.join();
        }
    }
}

/// Ends the process by a signal, so that whoever waits for it sees that.
pub fn die_by(signal: i32) {
    // It returns where the signal is blocked, or means nothing.
    let _ = emulate_default_handler(signal);
}
