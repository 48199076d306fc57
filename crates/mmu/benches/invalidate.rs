//! What it costs to make MMIO entries invalid: by advancing the generation, and by a walk.
//!
//! `cargo xtask bench invalidate`. A guest maps a great hole in its physical memory, page by page;
//! every page is accessed, so that there are as many live MMIO entries. Then
//!
//! - one change of the map is timed, with 1, 1,000 and 1,000,000 entries: the *bump*;
//! - all shadow pages with such entries are thrown away by a walk: the *walk*;
//! - the first access to a page after a bump is timed, and one that hits;
//! - two processors hammer a page each while bumps come at no, 1,000 and 100,000 a second.
//!
//! All in one run, medians; the last line is one JSON object.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use umbra_mmu::{Access, AccessKind, Config, Mmu, PagingRegs, VcpuMmu};
use umbra_slots::{AddressSpace, Flags, Gpa, HugePages, Options, RamOptions, RamRegion};
use umbra_x86::{Gva, cr0, cr4, efer, pte};

/// Enough for the tables of a million pages.
const RAM: u64 = 32 << 20;
/// Where the guest's tables begin.
const TABLES: u64 = 0x1000;
/// A hole of a million pages and more.
const HOLE: u64 = 0x1_0000_0000;
const AT: u64 = 0x40_0000_0000;
const ENTRIES: [u64; 3] = [1, 1_000, 1_000_000];
const RATES: [u64; 3] = [0, 1_000, 100_000];
/// How long processors hammer.
const HAMMER: Duration = Duration::from_millis(700);
const READ: Access = Access {
    kind: AccessKind::Read,
    user: false,
    ac: false,
};

/// A guest that maps `pages` pages of the hole from `AT` on.
struct Guest {
    space: Arc<AddressSpace>,
    mmu: Arc<Mmu>,
    regs: PagingRegs,
}

impl Guest {
    fn new(pages: u64, last_mmio: bool) -> Self {
        let space = AddressSpace::new(Options::default());
        let config = Config {
            max_pages: 1 << 16,
            last_mmio,
            ..Config::default()
        };
        let mmu = Mmu::new(space.clone(), config);
        let region = RamRegion::new(RamOptions {
            len: RAM,
            huge: HugePages::No,
            prefault: true,
        });
        let region = region.expect("a few MiB");
        let added = space.update("RAM", |e| {
            e.add_ram(Gpa(0), region, 0, RAM, Flags::default())
        });
        added.expect("an empty map").wait();
        let guest = Self {
            space,
            mmu,
            regs: PagingRegs {
                cr0: cr0::PE | cr0::PG | cr0::WP,
                cr3: TABLES,
                cr4: cr4::PAE | cr4::PGE,
                efer: efer::LME | efer::LMA | efer::NXE,
                pkru: 0,
            },
        };
        guest.map(pages);
        guest
    }

    /// One root, one table of each kind below, leaf tables one after the other.
    fn map(&self, pages: u64) {
        let flags = pte::P | pte::RW | pte::US | pte::A | pte::D;
        let (pointers, directories) = (TABLES + 0x1000, TABLES + 0x2000);
        self.store(TABLES + (AT >> 39 & 0x1ff) * 8, pointers | flags);
        for page in 0..pages {
            let gva = AT + (page << 12);
            let (gib, mib2) = (page >> 18, page >> 9);
            let directory = directories + (gib << 12);
            let leaf = TABLES + 0x10_0000 + (mib2 << 12);
            if page.is_multiple_of(1 << 18) {
                self.store(pointers + (gva >> 30 & 0x1ff) * 8, directory | flags);
            }
            if page.is_multiple_of(1 << 9) {
                self.store(directory + (gva >> 21 & 0x1ff) * 8, leaf | flags);
            }
            self.store(
                leaf + (gva >> 12 & 0x1ff) * 8,
                (HOLE + (page << 12)) | flags,
            );
        }
    }

    fn store(&self, at: u64, value: u64) {
        let map = self.space.load();
        map.write(Gpa(at), &value.to_le_bytes())
            .expect("tables are in RAM");
    }

    fn vcpu(&self) -> VcpuMmu {
        let mut vcpu = self.mmu.attach(Box::new(|| {}));
        vcpu.set_regs(&self.regs);
        vcpu.enter();
        vcpu
    }

    fn bump(&self) {
        let updated = self.space.update("bench", |_| Ok(()));
        drop(black_box(updated.expect("nothing to refuse").stale));
    }

    fn touch(&self, vcpu: &mut VcpuMmu, pages: u64) {
        for page in 0..pages {
            let found = vcpu.translate(Gva(AT + (page << 12)), READ);
            black_box(found.expect("mapped"));
        }
    }

