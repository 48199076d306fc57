//! A PCI root bus: configuration space, BARs as windows of the guest's map, MSI-X.
//!
//! ```text
//!   ECAM window, ports 0xcf8/0xcfc ──> RootBus ── Function ── ConfigSpace: header, BARs, capabilities
//!                                        │           └─ Msix: table, pending bits ──> MsiTarget
//!                                        └── BARs: shown, moved, hidden ──> Bus: one change of the map
//! ```
//! There is segment 0 with bus 0, which has the host bridge as device 0 and room for 31 devices. A
//! [`Function`] can be added and removed while the guest runs.
//!
//! **Everything from the guest is hostile.** Registers take any access; what is no access of a
//! configuration register, or has nobody behind it, reads as all ones and is dropped when written. A BAR
//! can be written with any address, and becomes a window only inside the host bridge's [`Windows`] and
//! where nothing else is.
//!
//! Not here: bridges and further buses, I/O BARs, expansion ROMs, INTx (the interrupt pin is 0), MSI
//! without X, power management, PCI Express capabilities, extended configuration registers.
//!
//! Start reading at [`RootBus`], then [`ConfigSpace`] and [`Msix`].
//!
//! ```
//! use umbra_pci::{ConfigSpace, Identity, Width};
//!
//! let mut space = ConfigSpace::new(Identity {
//!     vendor: 0x1af4,
//!     device: 0x1042,
//!     revision: 1,
//!     class: 0x01_80_00, // some other mass storage
//!     subsystem: (0x1af4, 2),
//! });
//! space.add_bar(0, 0x4000, Width::Bits32)?;
//! // A guest asks how large BAR 0 is: it writes ones and sees which of them stay.
//! space.write(0x10, &[0xff; 4]);
//! assert_eq!(space.double_word(0x10), 0xffff_c000);
//! # Ok::<(), umbra_pci::ConfigError>(())
//! ```
#![forbid(unsafe_code)]

mod access;
mod config;
mod function;
mod host_bridge;
mod msix;
mod root;

pub use access::{ConfigPorts, Ecam};
pub use config::{
    BUS_MASTER, COMMAND, CONFIG_LEN, ConfigError, ConfigSpace, Identity, MEMORY_SPACE, Width,
};
pub use function::{Address, Function};
pub use host_bridge::HostBridge;
pub use msix::Msix;
pub use root::{PciError, RootBus, Unplugged, Windows};

#[cfg(test)]
mod tests;
