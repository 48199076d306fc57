//! The hardware task switch (SDM vol. 3, chapter 8: task management; older editions: 7).
//!
//! ```text
//!   checks       in the old task: what is wrong with the new task state raises there
//!   ── commit ── old state saved, busy bits and back link written, registers loaded
//!   loading      in the new task: what is wrong with its segments raises #TS, #NP, #SS there
//! ```
//! Both task states are asked for before the first byte is written, so a page fault leaves the old
//! task as it was. After the commit an exception belongs to the new task, whose instruction pointer
//! stands already: [`Cpu::switched`](crate::cpu::Cpu::switched) tells the handlers so.

use umbra_x86::rflags::{FIXED, NT, VM};
use umbra_x86::state::gpr::RSP;
use umbra_x86::state::{Segment, seg};
use umbra_x86::{Exception, cr0, rflags, vector};

use crate::cpu::{Cpu, Trap};
use crate::segment::Descriptor;

/// What leads to the new task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// JMP: the old task is left for good.
    Jump,
    /// CALL: the new task returns.
    Call,
    /// An interrupt or exception, with the error code that it pushes.
    Event(Option<u32>),
    /// IRET: back to the task that called.
    Return,
}

impl Way {
    /// The new task is linked to the old one, which stays busy.
    fn nests(self) -> bool {
        matches!(self, Way::Call | Way::Event(_))
    }
}

/// DR6.BT: the task state's trap flag.
const DR6_BT: u64 = 1 << 15;
/// DR7: the local enables, which belong to the old task.
const DR7_LOCAL: u64 = 0x155;

/// Offsets in a task state, and the width of its words.
struct Layout {
    word: u64,
    cr3: Option<u64>,
    ip: u64,
    ldt: u64,
    /// Segment registers, in the order ES, CS, SS, DS, FS, GS.
    segments: usize,
    /// The least limit.
    limit: u32,
}

/// SDM vol. 3, figure 8-2.
const WIDE: Layout = Layout {
    word: 4,
    cr3: Some(0x1c),
    ip: 0x20,
    ldt: 0x60,
    segments: 6,
    limit: 0x67,
};
/// SDM vol. 3, figure 8-10.
const NARROW: Layout = Layout {
    word: 2,
    cr3: None,
    ip: 0x0e,
    ldt: 0x2a,
    segments: 4,
    limit: 0x2b,
};
/// The trap flag of the 32-bit form.
const TRAP: usize = 0x64;

impl Layout {
    fn of(kind: u16) -> &'static Self {
        if kind & 8 != 0 { &WIDE } else { &NARROW }
    }

    /// Bytes from the instruction pointer to the last segment register.
    fn saved(&self) -> usize {
        self.word as usize * (2 + 8 + self.segments)
    }

    fn read(&self, image: &[u8], at: u64) -> u32 {
        let mut word = [0; 4];
        let (at, len) = (at as usize, self.word as usize);
        word[..len].copy_from_slice(&image[at..at + len]);
        u32::from_le_bytes(word)
    }
}

/// What the new task state says.
struct State {
    cr3: Option<u32>,
    ip: u32,
    flags: u32,
    gpr: [u32; 8],
    segments: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl State {
    fn read(layout: &Layout, image: &[u8]) -> Self {
        let word = |i: u64| layout.read(image, layout.ip + i * layout.word);
        let wide = layout.word == 4;
        // A 16-bit task says nothing about upper halves; ones are what processors leave there.
        let upper = if wide { 0 } else { 0xffff_0000 };
        Self {
            cr3: layout.cr3.map(|at| layout.read(image, at)),
            ip: word(0),
            flags: word(1),
            gpr: std::array::from_fn(|i| word(2 + i as u64) | upper),
            segments: std::array::from_fn(|i| {
                if i < layout.segments {
                    word(10 + i as u64) as u16
                } else {
                    0
                }
            }),
            ldt: layout.read(image, layout.ldt) as u16,
            trap: wide && image[TRAP] & 1 != 0,
        }
    }
}

impl Cpu {
    fn ts(&mut self, selector: u16) -> Trap {
        let error = u32::from(selector & !3);
        self.raise(Exception::with_error(vector::TS, error))
    }

    /// JMP or CALL to a task state segment or task gate, whose descriptor was read.
    pub fn task_by_selector(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
        way: Way,
    ) -> Result<(), Trap> {
        let rpl = (selector & 3) as u8;
        let error = u32::from(selector & !3);
        if self.long_mode() || descriptor.dpl() < self.cpl.max(rpl) {
            return Err(self.gp(error));
        }
        if descriptor.kind() != 5 {
            return self.task_available(selector, descriptor, way);
        }
        if !descriptor.is_present() {
            return Err(self.raise(Exception::with_error(vector::NP, error)));
        }
        self.task_by_gate((descriptor.raw >> 16) as u16, way)
    }

