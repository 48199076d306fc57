//! The register file of one local APIC, and the rules that need nothing but it.
//!
//! Reading and writing them is in `access`. Register numbers are those of x2APIC mode (MSR minus 0x800), which are the xAPIC page's offsets
//! divided by sixteen (SDM vol. 3, table 11-6). No locks, no other processors: what leaves the
//! chip is returned as a value.

use super::timer::Timer;
use super::vectors::Vectors;
use crate::message::{Destination, Message};

/// Register numbers.
pub mod reg {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TPR: u32 = 0x08;
    pub const APR: u32 = 0x09;
    pub const PPR: u32 = 0x0a;
    pub const EOI: u32 = 0x0b;
    pub const RRD: u32 = 0x0c;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SVR: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const TMR: u32 = 0x18;
    pub const IRR: u32 = 0x20;
    pub const ESR: u32 = 0x28;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_ERROR: u32 = 0x37;
    pub const INITIAL: u32 = 0x38;
    pub const CURRENT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// Indices into [`Registers::lvt`].
pub mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;
    /// The entry delivers nothing.
    pub const MASKED: u32 = 1 << 16;
}

/// Bits of IA32_APIC_BASE (SDM vol. 3, 11.4.4 and 11.12.1).
pub mod base {
    pub const BSP: u64 = 1 << 8;
    pub const X2APIC: u64 = 1 << 10;
    pub const ENABLE: u64 = 1 << 11;
    pub const DEFAULT: u64 = 0xfee0_0000;
    /// The page's address, of as many bits as the processor has.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    /// Every bit that can be set.
    pub const DEFINED: u64 = BSP | X2APIC | ENABLE | ADDRESS;
}

/// Errors that the error status register reports (SDM vol. 3, 11.5.3).
pub mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Bit of SVR: the chip accepts vectors.
pub const SVR_ENABLE: u32 = 1 << 8;

/// What a register write makes the world outside do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// A message to other processors, or to itself.
    Send(Message),
    /// A level-triggered vector was finished: the IOAPICs must hear of it.
    EndOfInterrupt(u8),
}

/// The registers.
#[derive(Clone, Debug)]
pub struct Registers {
    pub id: u32,
    pub base: u64,
    /// Bits of a physical address.
    pub physical_bits: u32,
    pub tpr: u8,
    pub ldr: u32,
    pub dfr: u32,
    pub svr: u32,
    pub isr: Vectors,
    pub tmr: Vectors,
    pub irr: Vectors,
    pub lvt: [u32; 6],
    pub timer: Timer,
    pub(super) esr: u32,
    pub(super) errors: u32,
    pub(super) icr: u64,
}

impl Registers {
    /// The state after power-up (SDM vol. 3, 11.4.7.1).
    pub fn new(id: u32) -> Self {
        let bsp = if id == 0 { base::BSP } else { 0 };
        Self {
            id,
            base: base::DEFAULT | base::ENABLE | bsp,
            physical_bits: 52,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            lvt: [lvt::MASKED; 6],
            timer: Timer::new(0),
            esr: 0,
            errors: 0,
            icr: 0,
        }
    }

    /// The state after INIT: as after power-up, but id, mode and TSC offset stay (11.4.7.3 and
    /// 11.12.5.1).
    pub fn init(&mut self) {
        *self = Self {
            base: self.base,
            physical_bits: self.physical_bits,
            timer: Timer::new(self.timer.tsc_offset()),
            ..Self::new(self.id)
        };
    }

    /// True in x2APIC mode.
    pub fn x2apic(&self) -> bool {
        self.base & base::X2APIC != 0
    }

    /// True unless IA32_APIC_BASE turned the chip off.
    pub fn hardware_enabled(&self) -> bool {
        self.base & base::ENABLE != 0
    }

    /// True when the chip accepts vectors: turned on in IA32_APIC_BASE and in SVR.
    pub fn accepts(&self) -> bool {
        self.hardware_enabled() && self.svr & SVR_ENABLE != 0
    }

