//! Random states that the maximal processor can have, every part of them.

#![allow(dead_code, reason = "each test that shares this needs other parts")]

use proptest::prelude::*;
use serde_json::Value;
use umbra_x86::state::{CpuState, DescriptorTable, Segment};
use umbra_x86::vcpu::{
    Activity, Component, DebugRegisters, Events, HeldException, HeldInterrupt, LapicImage, Msrs,
    Nmi, Shadow, Stage, Time, VcpuState, XsaveImage,
};
use umbra_x86::{cr0, cr4, efer, msr, rflags};

/// What the clock of a machine that takes these states reads, or more.
pub const NOW: u64 = 1 << 41;

/// How addresses are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Real,
    Virtual86,
    Flat,
    Bits32,
    Pae,
    Long,
}

fn modes() -> impl Strategy<Value = Mode> {
    prop::sample::select(vec![
        Mode::Real,
        Mode::Virtual86,
        Mode::Flat,
        Mode::Bits32,
        Mode::Pae,
        Mode::Long,
    ])
}

/// An address of 57 bits.
fn address() -> impl Strategy<Value = u64> {
    any::<i64>().prop_map(|value| (value << 7 >> 7) as u64)
}

prop_compose! {
    fn segment()(selector: u16, base: u32, limit: u32, attr: u16) -> Segment {
        Segment { selector, base: base.into(), limit, attr: attr & 0xf0ff }
    }
}

prop_compose! {
    fn wide_segment()(segment in segment(), base in address()) -> Segment {
        Segment { base, ..segment }
    }
}

prop_compose! {
    fn table()(base in address(), limit: u16) -> DescriptorTable {
        DescriptorTable { base, limit }
    }
}

prop_compose! {
    fn control(mode: Mode)(cr0: u64, cr2: u64, cr3: u64, cr4: u64, efer: u64) -> [u64; 5] {
        let long = mode == Mode::Long;
        let paging = matches!(mode, Mode::Bits32 | Mode::Pae | Mode::Long);
        let set = |on: bool, bits: u64| if on { bits } else { 0 };
        let fixed0 = set(mode != Mode::Real, cr0::PE) | set(paging, cr0::PG) | cr0::ET;
        let nw = set(cr0 & cr0::CD != 0, cr0::NW);
        let free0 = cr0::MP | cr0::EM | cr0::TS | cr0::NE | cr0::WP | cr0::AM | cr0::CD | nw;
        let fixed4 = set(matches!(mode, Mode::Pae | Mode::Long), cr4::PAE);
        let free4 = cr4::TSD | cr4::DE | cr4::PSE | cr4::MCE | cr4::PGE | cr4::PCE
            | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::UMIP | cr4::LA57 | cr4::FSGSBASE
            | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP | cr4::PKE | set(long, cr4::PCIDE)
            | set(!paging, cr4::PAE);
        let fixed_efer = set(long, efer::LME | efer::LMA);
        let free_efer = efer::SCE | efer::NXE | set(!paging, efer::LME);
        [
            cr0 & free0 | fixed0,
            cr2,
            cr3 & ((1 << 46) - 1),
            cr4 & free4 | fixed4,
            efer & free_efer | fixed_efer,
        ]
    }
}

prop_compose! {
    fn registers(mode: Mode)(
        gpr in prop::array::uniform16(any::<u64>()),
        (rip, flags) in (any::<u64>(), any::<u64>()),
        seg in prop::array::uniform4(segment()),
        (fs, gs, ldtr, tr) in (wide_segment(), wide_segment(), wide_segment(), wide_segment()),
        (gdtr, idtr) in (table(), table()),
        [cr0, cr2, cr3, cr4, efer] in control(mode),
        cr8 in 0u64..16,
    ) -> CpuState {
        let long_code = mode == Mode::Long && seg[1].attr & Segment::L != 0;
        let v86 = if mode == Mode::Virtual86 { rflags::VM } else { 0 };
        CpuState {
            gpr,
            rip: if long_code { rip } else { rip & 0xffff_ffff },
            rflags: flags & rflags::DEFINED & !rflags::VM | rflags::FIXED | v86,
            seg: [seg[0], seg[1], seg[2], seg[3], fs, gs],
            ldtr, tr, gdtr, idtr, cr0, cr2, cr3, cr4, cr8, efer,
        }
    }
}

