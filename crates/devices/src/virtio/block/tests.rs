//! A driver of the block device.

mod hostile;

use std::time::Duration;

use umbra_block::DiskOptions;
use umbra_block::testing::MemoryDisk;
use umbra_slots::{Flags, Gpa};
use umbra_virtio::Transport;
use umbra_virtio::testing::{Driver, INDIRECT, NEXT, RAM, RINGS, ROM, WRITE};

use super::config::*;
use super::*;
use crate::virtio::Bucket;

const HEADER: u64 = 0x6_0000;
const STATUS: u64 = 0x6_0800;
const DATA: u64 = 0x7_0000;
const TABLE: u64 = 0x6_1000;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH_REQUEST: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD_REQUEST: u32 = 11;
const ZEROES_REQUEST: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// What no device writes.
const NONE: u8 = 0xee;

/// Sectors of the disks here.
const SECTORS: u64 = 64;

fn pattern() -> Vec<u8> {
    (0..SECTORS * SECTOR)
        .map(|at| (at / SECTOR + at) as u8)
        .collect()
}

/// A driver with its device and disk.
struct Rig {
    driver: Driver,
    control: BlockControl,
    disk: Arc<MemoryDisk>,
    done: u16,
}

impl Rig {
    fn new(options: BlockOptions) -> Self {
        Self::with(MemoryDisk::shared(pattern()), options)
    }

    fn with(disk: Arc<MemoryDisk>, options: BlockOptions) -> Self {
        let device = Block::new(disk.clone(), options).unwrap();
        let control = device.control();
        let driver = Driver::new(Box::new(device), 16);
        Self {
            driver,
            control,
            disk,
            done: 0,
        }
    }

    /// One that has agreed on features.
    fn started(options: BlockOptions, features: Features) -> Self {
        let mut rig = Self::new(options);
        rig.start(features);
        rig
    }

    fn start(&mut self, features: Features) {
        self.driver.start(features);
        self.done = 0;
    }

    fn header(&self, kind: u32, sector: u64) {
        self.driver.memory.put(HEADER, &kind.to_le_bytes());
        self.driver.memory.put(HEADER + 8, &sector.to_le_bytes());
        self.driver.memory.put(STATUS, &[NONE]);
    }

    /// Offers a request of header, these buffers, and status.
    fn offer(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) {
        self.header(kind, sector);
        self.driver.describe(0, (HEADER, 16, NEXT, 1));
        for (index, &(at, len, flags)) in (1..).zip(data) {
            self.driver
                .describe(index, (at, len, flags | NEXT, index + 1));
        }
        let last = data.len() as u16 + 1;
        self.driver.describe(last, (STATUS, 1, WRITE, 0));
        self.driver.offer(0);
        self.done += 1;
    }

    /// Does one, and returns the status and the length told.
    fn run(&mut self, kind: u32, sector: u64, data: &[(u64, u32, u16)]) -> (u8, u32) {
        self.offer(kind, sector, data);
        self.wait()
    }

    fn wait(&self) -> (u8, u32) {
        self.driver.wait(|d| d.used_in(0) == self.done);
        let [status] = self.driver.memory.get(STATUS);
        (status, self.driver.used(self.done - 1).1)
    }

    fn segment(&self, index: u64, sector: u64, count: u32, flags: u32) {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        self.driver.memory.put(DATA + 16 * index, &bytes);
    }
}

fn all() -> Features {
    Features::RINGS.with(FLUSH).with(DISCARD).with(WRITE_ZEROES)
}

#[test]
fn it_is_a_block_device_that_offers_what_its_disk_can() {
    let writable = Block::new(MemoryDisk::shared(pattern()), BlockOptions::default()).unwrap();
    let changes = FLUSH.with(DISCARD).with(WRITE_ZEROES).with(CONFIG_WCE);
    assert_eq!((writable.id(), writable.queue_sizes()), (2, &[256][..]));
    assert!(
        writable
            .features()
            .has(changes.with(SEG_MAX).with(TOPOLOGY).with(BLK_SIZE))
    );
    assert!(!writable.features().has(RO) && !writable.features().has(MQ));

    let options = BlockOptions {
        queues: 4,
        ..BlockOptions::default()
    };
    let read_only = Block::new(MemoryDisk::read_only(pattern()), options).unwrap();
    assert!(read_only.features().has(RO.with(MQ)));
    for feature in [FLUSH, DISCARD, WRITE_ZEROES, CONFIG_WCE] {
        assert!(!read_only.features().has(feature));
    }

    let options = BlockOptions {
        cache: Cache::Unsafe,
        ..BlockOptions::default()
    };
    let unsafe_one = Block::new(MemoryDisk::shared(pattern()), options).unwrap();
    assert!(!unsafe_one.features().has(FLUSH) && !unsafe_one.features().has(CONFIG_WCE));
}

