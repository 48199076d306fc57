//! A driver of a console and two ports, and what is at the host's ends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use umbra_devices::virtio::console::{PortHost, Wants};
use umbra_devices::virtio::{Console, ConsoleControl, ConsoleOptions, PortOptions};
use umbra_fuzz::{MORE, Machine, RAM, ROM, Source};
use umbra_slots::Gpa;
use umbra_virtio::Event;

/// Descriptors, available and used ring of queue 0; those of queue n are 0x3000 * n higher.
const RINGS: [u64; 3] = [0x1000, 0x2000, 0x3000];
const QUEUES: u32 = 8;
/// Messages and bytes to send.
const DATA: u64 = 0x2_0000;
const ROOM: u64 = 0x3_0000;
const SIZE: u16 = 8;

const STATUS: u64 = 0x70;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The far side of a host's end.
struct Line {
    state: Mutex<State>,
    changed: Event,
}

#[derive(Default)]
struct State {
    is_open: bool,
    /// For the guest.
    input: VecDeque<u8>,
    /// How much is taken of the guest.
    room: usize,
    taken: Vec<u8>,
}

struct End(Arc<Line>);

impl PortHost for End {
    fn watch<'a>(&'a self, _: Wants, fds: &mut Vec<PollFd<'a>>) {
        fds.push(PollFd::new(&self.0.changed, PollFlags::IN));
    }

    fn tend(&mut self) {
        self.0.changed.take();
    }

    fn is_open(&self) -> bool {
        self.0.lock().is_open
    }

    fn read(&mut self, to: &mut [u8]) -> usize {
        let mut state = self.0.lock();
        let len = to.len().min(state.input.len());
        for (place, byte) in to.iter_mut().zip(state.input.drain(..len)) {
            *place = byte;
        }
        len
    }

    fn write(&mut self, from: &[u8]) -> usize {
        let mut state = self.0.lock();
        if !state.is_open {
            return from.len();
        }
        let len = from.len().min(state.room);
        state.room -= len;
        state.taken = from[..len].to_vec();
        len
    }
}

impl Line {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            changed: Event::new().expect("the host has descriptors"),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.signal();
    }
}

/// The driver, its machine, and the far sides.
pub struct Driver {
    machine: Machine,
    control: ConsoleControl,
    lines: Vec<Arc<Line>>,
    available: [u16; QUEUES as usize],
}

fn rings(queue: u32) -> [u64; 3] {
    RINGS.map(|at| at + 0x3000 * u64::from(queue))
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(12) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => source.u64(),
        4 => rings(near as u32 % QUEUES)[near as usize % 3],
        5..8 => ROOM + near,
        _ => DATA + 8 * (near & 15),
    }
}

fn len(source: &mut Source<'_>) -> u32 {
    match source.below(6) {
        0 => source.u32(),
        1 => u32::from(source.u16()),
        2 => u32::from(source.u8()),
        3 => 0x100,
        _ => 8,
    }
}

impl Driver {
    pub fn new(source: &mut Source<'_>) -> Self {
        let count = 1 + source.below(3);
        let lines: Vec<_> = (0..count).map(|_| Line::new()).collect();
        let port = |(number, line): (usize, &Arc<Line>)| PortOptions {
            name: (number > 0).then(|| "x".repeat(40 * number)),
            is_console: number == 0,
            host: Box::new(End(line.clone())),
        };
        let options = ConsoleOptions {
            name: "fuzz".into(),
            ports: lines.iter().enumerate().map(port).collect(),
            size: (source.below(2) == 0).then_some((80, 25)),
        };
        let (device, control) = Console::new(options).expect("the host has descriptors");
        let mut driver = Self {
            machine: Machine::new(Box::new(device)),
            control,
            lines,
            available: [0; QUEUES as usize],
        };
        driver.start(u32::MAX);
        driver
    }

    fn set(&self, offset: u64, value: u32) {
        self.machine.write(offset, &value.to_le_bytes());
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.machine.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Starts with those of the device's features that are in `features`.
    fn start(&mut self, features: u32) {
        self.set(STATUS, 0);
        assert_eq!(self.get(STATUS), 0, "a reset is complete");
        self.set(STATUS, 3);
        self.set(0x14, 0);
        let offered = self.get(0x10);
        for (select, word) in [(0, offered & features), (1, 1)] {
            self.set(0x24, select);
            self.set(0x20, word);
        }
        self.set(STATUS, 11);
        for queue in 0..QUEUES {
            self.set(0x30, queue);
            if self.get(0x34) == 0 {
                continue;
            }
            self.set(0x38, SIZE.into());
            let rings = rings(queue);
            for (offset, at) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
                self.set(offset, at as u32);
                self.set(offset + 4, 0);
            }
            self.set(0x44, 1);
            self.machine.put(rings[1], &[0; 4]);
            self.machine.put(rings[2], &[0; 4]);
        }
        self.available = [0; QUEUES as usize];
        self.set(STATUS, 15);
    }

