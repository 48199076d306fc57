//! Reading and writing the registers, by the xAPIC page and by MSR, and what the ICR sends.

use super::regs::{Effect, Registers, SVR_ENABLE, error, lvt, reg};
use super::timer::Mode;
use crate::message::{Delivery, Destination, Message};

/// Version 0x14, six LVT entries, no suppression of EOI broadcasts.
pub(super) const VERSION: u32 = 0x14 | 5 << 16;
/// Vector, APIC enable, focus-processor check.
pub(super) const SVR_WRITABLE: u32 = 0x3ff;
/// Which bits of each LVT entry can be written: timer, thermal, counter, LINT0, LINT1, error.
pub(super) const LVT_WRITABLE: [u32; 6] = [0x700ff, 0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff];
/// Delivery status and remote IRR: read-only, writes are ignored in either mode.
pub(super) const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;
/// Delivery status of the ICR, likewise.
const ICR_READ_ONLY: u64 = 1 << 12;
/// What of the ICR's lower half can be written.
pub(super) const ICR_WRITABLE: u64 = 0xcc_dfff & !ICR_READ_ONLY;

/// Decodes delivery mode and vector from the lower half of an ICR; `None` with a destination
/// shorthand, or a reserved mode.
pub(super) fn multicast(icr: u32) -> Option<(Delivery, u8)> {
    const SHORTHAND: u32 = 3 << 18;
    if icr & SHORTHAND != 0 {
        return None;
    }
    Some((Delivery::from_bits(icr >> 8)?, icr as u8))
}

impl Registers {
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
                let written = self.write_plain(register, value, now).is_some();
                // A register that is only read ignores what is written; one that is not there is
                // an error (11.5.3).
                if !written && self.read(register, now).is_none() {
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
}
