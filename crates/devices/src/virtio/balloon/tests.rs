//! A driver of the balloon.

use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use umbra_slots::{Backing, Gpa};
use umbra_virtio::Transport;
use umbra_virtio::testing::{Driver, NEXT, RAM, RINGS, ROM, WRITE};

use super::*;

/// Queues by their numbers.
const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
const STATISTICS: u32 = 2;
/// Where Linux has it, and where the specification does.
const REPORTING: [u32; 2] = [3, 4];

/// Page numbers, and statistics.
const BUFFER: u64 = 0x8_0000;
/// The first of the pages that are lent.
const LENT: u64 = 0xa_0000;

struct Bench {
    driver: Driver,
    control: BalloonControl,
}

fn options() -> BalloonOptions {
    BalloonOptions {
        name: "balloon".into(),
        target: 0,
        deflate_on_oom: false,
        free_page_reporting: true,
        free_page_hinting: false,
        polling: None,
    }
}

impl Bench {
    fn new(options: BalloonOptions) -> Self {
        let (device, control) = Balloon::new(options).unwrap();
        Self {
            driver: Driver::new(Box::new(device), 8),
            control,
        }
    }

    /// A balloon that is active, and memory that is full of ones from [`LENT`] on.
    fn started(features: Features) -> Self {
        let mut bench = Self::new(options());
        bench.driver.start(features);
        bench.fill();
        bench
    }

    fn fill(&self) {
        self.driver
            .memory
            .put(LENT, &vec![1; (RAM - LENT) as usize]);
    }

    /// Offers a chain of one buffer, and waits until it is used.
    fn send(&mut self, queue: u32, at: u64, len: u32, flags: u16) {
        let used = self.driver.used_in(queue);
        self.offer(queue, at, len, flags);
        self.driver
            .wait(|d| d.used_in(queue) == used.wrapping_add(1));
    }

    fn offer(&mut self, queue: u32, at: u64, len: u32, flags: u16) {
        let place = RINGS[0] + 0x1_0000 * u64::from(queue);
        self.driver.describe_at(place, (at, len, flags, 0));
        self.notify(queue);
    }

    fn notify(&mut self, queue: u32) {
        self.driver.offer_in(queue, 0);
        self.driver.write(0x50, queue);
    }

    /// Lends pages.
    fn inflate(&mut self, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        self.driver.memory.put(BUFFER, &bytes);
        self.send(INFLATE, BUFFER, bytes.len() as u32, 0);
    }

    /// The pages from [`LENT`] on that read as zeros.
    fn empty(&self) -> Vec<u64> {
        let pages = (LENT >> 12)..(RAM >> 12);
        let is_empty = |page: &u64| {
            let bytes: [u8; 0x1000] = self.driver.memory.get(page << 12);
            bytes == [0; 0x1000]
        };
        pages.filter(is_empty).collect()
    }

    /// Bytes that the host holds for the RAM.
    fn held(&self) -> u64 {
        let map = self.driver.memory.space.load();
        let slot = map.slot_at(Gpa(0)).unwrap();
        let Backing::Ram { region, .. } = slot.backing() else {
            panic!("no RAM at 0")
        };
        region.file().metadata().unwrap().blocks() * 512
    }
}

#[test]
fn features_and_queues_are_those_of_its_options() {
    let with = |deflate_on_oom, free_page_reporting| {
        let (device, _) = Balloon::new(BalloonOptions {
            deflate_on_oom,
            free_page_reporting,
            ..options()
        })
        .unwrap();
        (device.features(), device.queue_sizes().len())
    };
    let hinting = |free_page_reporting| {
        let (device, _) = Balloon::new(BalloonOptions {
            free_page_reporting,
            free_page_hinting: true,
            ..options()
        })
        .unwrap();
        (device.features(), device.queue_sizes().len())
    };
    let hints = Features::RINGS
        .with(Features::bit(1))
        .with(Features::bit(3));
    assert_eq!(hinting(false), (hints.with(Features::bit(4)), 4));
    let both = hints.with(Features::bit(4)).with(Features::bit(5));
    assert_eq!(hinting(true), (both, 5));
    let plain = Features::RINGS.with(Features::bit(1));
    let reporting = Features::bit(4).with(Features::bit(5));
    assert_eq!(with(false, false), (plain, 3));
    assert_eq!(with(true, false), (plain.with(Features::bit(2)), 3));
    assert_eq!(with(false, true), (plain.with(reporting), 5));
    assert_eq!(Bench::new(options()).driver.read(0x08), 5);
}

