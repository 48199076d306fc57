//! The user's side of the console: terminal, keyboard and signals, for as long as a machine runs.
//!
//! ```text
//!   stdin ── reader ── Escape ── queue ── sender ──> ConsoleInput      Ctrl-A x, h, Ctrl-A
//!   SIGTERM, SIGINT, SIGHUP, SIGQUIT ── signals ──> Handle::stop
//!   SIGWINCH ── signals ──> Handle::resize_console
//! ```
//! The terminal is put back on every way out: [`Session::end`], dropping a [`Session`] while a panic
//! unwinds, the panic hook (so that the message itself can be read), and a second signal to a
//! process that does not end by the first.

mod escape;
mod keyboard;
mod signals;
mod terminal;

use anyhow::{Context, Result};
use umbra_vmm::Handle;

use keyboard::Keyboard;
use signals::Signals;
use terminal::RawMode;

/// Keyboard, signals and terminal of one run.
///
/// Dropped in the order of the fields: nobody touches the terminal when it is put back.
pub struct Session {
    _keyboard: Keyboard,
    signals: Signals,
    _raw: Option<RawMode>,
}

impl Session {
    /// Takes over the terminal, if standard input is one.
    pub fn start(handle: Handle) -> Result<Self> {
        // Signals first: one that came between would leave the terminal raw.
        let signals = Signals::start(handle.clone()).context("cannot handle signals")?;
        let raw = RawMode::enter().context("cannot put the terminal into raw mode")?;
        terminal::tell_size(&handle);
        let keyboard =
            Keyboard::start(handle, raw.is_some()).context("cannot read the keyboard")?;
        Ok(Self {
            _keyboard: keyboard,
            signals,
            _raw: raw,
        })
    }

    /// Gives everything back; returns the signal that ended the run, if one did.
    pub fn end(self) -> Option<i32> {
        self.signals.received()
    }
}
