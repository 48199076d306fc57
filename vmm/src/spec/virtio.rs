//! Virtio devices as they are wanted.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::wire;
use super::{
    BackingFiles, Cache, EngineKind, Format, Limits, Mac, Metadata, MetadataConfig, VhostKind,
};
use crate::own::OwnDevice;

/// What a virtio device is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum VirtioKind {
    /// Gives the host's random bytes.
    Rng(RngSpec),
    /// A disk.
    #[serde(rename = "blk")]
    Block(DiskSpec),
    /// A network interface.
    Net(NetSpec),
    /// Sockets between programs of the guest and of the host.
    Vsock(VsockSpec),
    /// A device whose work is done by another process.
    #[serde(rename = "vhost-user")]
    VhostUser(VhostUserSpec),
    /// Sockets between programs of the guest and of the host, which the host's kernel connects.
    #[serde(rename = "vhost-vsock")]
    VhostVsock(VhostVsockSpec),
    /// A virtio device of the host's.
    Vdpa(VdpaSpec),
    /// A memory balloon.
    Balloon(BalloonSpec),
    /// Consoles, and ports of bytes.
    Console(ConsoleSpec),
    /// A file of the host as memory.
    Pmem(PmemSpec),
    /// Memory that comes and goes.
    Mem(MemSpec),
    /// One of the embedder's own. It has no JSON form.
    #[serde(skip)]
    Own(OwnDevice),
}

impl VirtioKind {
    /// Its name, as in `virtio-NAME`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rng(_) => "rng",
            Self::Block(_) => "blk",
            Self::Net(_) => "net",
            Self::Vsock(_) => "vsock",
            Self::VhostUser(_) => "vhost-user",
            Self::VhostVsock(_) => "vhost-vsock",
            Self::Vdpa(_) => "vdpa",
            Self::Balloon(_) => "balloon",
            Self::Console(_) => "console",
            Self::Pmem(_) => "pmem",
            Self::Mem(_) => "mem",
            Self::Own(_) => "own",
        }
    }
}

/// A source of entropy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RngSpec {
    /// How much the guest may take in what time.
    #[serde(with = "wire::As::<wire::Limits>")]
    #[schemars(with = "wire::Limits")]
    pub limits: Limits,
}

/// A disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskSpec {
    /// The file, or the host's block device.
    pub path: PathBuf,
    /// Its format, which is never guessed.
    #[serde(default, with = "wire::Format")]
    #[schemars(with = "wire::Format")]
    pub format: Format,
    /// Whether the files are opened that its header names.
    #[serde(default, with = "wire::As::<wire::Follow>")]
    #[schemars(with = "bool")]
    pub backing: BackingFiles,
    /// The guest may only read it.
    #[serde(default)]
    pub read_only: bool,
    /// The host's page cache is passed by.
    #[serde(default)]
    pub direct: bool,
    /// What becomes of writes.
    #[serde(default, with = "wire::Cache")]
    #[schemars(with = "wire::Cache")]
    pub cache: Cache,
    /// What it says its serial number is; 20 bytes at most.
    #[serde(default)]
    #[schemars(length(max = 20))]
    pub serial: String,
    /// Queues, 1 to 64, with a thread each.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub queues: u16,
    /// What serves it.
    #[serde(default, with = "wire::EngineKind")]
    #[schemars(with = "wire::EngineKind")]
    pub engine: EngineKind,
    /// How much the guest may do in what time; [`Handle::disk`](crate::Handle::disk) changes it.
    #[serde(default, with = "wire::As::<wire::Limits>")]
    #[schemars(with = "wire::Limits")]
    pub limits: Limits,
}

impl DiskSpec {
    /// A raw disk that can be written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: Format::Raw,
            backing: BackingFiles::Refuse,
            read_only: false,
            direct: false,
            cache: Cache::Writeback,
            serial: String::new(),
            queues: 1,
            engine: EngineKind::default(),
            limits: Limits::default(),
        }
    }
}

/// A network interface of the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetSpec {
    /// Where its frames go.
    pub host: NetHost,
    /// Its address; a random one if there is none.
    #[serde(default, with = "wire::Maybe::<wire::Mac>")]
    #[schemars(with = "Option<wire::Mac>")]
    pub mac: Option<Mac>,
    /// The largest frame without its Ethernet header, 68 to 65535; the guest's own idea if there is none.
    #[serde(default)]
    #[schemars(range(min = 68))]
    pub mtu: Option<u16>,
    /// How much the guest may receive in what time; [`Handle::network`](crate::Handle::network) changes both.
    #[serde(default, with = "wire::As::<wire::Limits>")]
    #[schemars(with = "wire::Limits")]
    pub receive: Limits,
    /// How much it may send.
    #[serde(default, with = "wire::As::<wire::Limits>")]
    #[schemars(with = "wire::Limits")]
    pub transmit: Limits,
    /// What the guest can ask about itself by this interface, if it can.
    #[serde(default, with = "wire::Maybe::<wire::MetadataForm>")]
    #[schemars(with = "Option<wire::MetadataForm>")]
    pub metadata: Option<NetMetadata>,
}

