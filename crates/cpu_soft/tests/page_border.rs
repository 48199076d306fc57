//! Accesses that cross from one page to the next, wherever in the address space that is, when the
//! translation caches know the second page already.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, END, Machine, protected};
use umbra_x86::{cr0, pte};

/// Tables: a directory and three tables of small pages.
const DIRECTORY: u64 = 0x10_0000;
/// The two pages lie apart, and the second one not behind the first.
const FIRST: u64 = 0x30_0000;
const SECOND: u64 = 0x28_0000;

fn word(machine: &Machine, at: u64, value: u64) {
    machine.write(at, &(value as u32).to_le_bytes());
}

/// Maps the pages on both sides of `border`, and the code one to one.
fn machine(border: u64) -> Machine {
    let machine = Machine::new();
    let flags = pte::P | pte::RW;
    let map = |table: u64, linear: u64, page: u64| {
        word(&machine, DIRECTORY + (linear >> 22) * 4, table | flags);
        word(&machine, table + (linear >> 12 & 0x3ff) * 4, page | flags);
    };
    map(DIRECTORY + 0x1000, CODE, CODE);
    map(DIRECTORY + 0x2000, border - 0x1000, FIRST);
    map(DIRECTORY + 0x3000, border, SECOND);
    machine
}

#[test]
fn an_access_over_a_border_reaches_both_pages_also_when_the_second_is_cached() {
    for border in [0x80_0000u64, 0x4000_0000, 0x8000_0000, 0xc000_0000] {
        let mut machine = machine(border);
        machine.write(FIRST + 0xffc, &[1, 2, 3, 4]);
        machine.write(SECOND, &[5, 6, 7, 8]);
        machine.write(SECOND - 4, &[0xaa; 4]);
        let (at, before) = (border as u32, border as u32 - 2);
        let code = [
            &[0xa1][..], // mov eax, [border]
            &at.to_le_bytes(),
            &[0xa3], // mov [border], eax
            &at.to_le_bytes(),
            &[0xa1], // mov eax, [border - 2]
            &before.to_le_bytes(),
            &[0x89, 0x0d], // mov [border - 2], ecx
            &before.to_le_bytes(),
            &END,
        ];
        machine.write(CODE, &code.concat());
        let mut state = protected();
        state.cr0 |= cr0::PG;
        state.cr3 = DIRECTORY;
        state.gpr[1] = 0xddcc_bbaa;
        let end = machine.run(&state);
        assert_eq!(end.state.rip, CODE + 21, "{border:#x}: {end:?}");
        assert_eq!(end.state.gpr[0], 0x0605_0403, "{border:#x}");
        assert_eq!(machine.read(FIRST + 0xffc), [1, 2, 0xaa, 0xbb]);
        assert_eq!(machine.read(SECOND), [0xcc, 0xdd, 7, 8]);
        assert_eq!(machine.read(SECOND - 4), [0xaa; 4], "{border:#x}");
    }
}
