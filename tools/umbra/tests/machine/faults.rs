//! A host that fails under a stock guest: a disk that is full, that fails, that hangs, that is too short or may be
//! no larger. The guest gets an I/O error, lives on, and the log has one line for each kind.
//!
//! All of it happens to real files: on a file system without room, on one whose medium fails (FUSE), under a limit
//! of the size of files (`ulimit -f`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::support::asked::Asked;
use crate::support::backend::on_each_stock_backend;
use crate::support::faulty::{Faulty, Mood};
use crate::support::guest::{Guest, LINUX_6_1, or_skip};
use crate::support::namespace::{self, Place};
use crate::support::{Ended, qcow2};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// Room of the file system that is full.
const ROOM: u64 = 8 * MIB;
/// No file may be longer, nor the guest's memory, which is one.
const FILE_MAX: u64 = 192 * MIB;

/// What the guest's shell knows: to write zeros, and see whether that fails; to write something else at a MiB, and
/// see whether it is read again; to count what its kernel complains of.
const WORDS: &str = r#"
head -c 65536 /dev/urandom > /tmp/r
fails() { "$@" 2>&1 >/dev/null | grep -cE 'I/O error|Input/output error'; }
put() { dd if=/dev/zero of=/dev/$1 bs=64k seek=$((16 * $2)) count=$3 oflag=direct; }
get() { dd if=/dev/$1 bs=64k skip=$((16 * $2)) count=1 iflag=direct; }
keeps() { dd if=/tmp/r of=/dev/$1 bs=64k seek=$((16 * $2)) oflag=direct conv=fsync 2>/dev/null && get $1 $2 2>/dev/null | cmp - /tmp/r && echo yes; }
complains() { dmesg | grep -c "I/O error, dev $1"; }
"#;

/// The host's files, a disk each.
struct Disks {
    place: PathBuf,
    faulty: Faulty,
}

impl Disks {
    /// Makes them; in a mount namespace of one's own.
    fn make(place: &Path) -> anyhow::Result<Self> {
        let full = place.join("full");
        fs::create_dir(&full)?;
        let size = std::ffi::CString::new(format!("size={ROOM}"))?;
        mount("full", &full, "tmpfs", MountFlags::empty(), Some(&*size))?;
        fs::write(full.join("ballast"), vec![1; ROOM as usize / 2])?;
        File::create(full.join("raw"))?.set_len(64 * MIB)?;
        fs::write(full.join("qcow2"), qcow2::empty(64 * MIB))?;
        File::create(place.join("short"))?.set_len(8 * MIB)?;
        File::create(place.join("long"))?.set_len(2 * FILE_MAX)?;
        let file = place.join("faulty");
        File::create(&file)?;
        Ok(Self {
            place: place.to_owned(),
            faulty: Faulty::mount(&file, 8 << 20)?,
        })
    }

    fn path(&self, name: &str) -> String {
        self.place.join(name).to_str().unwrap().to_owned()
    }
}

/// A guest with those disks: vda is full, vdb an image on the same file system, vdc fails, vdd is too short, vde
/// too long.
struct Machine {
    asked: Asked,
    disks: Disks,
}

impl Machine {
    fn start(guest: &Guest, backend: &str, disks: Disks) -> Self {
        let options = [
            ("full/raw", "engine=io_uring"),
            ("full/qcow2", "format=qcow2"),
            ("faulty", "engine=io_uring"),
            ("short", "engine=io_uring"),
            ("long", "engine=threads"),
        ];
        let options = options.map(|(name, more)| format!("{},{more}", disks.path(name)));
        let mut arguments = vec!["--memory", "192M"];
        arguments.extend(options.iter().flat_map(|disk| ["--disk", disk]));
        let before = getrlimit(Resource::Fsize);
        let mut limit = before;
        limit.current = Some(FILE_MAX);
        setrlimit(Resource::Fsize, limit).unwrap();
        let mut asked = Asked::start(guest, backend, &arguments, LIMIT);
        setrlimit(Resource::Fsize, before).unwrap();
        asked.running.say(WORDS);
        Self { asked, disks }
    }

    fn ask(&mut self, commands: &str) -> String {
        self.asked.ask(commands)
    }

    fn check(&mut self, commands: &str, expected: &str) {
        self.asked.check(commands, expected);
    }

    /// The guest's kernel has told of errors of a disk. It says ten in five seconds, so not of one that fails right
    /// after another one.
    fn complains(&mut self, disk: &str) {
        let count: u32 = self.ask(&format!("complains {disk}")).parse().unwrap();
        assert_ne!(count, 0, "{}", self.asked.running.so_far());
    }