#[test]
fn queues_have_the_numbers_of_the_specification_and_of_linux() {
    use work::{Role, role};
    let (stats, reports) = (feature::STATS_VQ, feature::PAGE_REPORTING);
    let (both, reporting) = (stats.with(reports), Some(Role::Reporting));
    let table = [
        (Features::NONE, [None, None, None]),
        (stats, [Some(Role::Statistics), None, None]),
        (both, [Some(Role::Statistics), reporting, reporting]),
        (reports, [reporting; 3]),
        (
            both.with(feature::FREE_PAGE_HINT),
            [Some(Role::Statistics), Some(Role::Hinting), reporting],
        ),
        (
            stats.with(feature::FREE_PAGE_HINT),
            [Some(Role::Statistics), Some(Role::Hinting), None],
        ),
        (
            reports.with(feature::FREE_PAGE_HINT),
            [None, Some(Role::Hinting), reporting],
        ),
    ];
    for (features, expected) in table {
        let fixed = [0, 1, 5, u16::MAX].map(|index| role(index, features));
        assert_eq!(
            fixed,
            [Some(Role::Inflate), Some(Role::Deflate), None, None]
        );
        assert_eq!([2, 3, 4].map(|index| role(index, features)), expected);
    }
}

#[test]
fn a_target_is_told_and_what_the_driver_has_done_is_heard() {
    let mut bench = Bench::new(BalloonOptions {
        target: 0x5fff,
        ..options()
    });
    assert_eq!(
        (bench.driver.read(0x100), bench.control.target()),
        (5, 0x5000)
    );
    bench.driver.start(Features::NONE);
    assert!(!bench.driver.line.is_high(), "there is no news");
    let generation = bench.driver.read(0xfc);
    bench.control.set_target(0x20_0000).unwrap();
    bench.driver.wait(|d| d.line.is_high());
    assert_eq!(bench.driver.read(0x60), 2, "the configuration has changed");
    assert_ne!(bench.driver.read(0xfc), generation);
    assert_eq!(bench.driver.read(0x100), 0x200);
    bench.driver.write(0x104, 0x80);
    assert_eq!(
        (bench.driver.read(0x104), bench.control.actual()),
        (0x80, 0x8_0000)
    );
    // What is not the driver's stays; a reset begins anew.
    bench.driver.write(0x100, 7);
    bench.driver.write(0x108, 7);
    assert_eq!(
        (bench.driver.read(0x100), bench.driver.read(0x108)),
        (0x200, 0)
    );
    bench.driver.write(0x70, 0);
    assert_eq!(
        (bench.control.actual(), bench.control.target()),
        (0, 0x20_0000)
    );
}

#[test]
fn a_target_that_was_set_while_nobody_listened_is_told_later() {
    let mut bench = Bench::new(options());
    bench.driver.start(Features::NONE);
    bench.driver.transport.pause();
    bench.control.set_target(0x1000).unwrap();
    assert!(!bench.driver.line.is_high());
    bench.driver.transport.resume();
    bench.driver.wait(|d| d.line.is_high());
    assert_eq!(bench.driver.read(0x100), 1);
}

#[test]
fn targets_that_no_guest_can_reach_are_refused() {
    let (_, control) = Balloon::new(options()).unwrap();
    let max = 0xfff_ffff_f000;
    assert_eq!(control.set_target(max + 0xfff), Ok(()));
    let (bytes, refused) = (max + 0x1000, control.set_target(max + 0x1000));
    assert_eq!(refused, Err(TargetError { bytes, max }));
    assert_eq!(control.target(), max);
    let made = Balloon::new(BalloonOptions {
        target: u64::MAX,
        ..options()
    });
    assert!(made.is_err());
}

#[test]
fn inflated_pages_are_the_hosts_and_read_as_zeros() {
    let mut bench = Bench::started(Features::NONE);
    // Touches the rings and the buffer.
    bench.driver.memory.put(BUFFER, &[0]);
    bench.inflate(&[]);
    let before = bench.held();
    // In no order, one twice.
    bench.inflate(&[0xa4, 0xa2, 0xa3, 0xa0, 0xa2]);
    assert_eq!(before - bench.held(), 0x4000);
    assert_eq!(bench.empty(), [0xa0, 0xa2, 0xa3, 0xa4]);
    let done = bench.control.counters();
    assert_eq!(
        (done.inflated, done.freed, done.ignored),
        (0x5000, 0x4000, 0)
    );
    bench.driver.wait(|d| d.line.is_high());
}

