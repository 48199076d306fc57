//! Whether a state is one that this processor can have.
//!
//! What a guest could reach by its own instructions passes; what it could not, and what this
//! processor has not, is refused. Two things are left to the instruction that meets them: an
//! instruction pointer that is not canonical (code may run up to the border, and the fetch faults),
//! and the contents of descriptor caches beyond their form.

use umbra_cpu::{Part, StateError};
use umbra_irqchip::{ApicPart, ApicState, BadApicState};
use umbra_x86::state::{CpuState, Segment, seg};
use umbra_x86::vcpu::{Activity, Events, HeldException, Stage, VcpuState, XsaveImage};
use umbra_x86::{cr0, cr4, efer, msr, rflags, vector};

use super::{Checked, FX_STATE, TSC_KHZ};
use crate::control::EFER_ALLOWED;
use crate::cpu::Cpu;
use crate::fpu::{FxArea, MXCSR, MXCSR_MASK, XMM};
use crate::ops::xsave::component;

const RESERVED: &str = "a reserved bit is set";
const NOT_CANONICAL: &str = "the address is not canonical";

type Result<T> = std::result::Result<T, StateError>;

/// Refuses `value` unless it is `good`.
fn require(good: bool, what: Part, value: u64, why: &'static str) -> Result<()> {
    if good {
        return Ok(());
    }
    Err(StateError { what, value, why })
}

fn register(good: bool, name: &'static str, value: u64, why: &'static str) -> Result<()> {
    require(good, Part::Register(name), value, why)
}

impl Cpu {
    /// Checks a state, and turns it into what is needed to apply it.
    pub(super) fn check(&self, state: &VcpuState) -> Result<Checked> {
        let registers = &state.registers;
        self.check_time(state)?;
        self.check_control(registers)?;
        check_flags(registers)?;
        self.check_segments(registers)?;
        check_debug(state)?;
        check_events(&state.events, state.activity)?;
        let known = self.xcr0_allowed();
        let xcr0 = state.xcr0;
        register(
            xcr0 & component::X87 != 0,
            "XCR0",
            xcr0,
            "x87 state is always enabled",
        )?;
        register(xcr0 & !known == 0, "XCR0", xcr0, RESERVED)?;
        Ok(Checked {
            fx: fx_area(&state.xsave, known)?,
            msrs: self.checked_msrs(state)?,
            apic: self.checked_apic(state)?,
            pdptes: self.checked_pdptes(state)?,
        })
    }

    fn check_time(&self, state: &VcpuState) -> Result<()> {
        let time = &state.time;
        let khz = u64::from(time.tsc_khz);
        let why = "this processor's counter runs at 1000000 kHz";
        require(time.tsc_khz == TSC_KHZ, Part::Time("tsc_khz"), khz, why)?;
        let why = "the machine's clock has not come so far: it is resumed first";
        let passed = time.clock_ns <= self.clock.now();
        require(passed, Part::Time("clock_ns"), time.clock_ns, why)
    }

    fn check_control(&self, r: &CpuState) -> Result<()> {
        let (paging, pae) = (r.cr0 & cr0::PG != 0, r.cr4 & cr4::PAE != 0);
        let long = r.efer & efer::LMA != 0;
        let asked = paging && r.efer & efer::LME != 0;
        let protected = r.cr0 & cr0::PE != 0;
        let cached = r.cr0 & cr0::NW == 0 || r.cr0 & cr0::CD != 0;
        register(r.cr0 & !cr0::DEFINED == 0, "CR0", r.cr0, RESERVED)?;
        register(
            protected || !paging,
            "CR0",
            r.cr0,
            "paging is on without protection",
        )?;
        register(cached, "CR0", r.cr0, "NW is set without CD")?;
        register(r.efer & !EFER_ALLOWED == 0, "EFER", r.efer, RESERVED)?;
        register(long == asked, "EFER", r.efer, "LMA is not LME and CR0.PG")?;
        register(r.cr4 & !self.cr4_allowed() == 0, "CR4", r.cr4, RESERVED)?;
        register(
            pae || !long,
            "CR4",
            r.cr4,
            "IA-32e mode is active without PAE",
        )?;
        let pcid = r.cr4 & cr4::PCIDE != 0;
        register(
            long || !pcid,
            "CR4",
            r.cr4,
            "PCIDE is set outside IA-32e mode",
        )?;
        let width = self.cpuid.get(0x8000_0008, 0).eax & 0xff;
        register(r.cr3 >> width.clamp(32, 52) == 0, "CR3", r.cr3, RESERVED)?;
        register(r.cr8 < 16, "CR8", r.cr8, RESERVED)
    }