#[test]
fn options_that_do_not_fit_are_refused() {
    for queues in [0, Block::QUEUES_MAX + 1] {
        let options = BlockOptions {
            queues,
            ..BlockOptions::default()
        };
        let error = Block::new(MemoryDisk::shared(vec![]), options)
            .err()
            .unwrap();
        assert!(error.to_string().contains(&queues.to_string()), "{error}");
    }
    for segments in [0, Block::SEGMENTS_MAX + 1] {
        let options = BlockOptions {
            segments,
            ..BlockOptions::default()
        };
        let error = Block::new(MemoryDisk::shared(vec![]), options)
            .err()
            .unwrap();
        assert!(error.to_string().contains(&segments.to_string()), "{error}");
    }
    let options = BlockOptions {
        serial: "x".repeat(21),
        ..BlockOptions::default()
    };
    let error = Block::new(MemoryDisk::shared(vec![]), options)
        .err()
        .unwrap();
    assert!(error.to_string().contains("xxx"), "{error}");
}

#[test]
fn sectors_are_read_into_any_buffers() {
    let mut rig = Rig::started(BlockOptions::default(), Features::RINGS);
    rig.driver.memory.put(DATA, &[0xaa; 2048]);
    let data = [
        (DATA + 3, 100, WRITE),
        (DATA + 1000, 0, WRITE),
        (DATA + 512, 924, WRITE),
    ];
    assert_eq!(rig.run(IN, 5, &data), (OK, 1025));
    let expected = &pattern()[5 * 512..7 * 512];
    assert_eq!(rig.driver.memory.get::<100>(DATA + 3), expected[..100]);
    assert_eq!(rig.driver.memory.get::<924>(DATA + 512), expected[100..]);
    assert_eq!(rig.driver.memory.get::<3>(DATA), [0xaa; 3]);
    assert_eq!(rig.driver.memory.get::<1>(DATA + 103), [0xaa]);
    assert!(rig.driver.memory.reports() > 0, "stores are followed");
    rig.driver.wait(|d| d.line.is_high());
    let statistics = rig.control.statistics();
    assert_eq!((statistics.reads, statistics.read_bytes), (1, 1024));
}

#[test]
fn sectors_are_written_and_nothing_beside_them() {
    let mut rig = Rig::started(BlockOptions::default(), all());
    rig.driver.memory.put(DATA, &[0x11; 1024]);
    let data = [(DATA, 1, 0), (DATA + 1, 1023, 0)];
    assert_eq!(rig.run(OUT, 62, &data), (OK, 1));
    let mut expected = pattern();
    expected[62 * 512..].fill(0x11);
    assert!(rig.disk.bytes() == expected);
    assert_eq!(rig.run(FLUSH_REQUEST, 0, &[]), (OK, 1));
    assert_eq!(rig.disk.flushes(), 1);
    let statistics = rig.control.statistics();
    assert_eq!((statistics.writes, statistics.written_bytes), (1, 1024));
    assert_eq!(statistics.flushes, 1);
}

#[test]
fn header_data_and_status_may_be_cut_anywhere() {
    let mut rig = Rig::started(BlockOptions::default(), Features::RINGS);
    // The header in three pieces, the last of which holds data, too; an indirect table.
    rig.header(OUT, 1);
    let bytes: [u8; 16] = rig.driver.memory.get(HEADER);
    rig.driver.memory.put(DATA - 4, &bytes[12..]);
    rig.driver.memory.put(DATA, &[0x22; 512]);
    let table = [
        (HEADER, 5, NEXT, 1),
        (HEADER + 5, 7, NEXT, 2),
        (DATA - 4, 516, NEXT, 3),
        (STATUS, 1, WRITE, 0),
    ];
    for (index, descriptor) in (0..).zip(table) {
        rig.driver.describe_at(TABLE + 16 * index, descriptor);
    }
    rig.driver.describe(0, (TABLE, 64, INDIRECT, 0));
    rig.driver.offer(0);
    rig.done += 1;
    assert_eq!(rig.wait(), (OK, 1));
    assert_eq!(rig.disk.bytes()[512..1024], [0x22; 512]);

    // Data and status in one buffer.
    rig.header(IN, 1);
    rig.driver.describe(0, (HEADER, 16, NEXT, 1));
    rig.driver.describe(1, (DATA + 0x1000, 513, WRITE, 0));
    rig.driver.offer(0);
    rig.done += 1;
    assert_eq!(rig.wait(), (NONE, 513), "the status is elsewhere");
    let mut expected = [0x22; 513];
    expected[512] = OK;
    assert_eq!(rig.driver.memory.get::<513>(DATA + 0x1000), expected);
}

