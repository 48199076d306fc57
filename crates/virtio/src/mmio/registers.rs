//! The registers by their offsets (virtio 1.3, 4.2.2, table 4.1).

use crate::session::Half;

/// Where the device-specific configuration begins.
pub const CONFIG: u64 = 0x100;
/// Offset of [`Register::QueueNotify`].
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Value of [`Register::MagicValue`]: "virt".
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// Value of [`Register::Version`]: not a legacy device.
pub const VERSION: u32 = 2;
/// Value of [`Register::VendorId`].
pub const VENDOR: u32 = u32::from_le_bytes(*b"UMBR");

/// A control register; each is 32 bits wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    MagicValue,
    Version,
    DeviceId,
    VendorId,
    DeviceFeatures,
    DeviceFeaturesSel,
    DriverFeatures,
    DriverFeaturesSel,
    QueueSel,
    QueueSizeMax,
    QueueSize,
    QueueReady,
    QueueNotify,
    InterruptStatus,
    InterruptAck,
    Status,
    QueueDesc(Half),
    QueueDriver(Half),
    QueueDevice(Half),
    /// Length and base of a shared memory region. There is none.
    SharedMemory,
    ConfigGeneration,
}

impl Register {
    /// Returns the register at an offset.
    pub fn at(offset: u64) -> Option<Self> {
        Some(match offset {
            0x000 => Self::MagicValue,
            0x004 => Self::Version,
            0x008 => Self::DeviceId,
            0x00c => Self::VendorId,
            0x010 => Self::DeviceFeatures,
            0x014 => Self::DeviceFeaturesSel,
            0x020 => Self::DriverFeatures,
            0x024 => Self::DriverFeaturesSel,
            0x030 => Self::QueueSel,
            0x034 => Self::QueueSizeMax,
            0x038 => Self::QueueSize,
            0x044 => Self::QueueReady,
            QUEUE_NOTIFY => Self::QueueNotify,
            0x060 => Self::InterruptStatus,
            0x064 => Self::InterruptAck,
            0x070 => Self::Status,
            0x080 => Self::QueueDesc(Half::Low),
            0x084 => Self::QueueDesc(Half::High),
            0x090 => Self::QueueDriver(Half::Low),
            0x094 => Self::QueueDriver(Half::High),
            0x0a0 => Self::QueueDevice(Half::Low),
            0x0a4 => Self::QueueDevice(Half::High),
            0x0b0 | 0x0b4 | 0x0b8 | 0x0bc => Self::SharedMemory,
            0x0fc => Self::ConfigGeneration,
            _ => return None,
        })
    }
}
