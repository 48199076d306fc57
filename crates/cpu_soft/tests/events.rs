//! NMIs (SDM vol. 3, 6.7), interrupts that an instruction asks for, and what a KVM gives its guests.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, CODE_0, CODE_3, DATA_3, END, IDT, Machine, STACK, flat, gate, protected};
use umbra_cpu_soft::model;
use umbra_x86::cpuid::Leaf;
use umbra_x86::rflags::IF;
use umbra_x86::state::CpuState;

const HANDLER: u64 = 0x1_8000;
const NMI: u32 = 0x4400;
/// `mov dword [0xfee00300], command`
fn send(command: u32) -> Vec<u8> {
    [
        &[0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe][..],
        &command.to_le_bytes(),
    ]
    .concat()
}

/// A machine and a state with one handler, for `vector`.
fn with_handler(vector: u8, code: &[u8]) -> (Machine, CpuState) {
    let machine = Machine::new();
    machine.gate(vector, gate(CODE_0, HANDLER, 0xe, 0));
    machine.write(HANDLER, code);
    let mut state = protected();
    state.idtr.limit = 8 * (u16::from(vector) + 1) - 1;
    state.idtr.base = IDT;
    (machine, state)
}

#[test]
fn two_nmis_are_kept_while_none_is_handled() {
    let (mut machine, state) = with_handler(2, &[0x43, 0xcf]); // inc ebx; iret
    machine.write(CODE, &[&[0x90; 4][..], &END].concat());
    for _ in 0..3 {
        machine.apic().mmio_write(0x300, NMI);
    }
    let end = machine.run(&state);
    assert_eq!((end.state.gpr[3], end.state.rip), (2, CODE + 4));
}

#[test]
fn one_nmi_is_kept_while_one_is_handled() {
    let wait = &[0x90, 0x90, 0x90][..];
    // inc ebx; cmp ebx, 1; jne over the two; …; mov ecx, ebx; iret
    let twice = [&send(NMI)[..], &send(NMI), wait, &[0x89, 0xd9]].concat();
    let jump = [0x43, 0x83, 0xfb, 1, 0x75, twice.len() as u8];
    let handler = [&jump[..], &twice, &[0xcf]].concat();
    let (mut machine, state) = with_handler(2, &handler);
    machine.write(CODE, &[&[0x90; 4][..], &END].concat());
    machine.apic().mmio_write(0x300, NMI);
    let end = machine.run(&state);
    assert_eq!(end.state.gpr[3], 2, "one, and the merged two");
    assert_eq!(end.state.gpr[1], 1, "not before IRET");
}

#[test]
fn a_store_to_the_local_apic_interrupts_before_the_next_instruction() {
    let (mut machine, mut state) = with_handler(0x44, &END);
    machine.apic().mmio_write(0xf0, 0x1ff);
    state.rflags |= IF;
    // To itself, vector 0x44; inc edx; cli
    let code = [&send(0x4_4044)[..], &[0x42, 0xfa], &END].concat();
    machine.write(CODE, &code);
    let end = machine.run(&state);
    assert_eq!((end.state.rip, end.state.gpr[2]), (HANDLER, 0));
    assert_eq!(machine.read_u32(STACK - 12), CODE as u32 + 10);
}

#[test]
fn a_block_that_was_interrupted_runs_whole_afterwards() {
    // inc ecx; push edx; xor edx, edx; mov [EOI], edx; pop edx; iret
    let handler = [
        0x41, 0x52, 0x31, 0xd2, 0x89, 0x15, 0xb0, 0x00, 0xe0, 0xfe, 0x5a, 0xcf,
    ];
    let (mut machine, mut state) = with_handler(0x44, &handler);
    machine.apic().mmio_write(0xf0, 0x1ff);
    state.rflags |= IF;
    state.gpr[3] = 3;
    // again: to itself; inc edx; dec ebx; jnz again
    let code = [&send(0x4_4044)[..], &[0x42, 0x4b, 0x75, 0xf2], &END].concat();
    machine.write(CODE, &code);
    let end = machine.run(&state);
    assert_eq!(end.state.rip, CODE + 14, "{end:?}");
    assert_eq!((end.state.gpr[1], end.state.gpr[2]), (3, 3));
}

#[test]
fn an_unknown_hypercall_says_so() {
    for call in [[0x0f, 0x01, 0xc1], [0x0f, 0x01, 0xd9]] {
        for (level, result) in [(0, -1000i32), (3, -1)] {
            let mut machine = Machine::new();
            machine.write(CODE, &[&call[..], &END].concat());
            let mut state = protected();
            state.gpr[0] = 99;
            if level == 3 {
                state.seg = [DATA_3, CODE_3, DATA_3, DATA_3, DATA_3, DATA_3].map(flat);
            }
            let end = machine.run(&state);
            assert_eq!((end.exception(), end.state.rip), ("6", CODE + 3));
            assert_eq!(end.state.gpr[0] as i32, result, "level {level}");
        }
    }
}