#[test]
fn get_id_returns_the_serial_number() {
    let options = BlockOptions {
        serial: "disk-7".into(),
        ..BlockOptions::default()
    };
    let mut rig = Rig::started(options, Features::RINGS);
    for (len, told) in [(20, 21), (6, 7), (64, 20)] {
        rig.driver.memory.put(DATA, &[0xaa; 64]);
        assert_eq!(rig.run(GET_ID, 0, &[(DATA, len, WRITE)]), (OK, told));
        let mut expected = [0xaa; 64];
        let id = b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let len = 20.min(len as usize);
        expected[..len].copy_from_slice(&id[..len]);
        assert_eq!(rig.driver.memory.get::<64>(DATA), expected);
    }
    assert_eq!(rig.run(GET_ID, 0, &[]).0, IOERR);
}

#[test]
fn discards_and_zeros_reach_the_disk() {
    let mut rig = Rig::started(BlockOptions::default(), all());
    rig.segment(0, 1, 2, 0);
    rig.segment(1, 8, 1, 0);
    assert_eq!(rig.run(DISCARD_REQUEST, 0, &[(DATA, 32, 0)]), (OK, 1));
    for flags in [0, 1] {
        rig.segment(0, 20 + u64::from(flags), 1, flags);
        assert_eq!(rig.run(ZEROES_REQUEST, 0, &[(DATA, 16, 0)]), (OK, 1));
    }
    let mut expected = pattern();
    expected[512..3 * 512].fill(0xdd);
    expected[8 * 512..9 * 512].fill(0xdd);
    expected[20 * 512..22 * 512].fill(0);
    assert!(rig.disk.bytes() == expected);
    let statistics = rig.control.statistics();
    assert_eq!((statistics.discards, statistics.zero_writes), (1, 2));
}

#[test]
fn wrong_requests_are_answered_and_nothing_is_done() {
    let mut rig = Rig::started(BlockOptions::default(), all());
    let last = SECTORS - 1;
    type Data = &'static [(u64, u32, u16)];
    let table: [(u32, u64, Data, u8); 19] = [
        // Beyond the end, also where the numbers wrap.
        (IN, SECTORS, &[(DATA, 512, WRITE)], IOERR),
        (IN, last, &[(DATA, 1024, WRITE)], IOERR),
        (IN, u64::MAX, &[(DATA, 512, WRITE)], IOERR),
        (IN, 1 << 55, &[(DATA, 512, WRITE)], IOERR),
        (OUT, SECTORS, &[(DATA, 512, 0)], IOERR),
        (OUT, u64::MAX, &[(DATA, 1024, 0)], IOERR),
        (OUT, u64::MAX / 512 + 1, &[(DATA, 512, 0)], IOERR),
        // No whole sectors.
        (IN, 0, &[(DATA, 511, WRITE)], IOERR),
        (IN, 0, &[(DATA, 513, WRITE)], IOERR),
        (OUT, 0, &[(DATA, 1, 0)], IOERR),
        // The wrong direction.
        (IN, 0, &[(DATA, 512, 0)], IOERR),
        (IN, 0, &[(DATA, 512, 0), (DATA, 512, WRITE)], IOERR),
        (OUT, 0, &[(DATA, 512, WRITE)], IOERR),
        (OUT, 0, &[(DATA, 512, 0), (DATA, 512, WRITE)], IOERR),
        (DISCARD_REQUEST, 0, &[(DATA, 16, WRITE)], IOERR),
        // Nothing, or no whole segments.
        (DISCARD_REQUEST, 0, &[], IOERR),
        (ZEROES_REQUEST, 0, &[(DATA, 15, 0)], IOERR),
        // What does not exist.
        (2, 0, &[], UNSUPPORTED),
        (u32::MAX, 0, &[(DATA, 512, 0)], UNSUPPORTED),
    ];
    let count = table.len() as u64;
    for (kind, sector, data, expected) in table {
        rig.driver.memory.put(DATA, &[0; 1024]);
        let (status, _) = rig.run(kind, sector, data);
        assert_eq!(status, expected, "{kind} {sector:#x} {data:?}");
        assert_eq!(rig.driver.memory.get::<1024>(DATA), [0; 1024]);
    }
    assert!(rig.disk.bytes() == pattern());
    assert_eq!(rig.control.statistics().refused, count);
    assert!(!rig.driver.needs_reset());
}