prop_compose! {
    fn xsave()(
        legacy in prop::collection::vec(any::<u8>(), 416),
        pkru: u32,
    ) -> XsaveImage {
        let place = Component { number: Component::PKRU, offset: 2688, len: 8 };
        let mut image = XsaveImage::initial(vec![place]).expect("one component");
        let to = image.legacy_mut();
        to[..416].copy_from_slice(&legacy);
        to[26..28].fill(0);
        to[28..32].copy_from_slice(&0xffffu32.to_le_bytes());
        image.use_legacy();
        image.use_component(9).expect("it is listed")[..4].copy_from_slice(&pkru.to_le_bytes());
        image
    }
}

prop_compose! {
    fn msrs(deadline: u64)(
        [sysenter_esp, sysenter_eip, lstar, cstar, kernel_gs] in prop::array::uniform5(address()),
        [sysenter_cs, fmask, tsc_aux] in prop::array::uniform3(any::<u32>()),
        [star, adjust, misc, wall] in prop::array::uniform4(any::<u64>()),
        pat in prop::array::uniform8(prop::sample::select(vec![0u8, 1, 4, 5, 6, 7])),
        (system_time, clock, async_pf) in (0u64..0x3_0000, any::<bool>(), any::<u64>()),
    ) -> Msrs {
        [
            (msr::APIC_BASE, 0xfee0_0900),
            (msr::TSC_ADJUST, adjust),
            (msr::SYSENTER_CS, sysenter_cs.into()),
            (msr::SYSENTER_ESP, sysenter_esp),
            (msr::SYSENTER_EIP, sysenter_eip),
            (msr::MISC_ENABLE, misc),
            (msr::PAT, u64::from_le_bytes(pat)),
            (msr::TSC_DEADLINE, deadline),
            (msr::KVM_WALL_CLOCK_NEW, wall),
            (msr::KVM_SYSTEM_TIME_NEW, system_time & !31 | u64::from(clock)),
            (msr::KVM_ASYNC_PF_EN, async_pf & !0x3c),
            (msr::STAR, star),
            (msr::LSTAR, lstar),
            (msr::CSTAR, cstar),
            (msr::FMASK, fmask.into()),
            (msr::KERNEL_GS_BASE, kernel_gs),
            (msr::TSC_AUX, tsc_aux.into()),
        ]
        .into_iter()
        .collect()
    }
}

prop_compose! {
    fn lapic(cr8: u64, mode: u32)(
        (low, esr, svr, ldr, dfr) in (0u32..16, 0u32..256, 0u32..0x400, 0u32..256, 0u32..16),
        vectors in prop::array::uniform24(any::<u32>()),
        lvt in prop::array::uniform6(any::<u32>()),
        (icr_high, initial, current, divide) in
            (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>()),
    ) -> LapicImage {
        let mut image = LapicImage::default();
        let mut set = |register: u32, value: u32| image.set_register(register, value);
        set(3, 0x5_0014);
        set(8, (cr8 as u32) << 4 | low);
        set(0xd, ldr << 24);
        set(0xe, dfr << 28 | 0x0fff_ffff);
        set(0xf, svr);
        for (i, word) in (0u32..).zip(vectors) {
            set(0x10 + i, word & if i % 8 == 0 { !0xffff } else { u32::MAX });
        }
        set(0x28, esr);
        set(0x31, icr_high);
        set(0x32, lvt[0] & 0x100ff | mode << 17);
        for (i, allowed) in (1u32..).zip([0x107ff, 0x107ff, 0x1a7ff, 0x1a7ff, 0x100ff]) {
            set(0x32 + i, lvt[i as usize] & allowed);
        }
        set(0x3e, divide & 0b1011);
        if mode != 2 {
            // Two seconds or more to go, or a one-shot that has expired.
            set(0x38, initial | 1 << 31);
            set(0x39, if mode == 0 && current % 4 == 0 { 0 } else { current | 1 << 31 });
        }
        image
    }
}

