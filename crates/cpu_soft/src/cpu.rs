//! The processor's state, and the small questions that everything asks of it.

use std::ptr::NonNull;
use std::sync::Arc;

use umbra_clock::Clock;
use umbra_cpu::Io;
use umbra_irqchip::LocalApic;
use umbra_mmu::{PagingRegs, VcpuMmu};
use umbra_slots::{AccessError, Gpa};
use umbra_x86::cpuid::Table;
use umbra_x86::state::{DescriptorTable, Segment, seg};
use umbra_x86::{Exception, cr0, cr4, efer, rflags, vector};

use crate::code::{Blocks, CodePages, CodePort};
use crate::flags::Flags;
use crate::fpu::FxArea;
use crate::jumps::Jumps;
use crate::meter::{Doing, Gauge, Meter};
use crate::native::Stubs;
use crate::op::{Leave, Op, addr};
use crate::regs::Regs;
use crate::saved::Held;
use crate::stats::Stats;
use crate::tlb::{Class, Ctx, Key, Pool, Selected};
use crate::translator::{Alarm, Shared, Translator};
use crate::wake::Waker;

/// An instruction could not be completed; the exception is in [`Cpu::pending`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap;

/// Model-specific registers that are plain storage.
#[derive(Clone, Debug, Default)]
pub struct Msrs {
    /// SYSCALL selectors.
    pub star: u64,
    /// SYSCALL target.
    pub lstar: u64,
    /// SYSCALL target, compatibility mode.
    pub cstar: u64,
    /// SYSCALL flag mask.
    pub fmask: u64,
    /// What SWAPGS exchanges.
    pub kernel_gs_base: u64,
    /// RDTSCP's ECX.
    pub tsc_aux: u64,
    /// SYSENTER code segment.
    pub sysenter_cs: u64,
    /// SYSENTER stack.
    pub sysenter_esp: u64,
    /// SYSENTER target.
    pub sysenter_eip: u64,
    /// Page attribute table: stored, without effect.
    pub pat: u64,
    /// Miscellaneous enables.
    pub misc_enable: u64,
    /// Added to the clock to make the guest's time-stamp counter.
    pub tsc_offset: u64,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// MSR_KVM_SYSTEM_TIME_NEW.
    pub kvm_system_time: u64,
    /// MSR_KVM_WALL_CLOCK_NEW.
    pub kvm_wall_clock: u64,
    /// MSR_KVM_ASYNC_PF_EN.
    pub kvm_async_pf: u64,
}

impl Msrs {
    /// The values after power-up (SDM vol. 3, table 10-1).
    pub fn at_power_up() -> Self {
        Self {
            pat: 0x0007_0406_0007_0406,
            misc_enable: 1,
            ..Self::default()
        }
    }
}

/// What the processor is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Executing.
    Running,
    /// Halted until an interrupt.
    Halted,
    /// An application processor that waits for its start-up message.
    WaitForSipi,
    /// Shut down by a triple fault.
    Shutdown,
}

