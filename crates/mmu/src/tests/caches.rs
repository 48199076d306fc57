//! Processors with caches of their own, as a real one has: write rights are kept until a flush
//! takes them, while tables come under the shadow, leave it, and get out of sync (R36, R40).

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use umbra_slots::{AddressSpace, Gfn, Gpa};
use umbra_x86::{Gva, pte};

use super::guest::*;
use crate::{Config, Flush, Kind, Scope, Unsync, VcpuMmu};

const AT: u64 = 0x4000_0000;
/// Where all of low memory is visible.
const DIRECT: u64 = 0xffff_8880_0000_0000;

/// A processor that remembers which pages it may write.
struct Processor {
    vcpu: VcpuMmu,
    space: Arc<AddressSpace>,
    /// Write translations: linear page to frame.
    writable: HashMap<u64, Gfn>,
    cached_stores: u64,
}

impl Processor {
    fn new(m: &Machine) -> Self {
        let mut vcpu = m.mmu.attach(Box::new(|| {}));
        vcpu.set_regs(&m.regs);
        Self {
            vcpu,
            space: m.space.clone(),
            writable: HashMap::new(),
            cached_stores: 0,
        }
    }

    /// Drops what it is told to drop, and acknowledges.
    fn obey(&mut self) {
        let writable = &mut self.writable;
        if self.vcpu.pending() {
            self.vcpu.take_flushes(|flush| match flush {
                Flush::All => writable.clear(),
                Flush::Writers(gfn) => writable.retain(|_, mapped| *mapped != gfn),
            });
        }
    }

    fn put(&self, gpa: Gpa, value: u64) {
        self.space.load().write(gpa, &value.to_le_bytes()).unwrap();
    }

    /// A store to a linear address of the direct map.
    fn store(&mut self, at: u64, value: u64) {
        self.obey(); // the poll between two instructions
        let gva = DIRECT + at;
        if self.writable.contains_key(&(gva >> 12)) {
            self.cached_stores += 1;
            return self.put(Gpa(at), value);
        }
        loop {
            // Nothing is acknowledged between a translation and its use.
            let found = self.vcpu.translate(Gva(gva), WRITE).unwrap();
            match found.kind {
                Kind::Ram(page) if page.write => {
                    self.writable.insert(gva >> 12, found.gpa.gfn());
                    return self.put(found.gpa, value);
                }
                Kind::Tracked => {
                    let space = self.space.clone();
                    let done = self.vcpu.tracked(found.gpa, 8, |_| {
                        let map = space.load();
                        map.write(found.gpa, &value.to_le_bytes()).unwrap();
                    });
                    if done.is_some() {
                        return;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Where an address lands, after the guest has flushed it.
    fn flushed(&mut self, gva: u64, scope: Scope) -> Gpa {
        self.vcpu.guest_flush(scope);
        self.obey();
        self.vcpu.translate(Gva(gva), READ).unwrap().gpa
    }
}

fn run(unsync: Unsync, max_pages: usize) {
    let mut m = Machine::new(Config {
        unsync,
        max_pages,
        ..checked()
    });
    for at in (0..RAM).step_by(2 << 20) {
        let entry = m.entry_at(DIRECT + at, 2);
        m.store(entry, at | pte::P | pte::RW | pte::PS | pte::A | pte::D);
    }
    // Two leaf tables; each processor owns every other page of both.
    let entries: Vec<u64> = (0..16)
        .map(|i| m.map(AT + ((i % 2) << 21) + (i << 12), 0x60_0000, PWU))
        .collect();
    m.vcpu.leave();
    let processors: Vec<_> = (0..2u64)
        .map(|id| {
            let mut p = Processor::new(&m);
            let entries = entries.clone();
            thread::spawn(move || {
                p.vcpu.enter();
                for round in 0..6000u64 {
                    let page = id * 8 + (round * 5) % 8;
                    let gva = AT + ((page % 2) << 21) + (page << 12);
                    let entry = entries[page as usize];
                    let to = 0x100_0000 + ((round % 512) << 12);
                    if round % 97 < 24 {
                        // A burst: floods the table, so that its shadow goes.
                        for other in 0..20 {
                            p.store((entry & !0xfff) + 0x800 + id * 0x200 + other * 8, 0);
                        }
                    }
                    p.store(entry, to | PWU);
                    let scope = if round % 3 == 0 {
                        Scope::NonGlobal
                    } else {
                        Scope::Page(Gva(gva))
                    };
                    assert_eq!(p.flushed(gva, scope), Gpa(to), "round {round}");
                }
                p.vcpu.leave();
                p.cached_stores
            })
        })
        .collect();
    let cached: u64 = processors.into_iter().map(|p| p.join().unwrap()).sum();
    assert!(cached > 0, "caches were used");
    m.audit();
}

#[test]
fn r36_stores_through_cached_rights_are_never_missed() {
    run(Unsync::Never, 1024);
}

#[test]
fn r36_stores_through_cached_rights_are_never_missed_by_unsync_tables() {
    run(Unsync::After(3), 1024);
}

#[test]
fn r36_the_same_while_shadow_pages_are_recycled() {
    run(Unsync::After(3), 64);
}
