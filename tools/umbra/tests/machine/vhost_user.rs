//! A stock guest whose devices are other processes: QEMU's storage daemon, virtiofsd, our own back ends. They are killed
//! at random moments, and come back.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::asked::Asked;
use crate::support::back_ends::{self, Program, Server, wait_for, wait_for_socket};
use crate::support::backend::on_each_stock_backend;
use crate::support::disks::{Place, start_ours, start_storage};
use crate::support::guest::{Guest, LINUX_6_1, or_skip};
use crate::support::peer::Peer;
use crate::support::tools;

const LIMIT: Duration = Duration::from_secs(90);
const MIB: u64 = 1 << 20;

/// How often a back end is killed under load; `UMBRA_KILLS` says otherwise.
fn kills() -> u32 {
    let text = std::env::var("UMBRA_KILLS").unwrap_or_else(|_| "8".into());
    text.parse().expect("UMBRA_KILLS is a number")
}

fn start(guest: &Guest, backend: &str, more: &[&str]) -> Asked {
    let arguments = [&["--memory", "256M"], more].concat();
    Asked::start(guest, backend, &arguments, LIMIT)
}

/// What the guest does on both disks until it is told to stop, and how it went. What was written has to be there
/// after the caches were dropped.
const LOAD: &str = r#"
mkdir /m; mount -t ext4 /dev/$files /m
verify() {
  in_tools fio --name=v --filename=/dev/$raw --ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite \
    --bsrange=512-64k --size=4M --verify=crc32c --verify_fatal=1 --norandommap=0 --output=/tmp/fio \
    --eta=never --verify_state_save=0 && grep -q 'err= 0' /tmp/fio
}
files() {
  mkdir /m/d && for f in 1 2 3 4 5 6 7 8; do cat /bin/busybox > /m/d/$f || return 1; done
  sync; echo 3 > /proc/sys/vm/drop_caches
  for f in 1 2 3 4 5 6 7 8; do cmp /m/d/$f /bin/busybox || return 1; done
  rm -r /m/d
}
load() { bad=0; n=0; while [ ! -e /tmp/stop ]; do $1 > /dev/null 2>/tmp/$1-why || bad=$((bad + 1)); n=$((n + 1)); done
  echo "$n $bad" > /tmp/$1; }
load verify & load files &
"#;

/// Ends the load, and says how often each was done, and how often it failed.
const END: &str = "touch /tmp/stop; while [ ! -e /tmp/verify ] || [ ! -e /tmp/files ]; do sleep 0.2; done; \
                   cat /tmp/verify /tmp/files";

/// Kills servers and starts them again, as often as it is said, at moments of some randomness.
fn kill_often(
    mut servers: Vec<Server>,
    count: u32,
    start: impl Fn() -> Vec<Server>,
) -> Vec<Server> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        std::thread::sleep(Duration::from_millis(20 + state % 700));
        servers.iter_mut().for_each(Server::kill);
        servers = start();
    }
    servers
}

