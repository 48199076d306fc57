//! A stock guest that lends memory to the host and takes it back, seen from both sides: what the process has
//! resident, and what the guest says.

use std::time::{Duration, Instant};

use umbra_vmm::{BalloonControl, BalloonSpec, BalloonStatistics, VirtioKind};

use crate::support::backend::on_each_stock_backend;
use crate::support::guest::LINUX_6_1;
use crate::support::resident::resident;
use crate::support::shell::Shell;
use crate::support::stock::{answer, run};

const MIB: u64 = 1 << 20;
const MEMORY: u64 = 256 * MIB;
/// What the guest writes to have memory that it has used.
const FILES: u64 = 100 * MIB;

const PLAIN: BalloonSpec = BalloonSpec {
    size: 0,
    deflate_on_oom: false,
    free_page_reporting: false,
    free_page_hinting: false,
    polling: None,
};

struct Lender {
    shell: Shell,
    balloon: BalloonControl,
}

impl Lender {
    fn boot(backend: &str, balloon: BalloonSpec, more: &str) -> Option<Self> {
        let shell = Shell::boot(backend, LINUX_6_1, more, |spec| {
            let kind = VirtioKind::Balloon(balloon);
            spec.memory(MEMORY).virtio("lender", kind)
        })?;
        let balloon = shell.handle.balloon("lender").unwrap();
        assert!(shell.handle.balloon("other").is_none());
        Some(Self { shell, balloon })
    }

    /// Has the guest write files into memory; what it has written is what it reads.
    fn fill(&self) {
        // Of some only: a guest that is interpreted takes its time for sums.
        let sums = self.shell.ask(
            "mkdir -p /m; mount -t tmpfs -o size=200m m /m; \
             dd if=/dev/urandom of=/m/1 bs=1M count=4 2>/dev/null; \
             for n in $(seq 2 25); do cp /m/1 /m/$n || break; done; \
             du -sm /m | cut -f1; cat /m/1 /m/13 /m/25 | md5sum; cat /m/1 /m/1 /m/1 | md5sum",
        );
        let words: Vec<_> = sums.split_whitespace().collect();
        assert_eq!(words[0], (FILES / MIB).to_string(), "{sums}");
        assert_eq!(words[1], words[3], "{sums}");
    }

    fn forget(&self) {
        self.shell.ask("umount /m");
    }

    /// Waits until something is so.
    fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{what}: resident {}, actual {}, {:?}, the guest says {}",
                resident(),
                self.balloon.actual(),
                self.balloon.counters(),
                self.shell.screen.text()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn statistics(&self, good: impl Fn(&BalloonStatistics) -> bool) -> BalloonStatistics {
        let found = || self.balloon.statistics().filter(&good);
        self.wait("statistics", || found().is_some());
        found().unwrap()
    }

    fn finish(self) {
        let complaints =
            "dmesg | grep -ciE 'virtio.*(error|fail|wrong|broken)|out of memory|oom-kill'";
        assert_eq!(self.shell.ask(complaints), "0");
        self.shell.power_off();
    }
}

fn the_host_has_what_the_guest_lends_until_it_takes_it_back(backend: &str) {
    let Some(guest) = Lender::boot(backend, PLAIN, "") else {
        return;
    };
    guest.fill();
    guest.forget();
    let used = resident();
    assert!(used > FILES, "{used}");
    let total = |guest: &Lender| -> u64 {
        let kib = guest
            .shell
            .ask("awk '/MemTotal/ { print $2 }' /proc/meminfo");
        kib.parse::<u64>().unwrap() << 10
    };
    let before = total(&guest);
    guest.balloon.set_target(160 * MIB).unwrap();
    guest.wait("inflated", || guest.balloon.actual() == 160 * MIB);
    let lent = resident();
    assert!(lent + 90 * MIB < used, "{lent} of {used} are resident");
    assert_eq!(before - total(&guest), 160 * MIB);
    let counters = guest.balloon.counters();
    assert_eq!((counters.freed, counters.ignored), (160 * MIB, 0));

    guest.balloon.set_target(0).unwrap();
    guest.wait("deflated", || guest.balloon.actual() == 0);
    assert_eq!(total(&guest), before);
    guest.fill();
    assert!(resident() > lent + 90 * MIB);
    guest.finish();
}

fn the_guest_says_what_its_memory_is_used_for(backend: &str) {
    let Some(guest) = Lender::boot(backend, PLAIN, "") else {
        return;
    };
    guest.balloon.set_polling(Some(Duration::from_millis(200)));
    let before = guest.statistics(|heard| heard.free.is_some());
    assert!(before.total.unwrap() < MEMORY && before.free < before.total);
    assert!(before.available < before.total && before.minor_faults > Some(0));
    guest.fill();
    let least = before.free.unwrap() - 90 * MIB;
    let after = guest.statistics(|heard| heard.free.unwrap() < least);
    assert!(after.caches > before.caches && after.minor_faults > before.minor_faults);

    guest.balloon.set_polling(None);
    std::thread::sleep(Duration::from_millis(500));
    let last = guest.balloon.statistics().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(guest.balloon.statistics().unwrap().at, last.at);
    // The last buffer was filled before: the next one is asked for by this, and the one after it is not.
    guest.balloon.request_statistics();
    guest.statistics(|heard| heard.at > last.at);
    guest.finish();
}

