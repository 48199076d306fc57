//! The guest: a driver that makes good requests mostly, and looks closely at what comes back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use umbra_fuzz::{MORE, Machine, NEXT, RAM, Source, VirtioDriver, WRITE};
use umbra_slots::Gpa;
use umbra_vhost::{Hub, Kind, VhostUser, VhostUserControl, VhostUserOptions};

use crate::back_end::BackEnd;
use crate::rings::FILL;

/// A descriptor that leads to a table.
const INDIRECT: u16 = 4;
/// VIRTIO_F_INDIRECT_DESC.
const INDIRECT_DESC: u32 = 1 << 28;
/// Tables, by queue and descriptor.
const TABLES: u64 = 0x8000;
const TABLE: u64 = 0x80;
/// What is read.
const READ: u64 = 0x1_0000;
/// What is written: up to the end of memory.
const WRITTEN: u64 = 0x2_0000;
const SIZE: u16 = VirtioDriver::SIZE;
/// A call that takes longer has waited for a back end for longer than it may, which in a fuzzer is 50 ms; the
/// rest is for a host that has other things to do.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a good back end may take to come and do everything.
const LONG: Duration = Duration::from_secs(10);

/// A request that is not done.
struct Request {
    /// Bytes that may be written.
    room: u32,
}

/// The driver, its device, and the back end.
pub struct Driver {
    virtio: VirtioDriver,
    control: VhostUserControl,
    back_end: BackEnd,
    queues: u16,
    is_mount: bool,
    tables: bool,
    /// By queue and head.
    waiting: BTreeMap<(u16, u16), Request>,
    /// Used elements that were looked at, by queue.
    seen: Vec<u16>,
    /// What is in memory that no device may write.
    memory: Vec<u8>,
    /// What of it devices may write.
    lent: Vec<bool>,
}

/// Does something that must not take long.
fn timed<T>(what: &str, does: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let done = does();
    let took = begin.elapsed();
    assert!(took < PATIENCE, "{what} has taken {took:?}");
    done
}

fn path() -> PathBuf {
    std::env::temp_dir().join(format!("umbra-fuzz-vhost-{}", std::process::id()))
}

fn kind(source: &mut Source<'_>) -> Kind {
    let tag = Some("share".into());
    match source.below(6) {
        0 => Kind::Block,
        1 => Kind::Fs { tag: None },
        2 => Kind::Fs { tag },
        3 => Kind::Net { mac: [2; 6] },
        4 => Kind::Vsock,
        _ => Kind::Other {
            id: 42,
            config_len: 60,
        },
    }
}

/// Makes a device of a machine that is not there yet.
fn connect(kind: &Kind, hub: &std::sync::Arc<Hub>, back_end: &BackEnd) -> VhostUser {
    let begin = Instant::now();
    for turn in 0.. {
        let options = VhostUserOptions {
            name: "fuzz".into(),
            socket: path(),
            kind: kind.clone(),
            queues: None,
            queue_size: Some(SIZE),
            wait: Duration::ZERO,
        };
        match timed("a connection", || VhostUser::connect(options, hub)) {
            Ok(device) => return device,
            Err(_) if turn < 3 => {}
            Err(error) => {
                assert!(begin.elapsed() < LONG, "a good one is refused: {error}");
                back_end.be_good();
            }
        }
    }
    unreachable!("it goes on until it is there")
}

