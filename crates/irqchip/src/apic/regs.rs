//! The register file of one local APIC, and the rules that need nothing but it.
//!
//! Register numbers are those of x2APIC mode (MSR minus 0x800), which are the xAPIC page's offsets
//! divided by sixteen (SDM vol. 3, table 11-6). No locks, no other processors: what leaves the
//! chip is returned as a value.

use super::timer::{Mode, Timer};
use super::vectors::Vectors;
use crate::message::{Delivery, Destination, Message};

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
    /// The page's address, with 52 physical address bits.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
}

/// Errors that the error status register reports (SDM vol. 3, 11.5.3).
mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Version 0x14, six LVT entries, no suppression of EOI broadcasts.
const VERSION: u32 = 0x14 | 5 << 16;
const SVR_ENABLE: u32 = 1 << 8;
/// Vector, APIC enable, focus-processor check.
const SVR_WRITABLE: u32 = 0x3ff;
/// Which bits of each LVT entry can be written: timer, thermal, counter, LINT0, LINT1, error.
const LVT_WRITABLE: [u32; 6] = [0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff];
/// Delivery status and remote IRR: read-only, writes are ignored in either mode.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;
/// Delivery status of the ICR, likewise.
const ICR_READ_ONLY: u64 = 1 << 12;
const ICR_WRITABLE: u64 = 0xcc_dfff & !ICR_READ_ONLY;

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
    pub tpr: u8,
    pub ldr: u32,
    pub dfr: u32,
    pub svr: u32,
    pub isr: Vectors,
    pub tmr: Vectors,
    pub irr: Vectors,
    pub lvt: [u32; 6],
    pub timer: Timer,
    esr: u32,
    errors: u32,
    icr: u64,
}

