//! States in and out of a processor: what is restored is saved, and what is refused changes nothing.
#![cfg(target_arch = "x86_64")]

mod bare;
mod states;

use bare::Machine;
use proptest::prelude::*;
use states::{NOW, differences, states};
use umbra_clock::Clock;
use umbra_cpu::{CpuError, Vcpu};
use umbra_cpu_soft::model;
use umbra_x86::state::Segment;
use umbra_x86::vcpu::{
    Activity, Component, HeldException, HeldInterrupt, Stage, VcpuState, XsaveImage,
};
use umbra_x86::{cr0, cr4, msr, rflags};

/// Current count, and the priorities that follow from other registers.
const CURRENT: u32 = 0x39;
const FOLLOWING: [u32; 2] = [9, 0xa];

fn machine() -> Machine {
    Machine::in_time(model::maximal(0, 1), Clock::starting_at(NOW))
}

/// When the timer's count ends.
fn end_of_count(state: &VcpuState) -> u64 {
    let encoded = state.lapic.register(0x3e);
    let shift = ((encoded & 3 | (encoded & 8) >> 1) + 1) & 7;
    state.time.clock_ns + (u64::from(state.lapic.register(CURRENT)) << shift)
}

/// Puts `state` at the time of `other`, where nothing but that lies between them.
fn at_the_time_of(other: &VcpuState, mut state: VcpuState) -> VcpuState {
    let (early, late) = (other.time, state.time);
    assert!(early.clock_ns <= late.clock_ns);
    let offset = |time: umbra_x86::vcpu::Time| time.tsc.wrapping_sub(time.clock_ns);
    assert_eq!(offset(early), offset(late));
    state.time = early;
    if other.lapic.register(CURRENT) != 0 {
        let (due, now_due) = (
            end_of_count(other),
            end_of_count(&VcpuState {
                time: late,
                ..state.clone()
            }),
        );
        assert!((due..due + 128).contains(&now_due), "{due}, {now_due}");
        state
            .lapic
            .set_register(CURRENT, other.lapic.register(CURRENT));
    }
    for register in FOLLOWING {
        state
            .lapic
            .set_register(register, other.lapic.register(register));
    }
    state
}

/// Where failures are kept is for tests beside the code.
fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_restored_is_saved(list in prop::collection::vec(states(), 1..4)) {
        // One machine for several: nothing of the state before may shine through.
        let mut machine = machine();
        for state in list {
            machine.vcpu().restore(&state).unwrap();
            let saved = machine.vcpu().save().unwrap();
            prop_assert_eq!(differences(&at_the_time_of(&state, saved), &state), "");
        }
    }

    #[test]
    fn a_state_survives_json(state in states()) {
        let text = serde_json::to_string(&state).unwrap();
        prop_assert_eq!(serde_json::from_str::<VcpuState>(&text).unwrap(), state);
    }
}

#[test]
fn power_up_is_a_state_of_both_models() {
    for cpuid in [model::x86_64_v2(0, 1), model::maximal(0, 1)] {
        let mut machine = Machine::with_model(cpuid);
        let state = machine.vcpu().save().unwrap();
        assert_eq!(state.registers, umbra_x86::state::CpuState::default());
        assert_eq!((state.xcr0, state.activity), (1, Activity::Running));
        assert_eq!(state.msrs.get(msr::PAT), Some(0x0007_0406_0007_0406));
        let mut copy = machine.copy();
        copy.vcpu().restore(&state).unwrap();
        assert_eq!(at_the_time_of(&state, copy.vcpu().save().unwrap()), state);
    }
}

#[test]
fn an_msr_that_is_not_listed_is_as_after_power_up() {
    let mut machine = machine();
    let fresh = machine.vcpu().save().unwrap();
    let mut state = fresh.clone();
    for (number, value) in [(msr::STAR, 1), (msr::PAT, 0), (msr::APIC_BASE, 0xfed0_0900)] {
        state.msrs.set(number, value);
    }
    machine.vcpu().restore(&state).unwrap();
    state.msrs = Default::default();
    machine.vcpu().restore(&state).unwrap();
    assert_eq!(machine.vcpu().save().unwrap().msrs, fresh.msrs);
}

