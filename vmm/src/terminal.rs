//! The machine's console behind a port of a virtio console, instead of the serial port.
//!
//! ```text
//!   ConsoleInput ── PortInput: a bounded queue, an event ──> TerminalHost ──> device's thread
//!   Console      <── Output: the queue of the serial port, too <──
//! ```
//!
//! When the guest is told that its bytes have gone they are in the queue of the output: a machine that ends
//! then prints them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use umbra_devices::virtio::console::{PortHost, Wants};
use umbra_virtio::Event;

use crate::console::Output;

/// How many bytes wait for the guest.
const QUEUE: usize = 4096;

type OnSpace = Box<dyn Fn() + Send + Sync>;

/// What was typed and not read yet.
pub struct PortInput {
    queue: Mutex<VecDeque<u8>>,
    /// There is something.
    came: Event,
    on_space: Mutex<Option<OnSpace>>,
}

impl PortInput {
    /// An empty one.
    ///
    /// # Errors
    /// If the host refuses an event.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            queue: Mutex::default(),
            came: Event::new()?,
            on_space: Mutex::new(None),
        }))
    }

    /// Has `call` called when there is room again.
    pub fn on_space(&self, call: impl Fn() + Send + Sync + 'static) {
        *self.on_space.lock() = Some(Box::new(call));
    }

    /// Takes as many bytes as there is room for, and returns how many.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut queue = self.queue.lock();
        let taken = bytes.len().min(QUEUE - queue.len());
        queue.extend(&bytes[..taken]);
        drop(queue);
        if taken > 0 {
            self.came.signal();
        }
        taken
    }

    fn read(&self, to: &mut [u8]) -> usize {
        // What comes after this signals again.
        self.came.take();
        let mut queue = self.queue.lock();
        let len = to.len().min(queue.len());
        for (place, byte) in to.iter_mut().zip(queue.drain(..len)) {
            *place = byte;
        }
        let is_left = !queue.is_empty();
        drop(queue);
        if is_left {
            self.came.signal();
        }
        if len > 0
            && let Some(call) = &*self.on_space.lock()
        {
            call();
        }
        len
    }
}

/// The host's end of the port.
pub struct TerminalHost {
    output: Output,
    /// The output has room again.
    room: Arc<Event>,
    input: Arc<PortInput>,
}

impl TerminalHost {
    /// Joins both ways.
    ///
    /// # Errors
    /// If the host refuses an event.
    pub fn new(output: Output, input: Arc<PortInput>) -> io::Result<Self> {
        let room = Arc::new(Event::new()?);
        output.on_room(room.clone());
        Ok(Self {
            output,
            room,
            input,
        })
    }
}

impl PortHost for TerminalHost {
    fn watch<'a>(&'a self, wants: Wants, fds: &mut Vec<PollFd<'a>>) {
        if wants.input {
            fds.push(PollFd::new(&self.input.came, PollFlags::IN));
        }
        if wants.output {
            fds.push(PollFd::new(&self.room, PollFlags::IN));
        }
    }

    fn is_open(&self) -> bool {
        true
    }

    fn read(&mut self, to: &mut [u8]) -> usize {
        self.input.read(to)
    }

    fn write(&mut self, from: &[u8]) -> usize {
        // Room that appears after this signals again.
        self.room.take();
        self.output.try_write(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{Console, Writer};
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn input_is_bounded_and_says_when_there_is_room() {
        let input = PortInput::new().unwrap();
        let heard = Arc::new(AtomicU32::new(0));
        let count = heard.clone();
        input.on_space(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(input.input(&[7; QUEUE + 1]), QUEUE);
        assert_eq!(input.input(b"x"), 0);
        let mut to = [0; QUEUE / 2];
        assert_eq!(input.read(&mut to), QUEUE / 2);
        assert_eq!((to[0], heard.load(Ordering::Relaxed)), (7, 1));
        assert!(input.came.take(), "there is more");
        assert_eq!(input.read(&mut [0; QUEUE]), QUEUE / 2);
        assert_eq!(input.read(&mut to), 0);
        assert!(!input.came.take());
    }

    #[test]
    fn output_that_is_full_is_left_and_output_that_is_closed_is_dropped() {
        let (release, wait) = std::sync::mpsc::channel::<()>();
        struct Stuck(std::sync::mpsc::Receiver<()>);
        impl io::Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (output, writer) = Writer::start(Console::to(Stuck(wait))).unwrap();
        let mut host = TerminalHost::new(output, PortInput::new().unwrap()).unwrap();
        while host.write(&[1; 0x1000]) == 0x1000 {}
        // The writer may have taken one batch meanwhile.
        while host.write(&[1; 0x1000]) > 0 {}
        drop(release);
        while host.write(b"x") == 0 {
            std::thread::yield_now();
        }
        writer.close();
        assert_eq!(host.write(&[1; 0x10_0000]), 0x10_0000);
    }
}
