//! The terminal in raw mode or with its other screen, and back.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use umbra_vmm::Handle;

/// The terminal's settings before, while it is in raw mode. One process has one terminal; the
/// panic hook and the signal thread must find it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();
/// Its other screen is shown.
static OTHER_SCREEN: AtomicBool = AtomicBool::new(false);

/// Shows the other screen, and hides the cursor (xterm, `smcup` and `civis`).
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
/// The other way round.
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

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

/// The terminal's other screen is shown, without a cursor, until this is dropped.
pub struct Screen(());

impl Screen {
    /// Shows it.
    pub fn enter() -> Self {
        restore_on_panic();
        OTHER_SCREEN.store(true, Ordering::Relaxed);
        show(ENTER);
        Self(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave_screen();
    }
}

/// Shows the usual screen again, if the other one is shown.
fn leave_screen() {
    if OTHER_SCREEN.swap(false, Ordering::Relaxed) {
        show(LEAVE);
    }
}

fn show(sequence: &str) {
    let mut stdout = io::stdout();
    // A terminal that hung up shows nothing any more.
    let _ = stdout
        .write_all(sequence.as_bytes())
        .and_then(|()| stdout.flush());
}

/// Tells the machine how large the terminal is, if there is one.
pub fn tell_size(machine: &Handle) {
    if let Ok(size) = tcgetwinsize(io::stdin()) {
        machine.resize_console(size.ws_col, size.ws_row);
    }
}

/// Puts the terminal back, if it is in raw mode or shows its other screen. Once is enough; more do no harm.
pub fn restore() {
    leave_screen();
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
