//! A local APIC as a value: to save, and to go on from elsewhere.

use umbra_x86::msr;
use umbra_x86::vcpu::LapicImage;

use super::access::{ICR_WRITABLE, LVT_READ_ONLY, LVT_WRITABLE, SVR_WRITABLE, VERSION};
use super::regs::{Registers, base, reg};
use super::timer::{Mode, Timer};
use super::vectors::Vectors;
use super::{Events, LocalApic, fire};

/// The state of a local APIC: its registers, and what they mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApicState {
    /// The registers.
    pub image: LapicImage,
    /// IA32_APIC_BASE.
    pub base: u64,
    /// IA32_TSC_DEADLINE.
    pub tsc_deadline: u64,
    /// What must be added to the clock to get the guest's time-stamp counter, in nanoseconds.
    pub tsc_offset: i64,
    /// What the clock read when the current count was that of the image.
    pub at_ns: u64,
}

/// A state that a local APIC cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part} is {value:#x}: {why}")]
pub struct BadApicState {
    /// Which part.
    pub part: ApicPart,
    /// Its value.
    pub value: u64,
    /// What is wrong about it, in words.
    pub why: &'static str,
}

/// A part of an [`ApicState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApicPart {
    /// The register at this offset of the page.
    #[error("local APIC register {0:#x}")]
    Register(u32),
    /// IA32_APIC_BASE or IA32_TSC_DEADLINE.
    #[error("MSR {0:#x}")]
    Msr(u32),
}

impl LocalApic {
    /// Returns the state at `now_ns` of the clock. A timer that is due fires first.
    ///
    /// What waits to be taken by [`take_event`](LocalApic::take_event) is not part of it: the
    /// processor takes it first. An ExtINT message that was not acknowledged is not either: the 8259
    /// pair and the IOAPIC send it again.
    pub fn save(&self, now_ns: u64) -> ApicState {
        self.with(|inner| {
            fire(inner, now_ns);
            let regs = &inner.regs;
            ApicState {
                image: regs.image(now_ns),
                base: regs.base,
                tsc_deadline: regs.timer.deadline(),
                tsc_offset: regs.timer.tsc_offset(),
                at_ns: now_ns,
            }
        })
    }

    /// Tells whether [`restore`](LocalApic::restore) would take `state`.
    ///
    /// # Errors
    /// The first part that this chip cannot have.
    pub fn check(&self, state: &ApicState) -> Result<(), BadApicState> {
        let bits = self.inner.lock().regs.physical_bits;
        Registers::from_state(self.id, bits, state).map(|_| ())
    }

    /// Becomes what `state` says; no event waits afterwards.
    ///
    /// # Errors
    /// The first part that this chip cannot have; it has then not changed.
    pub fn restore(&self, state: &ApicState) -> Result<(), BadApicState> {
        self.with(|inner| {
            inner.regs = Registers::from_state(self.id, inner.regs.physical_bits, state)?;
            inner.events = Events::default();
            Ok(())
        })
    }
}

/// In the version: the chip can keep the end of an interrupt from the IOAPICs, as KVM's can where the
/// IOAPIC is not in the kernel. This one cannot; it takes the place of one that was not told to (its
/// bit in SVR is a reserved one here).
const CAN_SUPPRESS_EOI: u32 = 1 << 24;

/// Words of IRR, ISR and TMR.
const WORDS: std::ops::Range<u32> = 0..8;

impl Registers {
    fn image(&self, now: u64) -> LapicImage {
        let mut image = LapicImage::default();
        let id = if self.x2apic() {
            self.id
        } else {
            self.id << 24
        };
        for (register, value) in [
            (reg::ID, id),
            (reg::VERSION, VERSION),
            (reg::TPR, self.tpr.into()),
            (reg::APR, self.apr().into()),
            (reg::PPR, self.ppr().into()),
            (reg::LDR, self.logical_id()),
            (reg::DFR, self.dfr),
            (reg::SVR, self.svr),
            (reg::ESR, self.esr),
            (reg::ICR, self.icr as u32),
            (reg::ICR_HIGH, (self.icr >> 32) as u32),
            (reg::INITIAL, self.timer.initial()),
            (reg::CURRENT, self.timer.remaining(now)),
            (reg::DIVIDE, self.timer.divide()),
        ] {
            image.set_register(register, value);
        }
        for (first, vectors) in [
            (reg::ISR, self.isr),
            (reg::TMR, self.tmr),
            (reg::IRR, self.irr),
        ] {
            WORDS.for_each(|i| image.set_register(first + i, vectors.word(i)));
        }
        for (register, entry) in (reg::LVT_TIMER..).zip(self.lvt) {
            image.set_register(register, entry);
        }
        image
    }

