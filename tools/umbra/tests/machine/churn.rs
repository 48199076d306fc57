//! A guest hits one page in a tight loop while RAM and a device take turns there.
//!
//! ```text
//!   guest   begun = n   write n to a cell   read it back, into the log   done = n
//!   host    RAM comes · goes · a device comes · goes · RAM comes …
//! ```
//! Each owner of the page has a *reign*: from the first access that was not done just before the map
//! that has it was published, to the last that had begun just after the map without it was. On the
//! software processor RAM reigns until whoever removes it has waited. An access may reach an owner only
//! in its reign; every write reaches exactly one owner, or nobody while the page has none; and a device
//! that was removed, and waited for, is never called again.
//!
//! `UMBRA_CHURN_ROUNDS` says how often both come and go; a round is four changes of the map.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use umbra_bus::Bus;
use umbra_slots::{AddressSpace, Change, Flags, Gpa, GpaRange, Listener, RamRegion, Snapshot};
use umbra_vmm::{Backend, Console, Machine, Outcome, Plan};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::support::backend::{backend, on_each_backend};
use crate::support::restless::counter;
use crate::support::watched::{MAILBOX, region, spec};

/// The page.
const PAGE: Gpa = Gpa(0xd000_0000);
/// The same RAM once more, where the host always reaches it.
const ALIAS: Gpa = Gpa(0x4000_0000);
const CELLS: u64 = 512;
const LOG: u64 = MAILBOX + 0x1000;
/// Entries of the log: more accesses than the guest may make in a round.
const CAPACITY: u64 = 1 << 21;
/// How many accesses the guest may make from each change of the map, and each wait, until the next: a slow
/// host would find its log overwritten.
const AHEAD: u64 = 2048;

/// What a fresh page of RAM holds, and what a device answers: numbers that no access has.
const FRESH: u64 = 1 << 62;
const DEVICE: u64 = 1 << 61;
/// What nobody answers.
const NOBODY: u64 = u64::MAX;

fn rounds() -> u64 {
    let text = std::env::var("UMBRA_CHURN_ROUNDS").unwrap_or_else(|_| "1000".into());
    text.parse().expect("UMBRA_CHURN_ROUNDS is a number")
}

/// A device that says which one it is, and remembers what was written.
struct Named {
    name: u64,
    gone: AtomicBool,
    written: Mutex<Vec<u64>>,
}

impl Named {
    fn check(&self) {
        assert!(!self.gone.load(Ordering::SeqCst), "called after its end");
    }
}

impl DeviceMmio for Named {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        self.check();
        data.copy_from_slice(&(DEVICE | self.name).to_le_bytes());
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, data: &[u8]) {
        self.check();
        let number = u64::from_le_bytes(data.try_into().unwrap());
        self.written.lock().push(number);
    }
}

/// Who has the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Ram(u64),
    Device(u64),
    Nobody,
}

/// When.
#[derive(Clone, Copy, Debug)]
struct Reign {
    owner: Owner,
    /// Accesses that were done before it began.
    after: u64,
    /// The last access that had begun when it was over.
    until: u64,
}

/// Looks at the mailbox just before and just after each map is published.
#[derive(Default)]
struct Moments {
    /// Accesses that were done before, and that had begun after.
    last: Mutex<(u64, u64)>,
}

impl Listener for Moments {
    fn publish(&self, change: &Change, swap: &mut dyn FnMut()) {
        let done = word(&change.old, MAILBOX + 8);
        swap();
        let begun = word(&change.new, MAILBOX);
        *self.last.lock() = (done, begun);
    }
}

