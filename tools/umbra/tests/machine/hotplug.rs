//! PCI devices that come and go in a stock guest while it uses them.
//!
//! `UMBRA_HOTPLUG_ROUNDS` says how often each comes and goes.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use umbra_vmm::{
    AddError, BalloonSpec, Console, ConsoleSpec, DiskSpec, Handle, Mac, Machine, MemSpec, NetHost,
    NetSpec, Outcome, Plan, PlanError, PortEnd, PortSpec, RemoveError, RngSpec, Spec, VirtioKind,
    VirtioSpec, VsockSpec,
};

use crate::support::backend::{backend, on_each_stock_backend};
use crate::support::guest::{Guest, LINUX_6_1};
use crate::support::screen::Screen;

/// How long the guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);

fn rounds() -> u32 {
    let text = std::env::var("UMBRA_HOTPLUG_ROUNDS").unwrap_or_else(|_| "3".into());
    text.parse().expect("UMBRA_HOTPLUG_ROUNDS is a number")
}

/// How the names of devices begin that stay.
const STAYS: &str = "first";

/// Memory that comes and goes with its device, which is not let go before: the smallest that Linux takes.
const BLOCKS: u64 = 128 << 20;

/// Reads whatever disk there is, all the time, and says which devices the bus has.
const LOAD: &str = r#"
stty -echo
modprobe -a vmw_vsock_virtio_transport virtio_balloon virtio_mem
(while :; do for d in /dev/vd?; do [ -b $d ] && dd if=$d of=/dev/null bs=64k iflag=direct 2>/dev/null; done; done) &
(while :; do dd if=/dev/hwrng of=/dev/null bs=4096 count=16 2>/dev/null; done) &
(while :; do for d in /sys/class/net/eth*; do ip link set ${d##*/} up; ping -c 1 -W 1 -I ${d##*/} 10.0.0.1; done 2>/dev/null >&2; done) &
(was=; while :; do now=$(cd /sys/bus/pci/devices; echo *); [ "$now" = "$was" ] || echo "bus: $now"; was=$now; done) &
echo "load: on"
"#;

/// What this process has of the host, and the machine of its map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    mappings: usize,
}

fn holdings() -> Holdings {
    let count = |place: &str| std::fs::read_dir(place).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    Holdings {
        descriptors: count("/proc/self/fd"),
        threads: count("/proc/self/task"),
        mappings: maps.lines().filter(|line| line.contains(" rw-s ")).count(),
    }
}

fn wait(what: &str, screen: &Screen, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < PATIENCE,
            "{what} does not happen; the guest said {}",
            screen.text()
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn in_use(handle: &Handle, id: &str) -> bool {
    let devices = handle.devices();
    devices
        .iter()
        .any(|device| device.id == id && device.in_use)
}

/// One device of each kind, under names that begin so.
fn devices(directory: &Path, prefix: &str) -> Vec<VirtioSpec> {
    let disk = directory.join(format!("{prefix}-disk"));
    std::fs::File::create(&disk)
        .unwrap()
        .write_all(&[0x5a; 1 << 20])
        .unwrap();
    let host = NetHost::Stream {
        path: directory.join("net"),
    };
    let net = NetSpec {
        mac: Some(Mac([0x52, 0x54, 0, 0, 0, prefix.len() as u8])),
        ..NetSpec::new(host)
    };
    let file = |name: &str| PortSpec {
        name: Some(format!("{prefix}.{name}")),
        end: PortEnd::File(directory.join(format!("{prefix}-{name}"))),
    };
    let mut kinds = vec![
        VirtioKind::Rng(RngSpec::default()),
        VirtioKind::Block(DiskSpec::new(disk)),
        VirtioKind::Net(net),
        VirtioKind::Console(ConsoleSpec {
            ports: vec![file("port")],
        }),
    ];
    if prefix != STAYS {
        // Linux takes one of each.
        kinds.push(VirtioKind::Balloon(BalloonSpec::default()));
        kinds.push(VirtioKind::Vsock(VsockSpec::new(
            3,
            directory.join("vsock"),
        )));
        kinds.push(VirtioKind::Mem(MemSpec::new(2 * BLOCKS)));
    }
    let named = kinds.into_iter().map(|kind| VirtioSpec {
        id: format!("{prefix}-{}", kind.name()),
        kind,
    });
    named.collect()
}

/// A machine with a device of each kind, which stay, and a guest that uses all that it finds.
struct Bench {
    directory: tempfile::TempDir,
    handle: Handle,
    screen: Screen,
    space: std::sync::Arc<umbra_slots::AddressSpace>,
    thread: std::thread::JoinHandle<Outcome>,
    /// Whoever is at the other end of the network.
    _peer: std::thread::JoinHandle<()>,
}

impl Bench {
    fn start(name: &str) -> Option<Self> {
        let guest = Guest::fetch(LINUX_6_1)?;
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("net")).unwrap();
        let peer = std::thread::spawn(move || {
            // Frames are taken and lost; each connection ends with its device.
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || std::io::copy(&mut stream, &mut std::io::sink()));
            }
        });
        let mut spec = Spec::new(&guest.kernel)
            .initrd(&guest.initrd)
            .command_line("console=ttyS0 panic=-1 quiet memhp_default_state=online_movable")
            .backend(backend(name))
            .cpus(2)
            .pci();
        spec.virtio = devices(directory.path(), STAYS);
        let screen = Screen::default();
        let plan = Plan::new(spec).unwrap();
        let machine = Machine::build(plan, Console::to(screen.clone())).unwrap();
        let bench = Self {
            directory,
            handle: machine.handle(),
            screen,
            space: machine.space().clone(),
            thread: std::thread::spawn(|| machine.run().unwrap().outcome),
            _peer: peer,
        };
        bench.handle.console().send(LOAD.as_bytes()).unwrap();
        bench.wait_for("load: on");
        for device in bench.handle.devices() {
            bench.wait_in_use(&device.id);
        }
        Some(bench)
    }

    fn wait_for(&self, text: &str) {
        let there = || {
            self.screen
                .text()
                .lines()
                .any(|line| line.ends_with(text) && !line.contains("echo"))
        };
        wait(text, &self.screen, there);
    }

    fn wait_in_use(&self, id: &str) {
        wait(id, &self.screen, || in_use(&self.handle, id));
    }

    /// What the guest has found last on its bus.
    fn last_bus(&self) -> usize {
        let text = self.screen.text();
        let last = text
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("bus: "));
        last.map_or(0, |line| line.split_whitespace().count())
    }

    fn windows(&self) -> usize {
        self.space.load().slots().len()
    }

    fn end(self) {
        self.handle.stop();
        assert_eq!(self.thread.join().unwrap(), Outcome::Stopped);
    }
}