fn a_disk_survives_kills(backend: &str, serve: &dyn Fn(&Place) -> Vec<Server>) {
    let (Some(guest), Some(tools)) = (Guest::fetch(LINUX_6_1), or_skip(tools::disk())) else {
        return;
    };
    let place = Place::new();
    place.disk("raw", 16 * MIB);
    place.disk("ext4", 64 * MIB);
    on_host(
        "/sbin/mke2fs",
        &["-q", "-F", "-t", "ext4", &place.text("ext4")],
    );
    let servers = serve(&place);
    let disks =
        ["raw", "ext4"].map(|name| format!("block,socket={}", place.text(&format!("{name}.sock"))));
    let readonly = format!("{},readonly", tools.display());
    // The guest names disks in their order: the one with the tools comes first in the command.
    let arguments = [
        "--vhost-user",
        &disks[0],
        "--vhost-user",
        &disks[1],
        "--disk",
        &readonly,
    ];
    let mut machine = start(&guest, backend, &arguments);
    let names = machine.ask("for d in a b c; do cat /sys/block/vd$d/size; done");
    let sizes: Vec<u64> = names.split(' ').map(|size| size.parse().unwrap()).collect();
    let tools_at = sizes
        .iter()
        .position(|size| *size > 64 * MIB / 512)
        .unwrap();
    let raw_at = sizes
        .iter()
        .position(|size| *size == 16 * MIB / 512)
        .unwrap();
    let ext4_at = 3 - tools_at - raw_at;
    let name = |at: usize| ["vda", "vdb", "vdc"][at];
    let names = format!(
        "raw={} files={} tools={}",
        name(raw_at),
        name(ext4_at),
        name(tools_at)
    );
    machine
        .running
        .say(&format!("{names}\n{}{LOAD}", tools::MOUNT));
    machine.check("ls -d /m/lost+found", "/m/lost+found");
    let begin = Instant::now();
    let _servers = kill_often(servers, kills(), || serve(&place));
    println!("{} kills in {:?}", kills(), begin.elapsed());
    let counts = machine.ask(END);
    println!("verified, failed, files, failed: {counts}");
    let counts: Vec<u32> = counts
        .split(' ')
        .map(|count| count.parse().unwrap())
        .collect();
    let [verified, bad, files, worse] = counts[..] else {
        panic!("{counts:?}");
    };
    let why = || machine.running.so_far();
    assert!(verified > 0 && files > 0, "{counts:?} {}", why());
    assert_eq!((bad, worse), (0, 0), "{}", why());
    machine.check("umount /m && echo yes", "yes");
    machine.check("dmesg | grep -ciE 'I/O error|EXT4-fs error|timed out'", "0");
    let ended = machine.finish();
    let lost = ended.stderr.matches("the back end is lost").count();
    let back = ended.stderr.matches("the back end is back").count();
    // Each disk loses its back end, but for one that was killed before it was found. One that is killed a moment
    // after it was found is not told of as found.
    let most = 2 * kills() as usize;
    assert!(
        (most / 2..=most).contains(&lost) && (most / 2..=lost).contains(&back),
        "{lost} {back} {ended}"
    );
    on_host("/sbin/e2fsck", &["-fn", &place.text("ext4")]);
}