#[test]
fn wrong_segments_are_answered_and_none_is_done() {
    let mut rig = Rig::started(BlockOptions::default(), all());
    let table = [
        (DISCARD_REQUEST, SECTORS, 1, 0, IOERR),
        (DISCARD_REQUEST, u64::MAX, 2, 0, IOERR),
        (DISCARD_REQUEST, 0, DISCARD_MAX_SECTORS + 1, 0, IOERR),
        (DISCARD_REQUEST, 0, 1, 1, UNSUPPORTED),
        (DISCARD_REQUEST, 0, 1, 1 << 31, UNSUPPORTED),
        (ZEROES_REQUEST, SECTORS - 1, 2, 1, IOERR),
        (ZEROES_REQUEST, 0, ZEROES_MAX_SECTORS + 1, 0, IOERR),
        (ZEROES_REQUEST, 0, 1, 2, UNSUPPORTED),
    ];
    for (kind, sector, count, flags, expected) in table {
        rig.segment(0, sector, count, flags);
        assert_eq!(
            rig.run(kind, 0, &[(DATA, 16, 0)]).0,
            expected,
            "{kind} {sector} {count}"
        );
    }
    // The first of these is good.
    rig.segment(0, 0, 1, 0);
    rig.segment(1, SECTORS, 1, 0);
    assert_eq!(rig.run(DISCARD_REQUEST, 0, &[(DATA, 32, 0)]).0, IOERR);
    assert_eq!(rig.run(ZEROES_REQUEST, 0, &[(DATA, 32, 0)]).0, IOERR, "two");
    let most = 16 * DISCARD_MAX_SEGMENTS;
    assert_eq!(
        rig.run(DISCARD_REQUEST, 0, &[(DATA, most + 16, 0)]).0,
        IOERR
    );
    assert!(rig.disk.bytes() == pattern());
}

#[test]
fn what_was_not_agreed_on_is_not_supported() {
    let mut rig = Rig::started(BlockOptions::default(), Features::RINGS);
    rig.segment(0, 0, 1, 0);
    for kind in [DISCARD_REQUEST, ZEROES_REQUEST] {
        assert_eq!(rig.run(kind, 0, &[(DATA, 16, 0)]).0, UNSUPPORTED);
    }
    assert!(rig.disk.bytes() == pattern());
}

#[test]
fn a_disk_that_may_only_be_read_is_not_written() {
    let disk = MemoryDisk::read_only(pattern());
    let mut rig = Rig::with(disk, BlockOptions::default());
    rig.start(Features::RINGS.with(RO));
    assert_eq!(rig.run(OUT, 0, &[(DATA, 512, 0)]).0, IOERR);
    assert_eq!(rig.run(IN, 0, &[(DATA, 512, WRITE)]).0, OK);
}

#[test]
fn what_cannot_be_answered_needs_a_reset_and_then_it_works() {
    type Chain = &'static [(u64, u32, u16)];
    let table: [(&str, Chain); 8] = [
        ("no status", &[(HEADER, 16, 0)]),
        ("an empty status", &[(HEADER, 16, NEXT), (STATUS, 0, WRITE)]),
        ("no header", &[(STATUS, 1, WRITE)]),
        ("a short header", &[(HEADER, 15, NEXT), (STATUS, 1, WRITE)]),
        (
            "a header out of reach",
            &[(RAM - 8, 16, NEXT), (STATUS, 1, WRITE)],
        ),
        (
            "a status out of reach",
            &[(HEADER, 16, NEXT), (RAM, 1, WRITE)],
        ),
        (
            "a status that may only be read",
            &[(HEADER, 16, NEXT), (ROM, 1, WRITE)],
        ),
        (
            "data out of reach",
            &[
                (HEADER, 16, NEXT),
                (u64::MAX - 255, 512, WRITE | NEXT),
                (STATUS, 1, WRITE),
            ],
        ),
    ];
    let mut rig = Rig::new(BlockOptions::default());
    for (what, chain) in table {
        rig.start(Features::RINGS);
        rig.header(IN, 0);
        for (index, &(at, len, flags)) in (0..).zip(chain) {
            rig.driver.describe(index, (at, len, flags, index + 1));
        }
        rig.driver.offer(0);
        rig.driver.wait(Driver::needs_reset);
        assert_eq!(rig.driver.used_in(0), 0, "{what}");
        assert_eq!(rig.driver.memory.get::<1>(STATUS), [NONE], "{what}");
    }
    rig.start(Features::RINGS);
    assert_eq!(rig.run(IN, 0, &[(DATA, 512, WRITE)]), (OK, 513));
}

#[test]
fn a_host_that_fails_is_an_i_o_error_and_no_more() {
    let mut rig = Rig::started(BlockOptions::default(), all());
    for error in [libc::ENOSPC, libc::EIO, libc::ENOSPC] {
        rig.disk.fail(Some(error));
        assert_eq!(rig.run(OUT, 0, &[(DATA, 512, 0)]), (IOERR, 1));
        assert_eq!(rig.run(IN, 0, &[(DATA, 512, WRITE)]), (IOERR, 0));
        assert_eq!(rig.run(FLUSH_REQUEST, 0, &[]), (IOERR, 1));
    }
    assert_eq!(rig.control.statistics().errors, 9);
    rig.disk.fail(None);
    assert_eq!(rig.run(IN, 0, &[(DATA, 512, WRITE)]).0, OK);
    assert!(!rig.driver.needs_reset());
}

