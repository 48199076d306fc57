//! For tests: a disk in memory that fails, or hangs, when it is told to.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::{Buffers, Disk, Extent, Topology, Unmap};

/// The disk.
#[derive(Default)]
pub struct MemoryDisk {
    bytes: Mutex<Vec<u8>>,
    len: AtomicU64,
    read_only: bool,
    error: Mutex<Option<i32>>,
    held: Mutex<bool>,
    released: Condvar,
    flushes: AtomicU64,
}

impl MemoryDisk {
    /// Makes one of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            len: AtomicU64::new(bytes.len() as u64),
            bytes: Mutex::new(bytes),
            ..Self::default()
        }
    }

    /// Makes one that may only be read, and panics if it is changed all the same.
    pub fn read_only(bytes: Vec<u8>) -> Arc<Self> {
        let mut disk = Self::new(bytes);
        disk.read_only = true;
        Arc::new(disk)
    }

    /// Makes one, for a device.
    pub fn shared(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self::new(bytes))
    }

    /// Returns its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().clone()
    }

    /// Makes it another size, which nobody knows of before [`Disk::refresh_len`].
    pub fn resize(&self, len: usize) {
        self.bytes.lock().resize(len, 0);
    }

    /// Has everything fail with this number of the host, or nothing.
    pub fn fail(&self, error: Option<i32>) {
        *self.error.lock() = error;
    }

    /// Has everything wait, until it is called with `false`.
    pub fn hold(&self, held: bool) {
        *self.held.lock() = held;
        self.released.notify_all();
    }

    /// Returns how often it was flushed.
    pub fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::SeqCst)
    }

    fn enter(&self) -> io::Result<()> {
        let mut held = self.held.lock();
        while *held {
            self.released.wait(&mut held);
        }
        match *self.error.lock() {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None => Ok(()),
        }
    }

    /// Acts on a part of it.
    fn part(
        &self,
        offset: u64,
        len: u64,
        act: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        self.enter()?;
        let mut bytes = self.bytes.lock();
        let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let part = bytes.get_mut(offset as usize..end as usize);
        act(part.ok_or(io::ErrorKind::UnexpectedEof)?)
    }
}

impl Disk for MemoryDisk {
    fn len(&self) -> u64 {
        self.len.load(Ordering::SeqCst)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn topology(&self) -> Topology {
        Topology::default()
    }

    fn name(&self) -> String {
        "memory".into()
    }

    fn read(&self, offset: u64, to: &Buffers) -> io::Result<()> {
        self.part(offset, to.len() as u64, |bytes| {
            to.copy_from(0, bytes);
            Ok(())
        })
    }

    fn write(&self, offset: u64, from: &Buffers) -> io::Result<()> {
        assert!(!self.read_only, "a disk that may only be read is written");
        self.part(offset, from.len() as u64, |bytes| {
            from.copy_to(0, bytes);
            Ok(())
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.enter()?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self, extent: Extent) -> io::Result<()> {
        assert!(!self.read_only, "a disk that may only be read is changed");
        self.part(extent.offset, extent.len, |bytes| {
            bytes.fill(0xdd);
            Ok(())
        })
    }

    fn write_zeroes(&self, extent: Extent, unmap: Unmap) -> io::Result<()> {
        assert!(!self.read_only, "a disk that may only be read is changed");
        let _ = unmap;
        self.part(extent.offset, extent.len, |bytes| {
            bytes.fill(0);
            Ok(())
        })
    }

    fn refresh_len(&self) -> io::Result<u64> {
        self.enter()?;
        let len = self.bytes.lock().len() as u64;
        self.len.store(len, Ordering::SeqCst);
        Ok(len)
    }
}
