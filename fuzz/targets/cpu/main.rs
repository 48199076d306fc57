//! Random bytes as code, in random registers and modes, on the software processor: no panic, no
//! write outside guest memory, shadow tables that still agree with the guest's, and registers that
//! a processor can have. Half of the inputs run by the interpreter and as translated code, block by block:
//! no difference.
//!
//! A run is ended by a kick: after some milliseconds, or after some accesses to devices. How far it
//! comes is therefore not quite the same at each replay; a finding is there before that.
#![no_main]

mod machine;
mod modes;
mod tables;
mod watchdog;

use libfuzzer_sys::fuzz_target;
use umbra_cpu::{Exit, Vcpu};
use umbra_cpu_soft::{Processor, model};
use umbra_fuzz::Source;
use umbra_mmu::{Audit, Config, Unsync};
use umbra_x86::state::CpuState;
use umbra_x86::{cr0, efer};

use machine::{Machine, Outside};

fn config(bits: u8) -> Config {
    Config {
        tag_bits: 2,
        unsync: match bits >> 1 & 3 {
            0 => Unsync::Never,
            writes => Unsync::After(writes.into()),
        },
        audit: match bits & 1 {
            0 => Audit::Off,
            _ => Audit::EveryFault(8),
        },
        ..Config::default()
    }
}

fuzz_target!(|input: &[u8]| {
    let mut source = Source::new(input);
    let choice = source.u8();
    let maximal = choice & 128 != 0;
    let cpuid = match maximal {
        true => model::maximal(0, 1),
        false => model::x86_64_v2(0, 1),
    };
    let processor = match choice & 64 {
        0 => Processor::Eager,
        _ => Processor::Both,
    };
    let mut machine = Machine::new(config(choice), cpuid, processor);
    let state = modes::state(&mut source, &mut machine, maximal);
    tables::pokes(&mut source, &mut machine);
    machine.code(source.rest());

    machine.vcpu.set_state(&state).expect("a state is taken");
    let outside = Outside::new(machine.vcpu.kick_handle());
    let watched = watchdog::watch(machine.vcpu.kick_handle());
    let exit = machine.vcpu.run(&outside);
    drop(watched);
    match exit.expect("the host allows it") {
        Exit::Kicked => {}
        Exit::Shutdown(crash) => assert!(!crash.reason.is_empty()),
        Exit::Stuck(crash) => panic!("{}", crash.reason),
        // This processor has no way past all devices.
        Exit::System(_) => panic!("a backend's own exit"),
    }
    check(&machine.vcpu.state());
    machine.check();
});

/// What no program can make of a processor.
fn check(state: &CpuState) {
    let paging = state.cr0 & cr0::PG != 0;
    let long = state.efer & efer::LMA != 0;
    assert!(!paging || state.cr0 & cr0::PE != 0, "{state:x?}");
    assert_eq!(long, paging && state.efer & efer::LME != 0, "{state:x?}");
    assert!(long || state.rip >> 32 == 0, "{state:x?}");
    assert_eq!(state.cr0 & !cr0::DEFINED, 0, "{state:x?}");
}
