//! What a guest's own instructions see of a map that changes under them (R10, R26, R30).

use std::sync::OnceLock;

use umbra_bus::Bus;
use umbra_slots::{AddressSpace, Flags, Gpa, GpaRange, HugePages, IoId, RamOptions, RamRegion};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use super::*;

/// Where a device is at first, and where it goes.
const HERE: u32 = 0xd000_0000;
const THERE: u32 = 0xd100_0000;
/// What a device answers.
const NAME: u8 = 0x5a;

/// `mov ebx, value`.
fn ebx(value: u32) -> Vec<u8> {
    [&[0xbb][..], &value.to_le_bytes()].concat()
}

/// `mov al, [ebx]`, and prints it.
const SHOW: [u8; 7] = [0x8a, 0x03, 0x66, 0xba, 0xf8, 0x03, 0xee];
const POWER_OFF: [u8; 7] = [0xb0, 0x34, 0x66, 0xba, 0x00, 0x06, 0xee];

fn page(at: u32) -> GpaRange {
    GpaRange::new(Gpa(at.into()), 0x1000).unwrap()
}

type OnWrite = Box<dyn Fn(&Trick, &[u8]) + Send + Sync>;

/// A device that does something to the map when it is read, or written, for the nth time.
struct Trick {
    id: OnceLock<IoId>,
    bus: Arc<Bus>,
    reads_left: Mutex<u32>,
    on_read: Box<dyn Fn() + Send + Sync>,
    on_write: OnWrite,
}

impl DeviceMmio for Trick {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        let mut left = self.reads_left.lock();
        *left = left.saturating_sub(1);
        if *left == 0 {
            (self.on_read)();
        }
        data.fill(NAME);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, data: &[u8]) {
        (self.on_write)(self, data);
    }
}

/// Runs `code` on a machine with such a device; returns what was printed.
fn run_with(
    backend: Backend,
    code: &[Vec<u8>],
    reads: u32,
    on_read: impl Fn(&AddressSpace) + Send + Sync + 'static,
    on_write: impl Fn(&Trick, &[u8]) + Send + Sync + 'static,
) -> Vec<u8> {
    let bench = bench(backend, &[&code.concat()[..], &POWER_OFF, &SPIN].concat());
    let machine = bench.build();
    let space = machine.space().clone();
    let trick = Arc::new(Trick {
        id: OnceLock::new(),
        bus: machine.bus().clone(),
        reads_left: Mutex::new(reads),
        on_read: Box::new(move || on_read(&space)),
        on_write: Box::new(on_write),
    });
    let id = machine.bus().insert(page(HERE), trick.clone()).unwrap();
    trick.id.set(id).unwrap();
    assert_eq!(
        run_within(machine, Duration::from_secs(20)),
        Outcome::PowerOff
    );
    bench.screen.0.lock().clone()
}

/// Puts RAM that holds `value` in the device's place, in one publication.
fn become_ram(space: &AddressSpace, value: u8) {
    let region = RamRegion::new(RamOptions {
        len: 0x1000,
        huge: HugePages::No,
        prefault: false,
    })
    .unwrap();
    let slot = space.load().slot_at(Gpa(HERE.into())).unwrap().id();
    let replaced = space.update("a device becomes RAM", |e| {
        e.remove(slot)?;
        e.add_ram(Gpa(HERE.into()), region, 0, 0x1000, Flags::default())
    });
    drop(replaced.unwrap().stale);
    space.load().write(Gpa(HERE.into()), &[value]).unwrap();
}

/// R26: the instruction after the one that moved the window sees it moved, although the old place
/// was used until then.
fn r26_the_next_instruction_sees_a_window_where_it_was_moved_to(backend: Backend) {
    let code = [
        ebx(HERE),
        [SHOW; 3].concat(),
        vec![0xb8],
        THERE.to_le_bytes().to_vec(), // mov eax, THERE
        vec![0x89, 0x03],             // mov [ebx], eax
        SHOW.to_vec(),
        ebx(THERE),
        [SHOW; 2].concat(),
    ];
    let printed = run_with(
        backend,
        &code,
        u32::MAX,
        |_| {},
        |trick, data| {
            let to = u32::from_le_bytes(data.try_into().unwrap());
            let id = *trick.id.get().unwrap();
            trick.bus.move_to(id, Gpa(to.into())).unwrap();
        },
    );
    assert_eq!(printed, [NAME, NAME, NAME, 0xff, NAME, NAME]);
}

/// R10: a device whose page becomes RAM is not called again, however often it was before.
fn r10_what_became_ram_rings_no_device(backend: Backend) {
    let code = [
        ebx(HERE),
        [SHOW; 4].concat(),
        vec![0xc6, 0x03, 0x21], // mov byte [ebx], 0x21
        SHOW.to_vec(),
    ];
    let printed = run_with(
        backend,
        &code,
        4,
        |space| become_ram(space, 0x11),
        |_, _| panic!("the doorbell rang"),
    );
    assert_eq!(printed, [NAME, NAME, NAME, NAME, 0x21]);
}

/// R30: between the read and the write of one instruction the page becomes RAM. A locked instruction
/// is begun anew, on the RAM; an ordinary one has read the device, and its write goes the way of all
/// writes to RAM. Neither writes to the device.
fn r30_an_instruction_that_was_decided_for_a_device_ends_on_the_ram_that_is_there(
    backend: Backend,
) {
    let add = vec![0x80, 0x03, 0x01]; // add byte [ebx], 1
    let locked = vec![0xf0, 0x80, 0x03, 0x01];
    for (instruction, result) in [(add, NAME + 1), (locked, 0x12)] {
        let code = [ebx(HERE), [SHOW; 2].concat(), instruction, SHOW.to_vec()];
        let printed = run_with(
            backend,
            &code,
            3,
            |space| become_ram(space, 0x11),
            |_, _| panic!("written to the device"),
        );
        assert_eq!(printed, [NAME, NAME, result]);
    }
}

on_both_backends! {
    r26_the_next_instruction_sees_a_window_where_it_was_moved_to,
    r10_what_became_ram_rings_no_device,
    r30_an_instruction_that_was_decided_for_a_device_ends_on_the_ram_that_is_there,
}
