//! Memory that comes and goes beside a guest whose disk is another process: what that process has mapped is what the
//! map has, whenever a change has returned; and what it writes meanwhile is in the dirty log.
//!
//! The oracles are `/proc/PID/maps` of the back end, and the guest's memory itself: pages are copied only when a
//! harvest reports them, and once the guest stands still the copy must be the memory, byte by byte.
//!
//! `UMBRA_SLOT_ROUNDS` says how often memory comes and goes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use umbra_slots::{AddressSpace, Backing, Flags, Gpa, GpaRange, RamRegion, SlotId};
use umbra_vmm::{
    Console, DiskSpec, Handle, Machine, Outcome, Plan, Spec, VhostKind, VhostUserSpec, VirtioKind,
    VirtioSpec,
};

use crate::support::back_ends::{self, Server};
use crate::support::backend::{backend, on_each_stock_backend};
use crate::support::disks::{Place, start_ours, start_storage};
use crate::support::guest::{Guest, LINUX_6_1, or_skip};
use crate::support::screen::Screen;
use crate::support::tools;
use crate::support::watched::region;

/// How long the guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);
const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;
const DISK: u64 = 16 * MIB;
/// Where memory comes and goes: above all that the guest has.
const HOLE: u64 = 64 << 30;
/// How often what was written is copied: once in so many rounds.
const COPIES: u64 = 50;

const PLAIN: Flags = Flags {
    read_only: false,
    dirty_log: false,
};
const LOGGED: Flags = Flags {
    read_only: false,
    dirty_log: true,
};

fn rounds() -> u64 {
    let text = std::env::var("UMBRA_SLOT_ROUNDS").unwrap_or_else(|_| "2000".into());
    text.parse().expect("UMBRA_SLOT_ROUNDS is a number")
}

/// Writes and reads the disk that is another process until it is told to stop, past all caches and through them.
/// The word that says how it went is put together, so that what the terminal shows of this is not that word. It
/// never ends: busybox before 1.36 takes the end of a background job for the end of its input.
const LOAD: &str = r#"
stty -echo
verify() {
  in_tools fio --name=v --filename=/dev/vda --ioengine=libaio --iodepth=16 --direct=1 --rw=randwrite \
    --bsrange=512-64k --size=4M --verify=crc32c --verify_fatal=1 --output=/tmp/fio --eta=never \
    --verify_state_save=0 --randrepeat=0 && grep -q 'err= 0' /tmp/fio
}
cached() { echo 1 > /proc/sys/vm/drop_caches; cat /dev/vda > /dev/null; }
n=0; bad=0
(while [ ! -e /tmp/stop ]; do verify && cached || bad=$((bad + 1)); n=$((n + 1)); echo "ro""und: $n"; done
echo "en""ded: $n $bad"; sleep 1000000) &
"#;

/// Reads all of the disk once more, into memory that had something else before.
const ONCE_MORE: &str = r#"echo 3 > /proc/sys/vm/drop_caches; echo "su""m: $(md5sum < /dev/vda)"
"#;

/// A guest with a disk that is another process, and the memory of both.
struct Bench {
    handle: Handle,
    screen: Screen,
    space: Arc<AddressSpace>,
    thread: JoinHandle<Outcome>,
    back_end: u32,
    _servers: Vec<Server>,
    place: Place,
}

impl Bench {
    fn start(name: &str, serve: &dyn Fn(&Place) -> Vec<Server>) -> Option<Self> {
        let (Some(guest), Some(tools)) = (Guest::fetch(LINUX_6_1), or_skip(tools::disk())) else {
            return None;
        };
        let place = Place::new();
        fs::write(place.path("raw"), noise(1)).unwrap();
        place.disk("ext4", MIB);
        let servers = serve(&place);
        let mut spec = Spec::new(&guest.kernel)
            .initrd(&guest.initrd)
            // Or the guest would itself write every page a moment before the back end does.
            .command_line("console=ttyS0 panic=-1 quiet init_on_alloc=0")
            .memory(192 << 20)
            .backend(backend(name));
        let tools = DiskSpec {
            read_only: true,
            ..DiskSpec::new(tools)
        };
        let apart = VhostUserSpec::new(VhostKind::Block, place.path("raw.sock"));
        spec.virtio = [
            ("apart", VirtioKind::VhostUser(apart)),
            ("tools", VirtioKind::Block(tools)),
        ]
        .map(|(id, kind)| VirtioSpec {
            id: id.into(),
            kind,
        })
        .into();
        let screen = Screen::default();
        let machine = Machine::build(Plan::new(spec).unwrap(), Console::to(screen.clone()));
        let machine = machine.unwrap();
        let bench = Self {
            handle: machine.handle(),
            screen,
            space: machine.space().clone(),
            thread: std::thread::spawn(|| machine.run().unwrap().outcome),
            back_end: servers[0].0.id(),
            _servers: servers,
            place,
        };
        bench.say(&format!("tools=vdb\n{}{LOAD}", tools::MOUNT));
        bench.wait_for("round: 1");
        Some(bench)
    }

