//! A device's connection, with what its back end has: pieces of memory, and queues that it works on.
//!
//! ```text
//!   keeper ── set ──> Link ── start, stop <── relay
//!                      │
//!                      └── prepare, before, after <── Hub, for every change of the map
//! ```
//! A connection that breaks is [lost](Link::lose) by whoever finds it; the keeper looks for another one. What
//! the back end had is forgotten with it.
//!
//! *The log.* A loss is told, and the return when the new connection has [lasted](Link::lasts) for a moment. One that
//! is lost again before that, for the same reason, is not told of: a back end that refuses what it is given is found
//! and lost once a second.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use umbra_slots::{Hold, SlotError, Snapshot};
use umbra_virtio::{Event, Features};

use crate::channel::{Channel, RingPlace};
use crate::gate::Gate;
use crate::table::{Piece, Step, pieces_of, step};
use crate::{BackEndError, Kind};

/// A queue that a back end works on.
#[derive(Clone, Debug)]
pub struct Started {
    /// Its number.
    pub index: u16,
    /// Where it is.
    pub place: RingPlace,
    /// What notifies the back end.
    pub kick: Arc<Event>,
    /// What it notifies by.
    pub call: Arc<Event>,
    /// What it signals when it cannot go on.
    pub fault: Arc<Event>,
}

/// How a back end is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackEndState {
    /// It is connected.
    pub connected: bool,
    /// Since when that is so.
    pub since: Instant,
    /// How often the connection was lost.
    pub losses: u64,
    /// Why it was lost last, or could not be made.
    pub error: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub struct Link {
    /// What the device is called.
    name: String,
    /// Where its back end listens.
    socket: PathBuf,
    /// What is true while there is none.
    meanwhile: &'static str,
    /// Signalled when the connection is lost.
    lost: Event,
    /// Signalled by a back end that cannot go on.
    fault: Arc<Event>,
    gate: Gate,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    channel: Option<Arc<Channel>>,
    /// What the back end has mapped, by ascending address.
    has: Vec<Piece>,
    running: Option<Running>,
    /// What is left to do of a change of the map.
    pending: Step,
    state: BackEndState,
    /// The connection has not lasted yet; since when there was none.
    new_after: Option<Duration>,
}

#[derive(Debug)]
struct Running {
    /// Memory of the rings.
    rings_at: Piece,
    rings: Vec<Started>,
}

impl Link {
    /// Makes one over a connection.
    ///
    /// # Errors
    /// If the host refuses an event.
    pub fn new(
        name: &str,
        (socket, kind): (&Path, &Kind),
        channel: Arc<Channel>,
    ) -> Result<Arc<Self>, BackEndError> {
        let event = || {
            Event::new().map_err(|source| BackEndError::Host {
                what: "an event",
                source,
            })
        };
        let (lost, fault) = (event()?, Arc::new(event()?));
        Ok(Arc::new(Self {
            name: name.to_owned(),
            socket: socket.to_owned(),
            meanwhile: kind.meanwhile(),
            lost,
            fault,
            gate: Gate::new(kind.ends_requests()),
            inner: Mutex::new(Inner {
                channel: Some(channel),
                has: Vec::new(),
                running: None,
                pending: Step::default(),
                state: BackEndState {
                    connected: true,
                    since: Instant::now(),
                    losses: 0,
                    error: None,
                },
                new_after: None,
            }),
        }))
    }

    /// Returns what the device is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what is signalled when the connection is lost.
    pub fn lost(&self) -> &Event {
        &self.lost
    }

    /// Returns what a back end signals that cannot go on.
    pub fn fault(&self) -> &Arc<Event> {
        &self.fault
    }

    /// Returns what requests go through to the back end.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Returns the connection, if there is one.
    pub fn channel(&self) -> Option<Arc<Channel>> {
        self.inner.lock().channel.clone()
    }

    /// Tells how the back end is.
    pub fn state(&self) -> BackEndState {
        self.inner.lock().state.clone()
    }

    /// Takes a new connection.
    pub fn set(&self, channel: Arc<Channel>) {
        let mut inner = self.inner.lock();
        inner.channel = Some(channel);
        // What the one before had to say.
        self.fault.take();
        inner.new_after = Some(inner.state.since.elapsed());
        inner.state.connected = true;
        inner.state.since = Instant::now();
    }

    /// Tells whether the connection has lasted.
    pub fn has_lasted(&self) -> bool {
        self.inner.lock().new_after.is_none()
    }

