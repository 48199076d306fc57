//! A stock guest on the network: a TAP interface, and user-mode networking, in a network namespace of the
//! test's own.

use std::fs;
use std::path::Path;

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{Guest, LINUX_6_1, or_skip};
use crate::support::namespace;
use crate::support::tools;

/// What is transferred each way.
const BYTES: usize = 100_000_000;

/// Files for the guest to fetch, and what their checksum is.
struct Site {
    directory: tempfile::TempDir,
    checksum: String,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // No piece of it is like another one.
        let words = (0..BYTES as u64 / 8).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let file = directory.path().join("big");
        fs::write(&file, bytes).unwrap();
        let output = std::process::Command::new("md5sum").arg(&file).output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        let checksum = text.split(' ').next().unwrap().to_owned();
        Self {
            directory,
            checksum,
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// What the guest does once it has an address: fetches the file, and sends it back. The last command
/// keeps a machine that has not switched itself off from waiting for more.
fn guest_commands(server: &str) -> String {
    format!(
        r#"
echo "complaints: $(dmesg | grep -ciE 'virtio.*(error|fail|wrong|broken)')"
tools=vda
{mount}
in_tools curl -sf -o /tmp/big http://{server}/big && echo "fetched: $(md5sum < /tmp/big)"
nc {server} 99 < /tmp/big && echo "sent: all"
poweroff -f
"#,
        mount = tools::MOUNT
    )
}

/// Serves files, and takes one. The receiver's standard input stays open, or it would end with the first
/// byte. It says something, too: a passt older than April 2023 resets a connection of the guest after some 16
/// seconds in which the other side has not. What it took is told by [`server_answer`], when the machine
/// prints nothing more that it could land amid.
fn server_commands(site: &Site) -> String {
    let place = site.path().display();
    format!(
        "$busybox httpd -p 80 -h {place}\n\
         mkfifo {place}/open\n\
         (echo hello; exec sleep 1000) > {place}/open &\n\
         $busybox nc -l -p 99 < {place}/open | md5sum > {place}/received &\n\
         receiver=$!\n"
    )
}

fn server_answer(site: &Site) -> String {
    format!(
        "wait $receiver\n$busybox sed 's/^/received: /' {}/received\n",
        site.path().display()
    )
}

fn umbra_command(guest: &Guest, backend: &str, devices: &str, commands: &Path) -> String {
    format!(
        "$umbra run --kernel {} --initrd {} --backend {backend} {devices} \
         --cmdline 'console=ttyS0 panic=-1 quiet' < {}",
        guest.kernel(),
        guest.initrd(),
        commands.display()
    )
}

/// What was printed behind a word at the beginning of a line.
fn answer<'a>(text: &'a str, word: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("no line {word:?}: {text}"))
        .trim()
}

fn check(printed: &namespace::Printed, site: &Site) {
    let text = &printed.stdout;
    assert_eq!(answer(text, "complaints: "), "0", "{text}");
    for what in ["fetched: ", "received: "] {
        let sum = answer(text, what).split(' ').next();
        assert_eq!(sum, Some(&*site.checksum), "{what} {text}");
    }
    assert_eq!(answer(text, "sent: "), "all");
    assert_eq!(printed.stderr, "");
}

fn a_guest_reaches_the_host_by_a_tap_interface(backend: &str) {
    let (Some(guest), Some(tools)) = (Guest::fetch(LINUX_6_1), or_skip(tools::disk())) else {
        return;
    };
    let site = Site::new();
    let commands = site.path().join("commands");
    let setup = "ip addr add 10.9.0.2/24 dev eth0\n\
                 echo \"pinged: $(ping -c 3 10.9.0.1 | grep -c ' bytes from ')\"\n\
                 echo \"address: $(cat /sys/class/net/eth0/address)\"\n\
                 echo \"queues: $(ls -d /sys/class/net/eth0/queues/tx-* | wc -l)\"\n\
                 echo \"mtu: $(cat /sys/class/net/eth0/mtu)\"\n";
    fs::write(&commands, format!("{setup}{}", guest_commands("10.9.0.1"))).unwrap();
    let devices = format!(
        "--net tap=t0,queues=2,mtu=9000,mac=52:54:00:0a:0b:0c --disk '{},readonly'",
        tools.display()
    );
    let machine = umbra_command(&guest, backend, &devices, &commands);
    let script = format!(
        "{machine} --cpus 2 &\nmachine=$!\n\
         until $busybox ip link show t0 > /dev/null 2>&1; do sleep 0.05; done\n\
         $busybox ip addr add 10.9.0.1/24 dev t0\n\
         $busybox ip link set t0 mtu 9000 up\n\
         {}wait $machine\n{}",
        server_commands(&site),
        server_answer(&site)
    );
    let Some(printed) = or_skip(namespace::run(&script, 340)) else {
        return;
    };
    check(&printed, &site);
    for (word, expected) in [
        ("pinged: ", "3"),
        ("address: ", "52:54:00:0a:0b:0c"),
        ("queues: ", "2"),
        ("mtu: ", "9000"),
    ] {
        assert_eq!(answer(&printed.stdout, word), expected, "{word}");
    }
}

