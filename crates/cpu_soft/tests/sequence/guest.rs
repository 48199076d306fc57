//! The software processor in the same mode; a small kernel takes the exceptions.

#[path = "../processor/mod.rs"]
mod processor;

use processor::{Nothing, Processor};
use umbra_clock::Clock;
use umbra_cpu::{Exit, Vcpu};
use umbra_cpu_soft::model;
use umbra_x86::state::{CpuState, DescriptorTable, Segment};
use umbra_x86::{cr0, cr4, efer};

use super::{CODE, CODE_LEN, Case, INT3, MEMORY, MEMORY_LEN, Outcome, WINDOW, WINDOW_LEN};

/// Where the first 2 MiB of memory are for level 0.
const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT_AT: u64 = 0x7000;
const IDT_AT: u64 = 0x8000;
const TASK: u64 = 0x9000;
const ENTRY: u64 = 0xa000;
/// One handler every 64 bytes.
const HANDLERS: u64 = 0xa100;
const FX: u64 = 0xb000;
const STACK: u64 = 0xd000;
/// What the way in returns through.
const FRAME: u64 = 0xe000;
/// Ten bytes of zeros: an interrupt table without gates.
const NO_TABLE: u64 = 0xf000;
/// Where 0x4000_0000 is.
const AREA: u64 = 0x20_0000;

const KERNEL_CODE: u16 = 0x10;
const KERNEL_DATA: u16 = 0x18;
const USER_DATA: u16 = 0x2b;
const USER_CODE: u16 = 0x33;
const GDT: [u64; 7] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];

pub struct Guest {
    processor: Processor,
    state: CpuState,
    memory: Vec<u8>,
}

impl Guest {
    pub fn new() -> Self {
        Self::around(Processor::new(model::maximal(0, 1)))
    }

    /// One whose instructions are all interpreted.
    pub fn interpreted() -> Self {
        let kind = umbra_cpu_soft::Processor::Interpreter;
        Self::around(Processor::of_kind(
            model::maximal(0, 1),
            Clock::start(),
            kind,
        ))
    }

    fn around(processor: Processor) -> Self {
        let guest = Self {
            processor,
            state: kernel(),
            memory: vec![0; MEMORY_LEN],
        };
        guest.write_tables();
        guest.write_kernel();
        guest
    }

    fn write_tables(&self) {
        const NX: u64 = 1 << 63;
        let entries = [
            (0x1000, 0x2007),
            (0x1000 + 8 * 256, 0x5003),
            (0x2000 + 8 * (CODE >> 30), 0x3007),
            (0x3000, 0x4007),
            (0x5000, 0x6003),
            (0x6000, 0x83),
        ];
        for (at, entry) in entries {
            self.put(at, &u64::to_le_bytes(entry));
        }
        for (from, len, rights) in [(CODE, CODE_LEN, 7), (MEMORY, MEMORY_LEN, 7 | NX)] {
            for at in (from..from + len as u64).step_by(0x1000) {
                let offset = at - CODE;
                let entry = (AREA + offset) | rights;
                self.put(0x4000 + offset / 512, &entry.to_le_bytes());
            }
        }
        self.put(AREA, &[INT3; CODE_LEN]);
    }

    fn write_kernel(&self) {
        for (i, descriptor) in GDT.iter().enumerate() {
            self.put(GDT_AT + 8 * i as u64, &descriptor.to_le_bytes());
        }
        self.put(TASK + 4, &(KERNEL + STACK).to_le_bytes());
        let to = |from: u64, to: u64| (to.wrapping_sub(from) as u32).to_le_bytes();
        // fxrstor64 [FX]; iretq
        let enter = [
            &[0x48, 0x0f, 0xae, 0x0d][..],
            &to(ENTRY + 8, FX),
            &[0x48, 0xcf],
        ];
        self.put(ENTRY, &enter.concat());
        for vector in 0..32 {
            let at = HANDLERS + 64 * vector;
            // fxsave64 [FX]; lidt [NO_TABLE]; ud2
            let handler = [
                &[0x48, 0x0f, 0xae, 0x05][..],
                &to(at + 8, FX),
                &[0x0f, 0x01, 0x1d],
                &to(at + 15, NO_TABLE),
                &[0x0f, 0x0b],
            ];
            self.put(at, &handler.concat());
            let offset = KERNEL + at;
            let low = offset & 0xffff
                | u64::from(KERNEL_CODE) << 16
                | 0xee << 40
                | (offset >> 16 & 0xffff) << 48;
            self.put(IDT_AT + 16 * vector, &low.to_le_bytes());
            self.put(IDT_AT + 16 * vector + 8, &(offset >> 32).to_le_bytes());
        }
    }