/// A metadata service that is reached by an interface. Several interfaces can have the same data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetMetadata {
    /// What it says; it can be changed at any time.
    pub data: Metadata,
    /// How it is asked.
    pub config: MetadataConfig,
}

impl NetSpec {
    /// An interface with nothing of its own but an address.
    pub fn new(host: NetHost) -> Self {
        Self {
            host,
            mac: None,
            mtu: None,
            receive: Limits::default(),
            transmit: Limits::default(),
            metadata: None,
        }
    }
}

/// The host's end of a network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum NetHost {
    /// A TAP interface of this name, with so many queues, 1 to 16.
    Tap {
        /// Its name.
        name: String,
        /// Pairs of queues.
        #[serde(default = "one_pair")]
        #[schemars(range(min = 1, max = 16))]
        queues: usize,
    },
    /// A TAP interface whose frames the host's kernel moves (vhost-net): there are no limits, and nothing is counted.
    Vhost {
        /// The interface's name.
        name: String,
        /// Pairs of queues, 1 to 16.
        #[serde(default = "one_pair")]
        #[schemars(range(min = 1, max = 16))]
        queues: usize,
    },
    /// User-mode networking: a `passt` that is started for it, with arguments of one's own.
    User {
        /// The program.
        #[serde(default = "passt")]
        passt: PathBuf,
        /// More arguments, such as `-t 8022:22` for a port that is forwarded.
        #[serde(default)]
        arguments: Vec<String>,
    },
    /// A unix socket that somebody serves: QEMU's stream protocol, as `passt --socket` speaks it.
    Stream {
        /// The socket.
        path: PathBuf,
    },
}

impl NetHost {
    /// User-mode networking with what `passt` does by itself.
    pub fn user() -> Self {
        Self::User {
            passt: umbra_net::Passt::PROGRAM.into(),
            arguments: Vec::new(),
        }
    }
}

/// Sockets of the guest, and where the host has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockSpec {
    /// The guest's context identifier, 3 to 0xfffffffe.
    #[schemars(range(min = 3, max = 0xffff_fffeu64))]
    pub cid: u64,
    /// A unix socket that is made: programs connect there, and say `CONNECT PORT`. Who serves port N for the
    /// guest has a unix socket at this path with `_N` behind it.
    pub path: PathBuf,
    /// The socket's file is still there when the device has gone.
    #[serde(default)]
    pub stays: bool,
}

impl VsockSpec {
    /// A device whose socket goes with it.
    pub fn new(cid: u64, path: impl Into<PathBuf>) -> Self {
        Self {
            cid,
            path: path.into(),
            stays: false,
        }
    }
}

/// A device whose work is done by a vhost-user back end, which is there before the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VhostUserSpec {
    /// Which device it is.
    #[serde(rename = "device", with = "wire::VhostKind")]
    #[schemars(with = "wire::VhostKind")]
    pub kind: VhostKind,
    /// The unix socket at which the back end listens.
    pub socket: PathBuf,
    /// Its queues; as many as one processor needs if there is no number, or as the back end has of another type, 16
    /// at most. A file system has one more than
    /// processors use at a time.
    #[serde(default)]
    #[schemars(range(min = 1, max = 64))]
    pub queues: Option<u16>,
    /// Descriptors of each queue, a power of two up to 1024; what is usual if there is no number.
    #[serde(default)]
    #[schemars(range(min = 1, max = 1024))]
    pub queue_size: Option<u16>,
}

impl VhostUserSpec {
    /// A device with the usual queues.
    pub fn new(kind: VhostKind, socket: impl Into<PathBuf>) -> Self {
        Self {
            kind,
            socket: socket.into(),
            queues: None,
            queue_size: None,
        }
    }
}

/// Sockets of the guest that are `AF_VSOCK` on the host, as between it and any other virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VhostVsockSpec {
    /// The guest's context identifier, 3 to 0xfffffffe, which no other guest of the host has.
    #[schemars(range(min = 3, max = 0xffff_fffeu64))]
    pub cid: u64,
}

/// A virtio device of the host's (vDPA), hardware or a simulation. What it is, and has, it says itself. All of the
/// guest's memory is locked for it, so there is no balloon beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VdpaSpec {
    /// Its node, as `/dev/vhost-vdpa-0`.
    pub node: PathBuf,
}

