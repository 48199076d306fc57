//! What registers, thread and owner of a console device all know.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use umbra_virtio::Event;

/// Where the driver writes a byte that has to come out (5.3.4).
pub const EMERGENCY: u64 = 8;
const CONFIG_LEN: usize = 12;
/// Emergency bytes that wait for the thread; more are dropped.
const CRIES: usize = 4096;

/// The state of a device.
pub struct Shared {
    pub name: String,
    ports: u32,
    size: Mutex<Size>,
    cries: Mutex<VecDeque<u8>>,
    /// Has the thread look at this.
    pub wake: Event,
}

/// Of the terminal at port 0.
#[derive(Default)]
struct Size {
    /// Columns and rows.
    now: Option<(u16, u16)>,
    generation: u32,
}

impl Shared {
    pub fn new(name: String, ports: usize, size: Option<(u16, u16)>) -> io::Result<Self> {
        Ok(Self {
            name,
            ports: ports as u32,
            size: Mutex::new(Size {
                now: size,
                generation: 0,
            }),
            cries: Mutex::default(),
            wake: Event::new()?,
        })
    }

    pub fn config(&self) -> [u8; CONFIG_LEN] {
        let mut bytes = [0; CONFIG_LEN];
        let (columns, rows) = self.size().unwrap_or_default();
        bytes[..2].copy_from_slice(&columns.to_le_bytes());
        bytes[2..4].copy_from_slice(&rows.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.ports.to_le_bytes());
        bytes
    }

    pub fn size(&self) -> Option<(u16, u16)> {
        self.size.lock().now
    }

    /// Tells which size it is, by a number that changes with it.
    pub fn generation(&self) -> u32 {
        self.size.lock().generation
    }

    /// Keeps an emergency byte for the thread.
    pub fn cry(&self, byte: u8) {
        let mut cries = self.cries.lock();
        if cries.len() < CRIES {
            cries.push_back(byte);
        }
        drop(cries);
        self.wake.signal();
    }

    /// Takes the emergency bytes.
    pub fn cries(&self) -> Vec<u8> {
        self.cries.lock().drain(..).collect()
    }
}

/// Changes a console device while the machine runs. May be used from any thread; cheap to clone.
#[derive(Clone)]
pub struct ConsoleControl(pub(super) Arc<Shared>);

impl ConsoleControl {
    /// Says how large the terminal at the first port is. Nothing if the device was made without a size.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut size = self.0.size.lock();
        if size.now.is_none_or(|now| now == (columns, rows)) {
            return;
        }
        size.now = Some((columns, rows));
        size.generation = size.generation.wrapping_add(1);
        drop(size);
        self.0.wake.signal();
    }

    /// Has the device look at the host's ends, for those that no descriptor tells of.
    pub fn wake(&self) {
        self.0.wake.signal();
    }
}
