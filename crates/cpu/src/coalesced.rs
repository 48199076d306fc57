//! Port writes that the guest need not be left for.

/// Lets writes to a port wait in the backend, in their order, until a processor leaves the guest for
/// another reason; only then the device hears of them, before anything else.
///
/// For a device whose writes have no effect that the guest could wait for, such as output without an
/// interrupt. Somebody has to call [`CoalescedPorts::nudge`] now and then: a guest that writes and then
/// never leaves again would not be heard.
pub trait CoalescedPorts {
    /// Lets byte writes to `port` wait.
    ///
    /// # Errors
    /// If the host refuses; then every write is heard at once, as before.
    fn add(&self, port: u16) -> std::io::Result<()>;

    /// Lets no write to `port` wait any more. What waits is heard in its turn. May be called from the
    /// device's own handler.
    fn remove(&self, port: u16);

    /// Tells whether writes to some port may wait.
    fn is_active(&self) -> bool;

    /// Gets a processor out of the guest if writes wait. Never blocks.
    fn nudge(&self);
}