#[test]
fn an_msr_that_cannot_change_may_be_listed_with_its_value() {
    let mut machine = machine();
    let mut state = machine.vcpu().save().unwrap();
    let before = state.clone();
    state.msrs.set(msr::BIOS_SIGN_ID, 1 << 32);
    state.msrs.set(msr::MCG_CAP, 0);
    // The old number of a register, beside the new one.
    state.msrs.set(msr::KVM_SYSTEM_TIME, 0);
    machine.vcpu().restore(&state).unwrap();
    let saved = machine.vcpu().save().unwrap();
    assert_eq!(at_the_time_of(&before, saved), before);
}

#[test]
fn a_component_that_is_not_there_may_be_zero() {
    let mut machine = machine();
    let mut state = machine.vcpu().save().unwrap();
    let initial = state.xsave.clone();
    let avx = Component {
        number: 2,
        offset: 576,
        len: 256,
    };
    state.xsave = XsaveImage::initial(vec![avx]).unwrap();
    state.xsave.use_component(2).unwrap();
    machine.vcpu().restore(&state).unwrap();
    assert_eq!(machine.vcpu().save().unwrap().xsave, initial);
}

#[test]
fn a_component_in_its_initial_configuration_is_initial_whatever_the_bytes_say() {
    let mut machine = machine();
    let mut state = machine.vcpu().save().unwrap();
    let initial = state.xsave.clone();
    let mut bytes = vec![0xaa; 4096];
    bytes[512..576].fill(0);
    bytes[24..28].copy_from_slice(&0x9fffu32.to_le_bytes());
    let elsewhere = Component {
        number: Component::PKRU,
        offset: 832,
        len: 8,
    };
    state.xsave = XsaveImage::new(bytes.clone(), vec![elsewhere]).unwrap();
    machine.vcpu().restore(&state).unwrap();
    let saved = machine.vcpu().save().unwrap().xsave;
    assert_eq!(
        saved.legacy()[24..28],
        0x9fffu32.to_le_bytes(),
        "MXCSR counts"
    );
    assert_eq!(saved.legacy()[..24], initial.legacy()[..24]);
    assert_eq!(saved.legacy()[32..], initial.legacy()[32..]);
    assert_eq!(saved.pkru(), 0);
    // Another processor has PKRU elsewhere.
    bytes[513] = 2;
    state.xsave = XsaveImage::new(bytes, vec![elsewhere]).unwrap();
    machine.vcpu().restore(&state).unwrap();
    let saved = machine.vcpu().save().unwrap().xsave;
    assert_eq!(
        (saved.pkru(), saved.components()[0].offset),
        (0xaaaa_aaaa, 2688)
    );
}

#[test]
fn a_start_up_message_that_was_on_its_way_is_acted_upon() {
    let mut machine = machine();
    let mut state = machine.vcpu().save().unwrap();
    state.activity = Activity::SipiReceived { vector: 0x12 };
    machine.vcpu().restore(&state).unwrap();
    let saved = machine.vcpu().save().unwrap();
    let cs = &saved.registers.seg[1];
    assert_eq!(
        (cs.selector, cs.base, saved.registers.rip),
        (0x1200, 0x1_2000, 0)
    );
    assert_eq!(saved.activity, Activity::Running);
    state.activity = Activity::WaitForInit;
    machine.vcpu().restore(&state).unwrap();
    assert_eq!(
        machine.vcpu().save().unwrap().activity,
        Activity::WaitForSipi
    );
}

/// What others do to a processor through its local APIC: INIT, an NMI.
const INIT: u32 = 0x4500;
const NMI: u32 = 0x4400;

