//! A device's connection, with what its back end has: pieces of memory, and queues that it works on.
//!
//! ```text
//!   keeper ── set ──> Link ── start, stop <── relay
//!                      │
//!                      └── prepare, before, after <── Hub, for every change of the map
//! ```
//! A connection that breaks is [lost](Link::lose) by whoever finds it; the keeper of a vhost-user device looks for
//! another one. What the back end had is forgotten with it.
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

use crate::BackEndError;
use crate::back_end::{BackEnd, Changes, RingPlace};
use crate::gate::Gate;
use crate::table::{Piece, Step, pieces_of, step};

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
pub struct Link<B: ?Sized> {
    /// What the device is called.
    name: String,
    /// The socket at which its back end listens, or the kernel's node.
    place: PathBuf,
    /// What is true while there is none.
    meanwhile: &'static str,
    /// Signalled when the connection is lost.
    lost: Event,
    /// Signalled when it is lost, and when there is a new one.
    news: Event,
    /// Signalled by a back end that cannot go on.
    fault: Arc<Event>,
    gate: Arc<Gate>,
    inner: Mutex<Inner<B>>,
}

#[derive(Debug)]
struct Inner<B: ?Sized> {
    channel: Option<Arc<B>>,
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

impl<B: BackEnd + ?Sized> Link<B> {
    /// Makes one over a connection.
    ///
    /// # Errors
    /// If the host refuses an event.
    pub fn new(
        name: &str,
        (place, meanwhile, gate): (&Path, &'static str, Gate),
        channel: Arc<B>,
    ) -> Result<Arc<Self>, BackEndError> {
        let event = || {
            Event::new().map_err(|source| BackEndError::Host {
                what: "an event",
                source,
            })
        };
        let (lost, news, fault) = (event()?, event()?, Arc::new(event()?));
        Ok(Arc::new(Self {
            name: name.to_owned(),
            place: place.to_owned(),
            meanwhile,
            lost,
            news,
            fault,
            gate: Arc::new(gate),
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

    /// Returns what is signalled when the connection is lost, and when there is a new one.
    pub fn news(&self) -> &Event {
        &self.news
    }

    /// Returns what a back end signals that cannot go on.
    pub fn fault(&self) -> &Arc<Event> {
        &self.fault
    }

    /// Returns what requests go through to the back end.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Returns the connection, if there is one.
    pub fn channel(&self) -> Option<Arc<B>> {
        self.inner.lock().channel.clone()
    }

    /// Tells how the back end is.
    pub fn state(&self) -> BackEndState {
        self.inner.lock().state.clone()
    }

    /// Takes a new connection.
    pub fn set(&self, channel: Arc<B>) {
        let mut inner = self.inner.lock();
        inner.channel = Some(channel);
        // What the one before had to say.
        self.fault.take();
        inner.new_after = Some(inner.state.since.elapsed());
        inner.state.connected = true;
        inner.state.since = Instant::now();
        self.news.signal();
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
            let place = self.place.display();
            tracing::warn!(device = %self.name, %place, ?after, "the back end is back");
        }
    }

    /// Tells why there is no new connection, once for each reason.
    pub fn not_found(&self, error: &BackEndError) {
        let mut inner = self.inner.lock();
        let text = explain(error);
        if inner.state.error.as_ref() != Some(&text) {
            let place = self.place.display();
            tracing::warn!(device = %self.name, %place, error = %text, "the back end cannot be used");
            inner.state.error = Some(text);
        }
    }

    /// Gives up a connection, if it is still the current one.
    pub fn lose(&self, channel: &Arc<B>, error: &BackEndError) {
        self.inner.lock().lose(self, channel, error);
    }

    /// Has the back end work on queues, with the memory of a map that is held still.
    ///
    /// # Errors
    /// If it does not. Unless it is another one by now, the connection is given up.
    pub fn start(
        &self,
        map: &Hold<'_>,
        channel: &Arc<B>,
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
        let (Some(channel), Some(mut running)) = (inner.channel.clone(), inner.running.take())
        else {
            return;
        };
        if let Err(error) = channel.stop(&mut running.rings) {
            inner.lose(self, &channel, &error);
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
            Err(refused) if refused.is_refusal() => Err(self.refused(refused)),
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

impl<B: BackEnd + ?Sized> Inner<B> {
    fn is_current(&self, channel: &Arc<B>) -> bool {
        let current = self.channel.as_ref();
        current.is_some_and(|current| Arc::ptr_eq(current, channel))
    }

    fn lose(&mut self, link: &Link<B>, channel: &Arc<B>, error: &BackEndError) {
        channel.cut();
        if !self.is_current(channel) {
            return;
        }
        let text = explain(error);
        let lasted = self.new_after.take().is_none();
        if is_told(lasted, self.state.error.as_deref(), &text) {
            tracing::warn!(
                device = %link.name, place = %link.place.display(), error = %text,
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
        link.news.signal();
    }

    fn start(
        &mut self,
        channel: &B,
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
        start(channel, rings)
    }

    /// The pieces that the back end shall have with a map.
    fn wanted(&self, map: &Snapshot) -> Vec<Piece> {
        let mut wanted = pieces_of(map);
        wanted.extend(self.running.as_ref().map(|r| r.rings_at.clone()));
        wanted
    }

    fn steps_to(&self, channel: &B, wanted: &[Piece]) -> Result<Step, BackEndError> {
        let max = channel.offer().pieces;
        let mut step =
            step(&self.has, wanted, max).map_err(|needed| BackEndError::Pieces { max, needed })?;
        match channel.offer().changes {
            // What is in use is mapped anew, too.
            Changes::Tables => step.stopped = true,
            Changes::PiecesOnly if step.stopped && self.running.is_some() => {
                return Err(BackEndError::Replaced);
            }
            Changes::Pieces | Changes::PiecesOnly | Changes::Swaps => {}
        }
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

    fn before(&mut self, channel: &B, map: &Snapshot) -> Result<(), BackEndError> {
        self.pending = Step::default();
        let step = self.step(map)?;
        if step.is_nothing() {
            return Ok(());
        }
        if step.stopped {
            if let Some(running) = &mut self.running {
                channel.stop(&mut running.rings)?;
            }
            self.pending = step;
            return Ok(());
        }
        self.add_all(channel, &step.add)?;
        self.pending.remove = step.remove;
        Ok(())
    }

    fn after(&mut self, channel: &B) -> Result<(), BackEndError> {
        let step = std::mem::take(&mut self.pending);
        if step.is_nothing() {
            return Ok(());
        }
        let wanted = step.apply(&self.has);
        self.change(channel, &step, &wanted)?;
        match (&self.running, step.stopped) {
            (Some(running), true) => start(channel, &running.rings),
            _ => Ok(()),
        }
    }

    /// Takes a step while nothing works that it may hinder.
    fn change(&mut self, channel: &B, step: &Step, wanted: &[Piece]) -> Result<(), BackEndError> {
        if !channel.offer().changes.are_of_pieces() {
            channel.set_table(wanted)?;
            self.has = wanted.to_vec();
            return Ok(());
        }
        for piece in &step.remove {
            channel.remove_piece(piece)?;
            self.has.retain(|has| has != piece);
        }
        self.add_all(channel, &step.add)
    }

    /// Adds pieces beside what is there.
    fn add_all(&mut self, channel: &B, pieces: &[Piece]) -> Result<(), BackEndError> {
        let one_by_one = channel.offer().changes.are_of_pieces();
        let mut has = self.has.clone();
        for piece in pieces {
            let at = has.partition_point(|has| has.start() < piece.start());
            has.insert(at, piece.clone());
            if one_by_one {
                channel.add_piece(piece)?;
                self.has.clone_from(&has);
            }
        }
        if !one_by_one && !pieces.is_empty() {
            channel.set_table(&has)?;
            self.has = has;
        }
        Ok(())
    }
}

/// Lets a back end work on queues, and look at what is there.
fn start(channel: &(impl BackEnd + ?Sized), rings: &[Started]) -> Result<(), BackEndError> {
    channel.start(rings)?;
    for ring in rings {
        ring.kick.signal();
        // Something may wait to be lent.
        ring.call.signal();
    }
    Ok(())
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
