//! Round trips between a guest and its devices, with and without a device that is plugged and
//! unplugged every millisecond.
//!
//! `cargo xtask bench mmio` builds the guest and runs this. Each kind of access on each backend runs
//! in one machine; slices with and without churn take turns, so that what else the host does falls on
//! both. What counts is the median of the ratios of neighbours.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use serde_json::{Map, Value, json};
use umbra_bus::Bus;
use umbra_cpu::Doorbell;
use umbra_slots::{AddressSpace, Gpa, GpaRange};
use umbra_vmm::{Backend, Console, Machine, Plan, Spec};
use vm_device::bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset};
use vm_device::{DeviceMmio, DevicePio};

const DEVICE: Gpa = Gpa(0xd000_0000);
/// Offset of the register that rings.
const BELL: u64 = 0x50;
const PORT: u16 = 0x500;
/// Where a device comes and goes.
const ELSEWHERE: Gpa = Gpa(0xd100_0000);
const MAILBOX: u64 = 0x40_0000;
const STOP: u64 = MAILBOX + 16;
/// One slice, and how many of each kind.
const SLICE: Duration = Duration::from_millis(120);
const SLICES: usize = 15;
/// The issue's: churn costs less than 5 %.
const TARGET: f64 = 0.95;

/// A device with a register that does nothing, and one whose write signals an event.
struct Register {
    event: OwnedFd,
    calls: AtomicU64,
}

impl DeviceMmio for Register {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        data.fill(0);
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, _: &[u8]) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if offset == BELL {
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}

impl DevicePio for Register {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }
}

/// The kinds of access: name, the guest's number for it, where.
const KINDS: [(&str, u32, u64); 4] = [
    ("mmio read", 0, DEVICE.0),
    ("mmio write", 1, DEVICE.0),
    ("port write", 2, PORT as u64),
    ("doorbell write", 1, DEVICE.0 + BELL),
];

fn word(space: &AddressSpace, at: u64) -> u64 {
    let mut bytes = [0; 8];
    space.load().read(Gpa(at), &mut bytes).expect("it is RAM");
    u64::from_le_bytes(bytes)
}

/// Accesses a second over one slice.
fn rate(space: &AddressSpace) -> f64 {
    let (start, before) = (Instant::now(), word(space, MAILBOX));
    std::thread::sleep(SLICE);
    let made = word(space, MAILBOX) - before;
    made as f64 / start.elapsed().as_secs_f64()
}

/// Plugs and unplugs a device every millisecond while `on`; until `stop`.
fn churn(bus: &Bus, device: &Arc<Register>, on: &AtomicBool, stop: &AtomicBool) -> u64 {
    let mut times = 0;
    let range = GpaRange::new(ELSEWHERE, 0x1000).expect("a range");
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
        if on.load(Ordering::Relaxed) {
            let id = bus.insert(range, device.clone()).expect("it is free");
            drop(bus.remove(id).expect("it is there").wait());
            times += 1;
        }
    }
    times
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures one kind: accesses a second without churn, and the ratio with it.
fn measure(backend: Backend, kind: (&str, u32, u64)) -> (f64, f64) {
    let (name, number, at) = kind;
    let guests = std::env::var_os("UMBRA_GUESTS").expect("set by cargo xtask bench mmio");
    let spec = Spec::new(PathBuf::from(guests).join("umbra-poll"))
        .command_line(format!("hammer {number} {at:#x} {MAILBOX:#x}"))
        .memory(32 << 20)
        .backend(backend);
    let plan = Plan::new(spec).expect("a plan");
    let machine = Machine::build(plan, Console::discarded()).expect("a machine");
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let device = Arc::new(Register {
        event: eventfd(0, flags).expect("an event"),
        calls: AtomicU64::new(0),
    });
    let (space, bus) = (machine.space().clone(), machine.bus().clone());
    let range = GpaRange::new(DEVICE, 0x1000).expect("a range");
    let id = bus.insert(range, device.clone()).expect("it is free");
    let ports = machine.ports();
    ports.insert(PORT, 1, device.clone()).expect("it is free");
    if name == "doorbell write"
        && let Some(doorbells) = machine.backend().doorbells()
    {
        let doorbell = Doorbell {
            offset: BELL,
            len: 4,
            value: Some(0),
        };
        doorbells
            .add(id, doorbell, device.event.as_fd())
            .expect("a doorbell");
    }
    let (on, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let handle = machine.handle();
    std::thread::scope(|scope| {
        let churner = scope.spawn(|| churn(&bus, &device, &on, &stop));
        let measurer = scope.spawn(|| {
            while word(&space, MAILBOX) == 0 {
                std::thread::yield_now();
            }
            let (mut rates, mut ratios) = (Vec::new(), Vec::new());
            rate(&space);
            let mut before = rate(&space);
            for _ in 0..SLICES {
                on.store(true, Ordering::Relaxed);
                let churned = rate(&space);
                on.store(false, Ordering::Relaxed);
                let after = rate(&space);
                ratios.push(churned / ((before + after) / 2.0));
                rates.push(after);
                before = after;
            }
            stop.store(true, Ordering::Relaxed);
            space
                .load()
                .write(Gpa(STOP), &1u64.to_le_bytes())
                .expect("it is RAM");
            handle.stop();
            (median(rates), median(ratios))
        });
        let _ended = machine.run().expect("it runs");
        let times = churner.join().expect("it ends when told");
        let (rate, ratio) = measurer.join().expect("it ends");
        println!(
            "{backend:?} {name}: {rate:.0} a second; {ratio:.3} with {times} devices that came and went"
        );
        (rate, ratio)
    })
}

fn main() {
    let mut ratios = Map::new();
    let mut rates = Map::new();
    let kvm = umbra_vmm::probe(umbra_vmm::KVM_DEVICE.as_ref());
    let backends = match &kvm {
        Ok(_) => &[(Backend::Soft, "soft"), (Backend::Kvm, "kvm")][..],
        Err(reason) => {
            println!("SKIPPED on KVM: {reason}");
            &[(Backend::Soft, "soft")][..]
        }
    };
    for (backend, label) in backends {
        for kind in KINDS {
            let (rate, ratio) = measure(*backend, kind);
            let name = format!("{label} {}", kind.0);
            rates.insert(name.clone(), json!(rate.round()));
            ratios.insert(
                format!("{name}: with churn / without"),
                json!((ratio * 1000.0).round() / 1000.0),
            );
        }
    }
    let targets: Map<String, Value> = ratios
        .keys()
        .map(|name| (name.clone(), json!(format!(">={TARGET}"))))
        .collect();
    let met = ratios
        .values()
        .all(|ratio| ratio.as_f64().is_some_and(|ratio| ratio >= TARGET));
    println!(
        "{}",
        json!({"bench": "mmio", "per_second": rates, "ratios": ratios, "targets": targets, "met": met})
    );
}
