//! A transport's notifications as doorbells of the backend, one for each queue.

use std::os::fd::AsFd;
use std::sync::Arc;

use umbra_cpu::{Doorbell, Doorbells};
use umbra_slots::IoId;

use crate::Event;

/// Doorbells of one window.
pub struct Bells {
    id: IoId,
    doorbells: Arc<dyn Doorbells>,
    /// The write that notifies of a queue.
    bell: fn(u32) -> Doorbell,
    hung: Vec<Doorbell>,
}

impl Bells {
    pub fn new(id: IoId, doorbells: Arc<dyn Doorbells>, bell: fn(u32) -> Doorbell) -> Self {
        Self {
            id,
            doorbells,
            bell,
            hung: Vec::new(),
        }
    }

    /// Lets notifications of these queues ring. One that the backend refuses does so by the register.
    pub fn hang<'a>(&mut self, events: impl Iterator<Item = (u32, &'a Arc<Event>)>) {
        for (queue, event) in events {
            let doorbell = (self.bell)(queue);
            match self.doorbells.add(self.id, doorbell, event.as_fd()) {
                Ok(()) => self.hung.push(doorbell),
                Err(error) => tracing::warn!(%error, queue, "notifications are slow"),
            }
        }
    }

    /// Takes one queue's away.
    pub fn take_down(&mut self, queue: u32) {
        let bell = (self.bell)(queue);
        if let Some(at) = self.hung.iter().position(|hung| *hung == bell) {
            self.doorbells.remove(self.id, self.hung.swap_remove(at));
        }
    }

    /// Takes all away.
    pub fn take_all_down(&mut self) {
        for doorbell in self.hung.drain(..) {
            self.doorbells.remove(self.id, doorbell);
        }
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        self.take_all_down();
    }
}