    fn say(&self, text: &str) {
        let sent = self.handle.console().send(text.as_bytes());
        sent.unwrap_or_else(|error| panic!("{error}: {}", self.screen.text()));
    }

    fn wait_for(&self, word: &str) -> String {
        let begin = Instant::now();
        loop {
            let text = self.screen.text();
            let mut lines = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'));
            if let Some(rest) = lines.find_map(|line| line.strip_prefix(word)) {
                return rest.trim().to_owned();
            }
            assert!(begin.elapsed() < PATIENCE, "no {word:?}: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many bytes the back end has mapped of each file, by number.
    fn mapped(&self) -> BTreeMap<u64, u64> {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.back_end)).unwrap();
        let mut mapped = BTreeMap::new();
        for line in maps.lines().filter(|line| line.contains("/memfd:")) {
            let mut words = line.split_whitespace();
            let (start, end) = words.next().unwrap().split_once('-').unwrap();
            let hex = |word| u64::from_str_radix(word, 16).unwrap();
            let file: u64 = words.nth(3).unwrap().parse().unwrap();
            *mapped.entry(file).or_default() += hex(end) - hex(start);
        }
        mapped
    }

    /// What the map has of a file, in bytes.
    fn in_map(&self, file: u64) -> u64 {
        let map = self.space.load();
        let ram = map.slots().iter().filter(|slot| match slot.backing() {
            Backing::Ram { region, .. } => number(region) == file,
            Backing::Io(_) => false,
        });
        ram.map(|slot| slot.range().len()).sum()
    }

    /// Compares what the back end has of some memory with what the map has of it.
    fn check(&self, file: u64, what: &str) {
        self.assert_not_lost();
        let (has, expected) = (self.mapped().get(&file).copied(), self.in_map(file));
        match expected {
            0 => assert_eq!(has, None, "{what}: it has what has left"),
            // A back end may map more of a file than its part: from its beginning, say.
            _ => assert!(
                has.is_some_and(|has| has >= expected),
                "{what}: {has:?} of {expected}"
            ),
        }
    }

    fn assert_not_lost(&self) {
        let devices = self.handle.devices();
        let apart = devices.iter().find(|device| device.id == "apart").unwrap();
        let state = apart.back_end.as_ref().unwrap();
        assert_eq!(state.losses, 0, "{state:?}");
    }

    /// Has the back end write memory that nobody else writes; the guest reads what was on the host a moment before.
    fn read_once_more(&self) {
        let disk = self.place.path("raw");
        fs::write(&disk, noise(2)).unwrap();
        self.say(ONCE_MORE);
        let sum = self.wait_for("sum: ");
        let expected = Command::new("md5sum").arg(&disk).output().unwrap();
        let expected = String::from_utf8(expected.stdout).unwrap();
        assert_eq!(sum.split(' ').next(), expected.split(' ').next());
    }

    fn update<T>(
        &self,
        edit: impl FnOnce(&mut umbra_slots::Editor) -> Result<T, umbra_slots::SlotError>,
    ) -> T {
        self.space.update("memory", edit).unwrap().wait()
    }

    /// Has memory come, change and go; returns how many slots came.
    fn round(&self, round: u64) -> u64 {
        let len = (1 + round * 37 % 256) * PAGE;
        let memory = region(2 * len);
        let file = number(&memory);
        let add = |at: u64, offset: u64| {
            self.update(|e| e.add_ram(Gpa(HOLE + at), memory.clone(), offset, len, PLAIN))
        };
        let remove = |id: SlotId| self.update(|e| e.remove(id));
        let check = |what: &str| self.check(file, &format!("round {round}, {what}"));
        let first = add(0, 0);
        check("the first came");
        let mut came = 1;
        match round % 4 {
            // Two that are one piece, and the lower goes first: what stays has to be mapped anew.
            0 => {
                let second = add(len, len);
                came += 1;
                check("the second came beside it");
                remove(first);
                check("the first went");
                remove(second);
            }
            1 => {
                for new in [2 * len, PAGE] {
                    self.update(|e| e.resize(first, new));
                    check("another length");
                }
                remove(first);
            }
            2 => {
                self.update(|e| e.move_to(first, Gpa(HOLE + 16 * MIB)));
                check("another place");
                remove(first);
            }
            _ => remove(first),
        }
        check("all went");
        came
    }
}

/// What is on the disk: no two pages are the same.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(DISK as usize / 8).flatten().collect()
}

