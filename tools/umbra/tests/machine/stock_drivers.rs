//! Virtio devices, driven by a stock Debian kernel with the modules of its own package.

use std::time::Duration;

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{Guest, LINUX_6_1, LINUX_6_12, LINUX_686, command_line, or_skip};
use crate::support::{Ended, Input, Umbra};

const LIMIT: Duration = Duration::from_secs(240);

/// Boots a kernel with more arguments, has the shell of its initramfs run commands, and ends.
fn run(backend: &str, package: &str, more: &[&str], commands: &str) -> Option<Ended> {
    let guest = Guest::fetch(package)?;
    let mut arguments = vec![
        "--kernel",
        guest.kernel(),
        "--initrd",
        guest.initrd(),
        "--cmdline",
        command_line(package),
        "--backend",
        backend,
    ];
    arguments.extend(more);
    let input = format!("{commands}\npoweroff -f\n");
    let ended = Umbra::run(&arguments, Input::Pipe(&input), LIMIT);
    assert_eq!(ended.status, Some(0), "{ended}");
    assert_eq!(ended.stderr, "", "{ended}");
    Some(ended)
}

/// What a command printed behind a word that no terminal's echo of the command begins a line with.
fn answer<'a>(ended: &'a Ended, word: &str) -> &'a str {
    let line = ended
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("no line {word:?}: {ended}"))
        .trim()
}

/// Bytes from `/dev/hwrng`, twice; the interrupts of the device; and that nothing is wrong.
const ENTROPY: &str = r#"
echo "source: $(cat /sys/class/misc/hw_random/rng_current)"
for n in 1 2; do echo "sum$n: $(dd if=/dev/hwrng bs=4096 count=64 iflag=fullblock 2>/dev/null | sha256sum)"; done
echo "size: $(dd if=/dev/hwrng bs=65536 count=4 iflag=fullblock 2>/dev/null | wc -c)"
echo "interrupts: $(awk '/virtio/ { n += $2 } END { print n + 0 }' /proc/interrupts)"
echo "complaints: $(dmesg | grep -ciE 'virtio.*(error|fail|wrong|broken)')"
"#;

fn gives_entropy(backend: &str, package: &str) {
    let Some(ended) = run(backend, package, &["--rng"], ENTROPY) else {
        return;
    };
    assert_eq!(answer(&ended, "source: "), "virtio_rng.0", "{ended}");
    let (first, second) = (answer(&ended, "sum1: "), answer(&ended, "sum2: "));
    assert!(first != second && first.len() == second.len(), "{ended}");
    assert_eq!(answer(&ended, "size: "), "262144");
    let interrupts: u64 = answer(&ended, "interrupts: ").parse().unwrap();
    assert!(interrupts >= 8, "{ended}");
    assert_eq!(answer(&ended, "complaints: "), "0", "{ended}");
}

fn linux_6_1_takes_entropy(backend: &str) {
    gives_entropy(backend, LINUX_6_1);
}

fn linux_6_12_takes_entropy(backend: &str) {
    gives_entropy(backend, LINUX_6_12);
}

fn linux_686_takes_entropy(backend: &str) {
    gives_entropy(backend, LINUX_686);
}

/// Makes a file system on each disk, fills it, and reads it again after it was unmounted; then trims one.
const DISKS: &str = r#"
echo "serial: $(cat /sys/block/vda/serial)"
echo "read-only: $(cat /sys/block/vdc/ro)"
mkdir /m
for n in 1 2 3 4 5 6 7 8 9 10; do cat /bin/busybox /proc/kallsyms | head -c 2345678; done > /tmp/much
for disk in vda vdb; do
  mke2fs -F -b 4096 /dev/$disk > /dev/null 2>&1 && mount /dev/$disk /m
  cp /tmp/much /bin/busybox /m; umount /m
  echo 3 > /proc/sys/vm/drop_caches
  mount /dev/$disk /m
  cmp /m/much /tmp/much && cmp /m/busybox /bin/busybox && echo "$disk-same: $(wc -c < /m/much)"
  umount /m
done
dd if=/dev/zero of=/dev/vdc bs=512 count=1 2>/dev/null || echo "refused: yes"
echo "old: $(dd if=/dev/vdc bs=512 count=1 2>/dev/null)"
mount /dev/vda /m && rm /m/much && sync && fstrim /m && echo "trimmed: yes"; umount /m
echo "complaints: $(dmesg | grep -ciE 'virtio.*(error|fail|wrong|broken)|I/O error')"
"#;

fn keeps_what_is_written(backend: &str, engine: &str) {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
    let (raw, base, over, fixed) = (path("raw"), path("base"), path("over"), path("fixed"));
    std::fs::File::create(&raw)
        .and_then(|file| file.set_len(96 << 20))
        .unwrap();
    std::fs::write(&fixed, format!("{:512}", "as it was")).unwrap();
    let qemu_img = |arguments: &[&str]| {
        let output = std::process::Command::new("qemu-img")
            .args(arguments)
            .output();
        let output =
            output.map_err(|error| anyhow::anyhow!("qemu-img (package qemu-utils): {error}"))?;
        assert!(
            output.status.success(),
            "qemu-img {arguments:?}: {output:?}"
        );
        anyhow::Ok(())
    };
    let made = qemu_img(&["create", "-q", "-f", "qcow2", &base, "96M"]).and_then(|()| {
        qemu_img(&[
            "create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &over,
        ])
    });
    let Some(()) = or_skip(made) else {
        return;
    };
    let disks = [
        format!("{raw},serial=umbra-1,queues=2,engine={engine}"),
        format!("{over},format=qcow2,backing"),
        format!("{fixed},readonly"),
    ];
    let mut arguments = vec!["--cpus", "2"];
    for disk in &disks {
        arguments.extend(["--disk", disk]);
    }
    let Some(ended) = run(backend, LINUX_6_1, &arguments, DISKS) else {
        return;
    };
    for (word, expected) in [
        ("serial: ", "umbra-1"),
        ("read-only: ", "1"),
        ("vda-same: ", "23456780"),
        ("vdb-same: ", "23456780"),
        ("refused: ", "yes"),
        ("old: ", "as it was"),
        ("trimmed: ", "yes"),
    ] {
        assert_eq!(answer(&ended, word), expected, "{word}{ended}");
    }
    let check = std::process::Command::new("/sbin/e2fsck")
        .args(["-fn", &raw])
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    qemu_img(&["check", "-q", &over]).unwrap();
    let blocks = |path: &str| {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).unwrap().blocks() * 512
    };
    assert!(blocks(&raw) < 8 << 20, "what was trimmed takes no room");
    assert!(blocks(&base) < 1 << 20, "a backing file is not written");
}

fn linux_6_1_keeps_files_on_disks(backend: &str) {
    keeps_what_is_written(backend, "io_uring");
}

fn linux_6_1_keeps_files_on_disks_that_threads_serve(backend: &str) {
    keeps_what_is_written(backend, "threads");
}

on_each_stock_backend! {
    linux_6_1_keeps_files_on_disks,
    linux_6_1_keeps_files_on_disks_that_threads_serve,
    linux_6_1_takes_entropy,
    linux_6_12_takes_entropy,
    linux_686_takes_entropy,
}