/// A memory balloon: by it the guest lends memory to the host.
/// [`Handle::balloon`](crate::Handle::balloon) changes it while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BalloonSpec {
    /// How many bytes the guest shall lend from the beginning, less than it has; rounded down to pages.
    pub size: u64,
    /// The guest may take pages back rather than end a process when it runs out of memory.
    pub deflate_on_oom: bool,
    /// The guest says which pages it does not use, and the host has them until it does.
    pub free_page_reporting: bool,
    /// The guest may be asked which pages it does not use
    /// ([`BalloonControl::start_hinting`](crate::BalloonControl::start_hinting)).
    pub free_page_hinting: bool,
    /// How often the guest is asked for statistics from the beginning, 100 ms at the least; never if there is no
    /// interval. [`BalloonControl::set_polling`](crate::BalloonControl::set_polling) changes it.
    #[serde(rename = "polling_ms", with = "wire::Maybe::<wire::Millis>")]
    #[schemars(with = "Option<wire::Millis>")]
    pub polling: Option<Duration>,
}

impl Default for BalloonSpec {
    fn default() -> Self {
        Self {
            size: 0,
            deflate_on_oom: true,
            free_page_reporting: true,
            free_page_hinting: false,
            polling: None,
        }
    }
}

/// A file of the host that the guest has as memory, above its RAM. Nobody may truncate it meanwhile: that ends
/// the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PmemSpec {
    /// The file, or the host's block device.
    pub path: PathBuf,
    /// The guest may only read it. What it writes all the same is lost, without a word to it.
    #[serde(default)]
    pub read_only: bool,
    /// How many bytes of it, from its beginning, are shown; all if there is no number. A multiple of 2 MiB.
    #[serde(default)]
    pub size: Option<u64>,
    /// How often the guest may have it flushed in what time: a flush is one operation, and as many bytes as are shown.
    /// [`Handle::pmem`](crate::Handle::pmem) changes it. Nothing limits what the guest reads and writes.
    #[serde(default, with = "wire::As::<wire::Limits>")]
    #[schemars(with = "wire::Limits")]
    pub limits: Limits,
}

impl PmemSpec {
    /// All of a file that can be written.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            size: None,
            limits: Limits::default(),
        }
    }
}

/// Memory above the guest's RAM that it takes and gives back in blocks.
/// [`Handle::memory`](crate::Handle::memory) changes how much while the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemSpec {
    /// The most, in bytes; a multiple of a block. It costs addresses, and nothing else.
    pub max: u64,
    /// How many bytes the guest shall take from the beginning, a multiple of a block.
    #[serde(default)]
    pub size: u64,
    /// Bytes of a block: a power of two, 2 MiB to 1 GiB. Linux takes 128 MiB at a time where it can, and gives
    /// back blocks.
    #[serde(default = "block")]
    pub block: u64,
}

impl MemSpec {
    /// Up to `max` bytes, of which the guest has none at the beginning, in blocks of 2 MiB.
    pub fn new(max: u64) -> Self {
        Self {
            max,
            size: 0,
            block: 2 << 20,
        }
    }
}

/// A console device: 1 to 31 ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConsoleSpec {
    /// Its ports.
    pub ports: Vec<PortSpec>,
}

/// A port of a console device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// What the guest calls it, as in Linux's `/dev/virtio-ports/NAME`. Without a name it is a console, as
    /// `/dev/hvc0`.
    #[serde(default)]
    pub name: Option<String>,
    /// The host's end.
    pub end: PortEnd,
}

/// The host's end of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum PortEnd {
    /// The machine's [`Console`](crate::Console), whose input goes here then, and no longer to the serial port.
    /// Output of both is shown. One port of a machine can have it.
    Console,
    /// A unix socket that is made at this path, for one client at a time.
    Socket(PathBuf),
    /// A file that is made or emptied; it gives no input.
    File(PathBuf),
}

/// A virtio device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VirtioSpec {
    /// What it is called from outside; no two have the same.
    pub id: String,
    /// What it is.
    #[serde(rename = "device")]
    pub kind: VirtioKind,
}

impl VirtioSpec {
    /// Chooses an address where none was said.
    pub(crate) fn settle(&mut self) {
        if let VirtioKind::Net(net) = &mut self.kind {
            net.mac.get_or_insert_with(Mac::random);
        }
    }
}

fn one() -> u16 {
    1
}

fn one_pair() -> usize {
    1
}

fn passt() -> PathBuf {
    umbra_net::Passt::PROGRAM.into()
}

fn block() -> u64 {
    2 << 20
}
