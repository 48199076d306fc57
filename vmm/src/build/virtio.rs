//! The virtio devices, and those behind memory: each at its place, on its wire.

use std::collections::HashMap;
use std::sync::Arc;

use umbra_block::{Disk, DiskOptions, OpenError};
use umbra_boot::VirtioMmio;
use umbra_bus::Bus;
use umbra_cpu::{Backend, Statistics};
use umbra_devices::virtio::block::Statistics as DiskStatistics;
use umbra_devices::virtio::net::{NetOptions, NetStatistics};
use umbra_devices::virtio::{
    BalloonControl, Block, BlockControl, BlockOptions, ConsoleControl, MemControl, Net, NetControl,
    PmemControl, Rng,
};
use umbra_irq::{Line, SharedLine, Unconnected};
use umbra_mmds::MetadataPort;
use umbra_net::{Mac, Passt, Port, Stream, Tap, TapError};
use umbra_slots::{AddressSpace, DmaSpace, Gpa, GpaRange};
use umbra_vhost::{BackEndState, VhostKernelControl, VhostUserControl};
use umbra_virtio::{Device, MmioTransport};

use super::high::{HighMemory, Shown};
use super::mem::{self, HotMemory};
use super::vhost::Vhost;
use super::{balloon, console, pmem, vhost, vsock};
use crate::console::Output;
use crate::devices::Attached;
use crate::error::{BuildError, NetError};
use crate::layout;
use crate::spec::{DiskSpec, NetHost, NetMetadata, NetSpec, Spec, VirtioKind, VirtioSpec};
use crate::terminal::PortInput;

/// What a device has outside, as long as it is there. Fields are dropped in their order.
#[derive(Default)]
pub struct Helper {
    /// Who works for it.
    _passt: Option<Passt>,
    /// Its memory.
    _memory: Option<Shown>,
    /// Its memory that comes and goes.
    _hot_memory: Option<HotMemory>,
}

impl Helper {
    /// Memory of the map that is the device's.
    pub fn memory(shown: Shown) -> Self {
        Self {
            _memory: Some(shown),
            ..Self::default()
        }
    }

    /// Memory of which parts are in the map from time to time.
    pub fn hot_memory(memory: HotMemory) -> Self {
        Self {
            _hot_memory: Some(memory),
            ..Self::default()
        }
    }

    fn passt(passt: Option<Passt>) -> Self {
        Self {
            _passt: passt,
            ..Self::default()
        }
    }
}

/// What a device finds around it.
pub struct Surroundings<'a> {
    /// The map.
    pub space: &'a Arc<AddressSpace>,
    /// Where in it there is room.
    pub high: &'a Arc<HighMemory>,
    /// Where the machine's console is shown.
    pub output: &'a Output,
    /// What devices of back ends have in common.
    pub vhost: &'a Vhost,
}

/// A device that has no place yet, and what it has outside.
pub struct Made {
    /// The device.
    pub device: Box<dyn Device>,
    /// What changes it while it runs.
    pub control: Option<Control>,
    /// Dropped when the device has gone.
    pub helper: Helper,
}

impl Made {
    /// One that has nothing outside.
    pub fn plain(device: impl Device + 'static) -> Self {
        Self::boxed(Box::new(device))
    }

    fn boxed(device: Box<dyn Device>) -> Self {
        Self {
            device,
            control: None,
            helper: Helper::default(),
        }
    }
}

/// What changes a device while it runs.
#[derive(Clone)]
pub enum Control {
    /// A balloon.
    Balloon(BalloonControl),
    /// A console device; where input goes if it has the machine's console.
    Console(ConsoleControl, Option<Arc<PortInput>>),
    /// Memory that comes and goes.
    Mem(MemControl),
    /// A disk.
    Block(BlockControl),
    /// A network interface.
    Net(NetControl),
    /// Persistent memory.
    Pmem(PmemControl),
    /// A device of a back end.
    VhostUser(VhostUserControl),
    /// A device that the host's kernel serves.
    VhostKernel(VhostKernelControl),
}

impl Control {
    /// Tells how its back end is, if it has one.
    pub fn back_end(&self) -> Option<BackEndState> {
        match self {
            Self::VhostUser(control) => Some(control.state()),
            Self::VhostKernel(control) => Some(control.state()),
            _ => None,
        }
    }

    /// Returns how often a limit has held something back.
    pub fn throttled(&self) -> u64 {
        match self {
            Self::Block(disk) => disk.statistics().throttled,
            Self::Net(net) => {
                let counts = net.statistics();
                counts.throttled_in.wrapping_add(counts.throttled_out)
            }
            _ => 0,
        }
    }

