//! Memory while a block is rehearsed or replayed.
//!
//! An empty context is selected, so that every access comes to the slow paths of [`mem`](crate::mem), and
//! these come here.

use std::collections::BTreeSet;
use std::ptr::NonNull;

use umbra_mmu::{Access, AccessKind, Kind};
use umbra_x86::Gva;

use super::Reason;
use crate::cpu::{Cpu, Trap};
use crate::mem::{read_ram, write_ram};
use crate::op::Leave;
use crate::raw;
use crate::tlb::{self, Ctx};

/// Bytes of the largest access.
const MOST: usize = 16;

/// One access of the rehearsal.
#[derive(Clone, Copy)]
struct Note {
    la: u64,
    /// Host address.
    at: u64,
    len: usize,
    store: bool,
    /// The context had the page.
    hit: bool,
    /// What was stored, or what memory held.
    bytes: [u8; MOST],
}

impl Note {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Puts what was stored here over `bytes` at `at`, as far as they overlap; calls `hit` with the place of
    /// each byte and its value.
    fn overlay(&self, at: u64, len: usize, mut hit: impl FnMut(usize, u8)) {
        let from = self.at.max(at);
        let to = (self.at + self.len as u64).min(at + len as u64);
        for place in from..to {
            hit(
                (place - at) as usize,
                self.bytes[(place - self.at) as usize],
            );
        }
    }
}

/// A copy of a page of the guest's memory.
#[repr(C, align(4096))]
struct Copy([u8; 0x1000]);

/// What a linear page is in a replay.
struct Page {
    la: u64,
    /// Host address of the page, and which copy stands for it.
    host: u64,
    copy: usize,
    /// The context let the first access for reading, the first one for writing through.
    read: Option<bool>,
    write: Option<bool>,
}

#[derive(Clone, Copy)]
enum Scene {
    /// Nothing is played: the processor accesses memory.
    None,
    /// The context that was selected, where pages are looked up first.
    Rehearsal(NonNull<Ctx>),
    Replay,
}

/// A byte that is not what it should be: note, place in it, what it is.
pub type Wrong = (usize, usize, u8);

/// The stage.
pub struct Stage {
    ctx: Box<Ctx>,
    scene: Scene,
    notes: Vec<Note>,
    pages: Vec<Page>,
    copies: Vec<Box<Copy>>,
    failed: Option<Reason>,
}

impl Stage {
    pub fn new() -> Self {
        Self {
            ctx: Box::new(Ctx::new()),
            scene: Scene::None,
            notes: Vec::new(),
            pages: Vec::new(),
            copies: Vec::new(),
            failed: None,
        }
    }

    /// Begins a rehearsal; `ctx` is where pages are.
    pub fn rehearsal(&mut self, ctx: NonNull<Ctx>) {
        self.notes.clear();
        self.scene = Scene::Rehearsal(ctx);
    }

    /// Begins a replay on the copies.
    pub fn replay(&mut self, _: NonNull<Ctx>) {
        self.scene = Scene::Replay;
        let copies = &mut self.copies;
        for page in &self.pages {
            let known = tlb::Page {
                read: page.read == Some(true),
                write: page.write == Some(true),
                host: copies[page.copy].0.as_mut_ptr() as u64,
                gpa: 0,
            };
            if known.read || known.write {
                self.ctx.fill(page.la, known);
            }
        }
    }

    fn end(&mut self) {
        self.scene = Scene::None;
        self.ctx.clear();
    }

    /// Why the play has failed, if it has.
    pub fn failed(&self) -> Option<Reason> {
        self.failed
    }

    /// Tells whether memory holds what the rehearsal would have stored. Only while no flush was acknowledged
    /// since.
    pub fn is_stored(&self) -> bool {
        self.wrong(|note| {
            let mut now = [0; MOST];
            // SAFETY: 1. the page was found at the rehearsal, and stays until a flush is acknowledged.
            unsafe { raw::read_bytes(note.at, &mut now[..note.len]) };
            now
        })
        .next()
        .is_none()
    }

    /// The bytes that a replay has not stored as the rehearsal would have.
    pub fn wrong_bytes(&self) -> Vec<Wrong> {
        let copied = |note: &Note| {
            let mut now = [0; MOST];
            if let Some(page) = self.pages.iter().find(|p| p.host == note.at & !0xfff) {
                let at = (note.at & 0xfff) as usize;
                let copy = self.copies[page.copy].0.get(at..at + note.len);
                now[..note.len].copy_from_slice(copy.unwrap_or_default());
            }
            now
        };
        self.wrong(copied).collect()
    }

