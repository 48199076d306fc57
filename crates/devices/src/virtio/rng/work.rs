//! Filling buffers, on the device's thread.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use umbra_slots::DmaMemory;
use umbra_virtio::{Chain, Fault, Handler, Interrupt, Next, Queue};

use super::Source;
use crate::virtio::limiter::Limiter;

/// Most bytes that one request gets.
pub const REQUEST_MAX: usize = 0x1_0000;
/// Bytes that are asked of the source at a time.
const PIECE: usize = 0x1000;
/// After what time a source that had nothing is asked again.
const PAUSE: Duration = Duration::from_millis(100);

/// The host's random bytes. A host that has just booted may have none yet.
pub fn host_bytes(to: &mut [u8]) -> io::Result<usize> {
    Ok(getrandom(to, GetRandomFlags::NONBLOCK)?)
}

/// What is done for requests.
pub struct Work {
    source: Source,
    limiter: Arc<Limiter>,
    /// How long the request that was kept last waits for tokens, or for the source.
    wait: Duration,
    piece: Box<[u8; PIECE]>,
}

impl Work {
    pub fn new(source: Source, limiter: Arc<Limiter>) -> Self {
        Self {
            source,
            limiter,
            wait: PAUSE,
            piece: Box::new([0; PIECE]),
        }
    }

    /// Fills a request; `None` if there is not one byte for it, or no tokens.
    fn fill(&mut self, chain: &Chain<'_>) -> Result<Option<u32>, Fault> {
        let mut writer = chain.writer()?;
        let wanted = writer.available_bytes().min(REQUEST_MAX);
        if let Err(wait) = self.limiter.check(wanted as u64, Instant::now()) {
            self.wait = wait;
            return Ok(None);
        }
        let mut done = 0;
        while done < wanted {
            let len = PIECE.min(wanted - done);
            let got = self.take(len)?;
            if got == 0 {
                break;
            }
            writer.write_all(&self.piece[..got])?;
            done += got;
        }
        if done == 0 && wanted != 0 {
            self.wait = PAUSE;
            return Ok(None);
        }
        self.limiter.charge(done as u64);
        Ok(Some(done as u32))
    }

    /// Takes up to `len` bytes from the source; none if it has none now.
    fn take(&mut self, len: usize) -> Result<usize, Fault> {
        match (self.source)(&mut self.piece[..len]) {
            Ok(got) => Ok(got.min(len)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error.into()),
            },
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
        let served = queue.serve(memory, interrupt, |chain| self.fill(chain))?;
        Ok(Next::after(served, self.wait))
    }
}
