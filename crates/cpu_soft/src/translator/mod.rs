//! The translator: what is hot runs as host code.
//!
//! ```text
//!   interpreter counts a block's executions ── enough ──> translate: the block, and those of its page
//!                                                        that it leads to and that have executed
//!   loop ── the context's jump leads to code ──> unit ──> unit ──> …        (no Rust in between)
//!                                                  └─ missed, unusual ──> one instruction interpreted
//! ```
//! Guest and host speak the same language: an instruction is copied with its registers renamed
//! ([`layout`]), its memory operand checked and replaced ([`memory`]), and its flags kept where the
//! host has them ([`flags`]). Whatever is not worth it, or goes wrong, is one instruction executed by
//! the interpreter, which stays the reference.
//!
//! What keeps it right: registers are in place at each instruction, so an exception in the interpreter's
//! hands is precise; code is known by guest-physical page and dies with its bytes
//! ([`code`](crate::code) tells); a translation is only ever used through the caches of the context, so
//! what flushes them is what it always was; and no loop is without a look at the processor's
//! [`Waker`](crate::wake::Waker).

mod alarm;
mod asm;
mod bases;
mod bits;
mod both;
mod branch;
mod cache;
mod copy;
mod counts;
mod crossing;
mod emit;
mod flags;
mod forms;
mod glue;
mod heads;
mod join;
mod layout;
mod memory;
mod perf;
mod pins;
mod privilege;
mod recent;
mod segments;
mod sse;
mod stack;
mod strings;
mod swaps;
mod system;
#[cfg(test)]
mod tests;
mod transfer;
mod unit;

use umbra_cpu::Crash;
use umbra_x86::cr0;
use umbra_x86::state::seg;

use crate::code::granules;
use crate::cpu::{Cpu, Trap, mode};
use crate::fpu::FxArea;
use crate::jumps::Jump;
use crate::meter::Doing;
use crate::raw;
use crate::tlb::{GLOBAL, LARGE};
use crate::wake::Waker;

pub use alarm::Alarm;
pub use both::Both;
pub use counts::Counts;
pub use emit::Piece;
pub use glue::Shared;
pub use perf::perf_map;

use both::Twin;
use cache::Cache;
use crossing::Source;
use emit::{Emitter, Made};
use glue::{Glue, Single};
use join::{join, leads_to};
use unit::{Exit, Key, Unit, Units};

/// Executions of a block before it is translated.
pub const THRESHOLD: u8 = 48;
/// Most instructions of a unit.
const MAX_INSNS: usize = 256;
/// Most pieces of a unit.
const MAX_PIECES: usize = 32;
/// Bytes that are read for one piece.
const WINDOW: u64 = 256;
/// Bytes of code for which there has to be room before a unit is made: a kibibyte for each time that an instruction
/// of the largest unit can be made, with its way out of line.
const ROOM: usize = (2 * MAX_INSNS) << 10;
/// The same for links.
const ROOM_LINKS: usize = 2 * MAX_PIECES + 2;

/// The size of code is in the mode; 64-bit code has no other bit set.
pub const LONG: u8 = 2;

/// The translator of one processor.
pub struct Translator {
    works: Option<Works>,
    /// Executions of a block before it is translated.
    pub threshold: u8,
    /// Counters.
    pub counts: Counts,
    /// What compares, where everything executes twice.
    pub both: Option<Box<Both>>,
}

struct Works {
    cache: Cache,
    glue: Glue,
    units: Units,
    /// Host code that is made wrong: what becomes what.
    #[cfg(test)]
    planted: Option<(Vec<u8>, Vec<u8>)>,
}

impl Translator {
    /// One that translates nothing.
    pub fn off() -> Self {
        Self {
            works: None,
            threshold: 0,
            counts: Counts::default(),
            both: None,
        }
    }

    /// One that translates a block when it has executed `threshold` times, for a processor whose SSE state
    /// is at `fx` and which `wake` wakes, for good. Where it is `measured`, units count how often they are left for
    /// others.
    ///
    /// # Errors
    /// Where the host refuses executable memory.
    pub fn new(
        threshold: u8,
        fx: &FxArea,
        wake: &Waker,
        measured: bool,
    ) -> Result<Self, rustix::io::Errno> {
        let gate = std::ptr::from_ref(wake.gate()) as u64;
        let mut cache = Cache::new(gate)?;
        let fx = std::ptr::from_ref(fx) as u64;
        let glue = Glue::new(&mut cache, fx, gate, measured);
        let glue = glue.ok_or(rustix::io::Errno::INVAL)?;
        Ok(Self {
            works: Some(Works {
                cache,
                glue,
                units: Units::default(),
                #[cfg(test)]
                planted: None,
            }),
            threshold,
            counts: Counts::default(),
            both: None,
        })
    }