impl Driver {
    /// Starts one, with the back end whose input is `theirs`.
    pub fn new(source: &mut Source<'_>, theirs: &[u8]) -> Self {
        let kind = kind(source);
        let queues = kind.queues();
        let back_end = BackEnd::start(&path(), theirs);
        let (mut control, mut hub) = (None, None);
        let machine = Machine::with(|space| {
            let follows = Hub::new(space).expect("the host has threads");
            let device = connect(&kind, &follows, &back_end);
            control = Some(device.control());
            hub = Some(follows);
            Box::new(device)
        });
        let mut driver = Self {
            virtio: VirtioDriver::in_machine(machine, queues.into()),
            control: control.expect("the device was made"),
            back_end,
            queues,
            is_mount: matches!(kind, Kind::Fs { .. }),
            tables: true,
            waiting: BTreeMap::new(),
            seen: vec![0; queues.into()],
            memory: vec![0; RAM as usize],
            lent: vec![false; RAM as usize],
        };
        let bytes: Vec<u8> = (READ..WRITTEN).map(|at| at as u8).collect();
        driver.put(READ, &bytes);
        driver
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.virtio.put(at, bytes);
        let at = at as usize;
        self.memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn start(&mut self, features: u32) {
        self.look();
        timed("a start", || self.virtio.start(features));
        self.tables = self.virtio.get(0x10) & features & INDIRECT_DESC != 0;
        self.waiting.clear();
        self.seen.fill(0);
    }

    /// Looks at what came back.
    fn look(&mut self) {
        for queue in 0..self.queues {
            let used = self.virtio.used(queue);
            let seen = &mut self.seen[usize::from(queue)];
            while *seen != used {
                let at = VirtioDriver::rings(queue)[2] + 4 + 8 * u64::from(*seen % SIZE);
                let [id, len] = [0, 4].map(|half| u32::from_le_bytes(self.virtio.load(at + half)));
                let request = u16::try_from(id)
                    .ok()
                    .and_then(|head| self.waiting.remove(&(queue, head)));
                let room = request.map(|request| request.room);
                assert!(
                    room.is_some_and(|room| len <= room),
                    "queue {queue}: {id} comes back with {len}, and had room for {room:?}"
                );
                *seen = seen.wrapping_add(1);
            }
        }
    }

    /// A buffer: where it is, and its length.
    fn buffer(&mut self, writes: bool, source: &mut Source<'_>) -> (u64, u32) {
        let len = match source.below(4) {
            0 => u32::from(source.u8() & 0xf),
            1 => 0x200 + u32::from(source.u8()),
            _ => u32::from(source.u8()),
        };
        let near = u64::from(source.u8());
        let at = match source.below(12) {
            0 => MORE + near,
            // The end of memory, or what follows it.
            1 if writes => RAM - near,
            _ if writes => WRITTEN + 0x100 * near,
            _ => READ + 0x40 * near,
        };
        (at, len)
    }

    /// A header of FUSE: most of what is in memory is no request.
    fn opcode(&mut self, at: u64, len: u32, source: &mut Source<'_>) {
        if (READ..WRITTEN).contains(&at) && len >= 8 {
            let opcode = source.pick(&[1, 2, 26, 36, 38, 42]);
            self.put(at + 4, &u32::to_le_bytes(opcode));
        }
    }

    /// Makes a request of up to three buffers of each kind.
    fn request(&mut self, source: &mut Source<'_>) {
        let queue = source.below(self.queues.into()) as u16;
        let free = (0..SIZE).find(|head| !self.waiting.contains_key(&(queue, *head)));
        let Some(head) = free else {
            return;
        };
        let shape = source.u8();
        let (reads, writes) = match self.tables {
            true => (shape & 3, (shape >> 2 & 3).max(u8::from(shape & 3 == 0))),
            false => (shape & 1, 1 - (shape & 1)),
        };
        let mut buffers = Vec::new();
        for number in 0..reads + writes {
            let is_writable = number >= reads;
            let (at, len) = self.buffer(is_writable, source);
            if number == 0 && !is_writable {
                self.opcode(at, len, source);
            }
            buffers.push((at, len, is_writable));
        }
        self.offer(queue, head, &buffers);
    }

    fn offer(&mut self, queue: u16, head: u16, buffers: &[(u64, u32, bool)]) {
        let mut room = 0;
        let mut table = Vec::new();
        for (number, (at, len, is_writable)) in (1..).zip(buffers) {
            if *is_writable {
                room += len;
                let end = (at + u64::from(*len)).min(RAM);
                for at in *at..end {
                    self.lent[at as usize] = true;
                }
            }
            let more = if number == buffers.len() { 0 } else { NEXT };
            let flags = more | if *is_writable { WRITE } else { 0 };
            table.extend(at.to_le_bytes());
            table.extend(len.to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend((number as u16).to_le_bytes());
        }
        if self.tables {
            let place = TABLES + TABLE * u64::from(queue * SIZE + head);
            self.put(place, &table);
            let len = table.len() as u32;
            self.virtio.describe(queue, head, (place, len, INDIRECT, 0));
        } else {
            let (at, len, is_writable) = buffers[0];
            let flags = if is_writable { WRITE } else { 0 };
            self.virtio.describe(queue, head, (at, len, flags, 0));
        }
        self.waiting.insert((queue, head), Request { room });
        self.virtio.offer(queue, head);
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(32) {
            // Not that of a zero: it takes long.
            31 => self.start(source.u32()),
            1 => timed("a configuration", || self.virtio.write_config(source, 60)),
            2 => {
                timed("a pause", || self.virtio.pause());
                self.look();
                self.virtio.resume();
            }
            // Who refuses memory keeps the map as it is.
            3..=6 => drop(timed("a change of the map", || self.virtio.try_toggle())),
            7..=9 => std::thread::yield_now(),
            10..=13 => std::thread::sleep(Duration::from_micros(100)),
            14 => drop(self.virtio.get(0x100 + u64::from(source.u8() & 0x3c))),
            15 => drop(self.control.state()),
            _ => self.request(source),
        }
        self.look();
        // Memory that went was still to be written.
        if !self.virtio.works() {
            self.start(u32::MAX);
        }
    }

    /// Waits until all came back.
    fn wait(&mut self) {
        let begin = Instant::now();
        while !self.waiting.is_empty() && self.virtio.works() {
            assert!(
                begin.elapsed() < LONG,
                "{} requests are not done, and the back end is {:?}",
                self.waiting.len(),
                self.control.state()
            );
            std::thread::sleep(Duration::from_micros(50));
            self.look();
        }
    }

    /// Whatever was before: a good back end does what is left, and more.
    pub fn finish(mut self) {
        self.back_end.be_good();
        self.wait();
        self.start(u32::MAX);
        for queue in 0..self.queues {
            let at = WRITTEN + 0x100 * u64::from(queue);
            let buffers = [(READ, 0x40, false), (at, 0x80, true)];
            match self.tables {
                true => self.offer(queue, 0, &buffers),
                false => self.offer(queue, 0, &buffers[1..]),
            }
        }
        self.wait();
        assert!(self.virtio.works());
        // Who has mounted nothing is told so if the good one comes later than that.
        if !self.is_mount {
            assert_eq!(self.virtio.load::<1>(WRITTEN), [FILL]);
        }
        timed("a reset", || self.virtio.reset());
        self.check();
    }

    /// Looks at what nobody may write.
    fn check(&self) {
        self.virtio.check();
        let mut bytes = vec![0; RAM as usize];
        let memory = self.virtio.space.load();
        memory.read(Gpa(0), &mut bytes).expect("it is RAM");
        let begin = 0x1000 * (usize::from(self.queues) + 1);
        let all = bytes.iter().zip(&self.memory).zip(&self.lent);
        let changed = all
            .skip(begin)
            .position(|((is, was), lent)| is != was && !lent);
        assert_eq!(
            changed.map(|at| format!("{:#x}", begin + at)),
            None,
            "memory was written that was not lent"
        );
    }
}