#[test]
fn writes_last_unless_the_driver_flushes_by_itself() {
    let with_wce = all().with(CONFIG_WCE);
    let table = [
        (Cache::Writeback, Features::NONE, 1),
        (Cache::Writeback, all(), 0),
        (Cache::Writeback, with_wce, 0),
        (Cache::Writeback, Features::NONE.with(CONFIG_WCE), 1),
        (Cache::Writethrough, Features::NONE, 1),
        (Cache::Writethrough, all(), 1),
        (Cache::Writethrough, with_wce, 1),
        (Cache::Unsafe, Features::NONE, 0),
    ];
    for (cache, features, flushes) in table {
        let options = BlockOptions {
            cache,
            ..BlockOptions::default()
        };
        let mut rig = Rig::started(options, features);
        assert_eq!(rig.run(OUT, 0, &[(DATA, 512, 0)]).0, OK);
        assert_eq!(rig.disk.flushes(), flushes, "{cache:?} {features:?}");
    }
}

#[test]
fn the_driver_chooses_the_cache_and_a_reset_forgets_it() {
    const WCE_REGISTER: u64 = 0x100 + WRITEBACK;
    let byte = |rig: &Rig| rig.driver.read(WCE_REGISTER) as u8;
    let set = |rig: &Rig, value: u8| {
        use vm_device::DeviceMmio;
        let at = vm_device::bus::MmioAddress(0);
        rig.driver.transport.mmio_write(at, WCE_REGISTER, &[value]);
    };
    let mut rig = Rig::started(BlockOptions::default(), all().with(CONFIG_WCE));
    assert_eq!(byte(&rig), 1);
    for (value, flushes) in [(0, 1), (2, 2), (1, 2)] {
        set(&rig, value);
        assert_eq!(byte(&rig), u8::from(value == 1));
        assert_eq!(rig.run(OUT, 0, &[(DATA, 512, 0)]).0, OK);
        assert_eq!(rig.disk.flushes(), flushes, "{value}");
    }
    set(&rig, 0);
    rig.start(all());
    assert_eq!(byte(&rig), 1, "after a reset");
    set(&rig, 0);
    assert_eq!(byte(&rig), 1, "that was not agreed on");
}

#[test]
fn a_disk_that_grows_tells_the_driver() {
    let mut rig = Rig::started(BlockOptions::default(), Features::RINGS);
    let capacity = |rig: &Rig| (rig.driver.read(0x100), rig.driver.read(0x0fc));
    assert_eq!(capacity(&rig), (SECTORS as u32, 0));
    let past_the_end = [(DATA, 512, WRITE)];
    assert_eq!(rig.run(IN, SECTORS, &past_the_end).0, IOERR);
    rig.disk.resize(128 * 512);
    rig.driver.write(0x64, 3);
    assert_eq!(rig.control.refresh_size().unwrap(), 128 * 512);
    assert_eq!(rig.driver.read(0x60), 2, "a configuration interrupt");
    assert_eq!(capacity(&rig), (128, 1));
    assert_eq!(rig.run(IN, SECTORS, &past_the_end).0, OK);
    rig.driver.write(0x64, 3);
    rig.control.refresh_size().unwrap();
    assert_eq!(capacity(&rig), (128, 1), "nothing has changed");
    assert_eq!(rig.driver.read(0x60), 0);
    rig.disk.resize(512);
    rig.control.refresh_size().unwrap();
    assert_eq!(rig.run(IN, 1, &past_the_end).0, IOERR, "it has shrunk");
}

/// A disk of one byte all over.
fn filled(byte: u8, sectors: u64) -> Arc<MemoryDisk> {
    MemoryDisk::shared(vec![byte; (sectors * SECTOR) as usize])
}

#[test]
fn a_disk_is_replaced_and_the_driver_told_of_its_size() {
    let mut rig = Rig::started(BlockOptions::default(), all());
    rig.driver.memory.put(DATA, &[0x77; 512]);
    assert_eq!(rig.run(OUT, 3, &[(DATA, 512, 0)]).0, OK);
    let flushes = rig.disk.flushes();
    rig.driver.write(0x64, 3);
    assert_eq!((rig.driver.read(0x100), rig.driver.read(0xfc)), (64, 0));
    let new = filled(0xb2, 2 * SECTORS);
    rig.control.replace(new.clone()).unwrap();
    assert_eq!(rig.disk.flushes(), flushes + 1, "what was written lasts");
    assert_eq!(rig.disk.bytes()[3 * 512], 0x77);
    assert_eq!(rig.driver.read(0x60), 2, "a configuration interrupt");
    assert_eq!((rig.driver.read(0x100), rig.driver.read(0xfc)), (128, 1));
    assert_eq!(rig.run(IN, SECTORS + 1, &[(DATA, 512, WRITE)]), (OK, 513));
    assert_eq!(rig.driver.memory.get::<512>(DATA), [0xb2; 512]);
    // Nobody holds the old one any more: the new engine came before the request.
    assert_eq!(Arc::strong_count(&rig.disk), 1);
}

