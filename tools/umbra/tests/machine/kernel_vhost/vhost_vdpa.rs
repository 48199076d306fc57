//! A disk of the host's, by `/dev/vhost-vdpa-0`.

use std::fs;
use std::time::Instant;

use umbra_vhost::{Hub, VdpaOptions, VhostKernel};
use umbra_virtio::Features;
use umbra_virtio::testing::{Driver, Memory, NEXT, WRITE};

use super::driver::{BUFFERS, MORE, SIZE, add, has, remove};
use super::machine::{FIRST, lines, machine};
use crate::support::poll::checksum;

/// The file behind a disk of vDPA that is there for tests: any other one is not to be written to.
const VDPA_DISK: &str = "UMBRA_VDPA_DISK";
const VDPA_NODE: &str = "/dev/vhost-vdpa-0";
const SECTOR: usize = 512;

/// Reads or writes a sector of a disk (virtio 1.3, 5.2.6) with a buffer at an address; returns the status.
fn transfer(driver: &mut Driver, write: u32, sector: u64, at: u64) -> u8 {
    const HEADER: u64 = 0x7_0000;
    driver.memory.put(HEADER, &write.to_le_bytes());
    driver.memory.put(HEADER + 8, &sector.to_le_bytes());
    driver.memory.put(HEADER + 16, &[0xff]);
    let data = if write == 0 { WRITE } else { 0 };
    driver.describe(0, (HEADER, 16, NEXT, 1));
    driver.describe(1, (at, SECTOR as u32, NEXT | data, 2));
    driver.describe(2, (HEADER + 16, 1, WRITE, 0));
    let done = driver.used_in(0);
    driver.offer(0);
    driver.wait(|d| d.used_in(0) == done.wrapping_add(1));
    driver.memory.get::<1>(HEADER + 16)[0]
}

#[test]
fn a_disk_of_the_kernels_vhost_vdpa_is_read_and_written() {
    const SECTORS: u64 = 50;
    let Some(file) = std::env::var_os(VDPA_DISK) else {
        return eprintln!("SKIPPED: {VDPA_DISK} names no disk of vDPA that is there for tests");
    };
    assert!(has(VDPA_NODE));
    let memory = Memory::new();
    let hub = Hub::new(&memory.space).unwrap();
    let options = VdpaOptions {
        name: "vdpa".into(),
        node: VDPA_NODE.into(),
    };
    let device = VhostKernel::vdpa(options.clone(), &hub).unwrap();
    let second = VhostKernel::vdpa(options, &hub).err().unwrap();
    println!("NODES vdpa: a second owner: {second}");
    assert!(second.to_string().contains("in use"), "{second}");
    let control = device.control();
    let mut driver = Driver::with_memory(memory.clone(), Box::new(device), SIZE);
    assert_eq!(driver.read(8), 2, "a disk");
    let capacity = u64::from(driver.read(0x100)) * SECTOR as u64;
    assert_eq!(capacity, fs::metadata(&file).unwrap().len());
    driver.start(Features::RINGS);
    let pattern = |sector: u64| [sector as u8 ^ 0x5a; SECTOR];
    let begin = Instant::now();
    for sector in 0..SECTORS {
        memory.put(BUFFERS, &pattern(sector));
        assert_eq!(transfer(&mut driver, 1, sector, BUFFERS), 0);
    }
    let written = fs::read(&file).unwrap();
    let reports = memory.reports();
    for (sector, there) in (0..SECTORS).zip(written.chunks(SECTOR)) {
        assert_eq!(there, pattern(sector), "in the file");
        assert_eq!(transfer(&mut driver, 0, sector, BUFFERS + 0x1000), 0);
        assert_eq!(memory.get(BUFFERS + 0x1000), pattern(sector));
    }
    assert!(
        memory.reports() >= reports + SECTORS as u32,
        "what was written is followed"
    );
    println!(
        "NODES vdpa: {SECTORS} sectors written and read in {:?}",
        begin.elapsed()
    );
    // Memory comes and goes, and is used.
    for sector in 0..10 {
        let id = add(&memory, MORE).unwrap();
        assert_eq!(transfer(&mut driver, 0, sector, MORE + 0x1000), 0);
        assert_eq!(memory.get(MORE + 0x1000), pattern(sector));
        remove(&memory, id);
    }
    // A machine that pauses, and a driver that begins anew.
    umbra_virtio::Transport::pause(&*driver.transport);
    umbra_virtio::Transport::resume(&*driver.transport);
    assert_eq!(transfer(&mut driver, 0, 7, BUFFERS), 0);
    assert_eq!(memory.get(BUFFERS), pattern(7));
    driver.start(Features::VERSION_1);
    assert_eq!(transfer(&mut driver, 0, 8, BUFFERS), 0);
    assert_eq!(memory.get(BUFFERS), pattern(8));
    // Beyond its end.
    assert_eq!(transfer(&mut driver, 0, capacity, BUFFERS), 1);
    assert_eq!(control.state().losses, 0, "{:?}", control.state());
}

#[test]
fn a_disk_of_a_machine_is_the_kernels_vhost_vdpa() {
    const NINE: usize = 9 * SECTOR;
    let Some(file) = std::env::var_os(VDPA_DISK) else {
        return eprintln!("SKIPPED: {VDPA_DISK} names no disk of vDPA that is there for tests");
    };
    let before = fs::read(&file).unwrap();
    let told = lines(machine(&["--vdpa", VDPA_NODE], &format!("block {FIRST}")));
    println!("NODES a machine's vdpa: {told:?}");
    assert!(
        told[0].starts_with(&format!("block {}", before.len() / SECTOR)),
        "{told:?}"
    );
    assert_eq!(told[1], format!("read {:#x}", checksum(&before[..NINE])));
    let after = fs::read(&file).unwrap();
    assert_eq!(
        told[2],
        format!("wrote {:#x}", checksum(&after[NINE..2 * NINE]))
    );
    assert_eq!(told[3], "past the end: I/O error");
}
