//! Signals that end a back end.

use std::io;
use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::{Handle as Close, Signals as Received};
use umbra_vhost_backend::Stopper;

/// A thread that waits for signals, until this is dropped.
pub struct Signals {
    close: Close,
    thread: Option<JoinHandle<()>>,
}

impl Signals {
    /// Starts it. The first signal stops the device in good order, a second one ends the process at once.
    pub fn start(server: Stopper) -> io::Result<Self> {
        let mut received = Received::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT])?;
        let close = received.handle();
        let wait = move || {
            let mut signals = received.forever();
            if signals.next().is_some() {
                server.stop();
            }
            if let Some(signal) = signals.next() {
                std::process::exit(128 + signal);
            }
        };
        let thread = std::thread::Builder::new()
            .name("signals".into())
            .spawn(wait)?;
        Ok(Self {
            close,
            thread: Some(thread),
        })
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
