//! Loops hear that somebody wants attention, whatever they are made of: translated code that accesses memory hears it
//! by a check that fails, in the middle of an instruction, which has to be as if nothing had happened. With
//! `UMBRA_PROCESSOR=interpreter` the same must come out.
#![cfg(target_arch = "x86_64")]

mod bare;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bare::{CODE, END, Machine, PAGES, STACK, long, on_each_kind};
use umbra_cpu::{Exit, Vcpu};
use umbra_x86::rflags::{CF, OF};
use umbra_x86::state::{CpuState, gpr};
use umbra_x86::{cr0, cr4};

const DATA: u64 = 0x3_0000;
/// A page that may only be read, which is [`DATA`].
const READABLE: u64 = 0x20_0000;
/// How often somebody wants attention of a loop.
const KICKS: usize = 100;
/// A loop that has not heard it for so long never will.
const DEAF: Duration = Duration::from_secs(20);
/// R15, where loops count.
const ROUNDS: usize = 15;

/// Executes `body` in a loop that counts in R15, and goes on each time that somebody has wanted attention; then a few
/// rounds more. Returns the machine and the state at the end.
///
/// RDI points to [`DATA`], R8 to the same in a page that may only be read. There is the address of what follows the
/// first `first` bytes of the body. RAX, RBX and R9 are zero.
fn interrupted(machine: Machine, body: &[u8], first: usize) -> (Machine, CpuState) {
    let mut machine = machine;
    let mut state = long(&machine);
    state.cr0 |= cr0::WP;
    state.cr4 |= cr4::OSFXSR;
    state.gpr = [0; 16];
    (state.gpr[gpr::RDI], state.gpr[8]) = (DATA, READABLE);
    state.gpr[gpr::RSP] = STACK;
    state.gpr[gpr::RDX] = u64::MAX;
    machine.write(
        PAGES + 8 * (READABLE >> 12 & 0x1ff),
        &(DATA | 5).to_le_bytes(),
    );
    machine.write(DATA, &(CODE + first as u64).to_le_bytes());
    // inc r15; cmp r15, rdx; jne
    let mut code = [body, &[0x49, 0xff, 0xc7, 0x49, 0x39, 0xd7, 0x75]].concat();
    code.push((code.len() as u8 + 1).wrapping_neg());
    code.extend_from_slice(&END);
    machine.write(CODE, &code);

    let (kick, heard) = (machine.vcpu().kick_handle(), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut known, mut since) = (0, Instant::now());
            while known < KICKS {
                std::thread::sleep(Duration::from_micros(20));
                kick.kick();
                let now = heard.load(Ordering::Relaxed);
                if now != known {
                    (known, since) = (now, Instant::now());
                } else if since.elapsed() > DEAF {
                    // Nothing else would end the loop.
                    eprintln!("the loop is deaf after {known} of {KICKS}");
                    std::process::abort();
                }
            }
        });
        for _ in 0..KICKS {
            let exit = machine.run_once(&state);
            assert!(matches!(exit, Exit::Kicked), "{exit:?}");
            state = machine.vcpu().state();
            heard.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(state.gpr[ROUNDS] > 0, "it has come nowhere");
    state.gpr[gpr::RDX] = state.gpr[ROUNDS] + 100;
    loop {
        match machine.run_once(&state) {
            // One that came late.
            Exit::Kicked => state = machine.vcpu().state(),
            Exit::Shutdown(crash) => {
                assert_eq!(crash.state.rip, CODE + code.len() as u64 - 2, "{crash:?}");
                return (machine, crash.state);
            }
            exit => panic!("{exit:?}"),
        }
    }
}

fn quad(machine: &Machine) -> u64 {
    u64::from_le_bytes(machine.read(DATA))
}

fn one_that_writes(new: fn() -> Machine) {
    // inc qword [rdi]
    let (machine, state) = interrupted(new(), &[0x48, 0xff, 0x07], 0);
    assert_eq!(quad(&machine) - CODE, state.gpr[ROUNDS]);
}

fn one_that_reads(new: fn() -> Machine) {
    // add rax, [rdi]
    let (_, state) = interrupted(new(), &[0x48, 0x03, 0x07], 0);
    assert_eq!(state.gpr[gpr::RAX], CODE * state.gpr[ROUNDS]);
}

fn one_whose_flags_survive(new: fn() -> Machine) {
    // stc; mov rsi, [rdi]; adc rax, 1
    let (_, state) = interrupted(new(), &[0xf9, 0x48, 0x8b, 0x37, 0x48, 0x83, 0xd0, 1], 0);
    assert_eq!(state.gpr[gpr::RAX], 2 * state.gpr[ROUNDS]);
    assert_eq!(state.rflags & (CF | OF), 0);
}