    fn wrong<'a>(
        &'a self,
        now: impl Fn(&Note) -> [u8; MOST] + 'a,
    ) -> impl Iterator<Item = Wrong> + 'a {
        let stores = self.notes.iter().enumerate().filter(|(_, n)| n.store);
        stores.flat_map(move |(number, note)| {
            let mut expected = note.bytes;
            for later in self.notes[number + 1..].iter().filter(|n| n.store) {
                later.overlay(note.at, note.len, |i, byte| expected[i] = byte);
            }
            let now = now(note);
            (0..note.len)
                .filter(move |i| now[*i] != expected[*i])
                .map(move |i| (number, i, now[i]))
        })
    }

    /// Makes copies of the pages that were accessed, with what was loaded from them. `false` where two loads
    /// found different bytes in one place: somebody else is writing there.
    ///
    /// Only while no flush was acknowledged since the rehearsal.
    pub fn copy_pages(&mut self) -> bool {
        self.pages.clear();
        self.copies.clear();
        let mut hosts: Vec<u64> = Vec::new();
        for note in &self.notes {
            let (la, host) = (note.la & !0xfff, note.at & !0xfff);
            let copy = hosts.iter().position(|h| *h == host).unwrap_or_else(|| {
                let mut copy = Box::new(Copy([0; 0x1000]));
                // SAFETY: 1. a whole page that was found at the rehearsal, and stays until a flush is
                // acknowledged.
                unsafe { raw::read_bytes(host, &mut copy.0) };
                self.copies.push(copy);
                hosts.push(host);
                hosts.len() - 1
            });
            let known = self.pages.iter().position(|page| page.la == la);
            let known = known.unwrap_or_else(|| {
                self.pages.push(Page {
                    la,
                    host,
                    copy,
                    read: None,
                    write: None,
                });
                self.pages.len() - 1
            });
            let page = &mut self.pages[known];
            let right = if note.store {
                &mut page.write
            } else {
                &mut page.read
            };
            right.get_or_insert(note.hit);
        }
        let loads = || self.notes.iter().filter(|note| !note.store);
        for note in loads() {
            let copy = hosts.iter().position(|h| *h == note.at & !0xfff);
            let copy = copy.and_then(|copy| self.copies.get_mut(copy));
            let at = (note.at & 0xfff) as usize;
            if let Some(to) = copy.and_then(|copy| copy.0.get_mut(at..at + note.len)) {
                to.copy_from_slice(note.bytes());
            }
        }
        loads().all(|a| {
            loads().all(|b| {
                let mut same = true;
                b.overlay(a.at, a.len, |i, byte| same &= a.bytes[i] == byte);
                same
            })
        })
    }

    /// Linear addresses of bytes that are wrong.
    pub fn addresses(&self, wrong: &[Wrong]) -> BTreeSet<u64> {
        let la = |&(number, i, _): &Wrong| Some(self.notes.get(number)?.la + i as u64);
        wrong.iter().filter_map(la).collect()
    }

    /// What was accessed, and what is wrong with it, for people.
    pub fn describe(&self, wrong: &[Wrong]) -> String {
        let mut text = String::from("\n  memory, as the interpreter accessed it:");
        for (number, note) in self.notes.iter().enumerate() {
            let what = if note.store { "store" } else { "load" };
            let missed = if note.hit { "" } else { ", a miss" };
            text += &format!("\n    {what} {:#x}: {:02x?}{missed}", note.la, note.bytes());
            for (_, i, byte) in wrong.iter().filter(|(n, ..)| *n == number) {
                text += &format!(
                    "\n    translated code leaves {byte:#04x} at {:#x}",
                    note.la + *i as u64
                );
            }
        }
        text
    }

    fn fail(&mut self, reason: Reason) -> Trap {
        self.failed.get_or_insert(reason);
        Trap
    }

    /// Where linear address `la` is in a replay. The context has the page from now on, as it would.
    fn copied(&mut self, la: u64, kind: AccessKind) -> Result<u64, Trap> {
        let Some(page) = self.pages.iter().find(|page| page.la == la & !0xfff) else {
            return Err(self.fail(Reason::Other));
        };
        let host = self.copies[page.copy].0.as_mut_ptr() as u64;
        let write = kind == AccessKind::Write || self.ctx.entry(la).write == page.la;
        let known = tlb::Page {
            read: true,
            write,
            host,
            gpa: 0,
        };
        self.ctx.fill(la, known);
        Ok(host + (la & 0xfff))
    }
}

impl Cpu {
    /// Tells whether accesses belong on the stage.
    #[inline]
    pub fn on_stage_now(&self) -> bool {
        let stage = self.translator.both.as_ref().map(|both| &both.stage);
        stage.is_some_and(|stage| !matches!(stage.scene, Scene::None))
    }