    fn statistic(&self, name: &str) -> u64 {
        let list = self.mmu.statistics();
        list.iter()
            .find(|(n, _)| *n == name)
            .map_or(0, |(_, value)| *value)
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Nanoseconds of one `run`, measured over `times` of them.
fn nanoseconds(times: u32, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        run();
    }
    start.elapsed().as_nanos() as f64 / f64::from(times)
}

/// Costs with some number of live entries, in nanoseconds.
struct Costs {
    bump: f64,
    walk: f64,
    first: f64,
    hit: f64,
}

/// The guests take turns, so that all of them see the same noise.
fn costs() -> Vec<Costs> {
    let mut guests: Vec<_> = ENTRIES
        .iter()
        .map(|&entries| {
            let guest = Guest::new(entries, false); // the shadow is what is timed
            let mut vcpu = guest.vcpu();
            guest.touch(&mut vcpu, entries);
            assert_eq!(guest.statistic("mmio_marks"), entries);
            (guest, vcpu)
        })
        .collect();
    let mut bumps = vec![Vec::new(); guests.len()];
    for _ in 0..400 {
        for ((guest, _), bumps) in guests.iter().zip(&mut bumps) {
            bumps.push(nanoseconds(50, || guest.bump()));
        }
    }
    let mut result = Vec::new();
    for ((guest, vcpu), (&entries, bumps)) in guests.iter_mut().zip(ENTRIES.iter().zip(bumps)) {
        let (mut first, mut hit, mut walk) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..2000 {
            guest.bump();
            first.push(nanoseconds(1, || guest.touch(vcpu, 1)));
            hit.push(nanoseconds(100, || guest.touch(vcpu, 1)));
        }
        for _ in 0..if entries > 10_000 { 3 } else { 50 } {
            guest.touch(vcpu, entries);
            walk.push(nanoseconds(1, || {
                let pages = guest.mmu.zap_mmio_by_walk();
                assert_eq!(pages as u64, entries.div_ceil(512));
            }));
        }
        assert_eq!(guest.statistic("wraps"), 0, "no wrap among what was timed");
        let costs = Costs {
            bump: median(bumps),
            walk: median(walk),
            first: median(first),
            hit: median(hit),
        };
        println!(
            "{entries:>9} entries: bump {:.0} ns, walk {:.0} ns, first access {:.0} ns, hit {:.0} ns",
            costs.bump, costs.walk, costs.first, costs.hit
        );
        result.push(costs);
    }
    result
}

/// Accesses a second of two processors while bumps come at a rate.
fn hammered(guest: &Arc<Guest>, rate: u64) -> (f64, f64) {
    let (stop, done) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let hammers: Vec<_> = (0..2u64)
        .map(|id| {
            let (guest, stop, done) = (guest.clone(), stop.clone(), done.clone());
            thread::spawn(move || {
                let mut vcpu = guest.vcpu();
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..64 {
                        black_box(vcpu.translate(Gva(AT + (id << 12)), READ).expect("mapped"));
                    }
                    count += 64;
                }
                done.fetch_add(count, Ordering::Relaxed);
                vcpu.leave();
            })
        })
        .collect();
    let start = Instant::now();
    let mut bumps = 0u64;
    while start.elapsed() < HAMMER {
        let due = start.elapsed().as_nanos() as u64 * rate / 1_000_000_000;
        while bumps < due {
            guest.bump();
            bumps += 1;
        }
        thread::sleep(Duration::from_micros(if rate > 10_000 { 10 } else { 200 }));
    }
    let elapsed = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for hammer in hammers {
        hammer.join().expect("it ends when told");
    }
    (
        done.load(Ordering::Relaxed) as f64 / elapsed,
        bumps as f64 / elapsed,
    )
}

fn throughput() -> Vec<f64> {
    let guest = Arc::new(Guest::new(2, true));
    let mut rounds = vec![Vec::new(); RATES.len()];
    for _ in 0..5 {
        for (&rate, accesses) in RATES.iter().zip(&mut rounds) {
            let (speed, bumps) = hammered(&guest, rate);
            accesses.push(speed);
            println!(
                "{:.1} M accesses a second at {bumps:.0} bumps a second",
                speed / 1e6
            );
        }
    }
    rounds.into_iter().map(median).collect()
}

fn main() {
    let costs = costs();
    let speeds = throughput();
    let round = |value: f64| json!((value * 1000.0).round() / 1000.0);
    let mut ratios = Map::new();
    let mut ratio = |name: &str, value: f64| drop(ratios.insert(name.into(), round(value)));
    ratio("bump: 1000 entries / 1", costs[1].bump / costs[0].bump);
    ratio("bump: 1000000 entries / 1", costs[2].bump / costs[0].bump);
    ratio(
        "1000000 entries: walk / bump",
        costs[2].walk / costs[2].bump,
    );
    ratio(
        "first access after a bump / hit",
        costs[2].first / costs[2].hit,
    );
    ratio(
        "throughput: 1000 bumps a second / none",
        speeds[1] / speeds[0],
    );
    ratio(
        "throughput: 100000 bumps a second / none",
        speeds[2] / speeds[0],
    );
    let targets = json!({
        "bump: 1000 entries / 1": "<=1.1",
        "bump: 1000000 entries / 1": "<=1.1",
        "1000000 entries: walk / bump": ">=1000",
    });
    let value = |name: &str| ratios.get(name).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let met = value("bump: 1000 entries / 1") <= 1.1
        && value("bump: 1000000 entries / 1") <= 1.1
        && value("1000000 entries: walk / bump") >= 1000.0;
    println!(
        "{}",
        json!({"bench": "invalidate", "ratios": ratios, "targets": targets, "met": met})
    );
}
