//! What all devices of a machine whose data path is elsewhere have in common: they follow the map, and their
//! conversations have deadlines.
//!
//! **The rule.** A back end never holds a slot that the guest's map has let go of for longer than the update
//! itself: [`AddressSpace::update`] returns after every back end that is connected has answered.
//!
//! ```text
//!   update(): writer lock held
//!     prepare     is there room in every back end for what comes? if not, nothing changes
//!     publish     what comes is added to every back end ── swap ── what went is taken from every one
//!     followed    did one refuse what came? then the old map comes back
//! ```
//! So memory is with the back ends before the guest can name it to them, and it is out of them before anybody
//! hears that it has gone. A back end that does not answer loses its connection, and nothing else: it gets the
//! table as it is then when it comes back.
//!
//! **Locks**: map writer → [`Link`]. Who starts queues holds the map still first
//! ([`DmaSpace::hold`](umbra_slots::DmaSpace::hold)).

use std::io;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use umbra_slots::{AddressSpace, Change, Listener, SlotError, Snapshot};

use crate::Deadlines;
use crate::back_end::BackEnd;
use crate::link::Link;

/// A link, whatever is behind it.
trait Follower: std::fmt::Debug + Send + Sync {
    fn prepare(&self, map: &Snapshot) -> Result<(), SlotError>;
    fn before(&self, map: &Snapshot) -> Result<(), SlotError>;
    fn after(&self);
}

impl<B: BackEnd + ?Sized> Follower for Link<B> {
    fn prepare(&self, map: &Snapshot) -> Result<(), SlotError> {
        Self::prepare(self, map)
    }

    fn before(&self, map: &Snapshot) -> Result<(), SlotError> {
        Self::before(self, map)
    }

    fn after(&self) {
        Self::after(self);
    }
}

/// The devices of a machine that are elsewhere.
#[derive(Debug)]
pub struct Hub {
    deadlines: Arc<Deadlines>,
    links: Mutex<Vec<Weak<dyn Follower>>>,
    failed: Mutex<Option<SlotError>>,
}

impl Hub {
    /// Makes one that follows a map, from its next change on.
    ///
    /// # Errors
    /// If the host refuses a thread.
    pub fn new(space: &AddressSpace) -> io::Result<Arc<Self>> {
        let hub = Arc::new(Self {
            deadlines: Arc::new(Deadlines::new()?),
            links: Mutex::default(),
            failed: Mutex::default(),
        });
        space.add_listener(hub.clone());
        Ok(hub)
    }

    /// Returns the deadlines of all connections.
    pub(crate) fn deadlines(&self) -> &Arc<Deadlines> {
        &self.deadlines
    }

    /// Lets a device follow the map, as long as it is there.
    pub(crate) fn join<B: BackEnd + ?Sized + 'static>(&self, link: &Arc<Link<B>>) {
        let mut links = self.links.lock();
        links.retain(|link| link.strong_count() != 0);
        let link: Weak<Link<B>> = Arc::downgrade(link);
        links.push(link);
    }

    fn links(&self) -> Vec<Arc<dyn Follower>> {
        self.links.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

impl Listener for Hub {
    fn prepare(&self, change: &Change) -> Result<(), SlotError> {
        self.links()
            .iter()
            .try_for_each(|link| link.prepare(&change.new))
    }

    fn publish(&self, change: &Change, swap: &mut dyn FnMut()) {
        let links = self.links();
        let mut failed = Ok(());
        for link in &links {
            failed = failed.and(link.before(&change.new));
        }
        swap();
        for link in &links {
            link.after();
        }
        *self.failed.lock() = failed.err();
    }

    fn followed(&self) -> Result<(), SlotError> {
        self.failed.lock().take().map_or(Ok(()), Err)
    }
}
