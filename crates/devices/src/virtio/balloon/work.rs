//! What the queues of a balloon bring, on the device's thread.
//!
//! A run over a queue is limited by pages, not by chains: after [`TURN`] of them the other queues, and
//! whoever wants the device to stop, have their turn. A chain names [`CHAIN_PAGES`] pages at most; Linux
//! names 256, Windows 1024.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use umbra_slots::{DmaMemory, GpaRange};
use umbra_virtio::{Chain, Fault, Features, Handler, Interrupt, Next, Queue, Served};

use super::feature;
use super::pages::{PAGE, join, page};
use super::shared::Shared;
use super::statistics::{BUFFER_MAX, BalloonStatistics};

/// Pages after which somebody else has a turn: 256 MiB.
const TURN: u64 = 0x1_0000;
/// Pages of one chain that are looked at; more stay with the guest.
const CHAIN_PAGES: usize = 0x4000;
/// The thread looks again after so long, if it was asked for statistics much later.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What a queue is for (5.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Inflate,
    Deflate,
    Statistics,
    Hinting,
    Reporting,
}

/// Returns what the queue of a number is for, with these features; nothing may come by others.
pub fn role(index: u16, features: Features) -> Option<Role> {
    match index {
        0 => Some(Role::Inflate),
        1 => Some(Role::Deflate),
        2 if features.has(feature::STATS_VQ) => Some(Role::Statistics),
        3 if features.has(feature::FREE_PAGE_HINT) => Some(Role::Hinting),
        2 if features.has(feature::FREE_PAGE_HINT) => None,
        // The specification's number, or the next one that is free.
        2..=4 if features.has(feature::PAGE_REPORTING) => Some(Role::Reporting),
        _ => None,
    }
}

/// What is done with the queues.
pub struct Work {
    shared: Arc<Shared>,
    features: Features,
    ranges: Vec<GpaRange>,
}

impl Work {
    pub fn new(shared: Arc<Shared>, features: Features) -> Self {
        Self {
            shared,
            features,
            ranges: Vec::new(),
        }
    }

