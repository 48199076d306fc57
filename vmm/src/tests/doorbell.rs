//! Doorbells ring where their window is, and nowhere else (R10), whoever keeps them: the device
//! signals its event itself where the backend has no doorbells.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};
use umbra_bus::Bus;
use umbra_cpu::{Doorbell, DoorbellError};
use umbra_slots::{Flags, Gpa, GpaRange, HugePages, IoId, RamOptions, RamRegion};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use super::*;

const HERE: u32 = 0xd000_0000;
const THERE: u32 = 0xd100_0000;
/// The register that rings for one value, the one that asks for a change, and the one that tells how
/// often the bell was heard, once and for all.
const BELL: u32 = 0x50;
const CHANGE: u32 = 0x60;
const COUNT: u32 = 0x70;
const RINGS: u64 = 3;
const POWER_OFF: [u8; 7] = [0xb0, 0x34, 0x66, 0xba, 0x00, 0x06, 0xee];

type OnChange = Box<dyn Fn(&Device) + Send + Sync>;

struct Device {
    event: OwnedFd,
    bus: Arc<Bus>,
    id: OnceLock<IoId>,
    backend: Arc<dyn umbra_cpu::Backend>,
    /// Writes that reached the device, by offset.
    writes: Mutex<Vec<(u64, u32)>>,
    heard: Mutex<Vec<u64>>,
    change: OnChange,
}

impl Device {
    /// Takes what the bell has counted.
    fn take(&self) -> u64 {
        let mut bytes = [0; 8];
        match rustix::io::read(&self.event, &mut bytes) {
            Ok(_) => u64::from_ne_bytes(bytes),
            Err(_) => 0,
        }
    }
}

impl DeviceMmio for Device {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        if offset == u64::from(COUNT) {
            self.heard.lock().push(self.take());
        }
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let mut value = [0; 4];
        value[..data.len().min(4)].copy_from_slice(&data[..data.len().min(4)]);
        let value = u32::from_le_bytes(value);
        self.writes.lock().push((offset, value));
        if offset == u64::from(BELL) && u64::from(value) == RINGS && data.len() == 4 {
            rustix::io::write(&self.event, &1u64.to_ne_bytes()).unwrap();
        }
        if offset == u64::from(CHANGE) {
            (self.change)(self);
        }
    }
}

/// A device of which only the place matters.
struct Nobody;

impl DeviceMmio for Nobody {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, _: &mut [u8]) {}

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

/// `mov eax, [at]`.
fn load(at: u32) -> Vec<u8> {
    [&[0xa1][..], &at.to_le_bytes()].concat()
}

fn bell() -> Doorbell {
    Doorbell {
        offset: BELL.into(),
        len: 4,
        value: Some(RINGS),
    }
}

struct Told {
    heard: Vec<u64>,
    writes: Vec<(u64, u32)>,
    in_kernel: bool,
}

/// Runs `code` with such a device at HERE, and its doorbell.
fn run(
    backend: Backend,
    code: &[Vec<u8>],
    change: impl Fn(&Device) + Send + Sync + 'static,
) -> Told {
    let bench = bench(backend, &[&code.concat()[..], &POWER_OFF, &SPIN].concat());
    let machine = bench.build();
    let device = Arc::new(Device {
        event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
        bus: machine.bus().clone(),
        id: OnceLock::new(),
        backend: machine.backend().clone(),
        writes: Mutex::default(),
        heard: Mutex::default(),
        change: Box::new(change),
    });
    let range = GpaRange::new(Gpa(HERE.into()), 0x1000).unwrap();
    let id = machine.bus().insert(range, device.clone()).unwrap();
    device.id.set(id).unwrap();
    let doorbells = machine.backend().doorbells();
    if let Some(doorbells) = &doorbells {
        doorbells.add(id, bell(), device.event.as_fd()).unwrap();
    }
    let in_kernel = doorbells.is_some();
    assert_eq!(
        run_within(machine, Duration::from_secs(20)),
        Outcome::PowerOff
    );
    let (heard, writes) = (device.heard.lock().clone(), device.writes.lock().clone());
    Told {
        heard,
        writes,
        in_kernel,
    }
}

fn a_write_that_matches_rings_and_no_other_does(backend: Backend) {
    let code = [
        store(HERE + BELL, RINGS as u32),
        store(HERE + BELL, RINGS as u32),
        load(HERE + COUNT),
        store(HERE + BELL, 4),
        store(HERE + BELL + 4, RINGS as u32),
        // mov byte [at], value
        [
            &[0xc6, 0x05][..],
            &(HERE + BELL).to_le_bytes(),
            &[RINGS as u8],
        ]
        .concat(),
        load(HERE + COUNT),
    ];
    let told = run(backend, &code, |_| {});
    assert_eq!(told.heard, [2, 0]);
    let bell = u64::from(BELL);
    let others = [(bell, 4), (bell + 4, 3), (bell, 3)];
    let reached = if told.in_kernel {
        &told.writes[..]
    } else {
        assert_eq!(told.writes[..2], [(bell, 3), (bell, 3)]);
        &told.writes[2..]
    };
    assert_eq!(reached, others);
}

