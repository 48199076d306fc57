//! Vectors that are masked in all the ways there are (PCI Local Bus 3.0, 6.8.2 and 6.8.3).

use super::*;
use crate::{COMMAND, Identity};

#[derive(Default)]
struct Sent(Mutex<Vec<Msi>>);

impl MsiTarget for Sent {
    fn send(&self, msi: Msi) {
        self.0.lock().push(msi);
    }
}

impl Sent {
    fn take(&self) -> Vec<u32> {
        self.0.lock().drain(..).map(|msi| msi.data).collect()
    }
}

struct Bench {
    config: ConfigSpace,
    msix: Msix,
    sent: Arc<Sent>,
}

impl Bench {
    fn new(vectors: u16) -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 1,
            device: 2,
            revision: 0,
            class: 0,
            subsystem: (0, 0),
        });
        let sent = Arc::new(Sent::default());
        let place = (2, 0x4000, 0x8000);
        let msix = Msix::new(&mut config, vectors, place, sent.clone()).unwrap();
        Self { config, msix, sent }
    }

    fn control(&mut self, bits: u16) {
        self.config.write(0x42, &bits.to_le_bytes());
        self.msix.follow(&self.config);
    }

    fn command(&mut self, bits: u16) {
        self.config.write(COMMAND, &bits.to_le_bytes());
        self.msix.follow(&self.config);
    }

    /// Address, data and mask of a vector.
    fn set(&self, vector: u64, data: u32, control: u32) {
        for (word, value) in (0..).zip([0xfee0_0000, 0, data, control]) {
            let at = 16 * vector + 4 * word;
            self.msix.write_table(at, &u32::to_le_bytes(value));
        }
    }

    fn pending(&self) -> u64 {
        let mut bits = [0; 8];
        self.msix.read_pending(0, &mut bits);
        u64::from_le_bytes(bits)
    }
}

#[test]
fn the_capability_says_where_table_and_pending_bits_are() {
    let mut bench = Bench::new(3);
    let words = [0x40, 0x44, 0x48].map(|at| bench.config.double_word(at));
    assert_eq!(words, [0x0002_0011, 0x4002, 0x8002]);
    bench.control(0xffff);
    assert_eq!(bench.config.word(0x42), 0xc002);
}

#[test]
fn a_message_is_sent_when_nothing_masks_it() {
    let mut bench = Bench::new(2);
    bench.msix.raise(1);
    assert_eq!(
        (bench.sent.take(), bench.pending()),
        (vec![], 0),
        "disabled"
    );
    bench.command(BUS_MASTER);
    bench.control(ENABLE);
    bench.set(1, 0x31, 0);
    bench.msix.raise(1);
    bench.msix.raise(2);
    let msi = Msi {
        address: 0xfee0_0000,
        data: 0x31,
    };
    assert_eq!(*bench.sent.0.lock(), [msi]);
}

#[test]
fn what_is_pending_is_sent_once_when_the_last_mask_goes() {
    type Mask = fn(&mut Bench, bool);
    let masks: [(&str, Mask); 3] = [
        ("vector", |b, on| b.set(0, 7, on.into())),
        ("function", |b, on| {
            b.control(if on { ENABLE | FUNCTION_MASK } else { ENABLE });
        }),
        ("no bus master", |b, on| {
            b.command(if on { 0 } else { BUS_MASTER })
        }),
    ];
    for (name, mask) in masks {
        let mut bench = Bench::new(1);
        bench.command(BUS_MASTER);
        bench.control(ENABLE);
        bench.set(0, 7, 0);
        mask(&mut bench, true);
        bench.msix.raise(0);
        bench.msix.raise(0);
        assert_eq!((bench.sent.take(), bench.pending()), (vec![], 1), "{name}");
        mask(&mut bench, false);
        assert_eq!((bench.sent.take(), bench.pending()), (vec![7], 0), "{name}");
    }
}

#[test]
fn a_pending_message_can_be_withdrawn() {
    let mut bench = Bench::new(1);
    bench.command(BUS_MASTER);
    bench.control(ENABLE);
    bench.msix.raise(0);
    bench.msix.withdraw(0);
    bench.set(0, 7, 0);
    assert!(bench.sent.take().is_empty());
}

#[test]
fn the_table_takes_aligned_accesses_of_4_and_8_bytes() {
    let bench = Bench::new(1);
    bench.msix.write_table(0, &[0xff; 8]);
    bench.msix.write_table(8, &[0xff; 8]);
    for (offset, len) in [
        (0, 1),
        (0, 2),
        (2, 4),
        (4, 8),
        (0, 3),
        (16, 4),
        (u64::MAX - 7, 8),
    ] {
        bench.msix.write_table(offset, &vec![0; len]);
        let mut data = vec![0; len];
        bench.msix.read_table(offset, &mut data);
        assert_eq!(data, vec![0xff; len], "{len} bytes at {offset:#x}");
    }
    let mut entry = [0; 16];
    let (first, second) = entry.split_at_mut(8);
    bench.msix.read_table(0, first);
    bench.msix.read_table(8, second);
    let mut expected = [0xff; 16];
    expected[0] = 0xfc;
    expected[12..].copy_from_slice(&[1, 0, 0, 0]);
    assert_eq!(entry, expected);
}

#[test]
fn pending_bits_of_many_vectors() {
    let mut bench = Bench::new(70);
    bench.control(ENABLE);
    for vector in [0, 9, 69, 70] {
        bench.msix.raise(vector);
    }
    let mut bits = [0xaa; 10];
    bench.msix.read_pending(0, &mut bits);
    assert_eq!(bits, [1, 2, 0, 0, 0, 0, 0, 0, 0x20, 0]);
    bench.msix.read_pending(u64::MAX, &mut bits);
    assert_eq!(bits, [0; 10]);
}
