//! How a device notifies its driver.

use std::sync::atomic::{AtomicBool, Ordering};

/// What a transport makes of notifications. May be called from any thread; does not block beyond a
/// short lock.
pub trait Wire: Send + Sync {
    /// Notifies the driver that buffers of a queue were used (virtio 1.3, 2.3).
    fn used_buffers(&self, queue: u16);
    /// Notifies it that the configuration, or DEVICE_NEEDS_RESET, has changed.
    fn config_changed(&self);
    /// Notifies it that the device needs a reset, where that is not told like a changed configuration.
    fn needs_reset(&self) {
        self.config_changed();
    }
}

/// A device's end of the notifications. May be used from any thread, while the device is active.
pub struct Interrupt {
    wire: Box<dyn Wire>,
    needs_reset: AtomicBool,
}

impl Interrupt {
    /// Makes one over a transport's wire.
    pub fn new(wire: Box<dyn Wire>) -> Self {
        Self {
            wire,
            needs_reset: AtomicBool::new(false),
        }
    }

    /// Notifies the driver that buffers of a queue were used. Whether it wants to hear is for the
    /// caller to ask first ([`Queue::needs_interrupt`](crate::Queue::needs_interrupt)).
    pub fn used_buffers(&self, queue: u16) {
        self.wire.used_buffers(queue);
    }

    /// Notifies the driver that the configuration has changed. The device has changed it, and its
    /// generation, before.
    pub fn config_changed(&self) {
        self.wire.config_changed();
    }

    /// Says that the device cannot go on until it is reset (DEVICE_NEEDS_RESET, virtio 1.3, 2.1.2).
    pub fn needs_reset(&self) {
        // The driver that is interrupted reads the status.
        self.needs_reset.store(true, Ordering::Release);
        self.wire.needs_reset();
    }

    /// Tells whether the device has said that.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Begins anew. The device is not active.
    pub(crate) fn clear(&self) {
        self.needs_reset.store(false, Ordering::Release);
    }
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Interrupt(needs reset: {})", self.is_reset_needed())
    }
}
