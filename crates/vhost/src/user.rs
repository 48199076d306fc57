//! A device whose work is done by a vhost-user back end.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use umbra_virtio::{ActivateError, Activation, Device, Features, Queue, Worker};

use crate::activity::Activity;
use crate::back_end::BackEnd;
use crate::channel::Channel;
use crate::config::Config;
use crate::gate::Gate;
use crate::keeper::keep;
use crate::link::{BackEndState, Link};
use crate::relay::{Loss, Relay};
use crate::session::Session;
use crate::{BackEndError, Deadlines, Hub, Kind};

/// How a device's back end is found, and what it is.
#[derive(Clone, Debug)]
pub struct VhostUserOptions {
    /// What the device is called, for the log.
    pub name: String,
    /// The unix socket at which the back end listens.
    pub socket: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Its queues; `None` for as many as one processor needs, or for all that the back end has of a type that is
    /// not known here, 16 at most.
    pub queues: Option<u16>,
    /// Descriptors of each, a power of two; `None` for as many as are usual.
    pub queue_size: Option<u16>,
    /// How long the back end is waited for at the beginning.
    pub wait: Duration,
}

/// The device.
pub struct VhostUser {
    shared: Arc<Shared>,
    features: Features,
    sizes: Vec<u16>,
    /// Stops when it is dropped.
    _keeper: Worker<()>,
    activity: Activity,
}

/// What the device's threads know.
pub struct Shared {
    /// The connection.
    pub link: Arc<Link<Channel>>,
    socket: PathBuf,
    /// What the device is.
    pub kind: Kind,
    queues: u16,
    /// What the back end must offer: what the device has offered the driver.
    needed: Features,
    config: Config,
}

impl VhostUser {
    /// Connects to a back end, and makes its device.
    ///
    /// # Errors
    /// If the back end is not there in time, or is of no use for such a device.
    pub fn connect(options: VhostUserOptions, hub: &Arc<Hub>) -> Result<Self, BackEndError> {
        let channel = Arc::new(find(&options, hub.deadlines())?);
        let VhostUserOptions { name, kind, .. } = options;
        let offer = *channel.offer();
        let queues = count_queues(&kind, options.queues, offer.queues)?;
        if kind.has_their_config() && !offer.has_config {
            return Err(BackEndError::Lacks(
                "VHOST_USER_PROTOCOL_F_CONFIG, and the device has a configuration",
            ));
        }
        let config = read_config_of(&kind, &channel, queues)?;
        let features = kind.features(offer.features, queues, &config);
        let host = |what| move |source| BackEndError::Host { what, source };
        let gate = Gate::new(kind.ends_requests());
        let shared = Arc::new(Shared {
            link: Link::new(
                &name,
                (&options.socket, kind.meanwhile(), gate),
                channel.clone(),
            )?,
            socket: options.socket,
            queues,
            needed: kind.theirs(features),
            config: Config::new(config),
            kind,
        });
        hub.join(&shared.link);
        let (theirs, deadlines) = (shared.clone(), hub.deadlines().clone());
        let keeper = Worker::start("vhost-keeper", move |stop| keep(&theirs, &deadlines, stop));
        let size = |index| {
            options
                .queue_size
                .unwrap_or_else(|| shared.kind.queue_size(index))
        };
        let sizes = (0..queues).map(size).collect();
        Ok(Self {
            features: features.with(Features::RINGS),
            sizes,
            _keeper: keeper.map_err(host("a thread"))?,
            activity: Activity::default(),
            shared,
        })
    }

    /// Returns what tells how the back end is.
    pub fn control(&self) -> VhostUserControl {
        VhostUserControl(self.shared.clone())
    }
}

/// Waits for a back end to be there.
fn find(options: &VhostUserOptions, deadlines: &Arc<Deadlines>) -> Result<Channel, BackEndError> {
    const PAUSE: Duration = Duration::from_millis(10);
    let begin = Instant::now();
    loop {
        match Channel::open(&options.socket, deadlines) {
            Err(error) if may_come(&error) && begin.elapsed() < options.wait => sleep(PAUSE),
            found => return found,
        }
    }
}

/// Tells whether a back end that is not there may be a moment away: it has not made its socket yet, does not listen
/// yet, or has not taken the connections before.
fn may_come(error: &BackEndError) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
    match error {
        BackEndError::Connect { source, .. } => {
            [NotFound, ConnectionRefused, WouldBlock].contains(&source.kind())
        }
        _ => false,
    }
}

/// Queues of a device of another type if nobody says how many.
const OTHERS_MAX: u64 = 16;

