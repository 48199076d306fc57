//! The engine that works everywhere: a few threads, each of which does one request at a time.
//!
//! Threads are started when there is work for them, up to [`THREADS`]: a disk that is rarely used
//! costs one. They end when the pool is dropped, which waits for what they are doing.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use crate::engine::execute;
use crate::wake::Wake;
use crate::{Completion, Disk, Job};

/// Requests that are served at a time, at most.
const THREADS: usize = 4;

/// The pool.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    state: Mutex<State>,
    work: Condvar,
    wake: Wake,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<Completion>,
    /// Threads that wait for work.
    idle: usize,
    closed: bool,
}

impl Pool {
    pub fn new(disk: Arc<dyn Disk>) -> io::Result<Self> {
        let shared = Shared {
            disk,
            state: Mutex::default(),
            work: Condvar::new(),
            wake: Wake::new()?,
        };
        Ok(Self {
            shared: Arc::new(shared),
            threads: Vec::new(),
        })
    }

    pub fn submit(&mut self, job: Job) {
        let mut state = self.shared.state.lock();
        state.jobs.push_back(job);
        let enough = state.idle >= state.jobs.len();
        drop(state);
        if !enough && self.threads.len() < THREADS {
            self.hire();
        }
        self.shared.work.notify_one();
    }

    fn hire(&mut self) {
        let shared = self.shared.clone();
        let thread = thread::Builder::new()
            .name("block-io".into())
            .spawn(move || shared.run());
        match thread {
            Ok(thread) => self.threads.push(thread),
            // Those that are there do the work.
            Err(_) if !self.threads.is_empty() => {}
            Err(error) => self.shared.give_up(error.kind()),
        }
    }

    pub fn event(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    /// Signals the event, as if something had completed.
    pub fn wake(&self) {
        self.shared.wake.signal();
    }

    pub fn completed(&mut self) -> Vec<Completion> {
        self.shared.wake.take();
        std::mem::take(&mut self.shared.state.lock().done)
    }

    pub fn cancel(&mut self) {
        self.shared.give_up(io::ErrorKind::Interrupted);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// What each thread does.
    fn run(&self) {
        while let Some(job) = self.next() {
            let tag = job.tag;
            let work = AssertUnwindSafe(|| execute(&*self.disk, &job));
            let panicked = |_| Err(io::Error::other("the disk's code panicked"));
            let result = catch_unwind(work).unwrap_or_else(panicked);
            // Whoever hears of it may take the memory away.
            drop(job);
            self.state.lock().done.push(Completion { tag, result });
            self.wake.signal();
        }
    }

    /// Waits for a request; `None` at the end.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state.idle += 1;
            self.work.wait(&mut state);
            state.idle -= 1;
        }
    }

    /// Ends all that no thread has begun.
    fn give_up(&self, kind: io::ErrorKind) {
        let mut state = self.state.lock();
        let jobs = std::mem::take(&mut state.jobs);
        let ended = jobs.into_iter().map(|job| Completion {
            tag: job.tag,
            result: Err(kind.into()),
        });
        state.done.extend(ended);
        self.wake.signal();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} on {}", self.state.lock(), self.disk.name())
    }
}