#[test]
fn what_is_in_flight_ends_on_the_old_disk() {
    let mut rig = Rig::started(BlockOptions::default(), all());
    rig.disk.hold(true);
    rig.driver.memory.put(DATA, &[0x55; 512]);
    rig.offer(OUT, 0, &[(DATA, 512, 0)]);
    std::thread::sleep(Duration::from_millis(50));
    let new = filled(0, SECTORS);
    let (control, theirs) = (rig.control.clone(), new.clone());
    let replaces = std::thread::spawn(move || control.replace(theirs));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!replaces.is_finished());
    rig.disk.hold(false);
    replaces.join().unwrap().unwrap();
    assert_eq!(rig.wait().0, OK);
    assert_eq!((rig.disk.bytes()[0], new.bytes()[0]), (0x55, 0));
    assert_eq!(rig.run(OUT, 0, &[(DATA, 512, 0)]).0, OK);
    assert_eq!(new.bytes()[0], 0x55);
}

#[test]
fn a_disk_that_cannot_be_replaced_stays() {
    let mut rig = Rig::started(BlockOptions::default(), all());
    let other = MemoryDisk::read_only(vec![1; 512]);
    let refused = rig.control.replace(other).unwrap_err();
    assert!(matches!(
        refused,
        ReplaceError::ReadOnly { read_only: true }
    ));
    assert!(
        refused
            .to_string()
            .starts_with("the disk cannot be written")
    );

    rig.disk.hold(true);
    rig.offer(IN, 1, &[(DATA, 512, WRITE)]);
    std::thread::sleep(Duration::from_millis(50));
    let refused = rig.control.replace(filled(9, 1)).unwrap_err();
    assert!(matches!(refused, ReplaceError::Busy { .. }), "{refused}");
    rig.disk.hold(false);
    assert_eq!(rig.wait().0, OK);

    rig.disk.fail(Some(5));
    let refused = rig.control.replace(filled(9, 1)).unwrap_err();
    assert!(matches!(refused, ReplaceError::Flush(_)), "{refused}");
    rig.disk.fail(None);
    assert_eq!(rig.run(IN, 1, &[(DATA, 512, WRITE)]), (OK, 513));
    assert_eq!(rig.driver.memory.get::<512>(DATA)[..], pattern()[512..1024]);
}

#[test]
fn a_driver_that_stands_still_hears_of_another_disk_when_it_goes_on() {
    let mut rig = Rig::started(BlockOptions::default(), all());
    rig.driver.transport.pause();
    rig.control.replace(filled(7, 8)).unwrap();
    assert_eq!(rig.driver.read(0x60) & 2, 0);
    rig.driver.transport.resume();
    assert_eq!(rig.driver.read(0x60) & 2, 2);
    assert_eq!(rig.run(IN, 7, &[(DATA, 512, WRITE)]).0, OK);
    assert_eq!(rig.driver.memory.get::<512>(DATA), [7; 512]);
    assert_eq!(rig.run(IN, 8, &[(DATA, 512, WRITE)]).0, IOERR);
}

/// Whoever reads finds one disk or the other, and never both in one.
#[test]
fn disks_are_replaced_under_load() {
    let mut rig = Rig::started(BlockOptions::default(), all());
    let disks = [filled(0xaa, SECTORS), filled(0xbb, SECTORS)];
    let over = Arc::new(AtomicBool::new(false));
    rig.control.replace(disks[0].clone()).unwrap();
    let (control, ends) = (rig.control.clone(), over.clone());
    let replaces = std::thread::spawn(move || {
        let mut rounds = 0usize;
        while !ends.load(Ordering::SeqCst) {
            rounds += 1;
            control.replace(disks[rounds % 2].clone()).unwrap();
        }
        rounds
    });
    for n in 0..300 {
        let status = rig.run(
            IN,
            n % 32,
            &[(DATA, 4096, WRITE), (DATA + 4096, 4096, WRITE)],
        );
        assert_eq!(status, (OK, 8193));
        let bytes = rig.driver.memory.get::<8192>(DATA);
        assert!([0xaa, 0xbb].contains(&bytes[0]) && bytes.iter().all(|b| *b == bytes[0]));
    }
    over.store(true, Ordering::SeqCst);
    assert!(replaces.join().unwrap() > 10);
}

