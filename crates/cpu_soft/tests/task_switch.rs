//! The hardware task switch (SDM vol. 3, chapter 8; older editions: 7), in 32-bit protected mode.
#![cfg(target_arch = "x86_64")]

mod bare;

use bare::{CODE, CODE_0, CODE_3, DATA_0, DATA_3, END, Machine, STACK, gate, protected, system};
use umbra_x86::rflags::{FIXED, NT, VM};
use umbra_x86::state::{CpuState, Segment, seg};

/// The task that runs first, the one that is switched to, a 16-bit one, a gate.
const OLD: u16 = 0x40;
const NEW: u16 = 0x48;
const NARROW: u16 = 0x50;
const GATE: u16 = 0x58;
const LDT: u16 = 0x60;
const OLD_AT: u64 = 0x3000;
const NEW_AT: u64 = 0x4000;
const NARROW_AT: u64 = 0x5000;
const NEW_CODE: u64 = 0x1_8000;
const NEW_STACK: u64 = 0x2_8000;

const AVAILABLE: u64 = 9;
const BUSY: u64 = 0xb;

fn jmp(selector: u16) -> Vec<u8> {
    far(0xea, selector)
}

fn call(selector: u16) -> Vec<u8> {
    far(0x9a, selector)
}

/// The offset of a far pointer to a task is ignored.
fn far(opcode: u8, selector: u16) -> Vec<u8> {
    let [low, high] = selector.to_le_bytes();
    vec![opcode, 0xde, 0xad, 0xbe, 0xef, low, high]
}

struct Tasks {
    machine: Machine,
    state: CpuState,
}

impl Tasks {
    fn new() -> Self {
        let machine = Machine::new();
        machine.descriptor(OLD, system(OLD_AT, 0x67, BUSY, 0));
        machine.descriptor(NEW, system(NEW_AT, 0x67, AVAILABLE, 0));
        machine.descriptor(NARROW, system(NARROW_AT, 0x2b, 1, 0));
        machine.descriptor(GATE, gate(NEW, 0, 5, 0));
        machine.write(NEW_CODE, &END);
        let mut state = protected();
        state.tr = Segment {
            selector: OLD,
            base: OLD_AT,
            limit: 0x67,
            attr: 0xb | Segment::P,
        };
        let tasks = Self { machine, state };
        tasks.field(0x20, NEW_CODE as u32);
        tasks.field(0x24, FIXED as u32);
        for i in 0..8 {
            tasks.field(0x28 + 4 * i, 0x100 + i as u32);
        }
        tasks.field(0x38, NEW_STACK as u32);
        for (at, selector) in [
            (0x48, DATA_0),
            (0x4c, CODE_0),
            (0x50, DATA_0),
            (0x54, DATA_0),
            (0x58, DATA_0),
            (0x5c, DATA_0),
        ] {
            tasks.field(at, selector.into());
        }
        tasks
    }

    /// Writes a field of the new task state.
    fn field(&self, at: u64, value: u32) {
        self.machine.write(NEW_AT + at, &value.to_le_bytes());
    }

    fn run(&mut self, code: &[u8]) -> bare::End {
        self.machine.write(CODE, code);
        self.machine.run(&self.state)
    }

    fn kind(&self, selector: u16) -> u8 {
        self.machine.read::<1>(bare::GDT + u64::from(selector) + 5)[0] & 0xf
    }
}

#[test]
fn jmp_saves_the_old_task_and_loads_the_new_one() {
    let mut tasks = Tasks::new();
    tasks.state.gpr[3] = 0x1234_5678;
    let end = tasks.run(&jmp(NEW));
    assert_eq!(end.exception(), "6", "{end:?}");
    assert_eq!(end.state.rip, NEW_CODE);
    assert_eq!(end.state.gpr[..4], [0x100, 0x101, 0x102, 0x103]);
    assert_eq!(end.state.gpr[4], NEW_STACK);
    assert_eq!(end.state.tr.selector, NEW);
    assert_eq!(end.state.cr0 >> 3 & 1, 1, "CR0.TS");
    assert_eq!(end.state.rflags & NT, 0);
    assert_eq!((tasks.kind(OLD), tasks.kind(NEW)), (9, 0xb));
    assert_eq!(u64::from(tasks.machine.read_u32(OLD_AT + 0x20)), CODE + 7);
    assert_eq!(tasks.machine.read_u32(OLD_AT + 0x34), 0x1234_5678);
    assert_eq!(tasks.machine.read_u16(OLD_AT + 0x4c), CODE_0);
}