fn the_host_has_what_the_guest_does_not_use(backend: &str, more: &str) {
    let reporting = BalloonSpec {
        free_page_reporting: true,
        ..PLAIN
    };
    let Some(guest) = Lender::boot(backend, reporting, more) else {
        return;
    };
    guest.fill();
    let used = resident();
    guest.forget();
    // Linux waits two seconds before it reports what was freed, and reports whole 2 MiB only: how much of what
    // the files had that is depends on who took memory between them.
    guest.wait("reported", || resident() + FILES / 2 < used);
    assert_eq!(guest.balloon.actual(), 0);
    guest.fill();
    guest.finish();
}

fn free_pages_are_the_hosts_without_a_target(backend: &str) {
    the_host_has_what_the_guest_does_not_use(backend, "");
}

/// Free pages are zeros there, which the driver calls poison, and relies on.
fn free_pages_of_a_guest_that_clears_them_are_the_hosts_too(backend: &str) {
    the_host_has_what_the_guest_does_not_use(backend, "init_on_free=1");
}

fn free_pages_are_the_hosts_when_it_asks(backend: &str) {
    let hinting = BalloonSpec {
        free_page_hinting: true,
        polling: Some(Duration::from_millis(200)),
        ..PLAIN
    };
    let Some(guest) = Lender::boot(backend, hinting, "") else {
        return;
    };
    guest.statistics(|heard| heard.free.is_some());
    guest.fill();
    guest.forget();
    let used = resident();
    std::thread::sleep(Duration::from_secs(1));
    assert!(resident() + FILES / 4 > used, "nobody has asked yet");

    // Until it is stopped the guest keeps its free pages for the run.
    assert_eq!(guest.balloon.start_hinting(false), Ok(2));
    let heard = || guest.balloon.hinting().unwrap().guest_cmd;
    guest.wait("all hints", || heard() == Some(0));
    let lent = resident();
    assert!(lent + FILES / 2 < used, "{lent} of {used} are resident");
    assert!(guest.balloon.counters().hinted > FILES / 2);
    assert_eq!(guest.balloon.hinting().unwrap().host_cmd, 2);
    guest.balloon.stop_hinting().unwrap();
    guest.fill();
    guest.forget();

    let used = resident();
    assert_eq!(guest.balloon.start_hinting(true), Ok(3));
    guest.wait("the end", || guest.balloon.hinting().unwrap().host_cmd == 1);
    assert!(resident() + FILES / 2 < used);
    guest.fill();
    guest.finish();
}

fn a_guest_that_runs_out_of_memory_takes_some_back(backend: &str) {
    let yielding = BalloonSpec {
        deflate_on_oom: true,
        ..PLAIN
    };
    let Some(guest) = Lender::boot(backend, yielding, "") else {
        return;
    };
    guest.balloon.set_target(190 * MIB).unwrap();
    guest.wait("inflated", || guest.balloon.actual() > 150 * MIB);
    // What it cannot give now it does not try to give later.
    guest.balloon.set_target(guest.balloon.actual()).unwrap();
    let lent = guest.balloon.actual();
    guest.fill();
    let left = guest.balloon.actual();
    assert!(left + 20 * MIB < lent, "{left} of {lent}");
    assert!(guest.balloon.counters().deflated >= lent - left);
    guest.finish();
}

fn the_command_gives_a_guest_a_balloon(backend: &str) {
    let commands = r#"
grep -q . /sys/bus/virtio/drivers/virtio_balloon/virtio*/status || echo "no driver"
total() { awk '/MemTotal/ { print $2 }' /proc/meminfo; }
until [ $(total) -lt 500000 ]; do sleep 0.1; done
before=$(total)
until [ $(total) = $before ]; do before=$(total); sleep 1; done
echo "features: $(cat /sys/bus/virtio/devices/virtio0/features | cut -c1-6)"
echo "complaints: $(dmesg | grep -ciE 'virtio.*(error|fail|wrong|broken)')"
"#;
    let arguments = ["--balloon", "size=64M,deflate-on-oom=off"];
    let Some(ended) = run(backend, LINUX_6_1, &arguments, commands) else {
        return;
    };
    // STATS_VQ and PAGE_REPORTING; there is no poison.
    assert_eq!(answer(&ended, "features: "), "010001", "{ended}");
    assert_eq!(answer(&ended, "complaints: "), "0", "{ended}");
}

on_each_stock_backend! {
    the_host_has_what_the_guest_lends_until_it_takes_it_back,
    the_guest_says_what_its_memory_is_used_for,
    free_pages_are_the_hosts_without_a_target,
    free_pages_of_a_guest_that_clears_them_are_the_hosts_too,
    free_pages_are_the_hosts_when_it_asks,
    a_guest_that_runs_out_of_memory_takes_some_back,
    the_command_gives_a_guest_a_balloon,
}
