//! For tests: a kernel whose vhost devices are played by a thread, which records the calls that it gets.
//!
//! ```text
//!   thread of the test ── ioctl(node, 0xaf.., ..), write(node, vhost_msg) ──> seccomp: user notification
//!        │  and all that it starts: the device's relay                            │
//!        │                                                                        v
//!        └── used rings, events <── Kernel <── Recorder <── supervisor: reads the arguments, answers
//! ```
//! The calls are real, with their numbers and arguments as the `vhost` crate makes them; nothing below the front end is
//! replaced. The node is any file. User notification (Linux 5.0) works for a process without privileges; where a
//! filter cannot be installed the tests fail and say so.
//!
//! The thread of the test has a table of descriptors of its own, so that it can count them while other tests run.
#![allow(unsafe_code, reason = "the kernel's side of system calls is addresses")]

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};

use crate::testing::own_descriptors;

const TYPE: u32 = 0xaf;
/// Bytes of `struct vhost_msg_v2`.
const MESSAGE: u32 = 72;

/// The calls, by number.
const NAMES: [(u8, &str); 28] = [
    (0x01, "SET_OWNER"),
    (0x03, "SET_MEM_TABLE"),
    (0x10, "SET_VRING_NUM"),
    (0x11, "SET_VRING_ADDR"),
    (0x12, "SET_VRING_BASE"),
    (0x20, "SET_VRING_KICK"),
    (0x21, "SET_VRING_CALL"),
    (0x22, "SET_VRING_ERR"),
    (0x25, "SET_BACKEND_FEATURES"),
    (0x26, "GET_BACKEND_FEATURES"),
    (0x30, "NET_SET_BACKEND"),
    (0x60, "VSOCK_SET_GUEST_CID"),
    (0x61, "VSOCK_SET_RUNNING"),
    (0x70, "VDPA_GET_DEVICE_ID"),
    (0x71, "VDPA_GET_STATUS"),
    (0x72, "VDPA_SET_STATUS"),
    (0x73, "VDPA_GET_CONFIG"),
    (0x74, "VDPA_SET_CONFIG"),
    (0x75, "VDPA_SET_VRING_ENABLE"),
    (0x76, "VDPA_GET_VRING_NUM"),
    (0x77, "VDPA_SET_CONFIG_CALL"),
    (0x78, "VDPA_GET_IOVA_RANGE"),
    (0x79, "VDPA_GET_CONFIG_SIZE"),
    (0x80, "VDPA_GET_VQS_COUNT"),
    // Both directions of one number.
    (0x00, "FEATURES"),
    (0xf0, "IOTLB_UPDATE"),
    (0xf1, "IOTLB_INVALIDATE"),
    (0xff, "?"),
];

/// What the kernel offers, and how it fails.
#[derive(Clone, Debug)]
pub struct Options {
    pub features: u64,
    pub device: u32,
    pub queues: u32,
    pub config: Vec<u8>,
    /// The call of this number, counted from 0, fails with an error.
    pub fails: Option<(usize, i32)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // VERSION_1, INDIRECT_DESC, EVENT_IDX, VHOST_NET_F_VIRTIO_NET_HDR, VHOST_F_LOG_ALL, NOTIFY_ON_EMPTY,
            // MRG_RXBUF, ACCESS_PLATFORM.
            features: 1 << 32 | 1 << 28 | 1 << 29 | 1 << 27 | 1 << 26 | 1 << 24 | 1 << 15 | 1 << 33,
            device: 42,
            queues: 2,
            config: (1..=16).collect(),
            fails: None,
        }
    }
}

/// One ring of the kernel's.
#[derive(Debug, Default)]
pub struct KernelRing {
    pub size: u16,
    /// Descriptor table, available ring, used ring.
    pub addresses: [u64; 3],
    events: BTreeMap<&'static str, OwnedFd>,
    next: u16,
    used: u16,
}

/// What it has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Each call, with what of its arguments is worth a look. Nodes are numbered as they are first used.
    pub calls: Vec<String>,
    /// How many calls there were.
    pub count: usize,
    nodes: Vec<RawFd>,
    /// By node and index.
    pub rings: BTreeMap<(usize, u32), KernelRing>,
    /// Address of the guest, length, address of the process.
    pub table: Vec<[u64; 3]>,
    status: u8,
    config_call: Option<OwnedFd>,
    pub options: Options,
}

/// The kernel.
#[derive(Clone, Default)]
pub struct Kernel(pub Arc<Mutex<Seen>>);

/// A chain that was taken: its head, and address in this process, length and direction of each buffer.
pub type Taken = (u16, Vec<(u64, u32, bool)>);

