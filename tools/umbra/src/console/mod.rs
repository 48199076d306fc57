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
pub mod terminal;

use anyhow::{Context, Result};
use umbra_vmm::Handle;

use keyboard::Keyboard;
use signals::Signals;
use terminal::RawMode;

/// What a user can say to the monitor, between what is for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escapes {
    /// Ctrl-A x and the others, on a terminal.
    CtrlA,
    /// Nothing: every byte is the guest's.
    None,
}

/// Keyboard and terminal of one run, in this order: nobody reads the terminal when it is put back.
pub struct Terminal {
    _keyboard: Keyboard,
    _raw: Option<RawMode>,
}

impl Terminal {
    /// Takes over the terminal, if standard input is one.
    pub fn start(handle: Handle, escapes: Escapes) -> Result<Self> {
        let raw = RawMode::enter().context("cannot put the terminal into raw mode")?;
        terminal::tell_size(&handle);
        let escapes = raw.is_some() && escapes == Escapes::CtrlA;
        let keyboard = Keyboard::start(handle, escapes).context("cannot read the keyboard")?;
        Ok(Self {
            _keyboard: keyboard,
            _raw: raw,
        })
    }
}

/// Terminal and signals of one run.
pub struct Session {
    terminal: Terminal,
    signals: Signals,
}

impl Session {
    /// Takes over the terminal, if standard input is one.
    pub fn start(handle: Handle) -> Result<Self> {
        // Signals first: one that came between would leave the terminal raw.
        let signals = Signals::start(handle.clone()).context("cannot handle signals")?;
        let terminal = Terminal::start(handle, Escapes::CtrlA)?;
        Ok(Self { terminal, signals })
    }

    /// Gives everything back; returns the signal that ended the run, if one did.
    pub fn end(self) -> Option<i32> {
        drop(self.terminal);
        self.signals.received()
    }
}