/// One software processor.
#[repr(C)]
pub struct Cpu {
    /// General registers.
    pub regs: Regs,
    /// Status flags.
    pub flags: Flags,
    /// Instruction pointer; exact between blocks and when a trap is pending.
    pub rip: u64,
    /// Segment bases for address arithmetic; 6 is always zero. In 64-bit code only FS and GS count,
    /// and the decoder uses 6 for the others.
    pub seg_base: [u64; 8],
    ctx: NonNull<Ctx>,
    jumps: NonNull<Jumps>,
    /// RFLAGS without the status flags.
    pub sys: u64,
    /// Bits of [`addr`] that need the slow address path in the current mode.
    pub slow: u8,
    /// Stack and near branches need no checks: 64-bit code, or flat 32-bit segments.
    pub quick_stack: bool,
    /// Width of linear addresses.
    pub linear_mask: u64,
    /// Privilege level.
    pub cpl: u8,
    /// The decoding mode: see [`mode`].
    pub mode: u8,
    /// Interrupts wait for one more instruction (STI, MOV SS).
    pub shadow: bool,
    /// Debug exceptions wait too (MOV SS).
    pub debug_shadow: bool,
    /// The pending exception belongs to a task that was just entered, not to the instruction.
    pub switched: bool,
    /// The instruction was INT n or one of its kin and has cleared TF.
    pub called: bool,
    /// The pending exception is about an address that is not canonical.
    pub wild: bool,
    /// What an instruction raised.
    pub pending: Option<Exception>,
    /// Accesses are user-mode ones.
    pub access_user: bool,
    /// Accesses have EFLAGS.AC in the sense of SMAP.
    pub access_ac: bool,
    /// Which context is selected.
    pub class: Class,
    classes: [Option<Selected>; 3],
    /// Segment registers.
    pub seg: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3, without the no-flush bit.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// PKRU.
    pub pkru: u32,
    /// XCR0: the state components that XSAVE handles.
    pub xcr0: u64,
    /// DR0 to DR3, two unused, DR6, DR7.
    pub dr: [u64; 8],
    /// NMIs that wait: two while none is handled, else one (SDM vol. 3, 6.7.1).
    pub nmi_pending: u8,
    /// NMIs are held back until IRET.
    pub nmi_blocked: bool,
    /// Data breakpoints that the current instruction hit, as DR6 bits.
    pub watch_hits: u64,
    /// PAUSE instructions executed, see [`pause`](crate::ops::mov::pause).
    pub pauses: u32,
    /// What a restored state has to deliver first.
    pub held: Held,
    /// x87, MMX and SSE registers. Translated code knows where they are, so the box stays.
    pub fx: Box<FxArea>,
    /// Other model-specific registers.
    pub msrs: Msrs,
    /// What CPUID shows.
    pub cpuid: Table,
    /// What it is doing.
    pub activity: Activity,
    /// How long to look for something to do before sleeping.
    pub halt_look: crate::halt::Look,
    /// Instructions until the clock is read again.
    pub budget: i64,
    /// When the APIC's timer is due, in nanoseconds.
    pub timer_due: u64,
    /// An interrupt waits for RFLAGS.IF.
    pub blocked: bool,
    /// Why the machine shut down.
    pub crash: String,
    /// Counters.
    pub stats: Stats,
    /// What it does, for who looks.
    pub gauge: Arc<Gauge>,
    /// Who does, if somebody does.
    pub meter: Option<Arc<Meter>>,
    /// Instructions reported as unknown, by bytes.
    pub reported: rustc_hash::FxHashSet<[u8; 15]>,

    /// The translator.
    pub translator: Translator,
    /// What translated code and its surroundings tell each other.
    pub shared: Shared,
    /// Interrupts translated code when a timer is due.
    pub alarm: Arc<Alarm>,
    /// For when it is set.
    pub alarm_set: u64,

    /// Translation contexts.
    pub pool: Pool,
    /// Decoded blocks.
    pub blocks: Blocks,
    /// Native stubs.
    pub stubs: Stubs,
    /// Guest-physical memory.
    pub space: Arc<umbra_slots::AddressSpace>,
    /// The shadow MMU.
    pub mmu: VcpuMmu,
    machine_mmu: Arc<umbra_mmu::Mmu>,
    /// The local APIC.
    pub apic: Arc<LocalApic>,
    /// Time.
    pub clock: Clock,
    /// The machine's pages with code.
    pub code: Arc<CodePages>,
    /// What other processors overwrote.
    pub code_port: Arc<CodePort>,
    /// Attention and sleep.
    pub wake: Arc<Waker>,
    /// Number of this processor.
    pub id: u32,
    /// Whether it is the boot processor.
    pub boot: bool,
    io: Option<NonNull<dyn Io>>,
}

/// Where [`Cpu::ctx`] is, from the processor's address: translated code changes it.
pub const CTX: usize = std::mem::offset_of!(Cpu, ctx);

/// Bits of [`Cpu::mode`]: what the meaning of code bytes depends on.
pub mod mode {
    /// Mask of the code size: 0 is 16 bits, 1 is 32, 2 is 64.
    pub const SIZE: u8 = 3;
    /// The stack is 32 bits wide (outside 64-bit code).
    pub const STACK32: u8 = 1 << 2;
    /// Blocks of one instruction: single step, breakpoints, interrupt shadow.
    pub const SINGLE: u8 = 1 << 3;
    /// Code reaches up to 4 GiB: its limit needs no checks (outside 64-bit code).
    pub const FLAT: u8 = 1 << 4;

