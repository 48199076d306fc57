//! A thread of a device's own, which can be stopped and waited for.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::Event;

/// A thread that ends when its stop event is signalled, and gives something back then.
///
/// Dropping it stops it, too.
#[derive(Debug)]
pub struct Worker<T> {
    stop: Arc<Event>,
    thread: Option<JoinHandle<T>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts `work`, which has to return soon after the event that it is given was signalled. Longer
    /// names than 15 bytes are cut by the host.
    ///
    /// # Errors
    /// If the host refuses a thread or an event.
    pub fn start(name: &str, work: impl FnOnce(&Event) -> T + Send + 'static) -> io::Result<Self> {
        let stop = Arc::new(Event::new()?);
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(&stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Stops it and waits for it. `None` if it has panicked.
    pub fn stop(mut self) -> Option<T> {
        self.end()
    }
}

impl<T> Worker<T> {
    fn end(&mut self) -> Option<T> {
        self.stop.signal();
        let result = self.thread.take()?.join();
        // The panic itself was reported when it happened.
        result.ok()
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn wait(stop: &Event) -> u32 {
        poll(&mut [PollFd::new(stop, PollFlags::IN)], None).unwrap();
        7
    }

    #[test]
    fn it_is_stopped_and_gives_something_back() {
        let worker = Worker::start("test", wait).unwrap();
        assert_eq!(worker.stop(), Some(7));
        drop(Worker::start("test", wait).unwrap());
    }

    #[test]
    fn one_that_panics_gives_nothing_back() {
        let worker = Worker::start("test", |_| -> u32 { panic!("on purpose") }).unwrap();
        assert_eq!(worker.stop(), None);
    }
}
