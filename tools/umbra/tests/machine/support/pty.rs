//! A terminal that nobody sits at.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, Winsize, tcgetattr, tcsetwinsize};

/// Both ends of a pseudo-terminal.
pub struct Terminal {
    master: OwnedFd,
    slave: OwnedFd,
    before: Termios,
}

impl Terminal {
    pub fn open() -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name: CString = ptsname(&master, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = open(name, flags, Mode::empty()).unwrap();
        let before = tcgetattr(&slave).unwrap();
        Self {
            master,
            slave,
            before,
        }
    }

    /// The end that a program has as its standard input.
    pub fn input(&self) -> super::Input<'static> {
        super::Input::Terminal(self.slave.try_clone().unwrap())
    }

    /// Presses keys.
    pub fn press(&self, keys: &[u8]) {
        assert_eq!(rustix::io::write(&self.master, keys), Ok(keys.len()));
    }

    /// Makes it another size; whoever has it open is not told.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).unwrap();
    }

    /// Waits until a program has put the terminal into raw mode.
    pub fn wait_until_raw(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.settings().local_modes.contains(LocalModes::ICANON) {
            assert!(Instant::now() < deadline, "the terminal stays cooked");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it is as it was opened.
    pub fn is_unchanged(&self) -> bool {
        let (now, before) = (self.settings(), &self.before);
        now.input_modes == before.input_modes
            && now.output_modes == before.output_modes
            && now.control_modes == before.control_modes
            && now.local_modes == before.local_modes
            && format!("{:?}", now.special_codes) == format!("{:?}", before.special_codes)
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }
}