    /// Returns what the device has counted.
    pub fn counters(&self) -> Statistics {
        match self {
            Self::Block(disk) => block_counters(&disk.statistics()),
            Self::Net(net) => net_counters(&net.statistics()),
            Self::Balloon(balloon) => {
                let counts = balloon.counters();
                vec![
                    ("target_bytes", balloon.target()),
                    ("actual_bytes", balloon.actual()),
                    ("inflated_bytes", counts.inflated),
                    ("deflated_bytes", counts.deflated),
                    ("reported_bytes", counts.reported),
                    ("hinted_bytes", counts.hinted),
                    ("freed_bytes", counts.freed),
                    ("ignored_bytes", counts.ignored),
                ]
            }
            Self::Mem(memory) => vec![
                ("requested_bytes", memory.requested()),
                ("plugged_bytes", memory.plugged()),
            ],
            Self::VhostUser(_) | Self::VhostKernel(_) => {
                let state = self.back_end();
                let state = state.map(|state| (u64::from(state.connected), state.losses));
                let (connected, losses) = state.unwrap_or_default();
                vec![
                    ("back_end_connected", connected),
                    ("back_end_losses", losses),
                ]
            }
            Self::Console(..) | Self::Pmem(_) => Vec::new(),
        }
    }

    /// Returns what a device that was made as `kind` is now.
    pub fn now(&self, kind: &VirtioKind) -> VirtioKind {
        let mut kind = kind.clone();
        match (self, &mut kind) {
            (Self::Block(disk), VirtioKind::Block(spec)) => spec.limits = disk.limits(),
            (Self::Net(net), VirtioKind::Net(spec)) => {
                spec.receive = net.receive_limits();
                spec.transmit = net.transmit_limits();
            }
            (Self::Pmem(pmem), VirtioKind::Pmem(spec)) => spec.limits = pmem.limits(),
            (Self::Balloon(balloon), VirtioKind::Balloon(spec)) => spec.size = balloon.target(),
            (Self::Mem(memory), VirtioKind::Mem(spec)) => spec.size = memory.requested(),
            _ => {}
        }
        kind
    }
}

fn block_counters(counts: &DiskStatistics) -> Statistics {
    vec![
        ("reads", counts.reads),
        ("read_bytes", counts.read_bytes),
        ("writes", counts.writes),
        ("written_bytes", counts.written_bytes),
        ("flushes", counts.flushes),
        ("discards", counts.discards),
        ("zero_writes", counts.zero_writes),
        ("refused", counts.refused),
        ("errors", counts.errors),
        ("throttled", counts.throttled),
    ]
}

fn net_counters(counts: &NetStatistics) -> Statistics {
    vec![
        ("received_frames", counts.received_frames),
        ("received_bytes", counts.received_bytes),
        ("sent_frames", counts.sent_frames),
        ("sent_bytes", counts.sent_bytes),
        ("dropped_in", counts.dropped_in),
        ("dropped_out", counts.dropped_out),
        ("throttled_in", counts.throttled_in),
        ("throttled_out", counts.throttled_out),
    ]
}

/// Says where the devices behind memory will be.
pub fn places(spec: &Spec) -> Vec<VirtioMmio> {
    let count = if spec.pci { 0 } else { spec.virtio.len() };
    (0..count)
        .map(|number| VirtioMmio {
            address: layout::virtio_address(number),
            len: MmioTransport::LEN as u32,
            interrupt: layout::virtio_interrupt(number),
        })
        .collect()
}

/// Adds to the command line where the devices are (Linux, `virtio_mmio.device=`), before what is only
/// for the first process.
pub fn announce(command_line: &str, places: &[VirtioMmio]) -> String {
    let announced = places.iter().map(|place| {
        let VirtioMmio {
            address,
            len,
            interrupt,
        } = place;
        format!(" virtio_mmio.device={len:#x}@{address:#x}:{interrupt}")
    });
    let announced: String = announced.collect();
    match command_line.split_once(" -- ") {
        Some((kernel, init)) => format!("{kernel}{announced} -- {init}"),
        None => format!("{command_line}{announced}"),
    }
}

