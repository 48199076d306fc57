//! A stock guest with files of the host as persistent memory, made and checked by the tools of e2fsprogs.
//!
//! By this module's name `cargo xtask test` leaves them out where there are no such tools.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use umbra_vmm::{
    AddError, BuildError, Console, Machine, Outcome, Plan, PmemError, PmemSpec, Spec, VirtioKind,
    VirtioSpec,
};

use crate::support::backend::{backend, on_each_stock_backend};
use crate::support::guest::{Guest, LINUX_6_1};
use crate::support::screen::Screen;
use crate::support::stock::{answer, run};
use crate::support::{Input, Umbra, poll};

const MIB: u64 = 1 << 20;
/// How long the guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// Files on the first two, of which the first has a journal and is mapped by programs without a copy, and
/// bytes that are written to the third, which may only be read.
const USE: &str = r#"
mkdir /a /b
mount -t ext4 -o dax /dev/pmem0 /a && dd if=/dev/urandom of=/a/data bs=64k count=64 2>/dev/null
sync; echo "a: $(sha256sum < /a/data)"; umount /a
mke2fs /dev/pmem1 >/dev/null && mount -t ext4 /dev/pmem1 /b && echo words > /b/words && sync && umount /b
before=$(sha256sum < /dev/pmem2)
dd if=/dev/zero of=/dev/pmem2 bs=4096 count=16 conv=fsync 2>/dev/null
echo 3 > /proc/sys/vm/drop_caches
[ "$before" = "$(sha256sum < /dev/pmem2)" ] && echo "c: $before"
echo "flushes: $(awk '/virtio/ { n += $2 + ($3 ~ /^[0-9]+$/ ? $3 : 0) } END { print n + 0 }' /proc/interrupts)"
echo "complaints: $(dmesg | grep -ciE '(pmem|ext4|virtio).*(error|fail|wrong|broken|corrupt)')"
"#;

fn file(directory: &Path, name: &str, len: u64) -> PathBuf {
    let path = directory.join(name);
    std::fs::File::create(&path).unwrap().set_len(len).unwrap();
    path
}

/// Runs a tool of e2fsprogs.
fn tool(name: &str, arguments: &[&str], image: &Path) -> Vec<u8> {
    let output = Command::new(format!("/sbin/{name}"))
        .args(arguments)
        .arg(image)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {name} (package e2fsprogs): {error}"));
    assert!(output.status.success(), "{name}: {output:?}");
    output.stdout
}

fn sha256(bytes: &[u8]) -> String {
    use std::io::Write;
    let mut child = Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

fn files_reach_the_host(backend: &str, more: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| file(directory.path(), name, 32 * MIB));
    tool("mke2fs", &["-q", "-t", "ext4", "-b", "4096"], &a);
    std::fs::write(&c, vec![0x5a; 2 << 20]).unwrap();
    let options = [&a, &b, &c].map(|path| path.display().to_string());
    let read_only = format!("{},readonly", options[2]);
    let pmems = [
        "--pmem",
        &options[0],
        "--pmem",
        &options[1],
        "--pmem",
        &read_only,
    ];
    let Some(ended) = run(backend, LINUX_6_1, &[&pmems[..], more].concat(), USE) else {
        return;
    };
    for image in [&a, &b] {
        tool("e2fsck", &["-f", "-n"], image);
    }
    let data = tool("debugfs", &["-R", "cat /data"], &a);
    assert_eq!(data.len(), 4 << 20, "{ended}");
    assert_eq!(sha256(&data).trim(), answer(&ended, "a: "), "{ended}");
    assert_eq!(tool("debugfs", &["-R", "cat /words"], &b), b"words\n");
    let bytes = std::fs::read(&c).unwrap();
    assert_eq!(bytes, vec![0x5a; 2 << 20], "what may only be read");
    assert_eq!(sha256(&bytes).trim(), answer(&ended, "c: "), "{ended}");
    let flushes: u64 = answer(&ended, "flushes: ").parse().unwrap();
    assert!(flushes >= 3, "{ended}");
    assert_eq!(answer(&ended, "complaints: "), "0", "{ended}");
}

fn what_a_guest_writes_and_syncs_is_in_the_file(backend: &str) {
    files_reach_the_host(backend, &[]);
}