    /// Tells the log that a new connection is there, if it has lasted so long.
    pub fn lasts(&self, long: Duration) {
        let mut inner = self.inner.lock();
        if inner.channel.is_some()
            && inner.state.since.elapsed() >= long
            && let Some(after) = inner.new_after.take()
        {
            let socket = self.socket.display();
            tracing::warn!(device = %self.name, %socket, ?after, "the back end is back");
        }
    }

    /// Tells why there is no new connection, once for each reason.
    pub fn not_found(&self, error: &BackEndError) {
        let mut inner = self.inner.lock();
        let text = explain(error);
        if inner.state.error.as_ref() != Some(&text) {
            let socket = self.socket.display();
            tracing::warn!(device = %self.name, %socket, error = %text, "the back end cannot be used");
            inner.state.error = Some(text);
        }
    }

    /// Gives up a connection, if it is still the current one.
    pub fn lose(&self, channel: &Arc<Channel>, error: &BackEndError) {
        self.inner.lock().lose(self, channel, error);
    }

    /// Has the back end work on queues, with the memory of a map that is held still.
    ///
    /// # Errors
    /// If it does not. Unless it is another one by now, the connection is given up.
    pub fn start(
        &self,
        map: &Hold<'_>,
        channel: &Arc<Channel>,
        features: Features,
        (rings_at, rings): (Piece, Vec<Started>),
    ) -> Result<(), BackEndError> {
        let mut inner = self.inner.lock();
        if !inner.is_current(channel) {
            return Err(BackEndError::Gone { request: "a start" });
        }
        let started = inner.start(channel, map, features, &rings_at, &rings);
        if let Err(error) = &started {
            inner.lose(self, channel, error);
        } else {
            inner.running = Some(Running { rings_at, rings });
        }
        started
    }

    /// Has the back end stop: when this returns it works on nothing any more, or is given up.
    pub fn stop(&self) {
        let mut inner = self.inner.lock();
        let (Some(channel), Some(running)) = (inner.channel.clone(), inner.running.take()) else {
            return;
        };
        for ring in &running.rings {
            if let Err(error) = channel.stop_ring(ring.index) {
                inner.lose(self, &channel, &error);
                return;
            }
        }
    }

    /// Tells whether the back end has room for a map.
    ///
    /// # Errors
    /// If it has not.
    pub fn prepare(&self, map: &Snapshot) -> Result<(), SlotError> {
        let inner = self.inner.lock();
        match inner.step(map) {
            Ok(_) => Ok(()),
            Err(source) => Err(self.refused(source)),
        }
    }

    /// Does what has to be done before a map is current.
    ///
    /// # Errors
    /// If the back end refuses what comes.
    pub fn before(&self, map: &Snapshot) -> Result<(), SlotError> {
        let stops = self.inner.lock().stops(map);
        if stops {
            self.gate.close();
        }
        let mut inner = self.inner.lock();
        let Some(channel) = inner.channel.clone() else {
            return Ok(());
        };
        match inner.before(&channel, map) {
            Ok(()) => Ok(()),
            Err(refused @ BackEndError::Refused { .. }) => Err(self.refused(refused)),
            Err(error) => {
                inner.lose(self, &channel, &error);
                Ok(())
            }
        }
    }

    /// Does what has to be done when it is.
    pub fn after(&self) {
        let mut inner = self.inner.lock();
        self.gate.open();
        let Some(channel) = inner.channel.clone() else {
            return;
        };
        // One that does not let go is of no use.
        if let Err(error) = inner.after(&channel) {
            inner.lose(self, &channel, &error);
        }
    }

    fn refused(&self, source: BackEndError) -> SlotError {
        SlotError::Follower {
            who: format!("the back end of {}", self.name),
            source: Box::new(source),
        }
    }
}

impl Inner {
    fn is_current(&self, channel: &Arc<Channel>) -> bool {
        let current = self.channel.as_ref();
        current.is_some_and(|current| Arc::ptr_eq(current, channel))
    }

    fn lose(&mut self, link: &Link, channel: &Arc<Channel>, error: &BackEndError) {
        channel.cut();
        if !self.is_current(channel) {
            return;
        }
        let text = explain(error);
        let lasted = self.new_after.take().is_none();
        if is_told(lasted, self.state.error.as_deref(), &text) {
            tracing::warn!(
                device = %link.name, socket = %link.socket.display(), error = %text,
                "the back end is lost: {}", link.meanwhile
            );
        }
        self.channel = None;
        self.has.clear();
        self.running = None;
        self.pending = Step::default();
        self.state = BackEndState {
            connected: false,
            since: Instant::now(),
            losses: self.state.losses + 1,
            error: Some(text),
        };
        link.lost.signal();
    }

