//! The software processor in the same mode, with the same tables.

#[path = "../processor/mod.rs"]
mod processor;

use processor::{Nothing, Processor};
use umbra_cpu::{Exit, Vcpu};
use umbra_cpu_soft::model;
use umbra_x86::state::{CpuState, DescriptorTable, Segment};
use umbra_x86::{cr0, cr4, efer};

use super::tables::{GDT, local_table, segment};
use super::{AREA, Case, DATA, HOLE, MEMORY, MEMORY_LEN, Outcome, SIZE};

/// Guest-physical address of the area.
const AREA_GPA: u64 = 0x20_0000;
/// Pages that only level 0 sees: tables, and the harness's own code and data.
const PRIVATE: u64 = AREA + 0x18_0000;
const GDT_AT: u64 = PRIVATE;
const LDT_AT: u64 = PRIVATE + 0x1000;
const STUB: u64 = PRIVATE + 0x2000;
const FX: u64 = PRIVATE + 0x3000;
const STAGING: u64 = PRIVATE + 0x4000;
const TASK: u64 = PRIVATE + 0x6000;

/// `fxrstor64 [rax]; rep movsb; ud2`
const PREPARE: [u8; 8] = [0x48, 0x0f, 0xae, 0x08, 0xf3, 0xa4, 0x0f, 0x0b];
/// `fxsave64 [rax]; ud2`
const FINISH: [u8; 6] = [0x48, 0x0f, 0xae, 0x00, 0x0f, 0x0b];

pub struct Guest {
    processor: Processor,
}

impl Guest {
    pub fn new() -> Self {
        let processor = Processor::new(model::x86_64_v2(0, 1));
        let guest = Self { processor };
        guest.write_tables();
        guest
    }

    fn write_tables(&self) {
        self.put_physical(0x1000, &0x2007u64.to_le_bytes());
        self.put_physical(0x2000 + 8 * (AREA >> 30), &0x3007u64.to_le_bytes());
        self.put_physical(0x3000 + 8 * (AREA >> 21 & 511), &0x4007u64.to_le_bytes());
        const NX: u64 = 1 << 63;
        for offset in (0..SIZE as u64).step_by(0x1000) {
            let at = AREA + offset;
            let rights = match at {
                PRIVATE.. => 3,
                _ if (HOLE..PRIVATE).contains(&at) => 0,
                _ if (DATA..HOLE).contains(&at) => 7 | NX,
                _ => 7,
            };
            let entry = if rights == 0 {
                0
            } else {
                (AREA_GPA + offset) | rights
            };
            self.put_physical(0x4000 + offset / 512, &entry.to_le_bytes());
        }
        let bytes =
            |table: &[u64]| -> Vec<u8> { table.iter().flat_map(|d| d.to_le_bytes()).collect() };
        self.put(DATA, &[super::INT3; 0x1000]);
        self.put(TASK + 0x66, &[0xff, 0xff]);
        self.put(GDT_AT, &bytes(&GDT));
        self.put(LDT_AT, &bytes(&local_table()));
    }

    fn put_physical(&self, gpa: u64, bytes: &[u8]) {
        self.processor.write(gpa, bytes);
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.put_physical(at - AREA + AREA_GPA, bytes);
    }

    fn get(&self, at: u64, bytes: &mut [u8]) {
        self.processor.read(at - AREA + AREA_GPA, bytes);
    }

    pub fn run(&mut self, case: &Case) -> Outcome {
        self.put(MEMORY, &case.memory);
        let page = case.page();
        // The guest itself copies the code into place: what is written behind its back it need not
        // notice.
        self.put(STAGING, &page);
        self.put(FX, &case.fx);
        self.stub(&PREPARE, page.len() as u64);
        let state = user(case);
        self.processor.vcpu.set_state(&state).expect("valid state");
        let reason = self.shut_down();
        let after = self.processor.vcpu.state();
        self.stub(&FINISH, 0);
        let (vector, error, cr2) = parse(&reason);
        let mut outcome = Outcome {
            gpr: std::array::from_fn(|i| after.gpr[i]),
            rip: after.rip,
            flags: after.rflags as u32,
            selectors: [1, 2, 3, 0].map(|i: usize| normal(after.seg[i].selector)),
            fx: [0; 512],
            vector,
            error,
            cr2,
            memory: vec![0; MEMORY_LEN],
        };
        self.get(FX, &mut outcome.fx);
        self.get(MEMORY, &mut outcome.memory);
        outcome
    }

