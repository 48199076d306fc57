//! The PCI transport (virtio 1.3, 4.1): a function with one BAR, without the legacy interface.
//!
//! ```text
//!   configuration space                         BAR 0, 64 KiB
//!     vendor capabilities: where in the BAR ──>   0x0000  common configuration
//!     the last one: a way around the BAR          0x1000  ISR status
//!     MSI-X                                       0x2000  configuration of the device, any width
//!                                                 0x3000  notifications, 4 bytes a queue
//!                                                 0x4000  MSI-X table, 0xc000 pending bits
//! ```
//! A field of the common configuration takes accesses of its own width, and one of 64 bits also two of 32
//! (4.1.3.1). Whatever else comes reads as zero and is dropped when written.
//!
//! **Interrupts** are MSI-X messages only. Without MSI-X a driver has to look at the ISR status, or at its
//! rings: there is no interrupt pin.
//!
//! **Bus master.** A function that may not be bus master neither reads nor writes memory. So the device
//! stands still while the bit is clear, as in a pause, and goes on when it is set: a kernel that is
//! started by another one clears it to be safe from what its predecessor has left.
//!
//! **Hand-over.** The root bus asks for the BAR and names its window when the function is
//! [added](umbra_pci::RootBus::add); doorbells belong to that window, wherever it is. To take a device
//! out: remove the function, wait, then [`shut_down`](Transport::shut_down) or drop it.

mod common;
mod layout;
mod vectors;

use std::sync::Arc;

use parking_lot::Mutex;
use umbra_bus::MmioDevice;
use umbra_cpu::{Doorbell, Doorbells};
use umbra_irq::MsiTarget;
use umbra_pci::{BUS_MASTER, ConfigError, ConfigSpace, Function, Identity, Msix, Width};
use umbra_slots::{DmaSpace, GpaRange, IoId};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::front::Front;
use crate::session::{Hold, Session};
use crate::{Device, Interrupt, Transport};
use layout::{BAR, BAR_LEN, NOTIFY, NOTIFY_MULTIPLIER, Region, Window};
use vectors::Vectors;

/// Vendor ID of virtio devices.
const VENDOR: u16 = 0x1af4;
/// Device ID of device type 0.
const FIRST_DEVICE: u16 = 0x1040;
/// Subsystem ID: that of no legacy device.
const SUBSYSTEM: u16 = 0x1100;

/// A virtio device as a PCI function.
///
/// Locks: the configuration space's comes before the vectors', the state's before those of the vectors and
/// of the map. Neither of both is held when the other one is taken.
pub struct PciTransport {
    config: Mutex<ConfigSpace>,
    /// Where the capability is that is a way around the BAR.
    window: Window,
    vectors: Arc<Vectors>,
    doorbells: Option<Arc<dyn Doorbells>>,
    state: Mutex<Front>,
}

impl PciTransport {
    /// Bytes of the BAR.
    pub const BAR_LEN: u32 = BAR_LEN as u32;
    /// Configuration register with the lower half of its address.
    pub const BAR_REGISTER: u16 = 0x10 + 4 * BAR as u16;

