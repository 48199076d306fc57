//! A front end with a guest whose driver works by polling.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umbra_slots::{AddressSpace, Flags, Gpa, HugePages, Options, RamOptions, RamRegion};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

const RAM: u64 = 0x20_0000;
const SIZE: u16 = 64;
const RINGS: usize = 3;
/// VIRTIO_F_VERSION_1, with protocol features.
const FEATURES: u64 = 1 << 32 | 1 << 30;
/// Each ring has its table, available and used ring, and buffers at that distance.
const RING: u64 = 0x8_0000;
const PLACES: [u64; 3] = [0, 0x1000, 0x2000];
const BUFFERS: u64 = 0x1_0000;

const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;

/// VIRTIO_BLK_T_IN.
pub const READ: u32 = 0;
/// VIRTIO_BLK_T_OUT.
pub const WRITE: u32 = 1;

/// VIRTIO_BLK_T_FLUSH.
const FLUSH: u32 = 4;
/// VIRTIO_BLK_T_DISCARD.
pub const DISCARD: u32 = 11;
/// VIRTIO_BLK_T_WRITE_ZEROES.
pub const WRITE_ZEROES: u32 = 13;
/// The features of these.
pub const FLUSH_DISCARD_ZEROES: u64 = 1 << 9 | 1 << 13 | 1 << 14;

/// What a sector holds.
pub type Sector = [u8; 512];

/// The front end.
pub struct Driver {
    frontend: Frontend,
    ram: Arc<RamRegion>,
    space: Arc<AddressSpace>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    available: [u16; RINGS],
    features: u64,
    in_flight: Option<(VhostUserInflight, File)>,
}

fn connect(path: &Path, ram: &RamRegion, features: u64) -> Frontend {
    let mut frontend = Frontend::connect(path, RINGS as u64).unwrap();
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_features(features).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: RAM,
        userspace_addr: ram.host_addr(0).as_ptr() as u64,
        mmap_offset: 0,
        mmap_handle: ram.file().as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
    frontend
}

impl Driver {
    /// Connects, agrees on features, and shows memory.
    pub fn new(path: &Path) -> Self {
        Self::with_features(path, 0)
    }

    /// The same with features of the device.
    pub fn with_features(path: &Path, features: u64) -> Self {
        let features = FEATURES | features;
        let options = RamOptions {
            len: RAM,
            huge: HugePages::No,
            prefault: false,
        };
        let ram = RamRegion::new(options).unwrap();
        let space = AddressSpace::new(Options::default());
        let added = space.update("guest", |map| {
            map.add_ram(Gpa(0), ram.clone(), 0, RAM, Flags::default())
        });
        added.unwrap().wait();
        let events = || (0..RINGS).map(|_| EventFd::new(0).unwrap()).collect();
        Self {
            frontend: connect(path, &ram, features),
            features,
            ram,
            space,
            kicks: events(),
            calls: events(),
            available: [0; RINGS],
            in_flight: None,
        }
    }

    /// Comes to another back end, with the same guest.
    pub fn reconnect(&mut self, path: &Path) {
        self.frontend = connect(path, &self.ram, self.features);
        if let Some((made, file)) = &self.in_flight {
            let fd = file.as_raw_fd();
            self.frontend.set_inflight_fd(made, fd).unwrap();
        }
    }

    /// Has requests in flight kept.
    pub fn keep_in_flight(&mut self) {
        let wanted = VhostUserInflight::new(0, 0, 1, SIZE);
        let (made, file) = self.frontend.get_inflight_fd(&wanted).unwrap();
        self.frontend
            .set_inflight_fd(&made, file.as_raw_fd())
            .unwrap();
        self.in_flight = Some((made, file));
    }

    /// Reads the configuration.
    pub fn config(&mut self, offset: u32, len: u32) -> Vec<u8> {
        let room = vec![0; len as usize];
        let flags = VhostUserConfigFlags::empty();
        self.frontend
            .get_config(offset, len, flags, &room)
            .unwrap()
            .1
    }

    fn place(ring: usize) -> [u64; 3] {
        PLACES.map(|at| at + RING * ring as u64)
    }

    fn buffer(ring: usize, slot: u16) -> u64 {
        RING * ring as u64 + BUFFERS + 0x1000 * u64::from(slot)
    }

