//! What every transport keeps in front of a device: the session, selectors, doorbells.

use std::sync::Arc;

use umbra_cpu::{Doorbell, Doorbells};
use umbra_slots::IoId;

use crate::bells::Bells;
use crate::session::{Session, Step};

/// A device's session, as the driver's registers lead to it.
pub(crate) struct Front {
    pub session: Session,
    bells: Option<Bells>,
    /// Which 32 bits of the offer are read.
    pub offered_select: u32,
    /// Which 32 bits are accepted.
    pub accepted_select: u32,
    /// Which queue is set up.
    pub queue_select: u32,
}

impl Front {
    pub fn new(session: Session) -> Self {
        Self {
            session,
            bells: None,
            offered_select: 0,
            accepted_select: 0,
            queue_select: 0,
        }
    }

    /// Lets notifications reach the device by doorbells of window `id`.
    pub fn attach(&mut self, id: IoId, doorbells: Arc<dyn Doorbells>, bell: fn(u32) -> Doorbell) {
        // Those of another window go first.
        self.bells = None;
        let mut bells = Bells::new(id, doorbells, bell);
        bells.hang(self.session.events());
        self.bells = Some(bells);
    }

    /// Does what a write of the status asks for. Tells whether that was a reset: the device has stopped then,
    /// and nobody interrupts any more.
    #[must_use = "after a reset nothing may be left of the interrupts before"]
    pub fn set_status(&mut self, value: u32) -> bool {
        match self.session.set_status(value) {
            Step::Nothing => false,
            Step::Started => {
                if let Some(bells) = &mut self.bells {
                    bells.hang(self.session.events());
                }
                false
            }
            Step::Reset => {
                self.offered_select = 0;
                self.accepted_select = 0;
                self.queue_select = 0;
                if let Some(bells) = &mut self.bells {
                    bells.take_all_down();
                }
                true
            }
        }
    }

    /// Takes the selected queue back.
    pub fn take_queue(&mut self) {
        if let Some(bells) = &mut self.bells {
            bells.take_down(self.queue_select);
        }
        self.session.set_queue_ready(self.queue_select, false);
    }

    /// Resets the device for good, and takes its doorbells away.
    pub fn shut_down(&mut self) {
        self.bells = None;
        self.session.reset();
    }
}