    /// One that has everything executed by the interpreter, too, and compares.
    ///
    /// # Errors
    /// Where the host refuses executable memory.
    pub fn both(fx: &FxArea, wake: &Waker) -> Result<Self, rustix::io::Errno> {
        let mut translator = Self::new(0, fx, wake, false)?;
        translator.both = Some(Both::new());
        Ok(translator)
    }

    /// The difference that ends the machine.
    pub fn take_difference(&mut self) -> Option<Box<Crash>> {
        self.both.as_mut()?.take_difference()
    }

    /// Whether blocks are to be counted.
    pub fn counts_blocks(&self) -> bool {
        self.works.is_some() && self.both.is_none()
    }

    fn glue(&self) -> Option<Glue> {
        self.works.as_ref().map(|works| works.glue)
    }

    /// Whether a unit waits for [`Translator::bury`].
    pub fn has_dead(&self) -> bool {
        self.works
            .as_ref()
            .is_some_and(|works| works.units.has_dead())
    }

    /// Frees what died. Only while no translated code is executing.
    pub fn bury(&mut self) {
        if let Some(works) = &mut self.works {
            works.units.bury();
        }
        if let Some(both) = &mut self.both {
            both.bury();
        }
    }

    /// Throws everything away. Only while no translated code is executing, and when no jump leads to any.
    pub fn clear(&mut self) {
        if let Some(works) = &mut self.works {
            works.units.clear();
            works.cache.clear();
            self.counts.cleared += 1;
            self.counts.kept = works.cache.used() as u64;
        }
        if let Some(both) = &mut self.both {
            both.clear();
        }
    }

    /// Whether there is no room for another unit.
    pub fn full(&self) -> bool {
        let room = |works: &Works| works.cache.has_room(ROOM, ROOM_LINKS);
        !self.works.as_ref().is_none_or(room)
    }

    /// Code at `key`, if it was translated.
    fn find(&self, key: Key) -> Option<u64> {
        self.works.as_ref()?.units.entry(key)
    }

    /// Leads all links between pages back: a translation of the kernel's code was dropped.
    pub fn disconnect_far(&mut self) {
        if let Some(works) = &mut self.works {
            works.units.disconnect_far(&mut works.cache);
        }
    }

    /// Throws away what was made from `mask` of `page`; calls `gone` with address and code of each.
    pub fn invalidate(&mut self, page: u64, mask: u64, mut gone: impl FnMut(u64, u64)) -> bool {
        let Some(works) = &mut self.works else {
            return false;
        };
        let dropped = works
            .units
            .invalidate(&mut works.cache, page, mask, |unit| {
                if let Some(both) = &mut self.both {
                    both.forget(unit.entry);
                }
                gone(unit.key.rip, unit.entry)
            });
        self.counts.dropped += dropped as u64;
        dropped > 0
    }

    fn exit(&self, number: u32) -> Option<Exit> {
        self.works.as_ref()?.units.exit(number)
    }

    /// Leads the link with `number` to the unit at `target`, if there is one.
    fn connect(&mut self, number: u32, target: Key, far: bool) {
        if let Some(works) = &mut self.works {
            let led = works.units.connect(&mut works.cache, number, target, far);
            self.counts.links += u64::from(led);
        }
    }
}

impl Cpu {
    /// Runs the code that a jump leads to ([`Jump::to_code`]).
    pub fn enter_jump(&mut self, jump: Jump) -> crate::op::Leave {
        let link = std::mem::take(&mut self.shared.link);
        if let Some(number) = link.checked_sub(1) {
            self.connect(number as u32);
        }
        self.set_alarm();
        self.translator.counts.entries += 1;
        if self.translator.both.is_some() {
            return self.execute_both(jump);
        }
        self.run_code(jump.packed)
    }

