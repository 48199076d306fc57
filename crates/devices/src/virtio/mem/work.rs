//! What is done for requests, on the device's thread.

use std::sync::Arc;
use std::time::Duration;

use umbra_slots::DmaMemory;
use umbra_virtio::{Chain, Fault, Handler, Interrupt, Next, Queue};

use super::request::{Answer, Request};
use super::shared::Shared;

/// What is done.
pub struct Work {
    shared: Arc<Shared>,
}

impl Work {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn answer(&self, chain: &Chain<'_>) -> Result<u32, Fault> {
        let request = Request::read(chain)?;
        // What cannot be told must not be done.
        Answer::check_room(chain)?;
        self.shared.serve(request).write(chain)
    }
}

impl Handler for Work {
    fn serve(
        &mut self,
        queue: &mut Queue,
        memory: &DmaMemory,
        interrupt: &Interrupt,
    ) -> Result<Next, Fault> {
        let served = queue.serve(memory, interrupt, |chain| self.answer(chain).map(Some))?;
        Ok(Next::after(served, Duration::ZERO))
    }
}