fn what_a_guest_writes_and_syncs_is_in_the_file_by_pci(backend: &str) {
    files_reach_the_host(backend, &["--pci", "--cpus", "2"]);
}

fn a_file_that_no_guest_could_map_is_refused_with_advice(backend: &str) {
    let directory = tempfile::tempdir().unwrap();
    let odd = file(directory.path(), "odd", 3 * MIB + 1);
    let kernel = poll::tiny_guest();
    let table = [
        (odd.display().to_string(), 1, "truncate -s 4194304"),
        (format!("{},size=3M", odd.display()), 2, "round the size"),
        (format!("{},size=4M", odd.display()), 1, "make it longer"),
        ("/dev/null".to_owned(), 1, "a character device"),
    ];
    for (pmem, status, advice) in table {
        let arguments = [
            "--kernel",
            kernel.to_str().unwrap(),
            "--backend",
            backend,
            "--pmem",
            &pmem,
        ];
        let ended = Umbra::run(&arguments, Input::Empty, PATIENCE);
        assert_eq!(
            (ended.status, ended.stderr.lines().count()),
            (Some(status), 1),
            "{ended}"
        );
        assert!(ended.stderr.contains(advice), "{ended}");
    }
}

/// Loads drivers for what comes, and writes its number of the round where it is.
const WRITE: &str = r#"
stty -echo
drivers() { cat /sys/bus/$1/devices/*/modalias 2>/dev/null | sort -u | xargs -r modprobe -abq; }
write() {
  while [ ! -b /dev/pmem0 ]; do drivers pci; drivers virtio; drivers nd; sleep 0.1; done
  echo "round $1" | dd of=/dev/pmem0 bs=4096 conv=sync,fsync 2>/dev/null && echo "wrote: $1"
}
echo "guest: ready"
"#;

fn wait_for(screen: &Screen, line: &str) {
    let begin = Instant::now();
    while !screen.text().lines().any(|l| l.ends_with(line)) {
        let text = screen.text();
        assert!(
            begin.elapsed() < PATIENCE,
            "no {line:?}; the guest said {text}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn beginning(path: &Path) -> String {
    let mut file = std::fs::File::open(path).unwrap();
    let mut bytes = [0; 8];
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}

fn memory_comes_and_goes_with_its_device(name: &str) {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "p", 16 * MIB);
    let spec = Spec::new(&guest.kernel)
        .initrd(&guest.initrd)
        .backend(backend(name))
        .pci();
    let screen = Screen::default();
    let machine = Machine::build(Plan::new(spec).unwrap(), Console::to(screen.clone())).unwrap();
    let (handle, space) = (machine.handle(), machine.space().clone());
    let thread = std::thread::spawn(|| machine.run().unwrap().outcome);
    handle.console().send(WRITE.as_bytes()).unwrap();
    wait_for(&screen, "guest: ready");
    let pmem = VirtioSpec {
        id: "p".into(),
        kind: VirtioKind::Pmem(PmemSpec::new(&path)),
    };
    let slots = || space.load().slots().len();
    let before = slots();
    for round in 0..3 {
        handle.add_device(&pmem).unwrap();
        let again = VirtioSpec {
            id: "q".into(),
            ..pmem.clone()
        };
        let refused = handle.add_device(&again).unwrap_err();
        let AddError::Build(BuildError::Pmem { source, .. }) = refused else {
            panic!("{refused}");
        };
        assert!(matches!(source, PmemError::Open(_)), "locked: {source}");
        let command = format!("write {round}\n");
        handle.console().send(command.as_bytes()).unwrap();
        wait_for(&screen, &format!("wrote: {round}"));
        assert_eq!(beginning(&path), format!("round {round}"));
        assert!(slots() > before);
        match round {
            // The last one is pulled out.
            2 => handle.remove_device_at_once("p").unwrap(),
            _ => handle.remove_device("p").unwrap(),
        }
        assert!(handle.wait_removed("p", PATIENCE), "{}", screen.text());
        assert_eq!(slots(), before, "its memory has left the map");
    }
    handle.stop();
    assert_eq!(thread.join().unwrap(), Outcome::Stopped);
}

on_each_stock_backend! {
    a_file_that_no_guest_could_map_is_refused_with_advice,
    memory_comes_and_goes_with_its_device,
    what_a_guest_writes_and_syncs_is_in_the_file,
    what_a_guest_writes_and_syncs_is_in_the_file_by_pci,
}
