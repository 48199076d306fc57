//! A driver that asks for flushes, in chains that are mostly right.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use umbra_devices::virtio::Pmem;
use umbra_fuzz::{MORE, NEXT, RAM, ROM, Source, VirtioDriver, WRITE};
use umbra_slots::{Gpa, GpaRange};

const REQUEST: u64 = 0x8000;
const ANSWER: u64 = 0x9000;
/// What stands where an answer will be.
const NONE: u32 = 0xaaaa_aaaa;

/// What the host's flushes do.
#[derive(Default)]
struct Host {
    /// How many have begun.
    began: AtomicU32,
    /// 0: they succeed, 1: they fail, 2: they take some time.
    mood: AtomicU32,
}

impl Host {
    fn flush(&self) -> io::Result<()> {
        self.began.fetch_add(1, Ordering::SeqCst);
        match self.mood.load(Ordering::SeqCst) {
            1 => return Err(io::ErrorKind::StorageFull.into()),
            2 => std::thread::sleep(Duration::from_micros(100)),
            _ => {}
        }
        Ok(())
    }
}

/// The driver, and the host's file.
pub struct Driver {
    virtio: VirtioDriver,
    host: Arc<Host>,
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(8) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => ROM + near,
        4 => source.u64(),
        5 => u64::MAX - near,
        6 => VirtioDriver::rings(0)[near as usize % 3],
        _ => REQUEST + near,
    }
}

impl Driver {
    /// Starts one, and the device.
    pub fn new() -> Self {
        let host = Arc::new(Host::default());
        let theirs = host.clone();
        let range = GpaRange::new(Gpa(1 << 32), 2 << 20).expect("it is a range");
        let device = Pmem::new("fuzz", range, Box::new(move || theirs.flush()));
        let device = Box::new(device.expect("the host has threads"));
        Self {
            virtio: VirtioDriver::new(device, 1),
            host,
        }
    }

    /// A request, mostly one that makes sense.
    fn ask(&mut self, source: &mut Source<'_>) {
        let pair = u16::from(source.u8() % 4);
        let at = 16 * u64::from(pair);
        let kind = match source.below(8) {
            0 => source.u32(),
            _ => 0,
        };
        self.virtio.put(REQUEST + at, &kind.to_le_bytes());
        let head = 2 * pair;
        let (mut request, mut answer) = ((REQUEST + at, 4), (ANSWER + at, 4));
        match source.below(12) {
            0 => request = (address(source), source.u8().into()),
            1 => answer = (address(source), source.u8().into()),
            2 => answer.1 = source.u32(),
            _ => {}
        }
        let last = match source.below(16) {
            0 => u16::from(source.u8() & 7),
            _ => WRITE,
        };
        self.virtio
            .describe(0, head, (request.0, request.1, NEXT, head + 1));
        self.virtio
            .describe(0, head + 1, (answer.0, answer.1, last, head));
        self.virtio.offer(0, head);
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(16) {
            0 => self.virtio.start(source.u32()),
            1 => self.virtio.toggle(),
            2 => {
                let offset = u64::from(source.u16() & 0x1ff);
                let width = source.pick(&[1, 2, 4, 8]);
                self.virtio.write(offset, source.bytes(width));
            }
            3 => self.virtio.poke(source),
            4 => self.virtio.pause(),
            5 => self.virtio.resume(),
            6 | 7 => {
                let mood = source.below(3) as u32;
                self.host.mood.store(mood, Ordering::SeqCst);
            }
            8 => std::thread::yield_now(),
            9 => self.virtio.check(),
            _ => self.ask(source),
        }
    }

    /// Whatever was before: after a reset the device does its work, with a flush that begins then.
    pub fn finish(mut self) {
        self.virtio.resume();
        self.virtio.start(u32::MAX);
        assert!(self.virtio.works());
        self.host.mood.store(0, Ordering::SeqCst);
        self.virtio.put(REQUEST, &[0; 4]);
        self.virtio.put(ANSWER, &NONE.to_le_bytes());
        self.virtio.describe(0, 0, (REQUEST, 4, NEXT, 1));
        self.virtio.describe(0, 1, (ANSWER, 4, WRITE, 0));
        let began = self.host.began.load(Ordering::SeqCst);
        self.virtio.offer(0, 0);
        self.virtio.wait(0);
        assert_eq!(self.virtio.load(ANSWER), [0; 4], "it lasts");
        let now = self.host.began.load(Ordering::SeqCst);
        assert!(now > began, "a flush from before is none for this request");
        self.virtio.reset();
        self.virtio.check();
    }
}
