//! The small devices of a microVM: serial port, CMOS clock, keyboard controller, ACPI registers, what
//! test kernels look for; and the virtio devices.
//!
//! | device | ports | source |
//! |---|---|---|
//! | [`Serial`] | 8 | PC16550D data sheet |
//! | [`Cmos`] | 0x70, 0x71 | MC146818A data sheet, PC/AT Technical Reference |
//! | [`Keyboard`] | 0x60, 0x64 | only the 8042's reset command |
//! | [`I8042`] | 0x60, 0x64 | PC/AT and PS/2 Technical Reference |
//! | [`Power`] | 12 | ACPI 6.5, 4.8.3.3, 4.8.3.6 and 4.8.3.7 |
//! | [`PowerButton`] | 1 | ACPI 6.5, 4.8.2.2.1.2 |
//! | [`PciHotplug`] | 12 | ACPI 6.5, 6.3.3 |
//! | [`ResetControl`] | 0x92, 0xcf9 | PS/2 Technical Reference, 82371SB |
//! | [`DebugExit`] | 4 | QEMU's `isa-debug-exit` |
//! | [`FwCfg`] | 0x510 to 0x51b | QEMU's `fw_cfg` |
//! | [`TestDevice`] | 0xe0, 0x2000 | QEMU's `pc-testdev` |
//! | [`virtio::Block`] | behind a transport of `umbra-virtio` | virtio 1.3, 5.2 |
//! | [`virtio::Rng`] | behind a transport of `umbra-virtio` | virtio 1.3, 5.4 |
//!
//! Each implements a trait of `vm-device` behind its own short lock, or is a device of `umbra-virtio`, is
//! given a clock, a wire and closures, and knows neither the bus nor the machine. One that reaches
//! guest memory by itself does so through [`umbra_slots::Dma`]. What concerns the whole machine leaves
//! as a [`PowerEvent`]. Start reading at [`Power`], the smallest.
//!
//! ```
//! use std::sync::{Arc, mpsc};
//! use umbra_devices::{DebugExit, PowerEvent};
//! use vm_device::{DevicePio, bus::PioAddress};
//!
//! let (tell, told) = mpsc::channel();
//! let device = DebugExit::new(Arc::new(move |event| drop(tell.send(event))));
//! device.pio_write(PioAddress(DebugExit::DEFAULT_PORT), 0, &[3]);
//! assert_eq!(told.recv(), Ok(PowerEvent::Exit(3)));
//! ```
#![forbid(unsafe_code)]

mod cmos;
mod debug_exit;
pub mod fw_cfg;
mod i8042;
mod keyboard;
mod panic_port;
mod pci_hotplug;
mod power;
mod power_button;
mod reset_control;
mod serial;
mod test_device;
pub mod virtio;

use std::sync::Arc;

pub use cmos::{Cmos, MemorySizes};
pub use debug_exit::DebugExit;
pub use fw_cfg::FwCfg;
pub use i8042::{I8042, KeyError};
pub use keyboard::Keyboard;
pub use panic_port::PanicPort;
pub use pci_hotplug::{EjectListener, PciHotplug};
pub use power::Power;
pub use power_button::PowerButton;
pub use reset_control::ResetControl;
pub use serial::Serial;
pub use test_device::TestDevice;

/// What the guest asks of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Off.
    Off,
    /// Start anew.
    Reset,
    /// End with a value of the guest's, which [`DebugExit`] was given.
    Exit(u32),
}

/// Hears of a [`PowerEvent`]. Called on a processor's thread, which goes on executing the guest:
/// it must not wait for a processor.
pub type PowerListener = Arc<dyn Fn(PowerEvent) + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// A listener, and what it heard.
    pub fn power_recorder() -> (Arc<Mutex<Vec<PowerEvent>>>, PowerListener) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let heard = events.clone();
        (events, Arc::new(move |event| heard.lock().push(event)))
    }
}