#[test]
fn what_others_sent_is_acted_upon_before_a_state_is_taken() {
    let mut machine = machine();
    let send = |machine: &Machine, what: u32| machine.apic().mmio_write(0x300, 0x4_0000 | what);
    let fresh = machine.vcpu().save().unwrap();
    send(&machine, NMI);
    assert_eq!(machine.vcpu().save().unwrap().events.nmi.pending, 1);
    assert_eq!(machine.vcpu().save().unwrap().events.nmi.pending, 1, "once");
    let mut other = fresh.clone();
    other.registers.rip = 0x1234;
    other.events.interrupt = Some(HeldInterrupt {
        vector: 0x41,
        soft: false,
    });
    machine.vcpu().restore(&other).unwrap();
    send(&machine, INIT);
    let saved = machine.vcpu().save().unwrap();
    assert_eq!((saved.registers.rip, saved.events), (0xfff0, fresh.events));
}

#[test]
fn what_waited_before_is_gone_after_a_restore() {
    let mut machine = machine();
    let fresh = machine.vcpu().save().unwrap();
    machine.apic().mmio_write(0x300, 0x4_0000 | NMI);
    machine.vcpu().restore(&fresh).unwrap();
    assert_eq!(machine.vcpu().save().unwrap().events, fresh.events);
}

type Change = fn(&mut VcpuState);

