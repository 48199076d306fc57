//! The configuration that a driver sees, and who is told when it is another one.

use std::sync::Arc;

use parking_lot::Mutex;
use umbra_virtio::{Interrupt, read_config};

/// A device's configuration.
pub struct Config {
    content: Mutex<Content>,
    /// While the device is active.
    interrupt: Mutex<Option<Arc<Interrupt>>>,
}

struct Content {
    bytes: Vec<u8>,
    generation: u32,
}

impl Config {
    /// Makes one of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            content: Mutex::new(Content {
                bytes,
                generation: 0,
            }),
            interrupt: Mutex::default(),
        }
    }

    /// Reads; zeros behind its end.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.content.lock().bytes, offset, data);
    }

    /// Tells whether so many bytes are inside of it.
    pub fn has(&self, offset: u64, len: usize) -> bool {
        let end = offset.checked_add(len as u64);
        end.is_some_and(|end| end <= self.content.lock().bytes.len() as u64)
    }

    /// Returns the number that changes with it.
    pub fn generation(&self) -> u32 {
        self.content.lock().generation
    }

    /// Takes new bytes, and tells the driver if they are other ones.
    pub fn replace(&self, bytes: Vec<u8>) {
        {
            let mut content = self.content.lock();
            if content.bytes == bytes {
                return;
            }
            content.bytes = bytes;
            content.generation = content.generation.wrapping_add(1);
        }
        if let Some(interrupt) = &*self.interrupt.lock() {
            interrupt.config_changed();
        }
    }

    /// Says whom to tell: the driver of a device that is active, or nobody.
    pub fn tell(&self, interrupt: Option<Arc<Interrupt>>) {
        *self.interrupt.lock() = interrupt;
    }
}
