//! What happens to a machine, in its order: a log whose entries have numbers, and those who follow it.
//!
//! ```text
//!   driver, devices, Vm ── note ──> [ the last entries, numbered ] ── take, wait ──> Events (one for each follower)
//!                                         └─ signal ──> its descriptor, for an event loop
//! ```
//! Numbers begin with 1 and leave none out, over every restart of the machine: who was away asks for what follows the
//! number that he saw last. So many entries are kept ([`Journal::KEPT`]); who was away for longer is told how many he
//! missed. Noting never waits for a follower.
//!
//! What devices do by themselves (balloons, back ends, limits) is noticed by looking at them, every fifth of a second
//! while somebody follows and every two seconds else (`look`): a hostile guest cannot fill
//! the log, and what changes to and fro in between is not seen, but for what is counted.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use schemars::JsonSchema;
use serde::Serialize;
use umbra_virtio::Event;

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum News {
    /// The guest begins, for the so-manieth time: 1 is the first.
    Started {
        /// How often it has begun.
        boot: u64,
        /// What executes it.
        backend: String,
    },
    /// All processors stand still.
    Paused,
    /// They go on.
    Resumed,
    /// One processor stands still by itself.
    CpuPaused {
        /// Its number.
        cpu: usize,
    },
    /// It goes on.
    CpuResumed {
        /// Its number.
        cpu: usize,
    },
    /// A device was added, and the guest told.
    DeviceAdded {
        /// Its name.
        id: String,
        /// What it is, as in `virtio-KIND`.
        kind: String,
    },
    /// The guest was asked to let a device go.
    DeviceRemovalAsked {
        /// Its name.
        id: String,
    },
    /// A device has gone, and what it had of the host is given back.
    DeviceRemoved {
        /// Its name.
        id: String,
    },
    /// The guest's driver has started a device.
    DriverStarted {
        /// The device's name.
        id: String,
    },
    /// The guest's driver has stopped it.
    DriverStopped {
        /// The device's name.
        id: String,
    },
    /// A device cannot go on until its driver resets it (DEVICE_NEEDS_RESET).
    DeviceFailed {
        /// Its name.
        id: String,
    },
    /// Another file is behind a disk.
    DiskReplaced {
        /// Its name.
        id: String,
        /// The file.
        path: String,
    },
    /// A network interface is up, or down: its cable was pulled, or its host's end has gone.
    LinkChanged {
        /// Its name.
        id: String,
        /// Whether it is up.
        up: bool,
    },
    /// The guest has lent or taken back memory.
    BalloonChanged {
        /// The balloon's name.
        id: String,
        /// Bytes that it is to lend.
        target: u64,
        /// Bytes that it lends.
        actual: u64,
    },
    /// The guest has taken or given back memory.
    MemoryChanged {
        /// The device's name.
        id: String,
        /// Bytes that it is to have.
        requested: u64,
        /// Bytes that it has.
        plugged: u64,
    },
    /// A device's limit has begun to hold its guest back, after five seconds at least in which it did not.
    RateLimited {
        /// The device's name.
        id: String,
        /// How often it has held something back since the device is there.
        throttled: u64,
    },
    /// A device's back end is gone; the guest's requests wait.
    BackEndLost {
        /// The device's name.
        id: String,
        /// Why.
        reason: String,
    },
    /// It is there again.
    BackEndFound {
        /// The device's name.
        id: String,
    },
    /// The guest's kernel says that it has crashed. What becomes of it is its own affair; told once in each life.
    GuestPanic,
    /// The machine is reset, and begins again.
    Reset {
        /// The guest asked for it, and not somebody outside.
        by_guest: bool,
    },
    /// It has ended.
    Ended {
        /// How, or why.
        reason: String,
    },
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub number: u64,
    /// When it was noted.
    pub at: SystemTime,
    /// What has happened.
    pub news: News,
}

/// The log of a machine.
#[derive(Default)]
pub(crate) struct Journal {
    log: Mutex<Log>,
    changed: Condvar,
}

#[derive(Default)]
struct Log {
    /// The number of the entry that was noted last.
    last: u64,
    entries: VecDeque<Entry>,
    followers: Vec<Weak<Follower>>,
}

/// How somebody is told that there is something to take.
struct Follower {
    event: Event,
    call: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Follower {
    fn tell(&self) {
        self.event.signal();
        if let Some(call) = self.call.get() {
            call();
        }
    }
}

impl Journal {
    /// How many entries are kept.
    pub const KEPT: usize = 4096;

    /// Notes what has happened.
    pub fn note(&self, news: News) {
        tracing::debug!(?news, "news");
        let mut log = self.log.lock();
        log.last += 1;
        let number = log.last;
        if log.entries.len() == Self::KEPT {
            log.entries.pop_front();
        }
        log.entries.push_back(Entry {
            number,
            at: SystemTime::now(),
            news,
        });
        log.followers.retain(|follower| {
            let follower = follower.upgrade();
            follower.inspect(|follower| follower.tell()).is_some()
        });
        drop(log);
        self.changed.notify_all();
    }

    /// Tells whether somebody follows.
    pub fn is_followed(&self) -> bool {
        let log = self.log.lock();
        let mut followers = log.followers.iter();
        followers.any(|follower| follower.strong_count() > 0)
    }

