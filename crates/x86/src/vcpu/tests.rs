//! States as text: what is written is read, and nothing else is.

use serde_json::Value;

use super::*;
use crate::state::CpuState;

fn state() -> VcpuState {
    let pkru = Component {
        number: Component::PKRU,
        offset: 2688,
        len: 8,
    };
    let mut xsave = XsaveImage::initial(vec![pkru]).unwrap();
    xsave.use_component(9).unwrap()[0] = 0x54;
    let mut lapic = LapicImage::default();
    lapic.set_register(3, 0x5_0014);
    VcpuState {
        registers: CpuState {
            rip: u64::MAX,
            ..CpuState::default()
        },
        pdptes: Some([1, 0, u64::MAX, 0]),
        debug: DebugRegisters::default(),
        xcr0: 0x203,
        xsave,
        msrs: [(0x1b, 0xfee0_0900), (0xc000_0081, u64::MAX)]
            .into_iter()
            .collect(),
        lapic,
        events: Events {
            exception: Some(HeldException {
                vector: 14,
                error: Some(2),
                payload: Some(0x1234),
                stage: Stage::Pending,
            }),
            shadow: Shadow::MovSs,
            ..Events::default()
        },
        activity: Activity::SipiReceived { vector: 0x9a },
        time: Time {
            clock_ns: 5,
            tsc: u64::MAX,
            tsc_khz: 1_000_000,
        },
    }
}

fn read(value: Value) -> Result<VcpuState, String> {
    serde_json::from_value(value).map_err(|e| e.to_string())
}

#[test]
fn a_state_survives_json() {
    let text = serde_json::to_string(&state()).unwrap();
    let read: VcpuState = serde_json::from_str(&text).unwrap();
    assert_eq!(read, state());
}

#[test]
fn text_that_is_no_state_is_refused_with_a_reason() {
    let good = serde_json::to_value(state()).unwrap();
    assert_eq!(read(good.clone()), Ok(state()));
    for (path, value, reason) in [
        (
            "/xsave/bytes",
            Value::from("00"),
            "576 to 65536 bytes, not 1",
        ),
        ("/xsave/bytes", Value::from("0"), "whole number of bytes"),
        ("/xsave/bytes", Value::from("zz"), "character 0 is no"),
        (
            "/xsave/components/0/offset",
            Value::from(8),
            "component 9 lies",
        ),
        (
            "/xsave/components/0/offset",
            Value::from(-1),
            "invalid value",
        ),
        ("/lapic", Value::from("00"), "1024 bytes, not 1"),
        ("/lapic", Value::from(0), "expected a string"),
        (
            "/msrs/0/0",
            Value::from(u32::MAX),
            "MSR 0xc0000081 is not behind",
        ),
        ("/registers/gpr", Value::from(vec![0; 15]), "length 15"),
        ("/registers/seg", Value::from(vec![0; 6]), "invalid type"),
        (
            "/events/shadow",
            Value::from("sti_twice"),
            "unknown variant",
        ),
        ("/activity", Value::from("sleeping"), "unknown variant"),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(path).expect("the path is one of a state") = value;
        let error = read(bad).unwrap_err();
        assert!(error.contains(reason), "{path}: {error}");
    }
}

#[test]
fn a_field_too_many_or_too_few_is_refused() {
    let good = serde_json::to_value(state()).unwrap();
    for path in [
        "",
        "/registers",
        "/registers/seg/3",
        "/events/nmi",
        "/xsave",
        "/time",
    ] {
        let mut more = good.clone();
        more.pointer_mut(path).unwrap()["of_a_later_version"] = Value::from(1);
        assert!(read(more).unwrap_err().contains("unknown field"), "{path}");
        let mut less = good.clone();
        let fields = less.pointer_mut(path).unwrap().as_object_mut().unwrap();
        let first = fields.keys().next().unwrap().clone();
        fields.remove(&first);
        // Absent and null are the same for what may be absent.
        let reason = if path.is_empty() && first == "pdptes" {
            ""
        } else {
            "missing field"
        };
        assert!(read(less).unwrap_err().contains(reason), "{path}");
    }
}
