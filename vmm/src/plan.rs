//! A specification that was checked. Pure: nothing is opened or allocated.

use std::collections::BTreeSet;

use umbra_boot::layout::MIN_RAM;
use umbra_devices::virtio::vsock::VSOCK_PATH_MAX;
use umbra_devices::virtio::{Block, Console, Mem, Net, Pmem, Vsock};
use umbra_vhost::TAG_MAX;

use crate::error::PlanError;
use crate::layout;
use crate::spec::{
    Backend, BalloonSpec, ConsoleSpec, DiskSpec, Limits, MemSpec, NetHost, NetMetadata, NetSpec,
    PmemSpec, PortEnd, Spec, Verify, VhostKind, VhostUserSpec, VirtioKind, VirtioSpec, VsockSpec,
};

/// Local APIC ids up to 254 are processors' in xAPIC mode; 255 is the broadcast.
const MAX_CPUS: u32 = 255;
/// Half a TiB: with the hole it stays far below the 46 address bits that the processor shows.
const MAX_MEMORY: u64 = 1 << 39;

/// The smallest MTU of a network device (virtio 1.3, 5.1.4.1).
const MIN_MTU: u16 = 68;

/// Bytes of a path that is a unix socket.
const MAX_SOCKET: usize = 107;

/// Queues of a device that is elsewhere.
const MAX_QUEUES: u16 = 64;

/// Bytes of a device's name.
const MAX_ID: usize = 64;

/// A generation is never reset or used again: there must be room above the first one.
const MAX_FIRST_GENERATION: u64 = 1 << 62;

/// A machine that can be built, as far as numbers tell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Plan {
    pub(crate) spec: Spec,
}

impl Plan {
    /// Checks a specification.
    ///
    /// # Errors
    ///
    /// If a number is out of range, or two wishes contradict each other.
    pub fn new(spec: Spec) -> Result<Self, PlanError> {
        if spec.cpus == 0 || spec.cpus > MAX_CPUS {
            return Err(PlanError::Cpus {
                cpus: spec.cpus,
                max: MAX_CPUS,
            });
        }
        check_memory(spec.memory)?;
        if !(2..=19).contains(&spec.tag_bits) {
            return Err(PlanError::TagBits {
                bits: spec.tag_bits,
            });
        }
        if spec.first_generation > MAX_FIRST_GENERATION {
            return Err(PlanError::FirstGeneration {
                first: spec.first_generation,
                max: MAX_FIRST_GENERATION,
            });
        }
        if spec.backend == Backend::Kvm && spec.verify != Verify::Off {
            return Err(PlanError::NothingToVerify);
        }
        if spec.pci && spec.virtio_on_command_line {
            return Err(PlanError::NamedOnPci);
        }
        let max = if spec.pci {
            layout::PCI_MAX
        } else {
            layout::VIRTIO_MAX
        };
        check_virtio(&spec.virtio, spec.memory, max)?;
        Ok(Self { spec })
    }

    /// Returns the specification.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }
}

fn check_memory(bytes: u64) -> Result<(), PlanError> {
    if !(MIN_RAM..=MAX_MEMORY).contains(&bytes) {
        let (min_mib, max_mib) = (MIN_RAM >> 20, MAX_MEMORY >> 20);
        return Err(PlanError::Memory {
            bytes,
            min_mib,
            max_mib,
        });
    }
    if !bytes.is_multiple_of(0x1000) {
        return Err(PlanError::MemoryUnaligned { bytes });
    }
    Ok(())
}