    /// Makes a device a function. It works on `memory`, sends messages to `target`, and is notified by
    /// doorbells where there are some.
    ///
    /// # Errors
    /// If its configuration space has no room.
    ///
    /// # Panics
    /// If it has more than 1024 queues, for which there are no places in the BAR.
    pub fn new(
        device: Box<dyn Device>,
        memory: DmaSpace,
        target: Arc<dyn MsiTarget>,
        doorbells: Option<Arc<dyn Doorbells>>,
    ) -> Result<Arc<Self>, ConfigError> {
        let mut config = ConfigSpace::new(identity(device.id()));
        config.add_bar(BAR, BAR_LEN, Width::Bits64)?;
        let window = layout::add_capabilities(&mut config)?;
        let queues = device.queue_sizes().len();
        assert!(queues <= layout::QUEUES_MAX, "{queues} queues");
        let (table, pending) = (layout::TABLE as u32, layout::PENDING as u32);
        // One for each queue, one for the configuration.
        let count = queues as u16 + 1;
        let msix = Msix::new(&mut config, count, (BAR, table, pending), target)?;
        let vectors = Arc::new(Vectors::new(msix, queues));
        let interrupt = Arc::new(Interrupt::new(Box::new(vectors.clone())));
        let mut session = Session::new(device, memory, interrupt);
        session.hold(Hold::BusMaster);
        Ok(Arc::new(Self {
            config: Mutex::new(config),
            window,
            vectors,
            doorbells,
            state: Mutex::new(Front::new(session)),
        }))
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Region::at(offset) {
            Some(Region::Common(at)) => self.read_common(at, data),
            Some(Region::Isr(0)) => {
                if let [byte] = data {
                    *byte = self.vectors.take_isr();
                }
            }
            Some(Region::Device(at)) => self.state.lock().session.device().read_config(at, data),
            Some(Region::Table(at)) => self.vectors.msix().read_table(at, data),
            Some(Region::Pending(at)) => self.vectors.msix().read_pending(at, data),
            Some(Region::Isr(_) | Region::Notify(_)) | None => {}
        }
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        match Region::at(offset) {
            Some(Region::Common(at)) => self.write_common(at, data),
            Some(Region::Device(at)) => self.state.lock().session.write_config(at, data),
            // Just as its doorbell: a write of any width and value.
            Some(Region::Notify(at)) if at.is_multiple_of(NOTIFY_MULTIPLIER) => {
                let queue = (at / NOTIFY_MULTIPLIER) as u32;
                if let Some(event) = self.state.lock().session.event(queue) {
                    event.signal();
                }
            }
            Some(Region::Table(at)) => self.vectors.msix().write_table(at, data),
            Some(Region::Isr(_) | Region::Notify(_) | Region::Pending(_)) | None => {}
        }
    }
}

fn identity(device_type: u32) -> Identity {
    Identity {
        vendor: VENDOR,
        // There are types up to 63 (4.1.2); a wrong one finds no driver.
        device: FIRST_DEVICE.wrapping_add(device_type as u16),
        revision: 1,
        class: class(device_type),
        subsystem: (VENDOR, SUBSYSTEM),
    }
}

/// What `lspci` calls it (PCI Code and ID Assignment 1.11).
fn class(device_type: u32) -> u32 {
    match device_type {
        1 => 0x02_00_00,
        2 | 8 | 26 => 0x01_80_00,
        3 => 0x07_80_00,
        19 => 0x02_80_00,
        27 => 0x05_80_00,
        _ => 0xff_00_00,
    }
}

/// The write that notifies of a queue: of any width and value.
fn bell(queue: u32) -> Doorbell {
    Doorbell {
        offset: NOTIFY + NOTIFY_MULTIPLIER * u64::from(queue),
        len: 0,
        value: None,
    }
}

impl Function for PciTransport {
    fn read_config(&self, register: u16, data: &mut [u8]) {
        let way = {
            let config = self.config.lock();
            config.read(register, data);
            self.window.leads_to(&config, register, data.len())
        };
        if let Some(offset) = way {
            self.read_bar(offset, data);
        }
    }

    fn write_config(&self, register: u16, data: &[u8]) {
        let (way, master) = {
            let mut config = self.config.lock();
            config.write(register, data);
            self.vectors.msix().follow(&config);
            let way = self.window.leads_to(&config, register, data.len());
            (way, config.command_has(BUS_MASTER))
        };
        {
            let session = &mut self.state.lock().session;
            match master {
                true => session.release(Hold::BusMaster),
                false => session.hold(Hold::BusMaster),
            }
        }
        if let Some(offset) = way {
            self.write_bar(offset, data);
        }
    }

    fn bars(self: Arc<Self>) -> Vec<(u8, MmioDevice)> {
        vec![(BAR, self)]
    }

    fn decoded(&self, bar: u8) -> Option<GpaRange> {
        self.config.lock().decoded(bar)
    }

    fn attach(&self, _: u8, id: IoId) {
        if let Some(doorbells) = &self.doorbells {
            self.state.lock().attach(id, doorbells.clone(), bell);
        }
    }
}

impl Transport for PciTransport {
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
        self.vectors.clear();
    }
}

impl DeviceMmio for PciTransport {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.read_bar(offset, data);
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.write_bar(offset, data);
    }
}

#[cfg(test)]
mod tests;
