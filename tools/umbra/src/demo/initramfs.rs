//! The root file system of the demonstration: one static busybox and a script.

use super::cpio::Archive;

/// Runs first. `exec`s nothing: when the shell ends the machine is switched off.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /bin /sbin /usr/bin /usr/sbin /proc /sys /dev /tmp /root
/bin/busybox --install -s
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
echo
echo "Linux $(uname -r), $(nproc) processor(s), $(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo) MiB."
echo "This is a shell inside the machine; 'poweroff -f' switches it off."
echo
cd /root
setsid cttyhack sh
poweroff -f
"#;

/// Makes the archive.
pub fn archive(busybox: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive
        .directory("bin")
        .directory("dev")
        .character_device("dev/console", 5, 1)
        .character_device("dev/null", 1, 3)
        .executable("bin/busybox", busybox)
        .symlink("bin/sh", "busybox")
        .executable("init", INIT.as_bytes());
    archive.finish()
}
