//! Segments, task states and the interrupt table.
#![allow(unsafe_code)]

use core::arch::asm;

use crate::trap;

/// Selectors. User ones carry their privilege level.
pub mod selector {
    pub const CODE: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const USER_DATA: u16 = 0x20 | 3;
    pub const USER_CODE: u16 = 0x28 | 3;
    /// A data segment that is not present.
    pub const ABSENT: u16 = 0x30;
    /// A read-only data segment.
    pub const READ_ONLY: u16 = 0x38;
    /// The first task state.
    pub const TASK: u16 = 0x40;
    /// What SYSRET adds 8 and 16 to.
    pub const SYSRET: u16 = 0x18;
}

/// How many processors can be served.
pub const CPUS: usize = 8;
const FIXED: usize = 8;

/// Stacks of the interrupt table, one for each use: everything, NMI, double fault.
const STACK: usize = 0x4000;
/// Which of them is for what.
pub const IST_ALL: u8 = 1;
pub const IST_NMI: u8 = 2;
pub const IST_DOUBLE_FAULT: u8 = 3;

#[repr(C, packed)]
#[derive(Clone, Copy)]
struct TaskState {
    reserved: u32,
    rsp: [u64; 3],
    reserved_1: u64,
    ist: [u64; 7],
    reserved_2: [u16; 5],
    io_map: u16,
}

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

#[repr(align(16))]
struct Stacks(#[expect(dead_code, reason = "used by address")] [[u8; STACK]; 4 * CPUS]);

static mut STACKS: Stacks = Stacks([[0; STACK]; 4 * CPUS]);
static mut TASKS: [TaskState; CPUS] = [TaskState {
    reserved: 0,
    rsp: [0; 3],
    reserved_1: 0,
    ist: [0; 7],
    reserved_2: [0; 5],
    io_map: 104,
}; CPUS];
static mut GDT: [u64; FIXED + 2 * CPUS] = [0; FIXED + 2 * CPUS];

/// A gate of the interrupt table.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Gate {
    pub low: u64,
    pub high: u64,
}

static mut IDT: [Gate; 256] = [Gate { low: 0, high: 0 }; 256];

impl Gate {
    /// An interrupt gate to a stub.
    pub fn new(vector: usize, dpl: u64, ist: u8) -> Self {
        let stub = trap::stub(vector);
        Self {
            low: stub & 0xffff
                | u64::from(selector::CODE) << 16
                | u64::from(ist) << 32
                | (0x8e | dpl << 5) << 40
                | (stub >> 16 & 0xffff) << 48,
            high: stub >> 32,
        }
    }
}

/// Loads everything on processor `id`; number 0 comes first and makes what all share.
pub fn load(id: usize) {
    // SAFETY: number 0 is alone when it writes the tables; the others only write their own part.
    unsafe {
        if id == 0 {
            make();
        }
        let stack = |n: usize| (&raw const STACKS as u64) + ((4 * id + n + 1) * STACK) as u64;
        let task = &raw mut TASKS[id];
        (*task).rsp[0] = stack(0);
        for n in 1..=3 {
            (*task).ist[n - 1] = stack(n);
        }
        let base = task as u64;
        GDT[FIXED + 2 * id] =
            103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
        GDT[FIXED + 2 * id + 1] = base >> 32;
        let gdt = Pointer {
            limit: (size_of::<[u64; FIXED + 2 * CPUS]>() - 1) as u16,
            base: &raw const GDT as u64,
        };
        asm!("lgdt [{}]", in(reg) &raw const gdt);
        asm!("ltr {:x}", in(reg) selector::TASK + 16 * id as u16);
        set_idt_limit(256 * 16 - 1);
    }
}

fn make() {
    // SAFETY: called once, before anybody else runs.
    unsafe {
        GDT[..FIXED].copy_from_slice(&[
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_1300_0000_ffff,
            0x00cf_9100_0000_ffff,
        ]);
    }
    for vector in 0..256 {
        let (dpl, ist) = match vector {
            2 => (0, IST_NMI),
            8 => (0, IST_DOUBLE_FAULT),
            3 | 0x80 => (3, IST_ALL),
            _ => (0, IST_ALL),
        };
        set_gate(vector, Gate::new(vector, dpl, ist));
    }
}

/// Replaces a gate; returns the old one.
pub fn set_gate(vector: usize, gate: Gate) -> Gate {
    // SAFETY: the table is only changed here; the processor reads it whole gates at a time, and no
    // interrupt of this vector is awaited meanwhile.
    unsafe { core::ptr::replace(&raw mut IDT[vector], gate) }
}

/// Loads the interrupt table with a limit.
pub fn set_idt_limit(limit: u16) {
    let idt = Pointer {
        limit,
        base: &raw const IDT as u64,
    };
    // SAFETY: the table lives for ever.
    unsafe { asm!("lidt [{}]", in(reg) &raw const idt) }
}
