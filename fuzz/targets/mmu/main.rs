//! Random guest tables in all formats, random control registers, random changes of the map, on
//! the MMU with a tag of two bits: the oracle answers every access too (rule R40), and everything
//! is audited on the way and at the end (rule R37).
#![no_main]

mod entries;
mod guest;
mod map;
mod steps;

use libfuzzer_sys::fuzz_target;
use umbra_fuzz::Source;
use umbra_mmu::{Audit, Config, Unsync};

use guest::Guest;

/// More steps than this only make an input slow.
const STEPS: usize = 256;

fn config(source: &mut Source<'_>) -> Config {
    let bits = source.u8();
    Config {
        tag_bits: 2,
        large_pages: bits & 1 != 0,
        last_mmio: bits & 2 != 0,
        unsync: match bits >> 2 & 3 {
            0 => Unsync::Never,
            writes => Unsync::After(u32::from(writes)),
        },
        // 64 are soon too few, 16,384 never.
        max_pages: [64, 96, 1 << 14][usize::from(bits >> 4 & 3) % 3],
        audit: Audit::EveryFault(if bits & 64 != 0 { 3 } else { 1 }),
        phys_bits: [46, 36, 40, 52][usize::from(source.u8() & 3)],
    }
}

fuzz_target!(|input: &[u8]| {
    let mut source = Source::new(input);
    let mut guest = Guest::new(config(&mut source), u64::from(source.u8() & 3));
    for _ in 0..STEPS {
        if source.is_empty() {
            break;
        }
        guest.step(&mut source);
    }
    guest.finish();
});