fn word(map: &Snapshot, at: u64) -> u64 {
    let mut bytes = [0; 8];
    map.read(Gpa(at), &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

struct Host {
    backend: Backend,
    moments: Arc<Moments>,
    space: Arc<AddressSpace>,
    bus: Arc<Bus>,
    region: Arc<RamRegion>,
    reigns: Vec<Reign>,
    /// Everything up to here has been judged.
    judged: u64,
    /// Writes that devices, or pages of RAM at their end, have.
    arrived: HashSet<u64>,
    /// Reads and writes that reached nobody.
    missed: u64,
    /// How many accesses each kind of owner answered.
    answers: [u64; 3],
}

impl Host {
    fn word(&self, at: u64) -> u64 {
        word(&self.space.load(), at)
    }

    fn set_word(&self, at: u64, value: u64) {
        let bytes = value.to_le_bytes();
        self.space.load().write(Gpa(at), &bytes).unwrap();
    }

    fn begun(&self) -> u64 {
        self.word(MAILBOX)
    }

    fn done(&self) -> u64 {
        self.word(MAILBOX + 8)
    }

    /// Runs a change of the map; the reign of the last owner ends with it, and another begins.
    fn change(&mut self, owner: Owner, change: impl FnOnce(&Self)) {
        self.let_on(self.begun());
        change(self);
        let waited = self.begun();
        let (after, published) = *self.moments.last.lock();
        if let Some(last) = self.reigns.last_mut() {
            last.until = match (last.owner, self.backend) {
                // Translations of RAM are dropped behind the publication, and waited for.
                (Owner::Ram(_), Backend::Soft) => waited,
                _ => published,
            };
        }
        self.reigns.push(Reign {
            owner,
            after,
            until: u64::MAX,
        });
    }

    /// Lets the guest go on to [`AHEAD`] accesses behind `from`.
    fn let_on(&self, from: u64) {
        self.set_word(MAILBOX + 32, from + AHEAD);
    }

    /// Waits until some accesses were made since `from`.
    fn wait_for_accesses(&self, from: u64) {
        let start = Instant::now();
        self.let_on(from + 2);
        while self.done() < from + 2 {
            assert!(
                start.elapsed() < Duration::from_secs(60),
                "the guest stands still"
            );
            std::hint::spin_loop();
        }
    }

    fn round(&mut self, number: u64) {
        for cell in 0..CELLS {
            self.set_word(ALIAS.0 + 8 * cell, FRESH | number);
        }
        let mut slot = None;
        self.change(Owner::Ram(number), |host| {
            let region = host.region.clone();
            let added = host.space.update("RAM comes", |e| {
                e.add_ram(PAGE, region, 0, 0x1000, Flags::default())
            });
            slot = Some(added.unwrap().wait());
        });
        self.wait_for_accesses(self.begun());
        self.change(Owner::Nobody, |host| {
            let gone = host.space.update("RAM goes", |e| e.remove(slot.unwrap()));
            gone.unwrap().wait();
        });
        // What the guest wrote last and did not read back any more.
        for cell in 0..CELLS {
            let last = self.word(ALIAS.0 + 8 * cell);
            if last & FRESH == 0 {
                self.arrived.insert(last);
            }
        }

        let device = Arc::new(Named {
            name: number,
            gone: AtomicBool::new(false),
            written: Mutex::default(),
        });
        let mut id = None;
        self.change(Owner::Device(number), |host| {
            let range = GpaRange::new(PAGE, 0x1000).unwrap();
            id = Some(host.bus.insert(range, device.clone()).unwrap());
        });
        self.wait_for_accesses(self.begun());
        self.change(Owner::Nobody, |host| {
            drop(host.bus.remove(id.unwrap()).unwrap().wait());
            device.gone.store(true, Ordering::SeqCst);
        });
        for number in device.written.lock().drain(..) {
            self.assert_reign(number, Owner::Device(device.name));
            assert!(self.arrived.insert(number), "{number} was written twice");
        }
        assert_eq!(Arc::strong_count(&device), 1);
        let done = self.done();
        self.judge(done);
    }

    fn assert_reign(&self, access: u64, owner: Owner) {
        let rules = |r: &&Reign| r.owner == owner && r.after < access && access <= r.until;
        assert!(
            self.reigns.iter().any(|r| rules(&r)),
            "access {access} reached {owner:?} outside its reign: {:?}",
            self.reigns
        );
    }

    /// Judges all accesses up to `done`, which are done.
    fn judge(&mut self, done: u64) {
        assert!(
            done - self.judged < CAPACITY,
            "the log overflowed: the host was away for too long"
        );
        while self.judged < done {
            let first = self.judged + 1;
            let at = first % CAPACITY;
            let count = (done - self.judged).min(CAPACITY - at).min(0x1_0000);
            let mut bytes = vec![0; 8 * count as usize];
            let map = self.space.load_full();
            map.read(Gpa(LOG + 8 * at), &mut bytes).unwrap();
            for (access, word) in (first..).zip(bytes.chunks_exact(8)) {
                self.judge_one(access, u64::from_le_bytes(word.try_into().unwrap()));
            }
            self.judged += count;
        }
        self.arrived.retain(|number| *number > done);
        // Reigns that were over before anything that is still to be judged.
        self.reigns.retain(|reign| reign.until > done);
    }

    fn judge_one(&mut self, access: u64, read: u64) {
        let mut written = self.arrived.contains(&access);
        let owner = match read {
            NOBODY => {
                self.missed += 1;
                Owner::Nobody
            }
            own if own == access => {
                // Written to RAM, and read from it.
                written = true;
                let owner = self.reigns.iter().find(|r| {
                    matches!(r.owner, Owner::Ram(_)) && r.after < access && access <= r.until
                });
                owner.map_or(Owner::Ram(u64::MAX), |r| r.owner)
            }
            name if name & FRESH != 0 => Owner::Ram(name & !FRESH),
            name if name & DEVICE != 0 => Owner::Device(name & !DEVICE),
            other => panic!("access {access} read {other:#x}, which nobody has written there"),
        };
        self.assert_reign(access, owner);
        if !written {
            self.missed += 1;
            self.assert_reign(access, Owner::Nobody);
        }
        self.answers[match owner {
            Owner::Ram(_) => 0,
            Owner::Device(_) => 1,
            Owner::Nobody => 2,
        }] += 1;
    }
}

fn every_access_reaches_an_owner_of_its_moment(name: &str) {
    let backend = backend(name);
    let line = format!("churn {:#x} {CELLS} {MAILBOX:#x}", PAGE.0);
    let spec = spec(&line).backend(backend);
    let machine = Machine::build(Plan::new(spec).unwrap(), Console::discarded()).unwrap();
    let (space, bus) = (machine.space().clone(), machine.bus().clone());
    let region = region(0x1000);
    let alias = region.clone();
    let added = space.update("the host's view", |e| {
        e.add_ram(ALIAS, alias, 0, 0x1000, Flags::default())
    });
    added.unwrap().wait();
    let moments = Arc::new(Moments::default());
    // Behind the backend's own listener: nearer to the swap.
    space.add_listener(moments.clone());
    let mut host = Host {
        backend,
        moments,
        space,
        bus,
        region,
        reigns: vec![Reign {
            owner: Owner::Nobody,
            after: 0,
            until: u64::MAX,
        }],
        judged: 0,
        arrived: HashSet::new(),
        missed: 0,
        answers: [0; 3],
    };
    let handle = machine.handle();
    let start = Instant::now();
    let (ended, host) = std::thread::scope(|scope| {
        let judge = scope.spawn(move || {
            // Whatever happens here, the guest must not run for ever.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                host.set_word(MAILBOX + 24, CAPACITY);
                for number in 0..rounds() {
                    host.round(number);
                }
                host.set_word(MAILBOX + 16, 1);
            }));
            if result.is_err() {
                handle.stop();
            }
            result.map(|()| host)
        });
        let ended = machine.run().unwrap();
        (ended, judge.join().unwrap())
    });
    let mut host = host.unwrap_or_else(|panic| std::panic::resume_unwind(panic));

    assert_eq!(ended.outcome, Outcome::Exit(0));
    let done = host.done();
    host.judge(done);
    assert_eq!(
        counter(&ended, "memory accesses that hit nothing"),
        host.missed,
        "of {done} accesses"
    );
    let [ram, device, nobody] = host.answers;
    assert!(ram >= rounds() && device >= rounds());
    println!(
        "{backend:?}: {} rounds in {:.1} s; {done} accesses: RAM {ram}, device {device}, nobody {nobody}",
        rounds(),
        start.elapsed().as_secs_f64()
    );
}

on_each_backend! {
    every_access_reaches_an_owner_of_its_moment,
}