#[test]
fn neighbours_are_one_request_and_one_report() {
    let mut bench = Bench::started(Features::NONE);
    let pages: Vec<u32> = (0xa0..0x100).rev().collect();
    let before = bench.driver.memory.reports();
    bench.inflate(&pages);
    let reports = bench.driver.memory.reports() - before;
    // Besides, those of the used ring.
    assert!(reports < 10, "{reports} for {} pages", pages.len());
    assert_eq!(bench.empty().len(), pages.len());
}

#[test]
fn deflating_costs_nothing_and_pages_can_be_used_again() {
    let mut bench = Bench::started(Features::NONE);
    bench.inflate(&[0xa0, 0xa1]);
    bench.send(DEFLATE, BUFFER, 8, 0);
    assert_eq!(bench.control.counters().deflated, 0x2000);
    bench.fill();
    assert!(bench.empty().is_empty());
}

#[test]
fn pages_that_are_no_memory_to_write_are_ignored() {
    let mut bench = Bench::started(Features::NONE);
    bench.driver.memory.put(ROM, &[7; 4]);
    let pages = [(RAM >> 12) as u32, (ROM >> 12) as u32, u32::MAX, 0xff];
    bench.inflate(&pages);
    assert_eq!(bench.empty(), [0xff]);
    assert_eq!(bench.driver.memory.get(ROM), [7; 4]);
    let done = bench.control.counters();
    assert_eq!((done.freed, done.ignored), (0x1000, 0x3000));
    assert!(!bench.driver.needs_reset());
}

#[test]
fn half_a_number_is_none_and_no_number_is_no_page() {
    let mut bench = Bench::started(Features::NONE);
    bench
        .driver
        .memory
        .put(BUFFER, &[0xa0, 0, 0, 0, 0xa1, 0, 0]);
    bench.send(INFLATE, BUFFER, 7, 0);
    bench.send(INFLATE, BUFFER, 0, 0);
    // What the device could only write names nothing.
    bench.send(INFLATE, BUFFER, 4, WRITE);
    assert_eq!(bench.empty(), [0xa0]);
    assert!(!bench.driver.needs_reset());
}

#[test]
fn a_chain_of_more_pages_than_any_driver_names_ends_somewhere() {
    let mut bench = Bench::started(Features::NONE);
    // The whole of memory, again and again: all numbers are zero but some.
    let len = RAM as u32;
    let place = RINGS[0];
    for n in 0..8u16 {
        let flags = if n < 7 { NEXT } else { 0 };
        bench
            .driver
            .describe_at(place + 16 * u64::from(n), (0, len, flags, n + 1));
    }
    // Page 0 is among them, where nothing of the driver is.
    bench.notify(INFLATE);
    bench.driver.wait(|d| d.used_in(INFLATE) == 1);
    let done = bench.control.counters();
    assert_eq!(done.inflated, 0x4000 * 0x1000);
    assert!(done.ignored >= (8 * u64::from(len) / 4 - 0x4000) * 0x1000);
}

#[test]
fn numbers_out_of_reach_need_a_reset() {
    for queue in [INFLATE, DEFLATE, STATISTICS] {
        for (at, len) in [(RAM - 4, 8), (RAM, 4), (u64::MAX - 2, 8)] {
            let mut bench = Bench::started(feature::STATS_VQ);
            bench.offer(queue, at, len, 0);
            bench.driver.wait(Driver::needs_reset);
            assert_eq!(bench.driver.used_in(queue), 0, "{queue} {at:#x}");
        }
    }
}

#[test]
fn reported_pages_are_the_hosts_whichever_number_the_queue_has() {
    for queue in REPORTING {
        let mut bench = Bench::started(feature::STATS_VQ.with(feature::PAGE_REPORTING));
        bench.send(queue, LENT, 0, WRITE);
        let before = bench.held();
        let place = RINGS[0] + 0x1_0000 * u64::from(queue);
        // Whole pages in all, though neither piece is.
        for (n, (at, len, flags)) in [
            (LENT + 0x1800, 0x2000, NEXT | WRITE),
            (LENT + 0x800, 0x1000, NEXT | WRITE),
            (ROM, 0x1000, NEXT | WRITE),
            (u64::MAX, 0x1000, WRITE),
        ]
        .into_iter()
        .enumerate()
        {
            let place = place + 16 * n as u64;
            bench
                .driver
                .describe_at(place, (at, len, flags, n as u16 + 1));
        }
        bench.notify(queue);
        bench.driver.wait(|d| d.used_in(queue) == 2);
        assert_eq!(before - bench.held(), 0x2000);
        assert_eq!(bench.empty(), [0xa1, 0xa2]);
        let done = bench.control.counters();
        assert_eq!((done.reported, done.freed), (0x4000, 0x2000));
        assert_eq!(done.ignored, 0x2000);
        assert!(!bench.driver.needs_reset());
    }
}