/// Checks all devices of a machine, of which there can be `max`.
pub fn check_virtio<'a>(
    devices: impl IntoIterator<Item = &'a VirtioSpec> + Clone,
    memory: u64,
    max: usize,
) -> Result<(), PlanError> {
    let count = devices.clone().into_iter().count();
    if count > max {
        return Err(PlanError::TooManyVirtio { count, max });
    }
    let mut ids = BTreeSet::new();
    let mut ports = Ports::default();
    let mut has_vsock = false;
    check_locked(devices.clone())?;
    for device in devices {
        let id = &device.id;
        if !is_name(id) {
            return Err(PlanError::Id { id: id.clone() });
        }
        if !ids.insert(id) {
            return Err(PlanError::SameId { id: id.clone() });
        }
        match &device.kind {
            VirtioKind::Rng(_) | VirtioKind::Own(_) => {}
            VirtioKind::Block(disk) => check_disk(id, disk)?,
            VirtioKind::Net(net) => check_net(id, net)?,
            VirtioKind::Pmem(pmem) => check_pmem(id, pmem)?,
            VirtioKind::Mem(mem) => check_mem(id, mem)?,
            kind if is_vsock(kind) && std::mem::replace(&mut has_vsock, true) => {
                return Err(PlanError::SecondVsock { id: id.clone() });
            }
            VirtioKind::Vsock(vsock) => check_vsock(id, vsock)?,
            VirtioKind::VhostUser(vhost) => check_vhost_user(id, vhost)?,
            VirtioKind::VhostVsock(vsock) => check_cid(id, vsock.cid)?,
            VirtioKind::Vdpa(_) => {}
            VirtioKind::Balloon(balloon) => check_balloon(id, balloon, memory)?,
            VirtioKind::Console(console) => ports.check(id, console)?,
        }
    }
    Ok(())
}

/// Tells whether a guest would take it for its socket device.
fn is_vsock(kind: &VirtioKind) -> bool {
    match kind {
        VirtioKind::Vsock(_) | VirtioKind::VhostVsock(_) => true,
        VirtioKind::VhostUser(vhost) => vhost.kind.id() == Vsock::ID,
        _ => false,
    }
}

fn check_disk(id: &str, disk: &DiskSpec) -> Result<(), PlanError> {
    let refused = |what, value: String, allowed| {
        Err(PlanError::Disk {
            id: id.to_owned(),
            what,
            value,
            allowed,
        })
    };
    if disk.serial.len() > Block::SERIAL_MAX {
        return refused("serial", format!("{:?}", disk.serial), "20 bytes at most");
    }
    if !(1..=Block::QUEUES_MAX).contains(&disk.queues) {
        return refused("number of queues", disk.queues.to_string(), "1 to 64");
    }
    Ok(())
}

fn check_vhost_user(id: &str, vhost: &VhostUserSpec) -> Result<(), PlanError> {
    let refused = |what, value: String, allowed| {
        Err(PlanError::VhostUser {
            id: id.to_owned(),
            what,
            value,
            allowed,
        })
    };
    let len = vhost.socket.as_os_str().len();
    if !(1..=MAX_SOCKET).contains(&len) {
        return Err(PlanError::SocketPath {
            id: id.to_owned(),
            len,
            max: MAX_SOCKET,
        });
    }
    match &vhost.kind {
        VhostKind::Fs { tag: Some(tag) } if !(1..=TAG_MAX).contains(&tag.len()) => {
            return refused("tag", format!("{tag:?}"), "1 to 36 bytes");
        }
        VhostKind::Other { id, .. } if !(1..=63).contains(id) => {
            return refused("device type", id.to_string(), "1 to 63");
        }
        VhostKind::Other { config_len, .. } if *config_len > 256 => {
            return refused(
                "length of the configuration",
                config_len.to_string(),
                "0 to 256",
            );
        }
        _ => {}
    }
    let least = if vhost.kind.queues() == 1 { 1 } else { 2 };
    match (vhost.queues, vhost.queue_size) {
        (Some(queues), _) if !(least..=MAX_QUEUES).contains(&queues) => refused(
            "number of queues",
            queues.to_string(),
            "1 to 64, and 2 or more but for a disk",
        ),
        (_, Some(size)) if !size.is_power_of_two() || size > 1024 => refused(
            "size of a queue",
            size.to_string(),
            "a power of two up to 1024",
        ),
        _ => Ok(()),
    }
}

