//! When queues are looked at. That work is done is tested with whole devices.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::queue::Setup;
use crate::testing::{Memory, RINGS};
use crate::{Features, Wire};

struct Silent;

impl Wire for Silent {
    fn used_buffers(&self, _: u16) {}
    fn config_changed(&self) {}
}

/// Counts how often it is asked, and says what it was told to say.
struct Scripted {
    asked: Arc<AtomicU32>,
    next: Next,
}

impl Handler for Scripted {
    fn serve(&mut self, _: &mut Queue, _: &DmaMemory, _: &Interrupt) -> Result<Next, Fault> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(self.next)
    }
}

fn start(next: Next) -> (QueueWorker, Arc<Event>, Arc<AtomicU32>) {
    let memory = Memory::new();
    let event = Arc::new(Event::new().unwrap());
    let setup = Setup {
        addresses: RINGS,
        ..Setup::new(4)
    };
    let view = memory.dma().memory();
    let queue = Queue::new(0, &setup, Features::NONE, &view, event.clone()).unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let handler = Scripted {
        asked: asked.clone(),
        next,
    };
    let activation = Activation {
        features: Features::NONE,
        queues: vec![queue],
        memory: memory.dma(),
        interrupt: Arc::new(Interrupt::new(Box::new(Silent))),
    };
    let worker = QueueWorker::start("test", activation, handler).unwrap();
    (worker, event, asked)
}

fn wait_for(asked: &AtomicU32, count: u32) {
    let begin = Instant::now();
    while asked.load(Ordering::SeqCst) < count {
        assert!(begin.elapsed() < Duration::from_secs(10));
        thread::yield_now();
    }
}

#[test]
fn an_idle_queue_is_looked_at_when_the_driver_notifies() {
    let (worker, event, asked) = start(Next::Idle);
    wait_for(&asked, 1);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    event.signal();
    wait_for(&asked, 2);
    let queues = worker.stop();
    assert_eq!(queues.len(), 1, "it is given back");
}

#[test]
fn a_queue_with_more_is_looked_at_until_it_is_stopped() {
    let (worker, _, asked) = start(Next::More);
    wait_for(&asked, 100);
    drop(worker);
    let then = asked.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(10));
    assert_eq!(asked.load(Ordering::SeqCst), then);
}

#[test]
fn a_queue_is_tried_again_after_a_while_or_when_the_driver_notifies() {
    let (worker, _, asked) = start(Next::Retry(Duration::from_millis(5)));
    wait_for(&asked, 3);
    drop(worker);
    let (_worker, event, asked) = start(Next::Retry(Duration::from_secs(1000)));
    wait_for(&asked, 1);
    event.signal();
    wait_for(&asked, 2);
}

#[test]
fn what_follows_from_how_far_a_queue_was_served() {
    let pause = Duration::from_secs(1);
    assert_eq!(Next::after(Served::All, pause), Next::Idle);
    assert_eq!(Next::after(Served::More, pause), Next::More);
    assert_eq!(Next::after(Served::Kept, pause), Next::Retry(pause));
}
