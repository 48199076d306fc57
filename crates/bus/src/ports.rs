//! Devices behind the 65,536 ports.

use std::sync::Arc;

use umbra_sync::atomic::{AtomicU64, Ordering};
use umbra_sync::{Mutex, Swap};
use vm_device::bus::PioAddress;

use crate::PioDevice;
use crate::gate::{Gate, Removed};
use crate::split::next_transfer;

/// Why a device cannot be put at ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortsError {
    /// No ports, or ports beyond the last.
    #[error("{len} ports from {first:#x} are no range of ports")]
    BadRange {
        /// First port.
        first: u16,
        /// Number of ports.
        len: u16,
    },
    /// Another device is there.
    #[error("{len} ports from {first:#x} overlap those of the device at {taken:#x}")]
    Overlap {
        /// First port.
        first: u16,
        /// Number of ports.
        len: u16,
        /// First port of the device that is there.
        taken: u16,
    },
}

#[derive(Clone)]
struct Range {
    first: u16,
    last: u16,
    device: PioDevice,
    gate: Arc<Gate>,
}

/// Devices by port. Read without a lock, replaced whole.
#[derive(Default)]
pub struct Ports {
    /// Sorted, without overlap.
    ranges: Swap<Vec<Range>>,
    writer: Mutex<()>,
    misses: AtomicU64,
}

impl Ports {
    /// Makes an empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `len` ports from `first`. One device may be at several ranges.
    ///
    /// # Errors
    ///
    /// If the range is empty, reaches beyond the last port, or is taken; nothing has changed then.
    pub fn insert(&self, first: u16, len: u16, device: PioDevice) -> Result<(), PortsError> {
        let bad = PortsError::BadRange { first, len };
        let last = len
            .checked_sub(1)
            .and_then(|n| first.checked_add(n))
            .ok_or(bad)?;
        let _writer = self.writer.lock();
        let mut ranges = Vec::clone(&self.ranges.load());
        if let Some(other) = ranges.iter().find(|r| r.first <= last && first <= r.last) {
            return Err(PortsError::Overlap {
                first,
                len,
                taken: other.first,
            });
        }
        let at = ranges.partition_point(|r| r.first < first);
        ranges.insert(
            at,
            Range {
                first,
                last,
                device,
                gate: Arc::new(Gate::new()),
            },
        );
        self.ranges.store(Arc::new(ranges));
        Ok(())
    }

    /// Takes out the device whose range begins at `first`. `None` if there is none.
    ///
    /// No call that begins after this returned reaches it through these ports; one that began
    /// before may still be inside until [`Removed::wait`] returns.
    pub fn remove(&self, first: u16) -> Option<Removed<PioDevice>> {
        let _writer = self.writer.lock();
        let mut ranges = Vec::clone(&self.ranges.load());
        let at = ranges.iter().position(|r| r.first == first)?;
        let Range { device, gate, .. } = ranges.remove(at);
        self.ranges.store(Arc::new(ranges));
        gate.close();
        Some(Removed { device, gate })
    }

    /// Reads `data.len()` bytes from `port`. An access across the end of a device is split there;
    /// what hits nothing, also beyond the last port, reads as all ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        let ranges = self.ranges.load();
        let mut done = 0;
        while done < data.len() {
            let at = usize::from(port) + done;
            let (range, len) = piece(&ranges, at, data.len() - done, done == 0);
            let part = &mut data[done..done + len];
            match range.and_then(|r| Some((r, r.gate.enter()?))) {
                Some((r, _inside)) => {
                    let base = PioAddress(r.first);
                    r.device.pio_read(base, at as u16 - r.first, part);
                }
                None => {
                    part.fill(0xff);
                    self.miss(at, len);
                }
            }
            done += len;
        }
    }

    /// Writes `data` to `port`, split as [`Ports::read`] is.
    pub fn write(&self, port: u16, data: &[u8]) {
        let ranges = self.ranges.load();
        let mut done = 0;
        while done < data.len() {
            let at = usize::from(port) + done;
            let (range, len) = piece(&ranges, at, data.len() - done, done == 0);
            match range.and_then(|r| Some((r, r.gate.enter()?))) {
                Some((r, _inside)) => {
                    let part = &data[done..done + len];
                    let base = PioAddress(r.first);
                    r.device.pio_write(base, at as u16 - r.first, part);
                }
                None => self.miss(at, len),
            }
            done += len;
        }
    }

    /// Returns how many accesses hit nothing.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    fn miss(&self, port: usize, len: usize) {
        self.misses.fetch_add(1, Ordering::Relaxed);
        tracing::trace!(port = format_args!("{port:#x}"), len, "no device here");
    }
}