    fn shut_down(&mut self) -> String {
        match self
            .processor
            .vcpu
            .run(&Nothing)
            .expect("the host allows it")
        {
            Exit::Shutdown(crash) => crash.reason,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a few instructions at level 0 in 64-bit mode.
    fn stub(&mut self, code: &[u8], copied: u64) {
        // Two places, so that neither overwrites decoded code.
        let at = STUB + 0x100 * (code.len() as u64 & 6);
        self.put(at, code);
        let mut state = CpuState {
            rip: at,
            rflags: 2,
            seg: [
                segment(0x18),
                segment(0x10),
                segment(0x18),
                segment(0x18),
                segment(0),
                segment(0),
            ],
            ..common()
        };
        state.gpr[0] = FX;
        state.gpr[1] = copied;
        state.gpr[6] = STAGING;
        state.gpr[7] = AREA;
        self.processor.vcpu.set_state(&state).expect("valid state");
        let reason = self.shut_down();
        assert!(reason.contains("vector 6"), "{reason}");
    }
}

/// The way from the kernel to a process makes every null selector 0.
fn normal(selector: u16) -> u16 {
    if selector & !3 == 0 { 0 } else { selector }
}

/// What both modes share: paging on, no interrupt table, so that every exception shuts down.
fn common() -> CpuState {
    let table = |base, len: usize| DescriptorTable {
        base,
        limit: 8 * len as u16 - 1,
    };
    let local = table(LDT_AT, local_table().len());
    CpuState {
        cr0: cr0::PE | cr0::MP | cr0::NE | cr0::WP | cr0::AM | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT,
        efer: efer::LME | efer::LMA | efer::NXE | efer::SCE,
        gdtr: table(GDT_AT, GDT.len()),
        idtr: DescriptorTable { base: 0, limit: 0 },
        // No room for a map of ports.
        tr: Segment {
            selector: 0x40,
            base: TASK,
            limit: 0x67,
            attr: 0xb | Segment::P,
        },
        ldtr: Segment {
            selector: 0x50,
            base: local.base,
            limit: local.limit.into(),
            attr: 2 | Segment::P,
        },
        ..CpuState::default()
    }
}

fn user(case: &Case) -> CpuState {
    let mut state = CpuState {
        rip: case.rip(),
        rflags: u64::from(case.flags | 0x202),
        seg: [case.es, case.cs, case.ss, case.ds, 0, 0].map(segment),
        ..common()
    };
    for (to, from) in state.gpr.iter_mut().zip(case.gpr) {
        *to = from;
    }
    state
}

/// Reads vector, error code and address of the first exception of a triple fault. INT3 and INTO
/// find no gate, which is what is reported.
fn parse(reason: &str) -> (u8, u32, u64) {
    let first = reason.strip_prefix("triple fault: ").unwrap_or(reason);
    let first = first.split(", then").next().unwrap_or(first);
    let hex = |text: &str| {
        let digits = text.trim_start_matches("0x");
        let end = digits
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(digits.len());
        u64::from_str_radix(&digits[..end], 16).unwrap_or_else(|_| panic!("{reason}"))
    };
    let error = first
        .split_once('(')
        .map_or(0, |(_, rest)| hex(rest) as u32);
    if first.starts_with("#PF") {
        let address = first.split_once(" at ").expect("an address").1;
        return (14, error, hex(address));
    }
    let number = first
        .strip_prefix("vector ")
        .unwrap_or_else(|| panic!("{reason}"));
    let end = number.find('(').unwrap_or(number.len());
    match error {
        0x1a => return (3, 0, 0),
        0x22 => return (4, 0, 0),
        _ => {}
    }
    (number[..end].trim().parse().expect("a vector"), error, 0)
}