    fn describe(&self, queue: u32, index: u16, (at, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        let place = rings(queue)[0] + 16 * u64::from(index);
        self.machine.put(place, &bytes);
    }

    fn offer(&mut self, queue: u32, head: u16) {
        let available = &mut self.available[queue as usize];
        let ring = rings(queue)[1];
        let slot = ring + 4 + 2 * u64::from(*available % SIZE);
        self.machine.put(slot, &head.to_le_bytes());
        *available = available.wrapping_add(1);
        self.machine.put(ring + 2, &available.to_le_bytes());
        self.set(0x50, queue);
    }

    /// A chain of up to three buffers, for any queue.
    fn chain(&mut self, source: &mut Source<'_>) {
        let queue = source.below(QUEUES as usize) as u32;
        let head = u16::from(source.u8() % 6);
        let mut flags = match (queue % 2 == 0) != (source.below(16) == 0) {
            true => WRITE,
            false => 0,
        };
        let more = source.below(3) as u16;
        for index in head..=head + more {
            let next = match index < head + more {
                true => NEXT,
                false => 0,
            };
            let (at, len) = (address(source), len(source));
            self.describe(queue, index, (at, len, flags | next, index + 1));
            if source.below(8) == 0 {
                flags = WRITE;
            }
        }
        self.offer(queue, head);
    }

    /// A control message where data are.
    fn message(&self, source: &mut Source<'_>) {
        let port = match source.below(8) {
            0 => source.u32(),
            _ => u32::from(source.u8() & 3),
        };
        let event = source.pick(&[0u16, 3, 6, 6, 9]);
        let value = u16::from(source.below(4) != 0);
        let bytes = [
            &port.to_le_bytes()[..],
            &event.to_le_bytes(),
            &value.to_le_bytes(),
        ]
        .concat();
        self.machine
            .put(DATA + 8 * u64::from(source.u8() & 15), &bytes);
    }

    fn host(&self, source: &mut Source<'_>) {
        let line = &self.lines[source.below(self.lines.len())];
        match source.below(3) {
            0 => line.change(|state| state.is_open = !state.is_open),
            1 => {
                let len = usize::from(source.u16());
                line.change(|state| state.room = len);
            }
            _ => {
                let len = usize::from(source.u16()) >> source.below(12);
                line.change(|state| state.input.resize(len, 0x5a));
            }
        }
    }

    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        match source.below(12) {
            0 => self.start(source.u32()),
            1 | 2 => self.message(source),
            3 => self.machine.toggle(),
            4 => {
                let offset = 0x100 + u64::from(source.u8() & 0x1f);
                let width = source.pick(&[1, 2, 4, 8]);
                self.machine.write(offset, source.bytes(width));
            }
            5 => self.control.resize(source.u16(), source.u16()),
            6 | 7 => self.host(source),
            8 => {
                let place = rings(source.below(QUEUES as usize) as u32);
                let at = source.pick(&place) + u64::from(source.u8());
                let bytes = source.bytes(8);
                self.machine.put(at, bytes);
            }
            9 => std::thread::yield_now(),
            _ => self.chain(source),
        }
    }

    /// Whatever was before: after a reset the device does its work.
    pub fn finish(&mut self) {
        self.set(STATUS, 0);
        self.lines[0].change(|state| (state.is_open, state.room) = (true, usize::MAX));
        self.start(!2);
        assert_eq!(self.get(STATUS), 15);
        self.machine.put(DATA, b"still here");
        self.describe(1, 0, (DATA, 10, 0, 0));
        self.offer(1, 0);
        let begin = Instant::now();
        while self.read::<4>(rings(1)[2])[2] != 1 {
            let waited = begin.elapsed();
            assert!(waited < Duration::from_secs(5), "nothing comes back");
            std::thread::yield_now();
        }
        assert_eq!(self.lines[0].lock().taken, b"still here");
        self.set(STATUS, 0);
        self.machine.check();
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        let memory = self.machine.space.load();
        memory.read(Gpa(at), &mut bytes).expect("it is RAM");
        bytes
    }
}