/// Runs a test before a kernel that is like this.
pub fn before(options: Options, test: impl FnOnce(Kernel) + Send + 'static) {
    let kernel = Kernel::default();
    kernel.0.lock().options = options;
    let thread = thread::Builder::new().name("before a kernel".into());
    let ran = thread.spawn(move || {
        own_descriptors();
        let (to_supervisor, listener) = std::sync::mpsc::channel();
        let theirs = kernel.clone();
        let supervisor = thread::spawn(move || {
            if let Ok(listener) = listener.recv() {
                supervise(&listener, &theirs);
            }
        });
        to_supervisor.send(install()).unwrap();
        let test = thread::spawn(move || test(kernel)).join();
        // The supervisor lives as long as this thread is filtered.
        drop(supervisor);
        test
    });
    if let Err(panic) = ran.unwrap().join().unwrap() {
        std::panic::resume_unwind(panic);
    }
}

/// Has the calls of this thread, and of those that it starts, be asked about at the descriptor that is returned.
fn install() -> OwnedFd {
    use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    let code = |code: u32, k: u32, (jt, jf): (u8, u8)| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // Of `struct seccomp_data`: the number, and the low words of arguments 1 and 2.
    let load = |at: u32| code(BPF_LD | BPF_W | BPF_ABS, at, (0, 0));
    let is = |value: u32, jumps| code(BPF_JMP | BPF_JEQ | BPF_K, value, jumps);
    let end = |what: u32| code(BPF_RET | BPF_K, what, (0, 0));
    let mut filter = [
        load(0),
        is(libc::SYS_ioctl as u32, (0, 3)),
        load(24),
        code(BPF_ALU | BPF_AND | BPF_K, 0xff00, (0, 0)),
        is(TYPE << 8, (4, 3)),
        is(libc::SYS_write as u32, (0, 2)),
        load(32),
        is(MESSAGE, (1, 0)),
        end(libc::SECCOMP_RET_ALLOW),
        end(libc::SECCOMP_RET_USER_NOTIF),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which is as long as it says.
    let listener = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &program,
        )
    };
    let error = std::io::Error::last_os_error();
    assert!(listener >= 0, "seccomp with user notification: {error}");
    // SAFETY: it is new.
    unsafe { OwnedFd::from_raw_fd(listener as i32) }
}

/// Answers until nobody is left who could ask.
fn supervise(listener: &OwnedFd, kernel: &Kernel) {
    loop {
        let mut watched = [PollFd::new(listener, PollFlags::IN)];
        let _ = poll(&mut watched, None);
        let events = watched[0].revents();
        if !events.contains(PollFlags::IN) {
            if events.intersects(PollFlags::HUP | PollFlags::ERR) {
                return;
            }
            continue;
        }
        // SAFETY: all zeros is a value of both, and the kernel wants the first one so.
        let (mut asked, mut answer): (libc::seccomp_notif, libc::seccomp_notif_resp) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        let fd = listener.as_raw_fd();
        // SAFETY: the kernel writes a structure of this type.
        if unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_RECV as _, &mut asked) } < 0 {
            continue;
        }
        answer.id = asked.id;
        match kernel.0.lock().call(&asked.data) {
            Ok(value) => answer.val = value,
            Err(errno) => answer.error = -errno,
        }
        // SAFETY: the kernel reads a structure of this type. Who has asked may be gone.
        unsafe { libc::ioctl(fd, libc::SECCOMP_IOCTL_NOTIF_SEND as _, &answer) };
    }
}

/// Reads what an argument points to.
fn read<T: Copy>(at: u64) -> T {
    // SAFETY: the caller stands still in a call that says so.
    unsafe { std::ptr::read_unaligned(at as *const T) }
}

fn write<T: Copy>(at: u64, value: T) {
    // SAFETY: as for `read`.
    unsafe { std::ptr::write_unaligned(at as *mut T, value) }
}

fn copy(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller has it open as long as it stands still.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    fd.try_clone_to_owned().unwrap()
}

fn signal(event: &OwnedFd) {
    rustix::io::write(event, &1u64.to_ne_bytes()).unwrap();
}