    /// Makes a follower that has seen everything up to the entry of this number, and what is noted before now if there
    /// is no number.
    pub fn follow(self: &Arc<Self>, seen: Option<u64>) -> io::Result<Events> {
        let follower = Arc::new(Follower {
            event: Event::new()?,
            call: OnceLock::new(),
        });
        let mut log = self.log.lock();
        log.followers.push(Arc::downgrade(&follower));
        // A number that was never given is one of another machine, or a mistake: what is there is new then.
        let seen = match seen {
            Some(seen) if seen <= log.last => seen,
            Some(_) => 0,
            None => log.last,
        };
        if seen < log.last {
            follower.tell();
        }
        drop(log);
        Ok(Events {
            journal: self.clone(),
            seen,
            follower,
        })
    }
}

/// The log of a machine, made before the machine is: for who wants to follow what happens from the beginning, or
/// through several machines that are one to its users ([`Builder::log`](crate::Builder::log)). Cheap to clone.
#[derive(Clone, Default)]
pub struct EventLog(pub(crate) Arc<Journal>);

impl EventLog {
    /// Follows it as [`Handle::events`](crate::Handle::events) does.
    ///
    /// # Errors
    /// If the host gives no descriptor.
    pub fn follow(&self, seen: Option<u64>) -> io::Result<Events> {
        self.0.follow(seen)
    }
}

/// Who follows the log of a machine. Its descriptor is readable when there may be something to
/// [`take`](Self::take): for `poll`, epoll, or what stands on them.
pub struct Events {
    journal: Arc<Journal>,
    seen: u64,
    follower: Arc<Follower>,
}

/// What there was to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Taken {
    /// How many entries were dropped before they were taken.
    pub missed: u64,
    /// The entries.
    pub entries: Vec<Entry>,
}

impl Events {
    /// Takes what was noted since the last time; at most so many entries that a slow follower need not hold all of
    /// them. Never blocks.
    pub fn take(&mut self, most: usize) -> Taken {
        // Before it is looked: what is noted after this signals again.
        self.follower.event.take();
        let log = self.journal.log.lock();
        let first = log.last + 1 - log.entries.len() as u64;
        let from = first.max(self.seen + 1);
        let missed = from - (self.seen + 1);
        let skip = (from - first) as usize;
        let entries: Vec<_> = log.entries.iter().skip(skip).take(most).cloned().collect();
        self.seen = from - 1 + entries.len() as u64;
        if self.seen < log.last {
            self.follower.event.signal();
        }
        Taken { missed, entries }
    }

    /// Takes what was noted, as [`take`](Self::take) does, and waits for it as long as `patience` if there is nothing.
    pub fn wait(&mut self, patience: Duration, most: usize) -> Taken {
        let until = Instant::now() + patience;
        let mut log = self.journal.log.lock();
        while log.last == self.seen {
            if self.journal.changed.wait_until(&mut log, until).timed_out() {
                break;
            }
        }
        drop(log);
        self.take(most)
    }

    /// Has `call` called, besides, whenever something is noted from now on: for who waits for no descriptor. It is called
    /// under the log's lock, must not block, and must not use the log. Only the first one counts.
    pub fn on_news(&self, call: impl Fn() + Send + Sync + 'static) {
        let _ = self.follower.call.set(Box::new(call));
    }

    /// The number of the entry that was taken last.
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.follower.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(taken: &Taken) -> Vec<u64> {
        taken.entries.iter().map(|entry| entry.number).collect()
    }

    #[test]
    fn a_follower_sees_what_follows_the_number_that_it_saw_last() {
        let journal = Arc::new(Journal::default());
        journal.note(News::Paused);
        journal.note(News::Resumed);
        let mut all = journal.follow(Some(0)).unwrap();
        let mut late = journal.follow(Some(1)).unwrap();
        let mut new = journal.follow(None).unwrap();
        assert_eq!(numbers(&all.take(9)), [1, 2]);
        assert_eq!(numbers(&late.take(9)), [2]);
        assert_eq!(new.take(9), Taken::default());
        journal.note(News::Paused);
        for events in [&mut all, &mut late, &mut new] {
            assert!(events.follower.event.take(), "it was signalled");
            assert_eq!(numbers(&events.take(9)), [3]);
            assert!(!events.follower.event.take(), "there is nothing more");
        }
    }

    #[test]
    fn who_takes_a_part_is_told_that_there_is_more() {
        let journal = Arc::new(Journal::default());
        (0..5).for_each(|_| journal.note(News::Paused));
        let mut events = journal.follow(Some(0)).unwrap();
        assert_eq!(numbers(&events.take(3)), [1, 2, 3]);
        assert!(events.follower.event.take());
        assert_eq!(numbers(&events.take(3)), [4, 5]);
        assert!(!events.follower.event.take());
    }

    #[test]
    fn what_was_dropped_is_counted_and_numbers_of_other_machines_mean_nothing() {
        let journal = Arc::new(Journal::default());
        let mut slow = journal.follow(Some(0)).unwrap();
        (0..Journal::KEPT + 10).for_each(|_| journal.note(News::Paused));
        let taken = slow.take(usize::MAX);
        assert_eq!((taken.missed, taken.entries[0].number), (10, 11));
        assert_eq!(slow.seen(), Journal::KEPT as u64 + 10);
        let mut stranger = journal.follow(Some(1 << 40)).unwrap();
        assert_eq!(stranger.take(1).missed, 10);
    }

    #[test]
    fn who_waits_is_woken_and_who_leaves_is_forgotten() {
        let journal = Arc::new(Journal::default());
        let mut events = journal.follow(None).unwrap();
        let theirs = journal.clone();
        let thread = std::thread::spawn(move || theirs.note(News::GuestPanic));
        let taken = events.wait(Duration::from_secs(60), 9);
        assert_eq!(taken.entries[0].news, News::GuestPanic);
        thread.join().unwrap();
        assert!(journal.is_followed());
        assert_eq!(events.wait(Duration::ZERO, 9), Taken::default());
        drop(events);
        assert!(!journal.is_followed());
    }
}