fn one_that_walks_to_and_fro(new: fn() -> Machine) {
    // add rdi, 2; movzx ebx, byte [rdi]; add rax, rbx; sub rdi, 2
    let body = [
        0x48, 0x83, 0xc7, 2, 0x0f, 0xb6, 0x1f, 0x48, 0x01, 0xd8, 0x48, 0x83, 0xef, 2,
    ];
    let (_, state) = interrupted(new(), &body, 0);
    assert_eq!(state.gpr[gpr::RAX], state.gpr[ROUNDS]);
    assert_eq!(state.gpr[gpr::RDI], DATA);
}

fn one_that_walks_on_two_pages(new: fn() -> Machine) {
    // add rdi, 2; add al, [rdi]; add bl, [rdi+0x1000]; sub rdi, 2
    let body = [
        0x48, 0x83, 0xc7, 2, 0x02, 0x07, 0x02, 0x9f, 0, 0x10, 0, 0, 0x48, 0x83, 0xef, 2,
    ];
    let (_, state) = interrupted(new(), &body, 0);
    assert_eq!(state.gpr[gpr::RAX], state.gpr[ROUNDS] & 0xff);
    assert_eq!((state.gpr[gpr::RBX], state.gpr[gpr::RDI]), (0, DATA));
}

fn one_that_pushes_and_pops(new: fn() -> Machine) {
    // inc rax; push rax; pop rbx
    let (_, state) = interrupted(new(), &[0x48, 0xff, 0xc0, 0x50, 0x5b], 0);
    assert_eq!(state.gpr[gpr::RBX], state.gpr[ROUNDS]);
    assert_eq!(state.gpr[gpr::RSP], STACK);
}

fn one_that_pushes_and_pops_at_the_end_of_a_page(new: fn() -> Machine) {
    // lea rsp, [rdi+0x1000]; inc rax; push rax; pop rbx
    let body = [
        0x48, 0x8d, 0xa7, 0, 0x10, 0, 0, 0x48, 0xff, 0xc0, 0x50, 0x5b,
    ];
    let (_, state) = interrupted(new(), &body, 0);
    assert_eq!(state.gpr[gpr::RBX], state.gpr[ROUNDS]);
    assert_eq!(state.gpr[gpr::RSP], DATA + 0x1000);
}

fn one_with_two_stacks(new: fn() -> Machine) {
    // lea rsp, [rdi+0x800]; inc rax; push rax; pop rbx; lea rsp, [rdi+0x1800]; push rbx; pop rcx
    let body = [
        0x48, 0x8d, 0xa7, 0, 8, 0, 0, 0x48, 0xff, 0xc0, 0x50, 0x5b, 0x48, 0x8d, 0xa7, 0, 0x18, 0,
        0, 0x53, 0x59,
    ];
    let (_, state) = interrupted(new(), &body, 0);
    assert_eq!(state.gpr[gpr::RCX], state.gpr[ROUNDS]);
    assert_eq!(state.gpr[gpr::RSP], DATA + 0x1800);
}

fn one_that_calls(new: fn() -> Machine) {
    // call over; jmp over; over: inc rax; ret
    let body = [0xe8, 2, 0, 0, 0, 0xeb, 4, 0x48, 0xff, 0xc0, 0xc3];
    let (_, state) = interrupted(new(), &body, 0);
    assert_eq!(state.gpr[gpr::RAX], state.gpr[ROUNDS]);
    assert_eq!(state.gpr[gpr::RSP], STACK);
}

fn one_that_returns_only(new: fn() -> Machine) {
    // mov rsp, r8; ret; inc rax
    let body = [0x4c, 0x89, 0xc4, 0xc3, 0x48, 0xff, 0xc0];
    let (_, state) = interrupted(new(), &body, 4);
    assert_eq!(state.gpr[gpr::RAX], state.gpr[ROUNDS]);
    assert_eq!(state.gpr[gpr::RSP], READABLE + 8);
}

fn one_that_jumps_through_memory(new: fn() -> Machine) {
    // jmp [rdi]; inc rax
    let (_, state) = interrupted(new(), &[0xff, 0x27, 0x48, 0xff, 0xc0], 2);
    assert_eq!(state.gpr[gpr::RAX], state.gpr[ROUNDS]);
}

