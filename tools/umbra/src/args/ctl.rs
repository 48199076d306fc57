//! `umbra ctl`: what can be asked of a machine's API.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use umbra_vmm::{Limits, PortSpec, RngSpec, VirtioKind, VirtioSpec};

use super::{balloon, console, disk, mem, net, pmem, rng, vdpa, vhost_user, vsock};
use crate::size;

/// `umbra ctl`.
#[derive(Debug, Args)]
pub struct Ctl {
    /// The unix socket of the machine's API
    #[arg(long, value_name = "PATH")]
    pub api_sock: PathBuf,
    /// Print answers as they come: JSON, also of a refusal
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub verb: Verb,
}

/// What is asked.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Tell how the machine is
    Info,
    /// Print what the machine is: what was asked for, and what came, went and was changed since
    Spec,
    /// Say what the machine is, before it starts
    PutSpec {
        /// The machine (JSON), as `umbra run --print-config` prints it; - is standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
    },
    /// Build the machine, and let its guest begin
    Start,
    /// Make all processors and devices stand still
    Pause,
    /// Let them go on
    Resume,
    /// End the machine, as if its plug was pulled; the monitor ends with it
    Stop,
    /// Reset the machine in place
    Reset,
    /// Press the power button; what that means is the guest's decision
    PowerButton,
    /// Press Ctrl, Alt and Delete; what that means is the guest's decision
    CtrlAltDel,
    /// Send a non-maskable interrupt
    Nmi {
        /// To this processor alone
        #[arg(long, value_name = "N")]
        cpu: Option<u32>,
    },
    /// List the processors, and what they have counted
    Cpus,
    /// Hold one processor, or let it go on
    #[command(subcommand)]
    Cpu(Cpu),
    /// List the devices
    Devices,
    /// Show a device
    Device {
        /// Its name
        #[arg(value_parser = id)]
        id: String,
    },
    /// Add a device: to the description before the start, and to the guest afterwards
    #[command(
        override_usage = "umbra ctl --api-sock PATH add ID JSON|@FILE|-\n       \
                                umbra ctl --api-sock PATH add [ID] --disk PATH, or one of the other options"
    )]
    Add(Box<Add>),
    /// Change a device while it is at work
    #[command(
        override_usage = "umbra ctl --api-sock PATH change ID JSON|@FILE|-\n       \
                                umbra ctl --api-sock PATH change ID OPTIONS"
    )]
    Change(Box<Change>),
    /// Ask the guest to let a device go; ends with status 1 if it has not in time
    Remove {
        /// Its name
        #[arg(value_parser = id)]
        id: String,
        /// How long the guest has, 600 at the most
        #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "10")]
        timeout: Duration,
        /// Take the device away when the guest has not let it go in time
        #[arg(long)]
        force: bool,
    },
    /// Look inside
    Inspect {
        #[command(subcommand)]
        part: Option<Part>,
    },
    /// Print all counters, as Prometheus reads them
    Metrics,
    /// Print a piece of what has happened (`umbra events` follows it)
    Events {
        /// What has happened after the event of this number
        #[arg(long, value_name = "N", default_value_t = 0)]
        since: u64,
        /// So many events at the most, 1000 of them
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        /// Wait so long for one if there is none, 600 at the most
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        wait: Option<Duration>,
    },
    /// Tell what serves there
    Server,
    /// Print the description of the API: OpenAPI 3.1
    Openapi,
    /// Ask anything, also by Firecracker's paths
    Request {
        /// GET, PUT, PATCH, POST or DELETE
        #[arg(value_parser = method)]
        method: String,
        /// The path, and what is behind it
        #[arg(value_parser = path)]
        path: String,
        /// The body, if there is one; - is standard input
        #[arg(value_name = "JSON|@FILE|-")]
        body: Option<String>,
    },
}

/// `umbra ctl cpu`.
#[derive(Debug, Subcommand)]
pub enum Cpu {
    /// Make it stand still, and show its registers
    Pause {
        /// Its number
        cpu: u32,
    },
    /// Let it go on
    Resume {
        /// Its number
        cpu: u32,
    },
}

/// `umbra ctl inspect`.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// The guest-physical map: slots of memory, windows of devices
    Map,
    /// The number of the map, and its last changes with their causes
    Generation,
    /// What the MMU has counted
    Mmu,
    /// A processor's page tables, guest and shadow side by side; the machine is paused for it
    PageTables {
        /// The processor
        #[arg(long, value_name = "N", default_value_t = 0)]
        cpu: u32,
        /// Only what translates this linear address, decimal, or hexadecimal behind 0x
        #[arg(long, value_name = "ADDRESS", value_parser = address)]
        address: Option<String>,
    },
}

/// `umbra ctl add`.
#[derive(Debug, Args)]
pub struct Add {
    /// What it is called; the options name it themselves if this does not
    #[arg(value_parser = id)]
    pub id: Option<String>,
    #[command(flatten)]
    pub device: NewDevice,
}