#[test]
fn call_links_the_tasks_and_iret_comes_back() {
    let mut tasks = Tasks::new();
    let mut code = call(NEW);
    code.extend(END);
    tasks.machine.write(NEW_CODE, &[0xcf]); // iret
    let end = tasks.run(&code);
    assert_eq!(end.exception(), "6", "{end:?}");
    assert_eq!(end.state.rip, CODE + 7);
    assert_eq!(end.state.tr.selector, OLD);
    assert_eq!(end.state.rflags & NT, 0);
    assert_eq!((tasks.kind(OLD), tasks.kind(NEW)), (0xb, 9));
    assert_eq!(tasks.machine.read_u16(NEW_AT), OLD, "the back link");
    assert_eq!(
        u64::from(tasks.machine.read_u32(NEW_AT + 0x20)),
        NEW_CODE + 1
    );
}

#[test]
fn a_task_gate_leads_to_its_task() {
    let mut tasks = Tasks::new();
    let end = tasks.run(&call(GATE));
    assert_eq!((end.exception(), end.state.rip), ("6", NEW_CODE));
    assert_eq!(end.state.rflags & NT, NT);
    assert_eq!((tasks.kind(OLD), tasks.kind(NEW)), (0xb, 0xb));
}

#[test]
fn a_16_bit_task_gets_16_bit_registers() {
    let mut tasks = Tasks::new();
    let words = [
        (0x0e, 0x8000),
        (0x10, 2),
        (0x12, 0xabcd),
        (0x1a, 0x9000),
        (0x22, DATA_0),
        (0x24, CODE_0),
        (0x26, DATA_0),
        (0x28, DATA_0),
    ];
    for (at, word) in words {
        tasks.machine.write(NARROW_AT + at, &word.to_le_bytes());
    }
    tasks.machine.write(0x8000, &END);
    let end = tasks.run(&jmp(NARROW));
    assert_eq!((end.exception(), end.state.rip), ("6", 0x8000), "{end:?}");
    assert_eq!(end.state.gpr[0] as u16, 0xabcd);
    assert_eq!(end.state.seg[seg::FS].selector, 0);
    assert_eq!(tasks.kind(NARROW), 3);
}

#[test]
fn an_exception_through_a_task_gate_pushes_its_error_code_in_the_new_task() {
    let mut tasks = Tasks::new();
    tasks.state.idtr.limit = 12 * 8 - 1;
    tasks.machine.gate(11, gate(NEW, 0, 5, 0));
    tasks.machine.descriptor(0x70, 0x00cf_1300_0000_ffff);
    // mov eax, 0x70; mov ds, eax: not present
    let end = tasks.run(&[0xb8, 0x70, 0, 0, 0, 0x8e, 0xd8]);
    assert_eq!((end.exception(), end.state.rip), ("6", NEW_CODE), "{end:?}");
    assert_eq!(end.state.gpr[4], NEW_STACK - 4);
    assert_eq!(tasks.machine.read_u32(NEW_STACK - 4), 0x70);
    assert_eq!(u64::from(tasks.machine.read_u32(OLD_AT + 0x20)), CODE + 5);
    assert_eq!(end.state.rflags & NT, NT);
}

#[test]
fn what_is_wrong_with_the_task_state_segment_raises_in_the_old_task() {
    let absent = system(NEW_AT, 0x67, AVAILABLE, 0) & !(0x80 << 40);
    let table = [
        ("busy", system(NEW_AT, 0x67, BUSY, 0), "13(0x48)"),
        ("absent", absent, "11(0x48)"),
        ("too small", system(NEW_AT, 0x66, AVAILABLE, 0), "10(0x48)"),
    ];
    for (what, descriptor, expected) in table {
        let mut tasks = Tasks::new();
        tasks.machine.descriptor(NEW, descriptor);
        let end = tasks.run(&jmp(NEW));
        assert_eq!(end.exception(), expected, "{what}");
        assert_eq!(
            (end.state.rip, end.state.tr.selector),
            (CODE, OLD),
            "{what}"
        );
    }
}

#[test]
fn privilege_is_that_of_the_descriptor_that_is_named() {
    let level_3 = || {
        let mut tasks = Tasks::new();
        tasks.state.seg = [DATA_3, CODE_3, DATA_3, DATA_3, DATA_3, DATA_3].map(bare::flat);
        tasks
    };
    assert_eq!(level_3().run(&jmp(NEW)).exception(), "13(0x48)");
    // A gate of level 3 leads to a task of level 0.
    let mut tasks = level_3();
    tasks.machine.descriptor(GATE, gate(NEW, 0, 5, 3));
    let end = tasks.run(&jmp(GATE | 3));
    assert_eq!((end.exception(), end.state.rip), ("6", NEW_CODE), "{end:?}");
}