    /// Leads the link through which code was left to where it wanted to go, if that may be done without
    /// asking again: on the same page, or from one global page to another in the kernel.
    fn connect(&mut self, number: u32) {
        let Some(exit) = self.translator.exit(number) else {
            return;
        };
        let user = self.cpl == 3;
        if exit.user != user {
            return;
        }
        let mut gpa = exit.page.1 | exit.target & 0xfff;
        if exit.is_far() {
            let global = |la| {
                let known = self.ctx().fetch(la).filter(|f| f.gpa & GLOBAL != 0);
                known.map(|fetch| fetch.gpa & !0xfff)
            };
            match (global(exit.page.0), global(exit.target)) {
                (Some(from), Some(to)) if !user && from == exit.page.1 => {
                    gpa = to | exit.target & 0xfff;
                }
                _ => return,
            }
        }
        let rip = exit.target;
        let target = Key { gpa, rip, user };
        self.translator.connect(number, target, exit.is_far());
    }

    /// Translates the block at the instruction pointer, which is hot; the jump leads to the code then.
    /// Where that cannot be, the block is executed as before.
    #[cold]
    pub fn translate_block(&mut self) {
        if self.mode != LONG || self.class == crate::tlb::Class::Uncached {
            return;
        }
        if self.translator.full() {
            self.forget_code();
        }
        let rip = self.rip;
        let was = self.gauge.begin(Doing::Translating);
        let made = self.make_unit(rip);
        self.gauge.end(was);
        match made {
            Some(code) => self.remember_jump(rip, Jump::to_code(code, rip)),
            // What could not be fetched is no fault of the guest's: it has not executed it.
            None => self.pending = None,
        }
    }

    /// The way to translated code for the instruction pointer, if there is some.
    pub fn find_translated(&mut self, mode: u8) -> Result<Option<Jump>, Trap> {
        let usable = mode == LONG && self.class != crate::tlb::Class::Uncached;
        if usable && self.translator.both.is_some() {
            return self.find_twin().map(Some);
        }
        if !usable || !self.translator.counts_blocks() {
            return Ok(None);
        }
        let rip = self.rip;
        let (gpa, _) = self.fetch_address(rip)?;
        let user = self.cpl == 3;
        let Some(code) = self.translator.find(Key { gpa, rip, user }) else {
            return Ok(None);
        };
        let jump = Jump::to_code(code, rip);
        self.remember_jump(rip, jump);
        Ok(Some(jump))
    }

    /// Has `jump` be found in the current context. INVLPG and CR3 loads find it by its linear address,
    /// so where that is not RIP and pages are used, it is not remembered.
    pub fn remember_jump(&mut self, rip: u64, jump: Jump) {
        if !self.long_code() && self.seg[seg::CS].base != 0 && self.cr0 & cr0::PG != 0 {
            return;
        }
        let fetch = self.ctx().fetch(rip);
        let marks = fetch.map_or(LARGE, |fetch| fetch.gpa);
        let (global, large) = (marks & GLOBAL != 0, marks & LARGE != 0);
        self.jumps_mut().set(rip, jump, global, large);
    }

    fn make_unit(&mut self, rip: u64) -> Option<u64> {
        let (gpa, host) = self.fetch_address(rip).ok()?;
        let user = self.cpl == 3;
        let key = Key { gpa, rip, user };
        if let Some(code) = self.translator.find(key) {
            return Some(code);
        }
        let source = self.source(rip, gpa & !0xfff, host & !0xfff)?;
        let (mut pieces, granules) = (join(source.pieces), source.granules);
        let alone = self.translator.both.is_some();
        if alone {
            let reach = both::reach(&pieces[0].insns);
            if reach == 0 {
                return None;
            }
            pieces[0].cut(reach);
        }
        let mut count = pieces.iter().map(|p| p.insns.len()).sum();
        let bmi1 = self.cpuid.get(7, 0).ebx >> 3 & 1 != 0;
        let works = self.translator.works.as_mut()?;
        let page = (rip & !0xfff, gpa & !0xfff);
        let mut emitter = Emitter::new(&mut works.cache, works.glue, page, count, user, bmi1);
        emitter.alone = alone;
        emitter.second = source.second;
        let mut made = emitter.run(&pieces);
        counts::sort(&mut made.singles, &pieces);
        if alone {
            count = made.alone;
            if count == 0 {
                return None;
            }
        }
        let used = works.cache.used();
        let code = works.install(key, (granules, source.second), made)?;
        if let (Some(both), Some(mut piece)) = (&mut self.translator.both, pieces.pop()) {
            piece.cut(count);
            let len = (works.cache.next() - code) as usize;
            both.add(code, Twin::new(piece, page.0, gpa, (code, len)));
        }
        let counts = &mut self.translator.counts;
        counts.units += 1;
        counts.instructions += count as u64;
        counts.bytes += (works.cache.used() - used) as u64;
        counts.kept = works.cache.used() as u64;
        Some(code)
    }

