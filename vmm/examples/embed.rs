//! Three machines in one process, with devices of the program's own that come and go under guests which never stop
//! using them; and in the end everything is given back, which is checked.
//!
//! ```text
//!   main thread                                   one thread a machine            its guest, for ever
//!     poll(events of all three machines) <─────────  Handle::map_device             reads PLACE
//!       Started, DeviceAdded, DeviceRemoved          Handle::unmap_device           tells WITNESS what it has read
//!       the last one has gone: Handle::stop          Handle::add_device, …
//!       Ended
//! ```
//! `cargo run --release -p umbra-vmm --example embed [-- --backend auto|soft|kvm] [--rounds N]`

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use umbra_slots::{DmaMemory, Gpa, GpaRange};
use umbra_virtio::{
    ActivateError, Activation, Fault, Features, Handler, Interrupt, Next, Queue, QueueWorker,
};
use umbra_vmm::{
    Backend, Builder, Device, Events, Handle, News, Outcome, OwnDevice, Spec, VirtioKind,
    VirtioSpec, Vm,
};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

type Failure = Box<dyn Error + Send + Sync>;

/// How many machines there are.
const MACHINES: usize = 3;
/// How often a device comes and goes if nothing else is said, in all machines together.
const ROUNDS: usize = 1000;
/// How often the process is looked at.
const ATTEMPTS: usize = 8;
/// Where a device comes and goes, and where the guest tells what it has read there.
const PLACE: u32 = 0xfea0_0000;
const WITNESS: u32 = 0xfea1_0000;
/// What is read where nothing is.
const NOTHING: u32 = u32::MAX;
/// Whoever waits for longer than this waits in vain.
const PATIENCE: Duration = Duration::from_secs(60);

/// The guest, in 32-bit protected mode: `mov eax, [PLACE]; mov [WITNESS], eax`, and again.
fn guest() -> Vec<u8> {
    let (place, witness) = (PLACE.to_le_bytes(), WITNESS.to_le_bytes());
    [&[0xa1][..], &place, &[0xa3], &witness, &[0xeb, 0xf4]].concat()
}

/// Writes a kernel that is nothing but `code`: the smallest format is multiboot (version 1), whose header says where
/// the file is loaded and entered.
fn write_kernel(folder: &Path, code: &[u8]) -> io::Result<PathBuf> {
    let (magic, addresses_are_valid) = (0x1bad_b002u32, 1u32 << 16);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(addresses_are_valid);
    let (load, entry) = (0x10_0000u32, 0x10_0020u32);
    let end = entry + code.len() as u32;
    let header = [
        magic,
        addresses_are_valid,
        checksum,
        load,
        load,
        end,
        end,
        entry,
    ];
    let mut file: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    file.extend(code);
    let path = folder.join("guest");
    std::fs::write(&path, file)?;
    Ok(path)
}

/// A device with one register, in every word of its page. Processors call it at the same time, so what it counts is
/// atomic; it must not block.
struct Register {
    value: u32,
    reads: AtomicU64,
}

impl DeviceMmio for Register {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let value = self.value.to_le_bytes();
        let len = data.len().min(value.len());
        data[..len].copy_from_slice(&value[..len]);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

/// A device that is told by the guest what it has read. Values rise from round to round, so that an old one is known.
#[derive(Default)]
struct Witness {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    reports: u64,
    last: u32,
    /// The value of the device that has gone, and of none that was there before it.
    gone: u32,
    /// The guest may have read that before it had gone, and tell it only now.
    may_be_late: bool,
    /// How often it has read what had gone.
    stale: u64,
}

impl DeviceMmio for Witness {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, _: &mut [u8]) {}

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else {
            return;
        };
        let mut seen = self.seen.lock();
        seen.reports += 1;
        seen.last = value;
        let late = std::mem::take(&mut seen.may_be_late);
        if value <= seen.gone && !late {
            seen.stale += 1;
        }
        self.changed.notify_all();
    }
}

impl Witness {
    /// Waits until the guest has read `value`.
    fn wait_for(&self, value: u32) -> Result<(), Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = self.seen.lock();
        while seen.last != value {
            if self.changed.wait_until(&mut seen, deadline).timed_out() {
                let last = seen.last;
                return Err(format!("the guest reads {last:#x}, and not {value:#x}").into());
            }
        }
        Ok(())
    }

    /// Notes that the device of this value has gone.
    fn has_gone(&self, value: u32) {
        let mut seen = self.seen.lock();
        seen.gone = value;
        seen.may_be_late = true;
    }

    fn totals(&self) -> Result<u64, Failure> {
        let seen = self.seen.lock();
        match seen.stale {
            0 => Ok(seen.reports),
            stale => Err(format!("the guest has read {stale} times what had gone").into()),
        }
    }
}