    /// Starts a ring behind what was answered.
    pub fn start(&mut self, ring: usize) {
        let user = |at| self.ram.host_addr(at).as_ptr() as u64;
        let [table, available, used] = Self::place(ring).map(user);
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: table,
            used_ring_addr: used,
            avail_ring_addr: available,
            log_addr: None,
        };
        let base = self.used(ring);
        let (kick, call) = (&self.kicks[ring], &self.calls[ring]);
        self.frontend.set_vring_num(ring, SIZE).unwrap();
        self.frontend.set_vring_base(ring, base).unwrap();
        self.frontend.set_vring_addr(ring, &addresses).unwrap();
        self.frontend.set_vring_call(ring, call).unwrap();
        self.frontend.set_vring_kick(ring, kick).unwrap();
        self.frontend.set_vring_enable(ring, true).unwrap();
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.space.load().write(Gpa(at), bytes).unwrap();
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.space.load().read(Gpa(at), &mut bytes).unwrap();
        bytes
    }

    fn describe(&self, ring: usize, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(Self::place(ring)[0] + 16 * u64::from(index), &bytes);
    }

    fn offer(&mut self, ring: usize, head: u16) {
        let [_, place, _] = Self::place(ring);
        let at = self.available[ring];
        self.available[ring] = at.wrapping_add(1);
        self.put(place + 4 + 2 * u64::from(at % SIZE), &head.to_le_bytes());
        self.put(place + 2, &self.available[ring].to_le_bytes());
    }

    /// Notifies.
    pub fn kick(&self, ring: usize) {
        self.kicks[ring].write(1).unwrap();
    }

    /// Returns the used index.
    pub fn used(&self, ring: usize) -> u16 {
        u16::from_le_bytes(self.get(Self::place(ring)[2] + 2))
    }

    /// Waits for it.
    pub fn wait_for_used(&self, ring: usize, index: u16) {
        let begin = Instant::now();
        while self.used(ring) != index {
            let (used, waited) = (self.used(ring), begin.elapsed());
            assert!(
                waited < Duration::from_secs(20),
                "{used} of {index} answers"
            );
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Offers one buffer, and waits for it. Returns how many bytes are in it.
    fn exchange(&mut self, ring: usize, len: u32, flags: u16) -> u32 {
        self.describe(ring, 0, Self::buffer(ring, 0), len, flags, 0);
        let used = self.used(ring);
        self.offer(ring, 0);
        self.kick(ring);
        self.wait_for_used(ring, used.wrapping_add(1));
        let at = Self::place(ring)[2] + 4 + 8 * u64::from(used % SIZE);
        u32::from_le_bytes(self.get(at + 4))
    }

    /// Has the device read these bytes.
    pub fn send(&mut self, ring: usize, bytes: &[u8]) {
        self.put(Self::buffer(ring, 0), bytes);
        self.exchange(ring, bytes.len() as u32, 0);
    }

    /// Has the device write, and returns what.
    pub fn receive(&mut self, ring: usize, most: u32) -> Vec<u8> {
        let len = self.exchange(ring, most, DEVICE_WRITES);
        let mut bytes = vec![0; len as usize];
        let map = self.space.load();
        map.read(Gpa(Self::buffer(ring, 0)), &mut bytes).unwrap();
        bytes
    }

    /// Offers a request of one sector of a disk; `slot` is 0 to 20.
    pub fn offer_block(&mut self, slot: u16, kind: u32, sector: u64, data: Sector) {
        self.prepare(slot, kind, sector, data);
        self.offer(0, 3 * slot);
    }

    fn prepare(&self, slot: u16, kind: u32, sector: u64, data: Sector) {
        let at = Self::buffer(0, slot);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.put(at, &header);
        self.put(at + 0x200, &data);
        self.put(at + 0x800, &[0xff]);
        let first = 3 * slot;
        let writes = if kind == READ { DEVICE_WRITES } else { 0 };
        self.describe(0, first, at, 16, NEXT, first + 1);
        self.describe(0, first + 1, at + 0x200, 512, NEXT | writes, first + 2);
        self.describe(0, first + 2, at + 0x800, 1, DEVICE_WRITES, 0);
    }

    /// Does a request about a range of sectors. Returns its status.
    pub fn ranges(&mut self, kind: u32, range: Sector) -> u8 {
        self.prepare(0, kind, 0, range);
        self.describe(0, 1, Self::buffer(0, 0) + 0x200, 16, NEXT, 2);
        self.finish()
    }

    /// Has what was written last. Returns the status.
    pub fn flush(&mut self) -> u8 {
        self.prepare(0, FLUSH, 0, [0; 512]);
        self.describe(0, 0, Self::buffer(0, 0), 16, NEXT, 2);
        self.finish()
    }

    fn finish(&mut self) -> u8 {
        let used = self.used(0);
        self.offer(0, 0);
        self.kick(0);
        self.wait_for_used(0, used.wrapping_add(1));
        self.status(0)
    }

    /// Returns the status of such a request.
    pub fn status(&self, slot: u16) -> u8 {
        self.get::<1>(Self::buffer(0, slot) + 0x800)[0]
    }

    /// Does one such request. Returns its status, and what is in its buffer.
    pub fn block(&mut self, kind: u32, sector: u64, data: Sector) -> (u8, Sector) {
        self.prepare(0, kind, sector, data);
        (self.finish(), self.get(Self::buffer(0, 0) + 0x200))
    }
}
