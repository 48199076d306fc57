//! Random guest tables in all formats, random control registers, random changes of the map, on
//! the MMU with a tag of two bits: the oracle answers every access too (rule R40), and everything
//! is audited on the way and at the end (rule R37).
#![no_main]

mod entries;
mod guest;
mod map;
mod steps;

use umbra_fuzz::Source;
use umbra_mmu::{Audit, Config, Unsync};

use guest::Guest;

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

fn guest(source: &mut Source<'_>) -> Guest {
    Guest::new(config(source), u64::from(source.u8() & 3))
}

libfuzzer_sys::fuzz_target!(|input: &[u8]| umbra_fuzz::steps(
    input,
    guest,
    Guest::step,
    Guest::finish
));