/// A virtio device: it writes a greeting into every buffer that its driver offers.
struct Greeter {
    worker: Option<QueueWorker>,
    /// Dropped with the device: who has the other end can tell.
    _alive: Arc<()>,
}

impl Device for Greeter {
    fn id(&self) -> u32 {
        63
    }

    fn features(&self) -> Features {
        Features::RINGS
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker = Some(QueueWorker::start("greeter", activation, Greet)?);
        Ok(())
    }

    fn deactivate(&mut self) -> Vec<Queue> {
        self.worker
            .take()
            .map(QueueWorker::stop)
            .unwrap_or_default()
    }
}

struct Greet;

impl Handler for Greet {
    fn serve(&mut self, ring: &mut Queue, ram: &DmaMemory, irq: &Interrupt) -> Result<Next, Fault> {
        let served = ring.serve(ram, irq, |chain| {
            let written = io::Write::write(&mut chain.writer()?, b"hello")?;
            Ok::<_, Fault>(Some(written as u32))
        })?;
        Ok(Next::after(served, Duration::ZERO))
    }
}

/// A machine, and what looks at its guest.
struct Machine {
    vm: Vm,
    handle: Handle,
    witness: Arc<Witness>,
}

fn page(at: u32) -> GpaRange {
    GpaRange::new(Gpa(at.into()), 0x1000).expect("it is no empty range, and ends below 4 GiB")
}

impl Machine {
    fn build(kernel: &Path, backend: Backend) -> Result<Self, Failure> {
        let witness = Arc::new(Witness::default());
        // Virtio devices come and go on a PCI bus.
        let spec = Spec::new(kernel).memory(16 << 20).backend(backend).pci();
        // What the guest needs from its first instruction on, and in every life, is told to the builder. The console
        // goes nowhere, and nothing else is of this process: a library has no standard output.
        let vm = Builder::new(spec)
            .mmio(page(WITNESS), witness.clone())
            .build()?;
        Ok(Self {
            handle: vm.handle(),
            vm,
            witness,
        })
    }
}

/// Makes devices come and go.
struct Changer {
    handle: Handle,
    witness: Arc<Witness>,
}

impl Changer {
    /// Does it so often; returns how often the guest has told what it read.
    fn rounds(&self, rounds: usize) -> Result<u64, Failure> {
        let all = (1..=rounds as u32).try_for_each(|round| {
            self.register_comes_and_goes(round)?;
            self.greeter_comes_and_goes()
        });
        if all.is_err() {
            // Who follows the machine is waiting for its end.
            self.handle.stop();
        }
        all?;
        self.witness.totals()
    }

    fn register_comes_and_goes(&self, value: u32) -> Result<(), Failure> {
        let register = Arc::new(Register {
            value,
            reads: AtomicU64::new(0),
        });
        let id = self.handle.map_device(page(PLACE), register.clone())?;
        self.witness.wait_for(value)?;
        if !self.handle.unmap_device(id) {
            return Err("a device went that nobody took away".into());
        }
        let reads = register.reads.load(Ordering::Relaxed);
        self.witness.has_gone(value);
        // When it is unmapped no processor is inside, or will be, and nobody else has it: it may be freed.
        if Arc::strong_count(&register) != 1 {
            return Err("somebody still has a device that has gone".into());
        }
        // Every other time the next one comes at once: what the guest reads then is nothing, or already the next one.
        if value.is_multiple_of(2) {
            self.witness.wait_for(NOTHING)?;
        }
        match register.reads.load(Ordering::Relaxed) {
            now if now != reads => Err("a device was read after it had gone".into()),
            _ => Ok(()),
        }
    }