/// Checks that nobody lends memory that is locked: a device of the host's would go on with the pages that were given
/// back.
fn check_locked<'a>(
    devices: impl IntoIterator<Item = &'a VirtioSpec> + Clone,
) -> Result<(), PlanError> {
    let mut all = devices.clone().into_iter();
    let has_balloon = all.any(|device| matches!(device.kind, VirtioKind::Balloon(_)));
    let is_vdpa = |device: &&VirtioSpec| matches!(device.kind, VirtioKind::Vdpa(_));
    match devices.into_iter().find(is_vdpa) {
        Some(vdpa) if has_balloon => Err(PlanError::VdpaBalloon {
            id: vdpa.id.clone(),
        }),
        _ => Ok(()),
    }
}

fn check_cid(id: &str, cid: u64) -> Result<(), PlanError> {
    match Vsock::CIDS.contains(&cid) {
        true => Ok(()),
        false => Err(PlanError::Cid {
            id: id.to_owned(),
            cid,
            min: *Vsock::CIDS.start(),
            max: *Vsock::CIDS.end(),
        }),
    }
}

fn check_vsock(id: &str, vsock: &VsockSpec) -> Result<(), PlanError> {
    check_cid(id, vsock.cid)?;
    let len = vsock.path.as_os_str().len();
    match (1..=VSOCK_PATH_MAX).contains(&len) {
        true => Ok(()),
        false => Err(PlanError::SocketPath {
            id: id.to_owned(),
            len,
            max: VSOCK_PATH_MAX,
        }),
    }
}

fn check_net(id: &str, net: &NetSpec) -> Result<(), PlanError> {
    let no_limits = Limits::default();
    if let NetHost::Vhost { .. } = net.host
        && [net.receive, net.transmit] != [no_limits; 2]
    {
        return Err(PlanError::VhostLimits { id: id.to_owned() });
    }
    if let NetHost::Vhost { .. } = net.host
        && net.metadata.is_some()
    {
        return Err(PlanError::VhostMetadata { id: id.to_owned() });
    }
    if let Some(NetMetadata { config, .. }) = &net.metadata
        && !config.is_valid()
    {
        return Err(PlanError::MetadataAddress {
            id: id.to_owned(),
            address: config.address,
        });
    }
    if let NetHost::Tap { queues, .. } | NetHost::Vhost { queues, .. } = &net.host
        && !(1..=Net::MAX_PAIRS).contains(queues)
    {
        return Err(PlanError::NetQueues {
            id: id.to_owned(),
            queues: *queues,
            max: Net::MAX_PAIRS,
        });
    }
    match net.mtu {
        // Less than the least that IPv4 needs (RFC 791).
        Some(mtu) if mtu < MIN_MTU => Err(PlanError::Mtu {
            id: id.to_owned(),
            mtu,
            min: MIN_MTU,
        }),
        _ => Ok(()),
    }
}

fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !text.is_empty() && text.len() <= MAX_ID && text.chars().all(good)
}

/// The ports of all console devices.
#[derive(Default)]
struct Ports<'a> {
    names: BTreeSet<&'a str>,
    has_console: bool,
}

impl<'a> Ports<'a> {
    fn check(&mut self, id: &str, console: &'a ConsoleSpec) -> Result<(), PlanError> {
        let (ports, max) = (console.ports.len(), Console::PORTS_MAX);
        if !(1..=max).contains(&ports) {
            let id = id.to_owned();
            return Err(PlanError::Ports { id, ports, max });
        }
        for port in &console.ports {
            if let Some(name) = port.name.as_deref() {
                if !is_name(name) {
                    return Err(PlanError::PortName { name: name.into() });
                }
                if !self.names.insert(name) {
                    return Err(PlanError::SamePort { name: name.into() });
                }
            }
            if port.end == PortEnd::Console && std::mem::replace(&mut self.has_console, true) {
                return Err(PlanError::TwoConsoles);
            }
        }
        Ok(())
    }
}

fn check_balloon(id: &str, balloon: &BalloonSpec, memory: u64) -> Result<(), PlanError> {
    if balloon.size >= memory {
        return Err(PlanError::Balloon {
            id: id.to_owned(),
            size: balloon.size,
            memory,
        });
    }
    Ok(())
}

