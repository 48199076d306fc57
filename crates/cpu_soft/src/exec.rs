//! The loop: blocks, events between them, sleep.
//!
//! ```text
//!   cycle ─┬─ service   requests of others, INIT/SIPI/NMI, interrupts       (somebody asked)
//!          ├─ blocks    block after block until one says Look, Halt, Fault  (the hot loop)
//!          ├─ step      one instruction with debug checks or under a shadow
//!          └─ wait      halted (`halt`)
//! ```
//! Between two blocks the hot loop does two things: it looks at one word that everybody who wants
//! something sets ([`Waker`](crate::wake::Waker)), and it counts instructions down to the next
//! reading of the clock.

use umbra_cpu::{Crash, Exit};
use umbra_irqchip::Event;
use umbra_mmu::AccessKind;
use umbra_x86::rflags::{IF, RF, TF};
use umbra_x86::state::{Segment, seg};
use umbra_x86::{Exception, Gva, vector};

use crate::cpu::{Activity, Cpu, Trap, mode};
use crate::interrupt::Origin;
use crate::jumps::{Jump, TRANSLATED, jump_tag};
use crate::meter::Doing;
use crate::op::Leave;

/// Instructions between two readings of the clock: some microseconds.
const CLOCK_PERIOD: i64 = 2000;

/// DR6: single step.
const DR6_BS: u64 = 1 << 14;

impl Cpu {
    /// Runs until something has to be decided outside.
    pub fn run(&mut self) -> Exit {
        self.wake.adopt();
        self.wake.want();
        self.gauge.set(Doing::Interpreting);
        self.mmu.enter();
        self.deliver_held();
        let exit = self.cycle();
        self.mmu.leave();
        self.gauge.set(Doing::Nothing);
        exit
    }

    fn cycle(&mut self) -> Exit {
        loop {
            if let Some(exit) = self.service() {
                return exit;
            }
            if let Some(crash) = self.translator.take_difference() {
                return Exit::Stuck(crash);
            }
            match self.activity {
                Activity::Running => {}
                Activity::Halted | Activity::WaitForSipi => {
                    self.wait();
                    continue;
                }
                Activity::Shutdown => return Exit::Shutdown(Box::new(self.crash_report())),
            }
            let leave = if self.shadow || self.mode & mode::SINGLE != 0 {
                self.step()
            } else {
                // RF is about the next instruction only; without breakpoints it ends here.
                self.sys &= !RF;
                self.blocks()
            };
            match leave {
                Leave::Halt => {
                    self.stats.halts += 1;
                    self.activity = Activity::Halted;
                }
                Leave::Fault => self.deliver_pending(),
                // `blocks` deals with `Hot`; `On` is said inside translated code.
                Leave::Done | Leave::Look | Leave::On | Leave::Hot => {}
            }
        }
    }

    /// The hot loop.
    fn blocks(&mut self) -> Leave {
        loop {
            if self.wake.wanted() {
                return Leave::Look;
            }
            let mode = self.mode;
            let tag = jump_tag(self.rip, mode);
            let mut jump = *self.jumps().code(self.rip);
            if jump.tag != tag ^ TRANSLATED {
                jump = *self.jumps().block(self.rip);
                if jump.tag != tag {
                    jump = match self.find(mode) {
                        Ok(jump) => jump,
                        Err(Trap) => return Leave::Fault,
                    };
                }
            }
            let leave = if jump.tag == tag {
                self.enter_block(jump)
            } else {
                self.enter_jump(jump)
            };
            match leave {
                Leave::Done => {}
                Leave::Hot => self.translate_block(),
                leave => return leave,
            }
            if self.mode & mode::SINGLE != 0 {
                return Leave::Look;
            }
        }
    }

    /// Executes the block that `jump` leads to.
    #[inline(always)]
    pub fn enter_block(&mut self, jump: Jump) -> Leave {
        self.budget -= jump.count();
        if self.budget <= 0 {
            self.read_clock();
        }
        let rip = self.rip;
        self.regs.set_block_rip(rip);
        // SAFETY: jumps and `find` lead to blocks that `self.blocks` owns, each of at least one
        // operation; a block that dies while it executes is kept until `service` buries it, between
        // blocks, and no jump leads to it any more.
        let first = unsafe { &*jump.first() };
        (first.handler.get())(self, first)
    }

