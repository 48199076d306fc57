//! The common configuration (virtio 1.3, 4.1.4.3).

use super::PciTransport;
use super::vectors::NO_VECTOR;
use crate::session::{Half, Part};

/// A field, or half of one of 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigMsixVector,
    NumQueues,
    DeviceStatus,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueMsixVector,
    QueueEnable,
    QueueNotifyOff,
    QueueAddress(Part, Half),
}

impl Field {
    /// Returns the field at an offset that is as wide as the access.
    fn at(offset: u64, len: usize) -> Option<Self> {
        Some(match (offset, len) {
            (0x00, 4) => Self::DeviceFeatureSelect,
            (0x04, 4) => Self::DeviceFeature,
            (0x08, 4) => Self::DriverFeatureSelect,
            (0x0c, 4) => Self::DriverFeature,
            (0x10, 2) => Self::ConfigMsixVector,
            (0x12, 2) => Self::NumQueues,
            (0x14, 1) => Self::DeviceStatus,
            (0x15, 1) => Self::ConfigGeneration,
            (0x16, 2) => Self::QueueSelect,
            (0x18, 2) => Self::QueueSize,
            (0x1a, 2) => Self::QueueMsixVector,
            (0x1c, 2) => Self::QueueEnable,
            (0x1e, 2) => Self::QueueNotifyOff,
            (0x20, 4) => Self::QueueAddress(Part::Table, Half::Low),
            (0x24, 4) => Self::QueueAddress(Part::Table, Half::High),
            (0x28, 4) => Self::QueueAddress(Part::Available, Half::Low),
            (0x2c, 4) => Self::QueueAddress(Part::Available, Half::High),
            (0x30, 4) => Self::QueueAddress(Part::Used, Half::Low),
            (0x34, 4) => Self::QueueAddress(Part::Used, Half::High),
            _ => return None,
        })
    }
}

/// Tells whether an access is to a whole field of 64 bits.
fn is_wide(offset: u64, len: usize) -> bool {
    len == 8 && matches!(offset, 0x20 | 0x28 | 0x30)
}

impl PciTransport {
    /// Reads a field into `data`, which is zeros.
    pub(super) fn read_common(&self, offset: u64, data: &mut [u8]) {
        if is_wide(offset, data.len()) {
            let (low, high) = data.split_at_mut(4);
            self.read_common(offset, low);
            self.read_common(offset + 4, high);
        } else if let Some(field) = Field::at(offset, data.len()) {
            let value = self.read_field(field).to_le_bytes();
            data.copy_from_slice(&value[..data.len()]);
        }
    }

    /// Writes a field.
    pub(super) fn write_common(&self, offset: u64, data: &[u8]) {
        if is_wide(offset, data.len()) {
            let (low, high) = data.split_at(4);
            self.write_common(offset, low);
            self.write_common(offset + 4, high);
        } else if let Some(field) = Field::at(offset, data.len()) {
            let mut value = [0; 4];
            value[..data.len()].copy_from_slice(data);
            self.write_field(field, u32::from_le_bytes(value));
        }
    }

    fn read_field(&self, field: Field) -> u32 {
        let state = self.state.lock();
        let session = &state.session;
        let queue = session.queue(state.queue_select);
        // It was given 16 bits.
        let selected = state.queue_select as u16;
        match field {
            Field::DeviceFeatureSelect => state.offered_select,
            Field::DeviceFeature => session.offered_word(state.offered_select),
            Field::DriverFeatureSelect => state.accepted_select,
            Field::DriverFeature => session.accepted_word(state.accepted_select),
            Field::ConfigMsixVector => self.vectors.config().into(),
            Field::NumQueues => session.queue_count().try_into().unwrap_or(u32::MAX),
            Field::DeviceStatus => session.status(),
            Field::ConfigGeneration => session.device().config_generation(),
            Field::QueueSelect => state.queue_select,
            Field::QueueSize => queue.map_or(0, |setup| setup.size),
            Field::QueueMsixVector => self.vectors.queue(selected).into(),
            Field::QueueEnable => queue.map_or(0, |setup| setup.ready.into()),
            Field::QueueNotifyOff => state.queue_select,
            Field::QueueAddress(part, half) => {
                queue.map_or(0, |setup| half.of(setup.addresses[part as usize]))
            }
        }
    }

    fn write_field(&self, field: Field, value: u32) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let session = &mut state.session;
        let queue = state.queue_select;
        match field {
            Field::DeviceFeatureSelect => state.offered_select = value,
            Field::DriverFeatureSelect => state.accepted_select = value,
            Field::DriverFeature => session.accept_word(state.accepted_select, value),
            // Fields of 16 bits have been given 16 bits.
            Field::ConfigMsixVector => self.vectors.set_config(value as u16),
            Field::DeviceStatus => {
                if state.set_status(value) {
                    self.vectors.clear();
                }
            }
            Field::QueueSelect => state.queue_select = value,
            Field::QueueSize => session.set_queue_size(queue, value),
            Field::QueueMsixVector => self.vectors.set_queue(queue as u16, value as u16),
            // A queue is taken back by a reset only (4.1.4.3.2).
            Field::QueueEnable => {
                if value == 1 {
                    session.set_queue_ready(queue, true);
                }
            }
            Field::QueueAddress(part, half) => session.set_queue_address(queue, part, half, value),
            Field::DeviceFeature
            | Field::NumQueues
            | Field::ConfigGeneration
            | Field::QueueNotifyOff => {}
        }
    }
}

const _: () = assert!(NO_VECTOR > umbra_pci::Msix::MAX);