    /// Plays what `begin` begins.
    pub(super) fn on_stage(
        &mut self,
        begin: fn(&mut Stage, NonNull<Ctx>),
        play: impl FnOnce(&mut Self) -> Leave,
    ) -> Leave {
        let Some(both) = &mut self.translator.both else {
            return Leave::Look;
        };
        both.stage.failed = None;
        let empty = NonNull::from(&mut *both.stage.ctx);
        let real = self.swap_ctx(empty);
        if let Some(both) = &mut self.translator.both {
            begin(&mut both.stage, real);
        }
        let leave = play(self);
        self.swap_ctx(real);
        if let Some(both) = &mut self.translator.both {
            both.stage.end();
        }
        leave
    }

    fn stage(&mut self) -> Result<&mut Stage, Trap> {
        let both = self.translator.both.as_mut().ok_or(Trap)?;
        Ok(&mut both.stage)
    }

    /// Refuses what is not done on the stage.
    #[cold]
    pub fn refuse_on_stage(&mut self) -> Trap {
        match self.stage() {
            Ok(stage) => stage.fail(Reason::Other),
            Err(trap) => trap,
        }
    }

    /// Host address for `len` bytes at `la`, which stay on their page, and whether the context has it.
    fn place(&mut self, la: u64, kind: AccessKind, len: usize) -> Result<(u64, bool), Trap> {
        let stage = self.stage()?;
        if len > MOST {
            return Err(stage.fail(Reason::Other));
        }
        let Scene::Rehearsal(ctx) = stage.scene else {
            return Ok((stage.copied(la, kind)?, false));
        };
        // SAFETY: `ctx` is one of the pool's boxes, which are neither moved nor freed before the processor;
        // nothing else refers to it here.
        let entry = *unsafe { ctx.as_ref() }.entry(la);
        let tag = if kind == AccessKind::Write {
            entry.write
        } else {
            entry.read
        };
        if tag == la & !0xfff {
            return Ok((entry.at(la), true));
        }
        match self.look(la, kind) {
            Ok(host) => Ok((host, false)),
            Err(reason) => Err(self.stage()?.fail(reason)),
        }
    }

    /// Asks the MMU for memory at `la`.
    fn look(&mut self, la: u64, kind: AccessKind) -> Result<u64, Reason> {
        if !self.canonical(la) {
            return Err(Reason::Fault);
        }
        let access = Access {
            kind,
            user: self.access_user,
            ac: self.access_ac,
        };
        let found = self.mmu.translate(Gva(la), access);
        let found = found.map_err(|_| Reason::Fault)?;
        let page = match found.kind {
            Kind::Ram(page) => page,
            Kind::Tracked => return Err(Reason::Table),
            Kind::Mmio { .. } | Kind::ReadOnly => return Err(Reason::Device),
        };
        if kind == AccessKind::Write && self.code.contains(found.gpa.0 & !0xfff) {
            return Err(Reason::Code);
        }
        if self.mmu.pending() {
            self.drain();
            return Err(Reason::Flushed);
        }
        Ok(page.page.as_ptr() as u64 + (la & 0xfff))
    }

    /// Loads, below the end of a page.
    pub fn load_on_stage(&mut self, la: u64, data: &mut [u8]) -> Result<(), Trap> {
        let (at, hit) = self.place(la, AccessKind::Read, data.len())?;
        // SAFETY: 1. `place` has found memory there, one page.
        unsafe { read_ram(at, data) };
        let stage = self.stage()?;
        if let Scene::Rehearsal(_) = stage.scene {
            let mut bytes = [0; MOST];
            bytes[..data.len()].copy_from_slice(data);
            for note in stage.notes.iter().filter(|note| note.store) {
                note.overlay(at, data.len(), |i, byte| data[i] = byte);
            }
            stage.notes.push(Note {
                la,
                at,
                len: data.len(),
                store: false,
                hit,
                bytes,
            });
        }
        Ok(())
    }

    /// Stores, below the end of a page.
    pub fn store_on_stage(&mut self, la: u64, data: &[u8]) -> Result<(), Trap> {
        let (at, hit) = self.place(la, AccessKind::Write, data.len())?;
        let stage = self.stage()?;
        if let Scene::Rehearsal(_) = stage.scene {
            let mut bytes = [0; MOST];
            bytes[..data.len()].copy_from_slice(data);
            stage.notes.push(Note {
                la,
                at,
                len: data.len(),
                store: true,
                hit,
                bytes,
            });
        } else {
            // SAFETY: 1. `place` has found a copy of a page there.
            unsafe { write_ram(at, data) };
        }
        Ok(())
    }

    /// Fails where a store would, below the end of a page.
    pub fn probe_on_stage(&mut self, la: u64) -> Result<(), Trap> {
        self.place(la, AccessKind::Write, 1).map(drop)
    }
}
