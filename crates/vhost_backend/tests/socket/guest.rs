//! A front end with a guest: memory, rings, a driver that works by polling.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use umbra_slots::{AddressSpace, Flags, Gpa, HugePages, Options, RamOptions, RamRegion};
use umbra_virtio::testing::{NEXT, RINGS, WRITE};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Protocol};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use crate::back::Back;

/// Bytes of memory from address 0 on.
pub const RAM: u64 = 0x10_0000;
/// Where the driver has its buffers.
pub const DATA: u64 = 0x5_0000;
/// VIRTIO_F_VERSION_1, with protocol features.
pub const FEATURES: u64 = 1 << 32 | 1 << 30;
/// VHOST_F_LOG_ALL.
pub const LOG_ALL: u64 = 1 << 26;
/// Descriptors of a ring.
pub const SIZE: u16 = 8;

/// Descriptors of one ring.
pub struct Ends {
    pub kick: EventFd,
    pub call: EventFd,
    pub error: EventFd,
}

/// The front end.
pub struct Guest {
    pub frontend: Frontend,
    pub ram: Arc<RamRegion>,
    space: Arc<AddressSpace>,
    pub ends: Vec<Ends>,
    /// What each ring's available index is.
    pub available: [u16; 2],
}

/// Memory of the front end.
pub fn memory(len: u64) -> Arc<RamRegion> {
    let options = RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    };
    RamRegion::new(options).unwrap()
}

/// A region as the front end tells of it: `len` bytes of memory from `offset` on, at `gpa`.
pub fn region(gpa: u64, ram: &RamRegion, offset: u64, len: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: gpa,
        memory_size: len,
        userspace_addr: ram.host_addr(offset).as_ptr() as u64,
        mmap_offset: offset,
        mmap_handle: ram.file().as_raw_fd(),
    }
}

/// How often this process has a file mapped.
pub fn mappings(file: &File) -> usize {
    let inode = file.metadata().unwrap().ino().to_string();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let of_file = |line: &&str| line.split_whitespace().nth(4) == Some(&inode);
    maps.lines().filter(of_file).count()
}

/// Waits until something is so.
pub fn wait(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "{what} does not happen"
        );
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Has features agreed on, and every message answered.
pub fn negotiate(frontend: &mut Frontend, features: u64) {
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    assert!(protocol.contains(Protocol::REPLY_ACK));
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_features(features).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
}

impl Guest {
    /// Connects, agrees on features, and shows memory.
    pub fn new(back: &Back) -> Self {
        Self::with_memory(back.connect(), memory(RAM))
    }

    /// The same with a guest that is there already.
    pub fn with_memory(stream: UnixStream, ram: Arc<RamRegion>) -> Self {
        let mut guest = Self::silent(stream, ram);
        negotiate(&mut guest.frontend, FEATURES);
        let memory = [region(0, &guest.ram, 0, RAM)];
        guest.frontend.set_mem_table(&memory).unwrap();
        guest
    }

    /// One that has said nothing yet.
    pub fn silent(stream: UnixStream, ram: Arc<RamRegion>) -> Self {
        let space = AddressSpace::new(Options::default());
        let added = space.update("guest", |map| {
            map.add_ram(Gpa(0), ram.clone(), 0, RAM, Flags::default())
        });
        added.unwrap().wait();
        let ends = || Ends {
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            error: EventFd::new(0).unwrap(),
        };
        Self {
            frontend: Frontend::from_stream(stream, 2),
            ram,
            space,
            ends: vec![ends(), ends()],
            available: [0; 2],
        }
    }

    /// Writes as the guest does.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.space.load().write(Gpa(at), bytes).unwrap();
    }

    /// Reads.
    pub fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.space.load().read(Gpa(at), &mut bytes).unwrap();
        bytes
    }

    /// Returns all of memory.
    pub fn all(&self) -> Vec<u8> {
        let mut bytes = vec![0; RAM as usize];
        self.space.load().read(Gpa(0), &mut bytes).unwrap();
        bytes
    }

    /// Where a ring's parts are in the guest.
    pub fn place(ring: usize) -> [u64; 3] {
        RINGS.map(|at| at + 0x1_0000 * ring as u64)
    }

    /// The same as the front end tells it.
    pub fn addresses(&self, ring: usize) -> VringConfigData {
        let user = |at| self.ram.host_addr(at).as_ptr() as u64;
        let [table, available, used] = Self::place(ring).map(user);
        VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: table,
            used_ring_addr: used,
            avail_ring_addr: available,
            log_addr: None,
        }
    }

    /// Sets a ring up from an index on.
    pub fn set_up(&mut self, ring: usize, base: u16) {
        let (frontend, ends) = (&self.frontend, &self.ends[ring]);
        frontend.set_vring_num(ring, SIZE).unwrap();
        frontend.set_vring_base(ring, base).unwrap();
        let addresses = self.addresses(ring);
        frontend.set_vring_addr(ring, &addresses).unwrap();
        frontend.set_vring_call(ring, &ends.call).unwrap();
        frontend.set_vring_err(ring, &ends.error).unwrap();
        frontend.set_vring_kick(ring, &ends.kick).unwrap();
    }

    /// Sets a ring up, and lets it run.
    pub fn start(&mut self, ring: usize) {
        let used = self.used(ring);
        self.set_up(ring, used);
        self.frontend.set_vring_enable(ring, true).unwrap();
    }

    /// Writes a descriptor.
    pub fn describe(&self, ring: usize, index: u16, at: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = at.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(Self::place(ring)[0] + 16 * u64::from(index), &bytes);
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, ring: usize, head: u16) {
        let next = &mut self.available[ring];
        let at = *next;
        *next = next.wrapping_add(1);
        let (next, place) = (*next, Self::place(ring)[1]);
        self.put(place + 4 + 2 * u64::from(at % SIZE), &head.to_le_bytes());
        self.put(place + 2, &next.to_le_bytes());
    }

    /// Notifies.
    pub fn kick(&self, ring: usize) {
        self.ends[ring].kick.write(1).unwrap();
    }

    /// Returns the used index.
    pub fn used(&self, ring: usize) -> u16 {
        u16::from_le_bytes(self.get(Self::place(ring)[2] + 2))
    }

    /// Returns the head of a used element.
    pub fn used_head(&self, ring: usize, index: u16) -> u32 {
        let at = Self::place(ring)[2] + 4 + 8 * u64::from(index % SIZE);
        u32::from_le_bytes(self.get(at))
    }

    /// Writes a request for the device: 4 bytes that come back 0x100 further. Chain `n` is descriptors 2n and 2n + 1.
    pub fn request(&self, ring: usize, n: u16, text: &[u8; 4]) -> u64 {
        let at = DATA + 0x1_0000 * ring as u64 + 0x1000 * u64::from(n);
        self.put(at, text);
        self.describe(ring, 2 * n, at, 4, NEXT, 2 * n + 1);
        self.describe(ring, 2 * n + 1, at + 0x100, 4, WRITE, 0);
        at + 0x100
    }

    /// Has the device answer one request, and checks what it says.
    pub fn echo(&mut self, ring: usize, text: &[u8; 4]) {
        let answer = self.request(ring, 0, text);
        let used = self.used(ring);
        self.offer(ring, 0);
        self.kick(ring);
        wait("an answer", || self.used(ring) != used);
        assert_eq!(self.get::<4>(answer), *text);
    }
}
