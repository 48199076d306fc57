//! The disks: in memory, which may only be read or not; and a file, which the host's io_uring serves.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use umbra_block::testing::MemoryDisk;
use umbra_block::{Disk, DiskOptions, open};
use umbra_devices::virtio::{Block, BlockControl, BlockOptions};
use umbra_fuzz::Source;

/// Bytes of each.
pub const LEN: usize = 64 * 512;

/// What is checked at the end.
pub enum Check {
    /// It has its size, or that which it was given.
    Memory(Arc<MemoryDisk>),
    /// It has all of its bytes.
    ReadOnly(Arc<MemoryDisk>),
    /// The file has its length.
    File(std::fs::File),
}

fn bytes() -> Vec<u8> {
    (0..LEN).map(|at| (at >> 9) as u8).collect()
}

/// A file in memory, and the disk of it.
fn file() -> (Arc<dyn Disk>, Check) {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("disk", flags).expect("the host has memory");
    let file = std::fs::File::from(file);
    file.set_len(LEN as u64).expect("the host has memory");
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let disk = open(&path, &DiskOptions::default()).expect("nobody else has it");
    (disk, Check::File(file))
}

/// Makes a device with one of them.
pub fn device(source: &mut Source<'_>) -> (Block, BlockControl, Check) {
    let (disk, check): (Arc<dyn Disk>, Check) = match source.below(3) {
        0 => file(),
        1 => {
            let disk = MemoryDisk::read_only(bytes());
            (disk.clone(), Check::ReadOnly(disk))
        }
        _ => {
            let disk = MemoryDisk::shared(bytes());
            (disk.clone(), Check::Memory(disk))
        }
    };
    let options = BlockOptions {
        serial: "fuzz".into(),
        ..BlockOptions::default()
    };
    let device = Block::new(disk, options).expect("the options are good");
    let control = device.control();
    (device, control, check)
}

impl Check {
    /// Makes the disk smaller or larger, if it is one that can be.
    pub fn resize(&self, sectors: usize) {
        if let Self::Memory(disk) = self {
            disk.resize(sectors * 512);
        }
    }

    /// Has the host fail, or work again.
    pub fn fail(&self, error: Option<i32>) {
        match self {
            Self::Memory(disk) | Self::ReadOnly(disk) => disk.fail(error),
            Self::File(_) => {}
        }
    }

    /// The device has stopped.
    pub fn check(&self) {
        match self {
            Self::Memory(_) => {}
            Self::ReadOnly(disk) => assert!(disk.bytes() == bytes(), "it was written"),
            Self::File(file) => {
                let len = file.metadata().expect("it is open").len();
                assert_eq!(len, LEN as u64, "it has another length");
            }
        }
    }
}