    fn start(
        &mut self,
        channel: &Channel,
        map: &Snapshot,
        features: Features,
        rings_at: &Piece,
        rings: &[Started],
    ) -> Result<(), BackEndError> {
        channel.set_features(features)?;
        let mut wanted = pieces_of(map);
        wanted.push(rings_at.clone());
        let step = self.steps_to(channel, &wanted)?;
        self.change(channel, &step, &wanted)?;
        rings.iter().try_for_each(|ring| ring.start(channel))
    }

    /// The pieces that the back end shall have with a map.
    fn wanted(&self, map: &Snapshot) -> Vec<Piece> {
        let mut wanted = pieces_of(map);
        wanted.extend(self.running.as_ref().map(|r| r.rings_at.clone()));
        wanted
    }

    fn steps_to(&self, channel: &Channel, wanted: &[Piece]) -> Result<Step, BackEndError> {
        let max = channel.offer().pieces;
        let mut step =
            step(&self.has, wanted, max).map_err(|needed| BackEndError::Pieces { max, needed })?;
        // A whole table at a time: what is in use is mapped anew, too.
        step.stopped |= !channel.offer().pieces_change;
        Ok(step)
    }

    /// How the back end comes to a map; nothing to do for one that has no memory, because it never worked.
    fn step(&self, map: &Snapshot) -> Result<Step, BackEndError> {
        let Some(channel) = self.channel.as_ref().filter(|_| !self.has.is_empty()) else {
            return Ok(Step::default());
        };
        self.steps_to(channel, &self.wanted(map))
    }

    /// Tells whether the queues have to stand still for a map.
    fn stops(&self, map: &Snapshot) -> bool {
        self.running.is_some()
            && self
                .step(map)
                .is_ok_and(|step| step.stopped && !step.is_nothing())
    }

    fn before(&mut self, channel: &Channel, map: &Snapshot) -> Result<(), BackEndError> {
        self.pending = Step::default();
        let step = self.step(map)?;
        if step.is_nothing() {
            return Ok(());
        }
        if step.stopped {
            let rings = self.running.iter_mut().flat_map(|r| &mut r.rings);
            for ring in rings {
                ring.place.base = channel.stop_ring(ring.index)?;
            }
            self.pending = step;
            return Ok(());
        }
        for piece in &step.add {
            self.add(channel, piece)?;
        }
        self.pending.remove = step.remove;
        Ok(())
    }

    fn after(&mut self, channel: &Channel) -> Result<(), BackEndError> {
        let step = std::mem::take(&mut self.pending);
        if step.is_nothing() {
            return Ok(());
        }
        let wanted = step.apply(&self.has);
        self.change(channel, &step, &wanted)?;
        match (&self.running, step.stopped) {
            (Some(running), true) => running.rings.iter().try_for_each(|r| r.start(channel)),
            _ => Ok(()),
        }
    }

    /// Takes a step while nothing works that it may hinder.
    fn change(
        &mut self,
        channel: &Channel,
        step: &Step,
        wanted: &[Piece],
    ) -> Result<(), BackEndError> {
        if !channel.offer().pieces_change {
            channel.set_table(wanted)?;
            self.has = wanted.to_vec();
            return Ok(());
        }
        for piece in &step.remove {
            channel.remove_piece(piece)?;
            self.has.retain(|has| has != piece);
        }
        step.add
            .iter()
            .try_for_each(|piece| self.add(channel, piece))
    }

    fn add(&mut self, channel: &Channel, piece: &Piece) -> Result<(), BackEndError> {
        channel.add_piece(piece)?;
        let at = self.has.partition_point(|has| has.start() < piece.start());
        self.has.insert(at, piece.clone());
        Ok(())
    }
}

impl Started {
    /// Lets the back end work on it, and look at what is there.
    fn start(&self, channel: &Channel) -> Result<(), BackEndError> {
        let events = [&*self.kick, &*self.call, &*self.fault];
        channel.start_ring(self.index, &self.place, events)?;
        self.kick.signal();
        // Something may wait to be lent.
        self.call.signal();
        Ok(())
    }
}

/// Tells whether the log hears of a loss.
fn is_told(lasted: bool, before: Option<&str>, now: &str) -> bool {
    lasted || before != Some(now)
}

/// An error with its causes, in one line.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_lost_again_at_once_for_the_same_reason_is_told_of_once() {
        let table = [
            (true, None, true),
            (true, Some("refused"), true),
            (false, Some("refused"), false),
            (false, Some("gone"), true),
            (false, None, true),
        ];
        for (lasted, before, told) in table {
            assert_eq!(
                is_told(lasted, before, "refused"),
                told,
                "{lasted} {before:?}"
            );
        }
    }
}
