//! The device through its ports, with a kilobyte of memory.

use umbra_slots::{AccessError, Gpa, GpaRange};

use super::*;

const SELECTOR: PioAddress = PioAddress(FwCfg::SELECTOR);
const ADDRESS: PioAddress = PioAddress(FwCfg::ADDRESS);

/// Where requests are put.
const REQUEST: u64 = 0x100;

const READ: u32 = 2;
const SKIP: u32 = 4;
const SELECT: u32 = 8;
const WRITE: u32 = 16;

struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn range(&self, gpa: Gpa, len: usize) -> Result<std::ops::Range<usize>, AccessError> {
        let end = gpa.0.checked_add(len as u64).filter(|end| *end <= 1024);
        end.map(|end| gpa.0 as usize..end as usize)
            .ok_or(AccessError::NotRam(gpa))
    }
}

impl Dma for Memory {
    fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError> {
        data.copy_from_slice(&self.0.lock()[self.range(gpa, data.len())?]);
        Ok(())
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        let range = self.range(gpa, data.len())?;
        self.0.lock()[range].copy_from_slice(data);
        Ok(())
    }

    fn written(&self, _: GpaRange) {}
}

struct Bench {
    memory: Arc<Memory>,
    device: FwCfg,
}

fn bench() -> Bench {
    let memory = Arc::new(Memory(Mutex::new(vec![0xaa; 1024])));
    let mut items = Items::default();
    items.set_u16(key::NB_CPUS, 3);
    items.add_file("opt/text", *b"hello").unwrap();
    Bench {
        device: FwCfg::new(items, memory.clone()),
        memory,
    }
}

impl Bench {
    fn select(&self, key: u16) {
        self.device.pio_write(SELECTOR, 0, &key.to_le_bytes());
    }

    fn bytes(&self, count: usize) -> Vec<u8> {
        let mut byte = [0xaa];
        let next = |_| {
            self.device.pio_read(SELECTOR, 1, &mut byte);
            byte[0]
        };
        (0..count).map(next).collect()
    }

    /// Starts the transfer at `at` with two writes.
    fn start(&self, at: u64) {
        let bytes = at.to_be_bytes();
        self.device.pio_write(ADDRESS, 0, &bytes[..4]);
        self.device.pio_write(ADDRESS, 4, &bytes[4..]);
    }

    /// Has a transfer done; returns its control field.
    fn transfer(&self, control: u32, length: u32, address: u64) -> u32 {
        let mut request = control.to_be_bytes().to_vec();
        request.extend(length.to_be_bytes());
        request.extend(address.to_be_bytes());
        self.memory.write(Gpa(REQUEST), &request).unwrap();
        self.start(REQUEST);
        let mut control = [0; 4];
        self.memory.read(Gpa(REQUEST), &mut control).unwrap();
        u32::from_be_bytes(control)
    }

    fn at(&self, address: usize, len: usize) -> Vec<u8> {
        self.memory.0.lock()[address..address + len].to_vec()
    }
}

#[test]
fn the_signature_and_the_features_say_what_it_is() {
    let bench = bench();
    bench.select(key::SIGNATURE);
    assert_eq!(bench.bytes(4), b"QEMU");
    bench.select(key::ID);
    assert_eq!(bench.bytes(4), [3, 0, 0, 0]);
    let mut low = [0; 4];
    bench.device.pio_read(ADDRESS, 4, &mut low);
    assert_eq!(&low, b" CFG");
}

#[test]
fn an_item_is_read_byte_by_byte_then_zeros() {
    let bench = bench();
    bench.select(key::NB_CPUS);
    assert_eq!(bench.bytes(4), [3, 0, 0, 0]);
    bench.select(key::NB_CPUS | 0x4000);
    assert_eq!(bench.bytes(1), [3], "the write channel reads the same item");
    bench.select(0x3fff);
    assert_eq!(bench.bytes(2), [0, 0], "no such item");
    bench.select(0xffff);
    assert_eq!(bench.bytes(2), [0, 0]);
}

#[test]
fn neither_the_selector_nor_wide_data_can_be_read() {
    let bench = bench();
    bench.select(key::SIGNATURE);
    let mut wide = [0xaa; 2];
    bench.device.pio_read(SELECTOR, 0, &mut wide);
    assert_eq!(wide, [0, 0]);
    assert_eq!(bench.bytes(1), b"Q");
}

#[test]
fn a_transfer_reads_an_item_and_fills_up_with_zeros() {
    let bench = bench();
    let control = (0x20 << 16) | SELECT | READ;
    assert_eq!(bench.transfer(control, 8, 0x200), 0);
    assert_eq!(bench.at(0x200, 9), *b"hello\0\0\0\xaa");
}

#[test]
fn transfers_go_on_where_the_last_one_ended() {
    let bench = bench();
    assert_eq!(bench.transfer((0x20 << 16) | SELECT | SKIP, 1, 0), 0);
    assert_eq!(bench.transfer(READ, 2, 0x200), 0);
    assert_eq!(bench.bytes(2), b"lo", "the data port goes on, too");
    assert_eq!(bench.at(0x200, 3), *b"el\xaa");
    assert_eq!(bench.transfer(SKIP, u32::MAX, 0), 0);
    assert_eq!(bench.bytes(1), [0]);
}

#[test]
fn nothing_can_be_written() {
    let bench = bench();
    assert_eq!(bench.transfer((0x20 << 16) | SELECT | WRITE, 5, 0x200), 1);
    assert_eq!(bench.bytes(5), b"hello");
}

#[test]
fn transfers_outside_memory_fail_and_harm_nobody() {
    let bench = bench();
    let read = (0x20 << 16) | SELECT | READ;
    for (length, address) in [
        (8, 1020),
        (5, u64::MAX - 2),
        (u32::MAX, 0x300),
        (6, u64::MAX - 5),
    ] {
        assert_eq!(
            bench.transfer(read, length, address),
            1,
            "{length} at {address:#x}"
        );
    }
    assert_eq!(bench.transfer(read, 5, 1019), 0);
    // Requests that are nowhere, or half somewhere.
    for at in [u64::MAX, 1 << 40, 1016] {
        bench.start(at);
    }
    assert_eq!(bench.at(1016, 4), [0, 0, 0, 1], "it can be told");
}

#[test]
fn the_upper_half_of_the_address_is_forgotten_after_a_transfer() {
    let bench = bench();
    bench.device.pio_write(ADDRESS, 0, &[0, 0, 0, 1]);
    bench.device.pio_write(ADDRESS, 4, &[0, 0, 1, 0]);
    let mut request = ((0x20u32 << 16) | SELECT | READ).to_be_bytes().to_vec();
    request.extend(5u32.to_be_bytes());
    request.extend(0x200u64.to_be_bytes());
    bench.memory.write(Gpa(REQUEST), &request).unwrap();
    bench.device.pio_write(ADDRESS, 4, &[0, 0, 1, 0]);
    assert_eq!(bench.at(0x200, 5), b"hello");
}

#[test]
fn other_widths_do_not_start_a_transfer() {
    let bench = bench();
    bench.device.pio_write(ADDRESS, 4, &[1]);
    bench.device.pio_write(ADDRESS, 6, &[1, 0]);
    assert_eq!(bench.at(REQUEST as usize, 4), [0xaa; 4]);
}