    /// The instruction pointer behind an instruction: 64 bits wide in 64-bit code, else 32, also in
    /// 16-bit code, where what lies beyond 64 KiB is beyond the limit and not at 0
    /// (SDM vol. 3, 20.1.1).
    #[inline(always)]
    pub fn cut(mode: u8, rip: u64) -> u64 {
        if mode & SIZE == 2 {
            rip
        } else {
            rip & 0xffff_ffff
        }
    }
}

// SAFETY: the raw pointers are `ctx`, `jumps` and `classes` (into `pool`, which moves with the processor but whose
// contexts and tables are boxed), jumps and parked operations (of boxed blocks owned by `blocks`) and `io` (present only while a
// run is in progress, on the running thread). None refers to anything thread-local.
unsafe impl Send for Cpu {}

/// What a new processor is made of.
pub struct Parts {
    pub id: u32,
    pub boot: bool,
    pub space: Arc<umbra_slots::AddressSpace>,
    pub mmu: Arc<umbra_mmu::Mmu>,
    pub vcpu_mmu: VcpuMmu,
    pub apic: Arc<LocalApic>,
    pub clock: Clock,
    pub cpuid: Table,
    pub code: Arc<CodePages>,
    pub code_port: Arc<CodePort>,
    pub wake: Arc<Waker>,
    pub stubs: Stubs,
    pub fx: Box<FxArea>,
    pub translator: Translator,
    pub alarm: Arc<Alarm>,
    pub meter: Option<Arc<Meter>>,
    pub gauge: Arc<Gauge>,
}

impl Cpu {
    /// A processor after power-up.
    pub fn new(parts: Parts) -> Self {
        let mut pool = Pool::new();
        let Selected { ctx, jumps } = pool.selected(0);
        let boot = parts.boot;
        let mut cpu = Self {
            regs: Regs::new(),
            flags: Flags::default(),
            rip: 0,
            seg_base: [0; 8],
            ctx,
            jumps,
            sys: rflags::FIXED,
            slow: addr::OFFSET,
            quick_stack: false,
            linear_mask: u64::MAX,
            cpl: 0,
            mode: 0,
            shadow: false,
            debug_shadow: false,
            switched: false,
            called: false,
            wild: false,
            pending: None,
            access_user: false,
            access_ac: false,
            class: Class::Supervisor,
            classes: [None; 3],
            seg: [Segment::default(); 6],
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            pkru: 0,
            xcr0: 1,
            dr: [0; 8],
            nmi_pending: 0,
            nmi_blocked: false,
            watch_hits: 0,
            held: Held::default(),
            pauses: 0,
            fx: parts.fx,
            msrs: Msrs::default(),
            cpuid: parts.cpuid,
            activity: if boot {
                Activity::Running
            } else {
                Activity::WaitForSipi
            },
            halt_look: crate::halt::Look::default(),
            budget: 0,
            timer_due: u64::MAX,
            blocked: false,
            crash: String::new(),
            stats: Stats::default(),
            gauge: parts.gauge,
            meter: parts.meter,
            reported: rustc_hash::FxHashSet::default(),
            translator: parts.translator,
            shared: Shared::default(),
            alarm: parts.alarm,
            alarm_set: u64::MAX,
            pool,
            blocks: Blocks::default(),
            stubs: parts.stubs,
            space: parts.space,
            mmu: parts.vcpu_mmu,
            machine_mmu: parts.mmu,
            apic: parts.apic,
            clock: parts.clock,
            code: parts.code,
            code_port: parts.code_port,
            wake: parts.wake,
            id: parts.id,
            boot,
            io: None,
        };
        cpu.reset();
        cpu
    }

    /// The state after power-up.
    pub fn reset(&mut self) {
        self.msrs = Msrs::at_power_up();
        *self.fx = FxArea::reset();
        self.xcr0 = 1;
        self.pkru = 0;
        self.init();
    }

