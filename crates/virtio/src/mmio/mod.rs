//! The memory-mapped transport (virtio 1.3, 4.2), version 2.
//!
//! ```text
//!   0x000   control registers, 32 bits each            registers
//!   0x050     QueueNotify ── event of the queue, or a doorbell of the backend
//!   0x060     InterruptStatus, 0x064 InterruptACK ──── pin ──> line
//!   0x100   configuration of the device, any width
//! ```
//! A control register takes aligned accesses of 32 bits (4.2.2.2). Any other access to it, an offset
//! where there is none, or one that is only for the other direction reads as zero and is dropped when
//! written.
//!
//! **Hand-over.** The bus names a window when the transport is put there, and a doorbell belongs to a
//! window. So the machine makes the transport, inserts it, and then [attaches](MmioTransport::attach)
//! it; until then, and without doorbells, notifications come through the register. To take a device
//! out: remove it from the bus, wait, then [`shut_down`](Transport::shut_down) or drop it.

mod pin;
mod registers;

use std::sync::Arc;

use parking_lot::Mutex;
use umbra_cpu::{Doorbell, Doorbells};
use umbra_irq::Line;
use umbra_slots::{DmaSpace, IoId};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::front::Front;
use crate::session::{Half, Hold, Part, Session};
use crate::{Device, Interrupt, Transport};
use pin::Pin;
use registers::{CONFIG, MAGIC, QUEUE_NOTIFY, Register, VENDOR, VERSION};

/// A virtio device behind a window of memory.
pub struct MmioTransport {
    state: Mutex<Front>,
    /// After `state`; the device's thread takes this one only.
    pin: Arc<Pin>,
}

impl MmioTransport {
    /// Bytes of the window: a page, so that no other device shares it.
    pub const LEN: u64 = 0x1000;

    /// Puts a device behind registers. It works on `memory` and interrupts by `line`.
    pub fn new(device: Box<dyn Device>, memory: DmaSpace, line: Arc<dyn Line>) -> Arc<Self> {
        let pin = Arc::new(Pin::new(line));
        let interrupt = Arc::new(Interrupt::new(Box::new(pin.clone())));
        Arc::new(Self {
            state: Mutex::new(Front::new(Session::new(device, memory, interrupt))),
            pin,
        })
    }

    /// Lets notifications reach the device by doorbells, as window `id` of the bus. Whether they do
    /// or not, the device works the same.
    pub fn attach(&self, id: IoId, doorbells: Arc<dyn Doorbells>) {
        self.state.lock().attach(id, doorbells, bell);
    }

    fn read(&self, register: Register) -> u32 {
        let state = self.state.lock();
        let session = &state.session;
        let queue = session.queue(state.queue_select);
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => session.device().id(),
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => session.offered_word(state.offered_select),
            Register::QueueSizeMax => queue.map_or(0, |setup| setup.max.into()),
            Register::QueueReady => queue.map_or(0, |setup| setup.ready.into()),
            Register::InterruptStatus => self.pin.status(),
            Register::Status => session.status(),
            Register::SharedMemory => u32::MAX,
            Register::ConfigGeneration => session.device().config_generation(),
            Register::DeviceFeaturesSel
            | Register::DriverFeatures
            | Register::DriverFeaturesSel
            | Register::QueueSel
            | Register::QueueSize
            | Register::QueueNotify
            | Register::InterruptAck
            | Register::QueueDesc(_)
            | Register::QueueDriver(_)
            | Register::QueueDevice(_) => 0,
        }
    }

    fn write(&self, register: Register, value: u32) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let session = &mut state.session;
        match register {
            Register::DeviceFeaturesSel => state.offered_select = value,
            Register::DriverFeatures => session.accept_word(state.accepted_select, value),
            Register::DriverFeaturesSel => state.accepted_select = value,
            Register::QueueSel => state.queue_select = value,
            Register::QueueSize => session.set_queue_size(state.queue_select, value),
            Register::QueueReady => match value {
                0 => state.take_queue(),
                1 => session.set_queue_ready(state.queue_select, true),
                _ => {}
            },
            Register::QueueNotify => {
                if let Some(event) = session.event(value) {
                    event.signal();
                }
            }
            Register::InterruptAck => self.pin.acknowledge(value),
            Register::Status => {
                if state.set_status(value) {
                    self.pin.clear();
                }
            }
            Register::QueueDesc(half) => set_address(state, Part::Table, half, value),
            Register::QueueDriver(half) => set_address(state, Part::Available, half, value),
            Register::QueueDevice(half) => set_address(state, Part::Used, half, value),
            Register::MagicValue
            | Register::Version
            | Register::DeviceId
            | Register::VendorId
            | Register::DeviceFeatures
            | Register::QueueSizeMax
            | Register::InterruptStatus
            | Register::SharedMemory
            | Register::ConfigGeneration => {}
        }
    }
}

/// The write of QueueNotify that is about a queue.
fn bell(queue: u32) -> Doorbell {
    Doorbell {
        offset: QUEUE_NOTIFY,
        len: 4,
        value: Some(queue.into()),
    }
}

fn set_address(state: &mut Front, part: Part, half: Half, value: u32) {
    let queue = state.queue_select;
    state.session.set_queue_address(queue, part, half, value);
}

impl Transport for MmioTransport {
    fn device_id(&self) -> u32 {
        self.state.lock().session.device().id()
    }

    fn is_active(&self) -> bool {
        self.state.lock().session.is_active()
    }

    fn needs_reset(&self) -> bool {
        self.state.lock().session.needs_reset()
    }

    fn pause(&self) {
        self.state.lock().session.hold(Hold::Machine);
    }

    fn resume(&self) {
        self.state.lock().session.release(Hold::Machine);
    }

    fn shut_down(&self) {
        self.state.lock().shut_down();
        self.pin.clear();
    }
}

impl DeviceMmio for MmioTransport {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.state.lock().session.device().read_config(offset, data);
        } else if let (Some(register), Ok(data)) =
            (Register::at(offset), <&mut [u8; 4]>::try_from(data))
        {
            *data = self.read(register).to_le_bytes();
        }
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.state.lock().session.write_config(offset, data);
        } else if let (Some(register), Ok(data)) = (Register::at(offset), data.try_into()) {
            self.write(register, u32::from_le_bytes(data));
        }
    }
}

#[cfg(test)]
mod tests;