/// Says how many queues a device has.
fn count_queues(
    kind: &Kind,
    wanted: Option<u16>,
    offered: Option<u64>,
) -> Result<u16, BackEndError> {
    let usual = match (kind, offered) {
        (Kind::Other { .. }, Some(offered)) => offered.min(OTHERS_MAX) as u16,
        _ => kind.queues(),
    };
    let wanted = wanted.unwrap_or(usual).max(1);
    match offered {
        Some(offered) if offered < u64::from(wanted) => match kind {
            // Events of a socket device are rare, and not every back end has them.
            Kind::Vsock if offered == 2 => Ok(wanted),
            _ => Err(BackEndError::Queues { wanted, offered }),
        },
        _ => Ok(wanted),
    }
}

/// Reads the configuration that a driver sees.
fn read_config_of(kind: &Kind, channel: &Channel, queues: u16) -> Result<Vec<u8>, BackEndError> {
    if !kind.has_their_config() {
        return Ok(kind.our_config(queues));
    }
    let mut bytes = channel.config(kind.config_len())?;
    kind.adapt_config(&mut bytes, queues);
    Ok(bytes)
}

impl Shared {
    /// Connects again, and looks whether the back end is still one for this device.
    pub fn connect(&self, deadlines: &Arc<Deadlines>) -> Result<Arc<Channel>, BackEndError> {
        let channel = Channel::open(&self.socket, deadlines)?;
        let offered = channel.offer().features;
        if !offered.has(self.needed) {
            let needed = self.needed;
            return Err(BackEndError::Less { offered, needed });
        }
        count_queues(&self.kind, Some(self.queues), channel.offer().queues)?;
        self.refresh_config(&channel)?;
        Ok(Arc::new(channel))
    }

    /// Reads the configuration, and tells the driver if it has changed.
    pub fn refresh_config(&self, channel: &Channel) -> Result<(), BackEndError> {
        let bytes = read_config_of(&self.kind, channel, self.queues)?;
        self.config.replace(bytes);
        Ok(())
    }
}

impl Device for VhostUser {
    fn id(&self) -> u32 {
        self.shared.kind.id()
    }

    fn features(&self) -> Features {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.shared.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let is_inside = self.shared.config.has(offset, data.len());
        if !self.shared.kind.has_their_config() || !is_inside {
            return;
        }
        let Some(channel) = self.shared.link.channel() else {
            return;
        };
        // It is inside of the configuration, which is short.
        let told = channel.write_config(offset as u32, data);
        if let Err(error) = told.and_then(|()| self.shared.refresh_config(&channel)) {
            let device = self.shared.link.name();
            tracing::debug!(device, %error, "the back end does not take a configuration");
            if channel.is_broken() {
                self.shared.link.lose(&channel, &error);
            }
        }
    }

    fn config_generation(&self) -> u32 {
        self.shared.config.generation()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let refused = |source| ActivateError::Host {
            what: "a thread",
            source,
        };
        let features = self.shared.kind.theirs(activation.features);
        let session = Session::of(&self.shared.kind);
        let work = (features, activation.memory);
        let interrupt = activation.interrupt;
        self.shared.config.tell(Some(interrupt.clone()));
        let link = self.shared.link.clone();
        let what = (session, Loss::IsWaitedOut);
        let relay = |left| Relay::new(link, what, work, interrupt, left);
        let begun = self.activity.begin(activation.queues, relay);
        begun.map_err(refused)
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        let queues = self.activity.end();
        self.shared.config.tell(None);
        queues
    }

    fn reset(&mut self) {
        self.activity.forget();
        let Some(channel) = self.shared.link.channel() else {
            return;
        };
        if let Err(error) = channel.reset() {
            self.shared.link.lose(&channel, &error);
        }
    }
}

/// A device as the machine sees it, whoever owns it. Any thread may use it.
#[derive(Clone)]
pub struct VhostUserControl(Arc<Shared>);

impl VhostUserControl {
    /// Tells how the back end is.
    pub fn state(&self) -> BackEndState {
        self.0.link.state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_are_as_many_as_are_usual_and_of_an_unknown_type_as_the_back_end_has() {
        let other = Kind::Other {
            id: 3,
            config_len: 12,
        };
        let table = [
            (&Kind::Block, None, Some(8), Some(1)),
            (&Kind::Block, Some(4), Some(8), Some(4)),
            (&Kind::Block, Some(9), Some(8), None),
            (&Kind::Vsock, None, Some(2), Some(3)),
            (&other, None, Some(4), Some(4)),
            (&other, None, Some(256), Some(16)),
            (&other, None, Some(0), None),
            (&other, None, None, Some(1)),
            (&other, Some(2), Some(4), Some(2)),
        ];
        for (kind, wanted, offered, expected) in table {
            let counted = count_queues(kind, wanted, offered).ok();
            assert_eq!(counted, expected, "{kind:?} {wanted:?} {offered:?}");
        }
    }
}
