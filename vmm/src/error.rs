//! What can go wrong before a machine runs, and while it does. Each prints as one line.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use umbra_block::OpenError;
use umbra_bus::{BusError, PortsError};
use umbra_cpu::CpuError;
use umbra_cpu::template::TemplateError;
use umbra_cpu_kvm::{HostError, KvmError};
use umbra_devices::fw_cfg::FileError;
use umbra_devices::virtio::block::BlockError;
use umbra_devices::virtio::block::ReplaceError;
use umbra_devices::virtio::console::ListenError;
use umbra_devices::virtio::vsock::VsockError;
use umbra_net::{PasstError, StreamError, TapError};
use umbra_slots::{RamError, SlotError};
use umbra_vhost::BackEndError;

/// Why a specification cannot be a machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The number of processors is out of range.
    #[error("a machine has 1 to {max} processors, not {cpus}; choose a number in between")]
    Cpus {
        /// What was asked for.
        cpus: u32,
        /// The limit.
        max: u32,
    },
    /// The size of memory is out of range.
    #[error(
        "a machine has {min_mib} MiB to {max_mib} MiB of memory, not {bytes} bytes; choose a size in between"
    )]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// The least.
        min_mib: u64,
        /// The most.
        max_mib: u64,
    },
    /// The size of memory is not a whole number of pages.
    #[error("{bytes} bytes of memory are not a multiple of 4 KiB; round the size")]
    MemoryUnaligned {
        /// What was asked for.
        bytes: u64,
    },
    /// What is to be verified is not there.
    #[error("only the software processor's MMU can verify itself; use backend soft or auto")]
    NothingToVerify,
    /// More devices than there is room for.
    #[error("a machine has {max} virtio devices at most, not {count}; leave some out")]
    TooManyVirtio {
        /// What was asked for.
        count: usize,
        /// The most.
        max: usize,
    },
    /// What is on the PCI bus is nowhere in memory.
    #[error(
        "virtio devices on the PCI bus cannot be named on the command line, and kernels find them without: \
         leave one of both out"
    )]
    NamedOnPci,
    /// No such name.
    #[error(
        "{id:?} cannot be a device's name; take 1 to 64 letters, digits, dots, dashes and underscores"
    )]
    Id {
        /// What was asked for.
        id: String,
    },
    /// Two devices of one name.
    #[error("two devices are named {id:?}; rename one")]
    SameId {
        /// The name.
        id: String,
    },
    /// A network device has too few queues, or too many.
    #[error("the network device {id:?} has 1 to {max} pairs of queues, not {queues}")]
    NetQueues {
        /// The device.
        id: String,
        /// What was asked for.
        queues: usize,
        /// The most.
        max: usize,
    },
    /// The host's kernel moves the frames of a network device, and has no limits.
    #[error(
        "the network device {id:?} cannot have limits: the host's kernel moves its frames; leave 'vhost' away, or \
         have the host limit the interface ('tc')"
    )]
    VhostLimits {
        /// The device.
        id: String,
    },
    /// Memory that is locked for a device cannot be lent.
    #[error(
        "there is no balloon beside the device {id:?} of the host's, for which all memory is locked: leave one out"
    )]
    VdpaBalloon {
        /// The device of the host's.
        id: String,
    },
    /// Frames do not pass by the metadata service.
    #[error(
        "the frames of {id:?} are moved by the host's kernel, and reach no metadata service; leave out one of both"
    )]
    VhostMetadata {
        /// The device.
        id: String,
    },
    /// The metadata service would be at an address that no host of a link has.
    #[error(
        "the metadata service of {id:?} cannot be at {address}: give it one of 169.254.1.0 to 169.254.254.255"
    )]
    MetadataAddress {
        /// The device.
        id: String,
        /// What was asked for.
        address: Ipv4Addr,
    },
    /// Frames of a network device are too small.
    #[error("the network device {id:?} has an MTU of {min} to 65535, not {mtu}")]
    Mtu {
        /// The device.
        id: String,
        /// What was asked for.
        mtu: u16,
        /// The least.
        min: u16,
    },
    /// A context identifier is reserved.
    #[error(
        "the socket device {id:?} has a CID of {min} to {max}, not {cid}; choose one in between"
    )]
    Cid {
        /// The device.
        id: String,
        /// What was asked for.
        cid: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A socket's path would be none.
    #[error(
        "the path of the socket device {id:?} has 1 to {max} bytes, not {len}; choose a shorter one"
    )]
    SocketPath {
        /// The device.
        id: String,
        /// The length of what was asked for.
        len: usize,
        /// The most.
        max: usize,
    },
    /// A guest knows itself by one context identifier.
    #[error("a machine has one socket device, and {id:?} is another; leave it out")]
    SecondVsock {
        /// The device.
        id: String,
    },
    /// A disk that there cannot be.
    #[error("the {what} of {id:?} is {value}; it can be {allowed}")]
    Disk {
        /// The device.
        id: String,
        /// What is wrong.
        what: &'static str,
        /// What was asked for.
        value: String,
        /// What it could be.
        allowed: &'static str,
    },
    /// A device of a back end that there cannot be.
    #[error("the {what} of {id:?} is {value}; it can be {allowed}")]
    VhostUser {
        /// The device.
        id: String,
        /// What is wrong.
        what: &'static str,
        /// What was asked for.
        value: String,
        /// What it could be.
        allowed: &'static str,
    },
    /// Persistent memory of a size that no guest could map.
    #[error(
        "the persistent memory {id:?} is a multiple of 2 MiB, not {size} bytes; round the size"
    )]
    PmemSize {
        /// The device.
        id: String,
        /// What was asked for.
        size: u64,
    },
    /// No block that memory could come and go in.
    #[error("a block of the memory {id:?} is a power of two from 2M to 1G, not {block} bytes")]
    MemBlock {
        /// The device.
        id: String,
        /// What was asked for.
        block: u64,
    },
    /// No size that memory which comes and goes could have.
    #[error(
        "the memory {id:?} has some blocks of {block} bytes, and the guest takes some of them: not \
         {size} bytes of {max}; round the sizes"
    )]
    MemSize {
        /// The device.
        id: String,
        /// The most that was asked for.
        max: u64,
        /// What the guest was to take.
        size: u64,
        /// Bytes of a block.
        block: u64,
    },
    /// A console device has too few ports, or too many.
    #[error("the console device {id:?} has 1 to {max} ports, not {ports}")]
    Ports {
        /// The device.
        id: String,
        /// What was asked for.
        ports: usize,
        /// The most.
        max: usize,
    },
    /// No such name of a port.
    #[error(
        "{name:?} cannot be a port's name; take 1 to 64 letters, digits, dots, dashes and underscores"
    )]
    PortName {
        /// What was asked for.
        name: String,
    },
    /// Two ports of one name.
    #[error("two ports are named {name:?}; rename one")]
    SamePort {
        /// The name.
        name: String,
    },
    /// Two ports for one terminal.
    #[error("two ports want the machine's console; leave it to one")]
    TwoConsoles,
    /// A balloon takes all memory.
    #[error("the balloon {id:?} of {size} bytes leaves nothing of {memory} bytes; make it smaller")]
    Balloon {
        /// The device.
        id: String,
        /// What was asked for.
        size: u64,
        /// What the machine has.
        memory: u64,
    },
    /// The width of the generation tag is out of range.
    #[error("a generation tag has 2 to 19 bits, not {bits}; choose a width in between")]
    TagBits {
        /// What was asked for.
        bits: u32,
    },
    /// The first generation leaves no room for those to come.
    #[error("the first generation is {first}, more than {max}; start lower")]
    FirstGeneration {
        /// What was asked for.
        first: u64,
        /// The largest that may be.
        max: u64,
    },
}

