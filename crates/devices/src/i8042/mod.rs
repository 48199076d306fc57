//! The 8042 keyboard controller of a PC with an AT keyboard behind it (PC/AT Technical Reference, "Keyboard
//! Controller"; PS/2 Technical Reference, "Keyboard and Auxiliary Device Controller").
//!
//! ```text
//!   host ── press ──> AtKeyboard: keys, scan code set 2 ──> translation to set 1 ──┐
//!   guest ── 0x60 ──> AtKeyboard: commands, answers ───────────────────────────────┤ output buffer ──> 0x60
//!   guest ── 0x64 ──> controller: commands ──> replies ────────────────────────────┘ interrupt 1
//! ```
//! The output buffer has one byte. While it is full the keyboard waits, and so does a reply of the controller,
//! which goes first. Each byte is an edge of its own on the interrupt line, where the command byte lets it.
//!
//! The second port of a PS/2 controller is missing: its test fails, as with a controller whose clock line is
//! stuck, and what is sent there goes nowhere. The output port resets the processor; its A20 gate is always open.
//!
//! It begins as firmware leaves it: keyboard and interrupt on, translation on.

mod keyboard;
mod translation;

use std::sync::Arc;

use parking_lot::Mutex;
use umbra_irq::Line;
use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use crate::{PowerEvent, PowerListener};
use keyboard::AtKeyboard;
pub use keyboard::KeyError;
use translation::Translation;

/// Status register.
mod status {
    pub const OUTPUT_FULL: u8 = 1;
    pub const SYSTEM: u8 = 1 << 2;
    /// The last write was to the command port.
    pub const COMMAND: u8 = 1 << 3;
    /// Nobody has turned the key that locks the keyboard.
    pub const UNLOCKED: u8 = 1 << 4;
}

/// Command byte: the first byte of the controller's memory.
mod mode {
    pub const INTERRUPT: u8 = 1;
    pub const SYSTEM: u8 = 1 << 2;
    pub const KEYBOARD_OFF: u8 = 1 << 4;
    pub const SECOND_OFF: u8 = 1 << 5;
    pub const TRANSLATE: u8 = 1 << 6;
}

/// Output port.
mod output {
    pub const NO_RESET: u8 = 1;
    pub const A20: u8 = 1 << 1;
    pub const FULL: u8 = 1 << 4;
}

/// Answers of the controller's tests.
const SELF_TEST_PASSED: u8 = 0x55;
const INTERFACE_WORKS: u8 = 0;
const CLOCK_STUCK_LOW: u8 = 1;
/// Input port: the keyboard is not locked.
const INPUT_PORT: u8 = 1 << 7;

/// Bytes of the controller's own memory.
const MEMORY: usize = 32;

/// What the next byte at the data port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Keyboard,
    Memory(u8),
    OutputPort,
    /// Goes back to the guest.
    Output,
    /// Goes to the port that is missing.
    Nowhere,
}

struct Inner {
    memory: [u8; MEMORY],
    /// The output buffer.
    output: Option<u8>,
    /// What the controller has to say next.
    reply: Option<u8>,
    next: Next,
    last_was_command: bool,
    line_high: bool,
    translation: Translation,
    keyboard: AtKeyboard,
}

/// The controller with its keyboard; both ports may be put on the bus as one device.
pub struct I8042 {
    line: Arc<dyn Line>,
    listener: PowerListener,
    inner: Mutex<Inner>,
}

impl I8042 {
    /// The data port.
    pub const DATA: u16 = 0x60;
    /// The command and status port.
    pub const COMMAND: u16 = 0x64;

    /// Makes a controller that raises `line`, edge-triggered, and tells `listener` of resets.
    pub fn new(line: Arc<dyn Line>, listener: PowerListener) -> Self {
        let mut memory = [0; MEMORY];
        memory[0] = mode::INTERRUPT | mode::SYSTEM | mode::SECOND_OFF | mode::TRANSLATE;
        Self {
            line,
            listener,
            inner: Mutex::new(Inner {
                memory,
                output: None,
                reply: None,
                next: Next::Keyboard,
                last_was_command: false,
                line_high: false,
                translation: Translation::default(),
                keyboard: AtKeyboard::default(),
            }),
        }
    }

    /// Presses Ctrl, Alt and Delete one after the other, and lets them go. The guest has them when it reads
    /// them. Never blocks; any thread may call it.
    ///
    /// # Errors
    /// If the guest has switched the keyboard off, or has not read what was pressed before. Nothing is pressed
    /// then.
    pub fn press_ctrl_alt_del(&self) -> Result<(), KeyError> {
        let mut inner = self.inner.lock();
        inner.keyboard.press_ctrl_alt_del()?;
        inner.refill(&*self.line);
        Ok(())
    }

