//! A node of the kernel's: the calls that vhost-net and vhost-vsock share (Linux, `include/uapi/linux/vhost.h`).
//!
//! ```text
//!   open     SET_OWNER, GET_FEATURES
//!   begin    SET_FEATURES, SET_MEM_TABLE
//!            for each ring SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ADDR, SET_VRING_KICK, SET_VRING_CALL,
//!            SET_VRING_ERR
//!            then what lets the device work: NET_SET_BACKEND for each ring, or VSOCK_SET_RUNNING
//!   change   SET_MEM_TABLE
//!   end      the device's call again, GET_VRING_BASE for each ring
//! ```
//! Nothing but the owner's process can make a call, and a ring is not changed while the device works on it.
//!
//! The `vhost` crate makes these calls. It wants rings to be in guest memory, which ours are not, and opens nodes at
//! fixed places; so the calls in which that matters are here, with its numbers and structures. Unsafe for them.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use umbra_virtio::Features;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{
    VHOST_NET_SET_BACKEND, VHOST_SET_VRING_ADDR, VHOST_VSOCK_SET_GUEST_CID,
    VHOST_VSOCK_SET_RUNNING, vhost_vring_addr, vhost_vring_file,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::ioctl::ioctl_with_ref;

use crate::BackEndError;
use crate::channel::eventfd;
use crate::link::Started;
use crate::table::Piece;

/// Pieces in a table if the module does not say; and what the `vhost` crate takes.
const PIECES: usize = 64;
const PIECES_MAX: usize = 255;
const PIECES_PARAMETER: &str = "/sys/module/vhost/parameters/max_mem_regions";

/// Which module makes a node, and what can be done without it.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The module.
    pub module: &'static str,
    /// The way out, as the end of "load the module, or ...".
    pub instead: &'static str,
}

/// An open node. The kernel lets go of everything when it is dropped.
#[derive(Debug)]
pub struct Node {
    file: File,
    path: PathBuf,
    /// What the `vhost` crate would look rings up in.
    nothing: Arc<GuestMemoryMmap<()>>,
}

impl Node {
    /// Opens one, and makes it this process's.
    ///
    /// # Errors
    /// If it is not there, or not for this process.
    pub fn open(path: &Path, origin: Origin) -> Result<Self, BackEndError> {
        let file = open(path, origin)?;
        let node = Self {
            file,
            path: path.to_owned(),
            nothing: nothing(),
        };
        node.call("SET_OWNER", node.set_owner())?;
        Ok(node)
    }