/// `KVM_HC_SEND_IPI` of Linux's `Documentation/virt/kvm/x86/hypercalls.rst`.
#[test]
fn a_hypercall_sends_an_interrupt_to_every_processor_of_a_map() {
    let (mut machine, mut state) = with_handler(0x44, &END);
    machine.apic().mmio_write(0xf0, 0x1ff);
    state.rflags |= IF;
    // vmcall; inc edx
    machine.write(CODE, &[&[0x0f, 0x01, 0xc1, 0x42][..], &END].concat());
    // Number, high half, first id, low half: processors 0 and 32, of which there is one.
    (state.gpr[0], state.gpr[3], state.gpr[1], state.gpr[2]) = (10, 1, 1, 0);
    state.gpr[6] = 0x44;
    let end = machine.run(&state);
    assert_eq!((end.state.rip, end.state.gpr[0]), (HANDLER, 1));
    assert_eq!(machine.read_u32(STACK - 12), CODE as u32 + 3, "at once");
}

#[test]
fn a_hypercall_with_ids_beyond_the_last_sends_nothing() {
    for (first, icr, result) in [(u32::MAX, 0, 0), (1, 0x44, 0), (0, 0xc_0044, -22i32)] {
        let mut machine = Machine::new();
        machine.apic().mmio_write(0xf0, 0x1ff);
        machine.write(CODE, &[&[0x0f, 0x01, 0xc1][..], &END].concat());
        let mut state = protected();
        (state.gpr[0], state.gpr[3], state.gpr[1]) = (10, u64::MAX, u64::MAX);
        (state.gpr[2], state.gpr[6]) = (first.into(), icr);
        let end = machine.run(&state);
        assert_eq!((end.exception(), end.state.rip), ("6", CODE + 3));
        assert_eq!(end.state.gpr[0] as i32, result, "from {first:#x}, {icr:#x}");
        assert!(!machine.apic().work());
    }
}

/// `MSR_KVM_ASYNC_PF_EN` of Linux's `Documentation/virt/kvm/x86/msr.rst`.
#[test]
fn asynchronous_page_faults_can_be_asked_for_as_announced() {
    // mov ecx, 4b564d02h; xor edx, edx; wrmsr; rdmsr
    let code = [
        0xb9, 0x02, 0x4d, 0x56, 0x4b, 0x31, 0xd2, 0x0f, 0x30, 0x0f, 0x32,
    ];
    for (value, vector, end) in [
        (0x3_0003, "6", 11),
        (0x3_0005, "13(0x0)", 7), // nested
        (0x3_0009, "13(0x0)", 7), // by interrupt
        (0x3_0011, "13(0x0)", 7), // reserved
    ] {
        let mut machine = Machine::new();
        machine.write(CODE, &[&code[..], &END].concat());
        let mut state = protected();
        state.gpr[0] = value;
        let ended = machine.run(&state);
        assert_eq!((ended.exception(), ended.state.rip), (vector, CODE + end));
        assert_eq!(ended.state.gpr[0], value);
    }
}

#[test]
fn no_hypercall_exists_without_kvms_name() {
    let mut cpuid = model::x86_64_v2(0, 1);
    cpuid.set(0x4000_0000, None, Leaf::default());
    let mut machine = Machine::with_model(cpuid);
    machine.write(CODE, &[0x0f, 0x01, 0xc1]);
    let end = machine.run(&protected());
    assert_eq!((end.exception(), end.state.rip), ("6", CODE));
}

#[test]
fn a_paravirtual_clock_that_lands_on_code_is_executed() {
    const CLOCK: u64 = 0x3_0000;
    let mut machine = Machine::new();
    machine.write(CLOCK, &[0xc3]);
    machine.write(CLOCK + 32, &END);
    let call = |from: u64| {
        let distance = CLOCK.wrapping_sub(from + 5) as u32;
        [&[0xe8][..], &distance.to_le_bytes()].concat()
    };
    // call CLOCK; mov ecx, 4b564d01h; mov eax, CLOCK + 1; xor edx, edx; wrmsr; call CLOCK
    let mut code = call(CODE);
    code.extend([0xb9, 0x01, 0x4d, 0x56, 0x4b, 0xb8]);
    code.extend((CLOCK as u32 + 1).to_le_bytes());
    code.extend([0x31, 0xd2, 0x0f, 0x30]);
    // The record is additions to [eax], for which there is room elsewhere.
    code.extend([0xb8, 0, 0, 4, 0]);
    code.extend(call(CODE + code.len() as u64));
    code.extend(END);
    machine.write(CODE, &code);
    let end = machine.run(&protected());
    assert_eq!(end.state.rip, CLOCK + 32, "{end:?}");
}

#[test]
fn an_instruction_has_fifteen_bytes_at_most() {
    for (prefixes, exception, at) in [(14, "6", CODE + 15), (15, "13(0x0)", CODE)] {
        let mut machine = Machine::new();
        machine.write(CODE, &[&vec![0x66; prefixes][..], &[0x90], &END].concat());
        let end = machine.run(&protected());
        assert_eq!((end.exception(), end.state.rip), (exception, at));
    }
}