#[test]
fn what_is_wrong_with_its_segments_raises_in_the_new_task() {
    // Field of the task state, what it holds, what that raises (SDM vol. 3, table 8-1).
    let table = [
        ("LDT in the local table", 0x60, 0x04, "10(0x4)"),
        ("LDT of another type", 0x60, u32::from(DATA_0), "10(0x10)"),
        ("CS null", 0x4c, 0, "10(0x0)"),
        ("CS of data", 0x4c, DATA_0.into(), "10(0x10)"),
        (
            "CS of another level",
            0x4c,
            u32::from(CODE_0) | 3,
            "10(0x8)",
        ),
        ("CS absent", 0x4c, 0x78, "11(0x78)"),
        ("SS null", 0x50, 0, "10(0x0)"),
        ("SS of code", 0x50, CODE_0.into(), "10(0x8)"),
        ("SS of another level", 0x50, DATA_3.into(), "10(0x20)"),
        ("SS absent", 0x50, 0x70, "12(0x70)"),
        ("DS of a task", 0x54, OLD.into(), "10(0x40)"),
        ("DS absent", 0x54, 0x70, "11(0x70)"),
        ("GS beyond the table", 0x5c, 0x1000, "10(0x1000)"),
    ];
    for (what, at, value, expected) in table {
        let mut tasks = Tasks::new();
        tasks.machine.descriptor(0x70, 0x00cf_1300_0000_ffff);
        tasks.machine.descriptor(0x78, 0x00cf_1b00_0000_ffff);
        tasks.field(at, value);
        let end = tasks.run(&jmp(NEW));
        assert_eq!(end.exception(), expected, "{what}");
        assert_eq!(
            (end.state.rip, end.state.tr.selector),
            (NEW_CODE, NEW),
            "{what}"
        );
    }
}

#[test]
fn an_entry_beyond_the_limit_of_cs_raises_in_the_new_task() {
    let mut tasks = Tasks::new();
    tasks.machine.descriptor(0x78, 0x0040_9b00_0000_0fff);
    tasks.field(0x4c, 0x78);
    let end = tasks.run(&jmp(NEW));
    assert_eq!((end.exception(), end.state.rip), ("13(0x0)", NEW_CODE));
}

#[test]
fn the_local_table_of_the_new_task_holds_its_segments() {
    let mut tasks = Tasks::new();
    tasks.machine.descriptor(LDT, system(0x6000, 0xff, 2, 0));
    tasks
        .machine
        .write(0x6008, &0x00cf_9300_0000_ffffu64.to_le_bytes());
    tasks.field(0x60, LDT.into());
    tasks.field(0x54, 0xc);
    let end = tasks.run(&jmp(NEW));
    assert_eq!((end.exception(), end.state.rip), ("6", NEW_CODE), "{end:?}");
    assert_eq!(
        (end.state.ldtr.selector, end.state.seg[seg::DS].selector),
        (LDT, 0xc)
    );
}

#[test]
fn a_task_may_be_one_of_virtual_8086_mode() {
    let mut tasks = Tasks::new();
    tasks.field(0x20, 0x100);
    tasks.field(0x24, (FIXED | VM | 3 << 12) as u32);
    tasks.field(0x4c, 0x1700);
    tasks.field(0x54, 0x1234);
    tasks.machine.write(0x1_7100, &END);
    let end = tasks.run(&jmp(NEW));
    assert_eq!((end.exception(), end.state.rip), ("6", 0x100), "{end:?}");
    assert_eq!(end.state.seg[seg::DS].base, 0x1_2340);
    assert_eq!(end.state.rflags & VM, VM);
}

#[test]
fn the_trap_flag_of_a_task_state_raises_db_before_its_first_instruction() {
    let mut tasks = Tasks::new();
    tasks.field(0x64, 1);
    let end = tasks.run(&jmp(NEW));
    assert_eq!((end.exception(), end.state.rip), ("1", NEW_CODE), "{end:?}");
    assert_eq!(end.state.tr.selector, NEW);
}

#[test]
fn iret_to_a_task_that_is_not_busy_raises_ts() {
    let mut tasks = Tasks::new();
    tasks.state.rflags |= NT;
    tasks.machine.write(OLD_AT, &NEW.to_le_bytes());
    let end = tasks.run(&[0xcf]);
    assert_eq!((end.exception(), end.state.rip), ("10(0x48)", CODE));
}

#[test]
fn the_new_task_pushes_on_its_own_stack() {
    let mut tasks = Tasks::new();
    tasks.machine.write(NEW_CODE, &[0x50, 0x0f, 0x0b]); // push eax
    tasks.state.gpr[4] = STACK;
    let end = tasks.run(&jmp(NEW));
    assert_eq!(end.state.gpr[4], NEW_STACK - 4);
    assert_eq!(tasks.machine.read_u32(NEW_STACK - 4), 0x100);
    assert_eq!(u64::from(tasks.machine.read_u32(OLD_AT + 0x38)), STACK);
}
