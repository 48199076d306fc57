//! The interrupt controllers and the timer of a PC, in software.
//!
//! ```text
//!   device ──Line──┬──> Pic (two 8259A) ──INTR──┬──> LINT0 of every LocalApic
//!                  └──> IoApic (82093AA)        └──> pin 0 of the IoApic
//!                          │ Message                        ┌───────────────┐
//!   device ──Msi──> Apics ─┴────────────────────────────────> LocalApic 0..n │──> processor
//!                     ^──────────────── inter-processor ─────┘───────────────┘
//!   Pit (8254) counter 0 ──> line 0
//! ```
//!
//! A processor polls [`LocalApic::work`], one atomic load, at every block border; everything else
//! happens under short locks. **Order of locks**: IOAPIC, then one local APIC. The 8259 pair and the
//! 8254 release theirs before they drive an output; nobody ever holds the locks of two local APICs.
//!
//! This crate must not know what a processor, a bus or a machine is: registers are reached through
//! plain functions and the traits of `vm-device`. Start reading at [`Chipset`], then [`LocalApic`].
//!
//! Manuals: Intel SDM vol. 3 chapter 11 (local APIC; chapter 10 before 2022), 82093AA (IOAPIC),
//! 8259A, 8254, and the 82371 for the ports that join them.
//!
//! ```
//! use umbra_clock::Clock;
//! use umbra_irq::{Msi, MsiTarget};
//! use umbra_irqchip::Apics;
//!
//! let apics = Apics::new(2, Clock::start());
//! // INIT and start-up messages to processor 1: there is something to do for it, and only for it.
//! for (delivery, vector) in [(5, 0), (6, 0x10)] {
//!     apics.send(Msi { address: 0xfee0_1000, data: delivery << 8 | vector });
//! }
//! assert!(apics.apic(1).work() && !apics.apic(0).work());
//! ```
#![forbid(unsafe_code)]

mod apic;
mod apics;
mod chipset;
mod ioapic;
mod message;
mod pic;
mod pit;

pub use apic::{ApicPart, ApicState, BadApicState, Event, LocalApic};
pub use apics::Apics;
pub use chipset::{Chips, Chipset};
pub use ioapic::{IoApic, PINS, RouteListener};
pub use message::{Delivery, Destination, Message, Messages};
pub use pic::Pic;
pub use pit::Pit;
