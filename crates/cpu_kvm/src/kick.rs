//! How other threads get a processor out of the guest.
//!
//! ```text
//!   kicker                               the processor's thread
//!   1. set the request                   a. clear immediate_exit
//!   2. set immediate_exit                b. look at the requests
//!   3. signal the thread, if it runs     c. KVM_RUN
//! ```
//! A kick before b is seen there. One between b and c finds `immediate_exit` set, or its signal
//! pending, at c. One during c interrupts it by the signal. After the run nobody signals: the thread
//! takes its number back under the lock under which kickers read it, then drains what is pending.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::raw;
use crate::run_page::RunPage;
use crate::signal::{self, Blocked, Tid};

/// What a processor may be wanted for.
pub mod request {
    /// The run shall end.
    pub const KICK: u32 = 1 << 0;
    /// Something outside wants it out of the guest for a moment; it looks what by itself.
    pub const LOOK: u32 = 1 << 1;
}

/// Requests to one processor.
pub struct Requests {
    wanted: AtomicU32,
    page: RunPage,
    /// The thread that runs it, while it runs. Kickers signal it under this lock.
    runner: Mutex<Option<Tid>>,
}

impl Requests {
    /// Makes the requests of the processor with this page.
    pub fn new(page: RunPage) -> Self {
        Self {
            wanted: AtomicU32::new(0),
            page,
            runner: Mutex::new(None),
        }
    }

    /// Returns the page.
    pub fn page(&self) -> &RunPage {
        &self.page
    }

    /// Gets the processor out of the guest, or keeps it from entering, to look at this request.
    pub fn ask(&self, request: u32) {
        let before = self.wanted.fetch_or(request, Ordering::SeqCst);
        if before & request != 0 {
            // Whoever asked first has signalled, or is about to, and the answer is not given yet.
            return;
        }
        self.page.set_immediate_exit(true);
        if let Some(thread) = *self.runner.lock()
            && let Err(error) = signal::send(thread)
        {
            // Without its signal the thread stays in the guest until the next exit.
            tracing::error!(%error, "cannot signal a processor's thread");
        }
    }

    /// Takes all requests; the processor may enter the guest unless some came.
    pub fn take(&self) -> u32 {
        self.page.set_immediate_exit(false);
        self.wanted.swap(0, Ordering::SeqCst)
    }

    /// Puts a request back that could not be answered yet.
    pub fn put_back(&self, request: u32) {
        self.wanted.fetch_or(request, Ordering::SeqCst);
        self.page.set_immediate_exit(true);
    }

    /// Declares that the calling thread runs the processor until the result is dropped.
    pub fn adopt(&self, vcpu: &impl AsRawFd) -> io::Result<Running<'_>> {
        let blocked = Blocked::begin();
        let running = Running {
            requests: self,
            blocked,
        };
        raw::set_signal_mask(vcpu, blocked.inside())?;
        *self.runner.lock() = Some(Tid::current());
        Ok(running)
    }
}

impl umbra_cpu::Kick for Requests {
    fn kick(&self) {
        self.ask(request::KICK);
    }
}

/// A thread runs the processor.
pub struct Running<'a> {
    requests: &'a Requests,
    blocked: Blocked,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.requests.runner.lock() = None;
        self.blocked.end();
    }
}
