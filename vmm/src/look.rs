//! Looks at devices now and then, and notes what they have done by themselves.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use umbra_virtio::Transport;

use crate::build::Control;
use crate::devices::Attached;
use crate::journal::{Journal, News};

/// How long nobody looks while somebody follows the log.
const FOLLOWED: Duration = Duration::from_millis(200);
/// How long nobody looks else.
const ALONE: Duration = Duration::from_secs(2);
/// How long a limit must not have held anything back before it is news that it does.
const REST: Duration = Duration::from_secs(5);

/// What was seen the last time, and when the next time is.
pub struct Look {
    devices: BTreeMap<String, Seen>,
    last: Instant,
    due: Instant,
}

/// What was seen of a device.
struct Seen {
    /// Another device may have the name since.
    transport: Weak<dyn Transport>,
    works: bool,
    failed: bool,
    /// Whether it is connected, and how often it was lost.
    back_end: (bool, u64),
    up: bool,
    /// Bytes that are wanted, and that are there.
    amount: Option<(u64, u64)>,
    throttled: u64,
    throttled_at: Option<Instant>,
}

impl Seen {
    fn nothing(transport: &Arc<dyn Transport>) -> Self {
        Self {
            transport: Arc::downgrade(transport),
            works: false,
            failed: false,
            back_end: (true, 0),
            up: true,
            amount: None,
            throttled: 0,
            throttled_at: None,
        }
    }

    fn is_of(&self, transport: &Arc<dyn Transport>) -> bool {
        Weak::ptr_eq(&self.transport, &Arc::downgrade(transport))
    }
}

impl Look {
    /// Begins with a machine whose devices have done nothing.
    pub fn new(now: Instant) -> Self {
        Self {
            devices: BTreeMap::new(),
            last: now,
            due: now + FOLLOWED,
        }
    }

    /// Returns when it is time to look again.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Tells whether it is time, and is so from now on for another while.
    pub fn begin(&mut self, now: Instant, journal: &Journal) -> bool {
        if now < self.due {
            return false;
        }
        let pause = match journal.is_followed() {
            true => FOLLOWED,
            false => ALONE,
        };
        self.due = now + pause;
        self.last = now;
        true
    }

    /// Looks at all devices that are there.
    pub fn at(&mut self, devices: &[Attached], journal: &Journal) {
        let is_there = |id: &String| devices.iter().any(|device| device.spec.id == *id);
        self.devices.retain(|id, _| is_there(id));
        for device in devices {
            let id = &device.spec.id;
            let seen = self.devices.entry(id.clone());
            let seen = seen.or_insert_with(|| Seen::nothing(&device.transport));
            if !seen.is_of(&device.transport) {
                *seen = Seen::nothing(&device.transport);
            }
            seen.look(id, device, self.last, &mut |news| journal.note(news));
        }
    }
}

impl Seen {
    fn look(&mut self, id: &str, device: &Attached, now: Instant, note: &mut dyn FnMut(News)) {
        let id = || id.to_owned();
        let failed = device.transport.needs_reset();
        if failed && !self.failed {
            note(News::DeviceFailed { id: id() });
        }
        self.failed = failed;
        let works = device.transport.is_active();
        if works != self.works {
            note(match works {
                true => News::DriverStarted { id: id() },
                false => News::DriverStopped { id: id() },
            });
        }
        self.works = works;
        let Some(control) = &device.control else {
            return;
        };
        if let Some(state) = control.back_end() {
            let now = (state.connected, state.losses);
            if now.1 != self.back_end.1 {
                let reason = state.error.unwrap_or_default();
                note(News::BackEndLost { id: id(), reason });
            }
            if now.0 && (now.1 != self.back_end.1 || !self.back_end.0) {
                note(News::BackEndFound { id: id() });
            }
            self.back_end = now;
        }
        if let Control::Net(net) = control {
            let up = net.is_up();
            if std::mem::replace(&mut self.up, up) != up {
                note(News::LinkChanged { id: id(), up });
            }
        }
        self.look_at_amount(&id, control, note);
        self.look_at_limits(&id, control, now, note);
    }

    fn look_at_amount(
        &mut self,
        id: &dyn Fn() -> String,
        control: &Control,
        note: &mut dyn FnMut(News),
    ) {
        let (amount, news) = match control {
            Control::Balloon(balloon) => {
                let (id, target, actual) = (id(), balloon.target(), balloon.actual());
                let news = News::BalloonChanged { id, target, actual };
                ((target, actual), news)
            }
            Control::Mem(memory) => {
                let (id, requested, plugged) = (id(), memory.requested(), memory.plugged());
                let news = News::MemoryChanged {
                    id,
                    requested,
                    plugged,
                };
                ((requested, plugged), news)
            }
            _ => return,
        };
        // One that has nothing from the beginning is no news.
        if self.amount.unwrap_or((0, 0)) != amount {
            note(news);
        }
        self.amount = Some(amount);
    }

    fn look_at_limits(
        &mut self,
        id: &dyn Fn() -> String,
        control: &Control,
        now: Instant,
        note: &mut dyn FnMut(News),
    ) {
        let throttled = control.throttled();
        if throttled == self.throttled {
            return;
        }
        self.throttled = throttled;
        let rested = |at: Instant| now.duration_since(at) >= REST;
        if self.throttled_at.is_none_or(rested) {
            note(News::RateLimited {
                id: id(),
                throttled,
            });
        }
        self.throttled_at = Some(now);
    }
}