    fn check_segments(&self, r: &CpuState) -> Result<()> {
        const NAMES: [(&str, &str); 8] = [
            ("ES.base", "ES.attr"),
            ("CS.base", "CS.attr"),
            ("SS.base", "SS.attr"),
            ("DS.base", "DS.attr"),
            ("FS.base", "FS.attr"),
            ("GS.base", "GS.attr"),
            ("LDTR.base", "LDTR.attr"),
            ("TR.base", "TR.attr"),
        ];
        let all = r.seg.iter().chain([&r.ldtr, &r.tr]);
        for (i, (segment, (base, attr))) in all.zip(NAMES).enumerate() {
            let bits = u64::from(segment.attr);
            register(segment.attr & 0xf00 == 0, attr, bits, RESERVED)?;
            if i < seg::FS {
                register(
                    segment.base >> 32 == 0,
                    base,
                    segment.base,
                    "it has 32 bits",
                )?;
            }
            self.check_address(base, segment.base)?;
        }
        self.check_address("GDTR.base", r.gdtr.base)?;
        self.check_address("IDTR.base", r.idtr.base)?;
        let long_code = r.efer & efer::LMA != 0 && r.seg[seg::CS].attr & Segment::L != 0;
        let fits = long_code || r.rip >> 32 == 0;
        register(fits, "RIP", r.rip, "it has 32 bits outside 64-bit code")
    }

    fn check_address(&self, name: &'static str, address: u64) -> Result<()> {
        register(
            self.canonical_at_most(address),
            name,
            address,
            NOT_CANONICAL,
        )
    }

    fn checked_msrs(&self, state: &VcpuState) -> Result<crate::cpu::Msrs> {
        let mut msrs = self.msrs_of(&state.msrs)?;
        msrs.tsc_offset = state.time.tsc.wrapping_sub(state.time.clock_ns);
        Ok(msrs)
    }

    fn checked_apic(&self, state: &VcpuState) -> Result<ApicState> {
        let listed = |number| state.msrs.get(number);
        let time = &state.time;
        let apic = ApicState {
            image: state.lapic.clone(),
            base: listed(msr::APIC_BASE).unwrap_or(self.apic.power_up_base()),
            tsc_deadline: listed(msr::TSC_DEADLINE).unwrap_or(0),
            tsc_offset: time.tsc.wrapping_sub(time.clock_ns) as i64,
            at_ns: time.clock_ns,
        };
        self.apic.check(&apic).map_err(from_apic)?;
        let (priority, cr8) = (apic.image.register(8) >> 4, state.registers.cr8);
        let why = "the local APIC has another task priority";
        register(cr8 == u64::from(priority), "CR8", cr8, why)?;
        Ok(apic)
    }

    fn checked_pdptes(&self, state: &VcpuState) -> Result<Option<[u64; 4]>> {
        const NAMES: [&str; 4] = ["PDPTE0", "PDPTE1", "PDPTE2", "PDPTE3"];
        let r = &state.registers;
        let pae = r.cr0 & cr0::PG != 0 && r.cr4 & cr4::PAE != 0 && r.efer & efer::LMA == 0;
        match state.pdptes {
            None if pae => match self.mmu.read_pdptes(r.cr3) {
                Ok(pdptes) => Ok(Some(pdptes)),
                Err(_) => Err(StateError {
                    what: Part::Register("CR3"),
                    value: r.cr3,
                    why: "no page-directory-pointer table can be loaded from there",
                }),
            },
            Some([first, ..]) if !pae => {
                register(false, NAMES[0], first, "paging is not of the PAE kind")?;
                Ok(None)
            }
            Some(pdptes) => {
                for (name, pdpte) in NAMES.into_iter().zip(pdptes) {
                    register(self.mmu.allows_pdpte(pdpte), name, pdpte, RESERVED)?;
                }
                Ok(Some(pdptes))
            }
            None => Ok(None),
        }
    }
}

fn check_flags(r: &CpuState) -> Result<()> {
    let flags = r.rflags;
    let v86 = flags & rflags::VM != 0;
    let good = !v86 || r.cr0 & cr0::PE != 0 && r.efer & efer::LMA == 0;
    register(flags & !rflags::DEFINED == 0, "RFLAGS", flags, RESERVED)?;
    register(
        flags & rflags::FIXED != 0,
        "RFLAGS",
        flags,
        "bit 1 is always set",
    )?;
    register(
        good,
        "RFLAGS",
        flags,
        "there is no virtual-8086 mode in this mode",
    )
}

