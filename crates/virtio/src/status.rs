//! The device status field (virtio 1.3, 2.1).

/// Bits of the status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status(pub u32);

impl Status {
    /// ACKNOWLEDGE: the guest has seen the device.
    pub const ACKNOWLEDGE: Self = Self(1);
    /// DRIVER: it has a driver for it.
    pub const DRIVER: Self = Self(2);
    /// DRIVER_OK: the driver is ready, and the device works.
    pub const DRIVER_OK: Self = Self(4);
    /// FEATURES_OK: both agreed on features.
    pub const FEATURES_OK: Self = Self(8);
    /// DEVICE_NEEDS_RESET: the device cannot go on.
    pub const NEEDS_RESET: Self = Self(64);
    /// FAILED: the driver has given up.
    pub const FAILED: Self = Self(128);

    /// What a driver may set.
    const DRIVERS: Self = Self(1 | 2 | 4 | 8 | 128);

    /// Tells whether all bits of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the union.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the bits that a driver sets by writing `value`, and that are not set yet.
    pub(crate) const fn added(self, value: u32) -> Self {
        Self(value & Self::DRIVERS.0 & !self.0)
    }
}