/// Changes to a state after power-up, and how what is said about them begins.
const BAD: &[(Change, &str)] = &[
    (
        |s| s.registers.cr0 |= 1 << 6,
        "CR0 is 0x60000050: a reserved bit",
    ),
    (
        |s| s.registers.cr0 |= cr0::PG,
        "CR0 is 0xe0000010: paging is on without protection",
    ),
    (
        |s| s.registers.cr0 &= !cr0::CD,
        "CR0 is 0x20000010: NW is set without CD",
    ),
    (
        |s| s.registers.cr0 |= 1 << 32,
        "CR0 is 0x160000010: a reserved bit",
    ),
    (
        |s| s.registers.cr4 |= cr4::VME,
        "CR4 is 0x1: a reserved bit",
    ),
    (
        |s| s.registers.cr4 |= 1 << 23,
        "CR4 is 0x800000: a reserved bit",
    ),
    (
        |s| s.registers.cr4 |= cr4::PCIDE,
        "CR4 is 0x20000: PCIDE is set outside",
    ),
    (
        |s| s.registers.efer |= 1 << 12,
        "EFER is 0x1000: a reserved bit",
    ),
    (|s| s.registers.efer |= 1 << 10, "EFER is 0x400: LMA is not"),
    (
        |s| {
            s.registers.cr0 |= cr0::PE | cr0::PG;
            s.registers.efer |= 0x500;
        },
        "CR4 is 0x0: IA-32e mode is active without PAE",
    ),
    (
        |s| s.registers.cr3 = 1 << 46,
        "CR3 is 0x400000000000: a reserved bit",
    ),
    (|s| s.registers.cr8 = 16, "CR8 is 0x10: a reserved bit"),
    (
        |s| s.registers.cr8 = 3,
        "CR8 is 0x3: the local APIC has another",
    ),
    (
        |s| s.registers.rflags |= 1 << 15,
        "RFLAGS is 0x8002: a reserved bit",
    ),
    (|s| s.registers.rflags = 0, "RFLAGS is 0x0: bit 1"),
    (
        |s| s.registers.rflags |= rflags::VM,
        "RFLAGS is 0x20002: there is no virtual-8086",
    ),
    (
        |s| s.registers.rip = 1 << 32,
        "RIP is 0x100000000: it has 32 bits",
    ),
    (
        |s| s.registers.seg[0].base = 1 << 32,
        "ES.base is 0x100000000: it has 32 bits",
    ),
    (
        |s| s.registers.seg[4].base = 1 << 56,
        "FS.base is 0x100000000000000: the address is not",
    ),
    (
        |s| s.registers.tr.base = 1 << 63,
        "TR.base is 0x8000000000000000: the address is not",
    ),
    (
        |s| s.registers.gdtr.base = 1 << 60,
        "GDTR.base is 0x1000000000000000: the address is not",
    ),
    (
        |s| s.registers.idtr.base = 1 << 60,
        "IDTR.base is 0x1000000000000000: the address is not",
    ),
    (
        |s| s.registers.ldtr.attr |= 1 << 8,
        "LDTR.attr is 0x182: a reserved bit",
    ),
    (|s| s.pdptes = Some([0; 4]), "PDPTE0 is 0x0: paging is not"),
    (
        |s| {
            pae(s);
            s.pdptes = Some([0, 0, 0, 3]);
        },
        "PDPTE3 is 0x3: a reserved bit",
    ),
    (
        |s| {
            pae(s);
            s.registers.cr3 = 0xfff0_0000;
        },
        "CR3 is 0xfff00000: no page-directory-pointer table",
    ),
    (|s| s.debug.dr6 = 0, "DR6 is 0x0: a reserved bit"),
    (|s| s.debug.dr7 = 0, "DR7 is 0x0: a reserved bit"),
    (
        |s| s.debug.dr7 |= 1 << 32,
        "DR7 is 0x100000400: a reserved bit",
    ),
    (|s| s.xcr0 = 2, "XCR0 is 0x2: x87 state"),
    (|s| s.xcr0 = 7, "XCR0 is 0x7: a reserved bit"),
    (
        |s| {
            s.xsave = with_component(Component {
                number: 2,
                offset: 576,
                len: 256,
            })
        },
        "XSAVE component 2 is 0x4: this processor does not have it",
    ),
    (
        |s| s.xsave.legacy_mut()[26] = 1,
        "MXCSR is 0x11f80: a reserved bit",
    ),
    (
        |s| s.msrs.set(0x48, 0),
        "MSR 0x48 is 0x0: this processor does not have it",
    ),
    (
        |s| s.msrs.set(msr::EFER, 0),
        "MSR 0xc0000080 is 0x0: it stands elsewhere",
    ),
    (
        |s| s.msrs.set(msr::TSC, 0),
        "MSR 0x10 is 0x0: it stands elsewhere",
    ),
    (
        |s| s.msrs.set(msr::MCG_CAP, 9),
        "MSR 0x179 is 0x9: this processor has another value",
    ),
    (
        |s| s.msrs.set(msr::LSTAR, 1 << 60),
        "MSR 0xc0000082 is 0x1000000000000000: the address is not",
    ),
    (
        |s| s.msrs.set(msr::PAT, 2),
        "MSR 0x277 is 0x2: no memory type",
    ),
    (
        |s| s.msrs.set(msr::TSC_AUX, 1 << 32),
        "MSR 0xc0000103 is 0x100000000: a reserved bit",
    ),
    (
        |s| s.msrs.set(msr::KVM_SYSTEM_TIME, 2),
        "MSR 0x12 is 0x2: the register's new number",
    ),
    (
        |s| s.msrs.set(msr::KVM_ASYNC_PF_EN, 9),
        "MSR 0x4b564d02 is 0x9: a reserved bit",
    ),
    (
        |s| s.msrs.set(msr::APIC_BASE, 1 << 46),
        "MSR 0x1b is 0x400000000000: a reserved bit",
    ),
    (
        |s| s.msrs.set(msr::TSC_DEADLINE, 1),
        "MSR 0x6e0 is 0x1: the timer counts instead",
    ),
    (
        |s| s.lapic.set_register(3, 0x14),
        "local APIC register 0x30 is 0x14: another version",
    ),
    (
        |s| s.lapic.set_register(2, 1),
        "local APIC register 0x20 is 0x1: another processor's",
    ),
    (
        |s| s.events.exception = exception(2, None, Stage::Pending),
        "exception is 0x2: this vector",
    ),
    (
        |s| {
            let code = Some(7);
            let stage = Stage::Pending;
            s.events.exception = Some(HeldException {
                vector: 1,
                error: code,
                payload: None,
                stage,
            });
        },
        "exception.error is 0x7: this exception has none",
    ),
    (
        |s| s.events.exception = exception(13, Some(1), Stage::Pending),
        "exception.payload is 0x1: only",
    ),
    (
        |s| s.events.exception = exception(14, Some(1), Stage::Injected),
        "exception.payload is 0x1: it is noted",
    ),
    (
        |s| s.events.exception = exception(1, Some(16), Stage::Pending),
        "exception.payload is 0x10: a reserved",
    ),
    (
        |s| {
            s.events.interrupt = Some(HeldInterrupt {
                vector: 0x80,
                soft: true,
            })
        },
        "interrupt is 0x80: this processor starts INT n again",
    ),
    (
        |s| s.events.nmi.pending = 3,
        "nmi.pending is 0x3: two can wait",
    ),
    (
        |s| {
            s.events.triple_fault = true;
            s.activity = Activity::Halted;
        },
        "triple_fault is 0x1",
    ),
    (
        |s| {
            s.events.nmi.injected = true;
            s.activity = Activity::WaitForSipi;
        },
        "exception, interrupt or nmi.injected is 0x1",
    ),
    (
        |s| s.time.tsc_khz = 2_400_000,
        "tsc_khz is 0x249f00: this processor's counter",
    ),
    (
        |s| s.time.clock_ns = 2 * NOW,
        "clock_ns is 0x40000000000: the machine's clock",
    ),
];

