//! A driver of the persistent-memory device.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use umbra_slots::Gpa;
use umbra_virtio::Transport;
use umbra_virtio::testing::{Driver, NEXT, RAM, ROM, WRITE};

use super::*;

const REQUEST: u64 = 0x2_0000;
const ANSWER: u64 = 0x2_1000;
const NONE: u32 = 0xaaaa_aaaa;

fn range() -> GpaRange {
    GpaRange::new(Gpa(5 << 30), 64 << 20).unwrap()
}

/// A device whose flushes last as long as nobody sends what they shall return.
struct Bench {
    driver: Driver,
    began: Arc<AtomicU32>,
    ends: Sender<io::Result<()>>,
}

fn bench() -> Bench {
    let (ends, results): (_, Receiver<io::Result<()>>) = channel();
    let (began, results) = (Arc::new(AtomicU32::new(0)), Mutex::new(results));
    let count = began.clone();
    let flush = move || {
        count.fetch_add(1, Ordering::SeqCst);
        // Without a sender the test is over.
        results.lock().recv().unwrap_or(Ok(()))
    };
    let device = Pmem::new("test", range(), Box::new(flush)).unwrap();
    Bench {
        driver: Driver::new(Box::new(device), 16),
        began,
        ends,
    }
}

impl Bench {
    fn start(&mut self) {
        self.driver.start(Features::RINGS);
    }

    /// Makes request `number`, in descriptors of its own.
    fn ask(&mut self, number: u16, kind: u32) {
        let at = u64::from(number) * 16;
        self.driver.memory.put(REQUEST + at, &kind.to_le_bytes());
        self.driver.memory.put(ANSWER + at, &NONE.to_le_bytes());
        let head = 2 * number;
        let request = (REQUEST + at, 4, NEXT, head + 1);
        self.driver.describe(head, request);
        self.driver.describe(head + 1, (ANSWER + at, 4, WRITE, 0));
        self.driver.offer(head);
    }

    fn answer(&self, number: u16) -> u32 {
        self.driver.memory.get_u32(ANSWER + u64::from(number) * 16)
    }

    fn wait_began(&self, count: u32) {
        self.driver
            .wait(|_| self.began.load(Ordering::SeqCst) == count);
    }

    fn end(&self, result: io::Result<()>) {
        self.ends.send(result).unwrap();
    }
}

#[test]
fn it_is_a_pmem_device_with_one_queue_and_says_where_its_memory_is() {
    let driver = bench().driver;
    assert_eq!((driver.read(0x08), driver.read(0x34)), (27, 128));
    let config: Vec<_> = (0..5).map(|n| driver.read(0x100 + 4 * n)).collect();
    assert_eq!(config, [1 << 30, 1, 64 << 20, 0, 0]);
    driver.write(0x100, 0);
    assert_eq!(driver.read(0x100), 1 << 30);
}

#[test]
fn a_flush_is_answered_when_the_host_has_flushed_and_not_before() {
    let mut bench = bench();
    bench.start();
    bench.ask(0, 0);
    bench.wait_began(1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!((bench.driver.used_in(0), bench.answer(0)), (0, NONE));
    bench.end(Ok(()));
    bench.driver.wait(|d| d.used_in(0) == 1 && d.line.is_high());
    assert_eq!((bench.driver.used(0), bench.answer(0)), ((0, 4), 0));
}

#[test]
fn what_comes_during_a_flush_is_flushed_once_more_and_together() {
    let mut bench = bench();
    bench.start();
    bench.ask(0, 0);
    bench.wait_began(1);
    for number in 1..5 {
        bench.ask(number, 0);
    }
    bench.end(Ok(()));
    bench.wait_began(2);
    assert_eq!(bench.driver.used_in(0), 1);
    bench.end(Ok(()));
    bench.driver.wait(|d| d.used_in(0) == 5);
    let heads: Vec<_> = (0..5).map(|n| bench.driver.used(n).0).collect();
    assert_eq!(heads, [0, 2, 4, 6, 8]);
    assert_eq!(bench.began.load(Ordering::SeqCst), 2);
}

#[test]
fn a_host_that_fails_and_a_request_of_another_type_are_answered_with_an_error() {
    let mut bench = bench();
    bench.start();
    bench.ask(0, 0);
    bench.end(Err(io::ErrorKind::StorageFull.into()));
    bench.driver.wait(|d| d.used_in(0) == 1);
    for (number, kind) in [(1, 1), (2, u32::MAX), (3, 0)] {
        bench.ask(number, kind);
        bench.end(Ok(()));
        bench.driver.wait(|d| d.used_in(0) == number + 1);
    }
    let answers: Vec<_> = (0..4).map(|number| bench.answer(number)).collect();
    assert_eq!(answers, [1, 1, 1, 0]);
    assert!(!bench.driver.needs_reset());
}

#[test]
fn a_reset_waits_for_no_flush_and_the_next_driver_gets_one_of_its_own() {
    let mut bench = bench();
    bench.start();
    bench.ask(0, 0);
    bench.wait_began(1);
    // The flush hangs; the reset does not.
    bench.start();
    bench.ask(0, 0);
    bench.end(Ok(()));
    bench.wait_began(2);
    assert_eq!(bench.driver.used_in(0), 0, "the first one began too early");
    bench.end(Ok(()));
    bench.driver.wait(|d| d.used_in(0) == 1);
    assert_eq!(bench.answer(0), 0);
}

#[test]
fn a_request_outlives_a_pause() {
    let mut bench = bench();
    bench.start();
    for number in 0..3 {
        bench.ask(number, 0);
    }
    bench.wait_began(1);
    bench.driver.transport.pause();
    bench.end(Ok(()));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.driver.used_in(0), 0, "it stands still");
    bench.driver.transport.resume();
    bench.end(Ok(()));
    bench.end(Ok(()));
    bench.driver.wait(|d| d.used_in(0) == 3);
    assert_eq!([0, 1, 2].map(|number| bench.answer(number)), [0; 3]);
}