fn one_that_calls_through_memory(new: fn() -> Machine) {
    // call [rdi]; pop rbx; inc rax
    let (_, state) = interrupted(new(), &[0xff, 0x17, 0x5b, 0x48, 0xff, 0xc0], 2);
    assert_eq!(state.gpr[gpr::RAX], state.gpr[ROUNDS]);
    assert_eq!(state.gpr[gpr::RBX], CODE + 2);
    assert_eq!(state.gpr[gpr::RSP], STACK);
}

fn one_that_jumps_by_register(new: fn() -> Machine) {
    // lea rbx, [rip+2]; jmp rbx; inc rax
    let body = [0x48, 0x8d, 0x1d, 2, 0, 0, 0, 0xff, 0xe3, 0x48, 0xff, 0xc0];
    let (_, state) = interrupted(new(), &body, 0);
    assert_eq!(state.gpr[gpr::RAX], state.gpr[ROUNDS]);
}

fn one_that_has_an_access_on_one_way_only(new: fn() -> Machine) {
    // test r15b, 1; jne over; inc qword [rdi]
    let body = [0x41, 0xf6, 0xc7, 1, 0x75, 3, 0x48, 0xff, 0x07];
    let (machine, state) = interrupted(new(), &body, 0);
    assert_eq!(quad(&machine) - CODE, state.gpr[ROUNDS].div_ceil(2));
}

fn one_that_stores_no_string(new: fn() -> Machine) {
    // rep stosb, and RCX is zero
    let (machine, state) = interrupted(new(), &[0xf3, 0xaa], 0);
    assert_eq!((state.gpr[gpr::RDI], quad(&machine)), (DATA, CODE));
}

fn one_that_stores_a_string(new: fn() -> Machine) {
    // mov ecx, 8; rep stosb; sub rdi, 8
    let body = [0xb9, 8, 0, 0, 0, 0xf3, 0xaa, 0x48, 0x83, 0xef, 8];
    let (machine, state) = interrupted(new(), &body, 0);
    assert_eq!((state.gpr[gpr::RDI], quad(&machine)), (DATA, 0));
}

fn one_that_sets_bits(new: fn() -> Machine) {
    // btc [rdi], rax; setc bl; add rsi, rbx
    let body = [0x48, 0x0f, 0xbb, 0x07, 0x0f, 0x92, 0xc3, 0x48, 0x01, 0xde];
    let (machine, state) = interrupted(new(), &body, 0);
    assert_eq!(quad(&machine) - CODE, state.gpr[ROUNDS] & 1);
    assert_eq!(state.gpr[gpr::RSI], state.gpr[ROUNDS] / 2);
}

fn one_with_vectors(new: fn() -> Machine) {
    // movdqu xmm0, [rdi]; movq rbx, xmm0; add rax, rbx
    let body = [
        0xf3, 0x0f, 0x6f, 0x07, 0x66, 0x48, 0x0f, 0x7e, 0xc3, 0x48, 0x01, 0xd8,
    ];
    let (_, state) = interrupted(new(), &body, 0);
    assert_eq!(state.gpr[gpr::RAX], CODE * state.gpr[ROUNDS]);
}

fn one_that_only_seems_to_access(new: fn() -> Machine) {
    // prefetcht0 [rdi]; nop [rdi]; lea rax, [rax+2]
    let body = [0x0f, 0x18, 0x0f, 0x0f, 0x1f, 0x07, 0x48, 0x8d, 0x40, 2];
    let (_, state) = interrupted(new(), &body, 0);
    assert_eq!(state.gpr[gpr::RAX], 2 * state.gpr[ROUNDS]);
}

fn one_without_memory(new: fn() -> Machine) {
    // lea rax, [rax+2]
    let (_, state) = interrupted(new(), &[0x48, 0x8d, 0x40, 2], 0);
    assert_eq!(state.gpr[gpr::RAX], 2 * state.gpr[ROUNDS]);
}

on_each_kind!(
    one_that_writes,
    one_that_reads,
    one_whose_flags_survive,
    one_that_walks_to_and_fro,
    one_that_walks_on_two_pages,
    one_that_pushes_and_pops,
    one_that_pushes_and_pops_at_the_end_of_a_page,
    one_with_two_stacks,
    one_that_calls,
    one_that_returns_only,
    one_that_jumps_through_memory,
    one_that_calls_through_memory,
    one_that_jumps_by_register,
    one_that_has_an_access_on_one_way_only,
    one_that_stores_no_string,
    one_that_stores_a_string,
    one_that_sets_bits,
    one_with_vectors,
    one_that_only_seems_to_access,
    one_without_memory,
);