    /// Writes IA32_APIC_BASE; `None` where that is #GP (SDM vol. 3, 11.12.5, figure 11-27).
    pub fn set_base(&mut self, value: u64) -> Option<()> {
        if value & !base::DEFINED != 0 || value >> self.physical_bits != 0 {
            return None;
        }
        let mode = |v: u64| (v & base::ENABLE != 0, v & base::X2APIC != 0);
        match (mode(self.base), mode(value)) {
            (_, (false, true)) | ((true, true), (true, false)) | ((false, _), (true, true)) => {
                return None;
            }
            ((true, _), (false, _)) => self.init(),
            _ => {}
        }
        self.base = value;
        Some(())
    }

    /// Returns the logical destination register: computed from the id in x2APIC mode (11.12.10.2).
    pub fn logical_id(&self) -> u32 {
        if self.x2apic() {
            (self.id >> 4) << 16 | 1 << (self.id & 15)
        } else {
            self.ldr
        }
    }

    /// Tells whether a message to `destination` is for this chip (SDM vol. 3, 11.6.2).
    pub fn is_listed(&self, destination: Destination) -> bool {
        match destination {
            Destination::All => true,
            Destination::AllBut(id) => id != self.id,
            Destination::Physical(id) => id == self.id,
            Destination::Logical(field) => self.matches_logical(field),
        }
    }

    fn matches_logical(&self, field: u32) -> bool {
        let own = self.logical_id();
        if self.x2apic() {
            return own >> 16 == field >> 16 && own & field & 0xffff != 0;
        }
        let (own, field) = (own >> 24, field & 0xff);
        match self.dfr >> 28 {
            0xf => own & field != 0,
            0x0 => own >> 4 == field >> 4 && own & field & 0xf != 0,
            _ => false,
        }
    }

    /// Returns the processor priority: TPR or the class of what is in service (11.8.3.1).
    pub fn ppr(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= in_service {
            self.tpr
        } else {
            in_service
        }
    }

    /// Returns the arbitration priority, by which lowest-priority delivery chooses (11.6.2.4).
    pub fn apr(&self) -> u8 {
        let class = |vector: Option<u8>| vector.unwrap_or(0) & 0xf0;
        let others = class(self.isr.highest()).max(class(self.irr.highest()));
        if self.tpr & 0xf0 >= others {
            self.tpr
        } else {
            others
        }
    }

    /// Returns the highest requested vector whose class exceeds the processor priority.
    pub fn deliverable(&self) -> Option<u8> {
        self.irr
            .highest()
            .filter(|v| self.hardware_enabled() && v & 0xf0 > self.ppr() & 0xf0)
    }

    /// Moves that vector from IRR to ISR.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        Some(vector)
    }

    /// Takes a vector in; vectors below 16 are an error (11.5.2). True when accepted.
    pub fn request(&mut self, vector: u8, level: bool) -> bool {
        if !self.accepts() {
            return false;
        }
        if vector < 16 {
            self.report(error::RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        self.irr.insert(vector);
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
        true
    }

    /// Collects an error for ESR and raises the error interrupt.
    pub(super) fn report(&mut self, error: u32) {
        let new = self.errors & error == 0;
        self.errors |= error;
        let entry = self.lvt[lvt::ERROR];
        if new && entry & lvt::MASKED == 0 && entry & 0xff >= 16 {
            self.request(entry as u8, false);
        }
    }

    /// Ends the highest interrupt in service (11.8.5).
    pub(super) fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.isr.highest() else {
            return Effect::None;
        };
        self.isr.remove(vector);
        if self.tmr.contains(vector) {
            Effect::EndOfInterrupt(vector)
        } else {
            Effect::None
        }
    }

    /// Returns the whole ICR, as x2APIC mode reads it.
    pub fn icr(&self) -> u64 {
        self.icr
    }
}
