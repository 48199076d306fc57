//! What is done with flush requests, on the device's thread.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Instant;

use umbra_slots::DmaMemory;
use umbra_virtio::{Chain, Fault, Handler, Interrupt, Next, Notifications, Queue, QueueError};

use super::Shared;
use super::syncer::{Flushed, Outcome, Syncer};

/// The only type of a request (VIRTIO_PMEM_REQ_TYPE_FLUSH).
const FLUSH: u32 = 0;

/// Answers (5.19.6).
mod response {
    pub const OK: u32 = 0;
    pub const EIO: u32 = 1;
}

/// Bytes of an answer.
const RESPONSE_LEN: usize = 4;

/// The requests at the front of the queue for which the host flushes.
struct Waiting {
    count: u16,
    outcome: Outcome,
}

/// What is done for requests.
pub struct Work {
    syncer: Arc<Syncer>,
    shared: Arc<Shared>,
    /// Bytes of the memory.
    len: u64,
    waiting: Option<Waiting>,
}

impl Work {
    pub fn new(syncer: Arc<Syncer>, shared: Arc<Shared>, len: u64) -> Self {
        Self {
            syncer,
            shared,
            len,
            waiting: None,
        }
    }
}

impl Handler for Work {
    fn serve(
        &mut self,
        queue: &mut Queue,
        memory: &DmaMemory,
        interrupt: &Interrupt,
    ) -> Result<Next, Fault> {
        if let Some(waiting) = &self.waiting {
            let (count, Some(flushed)) = (waiting.count, waiting.outcome.get().copied()) else {
                return Ok(Next::Idle);
            };
            self.waiting = None;
            answer_all(queue, memory, interrupt, (count, flushed))?;
        }
        let count = available(queue, memory)?;
        if count == 0 {
            return Ok(match queue.expect(memory, Notifications::Wanted)? {
                true => Next::More,
                false => Next::Idle,
            });
        }
        if let Err(wait) = self.shared.limiter.take(self.len, Instant::now()) {
            return Ok(Next::Retry(wait));
        }
        // What comes meanwhile is looked at when the flush is over, which signals the queue's event.
        queue.expect(memory, Notifications::Unwanted)?;
        let outcome = self.syncer.ask(queue.event().clone());
        self.waiting = Some(Waiting { count, outcome });
        Ok(Next::Idle)
    }
}

/// Counts the requests that are available, and leaves them where they are.
fn available(queue: &mut Queue, memory: &DmaMemory) -> Result<u16, QueueError> {
    let mut count = 0;
    while count < queue.state().size && queue.pop(memory)?.is_some() {
        count += 1;
    }
    for _ in 0..count {
        queue.unpop();
    }
    Ok(count)
}

/// Answers the first `count` requests.
fn answer_all(
    queue: &mut Queue,
    memory: &DmaMemory,
    interrupt: &Interrupt,
    (count, flushed): (u16, Flushed),
) -> Result<(), Fault> {
    for _ in 0..count {
        // Fewer than there were: the driver has set its index back.
        let Some(chain) = queue.pop(memory)? else {
            break;
        };
        answer(&chain, flushed)?;
        queue.push(memory, chain.head(), RESPONSE_LEN as u32)?;
    }
    if queue.needs_interrupt(memory)? {
        interrupt.used_buffers(queue.index());
    }
    Ok(())
}

fn answer(chain: &Chain<'_>, flushed: Flushed) -> Result<(), Fault> {
    let short = || QueueError::Short { head: chain.head() };
    let mut kind = [0; 4];
    chain.reader()?.read_exact(&mut kind).map_err(|_| short())?;
    let response = match (u32::from_le_bytes(kind), flushed) {
        (FLUSH, Flushed::Lasts) => response::OK,
        // There is no other answer, also not for a type of request that does not exist.
        _ => response::EIO,
    };
    let mut writer = chain.writer()?;
    if writer.available_bytes() < RESPONSE_LEN {
        return Err(short().into());
    }
    Ok(writer.write_all(&response.to_le_bytes())?)
}