    /// Has `each` take one chain after the other, until it says that it has had enough pages.
    fn take(
        &mut self,
        queue: &mut Queue,
        (memory, interrupt): (&DmaMemory, &Interrupt),
        each: fn(&mut Self, &Chain<'_>, &DmaMemory) -> Result<u64, Fault>,
    ) -> Result<Next, Fault> {
        let mut left = TURN;
        let served = queue.serve(memory, interrupt, |chain| {
            if left == 0 {
                return Ok::<_, Fault>(None);
            }
            left = left.saturating_sub(each(self, chain, memory)?);
            Ok(Some(0))
        })?;
        Ok(match served {
            Served::All => Next::Idle,
            Served::More | Served::Kept => Next::More,
        })
    }

    /// Gives pages to the host; returns how many there were.
    fn inflate(&mut self, chain: &Chain<'_>, memory: &DmaMemory) -> Result<u64, Fault> {
        let mut reader = chain.reader()?;
        let named = reader.available_bytes() / 4;
        let count = named.min(CHAIN_PAGES);
        let mut numbers = vec![0; 4 * count];
        reader.read_exact(&mut numbers)?;
        let numbers = numbers.chunks_exact(4);
        let numbers = numbers.map(|bytes| u32::from_le_bytes(bytes.try_into().expect("4 bytes")));
        self.ranges.clear();
        self.ranges.extend(numbers.map(page));
        let inflated = &self.shared.counters.inflated;
        inflated.fetch_add(count as u64 * PAGE, Ordering::Relaxed);
        self.shared.ignore((named - count) as u64 * PAGE);
        self.discard(memory);
        Ok(count as u64)
    }

    /// Takes back nothing: pages come with their first touch.
    fn deflate(&mut self, chain: &Chain<'_>, _: &DmaMemory) -> Result<u64, Fault> {
        let named = chain.reader()?.available_bytes() / 4;
        let deflated = &self.shared.counters.deflated;
        deflated.fetch_add(named as u64 * PAGE, Ordering::Relaxed);
        Ok(1)
    }

    /// Gives free buffers to the host; returns how many pages there were.
    fn report(&mut self, chain: &Chain<'_>, memory: &DmaMemory) -> Result<u64, Fault> {
        let bytes = self.collect(chain)?;
        let reported = &self.shared.counters.reported;
        reported.fetch_add(bytes, Ordering::Relaxed);
        if !self.is_poisoned() {
            self.discard(memory);
        }
        Ok(1 + bytes / PAGE)
    }

    /// Hears when a run of hints begins and ends, and gives free buffers of the current one to the host; returns
    /// how many pages there were.
    fn hint(&mut self, chain: &Chain<'_>, memory: &DmaMemory) -> Result<u64, Fault> {
        let mut reader = chain.reader()?;
        let mut said = [0; 4];
        if reader.available_bytes() >= said.len() {
            reader.read_exact(&mut said)?;
            self.shared.hear_hints(u32::from_le_bytes(said));
        }
        let bytes = self.collect(chain)?;
        let hinted = &self.shared.counters.hinted;
        hinted.fetch_add(bytes, Ordering::Relaxed);
        for range in &self.ranges {
            // Held for one range at a time: whoever ends the run waits for no more than that.
            let mut hints = self.shared.hints.lock();
            let taken = match self.is_poisoned() {
                true => None,
                false => hints.take(|| memory.discard(*range)),
            };
            drop(hints);
            if let Some(result) = taken {
                self.shared.count(result);
            }
        }
        Ok(1 + bytes / PAGE)
    }

    /// Collects the buffers that the driver lets the device write; returns how many bytes they have.
    fn collect(&mut self, chain: &Chain<'_>) -> Result<u64, Fault> {
        self.ranges.clear();
        for buffer in chain.buffers()?.iter().filter(|buffer| buffer.is_writable) {
            match GpaRange::new(buffer.at, buffer.len.into()) {
                Some(range) => self.ranges.push(range),
                None => self.shared.ignore(buffer.len.into()),
            }
        }
        join(&mut self.ranges);
        Ok(self.ranges.iter().map(GpaRange::len).sum())
    }

    /// Tells whether free pages have contents that they must keep.
    fn is_poisoned(&self) -> bool {
        self.features.has(feature::PAGE_POISON) && self.shared.poison() != 0
    }

    /// Gives the collected ranges to the host.
    fn discard(&mut self, memory: &DmaMemory) {
        join(&mut self.ranges);
        for range in &self.ranges {
            self.shared.count(memory.discard(*range));
        }
    }

    /// Reads statistics, and keeps their buffer until the driver is to fill it anew.
    fn statistics(
        &mut self,
        queue: &mut Queue,
        memory: &DmaMemory,
        interrupt: &Interrupt,
    ) -> Result<Next, Fault> {
        let served = queue.serve(memory, interrupt, |chain| self.hear(chain))?;
        let patience = || self.shared.polling(|p| p.patience(Instant::now()));
        Ok(match served {
            Served::All => Next::Idle,
            Served::More => Next::More,
            Served::Kept => match patience() {
                Some(patience) => Next::Retry(patience.min(PATIENCE)),
                // Whoever asks wakes the thread.
                None => Next::Idle,
            },
        })
    }

    fn hear(&self, chain: &Chain<'_>) -> Result<Option<u32>, Fault> {
        let mut reader = chain.reader()?;
        let shared = &self.shared;
        let now = Instant::now();
        if !shared.polling(|polling| polling.is_held()) {
            let mut bytes = [0; BUFFER_MAX];
            let len = reader.available_bytes().min(BUFFER_MAX);
            reader.read_exact(&mut bytes[..len])?;
            let heard = BalloonStatistics::read(&bytes[..len], now);
            shared.polling(|polling| polling.take(heard));
        }
        Ok(shared.polling(|polling| {
            let due = polling.patience(now) == Some(Duration::ZERO);
            due.then(|| polling.ask()).map(|()| 0)
        }))
    }
}

impl Handler for Work {
    fn serve(
        &mut self,
        queue: &mut Queue,
        memory: &DmaMemory,
        interrupt: &Interrupt,
    ) -> Result<Next, Fault> {
        let with = (memory, interrupt);
        match role(queue.index(), self.features) {
            Some(Role::Inflate) => self.take(queue, with, Self::inflate),
            Some(Role::Deflate) => self.take(queue, with, Self::deflate),
            Some(Role::Hinting) => self.take(queue, with, Self::hint),
            Some(Role::Reporting) => self.take(queue, with, Self::report),
            Some(Role::Statistics) => self.statistics(queue, memory, interrupt),
            None => Ok(Next::Idle),
        }
    }
}
