//! Programs give the same output in a machine as natively.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{Guest, LINUX_6_1, or_skip};
use crate::support::{Input, Umbra, userland};

const LIMIT: Duration = Duration::from_secs(300);

/// Each line is a command.
const COMMANDS: &str = include_str!("userland/commands.sh");
const PROGRAM: &str = include_str!("userland/program.py");

/// Runs a file and says how it ended; the same natively and in the guest.
const ALL: &str = "#!/bin/bash
rm -rf /umbra/place; mkdir /umbra/place; cd /umbra/place
bash /umbra/commands.sh 2>&1; echo \"commands: status $?\"
python3 /umbra/program.py 2>&1; echo \"program: status $?\"
";

const BEGIN: &str = "-----BEGIN OUTPUT-----\n";
const END: &str = "-----END OUTPUT-----\n";

/// The first program of the guest. The output waits in a file while the programs run, and the
/// terminal must not make two characters of an end of line.
fn init() -> String {
    let variables: String = userland::environment()
        .iter()
        .map(|(name, value)| format!("export {name}={value}\n"))
        .collect();
    format!(
        "#!/bin/bash
{variables}
busybox mount -t proc proc /proc; busybox mount -t devtmpfs dev /dev; busybox dmesg -n 1
bash /umbra/all < /dev/null > /tmp/output
stty -opost; printf '%s' '{BEGIN}'; cat /tmp/output; printf '%s' '{END}'; stty opost
busybox poweroff -f
"
    )
}

/// Puts the files to run into a tree.
fn prepare(root: &Path) {
    fs::create_dir(root.join("umbra")).unwrap();
    for (name, content) in [
        ("commands.sh", COMMANDS),
        ("program.py", PROGRAM),
        ("all", ALL),
    ] {
        fs::write(root.join("umbra").join(name), content).unwrap();
    }
    fs::copy("/bin/sh", root.join("init")).unwrap(); // its mode: executable
    fs::write(root.join("init"), init()).unwrap();
}

fn fifty_commands_and_a_python_program_give_the_native_output(backend: &str) {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let Some(tree) = or_skip(userland::fetch()) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    userland::copy(&tree, &root);
    prepare(&root);
    let initrd = directory.path().join("initrd");
    fs::write(&initrd, userland::archive(&root)).unwrap();
    // The tree has no devices, and a shell takes nothing for the input of its jobs.
    fs::write(root.join("dev/null"), "").unwrap();
    let natively = userland::native(&root, &["bash", "/umbra/all"]).unwrap();
    assert_eq!(
        COMMANDS
            .lines()
            .filter(|line| !line.starts_with('#'))
            .count(),
        50
    );
    for broken in ["No such file", "not found", "Traceback"] {
        assert!(!natively.contains(broken), "{natively}");
    }
    assert!(natively.contains("commands: status 0\n"), "{natively}");
    assert!(natively.contains("program: status 0\n"), "{natively}");

    let initrd = initrd.to_str().unwrap();
    let arguments = [
        "--kernel",
        guest.kernel(),
        "--initrd",
        initrd,
        "--cpus",
        "2",
        "--backend",
        backend,
    ];
    let ended = Umbra::run(&arguments, Input::Empty, LIMIT);

    assert_eq!(ended.status, Some(0), "{ended}");
    let output = ended
        .stdout
        .split_once(BEGIN)
        .and_then(|(_, rest)| rest.split_once(END));
    let (output, _) = output.unwrap_or_else(|| panic!("no output: {ended}"));
    for (number, (here, there)) in (1..).zip(natively.lines().zip(output.lines())) {
        assert_eq!(there, here, "line {number} of the output");
    }
    assert_eq!(output, natively);
}

on_each_stock_backend! {
    fifty_commands_and_a_python_program_give_the_native_output,
}
