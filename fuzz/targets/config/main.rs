//! Configuration files in both forms: Firecracker's, and specifications. Whatever is in them, they are read or refused
//! with one line; a specification that was read is written and read again as the same, and so is its plan.
#![no_main]

mod seeds;

use umbra_api::firecracker::config::ConfigFile;
use umbra_vmm::{Plan, Spec, VirtioKind};

fn told(message: &str) {
    assert!(
        !message.is_empty() && !message.contains('\n'),
        "{message:?}"
    );
}

fn firecracker(text: &str) {
    if let Err(fault) = ConfigFile::parse(text) {
        assert!((400..500).contains(&fault.status()), "{fault}");
        assert!(!fault.to_string().is_empty());
    }
}

/// Metadata are equal only if they are the same.
fn has_metadata(spec: &Spec) -> bool {
    let mut kinds = spec.virtio.iter().map(|device| &device.kind);
    kinds.any(|kind| matches!(kind, VirtioKind::Net(net) if net.metadata.is_some()))
}

fn specification(text: &str) {
    let Ok(spec) = serde_json::from_str::<Spec>(text) else {
        return;
    };
    let written = serde_json::to_string(&spec).expect("what was read can be written");
    let again: Spec = serde_json::from_str(&written)
        .unwrap_or_else(|error| panic!("{written} cannot be read again: {error}"));
    assert_eq!(
        serde_json::to_string(&again).expect("it was written before"),
        written
    );
    let has_metadata = has_metadata(&spec);
    assert!(has_metadata || again == spec, "{spec:?}\n{again:?}");
    match (Plan::new(spec), Plan::new(again)) {
        (Ok(plan), Ok(again)) => assert!(has_metadata || plan == again, "{plan:?}\n{again:?}"),
        (Err(error), Err(again)) => {
            assert_eq!(error.to_string(), again.to_string());
            told(&error.to_string());
        }
        (first, second) => panic!("{first:?}\n{second:?}"),
    }
}

libfuzzer_sys::fuzz_target!(init: umbra_fuzz::write_seeds(seeds::all()), |input: &[u8]| {
    let Some((kind, text)) = input.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    match kind % 4 {
        0 => firecracker(text),
        _ => specification(text),
    }
});