fn number(region: &RamRegion) -> u64 {
    region.file().metadata().unwrap().ino()
}

/// A copy of the guest's memory that is kept by its dirty log.
struct Copy {
    slots: Vec<(SlotId, GpaRange, Vec<u8>)>,
    reported: u64,
}

impl Copy {
    fn start(space: &AddressSpace) -> Self {
        let map = space.load_full();
        let ram = map.slots().iter().filter(
            |slot| matches!(slot.backing(), Backing::Ram { flags, .. } if !flags.read_only),
        );
        let mut slots = Vec::new();
        for slot in ram {
            let (id, range) = (slot.id(), slot.range());
            let logged = space.update("log", |e| e.set_flags(id, LOGGED)).unwrap();
            logged.wait();
            let mut bytes = vec![0; range.len() as usize];
            space.load().read(range.start(), &mut bytes).unwrap();
            slots.push((id, range, bytes));
        }
        Self { slots, reported: 0 }
    }

    /// Copies what was written since the last time; returns how many pages.
    fn harvest(&mut self, space: &AddressSpace) -> u64 {
        let before = self.reported;
        for (id, range, bytes) in &mut self.slots {
            let dirty = space.harvest(*id).unwrap();
            for gfn in dirty.iter() {
                let at = (gfn.gpa().0 - range.start().0) as usize;
                let page = &mut bytes[at..][..PAGE as usize];
                space.load().read(gfn.gpa(), page).unwrap();
            }
            self.reported += dirty.count();
        }
        self.reported - before
    }

    fn assert_complete(&mut self, space: &AddressSpace) {
        self.harvest(space);
        assert_eq!(self.harvest(space), 0, "nobody writes any more");
        let mut memory = vec![0; PAGE as usize];
        for (_, range, bytes) in &self.slots {
            let pages = bytes.chunks(PAGE as usize).enumerate();
            let lost = pages.filter(|(number, copied)| {
                let at = Gpa(range.start().0 + *number as u64 * PAGE);
                space.load().read(at, &mut memory).unwrap();
                *copied != memory
            });
            assert_eq!(lost.count(), 0, "written pages that nobody told of");
        }
    }
}

fn memory_comes_and_goes_beside(name: &str, serve: &dyn Fn(&Place) -> Vec<Server>) {
    let Some(bench) = Bench::start(name, serve) else {
        return;
    };
    let settled = bench.mapped();
    let guest_has = bench.space.load().slots().len();
    let mut copy = Copy::start(&bench.space);
    let (begin, mut came) = (Instant::now(), 0);
    for round in 0..rounds() {
        came += bench.round(round);
        if round % COPIES == 0 {
            copy.harvest(&bench.space);
        }
    }
    let took = begin.elapsed();
    assert_eq!(
        bench.mapped(),
        settled,
        "what the back end has is what it had"
    );
    assert_eq!(bench.space.load().slots().len(), guest_has);

    bench.say("touch /tmp/stop\n");
    let ended = bench.wait_for("ended: ");
    copy.harvest(&bench.space);
    bench.read_once_more();
    bench.handle.pause().unwrap();
    copy.assert_complete(&bench.space);
    let (done, bad) = ended.split_once(' ').unwrap();
    println!(
        "{came} slots came and went in {took:?}; the guest did its work {done} times, {bad} failed; \
         {} pages were reported",
        copy.reported
    );
    assert_eq!(bad, "0", "{}", bench.screen.text());
    bench.assert_not_lost();
    bench.handle.stop();
    assert_eq!(bench.thread.join().unwrap(), Outcome::Stopped);
}

fn a_back_end_of_ours_has_no_memory_that_has_left_and_all_it_writes_is_logged(name: &str) {
    memory_comes_and_goes_beside(name, &start_ours);
}

fn qemus_storage_daemon_has_no_memory_that_has_left_and_all_it_writes_is_logged(name: &str) {
    if let Some(daemon) = or_skip(back_ends::storage_daemon()) {
        memory_comes_and_goes_beside(name, &|place| start_storage(&daemon, place));
    }
}

on_each_stock_backend! {
    a_back_end_of_ours_has_no_memory_that_has_left_and_all_it_writes_is_logged,
    qemus_storage_daemon_has_no_memory_that_has_left_and_all_it_writes_is_logged,
}
