//! A disk of a running stock guest that gets another file.

use std::path::Path;
use std::time::{Duration, Instant};

use umbra_vmm::{DiskError, DiskSpec, Spec, VirtioKind};

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::LINUX_6_1;
use crate::support::shell::Shell;

const MIB: usize = 1 << 20;

fn write(path: &Path, byte: u8, len: usize) {
    std::fs::write(path, vec![byte; len]).unwrap();
}

fn wait(shell: &Shell, commands: &str, expected: &str) {
    let begin = Instant::now();
    loop {
        let answer = shell.ask(commands);
        if answer == expected {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{answer}");
    }
}

/// How many bytes of a disk have this value, read past the guest's cache.
fn count(shell: &Shell, byte: &str) -> String {
    let read = "echo 3 > /proc/sys/vm/drop_caches; cat /dev/vda";
    shell.ask(&format!("{read} | tr -dc '{byte}' | wc -c"))
}

fn a_guest_reads_another_file_of_another_size(backend: &str, change: fn(Spec) -> Spec) {
    let folder = tempfile::tempdir().unwrap();
    let [first, second, small] = ["a", "b", "c"].map(|name| folder.path().join(name));
    write(&first, b'a', MIB);
    write(&second, b'b', 3 * MIB);
    write(&small, b'c', MIB / 2);
    let Some(shell) = Shell::boot(backend, LINUX_6_1, "", |spec| {
        let disk = DiskSpec::new(&first);
        change(spec).virtio("disk", VirtioKind::Block(disk))
    }) else {
        return;
    };
    assert_eq!(count(&shell, "a"), MIB.to_string());
    let refused = shell.handle.replace_disk("other", &second).unwrap_err();
    assert!(matches!(refused, DiskError::NoSuchDisk { .. }), "{refused}");
    let refused = shell
        .handle
        .replace_disk("disk", &folder.path().join("missing"));
    assert!(matches!(refused, Err(DiskError::Open(_))), "{refused:?}");

    // Writes that are under way end on the first file, all of them.
    shell.ask("printf done > /w; dd if=/w of=/dev/vda bs=4 seek=5 conv=notrunc,fsync 2>/dev/null");
    shell.handle.replace_disk("disk", &second).unwrap();
    wait(
        &shell,
        "cat /sys/block/vda/size",
        &(3 * MIB / 512).to_string(),
    );
    assert_eq!(count(&shell, "b"), (3 * MIB).to_string());
    assert_eq!(&std::fs::read(&first).unwrap()[20..24], b"done");

    // The same file is looked at again.
    write_more(&second, b'B', MIB);
    shell.handle.replace_disk("disk", &second).unwrap();
    wait(
        &shell,
        "cat /sys/block/vda/size",
        &(4 * MIB / 512).to_string(),
    );
    assert_eq!(count(&shell, "B"), MIB.to_string());

    let paused = shell.handle.pause().unwrap();
    assert!(!paused.already);
    shell.handle.replace_disk("disk", &small).unwrap();
    shell.handle.resume();
    wait(&shell, "cat /sys/block/vda/size", &(MIB / 1024).to_string());
    assert_eq!(count(&shell, "c"), (MIB / 2).to_string());
    shell.ask("dd if=/w of=/dev/vda bs=4 conv=notrunc,fsync 2>/dev/null");
    let complaints = "dmesg | grep -ciE 'vda.*error|virtio.*(error|fail|wrong|broken)'";
    assert_eq!(shell.ask(complaints), "0", "{}", shell.screen.text());
    let handle = shell.handle.clone();
    shell.power_off();
    assert_eq!(&std::fs::read(&small).unwrap()[..5], b"donec");
    assert_eq!(std::fs::read(&second).unwrap()[..5], *b"bbbbb");
    let ended = handle.replace_disk("disk", &second);
    assert!(matches!(ended, Err(DiskError::Ended)), "{ended:?}");
}

fn write_more(path: &Path, byte: u8, len: usize) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(&vec![byte; len]).unwrap();
}

fn a_disk_gets_another_file(backend: &str) {
    a_guest_reads_another_file_of_another_size(backend, |spec| spec);
}

fn a_disk_on_a_pci_bus_gets_another_file(backend: &str) {
    a_guest_reads_another_file_of_another_size(backend, |spec| spec.pci().cpus(2));
}

fn a_disk_that_is_read_stays_one(backend: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["a", "b"].map(|name| folder.path().join(name));
    write(&first, b'a', MIB);
    write(&second, b'b', MIB);
    let Some(shell) = Shell::boot(backend, LINUX_6_1, "", |spec| {
        let mut disk = DiskSpec::new(&first);
        disk.read_only = true;
        spec.virtio("disk", VirtioKind::Block(disk))
    }) else {
        return;
    };
    shell.handle.replace_disk("disk", &second).unwrap();
    assert_eq!(count(&shell, "b"), MIB.to_string());
    // Read by others, too, the file that is there can be opened once more.
    shell.handle.replace_disk("disk", &second).unwrap();
    assert_eq!(shell.ask("cat /sys/block/vda/ro"), "1");
    shell.power_off();
}

/// Two processors read by a queue each, past the guest's cache, while files of the same bytes take turns.
fn files_take_turns_under_two_busy_queues(backend: &str) {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| folder.path().join(name));
    files.iter().for_each(|file| write(file, b'x', 4 * MIB));
    let Some(shell) = Shell::boot(backend, LINUX_6_1, "", |spec| {
        let mut disk = DiskSpec::new(&files[0]);
        disk.queues = 2;
        spec.cpus(2).virtio("disk", VirtioKind::Block(disk))
    }) else {
        return;
    };
    let read = "while ! [ -e /stop ]; do dd if=/dev/vda bs=64k iflag=direct 2>/dev/null | \
                tr -d x | wc -c; done";
    for cpu in ["1", "2"] {
        let reader = format!("taskset {cpu} sh -c '{read}' > /out{cpu} 2>&1 &");
        shell.ask(&format!("{reader} echo"));
    }
    for turn in 1..=200 {
        shell.handle.replace_disk("disk", &files[turn % 2]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    shell.ask("touch /stop; sleep 1");
    let answers = shell.ask("cat /out1 /out2 | sort | uniq -c");
    let words: Vec<_> = answers.split_whitespace().collect();
    assert!(words.len() == 2 && words[1] == "0", "{answers}");
    assert!(words[0].parse::<u32>().unwrap() >= 4, "{answers}");
    assert_eq!(shell.ask("dmesg | grep -ciE 'vda.*error|hung'"), "0");
    let done = shell.handle.disk("disk").unwrap().statistics();
    assert_eq!((done.errors, done.refused), (0, 0), "{done:?}");
    shell.power_off();
}

on_each_stock_backend! {
    files_take_turns_under_two_busy_queues,
    a_disk_gets_another_file,
    a_disk_on_a_pci_bus_gets_another_file,
    a_disk_that_is_read_stays_one,
}