    fn from_state(id: u32, physical_bits: u32, state: &ApicState) -> Result<Self, BadApicState> {
        let mut regs = Self {
            base: checked_base(state.base, physical_bits)?,
            physical_bits,
            ..Self::new(id)
        };
        let register = |register: u32| state.image.register(register);
        let word = |number: u32, allowed: u32, why| match register(number) {
            value if value & !allowed == 0 => Ok(value),
            value => Err(bad(number, value, why)),
        };
        let known = if regs.x2apic() { id } else { id << 24 };
        if register(reg::ID) != known {
            return Err(bad(reg::ID, register(reg::ID), "another processor's id"));
        }
        if register(reg::VERSION) & !CAN_SUPPRESS_EOI != VERSION {
            let why = "another version of the chip";
            return Err(bad(reg::VERSION, register(reg::VERSION), why));
        }
        regs.tpr = word(reg::TPR, 0xff, RESERVED)? as u8;
        regs.svr = word(reg::SVR, SVR_WRITABLE, RESERVED)?;
        regs.esr = word(reg::ESR, 0xff, RESERVED)?;
        if !regs.x2apic() {
            regs.ldr = word(reg::LDR, 0xff00_0000, RESERVED)?;
            regs.dfr = register(reg::DFR) | 0x0fff_ffff;
        }
        regs.isr = vectors(state, reg::ISR)?;
        regs.tmr = vectors(state, reg::TMR)?;
        regs.irr = vectors(state, reg::IRR)?;
        for (i, entry) in regs.lvt.iter_mut().enumerate() {
            let allowed = LVT_WRITABLE[i] | LVT_READ_ONLY;
            *entry = word(reg::LVT_TIMER + i as u32, allowed, RESERVED)? & LVT_WRITABLE[i];
        }
        // Only a write looks at the ICR; the guest may have written anything to its reserved bits.
        let icr = u64::from(register(reg::ICR)) & ICR_WRITABLE;
        regs.icr = u64::from(register(reg::ICR_HIGH)) << 32 | icr;
        regs.timer = timer(state)?;
        Ok(regs)
    }
}

const RESERVED: &str = "a reserved bit is set";

fn bad(register: u32, value: u32, why: &'static str) -> BadApicState {
    BadApicState {
        part: ApicPart::Register(register * 16),
        value: value.into(),
        why,
    }
}

fn checked_base(value: u64, physical_bits: u32) -> Result<u64, BadApicState> {
    let why = if value & !base::DEFINED != 0 || value >> physical_bits != 0 {
        RESERVED
    } else if value & base::X2APIC != 0 && value & base::ENABLE == 0 {
        "x2APIC mode of a chip that is off"
    } else {
        return Ok(value);
    };
    let part = ApicPart::Msr(msr::APIC_BASE);
    Err(BadApicState { part, value, why })
}

fn vectors(state: &ApicState, first: u32) -> Result<Vectors, BadApicState> {
    let mut words = [0; 8];
    for i in WORDS {
        words[i as usize] = state.image.register(first + i);
    }
    if words[0] & 0xffff != 0 {
        return Err(bad(first, words[0], "vectors below 16 are reserved"));
    }
    Ok(Vectors::from_words(words))
}

fn timer(state: &ApicState) -> Result<Timer, BadApicState> {
    let register = |register: u32| state.image.register(register);
    let mode = Mode::from_lvt(register(reg::LVT_TIMER));
    let (initial, current) = (register(reg::INITIAL), register(reg::CURRENT));
    let divide = register(reg::DIVIDE);
    if divide & !0b1011 != 0 {
        return Err(bad(reg::DIVIDE, divide, RESERVED));
    }
    if mode == Mode::Deadline && initial != 0 {
        return Err(bad(
            reg::INITIAL,
            initial,
            "the timer has a deadline instead",
        ));
    }
    if initial == 0 && current != 0 {
        return Err(bad(reg::CURRENT, current, "the timer was not started"));
    }
    if mode != Mode::Deadline && state.tsc_deadline != 0 {
        return Err(BadApicState {
            part: ApicPart::Msr(msr::TSC_DEADLINE),
            value: state.tsc_deadline,
            why: "the timer counts instead",
        });
    }
    let mut timer = Timer::counting(mode, divide, initial, current, state.at_ns);
    timer.set_tsc_offset(state.tsc_offset);
    timer.set_deadline(state.tsc_deadline);
    Ok(timer)
}