    /// The way to a block that no jump knows.
    #[cold]
    #[inline(never)]
    fn find(&mut self, mode: u8) -> Result<Jump, Trap> {
        self.stats.jump_misses += 1;
        if let Some(jump) = self.find_translated(mode)? {
            return Ok(jump);
        }
        let block = self.block(mode)?;
        // SAFETY: owned by `self.blocks`, see `enter_block`.
        let block = unsafe { &*block };
        let jump = Jump::to(block, jump_tag(self.rip, mode));
        if block.second.is_none() && self.class != crate::tlb::Class::Uncached {
            let rip = self.rip;
            self.remember_jump(rip, jump);
        }
        Ok(jump)
    }

    #[cold]
    #[inline(never)]
    fn read_clock(&mut self) {
        self.stats.instructions += (CLOCK_PERIOD - self.budget) as u64;
        self.budget = CLOCK_PERIOD;
        self.look_at_clock();
    }

    fn look_at_clock(&mut self) {
        if self.timer_due != u64::MAX {
            let now = self.clock.now();
            if now >= self.timer_due {
                self.apic.tick(now);
                self.timer_due = self.apic.next_timer().unwrap_or(u64::MAX);
                self.wake.want();
            }
        }
    }

    /// One instruction, with what has to be watched around it.
    fn step(&mut self) -> Leave {
        self.shadow = false;
        let quiet = std::mem::take(&mut self.debug_shadow);
        let before = self.sys;
        if before & RF == 0 && !quiet && self.breakpoint_here() {
            return Leave::Fault;
        }
        if !quiet {
            self.watch_hits = 0;
        }
        self.called = false;
        let leave = match self.find_single() {
            Ok(jump) => self.enter_block(jump),
            Err(Trap) => Leave::Fault,
        };
        if leave == Leave::Fault {
            self.watch_hits = 0;
            return leave;
        }
        if before & RF != 0 {
            self.sys &= !RF;
        }
        // Neither INT n nor the first instruction of its handler is stepped (SDM vol. 3, 17.3.1.4).
        let stepped = if before & TF != 0 && !self.called {
            DR6_BS
        } else {
            0
        };
        if self.debug_shadow {
            // No step, and what a load of SS hit is held for one instruction, be it INT n: then the
            // trap comes before the handler's first instruction (SDM vol. 3, 6.8.3).
            return leave;
        }
        let hits = stepped | std::mem::take(&mut self.watch_hits);
        if hits != 0 {
            // Only B0 to B3 are about this one; the rest is the handler's to clear (SDM vol. 3, 17.2.3).
            self.dr[6] = self.dr[6] & !0xf | hits;
            self.pending = Some(Exception::plain(vector::DB));
            // After HLT too: the trap comes first, and HLT is over when its handler returns.
            return Leave::Fault;
        }
        leave
    }

    /// The block of the one instruction at the instruction pointer.
    fn find_single(&mut self) -> Result<Jump, Trap> {
        let mode = self.mode | mode::SINGLE;
        let block = self.block(mode)?;
        // SAFETY: owned by `self.blocks`, see `enter_block`.
        Ok(Jump::to(unsafe { &*block }, jump_tag(self.rip, mode)))
    }

    /// Whether single-stepping is on.
    pub fn stepping(&self) -> bool {
        self.sys & TF != 0
    }

    /// Raises #DB for an instruction breakpoint at the instruction pointer.
    fn breakpoint_here(&mut self) -> bool {
        if !self.breakpoints_armed() {
            return false;
        }
        let la = self.rip.wrapping_add(if self.long_code() {
            0
        } else {
            self.seg[seg::CS].base
        });
        let dr7 = self.dr[7];
        let hit = (0..4)
            .filter(|i| dr7 >> (2 * i) & 3 != 0 && dr7 >> (16 + 4 * i) & 3 == 0)
            .filter(|i| self.dr[*i as usize] == la)
            .fold(0, |bits, i| bits | 1u64 << i);
        if hit != 0 {
            self.dr[6] = self.dr[6] & !0xf | hit;
            self.pending = Some(Exception::plain(vector::DB));
        }
        hit != 0
    }