fn a_guest_reaches_the_host_with_no_interface_of_its_own(backend: &str) {
    let (Some(guest), Some(passt)) = (Guest::fetch(LINUX_6_1), or_skip(namespace::passt())) else {
        return;
    };
    let Some(tools) = or_skip(tools::disk()) else {
        return;
    };
    let site = Site::new();
    let commands = site.path().join("commands");
    // passt gives its guest the address of the host, and is the gateway.
    let setup = "echo \"leased: $(ip addr show eth0 | grep -c 'inet 10.8.0.1/24')\"\n";
    fs::write(&commands, format!("{setup}{}", guest_commands("10.8.0.2"))).unwrap();
    let devices = format!(
        "--pci --net 'user,passt={}' --disk '{},readonly'",
        passt.display(),
        tools.display()
    );
    let machine = umbra_command(&guest, backend, &devices, &commands);
    // Something has to be there that passt can take its address from.
    let script = format!(
        "$busybox ip link set lo up\n\
         $busybox ip link add v0 type veth\n\
         $busybox ip addr add 10.8.0.1/24 dev v0\n\
         $busybox ip link set v0 up\n\
         $busybox ip route add default via 10.8.0.2\n\
         {}{machine}\n{}",
        server_commands(&site),
        server_answer(&site)
    );
    let Some(printed) = or_skip(namespace::run(&script, 340)) else {
        return;
    };
    check(&printed, &site);
    assert_eq!(answer(&printed.stdout, "leased: "), "1");
}

fn an_interface_that_is_deleted_is_a_link_that_is_down(backend: &str) {
    let Some(guest) = Guest::fetch(LINUX_6_1) else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    let commands = place.path().join("commands");
    let waits = "ip addr add 10.9.0.2/24 dev eth0\n\
                 until [ \"$(cat /sys/class/net/eth0/carrier)\" = 0 ]; do sleep 0.1; done\n\
                 echo \"carrier: $(cat /sys/class/net/eth0/carrier)\"\n\
                 ping -c 3 -W 1 10.9.0.1 > /dev/null || echo \"alive: yes\"\n\
                 poweroff -f\n";
    fs::write(&commands, waits).unwrap();
    let machine = umbra_command(&guest, backend, "--net tap=t0,id=lan", &commands);
    let script = format!(
        "{machine} &\nmachine=$!\n\
         until $busybox ip link show t0 > /dev/null 2>&1; do sleep 0.05; done\n\
         $busybox ip addr add 10.9.0.1/24 dev t0\n\
         $busybox ip link set t0 up\n\
         until $busybox ping -c 1 -W 1 10.9.0.2 > /dev/null 2>&1; do sleep 0.1; done\n\
         $busybox ip link delete t0\nwait $machine\n"
    );
    let Some(printed) = or_skip(namespace::run(&script, 240)) else {
        return;
    };
    assert_eq!(answer(&printed.stdout, "carrier: "), "0");
    assert_eq!(answer(&printed.stdout, "alive: "), "yes");
    // Once, however many frames are lost, and by its name.
    let told = printed.stderr.trim();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(
        told.contains("lan") && told.contains("lost its link"),
        "{told}"
    );
}

on_each_stock_backend! {
    an_interface_that_is_deleted_is_a_link_that_is_down,
    a_guest_reaches_the_host_by_a_tap_interface,
    a_guest_reaches_the_host_with_no_interface_of_its_own,
}