impl Seen {
    fn call(&mut self, asked: &libc::seccomp_data) -> Result<i64, i32> {
        let fd = asked.args[0] as RawFd;
        let known = self.nodes.iter().position(|known| *known == fd);
        let node = known.unwrap_or_else(|| {
            self.nodes.push(fd);
            self.nodes.len() - 1
        });
        let is_message = asked.nr == libc::SYS_write as i32;
        let (number, at) = match is_message {
            // `struct vhost_msg_v2`: type, reserved, then iova, size, address, permission, and which one it is.
            true if read::<u8>(asked.args[1] + 8 + 25) == 3 => (0xf1, asked.args[1]),
            true => (0xf0, asked.args[1]),
            false => (asked.args[1] as u8, asked.args[2]),
        };
        // _IOC_READ: the caller reads.
        let reads = asked.args[1] >> 31 & 1 != 0 && !is_message;
        let name = NAMES.iter().find(|(known, _)| *known == number);
        let name = match (name.map_or("?", |(_, name)| *name), reads) {
            ("FEATURES", true) => "GET_FEATURES",
            ("FEATURES", false) => "SET_FEATURES",
            ("SET_VRING_BASE", true) => "GET_VRING_BASE",
            (name, _) => name,
        };
        let turn = self.count;
        self.count += 1;
        let failed = self.options.fails.filter(|(when, _)| *when == turn);
        let detail = match failed {
            Some((_, errno)) => format!(" fails {errno}"),
            None => self.act(node, name, at),
        };
        self.calls.push(format!("{node} {name}{detail}"));
        match failed {
            Some((_, errno)) => Err(errno),
            None => Ok(if is_message { i64::from(MESSAGE) } else { 0 }),
        }
    }

    /// Does what a call says; returns what of it is worth a look.
    fn act(&mut self, node: usize, name: &str, at: u64) -> String {
        match name {
            "SET_OWNER" => {
                // A node that was opened anew may have the number of one before.
                self.rings.retain(|(of, _), _| *of != node);
                String::new()
            }
            "GET_FEATURES" => answer(at, self.options.features),
            "GET_BACKEND_FEATURES" => answer(at, 0b1110_u64),
            "SET_FEATURES" | "SET_BACKEND_FEATURES" => format!(" {:#x}", read::<u64>(at)),
            "VSOCK_SET_GUEST_CID" => format!(" {}", read::<u64>(at)),
            "VSOCK_SET_RUNNING" => format!(" {}", read::<i32>(at)),
            "SET_MEM_TABLE" => {
                let count = read::<u32>(at);
                let entry = |index: u32| read::<[u64; 3]>(at + 8 + 32 * u64::from(index));
                self.table = (0..count).map(entry).collect();
                format!(" {count}")
            }
            "IOTLB_UPDATE" | "IOTLB_INVALIDATE" => self.remember(name, read(at + 8)),
            _ if name.contains("VRING") && name != "VDPA_GET_VRING_NUM" => {
                self.ring(node, name, at)
            }
            "NET_SET_BACKEND" => {
                let [index, fd] = read::<[i32; 2]>(at);
                let what = if fd < 0 { "none" } else { "an interface" };
                format!(" {index} {what}")
            }
            _ => self.vdpa(name, at),
        }
    }

    fn remember(&mut self, name: &str, piece: [u64; 3]) -> String {
        self.table.retain(|known| known[0] != piece[0]);
        if name == "IOTLB_UPDATE" {
            self.table.push(piece);
        }
        format!(" {:#x}", piece[0])
    }

    fn vdpa(&mut self, name: &str, at: u64) -> String {
        match name {
            "VDPA_GET_DEVICE_ID" => answer(at, self.options.device),
            "VDPA_GET_STATUS" => answer(at, self.status),
            "VDPA_SET_STATUS" => {
                self.status = read(at);
                format!(" {}", self.status)
            }
            "VDPA_GET_VRING_NUM" => answer(at, 64u16),
            "VDPA_GET_CONFIG_SIZE" => answer(at, self.options.config.len() as u32),
            "VDPA_GET_VQS_COUNT" => answer(at, self.options.queues),
            "VDPA_GET_IOVA_RANGE" => answer(at, [0, u64::MAX]),
            "VDPA_SET_CONFIG_CALL" => {
                self.config_call = Some(copy(read(at)));
                String::new()
            }
            "VDPA_GET_CONFIG" | "VDPA_SET_CONFIG" => {
                let [from, len] = read::<[u32; 2]>(at).map(|word| word as usize);
                let ours = &mut self.options.config[from..from + len];
                for (index, byte) in ours.iter_mut().enumerate() {
                    let theirs = at + 8 + index as u64;
                    match name {
                        "VDPA_GET_CONFIG" => write(theirs, *byte),
                        _ => *byte = read(theirs),
                    }
                }
                format!(" {from} + {len}")
            }
            _ => panic!("{name}"),
        }
    }