#[test]
fn buffers_that_may_only_be_read_are_not_reported() {
    let mut bench = Bench::started(feature::PAGE_REPORTING);
    bench.send(REPORTING[0], LENT, 0x1000, 0);
    assert!(bench.empty().is_empty());
}

#[test]
fn poisoned_pages_are_discarded_only_if_the_poison_is_zero() {
    for (poison, accepted, expected) in [
        (0, true, &[0xa0][..]),
        (0xaaaa_aaaa, true, &[]),
        (0xaaaa_aaaa, false, &[0xa0]),
    ] {
        let mut bench = Bench::new(options());
        let mut features = feature::PAGE_REPORTING;
        if accepted {
            features = features.with(feature::PAGE_POISON);
        }
        bench.driver.write(0x70, 0);
        bench.driver.start(features);
        bench.driver.write(0x10c, poison);
        assert_eq!(bench.driver.read(0x10c), poison);
        bench.fill();
        bench.send(REPORTING[0], LENT, 0x1000, WRITE);
        assert_eq!(bench.empty(), expected, "{poison:#x} {accepted}");
    }
}

#[test]
fn nothing_comes_by_queues_that_were_not_agreed_on() {
    let mut bench = Bench::started(Features::NONE);
    bench.driver.memory.put(BUFFER, &[0xa0, 0, 0, 0]);
    for queue in [2, 3, 4] {
        bench.offer(queue, LENT, 0x1000, WRITE);
    }
    bench.inflate(&[0xa5]);
    assert_eq!(bench.empty(), [0xa5]);
    assert_eq!([2, 3, 4].map(|queue| bench.driver.used_in(queue)), [0; 3]);
}

fn statistics(free: u64) -> Vec<u8> {
    let entries = [(4u16, free), (5, 0x1000), (99, 1)];
    let entries = entries
        .iter()
        .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat());
    entries.collect()
}

impl Bench {
    /// Has numbers ready for the device, as a driver does that was asked for them.
    fn tell(&mut self, free: u64) {
        let bytes = statistics(free);
        self.driver.memory.put(BUFFER, &bytes);
        self.offer(STATISTICS, BUFFER, bytes.len() as u32, 0);
    }

    fn wait_for_free(&self, free: u64) -> BalloonStatistics {
        let begin = Instant::now();
        loop {
            match self.control.statistics() {
                Some(heard) if heard.free == Some(free) => return heard,
                heard => assert!(begin.elapsed() < Duration::from_secs(10), "{heard:?}"),
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn wait_until_asked(&self, times: u16) {
        self.driver.wait(|d| d.used_in(STATISTICS) == times);
    }
}

#[test]
fn statistics_are_read_once_and_their_buffer_is_kept_until_somebody_asks() {
    let mut bench = Bench::started(feature::STATS_VQ);
    assert_eq!(bench.control.statistics(), None);
    bench.tell(100);
    let heard = bench.wait_for_free(100);
    assert_eq!((heard.total, heard.swap_in), (Some(0x1000), None));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.driver.used_in(STATISTICS), 0, "nobody has asked");
    // What the driver writes afterwards is not for the device.
    bench.driver.memory.put(BUFFER, &statistics(999));
    bench.control.request_statistics();
    bench.wait_until_asked(1);
    assert_eq!(bench.control.statistics(), Some(heard));
    bench.tell(200);
    assert!(bench.wait_for_free(200).at > heard.at);
    assert!(bench.control.age().unwrap() < Duration::from_secs(10));
}

#[test]
fn statistics_are_asked_for_at_an_interval_that_can_change() {
    let mut bench = Bench::started(feature::STATS_VQ.with(Features::EVENT_IDX));
    bench.tell(1);
    bench.wait_for_free(1);
    bench.control.set_polling(Some(Duration::MAX));
    bench.control.set_polling(Some(Duration::ZERO));
    let begin = Instant::now();
    for n in 1..4 {
        bench.wait_until_asked(n);
        bench.tell(1 + u64::from(n));
        bench.wait_for_free(1 + u64::from(n));
    }
    // The first time was counted from what came before `begin`.
    assert!(begin.elapsed() >= Duration::from_millis(200));
    bench.control.set_polling(None);
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(bench.driver.used_in(STATISTICS), 3);
}

#[test]
fn a_request_that_finds_no_buffer_is_kept() {
    let mut bench = Bench::started(feature::STATS_VQ);
    bench.control.request_statistics();
    std::thread::sleep(Duration::from_millis(10));
    bench.tell(1);
    bench.wait_until_asked(1);
}

#[test]
fn a_buffer_that_was_read_is_not_read_again_after_a_pause() {
    let mut bench = Bench::started(feature::STATS_VQ);
    bench.tell(1);
    let heard = bench.wait_for_free(1);
    bench.driver.transport.pause();
    bench.driver.memory.put(BUFFER, &statistics(2));
    bench.driver.transport.resume();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.control.statistics(), Some(heard));
    bench.driver.write(0x70, 0);
    assert_eq!(
        bench.control.statistics(),
        None,
        "another driver says its own"
    );
    bench.driver.start(feature::STATS_VQ);
    bench.tell(3);
    bench.wait_for_free(3);
}

#[test]
fn many_pages_are_done_in_turns_and_none_is_lost() {
    let mut bench = Bench::started(Features::NONE);
    let numbers: Vec<u8> = (0..0x4000u32)
        .flat_map(|n| (0x1000 + n).to_le_bytes())
        .collect();
    bench.driver.memory.put(LENT, &numbers);
    // More than a turn at once.
    let place = RINGS[0];
    bench
        .driver
        .describe_at(place, (LENT, numbers.len() as u32, 0, 0));
    for _ in 0..8 {
        bench.driver.offer_in(INFLATE, 0);
    }
    bench.driver.write(0x50, INFLATE);
    bench.driver.wait(|d| d.used_in(INFLATE) == 8);
    let done = bench.control.counters();
    assert_eq!(done.inflated, 8 * 0x4000 * 0x1000);
    assert_eq!(done.ignored, done.inflated);
}

/// Where hints come.
const HINTS: u32 = 3;
/// Where the device's command is.
const COMMAND: u64 = 0x108;

fn hinting() -> Bench {
    let mut bench = Bench::new(BalloonOptions {
        free_page_hinting: true,
        ..options()
    });
    let features = feature::STATS_VQ.with(feature::FREE_PAGE_HINT);
    bench.driver.start(features);
    bench.driver.set_up(HINTS);
    bench.fill();
    bench
}

impl Bench {
    /// Says something about hints.
    fn say(&mut self, command: u32) {
        self.driver.memory.put(BUFFER, &command.to_le_bytes());
        self.send(HINTS, BUFFER, 4, 0);
    }

