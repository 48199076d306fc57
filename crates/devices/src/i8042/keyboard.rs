//! An AT keyboard (PS/2 Technical Reference, "Keyboard"): commands and answers, and keys in scan code set 2.
//!
//! A byte of the host's makes the keyboard drop what it was about to answer, and answer this. Answers go before
//! keys. Keys that were pressed wait in a queue of 16 bytes, as in the real one.

use std::collections::VecDeque;

/// Answers.
const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const ECHO: u8 = 0xee;
/// A keyboard of the enhanced kind.
const ID: [u8; 2] = [0xab, 0x83];
/// The only set of scan codes here.
const SET: u8 = 2;

/// Bytes of keys that wait.
const QUEUE: usize = 16;

/// Left Ctrl, left Alt and Delete go down, and up the other way round.
const CTRL_ALT_DEL: [u8; 11] = [
    0x14, 0x11, 0xe0, 0x71, // down
    0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14, // up
];

/// Why keys cannot be pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The guest told the keyboard to be silent.
    #[error("the guest has switched its keyboard off; try again when its driver has begun")]
    Off,
    /// The queue has no room.
    #[error("the guest has not read the keys that were pressed before; try again when it does")]
    Full,
}

/// What the next byte from the host belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Parameter {
    /// It is a command.
    #[default]
    None,
    /// Lamps, or how fast keys repeat: there are none, and they do not.
    Ignored,
    /// Which set of scan codes.
    Set,
}

/// The keyboard.
#[derive(Debug)]
pub struct AtKeyboard {
    silent: bool,
    parameter: Parameter,
    answers: VecDeque<u8>,
    keys: VecDeque<u8>,
    last: u8,
}

impl Default for AtKeyboard {
    fn default() -> Self {
        Self {
            silent: false,
            parameter: Parameter::None,
            answers: VecDeque::new(),
            keys: VecDeque::new(),
            last: ACKNOWLEDGE,
        }
    }
}

impl AtKeyboard {
    /// Presses Ctrl-Alt-Del, or nothing.
    pub fn press_ctrl_alt_del(&mut self) -> Result<(), KeyError> {
        if self.silent {
            return Err(KeyError::Off);
        }
        if self.keys.len() + CTRL_ALT_DEL.len() > QUEUE {
            return Err(KeyError::Full);
        }
        self.keys.extend(CTRL_ALT_DEL);
        Ok(())
    }

    /// Returns the next byte for the host.
    pub fn take(&mut self) -> Option<u8> {
        let byte = self.answers.pop_front().or_else(|| self.keys.pop_front())?;
        self.last = byte;
        Some(byte)
    }

    /// Takes a byte from the host, and prepares the answer.
    pub fn hear(&mut self, byte: u8) {
        self.answers.clear();
        match std::mem::take(&mut self.parameter) {
            Parameter::None => self.command(byte),
            // Also in place of a parameter these are commands.
            _ if byte >= 0xed => self.command(byte),
            Parameter::Ignored => self.answer(&[ACKNOWLEDGE]),
            Parameter::Set => match byte {
                0 => self.answer(&[ACKNOWLEDGE, SET]),
                SET => self.answer(&[ACKNOWLEDGE]),
                _ => self.answer(&[RESEND]),
            },
        }
    }

    fn command(&mut self, byte: u8) {
        match byte {
            0xed | 0xf3 => {
                self.parameter = Parameter::Ignored;
                self.answer(&[ACKNOWLEDGE]);
            }
            0xee => self.answer(&[ECHO]),
            0xf0 => {
                self.parameter = Parameter::Set;
                self.answer(&[ACKNOWLEDGE]);
            }
            0xf2 => self.answer(&[ACKNOWLEDGE, ID[0], ID[1]]),
            0xf4 => {
                self.begin(false);
                self.answer(&[ACKNOWLEDGE]);
            }
            0xf5 => {
                self.begin(true);
                self.answer(&[ACKNOWLEDGE]);
            }
            0xf6 => {
                self.keys.clear();
                self.answer(&[ACKNOWLEDGE]);
            }
            0xfe => {
                let last = self.last;
                self.answer(&[last]);
            }
            0xff => {
                self.begin(false);
                self.answer(&[ACKNOWLEDGE, SELF_TEST_PASSED]);
            }
            _ => self.answer(&[RESEND]),
        }
    }

    fn begin(&mut self, silent: bool) {
        self.silent = silent;
        self.keys.clear();
    }

    fn answer(&mut self, bytes: &[u8]) {
        self.answers.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(keyboard: &mut AtKeyboard) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.take()).collect()
    }

    #[test]
    fn each_command_has_its_answer() {
        let table: [(&[u8], &[u8]); 12] = [
            (&[0xee], &[0xee]),
            (&[0xf2], &[0xfa, 0xab, 0x83]),
            (&[0xff], &[0xfa, 0xaa]),
            (&[0xf4], &[0xfa]),
            (&[0xf5], &[0xfa]),
            (&[0xf6], &[0xfa]),
            (&[0xed], &[0xfa]),
            (&[0xed, 7], &[0xfa]),
            (&[0xf0, 0], &[0xfa, 2]),
            (&[0xf0, 2], &[0xfa]),
            (&[0xf0, 3], &[0xfe]),
            (&[0x12], &[0xfe]),
        ];
        for (commands, answer) in table {
            let mut keyboard = AtKeyboard::default();
            commands.iter().for_each(|byte| keyboard.hear(*byte));
            // What was not taken before the last byte is dropped.
            assert_eq!(all(&mut keyboard), answer, "{commands:x?}");
        }
    }

    #[test]
    fn the_last_byte_is_sent_again() {
        let mut keyboard = AtKeyboard::default();
        keyboard.hear(0xf2);
        assert_eq!(all(&mut keyboard), [0xfa, 0xab, 0x83]);
        keyboard.hear(0xfe);
        assert_eq!(all(&mut keyboard), [0x83]);
    }

    #[test]
    fn keys_wait_for_the_host_and_a_second_chord_for_the_first() {
        let mut keyboard = AtKeyboard::default();
        keyboard.press_ctrl_alt_del().unwrap();
        assert_eq!(keyboard.press_ctrl_alt_del(), Err(KeyError::Full));
        assert_eq!(all(&mut keyboard), CTRL_ALT_DEL);
        keyboard.press_ctrl_alt_del().unwrap();
    }

    #[test]
    fn a_silent_keyboard_takes_no_keys_until_it_is_switched_on() {
        let mut keyboard = AtKeyboard::default();
        keyboard.press_ctrl_alt_del().unwrap();
        keyboard.hear(0xf5);
        assert_eq!(all(&mut keyboard), [0xfa], "what was pressed is dropped");
        assert_eq!(keyboard.press_ctrl_alt_del(), Err(KeyError::Off));
        keyboard.hear(0xf4);
        keyboard.press_ctrl_alt_del().unwrap();
    }
}