    fn greeter_comes_and_goes(&self) -> Result<(), Failure> {
        let alive = Arc::new(());
        // What makes a device is kept as long as the device is known, for it is made again when the machine is reset.
        // So it has only a weak reference: the strong one that counts is the device's.
        let in_device = Arc::downgrade(&alive);
        let make = move || {
            let alive = in_device.upgrade().ok_or(io::ErrorKind::NotConnected)?;
            Ok::<_, io::Error>(Greeter {
                worker: None,
                _alive: alive,
            })
        };
        self.handle.add_device(&VirtioSpec {
            id: "greeter".into(),
            kind: VirtioKind::Own(OwnDevice::new(make)),
        })?;
        if Arc::strong_count(&alive) != 2 {
            return Err("the greeter was not made".into());
        }
        // This guest has no driver that could let it go when it is asked (`Handle::remove_device`).
        self.handle.remove_device_at_once("greeter")?;
        if !self.handle.wait_removed("greeter", PATIENCE) {
            return Err("the greeter has not gone".into());
        }
        match Arc::strong_count(&alive) {
            1 => Ok(()),
            _ => Err("the greeter lives although it has gone".into()),
        }
    }
}

/// What was noticed of all machines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Noticed {
    started: usize,
    added: usize,
    removed: usize,
    ended: usize,
}

impl Noticed {
    fn count(&mut self, news: &News) {
        match news {
            News::Started { .. } => self.started += 1,
            News::DeviceAdded { .. } => self.added += 1,
            News::DeviceRemoved { .. } => self.removed += 1,
            News::Ended { .. } => self.ended += 1,
            // There are more, and will be.
            _ => {}
        }
    }
}

impl fmt::Display for Noticed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            started,
            added,
            removed,
            ended,
        } = self;
        write!(
            f,
            "{started} machines have started, {added} devices have come, {removed} gone, {ended} machines ended"
        )
    }
}

/// Follows all machines at once until all have ended. Each is stopped when its last device has gone.
fn follow(machines: &[(Handle, usize)]) -> Result<Noticed, Failure> {
    let follow = |(handle, _): &(Handle, usize)| handle.events(Some(0));
    let mut events: Vec<Events> = machines.iter().map(follow).collect::<io::Result<_>>()?;
    let mut removed = vec![0; machines.len()];
    let mut noticed = Noticed::default();
    while noticed.ended < machines.len() {
        let mut descriptors: Vec<_> = events
            .iter()
            .map(|events| PollFd::new(events, PollFlags::IN))
            .collect();
        let patience = Timespec::try_from(PATIENCE)?;
        if retry_on_intr(|| poll(&mut descriptors, Some(&patience)))? == 0 {
            return Err("nothing happens any more".into());
        }
        let ready: Vec<bool> = descriptors
            .iter()
            .map(|descriptor| !descriptor.revents().is_empty())
            .collect();
        let ready = ready.into_iter().enumerate().filter(|(_, ready)| *ready);
        for (index, _) in ready {
            // Who takes less than all is told again.
            let taken = events[index].take(100);
            if taken.missed > 0 {
                return Err(format!("{} events were missed", taken.missed).into());
            }
            for entry in taken.entries {
                noticed.count(&entry.news);
                if matches!(entry.news, News::DeviceRemoved { .. }) {
                    removed[index] += 1;
                }
            }
            let (handle, rounds) = &machines[index];
            if removed[index] == *rounds {
                handle.stop();
            }
        }
    }
    Ok(noticed)
}

/// What there is to say of machines that have ended.
struct Session {
    noticed: Noticed,
    /// How often the guests have told what they read.
    reports: u64,
    handles: Vec<Handle>,
}

/// Builds the machines, has devices come and go so often, and stops them.
fn session(kernel: &Path, backend: Backend, rounds: usize) -> Result<Session, Failure> {
    let build = |_| Machine::build(kernel, backend);
    let mut machines: Vec<_> = (0..MACHINES).map(build).collect::<Result<_, _>>()?;
    // As many for each, and one more for the first ones.
    let share = |index| (rounds + MACHINES - 1 - index) / MACHINES;
    let handles = machines.iter().map(|machine| machine.handle.clone());
    let handles: Vec<_> = handles.zip((0..MACHINES).map(share)).collect();
    for machine in &mut machines {
        machine.vm.start()?;
    }
    let (noticed, reports) = thread::scope(|scope| {
        let mut changers = Vec::new();
        for (machine, (handle, rounds)) in machines.iter().zip(&handles) {
            let changer = Changer {
                handle: handle.clone(),
                witness: machine.witness.clone(),
            };
            changers.push(scope.spawn(move || changer.rounds(*rounds)));
        }
        let noticed = follow(&handles);
        // Those that still wait for something hear that there is nothing to wait for.
        handles.iter().for_each(|(handle, _)| handle.stop());
        let reports = changers.into_iter().map(|changer| {
            let reports = changer.join();
            reports.unwrap_or_else(|_| Err("a thread has panicked".into()))
        });
        (noticed, reports.sum::<Result<u64, Failure>>())
    });
    // What went wrong first is more telling than who then waited in vain.
    let (reports, noticed) = (reports?, noticed?);
    for machine in machines {
        let outcome = machine.vm.wait()?.outcome;
        if outcome != Outcome::Stopped {
            return Err(format!("a machine has ended otherwise: {outcome}").into());
        }
    }
    Ok(Session {
        noticed,
        reports,
        handles: handles.into_iter().map(|(handle, _)| handle).collect(),
    })
}

