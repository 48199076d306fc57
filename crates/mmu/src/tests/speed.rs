//! Not a test: how long the hot calls take. `cargo nextest run -p umbra-mmu --run-ignored only`.

use std::time::Instant;

use umbra_slots::Gpa;
use umbra_x86::Gva;

use super::guest::*;
use crate::Config;

fn measure(name: &str, times: u64, mut call: impl FnMut(u64)) {
    let start = Instant::now();
    for i in 0..times {
        call(i);
    }
    let ns = start.elapsed().as_nanos() as u64 / times;
    println!("{name}: {ns} ns");
}

#[test]
#[ignore = "a measurement"]
fn hot_paths() {
    let mut m = Machine::new(Config::default());
    let at = 0x4000_0000;
    let mut entries = Vec::new();
    for i in 0..256 {
        entries.push(m.map(at + (i << 12), 0x60_0000 + (i << 12), PWU));
        m.page(at + (i << 12), WRITE);
    }
    let mmio = at + (300 << 12);
    m.map(mmio, HOLE.0, PWU);
    m.kind(mmio, WRITE);
    m.vcpu.take_flushes(|_| {});
    measure("translate, RAM hit", 1_000_000, |i| {
        m.vcpu.translate(Gva(at + ((i & 255) << 12)), READ).unwrap();
    });
    measure("translate, MMIO hit", 1_000_000, |_| {
        m.vcpu.translate(Gva(mmio), READ).unwrap();
    });
    measure(
        "tracked write, entry dropped, then a slow fault",
        200_000,
        |i| {
            let entry = entries[i as usize & 255];
            m.vcpu.tracked(Gpa(entry), 8, |_| ()).unwrap();
            let id = m
                .mmu
                .tables
                .lock()
                .rmap
                .small(frame(0x60_0000 + ((i & 255) << 12)))[0];
            m.mmu.tables.lock().clear(id);
            m.vcpu.translate(Gva(at + ((i & 255) << 12)), READ).unwrap();
        },
    );
    measure("tracked write, entry kept", 1_000_000, |i| {
        m.vcpu
            .tracked(Gpa(entries[i as usize & 255]), 8, |_| ())
            .unwrap();
        m.mmu.tables.lock().pages.iter().next();
        if i % 8 == 0 {
            m.vcpu.translate(Gva(at), READ).unwrap();
        }
    });
    measure("publication", 100_000, |_| {
        m.space.update("nothing", |_| Ok(())).unwrap().wait();
    });
    let other = m.alloc();
    let mut regs = [m.regs; 2];
    regs[1].cr3 = other;
    m.store(other, m.load(m.regs.cr3));
    measure("CR3 load and translation", 500_000, |i| {
        m.vcpu.set_regs(&regs[i as usize & 1]);
        m.vcpu.translate(Gva(at), READ).unwrap();
    });
}