impl Registers {
    /// The state after power-up (SDM vol. 3, 11.4.7.1).
    pub fn new(id: u32) -> Self {
        let bsp = if id == 0 { base::BSP } else { 0 };
        Self {
            id,
            base: base::DEFAULT | base::ENABLE | bsp,
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
        let (base, offset) = (self.base, self.timer.tsc_offset());
        *self = Self::new(self.id);
        self.base = base;
        self.timer = Timer::new(offset);
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
        if value & !(base::BSP | base::X2APIC | base::ENABLE | base::ADDRESS) != 0 {
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
    fn report(&mut self, error: u32) {
        let new = self.errors & error == 0;
        self.errors |= error;
        let entry = self.lvt[lvt::ERROR];
        if new && entry & lvt::MASKED == 0 && entry & 0xff >= 16 {
            self.request(entry as u8, false);
        }
    }

    /// Ends the highest interrupt in service (11.8.5).
    fn end_of_interrupt(&mut self) -> Effect {
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

    /// Reads a register; `None` where there is none.
    pub fn read(&self, register: u32, now: u64) -> Option<u32> {
        Some(match register {
            reg::ID if self.x2apic() => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => u32::from(self.tpr),
            reg::APR if !self.x2apic() => u32::from(self.apr()),
            reg::PPR => u32::from(self.ppr()),
            reg::EOI | reg::RRD if !self.x2apic() => 0,
            reg::LDR => self.logical_id(),
            reg::DFR if !self.x2apic() => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..reg::TMR => self.isr.word(register - reg::ISR),
            reg::TMR..reg::IRR => self.tmr.word(register - reg::TMR),
            reg::IRR..reg::ESR => self.irr.word(register - reg::IRR),
            reg::ESR => self.esr,
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH if !self.x2apic() => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[(register - reg::LVT_TIMER) as usize],
            reg::INITIAL => self.timer.initial(),
            reg::CURRENT => self.timer.current(now),
            reg::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Writes a register of the xAPIC page. What cannot be written is reported in ESR.
    pub fn write_xapic(&mut self, register: u32, value: u32, now: u64) -> Effect {
        match register {
            reg::LDR => self.ldr = value & 0xff00_0000,
            reg::DFR => self.dfr = value | 0x0fff_ffff,
            reg::ESR => self.latch_errors(),
            reg::EOI => return self.end_of_interrupt(),
            reg::ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(value) & ICR_WRITABLE;
                return self.send();
            }
            reg::ICR_HIGH => {
                self.icr = self.icr & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
            }
            _ => {
                if self.write_plain(register, value, now).is_none() {
                    self.report(error::ILLEGAL_REGISTER);
                }
            }
        }
        Effect::None
    }

    /// Writes a register by MSR; `None` where that is #GP: no such register, read-only, or a
    /// reserved bit (SDM vol. 3, 11.12.1.2 and 11.12.1.3).
    pub fn write_x2apic(&mut self, register: u32, value: u64, now: u64) -> Option<Effect> {
        match register {
            reg::EOI => return (value == 0).then(|| self.end_of_interrupt()),
            reg::ESR => {
                if value != 0 {
                    return None;
                }
                self.latch_errors();
            }
            reg::ICR => {
                if value & !(0xffff_ffff_0000_0000 | ICR_WRITABLE | ICR_READ_ONLY) != 0 {
                    return None;
                }
                self.icr = value & !ICR_READ_ONLY;
                return Some(self.send());
            }
            reg::SELF_IPI => {
                if value > 0xff {
                    return None;
                }
                return Some(self.send_vector_to_self(value as u8));
            }
            _ => {
                let allowed = match register {
                    reg::TPR => 0xff,
                    reg::SVR => SVR_WRITABLE,
                    reg::LVT_TIMER..=reg::LVT_ERROR => {
                        LVT_WRITABLE[(register - reg::LVT_TIMER) as usize] | LVT_READ_ONLY
                    }
                    reg::INITIAL => u32::MAX,
                    reg::DIVIDE => 0b1011,
                    _ => return None,
                };
                if value & !u64::from(allowed) != 0 {
                    return None;
                }
                self.write_plain(register, value as u32, now)?;
            }
        }
        Some(Effect::None)
    }

    /// Writes a register that does no more than hold its value, in either mode.
    fn write_plain(&mut self, register: u32, value: u32, now: u64) -> Option<()> {
        match register {
            reg::TPR => self.tpr = value as u8,
            reg::SVR => self.set_svr(value),
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                self.set_lvt((register - reg::LVT_TIMER) as usize, value);
            }
            reg::INITIAL => self.timer.set_initial(value, now),
            reg::DIVIDE => self.timer.set_divide(value, now),
            _ => return None,
        }
        Some(())
    }

    /// Writes SVR. Turning the chip off masks every LVT entry (11.4.7.2).
    fn set_svr(&mut self, value: u32) {
        self.svr = value & SVR_WRITABLE;
        if self.svr & SVR_ENABLE == 0 {
            self.lvt.iter_mut().for_each(|entry| *entry |= lvt::MASKED);
        }
    }

    fn set_lvt(&mut self, index: usize, value: u32) {
        let forced = if self.svr & SVR_ENABLE == 0 {
            lvt::MASKED
        } else {
            0
        };
        self.lvt[index] = value & LVT_WRITABLE[index] | forced;
        if index == lvt::TIMER {
            self.timer.set_mode(Mode::from_lvt(self.lvt[index]));
        }
    }

    /// A write to ESR shows the errors collected since the last one (11.5.3).
    fn latch_errors(&mut self) {
        self.esr = std::mem::take(&mut self.errors);
    }

    /// Issues what the ICR says (11.6.1).
    fn send(&mut self) -> Effect {
        const LOGICAL: u64 = 1 << 11;
        const ASSERT: u64 = 1 << 14;
        const LEVEL: u64 = 1 << 15;
        let icr = self.icr;
        let Some(delivery) = Delivery::from_bits((icr >> 8) as u32) else {
            return Effect::None;
        };
        // "INIT level de-assert" only synchronises arbitration ids, which nobody has any more.
        if delivery == Delivery::Init && icr & LEVEL != 0 && icr & ASSERT == 0 {
            return Effect::None;
        }
        let vector = icr as u8;
        if vector < 16 && matches!(delivery, Delivery::Fixed | Delivery::LowestPriority) {
            self.report(error::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        let destination = match icr >> 18 & 3 {
            0 if self.x2apic() => Destination::from_x2apic((icr >> 32) as u32, icr & LOGICAL != 0),
            0 => Destination::from_byte((icr >> 56) as u8, icr & LOGICAL != 0),
            1 => Destination::Physical(self.id),
            2 => Destination::All,
            _ => Destination::AllBut(self.id),
        };
        // Inter-processor interrupts are edge-triggered whatever the ICR says (11.6.1, "Trigger
        // Mode": the bit is used for INIT level de-assert only).
        Effect::Send(Message {
            delivery,
            vector,
            level: false,
            destination,
        })
    }

    fn send_vector_to_self(&mut self, vector: u8) -> Effect {
        if vector < 16 {
            self.report(error::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        Effect::Send(Message {
            delivery: Delivery::Fixed,
            vector,
            level: false,
            destination: Destination::Physical(self.id),
        })
    }

    /// Returns the whole ICR, as x2APIC mode reads it.
    pub fn icr(&self) -> u64 {
        self.icr
    }
}
