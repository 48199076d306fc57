//! Requests that a package of PyPI makes up from the OpenAPI document: whatever is asked, answers are as the document
//! says, and what it says is invalid is refused. `tests/clients/schemathesis.toml` says what is checked.
//!
//! Names of files are made up, too: that happens in a folder that is lost, and in a network of its own.

use std::fs;

use crate::support::guest::or_skip;
use crate::support::python::{self, CLIENTS};
use crate::support::{image, namespace};

const PACKAGE: &str = "schemathesis==4.32.5";

/// How many requests are made up for each operation, beside those that the document's limits give.
const EXAMPLES: u32 = 15;

/// Halts, for ever, and lives through an NMI.
///
/// ```text
/// 40  lgdt [5e]        lidt [64]       in 32-bit protected mode
/// 4e  hlt, and again: also the handler, so that there is one NMI and no more
/// 51  (nothing)
/// 5e  the descriptors of both tables
/// 6a  null, flat code (selector 8)
/// 7a  three gates; that of vector 2 leads to 4e
/// ```
fn halts() -> Vec<u8> {
    const LOADED: u32 = 0x10_0040;
    let at = |offset: u32| (LOADED - 0x40 + offset).to_le_bytes();
    let mut code = [
        &[0x0f, 0x01, 0x15][..],
        &at(0x5e),
        &[0x0f, 0x01, 0x1d],
        &at(0x64),
    ]
    .concat();
    code.extend([0xf4, 0xeb, 0xfd]);
    code.resize(0x1e, 0);
    code.extend([&[0x0f, 0][..], &at(0x6a), &[0x17, 0], &at(0x7a)].concat());
    code.extend([0; 8]);
    code.extend([0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0]);
    code.extend([0; 16]);
    code.extend([0x4e, 0, 8, 0, 0, 0x8e, 0x10, 0]);
    code
}

/// What a machine has that is started before the first request.
const CONFIG: &str = r#"{
    "boot-source": {"kernel_image_path": "KERNEL"},
    "machine-config": {"vcpu_count": 1, "mem_size_mib": 16},
    "drives": [{"drive_id": "a", "is_root_device": true, "path_on_host": "DISK"}],
    "balloon": {"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true},
    "memory-hotplug": {"total_size_mib": 256},
    "entropy": {}
}"#;

/// Has a machine asked that was served with these arguments. `PLACE` in them is a folder with a configuration.
fn is_asked(more: &str) {
    let Some(python) = or_skip(python::with(PACKAGE)) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let kernel = image::multiboot(place.path(), &halts());
    fs::create_dir(path("lost")).unwrap();
    fs::write(path("disk"), vec![0; 1 << 20]).unwrap();
    let config = CONFIG
        .replace("KERNEL", kernel.to_str().unwrap())
        .replace("DISK", path("disk").to_str().unwrap());
    fs::write(path("config"), config).unwrap();
    let script = format!(
        "ip link set lo up\n\
         cd {place}/lost\n\
         $umbra serve --backend soft --api-sock {place}/api.sock {more} > {place}/log 2>&1 &\n\
         while [ ! -S {place}/api.sock ]; do sleep 0.1; done\n\
         {python} {CLIENTS}/schemathesis_openapi.py {place}/api.sock {CLIENTS}/../../docs/openapi.json {EXAMPLES}\n\
         kill -0 $!\n",
        place = place.path().display(),
        more = more.replace("PLACE", place.path().to_str().unwrap()),
        python = python.display(),
    );
    let Some(printed) = or_skip(namespace::run(&script, 200)) else {
        return;
    };
    let text = &printed.stdout;
    assert!(
        text.ends_with("the client is content\n"),
        "{text}\n{}",
        printed.stderr
    );
    let accepted = text.lines().filter(|line| line.starts_with("accepted: "));
    assert!(accepted.count() > 12, "little was asked that works: {text}");
}

#[test]
fn a_machine_that_has_not_started_answers_as_the_document_says() {
    is_asked("");
}

#[test]
fn a_machine_that_runs_answers_as_the_document_says() {
    is_asked("--pci --config PLACE/config");
}