#[test]
fn queues_work_side_by_side() {
    let options = BlockOptions {
        queues: 3,
        ..BlockOptions::default()
    };
    let mut rig = Rig::started(options, Features::RINGS.with(MQ));
    assert_eq!(rig.driver.read(0x100 + 34) as u16, 3);
    for queue in 0..3u64 {
        let place = 0x1000 * queue;
        let mut header = IN.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend((10 + queue).to_le_bytes());
        rig.driver.memory.put(HEADER + place, &header);
        rig.driver.memory.put(STATUS + place, &[NONE]);
        let ring = RINGS[0] + 0x1_0000 * queue;
        let chain = [
            (HEADER + place, 16, NEXT, 1),
            (DATA + place, 512, NEXT | WRITE, 2),
            (STATUS + place, 1, WRITE, 0),
        ];
        for (index, descriptor) in (0..).zip(chain) {
            rig.driver.describe_at(ring + 16 * index, descriptor);
        }
        rig.driver.offer_in(queue as u32, 0);
        rig.driver.write(0x50, queue as u32);
    }
    for queue in 0..3u64 {
        rig.driver.wait(|d| d.used_in(queue as u32) == 1);
        let place = 0x1000 * queue;
        assert_eq!(rig.driver.memory.get::<1>(STATUS + place), [OK]);
        let at = (10 + queue as usize) * 512;
        assert_eq!(
            rig.driver.memory.get::<512>(DATA + place),
            pattern()[at..at + 512]
        );
    }
}

#[test]
fn a_limit_delays_and_new_ones_are_used_at_once() {
    let hour = Duration::from_secs(3600);
    let one = Bucket {
        size: 1,
        one_time_burst: 1,
        refill_time: hour,
    };
    let options = BlockOptions {
        limits: Limits {
            bandwidth: None,
            operations: Some(one),
        },
        ..BlockOptions::default()
    };
    let mut rig = Rig::started(options, Features::RINGS);
    let data = [(DATA, 512, WRITE)];
    assert_eq!(rig.run(IN, 0, &data).0, OK, "the burst");
    assert_eq!(rig.run(IN, 0, &data).0, OK, "the bucket");
    rig.offer(IN, 0, &data);
    rig.driver.wait(|_| rig.control.statistics().throttled == 1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.driver.used_in(0), 2);
    rig.control.set_limits(Limits::default());
    assert_eq!(rig.wait().0, OK);
    assert_eq!(rig.control.statistics().throttled, 1);

    // And one that only takes a moment is over by itself.
    let short = Bucket {
        size: 512,
        one_time_burst: 0,
        refill_time: Duration::from_millis(30),
    };
    rig.control.set_limits(Limits {
        bandwidth: Some(short),
        operations: None,
    });
    let begin = Instant::now();
    for _ in 0..3 {
        assert_eq!(rig.run(IN, 0, &data).0, OK);
    }
    assert!(begin.elapsed() >= Duration::from_millis(60));
}

#[test]
fn a_host_that_takes_long_is_told_of_while_the_guest_waits() {
    let mut rig = Rig::started(BlockOptions::default(), Features::RINGS);
    let is_quiet = |rig: &Rig| rig.control.0.overdue.is_looked_for();
    assert_eq!(rig.run(IN, 0, &[(DATA, 512, WRITE)]).0, OK);
    std::thread::sleep(2 * overdue::LONG);
    assert!(is_quiet(&rig), "nothing is in flight");
    rig.disk.hold(true);
    rig.offer(IN, 0, &[(DATA, 512, WRITE)]);
    rig.driver.wait(|_| !rig.control.0.overdue.is_looked_for());
    assert_eq!(rig.driver.used_in(0), 1);
    rig.disk.hold(false);
    assert_eq!(rig.wait().0, OK);
}

#[test]
fn a_reset_waits_for_requests_in_flight() {
    let mut rig = Rig::started(BlockOptions::default(), Features::RINGS);
    rig.disk.hold(true);
    rig.offer(OUT, 0, &[(DATA, 512, 0)]);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(rig.driver.used_in(0), 0);
    let disk = rig.disk.clone();
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        disk.hold(false);
    });
    let begin = Instant::now();
    rig.driver.write(0x70, 0);
    assert!(begin.elapsed() >= Duration::from_millis(20));
    assert_eq!(rig.control.statistics().writes, 1);
    release.join().unwrap();
    rig.start(Features::RINGS);
    assert_eq!(rig.run(IN, 0, &[(DATA, 512, WRITE)]).0, OK);
}