    fn put(&self, gpa: u64, bytes: &[u8]) {
        self.processor.write(gpa, bytes);
    }

    fn get(&self, gpa: u64, bytes: &mut [u8]) {
        self.processor.read(gpa, bytes);
    }

    /// Runs a case whose code has been laid out in `window`.
    pub fn run(&mut self, case: &Case, window: &[u8; WINDOW_LEN]) -> Outcome {
        let code = AREA + (WINDOW - CODE);
        self.put(code, window);
        self.processor
            .code
            .written_by_device(code, WINDOW_LEN as u64);
        self.put(AREA + (MEMORY - CODE), &case.memory);
        self.put(FX, &case.fx);
        let frame = [
            case.start,
            USER_CODE.into(),
            case.flags | 0x202,
            case.gpr[4],
            USER_DATA.into(),
        ];
        let bytes: Vec<u8> = frame.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(FRAME, &bytes);
        self.state.gpr = case.gpr;
        self.state.gpr[4] = KERNEL + FRAME;
        self.processor
            .vcpu
            .set_state(&self.state)
            .expect("valid state");
        match self
            .processor
            .vcpu
            .run(&Nothing)
            .expect("the host allows it")
        {
            Exit::Shutdown(_) => self.outcome(),
            other => panic!("{other:?}"),
        }
    }

    fn outcome(&mut self) -> Outcome {
        let state = self.processor.vcpu.state();
        let vector = state.rip.wrapping_sub(KERNEL + HANDLERS) / 64;
        assert!(vector < 32, "the kernel itself failed: {state:x?}");
        let has_error = matches!(vector, 8 | 10..=14 | 17);
        let mut frame = [0; 48];
        self.get(STACK - 48, &mut frame);
        let word =
            |i: usize| u64::from_le_bytes(frame[8 * i..8 * i + 8].try_into().expect("eight bytes"));
        let mut outcome = Outcome {
            gpr: state.gpr,
            rip: word(1),
            flags: word(3),
            fx: [0; 512],
            vector: vector as u8,
            error: if has_error { word(0) } else { 0 },
            cr2: state.cr2,
        };
        outcome.gpr[4] = word(4);
        self.get(FX, &mut outcome.fx);
        let mut memory = std::mem::take(&mut self.memory);
        self.get(AREA + (MEMORY - CODE), &mut memory);
        self.memory = memory;
        outcome
    }

    /// The code afterwards.
    pub fn window(&self) -> [u8; WINDOW_LEN] {
        let mut window = [0; WINDOW_LEN];
        self.get(AREA + (WINDOW - CODE), &mut window);
        window
    }

    /// The memory afterwards.
    pub fn memory(&self) -> &[u8] {
        &self.memory
    }
}

/// 64-bit mode at level 0, at the way in.
fn kernel() -> CpuState {
    let segment = |selector: u16, attr: u16| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        attr,
    };
    let data = segment(KERNEL_DATA, 0xc093);
    CpuState {
        rip: KERNEL + ENTRY,
        rflags: 2,
        seg: [data, segment(KERNEL_CODE, 0xa09b), data, data, data, data],
        cr0: cr0::PE | cr0::MP | cr0::NE | cr0::WP | cr0::AM | cr0::PG,
        cr3: 0x1000,
        cr4: cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT,
        efer: efer::LME | efer::LMA | efer::NXE | efer::SCE,
        gdtr: DescriptorTable {
            base: KERNEL + GDT_AT,
            limit: 8 * GDT.len() as u16 - 1,
        },
        idtr: DescriptorTable {
            base: KERNEL + IDT_AT,
            limit: 16 * 32 - 1,
        },
        tr: Segment {
            selector: 0x40,
            base: KERNEL + TASK,
            // It ends before it says where a map of ports is: there are none.
            limit: 0x66,
            attr: 0xb | Segment::P,
        },
        // None, as a program on the host has none.
        ldtr: Segment::default(),
        ..CpuState::default()
    }
}
