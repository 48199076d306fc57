//! Which message tells the driver what (virtio 1.3, 4.1.4.3, 4.1.4.5, 4.1.5.1.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use umbra_pci::Msix;

use crate::Wire;

/// No vector: the driver does not want to hear.
pub const NO_VECTOR: u16 = 0xffff;

const QUEUE: u8 = 1 << 0;
const CONFIG: u8 = 1 << 1;

/// The vectors of a function, and its ISR status. A vector's number is written by processors and read by the
/// device's threads; a message that is sent while it changes goes to one of both.
pub struct Vectors {
    msix: Msix,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    isr: AtomicU8,
}

impl Vectors {
    pub fn new(msix: Msix, queues: usize) -> Self {
        Self {
            msix,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            isr: AtomicU8::new(0),
        }
    }

    pub fn msix(&self) -> &Msix {
        &self.msix
    }

    /// Reads the ISR status, which clears it.
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub fn config(&self) -> u16 {
        self.config.load(Ordering::Relaxed)
    }

    pub fn set_config(&self, vector: u16) {
        self.config.store(self.existing(vector), Ordering::Relaxed);
    }

    /// Returns a queue's vector; none for a queue that does not exist.
    pub fn queue(&self, queue: u16) -> u16 {
        let vector = self.queues.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Relaxed))
    }

    pub fn set_queue(&self, queue: u16, vector: u16) {
        if let Some(place) = self.queues.get(usize::from(queue)) {
            place.store(self.existing(vector), Ordering::Relaxed);
        }
    }

    /// A vector that does not exist reads back as none (4.1.5.1.2.1).
    fn existing(&self, vector: u16) -> u16 {
        match vector < self.msix.vectors() {
            true => vector,
            false => NO_VECTOR,
        }
    }

    /// Forgets all of it. The device is not active.
    pub fn clear(&self) {
        self.config.store(NO_VECTOR, Ordering::Relaxed);
        for queue in &self.queues {
            queue.store(NO_VECTOR, Ordering::Relaxed);
        }
        self.isr.store(0, Ordering::Relaxed);
        for vector in 0..self.msix.vectors() {
            self.msix.withdraw(vector);
        }
    }
}

impl Wire for Arc<Vectors> {
    fn used_buffers(&self, queue: u16) {
        if self.msix.is_enabled() {
            // Nothing for NO_VECTOR, which is beyond all vectors.
            self.msix.raise(Vectors::queue(self, queue));
        } else {
            self.isr.fetch_or(QUEUE, Ordering::AcqRel);
        }
    }

    fn config_changed(&self) {
        self.isr.fetch_or(CONFIG, Ordering::AcqRel);
        self.msix.raise(self.config());
    }
}