/// Why a planned machine cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A device of the embedder's own cannot be made.
    #[error("virtio device {id}: it cannot be made")]
    Own {
        /// Its name.
        id: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A device is the guest's memory, or shows it to others, and so has to be where that is.
    #[error("{kind} {id:?} needs its machine's memory, and cannot be apart from it")]
    Apart {
        /// The device.
        id: String,
        /// What it is.
        kind: &'static str,
    },
    /// Kernel, initrd or command line are wrong, or do not fit.
    #[error(transparent)]
    Boot(#[from] umbra_boot::Error),
    /// The host gave no memory.
    #[error("the host gave no memory for the guest; ask for less or free some")]
    Ram(#[from] RamError),
    /// The map refused a range. The layout is fixed: this is a bug.
    #[error("the guest-physical map refused a range")]
    Map(#[from] SlotError),
    /// The bus refused a device. The layout is fixed: this is a bug.
    #[error("the bus refused a device")]
    Bus(#[from] BusError),
    /// The ports refused a device. The layout is fixed: this is a bug.
    #[error("the ports refused a device")]
    Ports(#[from] PortsError),
    /// The exit port cannot be where it was wanted.
    #[error("the exit port cannot be at {port:#x}; choose four free ports")]
    DebugExit {
        /// The port.
        port: u16,
        /// Who is there.
        #[source]
        source: PortsError,
    },
    /// A file for the firmware configuration device cannot be read.
    #[error("cannot read {path:?} for the firmware configuration; check the path")]
    ConfigFile {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// An item cannot be added to the firmware configuration.
    #[error("the firmware configuration takes no such item")]
    ConfigItem(#[from] FileError),
    /// The CPU template is none, or needs what is not there.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The software processor has one frequency.
    #[error(
        "the software processor's time-stamp counter runs at {own} kHz and not at {khz}: leave the \
         frequency out, or use --backend kvm"
    )]
    Frequency {
        /// What was asked for.
        khz: u32,
        /// What it has.
        own: u32,
    },
    /// KVM was wanted, and cannot be used here.
    #[error(transparent)]
    NoKvm(#[from] HostError),
    /// KVM is there, and refused this machine.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The processor cannot work here.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// A disk cannot be opened.
    #[error("the disk {id:?} cannot be used")]
    Disk {
        /// The device.
        id: String,
        /// Why not.
        #[source]
        source: OpenError,
    },
    /// A disk's options make no device.
    #[error("the disk {id:?} cannot be used")]
    Block {
        /// The device.
        id: String,
        /// Why not.
        #[source]
        source: BlockError,
    },
    /// A network device has no host end.
    #[error("the network device {id:?} cannot be connected")]
    Net {
        /// The device.
        id: String,
        /// Why not.
        #[source]
        source: NetError,
    },
    /// A socket device has no place on the host.
    #[error("the socket device {id:?} cannot be made")]
    Vsock {
        /// The device.
        id: String,
        /// Why not.
        #[source]
        source: VsockError,
    },
    /// A back end cannot be used.
    #[error("the vhost-user device {id:?} cannot be made")]
    VhostUser {
        /// The device.
        id: String,
        /// Why not.
        #[source]
        source: BackEndError,
    },
    /// The host's kernel does not give a device.
    #[error("the host's kernel does not serve the device {id:?}")]
    VhostKernel {
        /// The device.
        id: String,
        /// Why not.
        #[source]
        source: BackEndError,
    },
    /// There is no memory that could come and go.
    #[error("the memory {id:?} cannot be made")]
    Mem {
        /// The device.
        id: String,
        /// Why not.
        #[source]
        source: MemError,
    },
    /// A file cannot be persistent memory.
    #[error("the persistent memory {id:?} cannot be used")]
    Pmem {
        /// The device.
        id: String,
        /// Why not.
        #[source]
        source: PmemError,
    },
    /// The host refused what a virtio device needs.
    #[error("the host refused what the device {id:?} needs; raise the limit of open files")]
    Virtio {
        /// The device.
        id: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A port has no host end.
    #[error("a port of the console device {id:?} cannot be connected")]
    Port {
        /// The device.
        id: String,
        /// Why not.
        #[source]
        source: PortError,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for {what}; raise the limit of processes")]
    Thread {
        /// What it was for.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Why a device cannot be added to a machine that was built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// It has no PCI bus.
    #[error("nothing can be added to a machine without a PCI bus; build it with one (--pci)")]
    NoPci,
    /// The specification is wrong.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A device that is leaving still has the name.
    #[error("the device {id:?} is leaving; wait until it has gone, or take another name")]
    Leaving {
        /// The name.
        id: String,
    },
    /// Where the machine's input goes was decided when it was built.
    #[error("a console that is added cannot have the machine's terminal; take a socket or a file")]
    Terminal,
    /// The host refused.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
}

/// Why a device cannot be removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoveError {
    /// There is none of this name.
    #[error("there is no device named {id:?}")]
    NoSuchDevice {
        /// The name.
        id: String,
    },
    /// It is no PCI function.
    #[error("the device {id:?} is not on a PCI bus and stays; build the machine with one (--pci)")]
    Fixed {
        /// The name.
        id: String,
    },
    /// It is memory that the guest has, or shall have.
    #[error(
        "the memory {id:?} cannot go while the guest has {bytes} bytes of it, or shall take them; request \
         0 bytes, and wait until the guest has given all back"
    )]
    Memory {
        /// The name.
        id: String,
        /// What would be lost.
        bytes: u64,
    },
}

/// Why a disk has not got another file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// There is none of this name, or it is a disk of a back end.
    #[error("there is no disk named {id:?} whose file could be replaced")]
    NoSuchDisk {
        /// The name.
        id: String,
    },
    /// The new file is no disk.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new disk cannot take the old one's place.
    #[error(transparent)]
    Replace(#[from] ReplaceError),
    /// The host does not say how large the file is.
    #[error("cannot find out the size of disk {path}")]
    Size {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Why a port has no host end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// No file.
    #[error("cannot write the file {path:?}; check the path")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The host refused an event.
    #[error("the host refused an event; raise the limit of open files")]
    Event(#[source] std::io::Error),
    /// There is no machine whose console that could be.
    #[error("a device apart from its machine has no terminal; choose a socket or a file")]
    NoTerminal,
}

/// Why a network device has no host end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// No TAP interface.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// No user-mode networking.
    #[error(transparent)]
    User(#[from] PasstError),
    /// Nobody at the socket.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Why there is no memory that could come and go.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemError {
    /// The host does not map it.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The guest's physical addresses are used up.
    #[error("the processor's physical addresses have no room for {len} bytes more; ask for less")]
    NoRoom {
        /// How many.
        len: u64,
    },
    /// The host has no thread for it.
    #[error("the host has no thread for it; raise the limit of processes")]
    Thread(#[source] std::io::Error),
}

/// Why a file cannot be persistent memory of a guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PmemError {
    /// It cannot be opened, or somebody else has it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Guests map 2 MiB at a time.
    #[error(
        "the file {path} has {len} bytes, and a guest maps whole 2 MiB only: make it longer with \
         `truncate -s {good} {path}`, or say how much of it is shown (size=)"
    )]
    Size {
        /// The file.
        path: std::path::PathBuf,
        /// Its length.
        len: u64,
        /// A length that is good.
        good: u64,
    },
    /// There is less of it than wanted.
    #[error("the file {path} has {len} bytes, and {wanted} were to be shown; make it longer")]
    TooShort {
        /// The file.
        path: std::path::PathBuf,
        /// Its length.
        len: u64,
        /// What was asked for.
        wanted: u64,
    },
    /// The host refused something.
    #[error(
        "the host refused what the file {path} needs; raise the limits of open files and processes"
    )]
    Host {
        /// The file.
        path: std::path::PathBuf,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
    /// The host does not map it.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The guest's physical addresses are used up.
    #[error("the processor's physical addresses have no room for {len} bytes more; show less")]
    NoRoom {
        /// How many.
        len: u64,
    },
    /// The map refused it: too many pieces of memory.
    #[error(transparent)]
    Map(#[from] SlotError),
}

/// Why a machine ended that the guest did not end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// It was to begin again after a reset, and could not be built.
    #[error("the machine was reset and cannot begin again")]
    Again(#[source] Box<crate::Error>),
    /// Somebody waits for a machine that was never started.
    #[error("the machine was not started; call `Vm::start` before `Vm::wait`, or `Vm::run`")]
    NotStarted,
    /// The thread that drives the machine panicked: a bug.
    #[error("the machine's thread panicked; this is a bug of the monitor")]
    DriverPanicked,
    /// A processor failed.
    #[error("processor {id} failed")]
    Cpu {
        /// Which.
        id: u32,
        /// Why.
        #[source]
        source: CpuError,
    },
    /// A processor's thread panicked: a bug.
    #[error("the thread of processor {id} panicked; this is a bug of the monitor")]
    Panicked {
        /// Which.
        id: u32,
    },
    /// A processor's thread could not be started.
    #[error("cannot start a thread for processor {id}; raise the limit of processes")]
    Thread {
        /// Which.
        id: u32,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}
