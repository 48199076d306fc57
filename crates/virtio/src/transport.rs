//! What a machine does with a device, whichever transport it is behind.

/// A device in a machine.
pub trait Transport: Send + Sync {
    /// Returns the device type (virtio 1.3, 5).
    fn device_id(&self) -> u32;

    /// Tells whether a driver has started the device, and it needs no reset. One that stands still counts.
    fn is_active(&self) -> bool;

    /// Tells whether the device has said that it cannot go on until its driver resets it (DEVICE_NEEDS_RESET).
    fn needs_reset(&self) -> bool;

    /// Makes the device stand still: when this returns it neither touches guest memory nor notifies
    /// the driver. No processor may run, for what a driver writes now is not followed. Waits for work
    /// in progress, which is short.
    fn pause(&self);

    /// Lets it go on; nothing if it does. What the driver has made available meanwhile is found.
    fn resume(&self);

    /// Resets the device for good, and takes its doorbells away. When this returns it works no more.
    fn shut_down(&self);
}