    fn ring(&mut self, node: usize, name: &str, at: u64) -> String {
        let [index, value] = read::<[u32; 2]>(at);
        let ring = self.rings.entry((node, index)).or_default();
        match name {
            "SET_VRING_NUM" => ring.size = value as u16,
            "SET_VRING_BASE" => {
                (ring.next, ring.used) = (value as u16, value as u16);
            }
            "GET_VRING_BASE" => write(at + 4, u32::from(ring.next)),
            "SET_VRING_ADDR" => {
                let [table, used, available] = read::<[u64; 3]>(at + 8);
                ring.addresses = [table, available, used];
                return format!(" {index}");
            }
            "SET_VRING_KICK" | "SET_VRING_CALL" | "SET_VRING_ERR" => {
                let which = NAMES.iter().find(|(_, known)| *known == name).unwrap().1;
                ring.events.insert(which, copy(value as RawFd));
                return format!(" {index}");
            }
            _ => {}
        }
        let value = if name == "GET_VRING_BASE" {
            ring.next.into()
        } else {
            value
        };
        format!(" {index} {value}")
    }

    /// Where an address of the guest's is in this process; an address that is none of these is one already.
    fn host(&self, at: u64) -> u64 {
        let within = |piece: &&[u64; 3]| (piece[0]..piece[0] + piece[1]).contains(&at);
        self.table
            .iter()
            .find(within)
            .map_or(at, |piece| at - piece[0] + piece[2])
    }

    fn index(&self, ring: &KernelRing, which: usize) -> &'static AtomicU16 {
        // SAFETY: the ring is mapped until it is stopped, and both ends use this atomically.
        unsafe { &*((self.host(ring.addresses[which]) + 2) as *const AtomicU16) }
    }

    /// Tells whether the driver of a node's ring has made so many chains available, ever.
    pub fn index_is(&self, index: u32, count: u16) -> bool {
        let ring = self.rings.get(&(0, index));
        ring.is_some_and(|ring| self.index(ring, 1).load(Ordering::Acquire) == count)
    }

    /// Takes the next chain that is available.
    pub fn take(&mut self, key: (usize, u32)) -> Option<Taken> {
        let ring = self.rings.get(&key)?;
        if self.index(ring, 1).load(Ordering::Acquire) == ring.next {
            return None;
        }
        let slot = u64::from(ring.next % ring.size);
        let head: u16 = read(self.host(ring.addresses[1]) + 4 + 2 * slot);
        let mut buffers = Vec::new();
        let (mut table, mut index) = (self.host(ring.addresses[0]), head);
        loop {
            let at = table + 16 * u64::from(index);
            let (address, len): (u64, u32) = (read(at), read(at + 8));
            let [flags, next] = read::<[u16; 2]>(at + 12);
            if flags & 4 != 0 {
                (table, index) = (self.host(address), 0);
                continue;
            }
            buffers.push((self.host(address), len, flags & 2 != 0));
            if flags & 1 == 0 {
                break;
            }
            index = next;
        }
        self.rings.get_mut(&key).unwrap().next += 1;
        Some((head, buffers))
    }

    /// Gives chains back in one step, each with a number of bytes, and notifies.
    pub fn give(&mut self, key: (usize, u32), used: &[(u16, u32)]) {
        let ring = &self.rings[&key];
        let at = self.host(ring.addresses[2]) + 4;
        let mut next = ring.used;
        for (head, len) in used {
            write(
                at + 8 * u64::from(next % ring.size),
                [u32::from(*head), *len],
            );
            next = next.wrapping_add(1);
        }
        self.index(ring, 2).store(next, Ordering::Release);
        signal(&ring.events["SET_VRING_CALL"]);
        self.rings.get_mut(&key).unwrap().used = next;
    }

    /// Says that it cannot go on with a queue.
    pub fn fault(&self, key: (usize, u32)) {
        signal(&self.rings[&key].events["SET_VRING_ERR"]);
    }

    /// Has another configuration from now on.
    pub fn change_config(&mut self, bytes: &[u8]) {
        self.options.config = bytes.to_vec();
        signal(self.config_call.as_ref().unwrap());
    }

    /// Forgets the calls until now, and returns them.
    pub fn calls(&mut self) -> Vec<String> {
        std::mem::take(&mut self.calls)
    }

    /// Lets go of every descriptor, as a kernel does whose nodes are closed.
    pub fn forget(&mut self) {
        self.rings.clear();
        self.nodes.clear();
        self.config_call = None;
    }
}

/// Writes into a buffer of a chain that was taken.
pub fn fill(buffer: (u64, u32, bool), bytes: &[u8]) {
    assert!(buffer.2 && bytes.len() <= buffer.1 as usize);
    for (index, byte) in bytes.iter().enumerate() {
        write(buffer.0 + index as u64, *byte);
    }
}

fn answer<T: Copy>(at: u64, value: T) -> String {
    write(at, value);
    String::new()
}