fn pae(state: &mut VcpuState) {
    state.registers.cr0 |= cr0::PE | cr0::PG;
    state.registers.cr4 |= cr4::PAE;
}

fn exception(vector: u8, payload: Option<u64>, stage: Stage) -> Option<HeldException> {
    Some(HeldException {
        vector,
        error: None,
        payload,
        stage,
    })
}

fn with_component(component: Component) -> XsaveImage {
    let mut image = XsaveImage::initial(vec![component]).expect("one component");
    let bytes = image.use_component(component.number);
    bytes.expect("it is listed")[3] = 1;
    image
}

#[test]
fn what_is_refused_is_named_and_changes_nothing() {
    let runner = ProptestConfig {
        cases: 8,
        ..config()
    };
    proptest!(runner, |(before in states())| {
        let mut machine = machine();
        let fresh = machine.vcpu().save().unwrap();
        machine.vcpu().restore(&before).unwrap();
        for (change, text) in BAD {
            let mut bad = fresh.clone();
            bad.registers.seg[3] = Segment::default();
            change(&mut bad);
            let Err(CpuError::State(error)) = machine.vcpu().restore(&bad) else {
                panic!("taken: {text}");
            };
            prop_assert!(error.to_string().starts_with(text), "{}, not {}", error, text);
            let after = machine.vcpu().save().unwrap();
            prop_assert_eq!(differences(&at_the_time_of(&before, after), &before), "");
        }
    });
}

#[test]
fn the_stock_model_has_no_protection_keys() {
    let mut maximal = machine();
    let mut state = maximal.vcpu().save().unwrap();
    let mut stock = Machine::in_time(model::x86_64_v2(0, 1), Clock::starting_at(2 * NOW));
    // Zero forbids nothing, as it is without them.
    stock.vcpu().restore(&state).unwrap();
    state.xsave.use_component(Component::PKRU).unwrap()[0] = 1;
    let error = stock.vcpu().restore(&state).unwrap_err();
    let CpuError::State(error) = error else {
        panic!("{error}")
    };
    assert!(
        error.to_string().starts_with("XSAVE component 9 is 0x203"),
        "{error}"
    );
    state.xsave = XsaveImage::initial(Vec::new()).unwrap();
    stock.vcpu().restore(&state).unwrap();
}
