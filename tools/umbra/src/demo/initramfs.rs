//! The root file system of the demonstration: one static busybox, the modules of virtio devices, and a
//! script.

use std::collections::BTreeSet;
use std::path::Path;

use super::cpio::Archive;
use super::modules::Modules;

/// Runs first. `exec`s nothing: when the shell ends the machine is switched off.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /proc /sys /dev /tmp /root
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
# Memory that comes is used at once, and by programs, so that it can be given back.
echo online_movable 2>/dev/null > /sys/devices/system/memory/auto_online_blocks
# Modules for what is there: transports first, then the devices behind them, then what these find.
cat /sys/bus/acpi/devices/*/modalias /sys/bus/pci/devices/*/modalias 2>/dev/null |
  sort -u | xargs -r modprobe -abq
cat /sys/bus/virtio/devices/*/modalias 2>/dev/null | sort -u | xargs -r modprobe -abq
cat /sys/bus/nd/devices/*/modalias 2>/dev/null | sort -u | xargs -r modprobe -abq
ip link set lo up
# Addresses for what can be asked for some; who is not answered goes on asking behind the shell's back.
for interface in /sys/class/net/e*; do
  [ -e "$interface" ] || continue
  interface=${interface##*/}
  ip link set "$interface" up
  udhcpc -i "$interface" -s /bin/lease -O mtu -t 2 -T 1 -A 5 -b >/dev/null 2>&1
done
echo
echo "Linux $(uname -r), $(nproc) processor(s), $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB."
echo "This is a shell inside the machine; 'poweroff -f' switches it off."
echo
cd /root
setsid cttyhack sh
poweroff -f
"#;

/// What is done with an address that was given (udhcpc calls it).
const LEASE: &str = r#"#!/bin/busybox sh
case "$1" in
  bound | renew)
    ip addr flush dev "$interface"
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do
      # passt's gateway may be outside the network of the address.
      ip route replace "$gateway" dev "$interface"
      ip route replace default via "$gateway"
      break
    done
    : > /etc/resolv.conf
    for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done
    ;;
  deconfig) ip addr flush dev "$interface" ;;
esac
"#;

/// Makes the archive.
pub fn archive(busybox: &[u8], modules: &Modules) -> Vec<u8> {
    let mut archive = Archive::default();
    archive
        .directory("bin")
        .directory("dev")
        .character_device("dev/console", 5, 1)
        .character_device("dev/null", 1, 3)
        .executable("bin/busybox", busybox)
        .symlink("bin/sh", "busybox")
        .executable("bin/lease", LEASE.as_bytes())
        .directory("etc")
        .executable("init", INIT.as_bytes());
    add(&mut archive, modules);
    archive.finish()
}

fn add(archive: &mut Archive, modules: &Modules) {
    if modules.modules.is_empty() {
        return;
    }
    let root = format!("lib/modules/{}", modules.release);
    let mut directories = BTreeSet::new();
    let mut files = vec![
        ("modules.dep", modules.dependencies().into_bytes()),
        ("modules.alias", modules.aliases().into_bytes()),
    ];
    for module in modules.modules.values() {
        files.push((&module.path, module.content.clone()));
    }
    for (name, _) in &files {
        let path = Path::new(&root).join(name);
        let above = path.ancestors().skip(1);
        directories.extend(above.map(|path| path.to_string_lossy().into_owned()));
    }
    for directory in directories.iter().filter(|directory| !directory.is_empty()) {
        archive.directory(directory);
    }
    for (name, content) in files {
        archive.file(&format!("{root}/{name}"), &content);
    }
}
