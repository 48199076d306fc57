//! Any chain at all.

use super::*;
use proptest::prelude::*;
use umbra_slots::{HugePages, RamOptions, RamRegion};

fn place() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(HEADER),
        Just(STATUS),
        DATA..DATA + 0x1000,
        RAM - 600..RAM + 10,
        Just(ROM),
        any::<u64>(),
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![0..20u32, Just(512), Just(1024), 0..5000u32, any::<u32>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// It is answered or needs a reset, the disk keeps its size, and it works afterwards.
    #[test]
    fn any_chain_leaves_a_device_that_works(
        kind in prop_oneof![0..16u32, any::<u32>()],
        sector in prop_oneof![0..70u64, any::<u64>()],
        chain in proptest::collection::vec((place(), len(), any::<bool>()), 1..6),
        features in any::<bool>(),
    ) {
        let features = if features { all() } else { Features::RINGS };
        let mut rig = Rig::started(BlockOptions::default(), features);
        rig.header(kind, sector);
        let last = chain.len() as u16 - 1;
        for (index, (at, len, write)) in (0..).zip(chain) {
            let more = if index < last { NEXT } else { 0 };
            let write = if write { WRITE } else { 0 };
            rig.driver.describe(index, (at, len, more | write, index + 1));
        }
        rig.driver.offer(0);
        rig.driver.wait(|d| d.used_in(0) == 1 || d.needs_reset());
        rig.start(Features::RINGS);
        prop_assert_eq!(rig.disk.bytes().len() as u64, SECTORS * SECTOR);
        prop_assert_eq!(rig.run(IN, 0, &[(DATA, 512, WRITE)]), (OK, 513));
    }
}

/// Requests that the host has done while the driver broke the place of an answer: those behind it in the same
/// batch have ended, too. A device that forgets them waits for them at the reset, and gives up.
#[test]
fn an_answer_that_cannot_be_given_loses_no_other() {
    const GOES: u64 = 0x30_0000;
    for _ in 0..20 {
        let mut rig = Rig::started(BlockOptions::default(), all());
        let space = rig.driver.memory.space.clone();
        let options = RamOptions {
            len: 0x1000,
            huge: HugePages::No,
            prefault: false,
        };
        let page = RamRegion::new(options).unwrap();
        let added = space.update("test", |map| {
            map.add_ram(Gpa(GOES), page, 0, 0x1000, Flags::default())
        });
        let id = added.unwrap().wait();
        rig.disk.hold(true);
        rig.header(FLUSH_REQUEST, 0);
        for head in [0, 2, 4, 6] {
            rig.driver.describe(head, (HEADER, 16, NEXT, head + 1));
            rig.driver.describe(head + 1, (GOES, 1, WRITE, 0));
            rig.driver.offer(head);
        }
        // Until all of them are with the disk.
        std::thread::sleep(Duration::from_millis(20));
        space.update("test", |map| map.remove(id)).unwrap().wait();
        rig.disk.hold(false);
        rig.driver.wait(Driver::needs_reset);
        rig.start(Features::RINGS);
        assert_eq!(rig.run(IN, 0, &[(DATA, 512, WRITE)]), (OK, 513));
    }
}