    /// Through a task gate that was checked, to the task state `selector`.
    pub fn task_by_gate(&mut self, selector: u16, way: Way) -> Result<(), Trap> {
        if selector & 4 != 0 {
            return Err(self.gp(u32::from(selector & !3)));
        }
        let descriptor = self.descriptor(selector, vector::GP)?;
        self.task_available(selector, descriptor, way)
    }

    fn task_available(
        &mut self,
        selector: u16,
        descriptor: Descriptor,
        way: Way,
    ) -> Result<(), Trap> {
        let error = u32::from(selector & !3);
        if selector & 4 != 0 || !matches!(descriptor.kind(), 1 | 9) {
            return Err(self.gp(error));
        }
        if !descriptor.is_present() {
            return Err(self.raise(Exception::with_error(vector::NP, error)));
        }
        self.switch_task(selector, descriptor, way)
    }

    /// IRET with NT: back to the task that the current task state links to.
    pub fn task_return(&mut self) -> Result<(), Trap> {
        let at = self.table_address(self.tr.base);
        let selector = self.system(|cpu| cpu.load::<2>(at))? as u16;
        if selector & 4 != 0 {
            return Err(self.ts(selector));
        }
        let descriptor = self.descriptor(selector, vector::TS)?;
        if !matches!(descriptor.kind(), 3 | 0xb) {
            return Err(self.ts(selector));
        }
        if !descriptor.is_present() {
            let error = u32::from(selector & !3);
            return Err(self.raise(Exception::with_error(vector::NP, error)));
        }
        self.switch_task(selector, descriptor, Way::Return)
    }

    /// SDM vol. 3, 8.3: the steps of a task switch, in its order.
    fn switch_task(&mut self, selector: u16, descriptor: Descriptor, way: Way) -> Result<(), Trap> {
        let new = descriptor.segment(selector & !3);
        let layout = Layout::of(new.attr);
        if new.limit < layout.limit {
            return Err(self.ts(selector));
        }
        let mut image = [0; 0x68];
        let len = layout.limit as usize + 1;
        self.system(|cpu| cpu.read(new.base, &mut image[..len]))?;
        self.probe_old_task(way)?;
        self.probe_new_task(&new, &descriptor, way)?;

        self.save_task(way)?;
        if !way.nests() {
            self.set_busy(self.tr.selector, false)?;
        }
        if way != Way::Return {
            self.set_busy(selector, true)?;
        }
        if way.nests() {
            let old = self.tr.selector.into();
            self.system(|cpu| cpu.store::<2>(new.base, old))?;
        }
        let state = State::read(layout, &image);
        self.switched = true;
        self.tr = new;
        self.tr.attr |= 2;
        self.cr0 |= cr0::TS;
        self.dr[7] &= !DR7_LOCAL;
        self.load_task_state(&state, way)?;
        if let Way::Event(Some(error)) = way {
            match layout.word {
                4 => self.push::<4>(error.into())?,
                _ => self.push::<2>(error.into())?,
            }
        }
        if state.trap {
            self.dr[6] |= DR6_BT;
            return Err(self.raise(Exception::plain(vector::DB)));
        }
        self.switched = false;
        Ok(())
    }

    /// Raises what saving the old task would raise.
    fn probe_old_task(&mut self, way: Way) -> Result<(), Trap> {
        let old = self.tr;
        let layout = Layout::of(old.attr);
        if old.attr & Segment::P == 0 || old.limit < layout.limit {
            return Err(self.ts(old.selector));
        }
        let at = self.table_address(old.base.wrapping_add(layout.ip));
        self.system(|cpu| cpu.probe_write(at, layout.saved()))?;
        if way.nests() {
            return Ok(());
        }
        let busy = self.descriptor(old.selector, vector::TS)?.at;
        self.system(|cpu| cpu.probe_write(busy, 8))
    }

    /// Raises what marking and linking the new task would raise.
    fn probe_new_task(
        &mut self,
        new: &Segment,
        descriptor: &Descriptor,
        way: Way,
    ) -> Result<(), Trap> {
        self.system(|cpu| {
            if way != Way::Return {
                cpu.probe_write(descriptor.at, 8)?;
            }
            if way.nests() {
                cpu.probe_write(new.base, 2)?;
            }
            Ok(())
        })
    }

    /// Writes the registers into the old task state; the next task to return finds them.
    fn save_task(&mut self, way: Way) -> Result<(), Trap> {
        let old = self.tr;
        let layout = Layout::of(old.attr);
        let mut flags = self.rflags();
        if way == Way::Return {
            flags &= !NT;
        }
        let mut words = vec![self.rip, flags];
        words.extend((0..8).map(|i| self.regs.r(i)));
        let segments = self.seg.iter().take(layout.segments);
        words.extend(segments.map(|s| u64::from(s.selector)));
        let bytes: Vec<u8> = words
            .iter()
            .flat_map(|word| word.to_le_bytes()[..layout.word as usize].to_vec())
            .collect();
        let at = self.table_address(old.base.wrapping_add(layout.ip));
        self.system(|cpu| cpu.write(at, &bytes))
    }