fn check_debug(state: &VcpuState) -> Result<()> {
    const DR6_FIXED: u64 = 0xffff_0ff0;
    const DR6_WRITABLE: u64 = 0xe00f;
    const DR7_FIXED: u64 = 0x400;
    const DR7_RESERVED: u64 = 0xd000 | 0xffff_ffff_0000_0000;
    let (dr6, dr7) = (state.debug.dr6, state.debug.dr7);
    let why = "a reserved bit is not as it must be";
    register(dr6 & !DR6_WRITABLE == DR6_FIXED, "DR6", dr6, why)?;
    let good = dr7 & (DR7_FIXED | DR7_RESERVED) == DR7_FIXED;
    register(good, "DR7", dr7, why)
}

fn check_events(events: &Events, activity: Activity) -> Result<()> {
    if let Some(exception) = &events.exception {
        check_exception(exception)?;
    }
    if let Some(interrupt) = &events.interrupt {
        let (what, value) = (Part::Event("interrupt"), interrupt.vector.into());
        let why = "this processor starts INT n again instead";
        require(!interrupt.soft, what, value, why)?;
    }
    let waiting = u64::from(events.nmi.pending);
    require(
        waiting <= 2,
        Part::Event("nmi.pending"),
        waiting,
        "two can wait at most",
    )?;
    let lives = !events.triple_fault || activity == Activity::Running;
    require(
        lives,
        Part::Event("triple_fault"),
        1,
        "the processor waits for something else",
    )?;
    let asleep = !matches!(activity, Activity::Running | Activity::Halted);
    let held = events.exception.is_some() || events.interrupt.is_some() || events.nmi.injected;
    let what = Part::Event("exception, interrupt or nmi.injected");
    require(
        !(asleep && held),
        what,
        1,
        "the processor waits for its start-up message",
    )
}

fn check_exception(exception: &HeldException) -> Result<()> {
    const DR6_CONDITIONS: u64 = 0xe00f;
    let vector = exception.vector;
    let known = vector < 32 && vector != vector::NMI;
    let what = Part::Event("exception");
    require(
        known,
        what,
        vector.into(),
        "this vector is none of an exception",
    )?;
    let pushes = matches!(
        vector,
        vector::DF | vector::TS..=vector::PF | vector::AC | 21 | 29 | 30
    );
    let error = exception.error.filter(|_| !pushes);
    let what = Part::Event("exception.error");
    let code = error.unwrap_or(0).into();
    require(error.is_none(), what, code, "this exception has none")?;
    let Some(payload) = exception.payload else {
        return Ok(());
    };
    let what = Part::Event("exception.payload");
    let begun = exception.stage == Stage::Injected;
    require(!begun, what, payload, "it is noted when delivery begins")?;
    match vector {
        vector::PF => Ok(()),
        vector::DB => require(payload & !DR6_CONDITIONS == 0, what, payload, RESERVED),
        _ => require(false, what, payload, "only #PF and #DB have one"),
    }
}

/// The legacy state of an image, whose components are all `known`.
fn fx_area(image: &XsaveImage, known: u64) -> Result<FxArea> {
    let used = image.xstate_bv();
    for component in image.components() {
        // All that there are have zeros in their initial configuration (SDM vol. 1, 13.6), which is what a
        // processor without them is in. A KVM says of some that they are used and means that.
        let is_known = known >> component.number & 1 != 0;
        let bytes = image.component(component.number).unwrap_or_default();
        let is_initial = bytes.iter().all(|byte| *byte == 0);
        let (what, why) = (
            Part::Xsave(component.number),
            "this processor does not have it",
        );
        require(is_known || is_initial, what, used, why)?;
    }
    let legacy = image.legacy();
    let mxcsr = u32::from_le_bytes([
        legacy[MXCSR],
        legacy[MXCSR + 1],
        legacy[MXCSR + 2],
        legacy[MXCSR + 3],
    ]);
    register(mxcsr & !MXCSR_MASK == 0, "MXCSR", mxcsr.into(), RESERVED)?;
    let mut area = FxArea::reset();
    area.set_mxcsr(mxcsr);
    for (range, bit) in [
        (0..MXCSR, component::X87),
        (32..XMM, component::X87),
        (XMM..FX_STATE, component::SSE),
    ] {
        if used & bit != 0 {
            area.bytes_mut()[range.clone()].copy_from_slice(&legacy[range]);
        }
    }
    Ok(area)
}

fn from_apic(bad: BadApicState) -> StateError {
    StateError {
        what: match bad.part {
            ApicPart::Register(offset) => Part::Lapic(offset),
            ApicPart::Msr(number) => Part::Msr(number),
        },
        value: bad.value,
        why: bad.why,
    }
}
