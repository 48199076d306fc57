//! Interrupt wires: a line, a message, a chip. Traits and tiny types only.
//!
//! A device is given a [`Line`] or a [`MsiTarget`] and never learns which controller, backend or
//! processor is behind it. This crate must not know any of them either.
//!
//! ```
//! use std::sync::atomic::{AtomicBool, Ordering};
//! use umbra_irq::Line;
//!
//! /// A controller's input.
//! struct Input(AtomicBool);
//!
//! impl Line for Input {
//!     fn set(&self, high: bool) {
//!         self.0.store(high, Ordering::Relaxed);
//!     }
//! }
//!
//! let input = Input(AtomicBool::new(false));
//! let wire: &dyn Line = &input; // all that a device knows
//! wire.set(true);
//! assert!(input.0.load(Ordering::Relaxed));
//! ```
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, PoisonError};

use vm_device::{DeviceMmio, DevicePio};

/// A level-sensitive interrupt input of a controller.
///
/// May be called from any thread; does not block beyond the controller's own short lock.
pub trait Line: Send + Sync {
    /// Drives the wire high (`true`) or low. Driving it to the level it has is no event.
    fn set(&self, high: bool);

    /// Pulses the wire: high, then low. For edge-triggered inputs.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// A message-signalled interrupt: one memory write (SDM vol. 3, 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// Where the write goes; 0xfeexxxxx for processors.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Takes message-signalled interrupts.
pub trait MsiTarget: Send + Sync {
    /// Delivers `msi`. A message to nobody is dropped, as the bus does.
    fn send(&self, msi: Msi);
}

/// A line that leads nowhere: for a device whose interrupt nobody wired.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unconnected;

impl Line for Unconnected {
    fn set(&self, _high: bool) {}
}

/// An edge-triggered line that several devices pulse: no pulse begins before the last one has ended, so each is an
/// edge of its own.
pub struct PulsedLine {
    line: Arc<dyn Line>,
    /// Held for as long as a pulse takes.
    pulsing: Mutex<()>,
}

impl PulsedLine {
    /// Shares a line, which nobody else may drive from now on.
    pub fn new(line: Arc<dyn Line>) -> Self {
        Self {
            line,
            pulsing: Mutex::new(()),
        }
    }
}

impl Line for PulsedLine {
    fn set(&self, high: bool) {
        let _pulsing = self.pulsing.lock().unwrap_or_else(PoisonError::into_inner);
        self.line.set(high);
    }

    fn pulse(&self) {
        let _pulsing = self.pulsing.lock().unwrap_or_else(PoisonError::into_inner);
        self.line.pulse();
    }
}

/// A level-triggered line that several devices drive: high while any of them holds it so.
pub struct SharedLine {
    line: Arc<dyn Line>,
    /// How many hold it high. Held while the line is set, so that its level is that of the last change.
    high: Mutex<u32>,
}

impl SharedLine {
    /// Shares a line, which nobody else may drive from now on.
    pub fn new(line: Arc<dyn Line>) -> Arc<Self> {
        Arc::new(Self {
            line,
            high: Mutex::new(0),
        })
    }

    /// Returns one more end, for one more device. Lets go of the line when it is dropped.
    pub fn end(self: &Arc<Self>) -> Arc<dyn Line> {
        Arc::new(SharedEnd {
            shared: self.clone(),
            high: Mutex::new(false),
        })
    }

    fn change(&self, to_high: bool) {
        let mut high = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        *high = if to_high { *high + 1 } else { *high - 1 };
        self.line.set(*high != 0);
    }
}

struct SharedEnd {
    shared: Arc<SharedLine>,
    high: Mutex<bool>,
}

impl Line for SharedEnd {
    fn set(&self, high: bool) {
        let mut was = self.high.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *was, high) != high {
            self.shared.change(high);
        }
    }
}

impl Drop for SharedEnd {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// A chip with numbered inputs.
pub trait Chip: Send + Sync {
    /// Returns input `number`, or `None` where the chip has no such input.
    fn line(&self, number: u32) -> Option<Arc<dyn Line>>;
}

/// A controller that is a device too, and where it is.
pub enum Controller {
    /// In memory.
    Memory {
        /// First guest-physical address.
        start: u64,
        /// Number of bytes.
        len: u64,
        /// The device.
        device: Arc<dyn DeviceMmio + Send + Sync>,
    },
    /// Behind ports.
    Ports {
        /// First port.
        first: u16,
        /// Number of ports.
        len: u16,
        /// The device.
        device: Arc<dyn DevicePio + Send + Sync>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Level(AtomicBool);

    impl Line for Level {
        fn set(&self, high: bool) {
            self.0.store(high, Ordering::Relaxed);
        }
    }

    /// Counts pulses that began before the last one had ended.
    #[derive(Default)]
    struct Overlaps(AtomicBool, std::sync::atomic::AtomicU32);

    impl Line for Overlaps {
        fn set(&self, high: bool) {
            let overlap = self.0.swap(high, Ordering::SeqCst) == high;
            self.1.fetch_add(overlap.into(), Ordering::SeqCst);
        }
    }

    #[test]
    fn each_pulse_of_a_pulsed_line_is_an_edge() {
        let wire = Arc::new(Overlaps::default());
        let line = PulsedLine::new(wire.clone());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..10_000).for_each(|_| line.pulse()));
            }
        });
        assert_eq!(wire.1.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_shared_line_is_high_while_any_end_is() {
        let level = Arc::new(Level::default());
        let shared = SharedLine::new(level.clone());
        let (a, b) = (shared.end(), shared.end());
        let table = [
            (&a, true, true),
            (&b, true, true),
            (&a, false, true),
            (&a, false, true),
            (&b, true, true),
            (&b, false, false),
            (&a, true, true),
        ];
        for (end, high, expected) in table {
            end.set(high);
            assert_eq!(level.0.load(Ordering::Relaxed), expected);
        }
        drop(a);
        assert!(!level.0.load(Ordering::Relaxed), "who is gone asks nothing");
    }
}