    /// Notes the data breakpoints that `len` bytes at `la` hit (SDM vol. 3, 17.2.4, 17.2.5). Pages
    /// are not cached while any is armed, so every access comes here.
    pub fn check_watchpoints(&mut self, la: u64, kind: AccessKind, len: u64) {
        let dr7 = self.dr[7];
        if dr7 & 0xff == 0 {
            return;
        }
        for i in 0..4 {
            let enabled = dr7 >> (2 * i) & 3 != 0;
            let wanted = match dr7 >> (16 + 4 * i) & 3 {
                1 => kind == AccessKind::Write,
                3 => kind != AccessKind::Fetch,
                _ => false,
            };
            let size = [1, 2, 8, 4][(dr7 >> (18 + 4 * i) & 3) as usize];
            let start = self.dr[i] & !(size - 1);
            let overlaps = la < start.wrapping_add(size) && start < la.wrapping_add(len);
            if enabled && wanted && overlaps {
                self.watch_hits |= 1 << i;
            }
        }
    }

    /// Looks at everything that somebody may want; returns an exit for a kick.
    fn service(&mut self) -> Option<Exit> {
        self.wake.take();
        self.count_attention();
        self.drain();
        for (page, mask) in self.code_port.take() {
            self.drop_code(page, mask);
        }
        if self.blocks.has_dead() || self.blocks.has_parked() {
            self.blocks.bury();
        }
        if self.translator.has_dead() {
            self.translator.bury();
        }
        if self.alarm_set != u64::MAX {
            // Translated code does not read the clock.
            self.look_at_clock();
        }
        if self.wake.take_kick() {
            return Some(Exit::Kicked);
        }
        if self.apic.work() || self.nmi_pending != 0 || self.blocked {
            self.events();
        }
        None
    }

    fn events(&mut self) {
        while let Some(event) = self.apic.take_event() {
            self.event(event);
        }
        if matches!(self.activity, Activity::WaitForSipi | Activity::Shutdown) || self.shadow {
            return;
        }
        if self.nmi_pending != 0 && !self.nmi_blocked {
            self.nmi_pending -= 1;
            self.nmi_blocked = true;
            self.activity = Activity::Running;
            if self.deliver(vector::NMI, None, Origin::External).is_err() {
                self.deliver_pending();
            }
            return;
        }
        self.blocked = false;
        if self.apic.pending().is_none() {
            return;
        }
        if self.sys & IF == 0 {
            self.blocked = true;
            return;
        }
        if let Some(vector) = self.apic.acknowledge() {
            self.activity = Activity::Running;
            self.deliver_interrupt(vector);
            // More may be waiting; the handler runs with interrupts off in most systems.
            self.blocked = self.apic.work();
        }
    }

    /// Acts upon what others sent.
    pub fn event(&mut self, event: Event) {
        match event {
            Event::Nmi => {
                // One is delivered next unless one is being handled, and one more is latched.
                let most = if self.nmi_blocked { 1 } else { 2 };
                self.nmi_pending = most.min(self.nmi_pending + 1);
            }
            Event::Init => {
                self.init();
                self.activity = if self.boot {
                    Activity::Running
                } else {
                    Activity::WaitForSipi
                };
                self.timer_changed();
            }
            Event::Sipi(page) if self.activity == Activity::WaitForSipi => {
                let selector = u16::from(page) << 8;
                let attr = 0xb | Segment::S | Segment::P;
                let base = u64::from(page) << 12;
                self.set_code(
                    Segment {
                        selector,
                        base,
                        limit: 0xffff,
                        attr,
                    },
                    0,
                );
                self.rip = 0;
                self.activity = Activity::Running;
            }
            Event::Sipi(_) => {}
        }
    }

    /// IRET lets the next NMI in.
    pub fn nmi_unblock(&mut self) {
        if self.nmi_blocked {
            self.nmi_blocked = false;
            self.wake.want();
        }
    }

    /// What is known about a guest that cannot go on.
    pub fn crash_report(&mut self) -> Crash {
        let state = self.export();
        let at = if self.cr2 != 0 { self.cr2 } else { self.rip };
        let mut walk = self.mmu.describe_walk(Gva(at));
        walk.insert(0, format!("walk of {at:#x}:"));
        let rip = self.seg[seg::CS].base.wrapping_add(self.rip);
        Crash {
            reason: self.crash.clone(),
            state,
            code: self.mmu.peek_bytes(Gva(rip), 15),
            walk,
        }
    }
}
