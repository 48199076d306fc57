//! What a served machine needs of this process: standard input and output, and the log.

use std::fs::OpenOptions;
use std::io;

use umbra_api::firecracker::instance::Process;
use umbra_api::firecracker::resources::logger::LoggerConfig;
use umbra_api::firecracker::resources::serial::SerialDevice;
use umbra_vmm::{Console, Handle};

use super::log::Log;
use crate::console::{Escapes, Terminal};

/// This process.
pub struct ThisProcess {
    log: Log,
    escapes: Escapes,
    /// Standard input, while a machine runs.
    terminal: Option<Terminal>,
}

impl ThisProcess {
    /// Makes it what a machine sees.
    pub fn new(log: Log, escapes: Escapes) -> Self {
        Self {
            log,
            escapes,
            terminal: None,
        }
    }
}

impl Process for ThisProcess {
    fn console(&mut self, serial: &SerialDevice) -> io::Result<Console> {
        Ok(match &serial.serial_out_path {
            None => Console::to(io::stdout()),
            Some(path) => Console::to(
                OpenOptions::new()
                    .create(true)
                    .read(true)
                    .append(true)
                    .open(path)?,
            ),
        })
    }

    fn set_logger(&mut self, config: &LoggerConfig) -> Result<(), String> {
        self.log.change(config)
    }

    fn started(&mut self, handle: &Handle) {
        match Terminal::start(handle.clone(), self.escapes) {
            Ok(terminal) => self.terminal = Some(terminal),
            Err(error) => tracing::warn!(%error, "standard input does not reach the guest"),
        }
    }
}
