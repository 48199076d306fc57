//! Keeps every processor out of the guest for a moment.
//!
//! Some changes of KVM's memory slots cannot be made in one step: a slot that shrinks has to be
//! deleted and added again, and in between its pages are not there. A processor that executes from
//! them, or whose page tables lie there, would fail for no fault of the guest. So these changes are
//! made while nobody is inside.
//!
//! ```text
//!   processor                            whoever changes slots (one at a time)
//!   inside = true                        closed = true
//!   closed? inside = false, wait         each processor that is inside: ask it to look
//!   KVM_RUN                              wait until nobody is inside
//!   inside = false, closed? tell         … change … closed = false, tell
//! ```
//! Both sides write their own flag before they read the other's, sequentially consistent: one of the
//! two sees the other. A processor takes no lock of this process while it is inside, so the wait is
//! as long as the way out of the guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::kick::{Requests, request};

/// The pen of one machine.
#[derive(Default)]
pub struct Pen {
    closed: AtomicBool,
    places: Mutex<Vec<Arc<Place>>>,
    changed: Condvar,
}

/// Where one processor stands.
pub struct Place {
    inside: AtomicBool,
    requests: Arc<Requests>,
}

impl Pen {
    /// Adds a processor, outside.
    pub fn add(&self, requests: Arc<Requests>) -> Arc<Place> {
        let place = Arc::new(Place {
            inside: AtomicBool::new(false),
            requests,
        });
        self.places.lock().push(place.clone());
        place
    }

    /// Removes a processor, which is outside.
    pub fn remove(&self, place: &Arc<Place>) {
        self.places
            .lock()
            .retain(|other| !Arc::ptr_eq(other, place));
    }

    /// Lets a processor in; waits while the pen is closed.
    pub fn enter(&self, place: &Place) {
        loop {
            place.inside.store(true, Ordering::SeqCst);
            if !self.closed.load(Ordering::SeqCst) {
                return;
            }
            self.leave(place);
            let mut places = self.places.lock();
            while self.closed.load(Ordering::SeqCst) {
                self.changed.wait(&mut places);
            }
        }
    }

    /// Tells that a processor has left the guest.
    pub fn leave(&self, place: &Place) {
        place.inside.store(false, Ordering::SeqCst);
        if self.closed.load(Ordering::SeqCst) {
            // Under the lock, so that whoever waits has either seen the flag or hears this.
            let _places = self.places.lock();
            self.changed.notify_all();
        }
    }

    /// Runs `body` while no processor is in the guest. Not to be called from inside another `body`;
    /// the caller holds what makes it the only one.
    pub fn outside<R>(&self, body: impl FnOnce() -> R) -> R {
        self.closed.store(true, Ordering::SeqCst);
        {
            let mut places = self.places.lock();
            let inside = |place: &&Arc<Place>| place.inside.load(Ordering::SeqCst);
            for place in places.iter().filter(inside) {
                place.requests.ask(request::LOOK);
            }
            while places.iter().any(|place| inside(&place)) {
                self.changed.wait(&mut places);
            }
        }
        let _open = Open(self);
        body()
    }
}

/// Opens the pen, also when the body panics.
struct Open<'a>(&'a Pen);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.closed.store(false, Ordering::SeqCst);
        let _places = self.0.places.lock();
        self.0.changed.notify_all();
    }
}
