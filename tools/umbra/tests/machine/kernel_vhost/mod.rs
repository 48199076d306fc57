//! The kernel's vhost for real: our front ends drive `/dev/vhost-net`, `/dev/vhost-vsock` and `/dev/vhost-vdpa-0`, with
//! a driver of the test's own in memory of the test's own.
//!
//! ```text
//!   program: Driver ── VhostKernel ──> /dev/vhost-net ── TAP ── packet socket          of the same program
//!            Driver ── VhostKernel ──> /dev/vhost-vsock ── AF_VSOCK socket
//!            Driver ── VhostKernel ──> /dev/vhost-vdpa-0 ── vduse ── QEMU's storage daemon ── file
//! ```
//! That runs wherever the nodes are. They are in a Debian guest, so this program runs in one as well: Debian 12's
//! kernels have the modules, and a disk has the program with its libraries. There are machines in that guest as well:
//! the command with a bare-metal guest of its own, whose devices are the kernel's. Of vDPA the stable one, 6.1, has nothing;
//! 6.12 has VDUSE, by which a program of the guest's is the device.
//!
//! Where there are no nodes, `cargo xtask test` counts the tests that need them as skipped.

mod driver;
mod machine;
mod vhost_net;
mod vhost_vdpa;
mod vhost_vsock;

use std::path::Path;
use std::time::Duration;

use umbra_vhost::nodes;

use crate::support::asked::Asked;
use crate::support::back_ends::{self, Program};
use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{self, LINUX_6_1, LINUX_6_12, or_skip};
use crate::support::{Input, Umbra, vhost_guest};
use machine::PROGRAMS;

const LIMIT: Duration = Duration::from_secs(150);
/// Set where the nodes have to be there.
const NEEDED: &str = "UMBRA_NODES_NEEDED";

/// Boots a guest with programs, loads modules, and has tests of this program run there: those of modules, so many.
fn run_in_a_guest(
    (package, backend): (&str, &str),
    programs: &[(&str, Program)],
    prepare: &str,
    (modules, count): (&[&str], usize),
) {
    let Some(guest) = vhost_guest::fetch(package) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let Some(disk) = or_skip(vhost_guest::disk(place.path(), programs)) else {
        return;
    };
    let disk = format!("{},readonly", disk.display());
    let arguments = ["--memory", "512M", "--disk", &disk];
    let mut guest = Asked::start(&guest, backend, &arguments, LIMIT);
    guest.running.say(vhost_guest::MOUNT);
    guest.check("modprobe -a tun vhost_net vhost_vsock; echo $?", "0");
    guest.check(
        "ls /dev/vhost-net /dev/vhost-vsock /dev/net/tun | wc -l",
        "3",
    );
    guest.running.say(prepare);
    let programs = format!("{PROGRAMS}=/program {NEEDED}=1");
    let modules: Vec<_> = modules
        .iter()
        .map(|name| format!("kernel_vhost::{name}::"))
        .collect();
    let modules = modules.join(" ");
    let run = format!("run tests {modules} --nocapture --test-threads=1");
    let status = guest.ask(&format!("{programs} {run} > /tmp/out 2>&1; echo $?"));
    for line in guest
        .ask("grep -a NODES /tmp/out | tr '\\n' '|'")
        .split('|')
    {
        println!("{line}");
    }
    let result = guest.ask("grep -a 'test result' /tmp/out");
    if status != "0" || !result.contains(&format!("{count} passed")) {
        let said = "{ dmesg | tail -n 5; tail -n 40 /tmp/out /tmp/daemon; } | tr '\\n' '|'";
        let said = guest.ask(said);
        panic!("{status}, {result}: {said}");
    }
    guest.check("dmesg | grep -c -i -E 'BUG:|Oops|WARNING:'", "0");
    guest.finish();
}

fn interfaces_and_sockets_of_the_kernel_work_in_a_guest(backend: &str) {
    let modules = ["vhost_net", "vhost_vsock"];
    run_in_a_guest((LINUX_6_1, backend), &[], "", (&modules, 4));
}

/// A disk of 1 MiB, which QEMU's storage daemon serves by VDUSE.
const VDUSE: &str = r#"
modprobe -a vduse vhost_vdpa; export UMBRA_VDPA_DISK=/tmp/disk
dd if=/dev/zero of=/tmp/disk bs=1M count=1
run qemu-storage-daemon --blockdev driver=file,filename=/tmp/disk,node-name=d   --export type=vduse-blk,id=e,name=umbra0,node-name=d,writable=on,num-queues=1 >/tmp/daemon 2>&1 &
while [ ! -e /dev/vduse/umbra0 ] && kill -0 $!; do sleep 0.1; done
run vdpa dev add name umbra0 mgmtdev vduse >>/tmp/daemon 2>&1
"#;

fn a_device_of_the_hosts_works_in_a_guest(backend: &str) {
    let daemon = or_skip(back_ends::storage_daemon());
    let tool = Program::of_this_system("/sbin/vdpa".into());
    let tool = match tool.path().exists() {
        true => Ok(tool),
        false => Err(anyhow::anyhow!("there is no /sbin/vdpa: install iproute2")),
    };
    let (Some(daemon), Some(tool)) = (daemon, or_skip(tool)) else {
        return;
    };
    let programs = [("qemu-storage-daemon", daemon), ("vdpa", tool)];
    let modules = ["vhost_net", "vhost_vsock", "vhost_vdpa"];
    run_in_a_guest((LINUX_6_12, backend), &programs, VDUSE, (&modules, 6));
}

on_each_stock_backend! {
    interfaces_and_sockets_of_the_kernel_work_in_a_guest,
    a_device_of_the_hosts_works_in_a_guest,
}

/// Where there are no nodes the command says which, and what to do.
#[test]
fn a_node_that_is_missing_is_named_by_the_command() {
    let Some(guest) = guest::Guest::fetch(LINUX_6_1) else {
        return;
    };
    let (vsock, vdpa) = (nodes::VSOCK, "/dev/vhost-vdpa-of-nobody");
    if !Path::new(vsock).exists() {
        let said = [vsock, "modprobe vhost_vsock", "path="];
        refused(&guest, &["--vsock", "cid=3,vhost"], &said);
    }
    let said = [vdpa, "modprobe vhost_vdpa", "vdpa dev show"];
    refused(&guest, &["--vdpa", vdpa], &said);
    let limited = ["--net", "tap=t0,vhost,rx-ops=5"];
    refused(&guest, &limited, &["cannot have limits", "tc"]);
    let lent = ["--vdpa", vdpa, "--balloon"];
    refused(&guest, &lent, &["no balloon", "locked"]);
}

/// The command does not start a machine, and says why.
fn refused(guest: &guest::Guest, arguments: &[&str], parts: &[&str]) {
    let machine = ["--backend", "soft", "--kernel", guest.kernel()];
    let ended = Umbra::run(&[&machine[..], arguments].concat(), Input::Empty, LIMIT);
    assert_ne!(ended.status, Some(0), "{ended}");
    for part in parts {
        assert!(ended.stderr.contains(part), "{part}: {ended}");
    }
    println!("{}", ended.stderr.trim());
}
