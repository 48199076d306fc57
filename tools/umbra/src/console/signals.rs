//! Signals that end the run, the one that brings it back to the foreground, and that of another size.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::JoinHandle;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::{Handle as Close, Signals as Received};
use umbra_vmm::Handle;

use super::terminal;

/// A thread that waits for signals.
pub struct Signals {
    first: Arc<AtomicI32>,
    close: Close,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    /// Starts the thread. The first signal ends the machine in good order, a second one the
    /// process at once.
    pub fn start(machine: Handle) -> io::Result<Self> {
        let mut received = Received::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGCONT, SIGWINCH])?;
        let close = received.handle();
        let first = Arc::new(AtomicI32::new(0));
        let theirs = Arc::clone(&first);
        let thread = std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in received.forever() {
                    match signal {
                        // The terminal may have gone meanwhile.
                        SIGCONT => drop(terminal::reenter()),
                        SIGWINCH => terminal::tell_size(&machine),
                        _ if theirs.swap(signal, Ordering::Relaxed) == 0 => machine.stop(),
                        _ => {
                            terminal::restore();
                            std::process::exit(128 + signal);
                        }
                    }
                }
            })?;
        Ok(Self {
            first,
            close,
            thread: Some(thread),
        })
    }

    /// Returns the last signal that was to end the run.
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