    /// Decodes what the unit is made of: the block at `rip`, and what it leads to within the page and has
    /// been executed.
    fn source(&mut self, rip: u64, gpa: u64, host: u64) -> Option<Source> {
        let page = rip & !0xfff;
        let most = if self.translator.both.is_some() {
            1
        } else {
            MAX_PIECES
        };
        let (mut pieces, mut total, mut mask) = (Vec::<Piece>::new(), 0, 0);
        let mut waiting = vec![rip];
        while let Some(at) = waiting.pop() {
            let known = pieces.iter().skip(1).any(|p| p.rip == at);
            let offset = at & 0xfff;
            let executed = || self.blocks.get((gpa + offset, at, LONG)).is_some();
            if known || !pieces.is_empty() && !executed() {
                continue;
            }
            let len = WINDOW.min(0x1000 - offset);
            self.watch_code(gpa + offset, len as usize);
            // Watching may have waited for others; the mapping is asked for again.
            if self.fetch_address(page).ok()? != (gpa, host) {
                return None;
            }
            let mut bytes = [0; WINDOW as usize];
            let bytes = &mut bytes[..len as usize];
            // SAFETY: 1. `host` was translated just now, and `len` stays on its page.
            unsafe { raw::read_bytes(host + offset, bytes) };
            let piece = self.decode_piece(bytes, at, page, LONG);
            if piece.insns.is_empty() {
                if pieces.is_empty() && self.translator.both.is_none() {
                    return self.decode_across(rip, (gpa, host));
                }
                continue;
            }
            privilege::quicken(&piece);
            let end = piece.end();
            mask |= granules(offset, end - at);
            total += piece.insns.len();
            let mut next = leads_to(&piece);
            next.retain(|target| target & !0xfff == page);
            pieces.push(piece);
            if pieces.len() == most || total + 64 > MAX_INSNS {
                break;
            }
            waiting.extend(next);
        }
        (!pieces.is_empty()).then_some(Source {
            pieces,
            granules: mask,
            second: None,
        })
    }

    /// Drops all decoded and translated code. Only while none is executing.
    pub fn forget_code(&mut self) {
        self.blocks.clear();
        self.pool.clear();
        self.stubs.clear();
        self.translator.clear();
        self.shared.link = 0;
        glue::serialize();
    }

    /// Makes sure that translated code is interrupted when the APIC's timer is due. Whatever sets the timer
    /// (WRMSR, a store to the APIC) leaves translated code, so it is looked at on the way in.
    fn set_alarm(&mut self) {
        if self.alarm_set != self.timer_due {
            self.alarm_set = self.timer_due;
            self.alarm.set(self.id, self.timer_due);
        }
    }
}

impl Works {
    /// Puts a unit into the cache and among the units.
    fn install(&mut self, key: Key, from: (u64, Option<u64>), made: Made) -> Option<u64> {
        let at = self.cache.next();
        let page = (key.rip & !0xfff, key.gpa & !0xfff);
        for (link, label, target) in &made.links {
            let exit = Exit {
                // Where it is not known, the code is not used: `finish` fails, too.
                ask: at + made.asm.offset(*label).unwrap_or(0) as u64,
                target: *target,
                page,
                user: key.user,
            };
            self.units.add_exit(&mut self.cache, *link, exit);
        }
        let (mut asm, singles) = (made.asm, made.singles.into_boxed_slice());
        asm.name(singles.as_ptr() as u64, size_of::<Single>());
        let code = asm.finish(at)?;
        #[cfg(test)]
        let code = both::plant(code, self.planted.as_ref());
        let entry = self.cache.add(&code);
        perf::made(key, entry, code.len());
        self.units.insert(Unit::new(key, from, entry, singles));
        Some(entry)
    }
}

const _: () = assert!(LONG & mode::SIZE == 2);