fn check_mem(id: &str, mem: &MemSpec) -> Result<(), PlanError> {
    let MemSpec { max, size, block } = *mem;
    let id = || id.to_owned();
    if !block.is_power_of_two() || !(Mem::MIN_BLOCK..=layout::HIGH_ALIGNMENT).contains(&block) {
        return Err(PlanError::MemBlock { id: id(), block });
    }
    if max == 0 || size > max || !max.is_multiple_of(block) || !size.is_multiple_of(block) {
        return Err(PlanError::MemSize {
            id: id(),
            max,
            size,
            block,
        });
    }
    Ok(())
}

fn check_pmem(id: &str, pmem: &PmemSpec) -> Result<(), PlanError> {
    match pmem.size {
        Some(size) if size == 0 || !size.is_multiple_of(Pmem::ALIGNMENT) => {
            Err(PlanError::PmemSize {
                id: id.to_owned(),
                size,
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{
        Bucket, Metadata, MetadataConfig, PortSpec, RngSpec, VdpaSpec, VhostVsockSpec,
    };

    #[test]
    fn the_default_machine_can_be_planned() {
        assert!(Plan::new(Spec::new("kernel")).is_ok());
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let spec = || Spec::new("kernel");
        let refused = |spec| Plan::new(spec).unwrap_err();
        for cpus in [0, 256, u32::MAX] {
            assert_eq!(
                refused(spec().cpus(cpus)),
                PlanError::Cpus { cpus, max: 255 }
            );
        }
        for bytes in [0, 1 << 20, u64::MAX] {
            assert!(matches!(
                refused(spec().memory(bytes)),
                PlanError::Memory { .. }
            ));
        }
        let bytes = (4 << 20) + 1;
        assert_eq!(
            refused(spec().memory(bytes)),
            PlanError::MemoryUnaligned { bytes }
        );
        for bits in [1, 20] {
            let narrow = Spec {
                tag_bits: bits,
                ..spec()
            };
            assert_eq!(refused(narrow), PlanError::TagBits { bits });
        }
        let late = Spec {
            first_generation: u64::MAX,
            ..spec()
        };
        assert!(matches!(
            refused(late),
            PlanError::FirstGeneration {
                first: u64::MAX,
                ..
            }
        ));
    }

    #[test]
    fn devices_have_names_of_their_own() {
        let with = |ids: &[&str]| {
            let add = |spec: Spec, id: &&str| spec.virtio(*id, VirtioKind::Rng(RngSpec::default()));
            Plan::new(ids.iter().fold(Spec::new("kernel"), add))
        };
        assert!(with(&["rng0", "A-b_c.d"]).is_ok());
        let same = PlanError::SameId { id: "a".into() };
        assert_eq!(with(&["a", "b", "a"]), Err(same));
        let long = "x".repeat(65);
        for id in ["", "a b", "a/b", "\u{e4}", &long] {
            assert_eq!(with(&[id]), Err(PlanError::Id { id: id.into() }));
        }
        let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(|id| &**id).collect();
        assert!(with(&many[..64]).is_ok());
        let refused = PlanError::TooManyVirtio { count: 65, max: 64 };
        assert_eq!(with(&many), Err(refused));
    }

    #[test]
    fn a_pci_bus_has_room_for_31_devices_and_nobody_is_told_where() {
        let with = |count| {
            let add = |spec: Spec, n: usize| {
                spec.virtio(n.to_string(), VirtioKind::Rng(RngSpec::default()))
            };
            (0..count).fold(Spec::new("kernel").pci(), add)
        };
        assert!(Plan::new(with(31)).is_ok());
        let refused = PlanError::TooManyVirtio { count: 32, max: 31 };
        assert_eq!(Plan::new(with(32)), Err(refused));
        let named = Spec {
            virtio_on_command_line: true,
            ..with(1)
        };
        assert_eq!(Plan::new(named), Err(PlanError::NamedOnPci));
    }

    #[test]
    fn a_network_interface_has_some_queues_and_no_tiny_frames() {
        let with = |queues, mtu| {
            let host = NetHost::Tap {
                name: "tap0".into(),
                queues,
            };
            let net = NetSpec {
                mtu,
                ..NetSpec::new(host)
            };
            Plan::new(Spec::new("kernel").virtio("n", VirtioKind::Net(net)))
        };
        assert!(with(1, None).is_ok() && with(16, Some(68)).is_ok());
        for queues in [0, 17] {
            let (id, max) = ("n".into(), 16);
            assert_eq!(
                with(queues, None),
                Err(PlanError::NetQueues { id, queues, max })
            );
        }
        let (id, mtu, min) = ("n".into(), 67, 68);
        assert_eq!(with(1, Some(67)), Err(PlanError::Mtu { id, mtu, min }));
    }

    #[test]
    fn what_the_kernel_serves_has_no_limits_and_its_own_rules() {
        let net = |queues, limits| {
            let host = NetHost::Vhost {
                name: "tap0".into(),
                queues,
            };
            let net = NetSpec {
                transmit: limits,
                ..NetSpec::new(host)
            };
            Plan::new(Spec::new("kernel").virtio("n", VirtioKind::Net(net))).err()
        };
        let limits = Limits {
            operations: Some(Bucket {
                size: 1,
                one_time_burst: 0,
                refill_time: std::time::Duration::from_secs(1),
            }),
            ..Limits::default()
        };
        assert_eq!(net(16, Limits::default()), None);
        let (id, queues, max) = ("n".into(), 17, 16);
        let refused = PlanError::NetQueues { id, queues, max };
        assert_eq!(net(17, Limits::default()), Some(refused));
        let refused = PlanError::VhostLimits { id: "n".into() };
        assert_eq!(net(1, limits), Some(refused));

        let vsock = |cid| VirtioKind::VhostVsock(VhostVsockSpec { cid });
        let sockets = |cid| Plan::new(Spec::new("kernel").virtio("v", vsock(cid))).err();
        assert_eq!(sockets(3), None);
        assert!(matches!(sockets(2), Some(PlanError::Cid { cid: 2, .. })));
        let two = Spec::new("kernel")
            .virtio("v", vsock(3))
            .virtio("w", vsock(4));
        let second = PlanError::SecondVsock { id: "w".into() };
        assert_eq!(Plan::new(two).err(), Some(second));

        let vdpa = VirtioKind::Vdpa(VdpaSpec {
            node: "/dev/vhost-vdpa-0".into(),
        });
        let alone = Spec::new("kernel").virtio("d", vdpa);
        let lent = VirtioKind::Balloon(BalloonSpec::default());
        let both = alone.clone().virtio("b", lent);
        assert!(Plan::new(alone).is_ok());
        let refused = PlanError::VdpaBalloon { id: "d".into() };
        assert_eq!(Plan::new(both).err(), Some(refused));
    }

    #[test]
    fn metadata_is_at_an_address_of_the_link_and_not_with_vhost() {
        let plan = |host: NetHost, address: [u8; 4]| {
            let config = MetadataConfig {
                address: address.into(),
                ..MetadataConfig::default()
            };
            let metadata = NetMetadata {
                data: Metadata::new(MetadataConfig::LIMIT),
                config,
            };
            let net = NetSpec {
                metadata: Some(metadata),
                ..NetSpec::new(host)
            };
            Plan::new(Spec::new("kernel").virtio("n", VirtioKind::Net(net))).map(drop)
        };
        for address in [[169, 254, 169, 254], [169, 254, 1, 0], [169, 254, 254, 255]] {
            assert_eq!(plan(NetHost::user(), address), Ok(()));
        }
        for address in [
            [169, 254, 0, 1],
            [169, 254, 255, 1],
            [10, 0, 0, 1],
            [224, 0, 0, 1],
            [0; 4],
        ] {
            let refused = PlanError::MetadataAddress {
                id: "n".into(),
                address: address.into(),
            };
            assert_eq!(plan(NetHost::user(), address), Err(refused));
        }
        let vhost = NetHost::Vhost {
            name: "t0".into(),
            queues: 1,
        };
        let refused = PlanError::VhostMetadata { id: "n".into() };
        assert_eq!(plan(vhost, [169, 254, 169, 254]), Err(refused));
    }

    #[test]
    fn a_socket_device_has_a_cid_of_its_own_and_room_for_ports_in_its_path() {
        let vsock = |cid, len| VirtioKind::Vsock(VsockSpec::new(cid, "x".repeat(len)));
        let with = |cid, len| Plan::new(Spec::new("kernel").virtio("v", vsock(cid, len)));
        assert!(with(3, 1).is_ok() && with(0xffff_fffe, 96).is_ok());
        for cid in [0, 2, 0xffff_ffff, u64::MAX] {
            assert!(matches!(with(cid, 1), Err(PlanError::Cid { .. })), "{cid}");
        }
        for len in [0, 97] {
            let refused = PlanError::SocketPath {
                id: "v".into(),
                len,
                max: 96,
            };
            assert_eq!(with(3, len), Err(refused));
        }
        let two = Spec::new("kernel")
            .virtio("v", vsock(3, 1))
            .virtio("w", vsock(4, 2));
        assert_eq!(
            Plan::new(two),
            Err(PlanError::SecondVsock { id: "w".into() })
        );
    }

    #[test]
    fn a_device_of_a_back_end_has_a_socket_and_queues_that_can_be() {
        let fs = |tag: &str| VhostKind::Fs {
            tag: Some(tag.into()),
        };
        let other = |id, config_len| VhostKind::Other { id, config_len };
        let with = |vhost| Plan::new(Spec::new("kernel").virtio("v", VirtioKind::VhostUser(vhost)));
        let kinds = [
            (VhostKind::Block, None),
            (fs("x"), None),
            (fs(""), Some("tag")),
            (fs(&"x".repeat(37)), Some("tag")),
            (other(63, 256), None),
            (other(0, 0), Some("device type")),
            (other(64, 0), Some("device type")),
            (other(4, 257), Some("length of the configuration")),
        ];
        for (kind, wrong) in kinds {
            let refused = match with(VhostUserSpec::new(kind, "/s")) {
                Err(PlanError::VhostUser { what, .. }) => Some(what),
                other => other.map(|_| None).unwrap(),
            };
            assert_eq!(refused, wrong);
        }
        let queues = [
            (Some(1), None, true),
            (Some(64), Some(1024), true),
            (Some(0), None, false),
            (Some(65), None, false),
            (None, Some(0), false),
            (None, Some(96), false),
            (None, Some(2048), false),
        ];
        for (queues, queue_size, good) in queues {
            let spec = VhostUserSpec {
                queues,
                queue_size,
                ..VhostUserSpec::new(VhostKind::Block, "/s")
            };
            assert_eq!(with(spec).is_ok(), good, "{queues:?} {queue_size:?}");
        }
        for len in [0, 108] {
            let refused = with(VhostUserSpec::new(VhostKind::Block, "x".repeat(len)));
            assert!(matches!(refused, Err(PlanError::SocketPath { .. })));
        }
        let vsock = VirtioKind::VhostUser(VhostUserSpec::new(VhostKind::Vsock, "/s"));
        let two = Spec::new("kernel")
            .virtio("v", vsock.clone())
            .virtio("w", vsock);
        let second = PlanError::SecondVsock { id: "w".into() };
        assert_eq!(Plan::new(two), Err(second));
    }

    #[test]
    fn a_disk_has_a_serial_number_that_fits_and_some_queues() {
        let with = |serial: &str, queues| {
            let disk = DiskSpec {
                serial: serial.into(),
                queues,
                ..DiskSpec::new("d")
            };
            Plan::new(Spec::new("kernel").virtio("d", VirtioKind::Block(disk)))
        };
        assert!(with("12345678901234567890", 64).is_ok());
        for (serial, queues, said) in [
            ("123456789012345678901", 1, "the serial of \"d\""),
            ("", 0, "the number of queues of \"d\" is 0"),
            ("", 65, "it can be 1 to 64"),
        ] {
            let error = with(serial, queues).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn a_balloon_leaves_some_memory() {
        let with = |size| {
            let balloon = BalloonSpec {
                size,
                ..BalloonSpec::default()
            };
            let spec = Spec::new("kernel").memory(64 << 20);
            Plan::new(spec.virtio("b", VirtioKind::Balloon(balloon)))
        };
        assert!(with(0).is_ok() && with((64 << 20) - 1).is_ok());
        for size in [64 << 20, u64::MAX] {
            let (id, memory) = ("b".into(), 64 << 20);
            assert_eq!(with(size), Err(PlanError::Balloon { id, size, memory }));
        }
    }

    #[test]
    fn memory_comes_in_blocks_and_no_more_than_there_is() {
        const MIB: u64 = 1 << 20;
        let with = |max, size, block| {
            let mem = MemSpec { max, size, block };
            Plan::new(Spec::new("kernel").virtio("m", VirtioKind::Mem(mem)))
        };
        for (max, size, block) in [(2, 0, 2), (4, 4, 2), (1024, 0, 1024), (3072, 1024, 1024)] {
            assert!(with(max * MIB, size * MIB, block * MIB).is_ok());
        }
        let id = || "m".to_owned();
        for block in [0, MIB, 3 * MIB, 2048 * MIB] {
            let refused = PlanError::MemBlock { id: id(), block };
            assert_eq!(with(6144 * MIB, 0, block).unwrap_err(), refused);
        }
        let block = 2 * MIB;
        for (max, size) in [(0, 0), (3 * MIB, 0), (4 * MIB, 6 * MIB), (4 * MIB, MIB)] {
            let refused = PlanError::MemSize {
                id: id(),
                max,
                size,
                block,
            };
            assert_eq!(with(max, size, block).unwrap_err(), refused);
        }
    }

    #[test]
    fn persistent_memory_is_a_multiple_of_2_mib() {
        let with = |size| {
            let pmem = PmemSpec {
                size,
                ..PmemSpec::new("/f")
            };
            Plan::new(Spec::new("kernel").virtio("p", VirtioKind::Pmem(pmem)))
        };
        assert!(with(None).is_ok() && with(Some(2 << 20)).is_ok());
        for size in [0, 1 << 20, u64::MAX] {
            let id = "p".into();
            assert_eq!(with(Some(size)), Err(PlanError::PmemSize { id, size }));
        }
    }

    #[test]
    fn ports_have_names_of_their_own_and_one_has_the_terminal() {
        let port = |name: Option<&str>, end| PortSpec {
            name: name.map(str::to_owned),
            end,
        };
        let file = || PortEnd::File("f".into());
        let with = |ports| {
            let kind = VirtioKind::Console(ConsoleSpec { ports });
            Plan::new(Spec::new("kernel").virtio("c", kind)).map(drop)
        };
        let all = vec![
            port(None, PortEnd::Console),
            port(None, file()),
            port(Some("a.b"), file()),
        ];
        assert_eq!(with(all), Ok(()));
        let (id, ports, max) = ("c".into(), 0, 31);
        assert_eq!(with(vec![]), Err(PlanError::Ports { id, ports, max }));
        for name in ["", "a/b"] {
            let refused = PlanError::PortName { name: name.into() };
            assert_eq!(with(vec![port(Some(name), file())]), Err(refused));
        }
        let twice = vec![port(Some("a"), file()), port(Some("a"), file())];
        assert_eq!(with(twice), Err(PlanError::SamePort { name: "a".into() }));
        let twice = vec![
            port(None, PortEnd::Console),
            port(Some("a"), PortEnd::Console),
        ];
        assert_eq!(with(twice), Err(PlanError::TwoConsoles));
    }

    #[test]
    fn only_the_software_processor_can_be_verified() {
        let with = |backend| {
            Plan::new(Spec {
                verify: Verify::EveryFault(100),
                ..Spec::new("kernel").backend(backend)
            })
        };
        assert_eq!(with(Backend::Kvm), Err(PlanError::NothingToVerify));
        assert!(with(Backend::Auto).is_ok() && with(Backend::Soft).is_ok());
    }
}
