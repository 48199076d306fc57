//! A stock guest that takes memory in blocks while it runs, uses it, and gives it back.

use std::time::{Duration, Instant};

use umbra_vmm::{MemControl, MemSpec, RemoveError, Spec, VirtioKind, VirtioSpec};

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::LINUX_6_1;
use crate::support::resident::resident;
use crate::support::shell::Shell;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const MEMORY: u64 = 256 * MIB;
/// What the guest writes: more than it has without the device.
const FILES: u64 = 320 * MIB;

struct Grown {
    shell: Shell,
    memory: MemControl,
}

impl Grown {
    fn boot(backend: &str, spec: MemSpec, change: impl FnOnce(Spec) -> Spec) -> Option<Self> {
        let shell = Shell::boot(backend, LINUX_6_1, "", |all| {
            change(all.memory(MEMORY).virtio("m", VirtioKind::Mem(spec)))
        })?;
        let memory = shell.handle.memory("m").unwrap();
        assert!(shell.handle.memory("other").is_none() && shell.handle.balloon("m").is_none());
        Some(Self { shell, memory })
    }

    /// Has the guest take or give back until it has so much.
    fn resize(&self, bytes: u64) {
        self.memory.request(bytes).unwrap();
        self.wait(bytes);
    }

    fn wait(&self, bytes: u64) {
        let begin = Instant::now();
        while self.memory.plugged() != bytes {
            assert!(
                begin.elapsed() < Duration::from_secs(100),
                "{} of {bytes} are plugged; the guest says {}",
                self.memory.plugged(),
                self.shell.ask("dmesg | tail -n 30")
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What the guest says it has.
    fn total(&self) -> u64 {
        let kib = self
            .shell
            .ask("awk '/MemTotal/ { print $2 }' /proc/meminfo");
        kib.parse::<u64>().unwrap() << 10
    }

    /// In how many blocks the guest's kernel has memory.
    fn blocks(&self) -> String {
        self.shell
            .ask("ls -d /sys/devices/system/memory/memory* | wc -l")
    }

    /// Has the guest write files into memory; what it has written is what it reads.
    fn fill(&self) {
        let sums = self.shell.ask(
            "mkdir -p /m; mount -t tmpfs -o size=900m m /m; \
             dd if=/dev/urandom of=/m/1 bs=1M count=2 2>/dev/null; \
             for n in $(seq 2 160); do cp /m/1 /m/$n || break; done; \
             du -sm /m | cut -f1; cat /m/1 /m/80 /m/160 | md5sum; cat /m/1 /m/1 /m/1 | md5sum",
        );
        let words: Vec<_> = sums.split_whitespace().collect();
        assert_eq!(words[0], (FILES / MIB).to_string(), "{sums}");
        assert_eq!(words[1], words[3], "{sums}");
    }

    fn finish(self) {
        let complaints =
            "dmesg | grep -ciE 'virtio.*(error|fail|wrong|broken)|out of memory|oom-kill'";
        assert_eq!(self.shell.ask(complaints), "0");
        self.shell.power_off();
    }
}

fn a_guest_grows_by_a_gib_and_shrinks_again(
    backend: &str,
    times: u32,
    change: impl FnOnce(Spec) -> Spec,
) {
    let Some(guest) = Grown::boot(backend, MemSpec::new(2 * GIB), change) else {
        return;
    };
    let before = guest.total();
    for _ in 0..times {
        guest.resize(GIB);
        assert_eq!(guest.total() - before, GIB);
        guest.fill();
        let used = resident();
        assert!(used > FILES, "{used}");

        guest.shell.ask("umount /m");
        guest.resize(0);
        assert_eq!(guest.total(), before);
        // The host has it a moment after the guest has not.
        let begin = Instant::now();
        while resident() + FILES - MEMORY > used {
            assert!(begin.elapsed() < Duration::from_secs(10), "{}", resident());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    guest.finish();
}

fn it_grows_and_shrinks_behind_memory(backend: &str) {
    a_guest_grows_by_a_gib_and_shrinks_again(backend, 2, |spec| spec);
}

fn it_grows_and_shrinks_on_pci(backend: &str) {
    a_guest_grows_by_a_gib_and_shrinks_again(backend, 1, Spec::pci);
}

fn what_is_in_use_is_given_back_when_it_is_moved(backend: &str) {
    let spec = MemSpec {
        size: 512 * MIB,
        ..MemSpec::new(GIB)
    };
    let Some(guest) = Grown::boot(backend, spec, |spec| spec) else {
        return;
    };
    guest.wait(512 * MIB);
    guest.fill();
    // No room for all of it elsewhere: the guest keeps what it needs.
    guest.memory.request(0).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let kept = guest.memory.plugged();
    assert!(kept > 0 && kept <= 512 * MIB, "{kept}");
    let sums = guest.shell.ask("cat /m/7 | md5sum; cat /m/160 | md5sum");
    let words: Vec<_> = sums.split_whitespace().collect();
    assert_eq!(words[0], words[2], "{sums}");
    guest.shell.ask("umount /m");
    guest.wait(0);
    guest.finish();
}

fn memory_is_not_taken_from_a_guest_that_has_it(backend: &str) {
    let Some(guest) = Grown::boot(backend, MemSpec::new(GIB), Spec::pci) else {
        return;
    };
    let blocks = guest.blocks();
    guest.resize(128 * MIB);
    let handle = &guest.shell.handle;
    let refused = handle.remove_device("m").unwrap_err();
    assert!(matches!(refused, RemoveError::Memory { bytes, .. } if bytes == 128 * MIB));
    assert!(refused.to_string().contains("request 0 bytes"), "{refused}");
    guest.resize(0);
    // Linux's driver takes what it has given back out of the kernel only then, for which it needs the lock that
    // a removal holds while it waits for the driver: asked in between, the guest never lets the device go.
    let begin = Instant::now();
    while guest.blocks() != blocks {
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
    handle.remove_device("m").unwrap();
    assert!(handle.wait_removed("m", Duration::from_secs(60)));
    assert_eq!(guest.shell.ask("ls /sys/bus/virtio/devices | wc -l"), "0");
    // Its place is free for the next one.
    let again = VirtioSpec {
        id: "m".into(),
        kind: VirtioKind::Mem(MemSpec::new(GIB)),
    };
    handle.add_device(&again).unwrap();
    let memory = handle.memory("m").unwrap();
    assert_eq!(memory.range(), guest.memory.range());
    memory.request(128 * MIB).unwrap();
    let next = Grown { memory, ..guest };
    next.wait(128 * MIB);
    next.finish();
}

on_each_stock_backend! {
    memory_is_not_taken_from_a_guest_that_has_it,
    it_grows_and_shrinks_behind_memory,
    it_grows_and_shrinks_on_pci,
    what_is_in_use_is_given_back_when_it_is_moved,
}
