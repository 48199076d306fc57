//! The console's output: a bounded queue between the guest and a writer that may be slow.
//!
//! A processor that sends to the serial port only appends to the queue; a thread of its own writes
//! to the user's terminal. A terminal that stands still (Ctrl-S, a full pipe) fills the queue, and
//! then the guest waits, as on a real line; but ending the machine closes the queue, so a guest
//! that waits there does not keep it from ending.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use umbra_virtio::Event;

use crate::error::BuildError;

/// How many bytes wait for the writer before the guest does.
const QUEUE: usize = 64 << 10;
/// How long an ended machine waits for the writer to take the rest.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the guest's console goes. A copy goes to the same place.
#[derive(Clone)]
pub struct Console {
    /// One machine writes at a time, or one life of it.
    output: Arc<Mutex<Box<dyn Write + Send>>>,
}

impl Console {
    /// A console that writes to `output`, on a thread of its own.
    pub fn to(output: impl Write + Send + 'static) -> Self {
        Self {
            output: Arc::new(Mutex::new(Box::new(output))),
        }
    }

    /// A console that nobody looks at.
    pub fn discarded() -> Self {
        Self::to(io::sink())
    }
}

#[derive(Default)]
struct State {
    queue: VecDeque<u8>,
    /// Nothing more is taken.
    closed: bool,
    /// The writer has written everything, or has failed.
    done: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Signalled when there is room, for who does not wait here.
    room: OnceLock<Arc<Event>>,
}

impl Shared {
    /// Tells everybody who waits that the queue has changed.
    fn tell(&self) {
        self.changed.notify_all();
        if let Some(room) = self.room.get() {
            room.signal();
        }
    }
}

/// The guest's end of the queue.
#[derive(Clone)]
pub struct Output {
    shared: Arc<Shared>,
}

impl Output {
    /// Appends what there is room for, and returns how much that was. Everything is taken, and lost, when the
    /// machine is ending. Never blocks.
    pub fn try_write(&self, bytes: &[u8]) -> usize {
        let mut state = self.shared.state.lock();
        if state.closed {
            return bytes.len();
        }
        let taken = bytes.len().min(QUEUE.saturating_sub(state.queue.len()));
        state.queue.extend(&bytes[..taken]);
        self.shared.changed.notify_all();
        taken
    }

    /// Has an event signalled when there is room again. One is enough for a machine; more are not heard of.
    pub fn on_room(&self, event: Arc<Event>) {
        let _ = self.shared.room.set(event);
    }
}

impl Write for Output {
    /// Appends to the queue; waits while it is full. Fails when the machine is ending.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.shared.state.lock();
        while !state.closed && state.queue.len() >= QUEUE {
            self.shared.changed.wait(&mut state);
        }
        if state.closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let taken = bytes.len().min(QUEUE - state.queue.len());
        let was_empty = state.queue.is_empty();
        state.queue.extend(&bytes[..taken]);
        if was_empty {
            self.shared.changed.notify_all();
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that writes.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(console: Console) -> Result<(Output, Self), BuildError> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("console".into())
            .spawn(move || write_all(&theirs, &mut **console.output.lock()))
            .map_err(|source| BuildError::Thread {
                what: "the console",
                source,
            })?;
        let output = Output {
            shared: Arc::clone(&shared),
        };
        Ok((
            output,
            Self {
                shared,
                thread: Some(thread),
            },
        ))
    }

    /// Lets go whoever waits for room; nothing more is taken.
    pub fn close(&self) {
        self.shared.state.lock().closed = true;
        self.shared.tell();
    }
}

impl Drop for Writer {
    /// Waits until everything was written. An output that takes nothing for two seconds is given
    /// up, with its thread: nobody can interrupt somebody else's `write`.
    fn drop(&mut self) {
        self.close();
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.state.lock();
        while !state.done
            && !self
                .shared
                .changed
                .wait_until(&mut state, deadline)
                .timed_out()
        {}
        let done = state.done;
        drop(state);
        match self.thread.take() {
            Some(thread) if done => {
                // It has nothing left to do but return; a panic in somebody's writer ends there.
                let _ = thread.join();
            }
            _ => tracing::warn!("the console's output stands still and was given up"),
        }
    }
}

/// Marks the end also when the output panics.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.done = true;
        state.closed = true;
        state.queue.clear();
        self.0.tell();
    }
}

fn write_all(shared: &Shared, output: &mut dyn Write) {
    let _finish = Finish(shared);
    let mut batch = Vec::new();
    loop {
        let mut state = shared.state.lock();
        while state.queue.is_empty() {
            if state.closed {
                return;
            }
            shared.changed.wait(&mut state);
        }
        batch.clear();
        batch.extend(state.queue.drain(..));
        shared.tell();
        drop(state);
        if let Err(error) = output.write_all(&batch).and_then(|()| output.flush()) {
            tracing::warn!(%error, "the console's output failed");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Channel(mpsc::Sender<Vec<u8>>);

    impl Write for Channel {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Takes nothing until its partner is dropped.
    struct Stuck(mpsc::Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn everything_that_was_taken_is_written_before_the_end() {
        let (to, from) = mpsc::channel();
        let (mut output, writer) = Writer::start(Console::to(Channel(to))).unwrap();
        for n in 0..1000u32 {
            output.write_all(&n.to_le_bytes()).unwrap();
        }
        drop(writer);
        let written: Vec<u8> = from.iter().flatten().collect();
        assert_eq!(written.len(), 4000);
        assert!(output.write(b"x").is_err());
    }

    #[test]
    fn closing_lets_a_guest_go_that_waits_for_room() {
        let (release, wait) = mpsc::channel();
        let (mut output, writer) = Writer::start(Console::to(Stuck(wait))).unwrap();
        let guest = std::thread::spawn(move || {
            let line = vec![b'x'; 4 * QUEUE];
            output.write_all(&line).is_err()
        });
        std::thread::sleep(Duration::from_millis(20));
        writer.close();
        assert!(guest.join().unwrap());
        drop(release);
    }

    #[test]
    fn an_output_that_fails_does_not_stop_the_guest() {
        let (to, from) = mpsc::channel();
        drop(from);
        let (mut output, writer) = Writer::start(Console::to(Channel(to))).unwrap();
        output.write_all(b"x").unwrap();
        while output.write(b"x").is_ok() {}
        drop(writer);
    }
}