/// Makes the devices behind memory.
pub fn add(
    spec: &Spec,
    backend: &Arc<dyn Backend>,
    bus: &Bus,
    space: &Arc<AddressSpace>,
    output: &Output,
) -> Result<Vec<Attached>, BuildError> {
    let mut lines = Lines {
        backend: &**backend,
        shared: HashMap::new(),
    };
    let high = HighMemory::new(spec.memory, backend.physical_bits());
    let around = Surroundings {
        space,
        high: &high,
        output,
        vhost: &Vhost::default(),
    };
    let mut attached = Vec::new();
    for (number, (wanted, place)) in spec.virtio.iter().zip(places(spec)).enumerate() {
        let made = make(wanted, &around)?;
        let memory = DmaSpace::new(space.clone(), backend.dma());
        let line = lines.end(place.interrupt);
        let transport = MmioTransport::new(made.device, memory, line);
        let range = GpaRange::new(Gpa(place.address.into()), MmioTransport::LEN)
            .expect("a page of the layout");
        let id = bus.insert(range, transport.clone())?;
        if let Some(doorbells) = backend.doorbells() {
            transport.attach(id, doorbells);
        }
        tracing::debug!(
            number,
            id = wanted.id,
            kind = wanted.kind.name(),
            %range,
            interrupt = place.interrupt,
            "a virtio device"
        );
        attached.push(Attached {
            spec: wanted.clone(),
            transport,
            address: None,
            control: made.control,
            _helper: made.helper,
        });
    }
    Ok(attached)
}

/// Makes a device, and what it has of the host. Waits for processors where memory comes or, after a failure,
/// goes: the caller holds no lock that one may want.
pub fn make(wanted: &VirtioSpec, around: &Surroundings<'_>) -> Result<Made, BuildError> {
    let id = &wanted.id;
    match &wanted.kind {
        VirtioKind::Balloon(spec) => {
            let (device, control) = balloon::make(id, spec);
            Ok(Made {
                control: Some(Control::Balloon(control)),
                ..Made::plain(device)
            })
        }
        VirtioKind::VhostUser(spec) => {
            let device = vhost::device(id, spec, around)?;
            Ok(Made {
                control: Some(Control::VhostUser(device.control())),
                ..Made::plain(device)
            })
        }
        VirtioKind::Net(net) if matches!(net.host, NetHost::Vhost { .. }) => {
            Ok(vhost::made(vhost::net(id, net, around)?))
        }
        VirtioKind::VhostVsock(spec) => Ok(vhost::made(vhost::vsock(id, spec, around)?)),
        VirtioKind::Vdpa(spec) => Ok(vhost::made(vhost::vdpa(id, spec, around)?)),
        VirtioKind::Pmem(spec) => pmem::make(id, spec, around),
        VirtioKind::Mem(spec) => mem::make(id, spec, around),
        _ => make_apart(wanted, Some(around.output)),
    }
}

/// Most buffers of a request to a disk apart: the front end chooses the size of its queues, and most take 128.
const SEGMENTS_APART: u16 = 126;

/// Makes a device that needs nothing of a machine's, but its console if it is at hand. Without, it is for somebody
/// else's machine.
pub fn make_apart(wanted: &VirtioSpec, output: Option<&Output>) -> Result<Made, BuildError> {
    let id = &wanted.id;
    Ok(match &wanted.kind {
        VirtioKind::Rng(spec) => Made::plain(Rng::new().limited(spec.limits)),
        VirtioKind::Block(disk) => {
            let segments = match output {
                Some(_) => Block::SEGMENTS_MAX,
                None => SEGMENTS_APART,
            };
            let device = block(id, disk, segments)?;
            Made {
                control: Some(Control::Block(device.control())),
                ..Made::plain(device)
            }
        }
        VirtioKind::Net(net) if !matches!(net.host, NetHost::Vhost { .. }) => {
            let (device, control, passt) = network(id, net)?;
            Made {
                control: Some(Control::Net(control)),
                helper: Helper::passt(passt),
                ..Made::plain(device)
            }
        }
        VirtioKind::Vsock(spec) => Made::plain(vsock::device(id, spec)?),
        VirtioKind::Own(own) => Made::boxed(own.make(id)?),
        VirtioKind::Console(spec) => {
            let (device, control, input) = console::make(id, spec, output)?;
            Made {
                control: Some(Control::Console(control, input)),
                ..Made::plain(device)
            }
        }
        VirtioKind::Balloon(_)
        | VirtioKind::Net(_)
        | VirtioKind::Pmem(_)
        | VirtioKind::Mem(_)
        | VirtioKind::VhostUser(_)
        | VirtioKind::VhostVsock(_)
        | VirtioKind::Vdpa(_) => {
            return Err(BuildError::Apart {
                id: id.clone(),
                kind: wanted.kind.name(),
            });
        }
    })
}

