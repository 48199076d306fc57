//! What devices see of an instruction's access to them ([`umbra_cpu::Io`]).
#![cfg(target_arch = "x86_64")]

mod bare;

use std::sync::Mutex;

use bare::{CODE, END, Machine, protected};
use umbra_cpu::{Io, Served};
use umbra_slots::Gpa;

/// Remembers accesses to memory: address and length.
#[derive(Default)]
struct Seen {
    reads: Mutex<Vec<(u64, usize)>>,
    writes: Mutex<Vec<(u64, usize)>>,
}

impl Io for Seen {
    fn mmio_read(&self, gpa: Gpa, data: &mut [u8]) -> Served {
        self.reads
            .lock()
            .expect("nobody panicked with it")
            .push((gpa.0, data.len()));
        for (at, byte) in (gpa.0..).zip(data) {
            *byte = at as u8;
        }
        Served::Done
    }
    fn mmio_write(&self, gpa: Gpa, data: &[u8]) -> Served {
        self.writes
            .lock()
            .expect("nobody panicked with it")
            .push((gpa.0, data.len()));
        Served::Done
    }
    fn port_read(&self, _: u16, _: &mut [u8]) {}
    fn port_write(&self, _: u16, _: &[u8]) {}
}

/// Runs code of 32-bit protected mode; there is no memory at 0x500000.
fn run(code: &[u8]) -> (Seen, u64) {
    let seen = Seen::default();
    let mut machine = Machine::new();
    machine.write(CODE, &[code, &END].concat());
    let end = machine.run_with(&protected(), &seen);
    assert_eq!(end.exception(), "6", "{end:?}");
    (seen, end.state.gpr[0])
}

#[test]
fn an_access_over_a_page_border_comes_in_sizes_that_devices_take() {
    let (seen, eax) = run(&[0xa1, 0xfd, 0x0f, 0x50, 0]); // mov eax, [0x500ffd]
    let reads = [(0x50_0ffd, 2), (0x50_0fff, 1), (0x50_1000, 1)];
    assert_eq!(*seen.reads.lock().expect("nobody panicked with it"), reads);
    assert_eq!(eax, 0x00ff_fefd);
}

#[test]
fn a_large_operand_comes_in_sizes_that_devices_take() {
    let (seen, _) = run(&[0xdd, 0x35, 0, 0, 0x50, 0]); // fnsave [0x500000], 108 bytes
    let writes = (0..13).map(|n| (0x50_0000 + 8 * n, 8));
    let writes: Vec<_> = writes.chain([(0x50_0068, 4)]).collect();
    assert_eq!(
        *seen.writes.lock().expect("nobody panicked with it"),
        writes
    );
    let (seen, _) = run(&[0xdb, 0x2d, 0, 0, 0x50, 0]); // fld tbyte [0x500000]
    assert_eq!(
        *seen.reads.lock().expect("nobody panicked with it"),
        [(0x50_0000, 8), (0x50_0008, 2)]
    );
}