/// What this process has of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    /// Mappings of guest memory.
    guest: usize,
    /// All mappings.
    mappings: usize,
}

impl Holdings {
    fn now() -> io::Result<Self> {
        let count = |path: &str| Ok::<_, io::Error>(std::fs::read_dir(path)?.count());
        let maps = std::fs::read_to_string("/proc/self/maps")?;
        Ok(Self {
            descriptors: count("/proc/self/fd")?,
            threads: count("/proc/self/task")?,
            guest: maps.lines().filter(|line| line.contains("memfd:")).count(),
            mappings: maps.lines().count(),
        })
    }

    /// Looks again at what the process has. A thread that was joined is listed for a moment longer.
    fn again(self) -> io::Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let now = Self::now()?;
            if now.threads <= self.threads || Instant::now() > deadline {
                return Ok(now);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl fmt::Display for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            descriptors,
            threads,
            guest,
            mappings,
        } = self;
        write!(
            f,
            "{descriptors} descriptors, {threads} threads, {mappings} mappings ({guest} of them of guest memory)"
        )
    }
}

/// Has devices come and go so often in machines that begin and end, and says what was noticed.
fn once(kernel: &Path, backend: Backend, rounds: usize) -> Result<(), Failure> {
    let begin = Instant::now();
    let Session {
        noticed,
        reports,
        handles,
    } = session(kernel, backend, rounds)?;
    println!(
        "{noticed}; the guests have told {reports} times what they read, and never what had gone"
    );
    println!("that took {:.2?}", begin.elapsed());
    let all = Noticed {
        started: MACHINES,
        added: rounds,
        removed: rounds,
        ended: MACHINES,
    };
    if noticed != all {
        return Err(format!("not all was noticed: {all}").into());
    }
    // Handles are still there, and hold nothing.
    match handles.iter().any(|handle| handle.inspect().is_ok()) {
        true => Err("a machine that has ended can be looked into".into()),
        false => Ok(()),
    }
}

/// Does it all, and compares what the process has with what it had.
pub(crate) fn embed(backend: Backend, rounds: usize) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let kernel = write_kernel(folder.path(), &guest())?;
    // What a process makes once is no machine's.
    session(&kernel, backend, 2 * MACHINES)?;
    let mut before = Holdings::now()?;
    for _ in 0..ATTEMPTS {
        once(&kernel, backend, rounds)?;
        let now = before.again()?;
        if now == before {
            println!("back to what it was: {before}");
            return Ok(());
        }
        println!("it was {before}; now it is {now}");
        // The allocator keeps an arena for each thread, up to a number, and makes one more whenever more threads than
        // ever before ask it at one moment. That is no loss; what is lost is lost every time.
        let mappings = now.mappings;
        if now != (Holdings { mappings, ..before }) {
            break;
        }
        before = now;
    }
    Err("not back to what it was".into())
}

/// Reads the arguments.
fn wanted(mut arguments: impl Iterator<Item = String>) -> Result<(Backend, usize), Failure> {
    let (mut backend, mut rounds) = (Backend::Auto, ROUNDS);
    while let Some(name) = arguments.next() {
        let value = arguments.next();
        match (name.as_str(), value.as_deref()) {
            ("--backend", Some("auto")) => backend = Backend::Auto,
            ("--backend", Some("soft")) => backend = Backend::Soft,
            ("--backend", Some("kvm")) => backend = Backend::Kvm,
            ("--rounds", Some(number)) => rounds = number.parse()?,
            _ => return Err("usage: embed [--backend auto|soft|kvm] [--rounds N]".into()),
        }
    }
    match rounds {
        // Each machine is stopped when its last device has gone.
        0..MACHINES => {
            Err(format!("--rounds {rounds}: each of {MACHINES} machines needs one").into())
        }
        _ => Ok((backend, rounds)),
    }
}

fn main() -> ExitCode {
    let done =
        wanted(std::env::args().skip(1)).and_then(|(backend, rounds)| embed(backend, rounds));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embed: {error}");
            ExitCode::FAILURE
        }
    }
}