    /// Returns what it offers.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn features(&self) -> Result<Features, BackEndError> {
        let features = self.call("GET_FEATURES", self.get_features())?;
        Ok(Features::from_low(features))
    }

    /// Says what was accepted.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn accept(&self, features: Features) -> Result<(), BackEndError> {
        self.call("SET_FEATURES", self.set_features(features.low()))
    }

    /// Replaces the table of memory. When this returns, nothing uses the old one.
    ///
    /// # Errors
    /// If the kernel refuses; then it has the old table.
    pub fn set_table(&self, pieces: &[Piece]) -> Result<(), BackEndError> {
        let regions: Vec<_> = pieces.iter().map(region).collect();
        let set = self.set_mem_table(&regions);
        set.map(drop).map_err(|error| BackEndError::Memory {
            node: self.path.clone(),
            pieces: pieces.len(),
            source: cause(error),
        })
    }

    /// Says where a ring is, and by what it notifies; `index` is its number on this node.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_ring(&self, index: usize, ring: &Started) -> Result<(), BackEndError> {
        let place = &ring.place;
        let [kick, call, fault] = [&ring.kick, &ring.call, &ring.fault].map(|event| eventfd(event));
        let (kick, call, fault) = (kick?, call?, fault?);
        self.call("SET_VRING_NUM", self.set_vring_num(index, place.size))?;
        self.call("SET_VRING_BASE", self.set_vring_base(index, place.base))?;
        self.set_addresses(index, place.host)?;
        self.call("SET_VRING_KICK", self.set_vring_kick(index, &kick))?;
        self.call("SET_VRING_CALL", self.set_vring_call(index, &call))?;
        self.call("SET_VRING_ERR", self.set_vring_err(index, &fault))
    }

    fn set_addresses(&self, index: usize, host: [u64; 3]) -> Result<(), BackEndError> {
        let [desc_user_addr, avail_user_addr, used_user_addr] = host;
        let place = vhost_vring_addr {
            index: index as u32,
            flags: 0,
            desc_user_addr,
            used_user_addr,
            avail_user_addr,
            log_guest_addr: 0,
        };
        // SAFETY: the kernel reads a structure of this type. The rings stay mapped as long as it works on them: who
        // starts them holds their memory until they are stopped or the node is closed.
        let set = unsafe { ioctl_with_ref(self, VHOST_SET_VRING_ADDR(), &place) };
        self.check("SET_VRING_ADDR", set)
    }

    /// Returns where a ring that stands still has come to.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn base(&self, index: usize) -> Result<u16, BackEndError> {
        let base = self.call("GET_VRING_BASE", self.get_vring_base(index))?;
        // Of a split ring it is an index of 16 bits.
        Ok(base as u16)
    }

    /// Connects a ring to a queue of an interface, or to none. Nothing works on it afterwards.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn connect(&self, index: usize, tap: Option<BorrowedFd<'_>>) -> Result<(), BackEndError> {
        let what = vhost_vring_file {
            index: index as u32,
            fd: tap.map_or(-1, |tap| tap.as_raw_fd()),
        };
        // SAFETY: the kernel reads a structure of this type, and takes a reference of its own of the file.
        let set = unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &what) };
        self.check("NET_SET_BACKEND", set)
    }

    /// Takes a context identifier for the guest.
    ///
    /// # Errors
    /// If it is another guest's, or none that a guest can have.
    pub fn set_cid(&self, cid: u64) -> Result<(), BackEndError> {
        // SAFETY: the kernel reads one number of 64 bits.
        let set = unsafe { ioctl_with_ref(self, VHOST_VSOCK_SET_GUEST_CID(), &cid) };
        match self.check("VSOCK_SET_GUEST_CID", set) {
            Err(BackEndError::Call { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {
                Err(BackEndError::CidInUse { cid })
            }
            result => result,
        }
    }

    /// Lets connections work, or has them stand still.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_running(&self, on: i32) -> Result<(), BackEndError> {
        // SAFETY: the kernel reads one number of 32 bits.
        let set = unsafe { ioctl_with_ref(self, VHOST_VSOCK_SET_RUNNING(), &on) };
        self.check("VSOCK_SET_RUNNING", set)
    }

    fn call<T>(&self, call: &'static str, done: vhost::Result<T>) -> Result<T, BackEndError> {
        done.map_err(|error| refused(&self.path, call, cause(error)))
    }

    fn check(&self, call: &'static str, result: i32) -> Result<(), BackEndError> {
        match result {
            0.. => Ok(()),
            _ => Err(refused(&self.path, call, io::Error::last_os_error())),
        }
    }
}

impl AsRawFd for Node {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl VhostKernBackend for Node {
    type AS = Arc<GuestMemoryMmap<()>>;

    fn mem(&self) -> &Self::AS {
        &self.nothing
    }

    /// Rings are ours, and made as they should be.
    fn is_valid(&self, _: &VringConfigData) -> bool {
        true
    }
}

/// Opens a node.
///
/// # Errors
/// If it is not there, not for this process, or somebody else has it.
pub fn open(path: &Path, origin: Origin) -> Result<File, BackEndError> {
    use std::os::unix::fs::OpenOptionsExt;
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(nonblocking);
    let path = path.to_owned();
    options.open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::ResourceBusy => BackEndError::NodeInUse { path },
        _ => BackEndError::Node {
            path,
            module: origin.module,
            instead: origin.instead,
            source,
        },
    })
}

/// Memory of which there is none.
pub fn nothing() -> Arc<GuestMemoryMmap<()>> {
    Arc::new(GuestMemoryMmap::new())
}

/// Pieces of memory that a table has at most.
pub fn pieces_max() -> usize {
    let said = std::fs::read_to_string(PIECES_PARAMETER).ok();
    let said = said.and_then(|text| text.trim().parse().ok());
    said.unwrap_or(PIECES).min(PIECES_MAX)
}

/// A call that the kernel has refused.
pub fn refused(node: &Path, call: &'static str, source: io::Error) -> BackEndError {
    let node = node.to_owned();
    BackEndError::Call { call, node, source }
}

/// What the host said, of an error of the `vhost` crate's.
pub fn cause(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::IoctlError(error) | vhost::Error::IOError(error) => error,
        other => io::Error::other(other.to_string()),
    }
}

fn region(piece: &Piece) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: piece.start(),
        memory_size: piece.len(),
        userspace_addr: piece.host_addr(),
        mmap_offset: 0,
        mmap_handle: -1,
    }
}
