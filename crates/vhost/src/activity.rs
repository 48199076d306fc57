//! A device's relay while it is active, and what is not done while it is not.

use std::io;

use umbra_virtio::{Queue, Worker};

use crate::back_end::BackEnd;
use crate::relay::{Left, Relay};
use crate::session::Session;

/// See the module.
#[derive(Default)]
pub struct Activity {
    relay: Option<Worker<Left>>,
    left: Left,
}

impl Activity {
    /// Takes what was between driver and back end, if the device only stood still.
    pub fn session(&mut self) -> Option<Session> {
        self.left.session.take()
    }

    /// Starts the relay that is made for queues and what is left of them.
    ///
    /// # Errors
    /// If it cannot be made, or the host refuses a thread.
    pub fn begin<B: BackEnd + ?Sized + 'static>(
        &mut self,
        queues: Vec<Queue>,
        relay: impl FnOnce(Left) -> io::Result<Relay<B>>,
    ) -> io::Result<()> {
        let left = Left {
            queues,
            ..std::mem::take(&mut self.left)
        };
        let relay = relay(left)?;
        self.relay = Some(Worker::start("vhost-relay", move |stop| relay.run(stop))?);
        Ok(())
    }

    /// Stops it, and keeps what is not done.
    pub fn end(&mut self) -> Vec<Queue> {
        let left = self.relay.take().and_then(Worker::stop);
        self.left = left.unwrap_or_default();
        std::mem::take(&mut self.left.queues)
    }

    /// What is not done is of no interest any more.
    pub fn forget(&mut self) {
        self.left = Left::default();
    }
}
