//! Disks that a stock guest fills, made and checked by QEMU's and the host's tools.
//!
//! By this module's name `cargo xtask test` leaves them out where there are no such tools.

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{LINUX_6_1, or_skip};
use crate::support::stock::{answer, run};
use crate::support::tools;

/// Has fio write both disks at random places, and read what it wrote.
const VERIFY: &str = r#"
for disk in vda vdb; do
  in_tools fio --name=v --filename=/dev/$disk --ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite \
    --bsrange=512-64k --size=6M --verify=crc32c --verify_fatal=1 --norandommap=0 --output=/tmp/fio-$disk \
    --eta=never --verify_state_save=0
  echo "$disk-verified: $? $(grep -c 'err= 0' /tmp/fio-$disk)"
done
"#;

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

fn keeps_what_is_written(backend: &str, engine: &str, more: &[&str]) {
    let Some(tools) = or_skip(tools::disk()) else {
        return;
    };
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
        format!("{},readonly", tools.display()),
    ];
    let mut arguments = [&["--cpus", "2"], more].concat();
    for disk in &disks {
        arguments.extend(["--disk", disk]);
    }
    let commands = format!("tools=vdd\n{}{VERIFY}{DISKS}", tools::MOUNT);
    let Some(ended) = run(backend, LINUX_6_1, &arguments, &commands) else {
        return;
    };
    for (word, expected) in [
        ("serial: ", "umbra-1"),
        ("read-only: ", "1"),
        ("vda-verified: ", "0 1"),
        ("vdb-verified: ", "0 1"),
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
    keeps_what_is_written(backend, "io_uring", &[]);
}

fn linux_6_1_keeps_files_on_pci_disks_that_threads_serve(backend: &str) {
    keeps_what_is_written(backend, "threads", &["--pci"]);
}

on_each_stock_backend! {
    linux_6_1_keeps_files_on_disks,
    linux_6_1_keeps_files_on_pci_disks_that_threads_serve,
}