/// Who answers at port `at`, and how many of `left` bytes go there at once.
fn piece(ranges: &[Range], at: usize, left: usize, whole: bool) -> (Option<&Range>, usize) {
    let after = ranges.partition_point(|r| usize::from(r.first) <= at);
    let before = after.checked_sub(1).map(|i| &ranges[i]);
    let range = before.filter(|r| at <= usize::from(r.last));
    let room = match (range, ranges.get(after)) {
        (Some(r), _) => usize::from(r.last) - at + 1,
        (None, Some(next)) => usize::from(next.first) - at,
        (None, None) => usize::MAX,
    };
    (range, next_transfer(at as u64, left, room as u64, whole))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_device::DevicePio;
    use vm_device::bus::PioAddressOffset;

    /// Remembers its accesses; reads as the port's low byte.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u16, usize)>>);

    impl DevicePio for Recorder {
        fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
            self.0.lock().push((base.0 + offset, data.len()));
            data.iter_mut()
                .zip(base.0 + offset..=u16::MAX)
                .for_each(|(byte, at)| *byte = at as u8);
        }

        fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
            self.0.lock().push((base.0 + offset, data.len()));
        }
    }

    fn read(ports: &Ports, port: u16, len: usize) -> Vec<u8> {
        let mut data = vec![0xaa; len];
        ports.read(port, &mut data);
        data
    }

    #[test]
    fn a_wide_access_inside_a_device_goes_through_whole() {
        let (ports, device) = (Ports::new(), Arc::new(Recorder::default()));
        ports.insert(0x40, 4, device.clone()).unwrap();
        ports.write(0x41, &[1, 2]);
        assert_eq!(*device.0.lock(), [(0x41, 2)]);
    }

    #[test]
    fn an_access_across_the_end_of_a_device_is_split() {
        let (ports, device) = (Ports::new(), Arc::new(Recorder::default()));
        ports.insert(0x70, 2, device.clone()).unwrap();
        assert_eq!(read(&ports, 0x70, 4), [0x70, 0x71, 0xff, 0xff]);
        assert_eq!(read(&ports, 0x6f, 4), [0xff, 0x70, 0x71, 0xff]);
        assert_eq!(ports.misses(), 3);
    }

    #[test]
    fn the_last_port_does_not_wrap() {
        let (ports, device) = (Ports::new(), Arc::new(Recorder::default()));
        ports.insert(0, 1, device.clone()).unwrap();
        ports.insert(0xffff, 1, device.clone()).unwrap();
        assert_eq!(read(&ports, 0xffff, 2), [0xff, 0xff]);
        assert_eq!(*device.0.lock(), [(0xffff, 1)]);
    }

    #[test]
    fn ranges_must_be_ranges_and_free() {
        let (ports, device) = (Ports::new(), Arc::new(Recorder::default()));
        ports.insert(0x3f8, 8, device.clone()).unwrap();
        let refused = |first, len| ports.insert(first, len, device.clone()).unwrap_err();
        assert_eq!(
            refused(0x3ff, 1),
            PortsError::Overlap {
                first: 0x3ff,
                len: 1,
                taken: 0x3f8
            }
        );
        assert_eq!(
            refused(0x10, 0),
            PortsError::BadRange {
                first: 0x10,
                len: 0
            }
        );
        assert_eq!(
            refused(0xffff, 2),
            PortsError::BadRange {
                first: 0xffff,
                len: 2
            }
        );
        assert!(ports.remove(0x3f8).is_some() && ports.remove(0x3f8).is_none());
        assert_eq!(read(&ports, 0x3f8, 1), [0xff]);
    }
}
