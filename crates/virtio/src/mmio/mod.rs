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

use crate::bells::Bells;
use crate::session::{Half, Hold, Part, Session, Step};
use crate::{Device, Interrupt, Transport};
use pin::Pin;
use registers::{CONFIG, MAGIC, QUEUE_NOTIFY, Register, VENDOR, VERSION};

/// A virtio device behind a window of memory.
pub struct MmioTransport {
    state: Mutex<State>,
    /// After `state`; the device's thread takes this one only.
    pin: Arc<Pin>,
}

struct State {
    session: Session,
    bells: Option<Bells>,
    offered_select: u32,
    accepted_select: u32,
    queue_select: u32,
}

impl MmioTransport {
    /// Bytes of the window: a page, so that no other device shares it.
    pub const LEN: u64 = 0x1000;

    /// Puts a device behind registers. It works on `memory` and interrupts by `line`.
    pub fn new(device: Box<dyn Device>, memory: DmaSpace, line: Arc<dyn Line>) -> Arc<Self> {
        let pin = Arc::new(Pin::new(line));
        let interrupt = Arc::new(Interrupt::new(Box::new(pin.clone())));
        Arc::new(Self {
            state: Mutex::new(State {
                session: Session::new(device, memory, interrupt),
                bells: None,
                offered_select: 0,
                accepted_select: 0,
                queue_select: 0,
            }),
            pin,
        })
    }

    /// Lets notifications reach the device by doorbells, as window `id` of the bus. Whether they do
    /// or not, the device works the same.
    pub fn attach(&self, id: IoId, doorbells: Arc<dyn Doorbells>) {
        let mut state = self.state.lock();
        // Those of another window go first.
        state.bells = None;
        let mut bells = Bells::new(id, doorbells, bell);
        bells.hang(state.session.events());
        state.bells = Some(bells);
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
            Register::QueueReady => state.set_queue_ready(value),
            Register::QueueNotify => {
                if let Some(event) = session.event(value) {
                    event.signal();
                }
            }
            Register::InterruptAck => self.pin.acknowledge(value),
            Register::Status => self.set_status(state, value),
            Register::QueueDesc(half) => state.set_queue_address(Part::Table, half, value),
            Register::QueueDriver(half) => state.set_queue_address(Part::Available, half, value),
            Register::QueueDevice(half) => state.set_queue_address(Part::Used, half, value),
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

    fn set_status(&self, state: &mut State, value: u32) {
        match state.session.set_status(value) {
            Step::Nothing => {}
            Step::Started => {
                if let Some(bells) = &mut state.bells {
                    bells.hang(state.session.events());
                }
            }
            Step::Reset => {
                state.offered_select = 0;
                state.accepted_select = 0;
                state.queue_select = 0;
                if let Some(bells) = &mut state.bells {
                    bells.take_all_down();
                }
                // The device has stopped: nobody raises it again.
                self.pin.clear();
            }
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

impl State {
    fn set_queue_address(&mut self, part: Part, half: Half, value: u32) {
        self.session
            .set_queue_address(self.queue_select, part, half, value);
    }

    fn set_queue_ready(&mut self, value: u32) {
        match value {
            0 => {
                if let Some(bells) = &mut self.bells {
                    bells.take_down(self.queue_select);
                }
                self.session.set_queue_ready(self.queue_select, false);
            }
            1 => self.session.set_queue_ready(self.queue_select, true),
            _ => {}
        }
    }
}

impl Transport for MmioTransport {
    fn device_id(&self) -> u32 {
        self.state.lock().session.device().id()
    }

    fn is_active(&self) -> bool {
        self.state.lock().session.is_active()
    }

    fn pause(&self) {
        self.state.lock().session.hold(Hold::Machine);
    }

    fn resume(&self) {
        self.state.lock().session.release(Hold::Machine);
    }

    fn shut_down(&self) {
        let mut state = self.state.lock();
        state.bells = None;
        state.session.reset();
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
