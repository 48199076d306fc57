//! A host without a KVM that can be used: what was tried, what to do, and who executes the guest.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::support::{Input, Umbra, image};

const LIMIT: Duration = Duration::from_secs(30);
/// A user who may do little.
const NOBODY: u32 = 65534;

/// Powers off.
fn kernel(directory: &Path) -> String {
    // mov al, 0x34; mov dx, 0x600; out dx, al
    let code = [
        &[0xb0, 0x34, 0x66, 0xba, 0x00, 0x06, 0xee][..],
        &image::SPIN,
    ];
    let path = image::multiboot(directory, &code.concat());
    path.to_str().unwrap().to_owned()
}

/// Devices that are none, and what is said of them.
const DEVICES: [(&str, &[&str]); 3] = [
    (
        "/nonexistent/kvm",
        &[
            "\"/nonexistent/kvm\" does not exist",
            "load the module",
            "--device",
        ],
    ),
    ("/dev/null", &["\"/dev/null\" is not KVM"]),
    ("/", &["\"/\" cannot be opened"]),
];

#[test]
fn kvm_that_was_asked_for_and_is_not_there_is_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = kernel(directory.path());
    for (device, facts) in DEVICES {
        let arguments = [
            "--kernel",
            &kernel,
            "--backend",
            "kvm",
            "--kvm-device",
            device,
        ];
        let ended = Umbra::run(&arguments, Input::Empty, LIMIT);
        assert_eq!(ended.status, Some(1), "{ended}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
        for fact in facts {
            assert!(ended.stderr.contains(fact), "no {fact:?}: {ended}");
        }
    }
}

#[test]
fn auto_says_why_the_software_processor_is_used_and_uses_it() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = kernel(directory.path());
    for (device, facts) in DEVICES {
        let arguments = ["--kernel", &kernel, "--kvm-device", device];
        let ended = Umbra::run(&arguments, Input::Empty, LIMIT);
        assert_eq!(ended.status, Some(0), "{ended}");
        assert_eq!(ended.stderr.lines().count(), 1, "{ended}");
        for fact in facts.iter().chain(&["the software processor is used"]) {
            assert!(ended.stderr.contains(fact), "no {fact:?}: {ended}");
        }
    }
}

/// Opens a device that only its owner may open, as somebody else.
#[test]
fn kvm_that_is_not_permitted_says_who_to_become() {
    let directory = tempfile::tempdir().unwrap();
    let device = directory.path().join("kvm");
    std::fs::write(&device, "").unwrap();
    std::fs::set_permissions(&device, PermissionsExt::from_mode(0o000)).unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let arguments = ["probe", "--kvm-device", device.to_str().unwrap()];
    let mut umbra = Umbra::new(&arguments, &Input::Empty);
    if rustix::process::geteuid().is_root() {
        umbra = umbra.run_by(NOBODY);
    }
    let ended = umbra.start().finish(LIMIT);
    let facts = [
        "kvm: no: ",
        "may not be opened",
        "usermod -aG kvm",
        "auto: soft: ",
    ];
    for fact in facts {
        assert!(ended.stdout.contains(fact), "no {fact:?}: {ended}");
    }
}

#[test]
fn probe_answers_scripts_in_two_lines() {
    for (device, facts) in DEVICES {
        let ended = Umbra::new(&["probe", "--kvm-device", device], &Input::Empty);
        let ended = ended.start().finish(LIMIT);
        assert_eq!((ended.status, &ended.stderr[..]), (Some(0), ""), "{ended}");
        let lines: Vec<_> = ended.stdout.lines().collect();
        assert!(lines[0].starts_with("kvm: no: "), "{ended}");
        assert!(lines[0].contains(facts[0]), "{ended}");
        assert_eq!(lines[1..], ["auto: soft: there is no KVM"]);
    }
}
