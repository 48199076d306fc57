//! The other end is `virtio-queue`, which devices use.

use super::*;
use proptest::prelude::*;
use umbra_slots::Gpa;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// The device's end: the same memory, where a back end has it.
struct Device {
    queue: Queue,
    memory: GuestMemoryMmap,
}

impl Device {
    fn of(ring: &Ring) -> Self {
        let file = FileOffset::new(ring.memory.file.try_clone().unwrap(), 0);
        let map = MmapRegion::from_file(file, ring.memory.map.size()).unwrap();
        let region = GuestRegionMmap::new(map, GuestAddress(RINGS_AT)).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
        let place = ring.place();
        let mut queue = Queue::new(place.size).unwrap();
        let [table, available, used] = place.addresses.map(GuestAddress);
        queue.try_set_desc_table_address(table).unwrap();
        queue.try_set_avail_ring_address(available).unwrap();
        queue.try_set_used_ring_address(used).unwrap();
        queue.set_event_idx(ring.features.event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        Self { queue, memory }
    }

    /// Takes what there is: heads with their buffers.
    fn take(&mut self) -> Vec<(u16, Vec<ChainBuffer>)> {
        let chains = self.queue.iter(&self.memory).unwrap();
        chains
            .map(|chain| {
                let head = chain.head_index();
                let buffers = chain.map(|d| buffer(d.addr().0, d.len(), d.is_write_only()));
                (head, buffers.collect())
            })
            .collect()
    }

    fn give(&mut self, head: u16, written: u32) -> bool {
        self.queue.add_used(&self.memory, head, written).unwrap();
        self.queue.needs_notification(&self.memory).unwrap()
    }
}

fn buffer(at: u64, len: u32, is_writable: bool) -> ChainBuffer {
    ChainBuffer {
        at: Gpa(at),
        len,
        is_writable,
    }
}

fn pair(size: u16, features: RingFeatures) -> (Ring, Device) {
    let memory = RingMemory::new(&[4, size], RINGS_AT).unwrap();
    let ring = Ring::new(&memory, 1, features);
    let device = Device::of(&ring);
    (ring, device)
}

const fn features(indirect: bool, event_idx: bool) -> RingFeatures {
    RingFeatures {
        indirect,
        event_idx,
    }
}

const ALL: [RingFeatures; 4] = [
    features(false, false),
    features(false, true),
    features(true, false),
    features(true, true),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// What is lent arrives as it is, comes back once, in any order, and whoever waits is told.
    #[test]
    fn chains_go_and_come_back(
        features in 0..4usize,
        steps in proptest::collection::vec((0..3u8, 1..9usize, any::<u32>()), 1..300),
    ) {
        let (mut ring, mut device) = pair(8, ALL[features]);
        let mut lent: Vec<Option<Vec<ChainBuffer>>> = Vec::new();
        let (mut kicked, mut called) = (false, false);
        let mut held = Vec::new();
        for (what, count, number) in steps {
            match what {
                0 => {
                    let buffers: Vec<_> = (0..count)
                        .map(|at| buffer(u64::from(number) << at, (number >> at) & 0xfff_ffff, at > 2))
                        .collect();
                    if ring.lend(lent.len(), &buffers) {
                        lent.push(Some(buffers));
                    }
                    kicked |= ring.publish();
                }
                1 => {
                    // A device that sleeps, and was not woken, has nothing to find.
                    let taken = device.take();
                    prop_assert!(kicked || taken.is_empty());
                    kicked = device.queue.enable_notification(&device.memory).unwrap();
                    held.extend(taken);
                }
                _ => {
                    for (head, buffers) in held.drain(..).rev() {
                        let total: u32 = buffers.iter().fold(0, |sum, b| sum.wrapping_add(b.len));
                        called |= device.give(head, total);
                    }
                    let mut back = Vec::new();
                    while let Some((token, written)) = ring.take_back().unwrap() {
                        back.push((token, written));
                    }
                    prop_assert!(called || back.is_empty());
                    called = ring.expect(true);
                    for (token, written) in back {
                        let buffers = lent[token].take().unwrap();
                        let total = buffers.iter().fold(0u32, |sum, b| sum.wrapping_add(b.len));
                        prop_assert_eq!(written, total);
                    }
                }
            }
            for (_, buffers) in &held {
                prop_assert!(lent.iter().flatten().any(|known| known == buffers));
            }
            let out = lent.iter().flatten().count();
            prop_assert_eq!(usize::from(ring.count), out);
        }
    }
}

#[test]
fn a_full_queue_takes_no_more_until_something_comes_back() {
    for (features, room) in [(ALL[0], 2), (ALL[2], 8)] {
        let (mut ring, mut device) = pair(8, features);
        let chain = [buffer(0x1000, 1, false); 4];
        let taken = (0..9).filter(|token| ring.lend(*token, &chain)).count();
        assert_eq!(taken, room);
        assert!(ring.publish());
        let (head, _) = device.take()[0];
        device.give(head, 0);
        assert!(ring.take_back().unwrap().is_some());
        assert!(ring.lend(9, &chain));
    }
}

#[test]
fn a_device_that_uses_what_it_was_not_lent_has_broken_the_queue() {
    let lent = || {
        let (mut ring, device) = pair(8, ALL[3]);
        for token in 0..2 {
            assert!(ring.lend(token, &[buffer(0x1000, 16, true)]));
        }
        ring.publish();
        (ring, device)
    };
    let (mut ring, mut device) = lent();
    let heads: Vec<_> = device.take().iter().map(|(head, _)| *head).collect();
    device.give(heads[0], 0);
    assert!(ring.take_back().unwrap().is_some());
    device.give(heads[0], 0);
    let twice = RingError::NotLent(heads[0].into());
    assert_eq!(ring.take_back(), Err(twice));

    let used_at = |ring: &Ring| ring.place.used;
    for (id, index, expected) in [
        (7, 1, RingError::NotLent(7)),
        (8, 1, RingError::NotLent(8)),
        (0x1_0000, 1, RingError::NotLent(0x1_0000)),
        (u32::MAX, 1, RingError::NotLent(u32::MAX)),
        (0, 3, RingError::Index { by: 3, lent: 2 }),
        (
            0,
            0xffff,
            RingError::Index {
                by: 0xffff,
                lent: 2,
            },
        ),
    ] {
        let (mut ring, _device) = lent();
        let at = used_at(&ring);
        ring.slice().write_obj(id, at + 4).unwrap();
        ring.slice().write_obj::<u16>(index, at + 2).unwrap();
        assert_eq!(ring.take_back(), Err(expected));
    }
}

#[test]
fn a_back_end_cannot_make_the_rings_shorter() {
    let memory = RingMemory::new(&[8], RINGS_AT).unwrap();
    assert!(memory.file.set_len(0).is_err());
    assert!(memory.file.set_len(1 << 30).is_err());
}
