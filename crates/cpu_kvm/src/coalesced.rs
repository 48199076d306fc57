//! Port writes that wait in KVM's ring (`KVM_REGISTER_COALESCED_MMIO`) until somebody leaves the guest.
//!
//! The ring is one a machine, and every processor's descriptor maps it. Whoever has left the guest
//! empties it before anything else is done, under one lock, so that devices hear all accesses in the
//! order in which they were made. An entry stays in the ring until its device has heard it: whoever finds
//! the ring empty may go on, and everything that was made before has arrived.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use kvm_bindings::{KVM_COALESCED_MMIO_PAGE_OFFSET, kvm_coalesced_mmio};
use kvm_ioctls::{Cap, IoEventAddress};
use parking_lot::Mutex;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use umbra_cpu::{CoalescedPorts, Io};

use crate::kick::{Requests, request};
use crate::vm::Vm;

const PAGE: usize = 0x1000;
/// Behind the two indices.
const ENTRIES: usize = 8;
const COUNT: u32 = ((PAGE - ENTRIES) / size_of::<kvm_coalesced_mmio>()) as u32;

/// The mapped ring: `struct kvm_coalesced_mmio_ring`.
struct Ring {
    start: NonNull<u8>,
    taking: Mutex<()>,
}

// SAFETY: the indices are atomics; entries are read under the lock only, between the indices, where the
// kernel does not write.
unsafe impl Send for Ring {}
// SAFETY: the same.
unsafe impl Sync for Ring {}

impl Ring {
    fn map(vcpu: impl AsFd) -> io::Result<Self> {
        let offset = u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) * PAGE as u64;
        // SAFETY: a new mapping where the kernel finds room.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                vcpu,
                offset,
            )?
        };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self {
            start,
            taking: Mutex::new(()),
        })
    }

    /// Index of the first entry that was not read, and of the one behind the last.
    fn index(&self, which: usize) -> &AtomicU32 {
        // SAFETY: the first two words of the page, aligned; the kernel writes them as wholes.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(4 * which).cast()) }
    }

    fn is_empty(&self) -> bool {
        self.index(0).load(Ordering::Relaxed) == self.index(1).load(Ordering::Acquire)
    }

    /// The next entry, which stays where it is. The caller is the only one who takes.
    fn peek(&self) -> Option<kvm_coalesced_mmio> {
        if self.is_empty() {
            return None;
        }
        let first = self.index(0).load(Ordering::Relaxed) % COUNT;
        let at = ENTRIES + first as usize * size_of::<kvm_coalesced_mmio>();
        // SAFETY: inside the page, aligned to eight; the kernel has written it before `last`, and
        // does not write it again before `first` has passed.
        let entry = unsafe {
            self.start
                .as_ptr()
                .add(at)
                .cast::<kvm_coalesced_mmio>()
                .read()
        };
        Some(entry)
    }

    /// Takes the entry that was looked at.
    fn advance(&self) {
        let first = self.index(0).load(Ordering::Relaxed) % COUNT;
        self.index(0).store((first + 1) % COUNT, Ordering::Release);
    }

    /// Lets devices hear of all that waits.
    fn drain(&self, io: &dyn Io) {
        if self.is_empty() {
            return;
        }
        let _only = self.taking.lock();
        while let Some(entry) = self.peek() {
            let len = (entry.len as usize).min(entry.data.len());
            // Only ports are registered.
            io.port_write(entry.phys_addr as u16, &entry.data[..len]);
            self.advance();
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length, and nobody has a reference any more.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), PAGE) };
    }
}

/// The ring of a machine, and the ports whose writes go there.
pub(crate) struct Coalesced {
    vm: Arc<Vm>,
    ring: OnceLock<(Ring, Arc<Requests>)>,
    ports: AtomicUsize,
}

impl Coalesced {
    pub fn new(vm: Arc<Vm>) -> Self {
        Self {
            vm,
            ring: OnceLock::new(),
            ports: AtomicUsize::new(0),
        }
    }

    /// Tells whether this kernel lets port writes wait.
    pub fn is_offered(&self) -> bool {
        self.vm.fd().check_extension_int(Cap::CoalescedPio) > 0
    }