#[test]
fn a_device_that_goes_waits_for_its_flush() {
    let mut bench = bench();
    bench.start();
    bench.ask(0, 0);
    bench.wait_began(1);
    let (ends, began) = (bench.ends.clone(), bench.began.clone());
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        ends.send(Ok(())).unwrap();
    });
    drop(bench);
    assert_eq!(Arc::strong_count(&began), 1, "the flush is dropped");
    later.join().unwrap();
}

#[test]
fn requests_that_make_no_sense_need_a_reset() {
    type Buffers = [(u64, u32, u16); 2];
    let table: [(&str, Buffers); 6] = [
        ("a short request", [(REQUEST, 3, NEXT), (ANSWER, 4, WRITE)]),
        ("a short answer", [(REQUEST, 4, NEXT), (ANSWER, 3, WRITE)]),
        ("nothing to write", [(REQUEST, 4, NEXT), (ANSWER, 4, 0)]),
        ("nowhere to read", [(RAM, 4, NEXT), (ANSWER, 4, WRITE)]),
        ("nowhere to write", [(REQUEST, 4, NEXT), (ROM, 4, WRITE)]),
        ("no end", [(REQUEST, 4, NEXT), (ANSWER, 4, NEXT | WRITE)]),
    ];
    for (what, buffers) in table {
        let mut bench = bench();
        bench.start();
        bench.driver.memory.put(ANSWER, &NONE.to_le_bytes());
        for (index, (at, len, flags)) in (0..).zip(buffers) {
            bench.driver.describe(index, (at, len, flags, 1 - index));
        }
        bench.driver.offer(0);
        bench.end(Ok(()));
        bench.driver.wait(Driver::needs_reset);
        assert_eq!(
            (bench.driver.used_in(0), bench.answer(0)),
            (0, NONE),
            "{what}"
        );
    }
}

#[test]
fn a_flush_costs_all_of_the_memory_and_waits_for_it() {
    let mut bench = bench();
    let device = Pmem::new("test", range(), Box::new(|| Ok(()))).unwrap();
    let control = device.control();
    bench.driver = Driver::new(Box::new(device), 16);
    bench.start();
    let limits = Limits {
        bandwidth: Some(crate::virtio::Bucket {
            size: range().len(),
            one_time_burst: 0,
            refill_time: Duration::from_millis(200),
        }),
        operations: None,
    };
    control.set_limits(limits);
    assert_eq!(control.limits(), limits);
    let begin = Instant::now();
    for number in 0..2 {
        bench.ask(number, 0);
        bench.driver.wait(|d| d.used_in(0) == number + 1);
    }
    assert!(begin.elapsed() >= Duration::from_millis(190));
}

#[test]
fn a_flush_that_waits_goes_when_the_limit_does() {
    let mut bench = bench();
    let device = Pmem::new("test", range(), Box::new(|| Ok(()))).unwrap();
    let control = device.control();
    bench.driver = Driver::new(Box::new(device), 16);
    bench.start();
    control.set_limits(Limits {
        bandwidth: None,
        operations: Some(crate::virtio::Bucket {
            size: 1,
            one_time_burst: 0,
            refill_time: Duration::from_secs(3600),
        }),
    });
    bench.ask(0, 0);
    bench.driver.wait(|d| d.used_in(0) == 1);
    bench.ask(1, 0);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(bench.driver.used_in(0), 1);
    control.set_limits(Limits::default());
    bench.driver.wait(|d| d.used_in(0) == 2);
}
