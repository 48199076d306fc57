//! What hosts do seldom.

use umbra_cpu::{Exit, Vcpu};
use umbra_slots::Gpa;

use crate::Processor;

/// What the integration tests stand on.
#[path = "../../tests/bare/mod.rs"]
pub mod bare;

use bare::{CODE, Machine, long};

/// Where the guest counts its rounds.
const COUNTER: u64 = 0x3_0000;
const ROUNDS: u64 = 100_000;

#[test]
fn code_that_is_far_from_the_waker_hears_it_too() {
    let mut machine = Machine::of_kind(Processor::Eager);
    let works = machine.vcpu().cpu.translator.works.as_mut();
    works.unwrap().glue.gate = None;
    let mut state = long(&machine);
    // sti; inc qword [rdi]; call over; over: pop rcx; jmp
    let code = [0xfb, 0x48, 0xff, 0x07, 0xe8, 0, 0, 0, 0, 0x59, 0xeb, 0xf4];
    machine.write(CODE, &code);
    state.gpr[7] = COUNTER;
    let (kick, space) = (machine.vcpu().kick_handle(), machine.space());
    let enough = || {
        let mut rounds = [0; 8];
        let read = space.load().read(Gpa(COUNTER), &mut rounds);
        read.is_ok() && u64::from_le_bytes(rounds) > ROUNDS
    };
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while !enough() {
                std::thread::yield_now();
            }
            kick.kick();
        });
        assert!(matches!(machine.run_once(&state), Exit::Kicked));
    });
    let statistics = machine.vcpu().statistics();
    let count = |name: &str| {
        statistics
            .iter()
            .find(|(known, _)| *known == name)
            .unwrap()
            .1
    };
    assert!(count("entries to translated code") < ROUNDS / 100);
}