    fn the_disk_is_full(&mut self) {
        self.check("fails put vda 0 128", "1");
        self.check("fails put vdb 0 128", "1");
        // However often.
        let often =
            "for n in $(seq 10); do fails put vda 10 1; fails put vdb 10 1; done | grep -c 1";
        self.check(often, "20");
        self.complains("vda");
        fs::remove_file(self.disks.path("full/ballast")).unwrap();
        self.check("keeps vda 11", "yes");
        self.check("keeps vdb 11", "yes");
    }

    fn the_medium_fails(&mut self) {
        self.check("keeps vdc 1", "yes");
        self.disks.faulty.set(Mood::Fails(Errno::IO));
        let often = "for n in $(seq 10); do fails get vdc 1; fails put vdc 1 1; done | grep -c 1";
        self.check(often, "20");
        self.check("fails dd if=/dev/null of=/dev/vdc conv=fsync", "1");
        self.disks.faulty.set(Mood::Works);
        self.check("get vdc 1 2>/dev/null | cmp - /tmp/r && echo yes", "yes");
        self.check("keeps vdc 2", "yes");
    }

    fn the_medium_hangs(&mut self) {
        self.disks.faulty.set(Mood::Hangs);
        let begin = "{ keeps vdc 3 > /tmp/kept; touch /tmp/done; } > /dev/null & echo begun";
        self.check(begin, "begun");
        // Nobody else waits, and the log says what is wrong while it is.
        self.check("keeps vda 1", "yes");
        self.asked.running.wait_for_error("a disk is slow", LIMIT);
        self.check("ls /tmp/done 2>/dev/null | wc -l", "0");
        self.disks.faulty.set(Mood::Works);
        self.check(
            "until rm /tmp/done 2>/dev/null; do sleep 0.1; done; cat /tmp/kept",
            "yes",
        );
    }

    fn the_file_is_truncated(&mut self) {
        let path = self.disks.path("short");
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(MIB).unwrap();
        self.check(
            "for n in 1 2 3 4 5; do fails get vdd 4; done | grep -c 1",
            "5",
        );
        self.complains("vdd");
        file.set_len(8 * MIB).unwrap();
        self.check("keeps vdd 4", "yes");
    }

    fn the_file_may_be_no_larger(&mut self) {
        self.check(
            "for n in 1 2 3 4 5; do fails put vde 200 1; done | grep -c 1",
            "5",
        );
        self.check("keeps vde 150", "yes");
    }
}

fn a_host_that_fails_is_an_error_for_the_guest(backend: &str) {
    let module = if backend == "kvm" {
        "kvm_stock"
    } else {
        backend
    };
    let test = format!("faults::{module}::a_host_that_fails_is_an_error_for_the_guest");
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let Some(Place::Inside(place)) = or_skip(namespace::again_inside(&test)) else {
        return;
    };
    let Some(disks) = or_skip(Disks::make(&place)) else {
        return;
    };
    let mut machine = Machine::start(&guest, backend, disks);
    machine.the_disk_is_full();
    machine.the_medium_fails();
    machine.the_medium_hangs();
    machine.the_file_is_truncated();
    machine.the_file_may_be_no_larger();
    let Machine { asked, disks } = machine;
    let ended = asked.finish();
    assert_told_once(&disks, &ended);
    check_image(&disks.path("full/qcow2"));
}

/// The log has one line for each kind of failure, whatever the guest did, and no other.
fn assert_told_once(disks: &Disks, ended: &Ended) {
    let mut told: Vec<&str> = ended.stderr.lines().collect();
    for (name, what) in [
        ("full/raw", "request=Out error=No space"),
        ("full/qcow2", "request=Out error=No space"),
        ("faulty", "request=In error=Input/output error"),
        ("faulty", "request=Out error=Input/output error"),
        ("faulty", "request=Flush error=Input/output error"),
        ("faulty", "a disk is slow"),
        (
            "short",
            "request=In error=the file ends before the disk does",
        ),
        ("long", "request=Out error=File too large"),
    ] {
        let path = format!("disk={:?}", disks.path(name));
        let is_it = |line: &&str| line.contains(&path) && line.contains(what);
        let found = told.iter().position(is_it);
        let found = found.unwrap_or_else(|| panic!("no line of {name}, {what}: {ended}"));
        told.remove(found);
    }
    assert_eq!(told, [""; 0], "{ended}");
}

/// What could not be written has left an image that is right.
fn check_image(path: &str) {
    match Command::new("qemu-img").args(["check", path]).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => eprintln!("SKIPPED the check of an image: qemu-img: {error}"),
    }
}

on_each_stock_backend! {
    a_host_that_fails_is_an_error_for_the_guest,
}