    fn read(&self, port: u16) -> u8 {
        let mut inner = self.inner.lock();
        match port {
            Self::DATA => inner.take(&*self.line),
            Self::COMMAND => inner.status(),
            _ => 0xff,
        }
    }

    fn write(&self, port: u16, value: u8) {
        let mut inner = self.inner.lock();
        let reset = match port {
            Self::DATA => inner.data(value),
            Self::COMMAND => inner.command(value),
            _ => false,
        };
        inner.refill(&*self.line);
        drop(inner);
        if reset {
            (self.listener)(PowerEvent::Reset);
        }
    }
}

impl Inner {
    fn has(&self, bit: u8) -> bool {
        self.memory[0] & bit != 0
    }

    fn status(&self) -> u8 {
        let mut status = status::UNLOCKED;
        if self.output.is_some() {
            status |= status::OUTPUT_FULL;
        }
        if self.has(mode::SYSTEM) {
            status |= status::SYSTEM;
        }
        if self.last_was_command {
            status |= status::COMMAND;
        }
        status
    }

    /// Takes the byte in the output buffer; without one there is a zero.
    fn take(&mut self, line: &dyn Line) -> u8 {
        let value = self.output.take().unwrap_or(0);
        self.drive(line);
        self.refill(line);
        value
    }

    /// Fills the output buffer if it is empty and somebody has something.
    fn refill(&mut self, line: &dyn Line) {
        if self.output.is_none() {
            self.output = self.reply.take();
        }
        while self.output.is_none() && !self.has(mode::KEYBOARD_OFF) {
            let Some(byte) = self.keyboard.take() else {
                break;
            };
            self.output = match self.has(mode::TRANSLATE) {
                true => self.translation.translate(byte),
                false => Some(byte),
            };
        }
        self.drive(line);
    }

    fn drive(&mut self, line: &dyn Line) {
        let high = self.output.is_some() && self.has(mode::INTERRUPT);
        if std::mem::replace(&mut self.line_high, high) != high {
            line.set(high);
        }
    }

    /// Serves a byte at the data port; `true` is a reset.
    fn data(&mut self, value: u8) -> bool {
        self.last_was_command = false;
        match std::mem::replace(&mut self.next, Next::Keyboard) {
            Next::Keyboard => {
                // It has to hear the byte, and answers.
                self.memory[0] &= !mode::KEYBOARD_OFF;
                self.keyboard.hear(value);
            }
            Next::Memory(at) => self.memory[usize::from(at)] = value,
            Next::OutputPort => return value & output::NO_RESET == 0,
            Next::Output => self.reply = Some(value),
            Next::Nowhere => {}
        }
        false
    }

    /// Serves a byte at the command port; `true` is a reset.
    fn command(&mut self, value: u8) -> bool {
        self.last_was_command = true;
        self.next = Next::Keyboard;
        match value {
            0x20..=0x3f => self.reply = Some(self.memory[usize::from(value & 0x1f)]),
            0x60..=0x7f => self.next = Next::Memory(value & 0x1f),
            0xa7 => self.memory[0] |= mode::SECOND_OFF,
            0xa8 => self.memory[0] &= !mode::SECOND_OFF,
            0xa9 => self.reply = Some(CLOCK_STUCK_LOW),
            0xaa => {
                self.memory[0] |= mode::SYSTEM;
                self.reply = Some(SELF_TEST_PASSED);
            }
            0xab => self.reply = Some(INTERFACE_WORKS),
            0xad => self.memory[0] |= mode::KEYBOARD_OFF,
            0xae => self.memory[0] &= !mode::KEYBOARD_OFF,
            0xc0 => self.reply = Some(INPUT_PORT),
            0xd0 => self.reply = Some(self.output_port()),
            0xd1 => self.next = Next::OutputPort,
            // The second one says that the byte came from the port that is missing: it does not.
            0xd2 | 0xd3 => self.next = Next::Output,
            0xd4 => self.next = Next::Nowhere,
            // Pulses the output lines whose bits are clear; line 0 is the processor's reset.
            0xf0..=0xff => return value & 1 == 0,
            _ => tracing::trace!(value, "the keyboard controller has no such command"),
        }
        false
    }

    fn output_port(&self) -> u8 {
        let full = if self.output.is_some() {
            output::FULL
        } else {
            0
        };
        output::NO_RESET | output::A20 | full
    }
}

impl DevicePio for I8042 {
    fn pio_read(&self, base: PioAddress, _offset: PioAddressOffset, data: &mut [u8]) {
        // The ports are apart, and each is eight bits wide.
        data.fill(0xff);
        if let Some(first) = data.first_mut() {
            *first = self.read(base.0);
        }
    }

    fn pio_write(&self, base: PioAddress, _offset: PioAddressOffset, data: &[u8]) {
        if let Some(first) = data.first() {
            self.write(base.0, *first);
        }
    }
}

#[cfg(test)]
mod tests;