    fn hint(&mut self, page: u64) {
        self.send(HINTS, page << 12, 0x2000, WRITE);
    }
}

#[test]
fn hinted_pages_are_the_hosts_while_a_run_is_under_way() {
    let mut bench = hinting();
    let first = LENT >> 12;
    bench.hint(first);
    assert_eq!(bench.empty(), [0; 0], "nobody has asked");
    assert_eq!(bench.control.start_hinting(false), Ok(2));
    assert_eq!(bench.driver.read(COMMAND), 2);
    assert_ne!(bench.driver.read(0x60) & 2, 0, "a configuration interrupt");
    bench.hint(first);
    assert_eq!(bench.empty(), [0; 0], "the driver has not begun");
    bench.say(2);
    bench.hint(first + 2);
    assert_eq!(bench.empty(), [first + 2, first + 3]);
    bench.say(0);
    let status = bench.control.hinting().unwrap();
    assert_eq!((status.host_cmd, status.guest_cmd), (2, Some(0)));
    bench.control.stop_hinting().unwrap();
    assert_eq!(bench.driver.read(COMMAND), 1);
    bench.hint(first + 6);
    assert_eq!(bench.empty().len(), 2, "what comes late is left alone");
    let counters = bench.control.counters();
    assert_eq!((counters.hinted, counters.freed), (0x8000, 0x2000));
}

#[test]
fn a_run_that_acknowledges_is_done_when_the_driver_is() {
    let mut bench = hinting();
    bench.control.start_hinting(true).unwrap();
    bench.say(2);
    bench.hint(LENT >> 12);
    bench.driver.write(0x64, 3);
    bench.say(0);
    assert_eq!(bench.driver.read(COMMAND), 1);
    assert_ne!(bench.driver.read(0x60) & 2, 0, "the driver is told");
    assert_eq!(bench.control.start_hinting(true), Ok(3));
    bench.driver.write(0x70, 0);
    assert_eq!(bench.driver.read(COMMAND), 0);
    assert_eq!(
        bench.control.start_hinting(true),
        Err(HintingError::NoDriver)
    );
}

#[test]
fn a_balloon_without_hints_says_so() {
    let bench = Bench::started(feature::STATS_VQ);
    assert_eq!(bench.control.hinting(), None);
    assert_eq!(bench.control.start_hinting(true), Err(HintingError::Off));
    assert_eq!(bench.control.stop_hinting(), Err(HintingError::Off));
}