/// Opens the file of a disk.
pub fn open_disk(spec: &DiskSpec) -> Result<Arc<dyn Disk>, OpenError> {
    let options = DiskOptions {
        format: spec.format,
        read_only: spec.read_only,
        direct: spec.direct,
        backing: spec.backing,
    };
    umbra_block::open(&spec.path, &options)
}

/// Opens a disk, and makes its device.
fn block(id: &str, spec: &DiskSpec, segments: u16) -> Result<Block, BuildError> {
    let disk = open_disk(spec).map_err(|source| BuildError::Disk {
        id: id.to_owned(),
        source,
    })?;
    let options = BlockOptions {
        serial: spec.serial.clone(),
        cache: spec.cache,
        queues: spec.queues,
        segments,
        engine: spec.engine,
        limits: spec.limits,
    };
    Block::new(disk, options).map_err(|source| BuildError::Block {
        id: id.to_owned(),
        source,
    })
}

/// Makes a network device, and starts who speaks for it.
fn network(id: &str, spec: &NetSpec) -> Result<(Net, NetControl, Option<Passt>), BuildError> {
    let mac = spec.mac.unwrap_or_else(Mac::random);
    let (ports, helper) = connect(&spec.host, mac, spec.mtu).map_err(|source| BuildError::Net {
        id: id.to_owned(),
        source,
    })?;
    let ports = match &spec.metadata {
        None => ports,
        Some(NetMetadata { data, config }) => {
            let ports = MetadataPort::before(ports, data.clone(), *config);
            ports.into_iter().map(|port| Box::new(port) as _).collect()
        }
    };
    let options = NetOptions {
        name: id.to_owned(),
        mac,
        mtu: spec.mtu,
        receive: spec.receive,
        transmit: spec.transmit,
    };
    let (net, control) = Net::new(ports, options).map_err(|source| BuildError::Virtio {
        id: id.to_owned(),
        source,
    })?;
    Ok((net, control, helper))
}

/// Tells whether a machine could have a TAP interface of one queue now, made for it if there is none of this name.
/// Opens it, and gives it back.
///
/// # Errors
/// If it cannot be had.
pub fn check_tap(name: &str) -> Result<(), TapError> {
    Tap::open(name, 1).map(drop)
}

/// Queues of the host's end.
pub type Ports = Vec<Box<dyn Port>>;

/// Opens the host's end of a network device, and starts who is there.
pub fn connect(
    host: &NetHost,
    mac: Mac,
    mtu: Option<u16>,
) -> Result<(Ports, Option<Passt>), NetError> {
    let one = |stream: Stream| vec![Box::new(stream) as Box<dyn Port>];
    Ok(match host {
        NetHost::Tap { name, queues } | NetHost::Vhost { name, queues } => {
            let taps = Tap::open(name, *queues)?.into_iter();
            (
                taps.map(|tap| Box::new(tap) as Box<dyn Port>).collect(),
                None,
            )
        }
        NetHost::User { passt, arguments } => {
            let (passt, stream) = Passt::start(passt, arguments, mac, mtu)?;
            (one(stream), Some(passt))
        }
        NetHost::Stream { path } => (one(Stream::connect(path)?), None),
    })
}

/// The wires of the interrupt controller, shared where there are more devices than pins.
struct Lines<'a> {
    backend: &'a dyn Backend,
    shared: HashMap<u32, Arc<SharedLine>>,
}

impl Lines<'_> {
    /// Returns one more end of a line.
    fn end(&mut self, number: u32) -> Arc<dyn Line> {
        let backend = self.backend;
        let shared = self.shared.entry(number).or_insert_with(|| {
            let line = backend.pin(number).or_else(|| backend.chip().line(number));
            SharedLine::new(line.unwrap_or_else(|| Arc::new(Unconnected)))
        });
        shared.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::RngSpec;

    #[test]
    fn the_command_line_names_devices_before_what_is_for_init() {
        let spec = Spec::new("kernel")
            .virtio("a", VirtioKind::Rng(RngSpec::default()))
            .virtio("b", VirtioKind::Rng(RngSpec::default()));
        let names =
            "virtio_mmio.device=0x1000@0xfeb00000:16 virtio_mmio.device=0x1000@0xfeb01000:17";
        let table = [
            ("quiet", format!("quiet {names}")),
            ("quiet -- shell", format!("quiet {names} -- shell")),
        ];
        for (line, expected) in table {
            assert_eq!(announce(line, &places(&spec)), expected);
        }
    }
}
