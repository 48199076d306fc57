//! Random accesses to registers with random rings: whatever comes, a reset works.

use proptest::prelude::*;
use vm_device::DeviceMmio;
use vm_device::bus::MmioAddress;

use crate::Features;
use crate::echo::echo;
use crate::testing::{NEXT, RAM, RINGS, WRITE};

#[derive(Clone, Debug)]
enum Action {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    /// A register that matters, with a value that may.
    Set(u64, u32),
    Start(u32),
    /// Bytes near a ring.
    Poke(usize, u64, Vec<u8>),
    Describe(u16, (u64, u32, u16, u16)),
    Offer(u16),
}

fn action() -> impl Strategy<Value = Action> {
    let offset = prop_oneof![0u64..0x120, any::<u64>()];
    let width = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    let bytes = prop::collection::vec(any::<u8>(), 1..9);
    let register = prop::sample::select(vec![
        0x14u64, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4,
    ]);
    let value = prop_oneof![0u32..16, any::<u32>(), Just(RINGS[0] as u32)];
    let address = prop_oneof![0..RAM, RAM - 16..RAM + 16, any::<u64>()];
    let len = prop_oneof![0u32..64, any::<u32>()];
    prop_oneof![
        1 => (offset.clone(), width).prop_map(|(at, width)| Action::Read(at, width)),
        1 => (offset, bytes.clone()).prop_map(|(at, data)| Action::Write(at, data)),
        3 => (register, value).prop_map(|(at, value)| Action::Set(at, value)),
        2 => any::<u32>().prop_map(Action::Start),
        1 => (0..3usize, 0u64..0x60, bytes).prop_map(|(ring, at, data)| Action::Poke(ring, at, data)),
        3 => (0u16..9, (address, len, 0u16..8, 0u16..9))
            .prop_map(|(index, descriptor)| Action::Describe(index, descriptor)),
        3 => (0u16..9).prop_map(Action::Offer),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_drivers_harm_nobody_but_themselves(
        actions in prop::collection::vec(action(), 1..60)
    ) {
        let (mut driver, _) = echo();
        for action in actions {
            match action {
                Action::Read(offset, width) => {
                    let mut data = [0; 8];
                    driver.transport.mmio_read(MmioAddress(0), offset, &mut data[..width]);
                }
                Action::Write(offset, data) => {
                    driver.transport.mmio_write(MmioAddress(0), offset, &data);
                }
                Action::Set(offset, value) => driver.write(offset, value),
                Action::Start(size) => {
                    driver.write(0x70, 0);
                    driver.agree(Features::RINGS);
                    driver.set_up(0);
                    driver.set_up_at(1, 1 << (size % 8), RINGS.map(|at| at + 0x1_0000));
                    driver.write(0x70, 15);
                }
                Action::Poke(ring, at, data) => driver.memory.put(RINGS[ring] + at, &data),
                Action::Describe(index, descriptor) => driver.describe(index, descriptor),
                Action::Offer(head) => driver.offer(head),
            }
        }
        driver.start(Features::NONE);
        driver.describe(0, (0x2000, 4, NEXT, 1));
        driver.describe(1, (0x3000, 4, WRITE, 0));
        driver.offer(0);
        driver.wait(|d| d.used_in(0) == 1);
    }
}