/// A device, in one of these ways.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct NewDevice {
    /// The device as the API has it, like {"kind": "blk", "path": "/d"}; - is standard input
    #[arg(value_name = "JSON|@FILE|-", requires = "id")]
    pub body: Option<String>,
    /// A disk, as with `umbra run`
    #[arg(long, value_name = "PATH[,KEY=VALUE...]", value_parser = disk::parse)]
    disk: Option<disk::Disk>,
    /// A network interface, as with `umbra run`
    #[arg(long, value_name = "KIND[,KEY=VALUE...]", value_parser = net::parse)]
    net: Option<net::Net>,
    /// A socket device, as with `umbra run`
    #[arg(long, value_name = "cid=N,path=PATH|vhost", value_parser = vsock::parse)]
    vsock: Option<vsock::Vsock>,
    /// A device of a vhost-user back end, as with `umbra run`
    #[arg(long, value_name = "KIND,socket=PATH[,KEY=VALUE...]", value_parser = vhost_user::parse)]
    vhost_user: Option<vhost_user::VhostUser>,
    /// A virtio device of the host's, as with `umbra run`
    #[arg(long, value_name = "NODE", value_parser = vdpa::parse)]
    vdpa: Option<vdpa::Vdpa>,
    /// A file as persistent memory, as with `umbra run`
    #[arg(long, value_name = "PATH[,KEY=VALUE...]", value_parser = pmem::parse)]
    pmem: Option<pmem::Pmem>,
    /// Memory that comes and goes, as with `umbra run`
    #[arg(long, value_name = "max=SIZE[,KEY=VALUE...]", value_parser = mem::parse)]
    mem: Option<mem::Mem>,
    /// An entropy device, as with `umbra run`
    #[arg(long, value_name = "KEY=VALUE...", num_args = 0..=1, default_missing_value = "",
          require_equals = true, value_parser = rng::parse)]
    rng: Option<RngSpec>,
    /// A memory balloon, as with `umbra run`
    #[arg(long, value_name = "KEY=VALUE...", num_args = 0..=1, default_missing_value = "",
          require_equals = true, value_parser = balloon::parse)]
    balloon: Option<balloon::Balloon>,
    /// A console, as with `umbra run`, without stdio
    #[arg(long, value_name = "END[,name=NAME]", value_parser = console::parse)]
    console: Option<PortSpec>,
}

impl NewDevice {
    /// Makes the specification, if it is said by an option.
    pub fn spec(&self) -> Option<VirtioSpec> {
        let rng = self.rng.map(|spec| VirtioSpec {
            id: "rng".into(),
            kind: VirtioKind::Rng(spec),
        });
        let console = self.console.as_slice();
        let all = [
            self.disk.as_ref().map(|disk| disk.device(0)),
            self.net.as_ref().map(|net| net.device(0)),
            self.vsock.as_ref().map(vsock::Vsock::device),
            self.vhost_user.as_ref().map(|vhost| vhost.device(0)),
            self.vdpa.as_ref().map(|vdpa| vdpa.device(0)),
            self.pmem.as_ref().map(|pmem| pmem.device(0)),
            self.mem.as_ref().map(|mem| mem.device(0)),
            rng,
            self.balloon.as_ref().map(balloon::Balloon::device),
            console::devices(console).next(),
        ];
        all.into_iter().flatten().next()
    }
}

/// `umbra ctl change`.
#[derive(Debug, Args)]
pub struct Change {
    /// The device's name
    #[arg(value_parser = id)]
    pub id: String,
    #[command(flatten)]
    pub what: NewState,
}

/// What is to be another way.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct NewState {
    /// The change as the API has it, like {"link": false}; - is standard input
    #[arg(value_name = "JSON|@FILE|-", conflicts_with_all = ["path", "limits", "receive", "transmit", "link", "target",
          "polling", "requested"])]
    pub body: Option<String>,
    /// Of a disk: another file for it, or the same one to look at its size again
    #[arg(long, value_name = "FILE")]
    pub path: Option<PathBuf>,
    /// Of a disk, or a file as memory: bandwidth=LIMIT,ops=LIMIT as with `umbra run`, or none
    #[arg(long, value_name = "LIMITS", value_parser = limits)]
    pub limits: Option<Limits>,
    /// Of a network interface: the same for what the guest receives
    #[arg(long, value_name = "LIMITS", value_parser = limits)]
    pub receive: Option<Limits>,
    /// Of a network interface: the same for what it sends
    #[arg(long, value_name = "LIMITS", value_parser = limits)]
    pub transmit: Option<Limits>,
    /// Of a network interface: whether its cable is plugged in
    #[arg(long, value_enum, value_name = "UP")]
    pub link: Option<Link>,
    /// Of a balloon: how much the guest shall lend, like 64M
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub target: Option<u64>,
    /// Of a balloon: how often the guest is asked for statistics, in milliseconds; 0 is never
    #[arg(long, value_name = "MILLISECONDS")]
    pub polling: Option<u64>,
    /// Of memory that comes and goes: how much the guest shall have, like 1G
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub requested: Option<u64>,
}

/// `--link`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// It is plugged in
    Up,
    /// It is pulled out
    Down,
}

/// Reads a device's name, as the API has them.
fn id(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    match (1..=64).contains(&text.len()) && text.chars().all(good) {
        true => Ok(text.into()),
        false => Err("a device's name has 1 to 64 letters, digits, '_', '-' and '.'".into()),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number| (0.0..=600.0).contains(number));
    let number = number.ok_or_else(|| format!("{text:?} is no number of seconds up to 600"))?;
    Ok(Duration::from_secs_f64(number))
}

fn limits(text: &str) -> Result<Limits, String> {
    match text {
        "none" => Ok(Limits::default()),
        "" => Err("write none, or like bandwidth=10M,ops=100:1000".into()),
        text => rng::parse(text).map(|spec| spec.limits),
    }
}

fn address(text: &str) -> Result<String, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let number = number.map_err(|_| format!("{text:?} is no address; write it like 0x1000"))?;
    Ok(format!("{number:#x}"))
}

fn method(text: &str) -> Result<String, String> {
    let method = text.to_ascii_uppercase();
    match ["GET", "PUT", "PATCH", "POST", "DELETE"].contains(&&*method) {
        true => Ok(method),
        false => Err("it is GET, PUT, PATCH, POST or DELETE".into()),
    }
}

fn path(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    match text.starts_with('/') && plain {
        true => Ok(text.into()),
        false => Err("a path begins with / and has no blanks".into()),
    }
}
