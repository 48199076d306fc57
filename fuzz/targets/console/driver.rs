//! A driver of a console and two ports, and what is at the host's ends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags};
use umbra_devices::virtio::console::{PortHost, Wants};
use umbra_devices::virtio::{Console, ConsoleControl, ConsoleOptions, PortOptions};
use umbra_fuzz::{MORE, NEXT, RAM, ROM, Source, VirtioDriver, WRITE};
use umbra_virtio::Event;

const QUEUES: usize = 8;
/// Messages and bytes to send.
const DATA: u64 = 0x2_0000;
const ROOM: u64 = 0x3_0000;

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

/// The driver, and the far sides.
pub struct Driver {
    virtio: VirtioDriver,
    control: ConsoleControl,
    lines: Vec<Arc<Line>>,
}

fn address(source: &mut Source<'_>) -> u64 {
    let near = u64::from(source.u8());
    match source.below(12) {
        0 => RAM - near,
        1 => MORE + near,
        2 => ROM - near,
        3 => source.u64(),
        4 => VirtioDriver::rings(near as u16 % QUEUES as u16)[near as usize % 3],
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
        Self {
            virtio: VirtioDriver::new(Box::new(device), QUEUES),
            control,
            lines,
        }
    }

    /// A chain of up to three buffers, for any queue.
    fn chain(&mut self, source: &mut Source<'_>) {
        let queue = source.below(QUEUES) as u16;
        let head = u16::from(source.u8() % 6);
        let mut flags = match queue.is_multiple_of(2) != (source.below(16) == 0) {
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
            self.virtio
                .describe(queue, index, (at, len, flags | next, index + 1));
            if source.below(8) == 0 {
                flags = WRITE;
            }
        }
        self.virtio.offer(queue, head);
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
        self.virtio
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
            0 => self.virtio.start(source.u32()),
            1 | 2 => self.message(source),
            3 => self.virtio.toggle(),
            4 => self.virtio.write_config(source, 0x20),
            5 => self.control.resize(source.u16(), source.u16()),
            6 | 7 => self.host(source),
            8 => self.virtio.poke(source),
            9 => std::thread::yield_now(),
            _ => self.chain(source),
        }
    }

    /// Whatever was before: after a reset the device does its work.
    pub fn finish(mut self) {
        self.virtio.reset();
        self.lines[0].change(|state| (state.is_open, state.room) = (true, usize::MAX));
        self.virtio.start(!2);
        assert!(self.virtio.works());
        self.virtio.put(DATA, b"still here");
        self.virtio.describe(1, 0, (DATA, 10, 0, 0));
        self.virtio.offer(1, 0);
        self.virtio.wait(1);
        assert_eq!(self.lines[0].lock().taken, b"still here");
        self.virtio.reset();
        self.virtio.check();
    }
}