    /// Maps the ring by the first processor, which is also the one that is nudged.
    pub fn map(&self, vcpu: impl AsFd, requests: Arc<Requests>) -> io::Result<()> {
        let ring = Ring::map(vcpu)?;
        // Processor 0 is made once.
        let _ = self.ring.set((ring, requests));
        Ok(())
    }

    /// Lets devices hear of all writes that wait. One load where there are none.
    pub fn drain(&self, io: &dyn Io) {
        if let Some((ring, _)) = self.ring.get() {
            ring.drain(io);
        }
    }
}

impl CoalescedPorts for Coalesced {
    fn add(&self, port: u16) -> io::Result<()> {
        let at = IoEventAddress::Pio(port.into());
        self.vm.fd().register_coalesced_mmio(at, 1)?;
        self.ports.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn remove(&self, port: u16) {
        let at = IoEventAddress::Pio(port.into());
        match self.vm.fd().unregister_coalesced_mmio(at, 1) {
            Ok(()) => drop(self.ports.fetch_sub(1, Ordering::Relaxed)),
            Err(error) => tracing::error!(port, %error, "KVM lets port writes wait for ever"),
        }
    }

    fn is_active(&self) -> bool {
        self.ports.load(Ordering::Relaxed) != 0
    }

    fn nudge(&self) {
        if let Some((ring, requests)) = self.ring.get()
            && !ring.is_empty()
        {
            requests.ask(request::LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use umbra_cpu::Served;
    use umbra_slots::Gpa;

    use super::*;

    /// A ring in a file, with writes of one byte to port 0x3f8 in it.
    fn ring(bytes: &[u8]) -> Ring {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
        let pages = u64::from(KVM_COALESCED_MMIO_PAGE_OFFSET) + 1;
        let file = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, pages * PAGE as u64).unwrap();
        let start = (pages - 1) * PAGE as u64;
        rustix::io::pwrite(&file, &(bytes.len() as u32).to_le_bytes(), start + 4).unwrap();
        for (i, byte) in bytes.iter().enumerate() {
            // Address, length, whether it is a port, eight bytes of data.
            let entry = [
                &0x3f8u64.to_le_bytes()[..],
                &[1, 0, 0, 0, 1, 0, 0, 0, *byte],
            ]
            .concat();
            let at = ENTRIES + i * size_of::<kvm_coalesced_mmio>();
            rustix::io::pwrite(&file, &entry, start + at as u64).unwrap();
        }
        Ring::map(&file).unwrap()
    }

    /// Hears writes, and how many were in the ring meanwhile.
    struct Ear<'a> {
        ring: &'a Ring,
        heard: Mutex<Vec<(u16, u8, bool)>>,
    }

    impl Io for Ear<'_> {
        fn port_read(&self, _: u16, _: &mut [u8]) {}

        fn port_write(&self, port: u16, data: &[u8]) {
            let heard = (port, data[0], self.ring.is_empty());
            self.heard.lock().push(heard);
        }

        fn mmio_read(&self, _: Gpa, _: &mut [u8]) -> Served {
            Served::Done
        }

        fn mmio_write(&self, _: Gpa, _: &[u8]) -> Served {
            Served::Done
        }
    }

    #[test]
    fn the_ring_is_empty_only_when_devices_have_heard_all() {
        let ring = ring(b"ab");
        let ear = Ear {
            ring: &ring,
            heard: Mutex::default(),
        };
        ring.drain(&ear);
        assert!(ring.is_empty());
        // Another processor may find the ring empty, and go on to the same port.
        let wanted = [(0x3f8, b'a', false), (0x3f8, b'b', false)];
        assert_eq!(*ear.heard.lock(), wanted);
    }

    #[test]
    fn the_indices_go_round() {
        let ring = ring(&[b'x'; COUNT as usize]);
        ring.index(0).store(COUNT - 2, Ordering::Relaxed);
        ring.index(1).store(1, Ordering::Relaxed);
        let ear = Ear {
            ring: &ring,
            heard: Mutex::default(),
        };
        ring.drain(&ear);
        assert_eq!(ear.heard.lock().len(), 3);
        assert_eq!(ring.index(0).load(Ordering::Relaxed), 1);
    }
}