fn devices_come_and_go_under_load_and_leave_nothing_behind(name: &str) {
    let Some(bench) = Bench::start(name) else {
        return;
    };
    let more = devices(bench.directory.path(), "more");
    let stay = bench.handle.devices().len();
    let (mut settled, mut windows) = (None, 0);
    let generation = bench.space.generation().0;
    for round in 0..rounds() {
        for device in &more {
            bench.handle.add_device(device).unwrap();
            bench.wait_in_use(&device.id);
        }
        // The bridge, those that stay, and those that came.
        let there = 1 + stay + more.len();
        wait("they", &bench.screen, || bench.last_bus() == there);
        let memory = bench.handle.memory("more-mem").unwrap();
        for bytes in [BLOCKS, 0] {
            memory.request(bytes).unwrap();
            wait("memory", &bench.screen, || memory.plugged() == bytes);
        }
        for device in &more {
            bench.handle.remove_device(&device.id).unwrap();
            assert!(
                bench.handle.wait_removed(&device.id, PATIENCE),
                "{} does not go; the guest said {}",
                device.id,
                bench.screen.text()
            );
        }
        wait("less", &bench.screen, || bench.last_bus() == 1 + stay);
        // The first round makes what is made once.
        match settled {
            None => (settled, windows) = (Some(holdings()), bench.windows()),
            Some(settled) => assert_eq!(holdings(), settled, "round {round}"),
        }
        assert_eq!(bench.windows(), windows);
    }
    // Each BAR was shown and went, and so was memory: two changes of the map at least.
    let changes = bench.space.generation().0 - generation;
    let least = 2 * (more.len() as u64 + 1) * u64::from(rounds());
    assert!(changes >= least, "{changes} and not {least}");
    assert_eq!(bench.handle.devices().len(), stay);
    bench.end();
}

fn a_device_that_is_pulled_out_is_gone_whatever_the_guest_does(name: &str) {
    let Some(bench) = Bench::start(name) else {
        return;
    };
    for device in bench.handle.devices() {
        bench.handle.remove_device_at_once(&device.id).unwrap();
        assert!(bench.handle.wait_removed(&device.id, PATIENCE));
    }
    assert!(bench.handle.devices().is_empty());
    let refused = bench.handle.remove_device("first-rng").unwrap_err();
    let id = "first-rng".to_owned();
    assert_eq!(refused, RemoveError::NoSuchDevice { id });
    // The guest lives on.
    bench
        .handle
        .console()
        .send(b"\necho alive: $((6 * 7))\n")
        .unwrap();
    bench.wait_for("alive: 42");
    bench.end();
}

fn a_paused_machine_takes_devices_and_finds_them_later(name: &str) {
    let Some(bench) = Bench::start(name) else {
        return;
    };
    bench.handle.pause().unwrap();
    let more = devices(bench.directory.path(), "more");
    bench.handle.add_device(&more[0]).unwrap();
    let refused = bench.handle.add_device(&more[0]).unwrap_err();
    let same = matches!(refused, AddError::Plan(PlanError::SameId { .. }));
    assert!(same, "{refused}");
    bench.handle.remove_device_at_once("first-blk").unwrap();
    assert!(bench.handle.wait_removed("first-blk", PATIENCE));
    assert!(!in_use(&bench.handle, "more-rng"));
    bench.handle.resume();
    bench.wait_in_use("more-rng");
    bench.end();
}

on_each_stock_backend! {
    devices_come_and_go_under_load_and_leave_nothing_behind,
    a_device_that_is_pulled_out_is_gone_whatever_the_guest_does,
    a_paused_machine_takes_devices_and_finds_them_later,
}
