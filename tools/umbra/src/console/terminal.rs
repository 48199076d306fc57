//! The terminal in raw mode, and back.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use umbra_vmm::Handle;

/// The terminal's settings before, while it is in raw mode. One process has one terminal; the
/// panic hook and the signal thread must find it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// The terminal is in raw mode until this is dropped.
pub struct RawMode(());

impl RawMode {
    /// Puts the terminal on standard input into raw mode; `None` if there is none.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let before = tcgetattr(&stdin)?;
        *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
        restore_on_panic();
        reenter()?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal into raw mode again, if it ought to be: after the process was stopped and
/// continued, the shell has set it to its own liking.
pub fn reenter() -> io::Result<()> {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(before) = &*before {
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
    }
    Ok(())
}

/// Tells the machine how large the terminal is, if there is one.
pub fn tell_size(machine: &Handle) {
    if let Ok(size) = tcgetwinsize(io::stdin()) {
        machine.resize_console(size.ws_col, size.ws_row);
    }
}

/// Puts the terminal back, if it is in raw mode. Once is enough; more do no harm.
pub fn restore() {
    let before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(before) = before {
        // A terminal that hung up cannot be put back.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

/// Puts the terminal back before a panic prints its message.
fn restore_on_panic() {
    HOOK.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            print(panic);
        }));
    });
}