fn a_doorbell_moves_with_its_window(backend: Backend) {
    let ring = |base: u32| store(base + BELL, RINGS as u32);
    let code = [
        ring(HERE),
        load(HERE + COUNT),
        store(HERE + CHANGE, 0),
        ring(HERE),
        ring(HERE),
        load(THERE + COUNT),
        ring(THERE),
        load(THERE + COUNT),
    ];
    let told = run(backend, &code, |device| {
        let id = *device.id.get().unwrap();
        device.bus.move_to(id, Gpa(THERE.into())).unwrap();
    });
    assert_eq!(told.heard, [1, 0, 1]);
}

/// R10: nothing answers ahead of the map, a doorbell in the kernel included.
fn r10_ram_in_the_place_of_a_window_takes_what_rang_before(backend: Backend) {
    let found = Arc::new(Mutex::new(None));
    let bench_code = [
        store(HERE + BELL, RINGS as u32),
        load(HERE + COUNT),
        store(HERE + CHANGE, 0),
        store(HERE + BELL, RINGS as u32),
        // The device is at THERE now, so that it can be asked.
        load(THERE + COUNT),
    ];
    let seen = found.clone();
    let told = run(backend, &bench_code, move |device| {
        let id = *device.id.get().unwrap();
        device.bus.move_to(id, Gpa(THERE.into())).unwrap();
        let region = RamRegion::new(RamOptions {
            len: 0x1000,
            huge: HugePages::No,
            prefault: false,
        })
        .unwrap();
        *seen.lock() = Some(region.clone());
        let added = device.bus.space().update("RAM comes", |e| {
            e.add_ram(Gpa(HERE.into()), region, 0, 0x1000, Flags::default())
        });
        drop(added.unwrap().stale);
    });
    assert_eq!(told.heard, [1, 0]);
    let region = found.lock().take().unwrap();
    let mut bytes = [0; 4];
    use std::os::unix::fs::FileExt;
    region
        .file()
        .read_exact_at(&mut bytes, BELL.into())
        .unwrap();
    assert_eq!(u64::from(u32::from_le_bytes(bytes)), RINGS);
}

on_both_backends! {
    a_write_that_matches_rings_and_no_other_does,
    a_doorbell_moves_with_its_window,
    r10_ram_in_the_place_of_a_window_takes_what_rang_before,
}

/// What only a backend with doorbells can be asked.
mod in_the_kernel {
    mod kvm {
        use crate::tests::doorbell::*;
        use crate::tests::has_kvm;

        #[test]
        fn a_removed_doorbell_leaves_its_writes_to_the_device() {
            if !has_kvm() {
                return;
            }
            let ring = store(HERE + BELL, RINGS as u32);
            for all in [false, true] {
                let code = [
                    ring.clone(),
                    store(HERE + CHANGE, 0),
                    ring.clone(),
                    load(HERE + COUNT),
                ];
                let told = run(Backend::Kvm, &code, move |device| {
                    let id = *device.id.get().unwrap();
                    let doorbells = device.backend.doorbells().unwrap();
                    if all {
                        doorbells.remove_all(id);
                    } else {
                        doorbells.remove(id, bell());
                    }
                });
                assert_eq!(told.heard, [2], "once by the kernel, once by the device");
                let (change, rang) = (u64::from(CHANGE), u64::from(BELL));
                assert_eq!(told.writes, [(change, 0), (rang, RINGS as u32)]);
            }
        }

        #[test]
        fn doorbells_that_cannot_be_are_refused() {
            if !has_kvm() {
                return;
            }
            let bench = bench(Backend::Kvm, &SPIN);
            let machine = bench.build();
            let doorbells = machine.backend().doorbells().unwrap();
            let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
            let id = IoId(77);
            doorbells.add(id, bell(), event.as_fd()).unwrap();
            let again = doorbells.add(id, bell(), event.as_fd());
            assert!(matches!(again, Err(DoorbellError::Taken { .. })));
            let wide = Doorbell { len: 3, ..bell() };
            let refused = doorbells.add(id, wide, event.as_fd()).unwrap_err();
            assert!(refused.to_string().contains("not 3"), "{refused}");
            let range = GpaRange::new(Gpa(HERE.into()), 0x10).unwrap();
            let small = machine.bus().insert(range, Arc::new(Nobody)).unwrap();
            for offset in [0xd, 0x10, u64::MAX] {
                let outside = Doorbell { offset, ..bell() };
                let refused = doorbells.add(small, outside, event.as_fd());
                assert!(matches!(refused, Err(DoorbellError::Outside { .. })));
            }
            let last = Doorbell {
                offset: 0xc,
                ..bell()
            };
            doorbells.add(small, last, event.as_fd()).unwrap();
            for round in 0..2 {
                match round {
                    0 => doorbells.remove(id, bell()),
                    _ => doorbells.remove_all(id),
                }
                doorbells.add(id, bell(), event.as_fd()).unwrap();
            }
        }
    }
}