#[test]
fn a_host_that_hangs_holds_no_reset_up_and_is_waited_for_before_the_next_start() {
    let mut rig = Rig::started(BlockOptions::default(), Features::RINGS);
    rig.driver.memory.put(DATA, &[0; 512]);
    rig.disk.hold(true);
    rig.offer(IN, 1, &[(DATA, 512, WRITE)]);
    std::thread::sleep(Duration::from_millis(20));
    let begin = Instant::now();
    rig.driver.write(0x70, 0);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(rig.driver.status(), 0);
    // It could still write into this memory.
    let restart = |rig: &mut Rig| {
        rig.driver.write(0x70, 0);
        assert!(rig.driver.agree(Features::VERSION_1));
        rig.driver.set_up(0);
        rig.driver.write(0x70, 15);
        rig.driver.needs_reset()
    };
    assert!(restart(&mut rig), "it is not active");
    rig.disk.hold(false);
    let begin = Instant::now();
    while restart(&mut rig) {
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
    rig.done = 0;
    assert_eq!(rig.run(IN, 0, &[(DATA, 512, WRITE)]).0, OK);
}

#[test]
fn memory_that_leaves_under_a_request_stays_until_its_end() {
    const MORE: u64 = 0x40_0000;
    let mut rig = Rig::started(BlockOptions::default(), Features::RINGS);
    let space = rig.driver.memory.space.clone();
    let options = umbra_slots::RamOptions {
        len: 0x1000,
        huge: umbra_slots::HugePages::No,
        prefault: false,
    };
    let more = umbra_slots::RamRegion::new(options).unwrap();
    let gone = Arc::downgrade(&more);
    let added = space.update("more", |map| {
        map.add_ram(Gpa(MORE), more, 0, 0x1000, Flags::default())
    });
    let slot = added.unwrap().wait();
    rig.disk.hold(true);
    rig.offer(IN, 3, &[(MORE, 512, WRITE)]);
    // It is with the engine when the queue is empty and nothing was answered.
    std::thread::sleep(Duration::from_millis(50));
    space.update("less", |map| map.remove(slot)).unwrap().wait();
    assert!(gone.upgrade().is_some(), "the engine has it");
    rig.disk.hold(false);
    assert_eq!(rig.wait().0, OK);
    rig.driver.wait(|_| gone.upgrade().is_none());
}

/// A device whose disk is a file.
fn file_rig(engine: EngineKind, direct: bool) -> (Rig, tempfile::NamedTempFile) {
    let program = std::env::current_exe().unwrap();
    // Beside it: /tmp may be a file system without direct I/O.
    let file = tempfile::NamedTempFile::new_in(program.parent().unwrap()).unwrap();
    file.as_file().set_len(SECTORS * SECTOR).unwrap();
    let options = DiskOptions {
        direct,
        ..DiskOptions::default()
    };
    let disk = umbra_block::open(file.path(), &options).unwrap();
    let options = BlockOptions {
        engine,
        ..BlockOptions::default()
    };
    let device = Block::new(disk, options).unwrap();
    let rig = Rig {
        control: device.control(),
        driver: Driver::new(Box::new(device), 16),
        disk: MemoryDisk::shared(vec![]),
        done: 0,
    };
    (rig, file)
}

#[test]
fn a_request_before_one_that_needs_a_reset_holds_no_reset_up() {
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        let (mut rig, _file) = file_rig(engine, false);
        rig.start(all());
        rig.header(OUT, 0);
        rig.driver.describe(0, (HEADER, 16, NEXT, 1));
        rig.driver.describe(1, (DATA, 512, NEXT, 2));
        rig.driver.describe(2, (STATUS, 1, WRITE, 0));
        // Both are seen in one run over the queue: the second has no status.
        rig.driver.describe(3, (HEADER, 16, 0, 0));
        rig.driver.offer_in(0, 0);
        rig.driver.offer(3);
        rig.driver.wait(Driver::needs_reset);
        let begin = Instant::now();
        rig.driver.write(0x70, 0);
        assert!(begin.elapsed() < Duration::from_millis(800), "{engine:?}");
    }
}

#[test]
fn a_file_is_a_disk_from_one_end_to_the_other() {
    for engine in [EngineKind::IoUring, EngineKind::Threads] {
        for direct in [false, true] {
            check_file(engine, direct);
        }
    }
}

fn check_file(engine: EngineKind, direct: bool) {
    let (mut rig, file) = file_rig(engine, direct);
    rig.start(all());
    rig.driver.memory.put(DATA, &[0x77; 4096]);
    assert_eq!(rig.run(OUT, 8, &[(DATA, 4096, 0)]).0, OK);
    assert_eq!(rig.run(FLUSH_REQUEST, 0, &[]).0, OK);
    // At an address without alignment.
    assert_eq!(rig.run(IN, 15, &[(DATA + 0x1001, 1024, WRITE)]).0, OK);
    let read: [u8; 1024] = rig.driver.memory.get(DATA + 0x1001);
    assert_eq!((read[0], read[511], read[512]), (0x77, 0x77, 0));
    rig.segment(0, 8, 4, 1);
    assert_eq!(rig.run(ZEROES_REQUEST, 0, &[(DATA, 16, 0)]).0, OK);
    let bytes = std::fs::read(file.path()).unwrap();
    let (zeros, rest) = bytes[8 * 512..16 * 512].split_at(4 * 512);
    assert!(zeros.iter().all(|byte| *byte == 0), "{engine:?}");
    assert!(rest.iter().all(|byte| *byte == 0x77), "{engine:?}");
    assert_eq!(rig.control.statistics().written_bytes, 4096);
}