/// Runs a program that has to succeed.
fn on_host(program: &str, arguments: &[&str]) {
    let output = std::process::Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

fn linux_6_1_keeps_files_while_qemus_storage_daemon_is_killed(backend: &str) {
    let Some(daemon) = or_skip(back_ends::storage_daemon()) else {
        return;
    };
    a_disk_survives_kills(backend, &|place| start_storage(&daemon, place));
}

fn linux_6_1_keeps_files_while_our_own_back_ends_are_killed(backend: &str) {
    a_disk_survives_kills(backend, &start_ours);
}

/// File systems: what a mount does that is no block device's business.
const FILES: &str = r#"
set -e; cd /m
echo one > a; ln a b; ln -s a c; test "$(cat c)" = one; test "$(stat -c %h a)" = 2
mkdir -p d/e; mv a d/e/f; test ! -e a; test "$(cat d/e/f)" = one
chmod 640 b; test "$(stat -c %a b)" = 640; chown 7:8 b; test "$(stat -c %u:%g b)" = 7:8
truncate -s 1000000 g; test "$(stat -c %s g)" = 1000000; test "$(head -c 5 g | od -An -tx1)" = " 00 00 00 00 00"
printf x | dd of=g bs=1 seek=500000 conv=notrunc 2>/dev/null; test "$(dd if=g bs=1 skip=500000 count=1 2>/dev/null)" = x
echo two >> b; test "$(wc -l < b)" = 2; mkfifo p; test -p p; rm p
! mkdir d; ! rmdir d; ! cat nothing; ! ls d/nothing
for n in $(seq 200); do echo $n > d/$n; done; test "$(ls d | wc -l)" = 201
touch -d @86400 b; test "$(stat -c %Y b)" = 86400
exec 9> h; rm h; echo still >&9; exec 9>&-; test ! -e h
rm -r d b c g; test -z "$(ls)"
cd /; echo fine
"#;

/// A tree of many files, there and back.
const TREE: &str = r#"
mkdir /tmp/t /m/t
for d in $(seq 60); do
  mkdir /tmp/t/$d
  for f in $(seq 30); do head -c $((d * 100 + f * 37)) /bin/busybox > /tmp/t/$d/$f; done
done
tar -C /tmp/t -cf /m/t.tar . && tar -C /m/t -xf /m/t.tar && diff -r /tmp/t /m/t && ls /m/t | wc -l
"#;

fn start_files(daemon: &Program, place: &Place) -> Server {
    let (socket, share) = (place.text("fs.sock"), place.text("share"));
    let _ = fs::remove_file(&socket);
    let _ = fs::create_dir(&share);
    let arguments = [
        "--socket-path",
        &socket,
        "--shared-dir",
        &share,
        "--tag",
        "share",
        "--sandbox",
        "none",
    ];
    let server = daemon.start(&arguments, &place.path("messages"));
    wait_for_socket(&place.path("fs.sock"));
    server
}

fn linux_6_1_mounts_virtiofsd_and_mounts_again_when_it_was_killed(backend: &str) {
    let (Some(guest), Some(daemon)) = (Guest::fetch(LINUX_6_1), or_skip(back_ends::virtiofsd()))
    else {
        return;
    };
    let place = Place::new();
    let mut server = start_files(&daemon, &place);
    let fs = format!("fs,socket={}", place.text("fs.sock"));
    place.disk("other", MIB);
    let other = place.text("other");
    let mut machine = start(&guest, backend, &["--vhost-user", &fs, "--disk", &other]);
    machine.check(
        "mkdir /m; mount -t virtiofs share /m && echo mounted",
        "mounted",
    );
    machine.script("files", FILES);
    machine.check("sh -x /tmp/files 2>/tmp/why | tail -1", "fine");
    machine.script("tree", TREE);
    machine.check("sh /tmp/tree", "60");
    let count = fs::read_dir(place.path("share/t")).unwrap().count();
    assert_eq!(count, 60, "the host sees them, too");

    server.kill();
    let gone = "Transport endpoint is not connected";
    let dead = |commands: &str| format!("{commands} 2>&1 | grep -c '{gone}'");
    machine.check(&dead("sleep 0.3; ls /m"), "1");
    machine.check(&dead("cat /m/t.tar"), "1");
    machine.check("dd if=/dev/vda bs=4k count=8 2>/dev/null | wc -c", "32768");
    // So does another mount, as long as there is nobody; and it stays dead when there is.
    machine.check(
        "umount -l /m; mount -t virtiofs share /m; ls /m 2>/dev/null || echo dead",
        "dead",
    );
    let server = start_files(&daemon, &place);
    machine.check("sleep 0.5; ls /m 2>/dev/null || echo dead", "dead");
    machine.check(
        "umount /m; mount -t virtiofs share /m; ls /m/t | wc -l",
        "60",
    );
    machine.check("diff -r /tmp/t /m/t && umount /m && echo same", "same");
    let ended = machine.finish();
    assert_eq!(
        ended.stderr.matches("the back end is lost").count(),
        1,
        "{ended}"
    );
    drop(server);
}

/// How many files are unpacked; `UMBRA_TREE` says otherwise. A kernel's sources are some 80,000.
fn tree() -> usize {
    let text = std::env::var("UMBRA_TREE").unwrap_or_else(|_| "1000".into());
    text.parse().expect("UMBRA_TREE is a number")
}

fn linux_6_1_unpacks_a_tree_of_files_by_virtiofsd(backend: &str) {
    let (Some(guest), Some(daemon)) = (Guest::fetch(LINUX_6_1), or_skip(back_ends::virtiofsd()))
    else {
        return;
    };
    let place = Place::new();
    let source = place.path("source");
    let content: Vec<u8> = (0..=255).cycle().take(0x10000).collect();
    for file in 0..tree() {
        let folder = source.join(format!("{}/{}", file / 600, file / 20 % 30));
        fs::create_dir_all(&folder).unwrap();
        // Of a kernel's sources half have less than 5 KiB.
        let len = file * 7919 % 13000;
        fs::write(
            folder.join(format!("{file}.c")),
            &content[file % 256..][..len],
        )
        .unwrap();
    }
    let _server = start_files(&daemon, &place);
    let (from, to) = (place.text("source"), place.text("share/t.tar"));
    on_host("tar", &["-C", &from, "-cf", &to, "."]);
    let fs = format!("fs,socket={}", place.text("fs.sock"));
    let arguments = ["--memory", "256M", "--vhost-user", &fs];
    let mut machine = Asked::start(&guest, backend, &arguments, Duration::from_secs(900));
    machine.check(
        "mkdir /m; mount -t virtiofs share /m && mkdir /m/t && echo yes",
        "yes",
    );
    let begin = Instant::now();
    machine.check(
        "tar -C /m/t -xf /m/t.tar && sync && echo unpacked",
        "unpacked",
    );
    println!("{} files in {:?}", tree(), begin.elapsed());
    machine.check("find /m/t -type f | wc -l", &tree().to_string());
    on_host("diff", &["-r", &from, &place.text("share/t")]);
    machine.check("rm -r /m/t && ls /m", "t.tar");
    machine.finish();
}

/// Our own back ends of what is no disk, each with its arguments.
fn start_others(place: &Place) -> Vec<Server> {
    let (net, log) = (place.text("net"), place.text("printed"));
    let kinds = [
        ("rng", vec!["rng".into()]),
        ("console", vec!["console".into(), format!("file={log}")]),
        ("net", vec!["net".into(), format!("socket={net}")]),
    ];
    let servers = kinds.map(|(name, device)| {
        let (socket, messages) = (place.text(&format!("{name}.sock")), place.path(name));
        let device = device.iter().map(String::as_str);
        let arguments: Vec<_> = std::iter::once("backend")
            .chain(device)
            .chain(["--socket", &socket])
            .collect();
        let messages = messages.with_extension("messages");
        let server = back_ends::ours().start(&arguments, &messages);
        wait_for(|| fs::read_to_string(&messages).is_ok_and(|text| text.contains("listens")));
        server
    });
    servers.into()
}

fn linux_6_1_uses_back_ends_of_ours_of_every_kind_and_they_may_die(backend: &str) {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let place = Place::new();
    let _peer = Peer::serve(&place.path("net"));
    let mut servers = start_others(&place);
    let socket = |name: &str, kind: &str| format!("{kind},socket={}", place.text(name));
    let devices = [
        socket("rng.sock", "device=4"),
        socket("console.sock", "device=3,config=12"),
        socket("net.sock", "net,mac=52:54:00:01:02:03"),
    ];
    let arguments: Vec<_> = devices.iter().flat_map(|d| ["--vhost-user", d]).collect();
    let mut machine = start(&guest, backend, &arguments);
    machine.check("cat /sys/class/misc/hw_random/rng_current", "virtio_rng.0");
    machine.check("cat /sys/class/net/eth0/address", "52:54:00:01:02:03");
    machine.check("ip addr add 10.0.0.2/24 dev eth0 && echo set", "set");
    const DEATHS: usize = 3;
    for round in 0..=DEATHS {
        machine.check("dd if=/dev/hwrng bs=64 count=8 2>/dev/null | wc -c", "512");
        machine.check("ping -c 3 -W 5 10.0.0.1 | grep -c 'bytes from'", "3");
        let line = format!("line {round}");
        machine.check(
            &format!("echo {line} > /dev/hvc0 && echo printed"),
            "printed",
        );
        wait_for(|| {
            fs::read_to_string(place.path("printed")).is_ok_and(|text| text.contains(&line))
        });
        if round < DEATHS {
            servers.iter_mut().for_each(Server::kill);
            servers = start_others(&place);
        }
    }
    let ended = machine.finish();
    let lost = ended.stderr.matches("the back end is lost").count();
    assert_eq!(lost, DEATHS * servers.len(), "{ended}");
}

on_each_stock_backend! {
    linux_6_1_keeps_files_while_our_own_back_ends_are_killed,
    linux_6_1_keeps_files_while_qemus_storage_daemon_is_killed,
    linux_6_1_mounts_virtiofsd_and_mounts_again_when_it_was_killed,
    linux_6_1_unpacks_a_tree_of_files_by_virtiofsd,
    linux_6_1_uses_back_ends_of_ours_of_every_kind_and_they_may_die,
}