    /// Sets or clears the busy bit of a task's descriptor.
    fn set_busy(&mut self, selector: u16, busy: bool) -> Result<(), Trap> {
        let at = self.descriptor(selector, vector::TS)?.at.wrapping_add(5);
        let bit = if busy { 2 } else { 0 };
        self.system(|cpu| cpu.rmw_locked::<1>(at, |_, byte| byte & !2 | bit))
    }

    /// Makes the new task's registers the current ones.
    fn load_task_state(&mut self, state: &State, way: Way) -> Result<(), Trap> {
        for (i, value) in state.gpr.iter().enumerate() {
            self.regs.set_r(i, (*value).into());
        }
        self.rip = state.ip.into();
        let nested = if way.nests() { NT } else { 0 };
        let flags = u64::from(state.flags) & rflags::DEFINED | FIXED | nested;
        // Until each is checked no segment can be used.
        for index in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
            let selector = state.segments[index];
            self.set_seg(
                index,
                Segment {
                    selector,
                    ..Segment::default()
                },
            );
        }
        self.ldtr = Segment {
            selector: state.ldt,
            ..Segment::default()
        };
        self.cpl = if flags & VM != 0 {
            3
        } else {
            (state.segments[seg::CS] & 3) as u8
        };
        self.seg[seg::CS].selector = state.segments[seg::CS];
        self.set_rflags(flags);
        if self.cr0 & cr0::PG != 0
            && let Some(cr3) = state.cr3
        {
            self.set_cr3(cr3.into())?;
        }
        self.load_task_ldt(state.ldt)?;
        self.load_task_segments(state)?;
        self.refresh_mode();
        if u64::from(state.ip) > u64::from(self.seg[seg::CS].limit) {
            return Err(self.gp(0));
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: u16) -> Result<(), Trap> {
        if selector & !3 == 0 {
            return Ok(());
        }
        if selector & 4 != 0 {
            return Err(self.ts(selector));
        }
        let descriptor = self.descriptor(selector, vector::TS)?;
        if descriptor.kind() != 2 || !descriptor.is_present() {
            return Err(self.ts(selector));
        }
        self.ldtr = descriptor.segment(selector);
        Ok(())
    }

    fn load_task_segments(&mut self, state: &State) -> Result<(), Trap> {
        let rest = [seg::ES, seg::DS, seg::FS, seg::GS];
        if self.v86() {
            for index in [seg::SS].into_iter().chain(rest) {
                self.load_segment(index, state.segments[index])?;
            }
            self.set_v86_code(state.segments[seg::CS]);
            return Ok(());
        }
        self.load_task_code(state.segments[seg::CS])?;
        let ss = state.segments[seg::SS];
        if ss & !3 == 0 {
            return Err(self.ts(ss));
        }
        let stack = self.stack_segment(ss, self.cpl, vector::TS)?;
        self.set_seg(seg::SS, stack);
        for index in rest {
            let selector = state.segments[index];
            match self.data_segment(selector) {
                Ok(segment) => self.set_seg(index, segment),
                Err(trap) => {
                    // What is #GP when an instruction loads it is #TS here.
                    if let Some(e) = self.pending.as_mut().filter(|e| e.vector == vector::GP) {
                        e.vector = vector::TS;
                    }
                    return Err(trap);
                }
            }
        }
        Ok(())
    }

    fn load_task_code(&mut self, selector: u16) -> Result<(), Trap> {
        if selector & !3 == 0 {
            return Err(self.ts(selector));
        }
        let descriptor = self.descriptor(selector, vector::TS)?;
        let rpl = (selector & 3) as u8;
        let level = if descriptor.is_conforming() {
            descriptor.dpl() <= rpl
        } else {
            descriptor.dpl() == rpl
        };
        if !descriptor.is_code() || !level {
            return Err(self.ts(selector));
        }
        if !descriptor.is_present() {
            let error = u32::from(selector & !3);
            return Err(self.raise(Exception::with_error(vector::NP, error)));
        }
        self.enter_code(selector, descriptor, rpl)
    }

    /// CS in virtual-8086 mode.
    pub fn set_v86_code(&mut self, selector: u16) {
        let code = Segment {
            selector,
            base: u64::from(selector) << 4,
            limit: 0xffff,
            attr: 0xb | Segment::S | Segment::P | 3 << 5,
        };
        self.set_code(code, 3);
    }

    /// Undoes a stack pointer, unless the task has changed: then it is another one's.
    pub fn restore_stack(&mut self, before: u64) {
        if !self.switched {
            self.regs.set_r(RSP, before);
        }
    }
}
