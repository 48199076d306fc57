//! What hosts do seldom.

use std::time::Duration;

use umbra_cpu::{Exit, Vcpu};

use crate::Processor;

/// What the integration tests stand on.
#[path = "../../tests/bare/mod.rs"]
pub mod bare;

use bare::{CODE, Machine, long};

#[test]
fn code_that_is_far_from_the_waker_hears_it_too() {
    let mut machine = Machine::of_kind(Processor::Eager);
    let works = machine.vcpu().cpu.translator.works.as_mut();
    works.unwrap().glue.wake = None;
    let state = long(&machine);
    // sti; add rax, 1; call over; over: pop rcx; jmp
    let code = [
        0xfb, 0x48, 0x83, 0xc0, 0x01, 0xe8, 0, 0, 0, 0, 0x59, 0xeb, 0xf3,
    ];
    machine.write(CODE, &code);
    let kick = machine.vcpu().kick_handle();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
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
    assert!(machine.vcpu().state().gpr[0] > 100 * count("entries to translated code"));
}