fn exceptions() -> impl Strategy<Value = HeldException> {
    let vector = (0u8..32).prop_filter("NMI is none", |v| *v != 2);
    (
        vector,
        any::<Option<u32>>(),
        any::<Option<u64>>(),
        any::<bool>(),
    )
        .prop_map(|(vector, error, payload, begun)| HeldException {
            vector,
            error: error.filter(|_| matches!(vector, 8 | 10..=14 | 17)),
            payload: match vector {
                _ if begun => None,
                1 => payload.map(|conditions| conditions & 0xe00f),
                14 => payload,
                _ => None,
            },
            stage: if begun {
                Stage::Injected
            } else {
                Stage::Pending
            },
        })
}

prop_compose! {
    fn events()(
        exception in prop::option::of(exceptions()),
        vector: Option<u8>,
        shadow in prop::sample::select(vec![Shadow::None, Shadow::Sti, Shadow::MovSs]),
        (injected, pending, masked) in (any::<bool>(), 0u8..3, any::<bool>()),
        activity in prop::sample::select(vec![
            Activity::Running, Activity::Halted, Activity::WaitForSipi,
        ]),
        shut in prop::bool::weighted(0.1),
    ) -> (Events, Activity) {
        let waits = activity == Activity::WaitForSipi;
        let events = Events {
            exception: exception.filter(|_| !waits),
            interrupt: vector.filter(|_| !waits).map(|vector| HeldInterrupt { vector, soft: false }),
            shadow,
            nmi: Nmi { injected: injected && !waits, pending, masked },
            triple_fault: shut && activity == Activity::Running,
        };
        (events, activity)
    }
}

/// What other parts depend on: mode, timer mode, CR8 and the like.
pub fn states() -> impl Strategy<Value = VcpuState> {
    (modes(), 0u32..3, 0u64..1 << 62, NOW - 1_000_000..NOW)
        .prop_flat_map(|(mode, timer, tsc, clock_ns)| {
            let deadline = if timer == 2 { tsc + (1 << 62) } else { 0 };
            (
                registers(mode).prop_flat_map(move |r| (lapic(r.cr8, timer), Just(r))),
                prop::array::uniform4(any::<u64>()),
                (xsave(), msrs(deadline), events()),
                (any::<[u64; 4]>(), any::<u64>(), any::<u64>()),
                prop::sample::select(vec![1, 3, 0x201, 0x203]),
                Just((mode, tsc, clock_ns)),
            )
        })
        .prop_map(
            |(chips, pdptes, (xsave, msrs, events), debug, xcr0, time)| {
                let ((lapic, registers), (address, dr6, dr7)) = (chips, debug);
                let (mode, tsc, clock_ns) = time;
                let present = |pdpte: u64| {
                    let bits = ((1 << 46) - 1) & !0x1e6;
                    if pdpte & 1 != 0 { pdpte & bits } else { pdpte }
                };
                VcpuState {
                    registers,
                    pdptes: (mode == Mode::Pae).then(|| pdptes.map(present)),
                    debug: DebugRegisters {
                        address,
                        dr6: dr6 & 0xe00f | 0xffff_0ff0,
                        dr7: dr7 & 0xffff_2fff | 0x400,
                    },
                    xcr0,
                    xsave,
                    msrs,
                    lapic,
                    events: events.0,
                    activity: events.1,
                    time: Time {
                        clock_ns,
                        tsc,
                        tsc_khz: 1_000_000,
                    },
                }
            },
        )
}

/// Where two states differ, in words.
pub fn differences(found: &VcpuState, expected: &VcpuState) -> String {
    let value = |state| serde_json::to_value(state).expect("a state is text");
    let mut list = String::new();
    compare("", &value(found), &value(expected), &mut list);
    list
}

fn compare(path: &str, found: &Value, expected: &Value, list: &mut String) {
    let mut inner =
        |key: &str| compare(&format!("{path}/{key}"), &found[key], &expected[key], list);
    match (found, expected) {
        (Value::Object(fields), Value::Object(_)) => fields.keys().for_each(|key| inner(key)),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}/{i}"), a, b, list);
            }
        }
        _ if found != expected => list.push_str(&format!("{path}: {found}, not {expected}\n")),
        _ => {}
    }
}
