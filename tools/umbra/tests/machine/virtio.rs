//! Virtio devices in whole machines: guests that drive them, put on the bus through the library.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use umbra_devices::virtio::Rng;
use umbra_slots::{DmaSpace, Gpa, GpaRange};
use umbra_virtio::{MmioTransport, Transport};
use umbra_vmm::{Backend, Console, Machine, Outcome, Plan, Spec};

use crate::support::backend::on_each_backend;
use crate::support::poll::{checksum, drivers_guest, poll_guest};
use crate::support::screen::Screen;

/// Where the device is; no RAM is there.
const WINDOW: u64 = 0xd000_0000;
/// A pin of the IOAPIC that belongs to nobody else.
const PIN: u32 = 20;

/// Runs a guest with an entropy device that counts 0, 1, 2, …; returns what it printed.
fn run(kernel: &std::path::Path, backend: &str, command: &str) -> String {
    let mut spec = Spec::new(kernel).memory(16 << 20).command_line(command);
    spec.debug_exit = Some(0xf4);
    spec.backend = match backend {
        "kvm" => Backend::Kvm,
        _ => Backend::Soft,
    };
    let screen = Screen::default();
    let machine = Machine::build(Plan::new(spec).unwrap(), Console::to(screen.clone())).unwrap();
    let transport = insert(&machine);
    let ended = machine.run().unwrap();
    transport.shut_down();
    let text = screen.text();
    assert_eq!(ended.outcome, Outcome::Exit(0), "{text}");
    text
}

fn insert(machine: &Machine) -> Arc<MmioTransport> {
    let next = AtomicU32::new(0);
    let rng = Rng::with_source(Arc::new(move |to: &mut [u8]| {
        for byte in &mut *to {
            *byte = next.fetch_add(1, Ordering::Relaxed) as u8;
        }
        Ok(to.len())
    }));
    let backend = machine.backend();
    let memory = DmaSpace::new(machine.space().clone(), backend.dma());
    let line = backend.pin(PIN).expect("the IOAPIC has 24 pins");
    let transport = MmioTransport::new(Box::new(rng), memory, line);
    let window = GpaRange::new(Gpa(WINDOW), MmioTransport::LEN).unwrap();
    let id = machine.bus().insert(window, transport.clone()).unwrap();
    if let Some(doorbells) = backend.doorbells() {
        transport.attach(id, doorbells);
    }
    transport
}

fn a_guest_that_polls_gets_random_bytes(backend: &str) {
    for len in [2, 64, 4096] {
        let command = format!("rng {WINDOW:#x} {len}");
        let bytes: Vec<u8> = (0..len).map(|byte: u32| byte as u8).collect();
        let expected = checksum(&bytes);
        let told = run(&poll_guest(), backend, &command);
        assert_eq!(told, format!("rng {len} {expected:#x}\n"));
    }
}

on_each_backend! {
    a_guest_that_polls_gets_random_bytes,
}

#[test]
fn somebody_elses_driver_gets_random_bytes() {
    let told = run(&drivers_guest(), "soft", &format!("rng {WINDOW:#x}"));
    let bytes = |from: u8| (from..from + 16).map(|byte| format!("{byte:02x}"));
    let line = |from| format!("rng 16 {}\n", bytes(from).collect::<String>());
    assert_eq!(told, line(0) + &line(16));
}