    /// The state after INIT: like power-up, but x87, SSE and most MSRs are kept (SDM vol. 3,
    /// table 9-1).
    pub fn init(&mut self) {
        self.dr = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];
        self.shadow = false;
        self.debug_shadow = false;
        self.nmi_pending = 0;
        self.nmi_blocked = false;
        self.load_state(&umbra_x86::state::CpuState::default());
    }

    /// The selected context.
    #[inline(always)]
    pub fn ctx(&self) -> &Ctx {
        // SAFETY: `ctx` points to one of `pool`'s boxes, which are neither moved nor freed
        // before `self`; it is changed through `&mut self` only.
        unsafe { self.ctx.as_ref() }
    }

    /// The selected context, to fill.
    #[inline(always)]
    pub fn ctx_mut(&mut self) -> &mut Ctx {
        // SAFETY: as in `ctx`; `&mut self` makes it the only reference.
        unsafe { self.ctx.as_mut() }
    }

    /// Selects `ctx`, which lives until another one is selected; returns the one that was.
    pub fn swap_ctx(&mut self, ctx: NonNull<Ctx>) -> NonNull<Ctx> {
        std::mem::replace(&mut self.ctx, ctx)
    }

    /// Where code of the current privilege leads to.
    #[inline(always)]
    pub fn jumps(&self) -> &Jumps {
        // SAFETY: as in `ctx`: `pool` has them boxed, and frees none before `self`.
        unsafe { self.jumps.as_ref() }
    }

    /// The same, to fill.
    pub fn jumps_mut(&mut self) -> &mut Jumps {
        // SAFETY: as in `ctx_mut`.
        unsafe { self.jumps.as_mut() }
    }

    /// Calls the machine from inside an instruction. Nobody waits for this processor meanwhile.
    pub fn outside<R>(&mut self, call: impl FnOnce(&dyn Io) -> R) -> R {
        self.mmu.leave();
        let io = self.io.expect("guest code executes inside a run only");
        let was = self.gauge.begin(Doing::Devices);
        // SAFETY: `with_io` keeps the machine borrowed for as long as `io` is set.
        let result = call(unsafe { io.as_ref() });
        self.gauge.end(was);
        self.mmu.enter();
        self.drain();
        result
    }

    /// Runs `body` with `io` as the machine.
    pub fn with_io<R>(&mut self, io: &dyn Io, body: impl FnOnce(&mut Self) -> R) -> R {
        let pointer = NonNull::from(io);
        // SAFETY: only the lifetime is changed; the pointer is used while `io` is set, which ends
        // before the borrow `io` does. A panic in `body` leaves it set, but then no further run
        // uses it before setting it anew.
        self.io =
            Some(unsafe { std::mem::transmute::<NonNull<dyn Io + '_>, NonNull<dyn Io>>(pointer) });
        let result = body(self);
        self.io = None;
        result
    }

    /// Linear instruction pointer of `op`.
    #[inline(always)]
    pub fn rip_of(&self, op: &Op) -> u64 {
        self.regs.block_rip().wrapping_add(u64::from(op.off))
    }

    /// Instruction pointer behind `op`.
    #[inline(always)]
    pub fn rip_after(&self, op: &Op) -> u64 {
        let rip = self.rip_of(op).wrapping_add(u64::from(op.len));
        mode::cut(self.mode, rip)
    }

    /// Leaves the block with the pending exception; `op` is to be restarted.
    #[cold]
    #[inline(never)]
    pub fn fault(&mut self, op: &Op) -> Leave {
        if std::mem::take(&mut self.switched) {
            return Leave::Fault;
        }
        self.rip = self.rip_of(op);
        if std::mem::take(&mut self.wild) && op.addr & addr::STACK != 0 {
            self.stack_fault();
        }
        Leave::Fault
    }

    /// A non-canonical address relative to RSP or RBP raises #SS (SDM vol. 1, 3.3.7.1).
    fn stack_fault(&mut self) {
        let general = Exception::with_error(vector::GP, 0);
        if self.long_code() && self.pending == Some(general) {
            self.pending = Some(Exception::with_error(vector::SS, 0));
        }
    }

    /// Makes an exception pending.
    #[cold]
    pub fn raise(&mut self, exception: Exception) -> Trap {
        self.pending = Some(exception);
        Trap
    }

    /// #GP with an error code.
    #[cold]
    pub fn gp(&mut self, error: u32) -> Trap {
        self.raise(Exception::with_error(vector::GP, error))
    }

    /// #UD.
    #[cold]
    pub fn ud(&mut self) -> Trap {
        self.raise(Exception::plain(vector::UD))
    }

    /// Executing 64-bit code.
    #[inline(always)]
    pub fn long_code(&self) -> bool {
        self.mode & mode::SIZE == 2
    }

    /// IA-32e mode is active (64-bit or compatibility).
    pub fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// Protected mode, virtual-8086 not counted.
    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0 && self.sys & rflags::VM == 0
    }

    /// Paging is of the PAE kind: three levels.
    pub fn pae(&self) -> bool {
        self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 && !self.long_mode()
    }

    /// Virtual-8086 mode.
    pub fn v86(&self) -> bool {
        self.sys & rflags::VM != 0
    }

    /// I/O privilege level.
    pub fn iopl(&self) -> u8 {
        (self.sys >> 12 & 3) as u8
    }

    /// Tells whether a linear address is canonical; outside IA-32e mode every 32-bit one is.
    pub fn canonical(&self, la: u64) -> bool {
        if !self.long_mode() {
            return la >> 32 == 0;
        }
        let unused = if self.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
        (la << unused) as i64 >> unused == la as i64
    }

    /// Tells whether a linear address is canonical at the greatest width that the processor has,
    /// paged with four levels or five: so wide are the registers that hold one (GDTR, IDTR, LDTR,
    /// TR, FS, GS, and those that are MSRs), and the operand of INVPCID (SDM vol. 1, 3.3.7.1).
    pub fn canonical_at_most(&self, la: u64) -> bool {
        let five_levels = self.cpuid.get(7, 0).ecx >> 16 & 1 != 0;
        let unused = if five_levels { 7 } else { 16 };
        (la << unused) as i64 >> unused == la as i64
    }

    /// RFLAGS, whole.
    pub fn rflags(&self) -> u64 {
        self.sys & !rflags::STATUS | self.flags.get() | rflags::FIXED
    }

    /// Loads RFLAGS; the caller has decided which bits may change.
    pub fn set_rflags(&mut self, value: u64) {
        self.flags.set(value);
        let old = self.sys;
        self.sys = value & rflags::DEFINED & !rflags::STATUS | rflags::FIXED;
        let changed = old ^ self.sys;
        if changed & (rflags::AC | rflags::TF | rflags::VM | rflags::RF) != 0 {
            self.refresh_mode();
        }
        if self.sys & rflags::IF != 0 && self.blocked || self.sys & rflags::RF != 0 {
            self.wake.want();
        }
    }

    /// Recomputes what depends on CS, SS, CPL, RFLAGS and the control registers.
    pub fn refresh_mode(&mut self) {
        let cs = self.seg[seg::CS].attr;
        let size = if self.long_mode() && cs & Segment::L != 0 {
            2
        } else {
            u8::from(cs & Segment::DB != 0)
        };
        self.mode = size;
        if self.seg[seg::SS].attr & Segment::DB != 0 {
            self.mode |= mode::STACK32;
        }
        if self.seg[seg::CS].limit == u32::MAX {
            self.mode |= mode::FLAT;
        }
        if size == 2 {
            self.mode = 2;
        }
        self.refresh_segments();
        if self.sys & rflags::TF != 0 || self.breakpoints_armed() || self.watches_armed() {
            self.mode |= mode::SINGLE;
        }
        self.select_class();
    }

    /// Chooses the translation context for the current privilege.
    pub fn select_class(&mut self) {
        let user = self.cpl == 3;
        let ac = self.sys & rflags::AC != 0;
        let aligned = user && ac && self.cr0 & cr0::AM != 0;
        let class = if self.watches_armed() || aligned {
            Class::Uncached
        } else if user {
            Class::User
        } else if ac && self.cr4 & cr4::SMAP != 0 {
            Class::SupervisorAc
        } else {
            Class::Supervisor
        };
        self.select(class, user, ac);
    }

    /// The current accesses are those of level 3, and CR0.AM and EFLAGS.AC ask for aligned data.
    pub fn alignment_checks(&self) -> bool {
        self.access_user && self.sys & rflags::AC != 0 && self.cr0 & cr0::AM != 0
    }

    /// The contexts of the levels 0 to 2 with EFLAGS.AC clear and set: their addresses, where SMAP
    /// distinguishes them and they are known, else zero.
    pub fn supervisors(&self) -> [u64; 2] {
        let smap = self.cr4 & cr4::SMAP != 0;
        [Class::Supervisor, Class::SupervisorAc].map(|class| {
            let known = self.classes[class as usize].filter(|_| smap);
            known.map_or(0, |selected| selected.ctx.as_ptr() as u64)
        })
    }

    fn select(&mut self, class: Class, user: bool, ac: bool) {
        self.access_user = user;
        self.access_ac = ac && !user;
        self.class = class;
        let known = self.classes.get(class as usize).copied().flatten();
        let selected = match known {
            Some(selected) => selected,
            None => self.find_context(class),
        };
        (self.ctx, self.jumps) = (selected.ctx, selected.jumps);
        if class == Class::Uncached {
            self.ctx_mut().clear();
        }
    }

    #[cold]
    fn find_context(&mut self, class: Class) -> Selected {
        let cr3 = if self.cr0 & cr0::PG != 0 {
            self.cr3
        } else {
            u64::MAX
        };
        let (at, known) = self.pool.select(Key { cr3, class });
        let selected = self.pool.selected(at);
        if !known {
            self.pool.get(at).epoch = self.machine_mmu.epoch();
            // The context may have been another class's.
            let others = self.classes.iter_mut();
            others
                .filter(|c| c.is_some_and(|c| c.ctx == selected.ctx))
                .for_each(|c| *c = None);
        }
        if let Some(slot) = self.classes.get_mut(class as usize) {
            *slot = Some(selected);
        }
        selected
    }

    /// Runs `body` with implicit supervisor accesses: descriptor tables, the task state (SDM
    /// vol. 3, 4.6).
    pub fn system<R>(&mut self, body: impl FnOnce(&mut Self) -> R) -> R {
        let class = if self.watches_armed() {
            Class::Uncached
        } else {
            Class::Supervisor
        };
        self.select(class, false, false);
        let result = body(self);
        self.select_class();
        result
    }

    /// Tells the MMU about the paging registers and forgets which contexts were selected.
    pub fn refresh_paging(&mut self) {
        self.mmu.set_regs(&PagingRegs {
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            pkru: self.pkru,
        });
        self.drain();
        self.pool.leave_address_space();
        self.classes = [None; 3];
        self.refresh_mode();
    }

    /// The MMU's count of dropped entries.
    pub fn mmu_epoch(&self) -> u64 {
        self.machine_mmu.epoch()
    }

    /// Writes guest RAM by the MMU's way for devices.
    pub fn write_for_device(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        self.machine_mmu.write_for_device(gpa, data)
    }

    /// Loads a segment register's hidden part.
    pub fn set_seg(&mut self, index: usize, segment: Segment) {
        self.seg[index] = segment;
        self.seg_base[index] = segment.base;
        self.refresh_segments();
    }

    /// Some linear address is watched (DR7 enables a data or I/O breakpoint).
    pub fn watches_armed(&self) -> bool {
        let dr7 = self.dr[7];
        dr7 & 0xff != 0 && (0..4).any(|i| dr7 >> (2 * i) & 3 != 0 && dr7 >> (16 + 4 * i) & 3 != 0)
    }

    /// Some linear address is an instruction breakpoint.
    pub fn breakpoints_armed(&self) -> bool {
        let dr7 = self.dr[7];
        dr7 & 0xff != 0 && (0..4).any(|i| dr7 >> (2 * i) & 3 != 0 && dr7 >> (16 + 4 * i) & 3 == 0)
    }
}
