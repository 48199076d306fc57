//! Machines over all of their lives: reset, begun again, stopped, dropped; what is noted, and what is given back.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;

use umbra_slots::{Gpa, GpaRange};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use super::*;

/// A guest that says so and asks for a reset.
fn says_and_resets() -> Vec<u8> {
    [out(0x3f8, b'x'), out(0x64, 0xfe), SPIN.to_vec()].concat()
}

fn builder(bench: &Bench) -> Builder {
    Builder::new(bench.spec.clone()).console(Console::to(bench.screen.clone()))
}

fn restarts(bench: &mut Bench) {
    bench.spec.on_reset = OnReset::Restart;
}

/// Waits until some news has come, and returns all that came since the beginning.
fn until(handle: &Handle, wanted: impl Fn(&News) -> bool) -> Vec<News> {
    let mut events = handle.events(Some(0)).unwrap();
    let mut all = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !all.iter().any(&wanted) {
        assert!(Instant::now() < deadline, "{all:?}");
        let taken = events.wait(Duration::from_secs(1), usize::MAX);
        all.extend(taken.entries.into_iter().map(|entry| entry.news));
    }
    all
}

fn a_guest_that_resets_begins_again_until_somebody_stops_it(backend: Backend) {
    let mut bench = bench(backend, &says_and_resets());
    restarts(&mut bench);
    let mut vm = builder(&bench).build().unwrap();
    let handle = vm.handle();
    vm.start().unwrap();
    until(&handle, |news| {
        matches!(news, News::Started { boot: 5, .. })
    });
    handle.stop();
    assert_eq!(vm.wait().unwrap().outcome, Outcome::Stopped);
    let said = bench.screen.0.lock().len();
    assert!(said >= 4, "{said}");
    assert_eq!(handle.pause().err(), Some(HandleError::Ended));
}

fn without_it_a_reset_is_the_end(backend: Backend) {
    let bench = bench(backend, &says_and_resets());
    let vm = builder(&bench).build().unwrap();
    let handle = vm.handle();
    assert_eq!(vm.run().unwrap().outcome, Outcome::Reset);
    let news = until(&handle, |news| matches!(news, News::Ended { .. }));
    let [News::Started { boot: 1, .. }, News::Ended { reason }] = &news[..] else {
        panic!("{news:?}");
    };
    assert_eq!(reason, "reset");
}

fn whoever_has_a_handle_resets_a_guest_that_hangs(backend: Backend) {
    let bench = bench(backend, &SPIN);
    let mut vm = builder(&bench).build().unwrap();
    let handle = vm.handle();
    vm.start().unwrap();
    for boot in 1..=3 {
        until(
            &handle,
            |news| matches!(news, News::Started { boot: b, .. } if *b == boot),
        );
        // Waits until the next one is there.
        let paused = handle.pause().unwrap();
        assert_eq!(paused.states.len(), 1);
        handle.resume();
        handle.reset().unwrap();
    }
    let news = until(&handle, |news| {
        matches!(news, News::Started { boot: 4, .. })
    });
    assert!(news.contains(&News::Reset { by_guest: false }));
    assert_eq!(handle.boots(), 4);
    handle.stop();
    assert_eq!(vm.wait().unwrap().outcome, Outcome::Stopped);
}

fn a_machine_that_cannot_begin_again_says_why(backend: Backend) {
    let mut bench = bench(backend, &SPIN);
    restarts(&mut bench);
    let mut vm = builder(&bench).build().unwrap();
    let handle = vm.handle();
    std::fs::remove_file(&bench.spec.kernel).unwrap();
    vm.start().unwrap();
    handle.reset().unwrap();
    let Err(RunError::Again(error)) = vm.wait() else {
        panic!("it began again without a kernel");
    };
    assert!(error.to_string().contains("guest"), "{error}");
    assert_eq!(handle.resume_cpu(0), Err(HandleError::Ended));
}

fn counters_are_told_while_the_guest_runs_and_while_it_stands_still(backend: Backend) {
    let bench = bench(backend, &SPIN);
    let mut vm = builder(&bench).build().unwrap();
    let handle = vm.handle();
    vm.start().unwrap();
    let seen = handle.inspect().unwrap();
    assert_eq!(seen.cpus.len(), 1);
    assert!(!seen.cpus[0].counters.is_empty());
    assert!(
        seen.map
            .iter()
            .any(|entry| matches!(entry, MapEntry::Ram { start: 0, .. }))
    );
    let last = seen.bumps.last().unwrap();
    assert_eq!(last.generation, seen.generation);
    handle.pause().unwrap();
    let still = handle.inspect().unwrap();
    assert_eq!(still.cpus, handle.inspect().unwrap().cpus);
    handle.resume();
    drop(vm);
    assert!(handle.inspect().is_err());
}

/// Counts reads, and says who it is.
struct Register {
    value: u32,
    reads: AtomicU64,
}

impl DeviceMmio for Register {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let value = self.value.to_le_bytes();
        let len = data.len().min(4);
        data[..len].copy_from_slice(&value[..len]);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

/// A place where nothing is.
const PLACE: u32 = 0xfea0_0000;

fn place() -> GpaRange {
    GpaRange::new(Gpa(PLACE.into()), 0x1000).unwrap()
}

fn own_devices_come_and_go_under_a_guest_that_hammers_them(backend: Backend) {
    // mov eax, [PLACE]; jmp
    let mut code = vec![0xa1];
    code.extend(PLACE.to_le_bytes());
    code.extend([0xeb, 0xf9]);
    let bench = bench(backend, &code);
    let mut vm = builder(&bench).build().unwrap();
    let handle = vm.handle();
    vm.start().unwrap();
    for round in 0..20 {
        let register = Arc::new(Register {
            value: round,
            reads: AtomicU64::new(0),
        });
        let id = handle.map_device(place(), register.clone()).unwrap();
        assert!(handle.map_device(place(), register.clone()).is_err());
        while register.reads.load(Ordering::Relaxed) < 3 {
            thread::yield_now();
        }
        let eax = handle.pause_cpu(0).unwrap().state.gpr[0];
        // Not the one before: its last value was read before this one's first.
        assert_eq!(eax, u64::from(round));
        handle.resume_cpu(0).unwrap();
        assert!(handle.unmap_device(id));
        assert!(!handle.unmap_device(id));
        let reads = register.reads.load(Ordering::Relaxed);
        // Nobody is inside any more, and nobody has it but this test.
        assert_eq!(Arc::strong_count(&register), 1);
        handle.inspect().unwrap();
        assert_eq!(register.reads.load(Ordering::Relaxed), reads);
    }
    handle.stop();
    let _ = vm.wait().unwrap();
    assert!(matches!(
        handle.map_device(
            place(),
            Arc::new(Register {
                value: 0,
                reads: AtomicU64::new(0)
            })
        ),
        Err(MapError::Ended)
    ));
}

fn what_the_builder_was_told_is_there_in_every_life(backend: Backend) {
    // Reads the device once, and resets.
    let mut code = vec![0xa1];
    code.extend(PLACE.to_le_bytes());
    code.extend(says_and_resets());
    let mut bench = bench(backend, &code);
    restarts(&mut bench);
    let register = Arc::new(Register {
        value: 7,
        reads: AtomicU64::new(0),
    });
    let made = Arc::new(AtomicU32::new(0));
    let count = made.clone();
    bench.spec = bench.spec.pci().virtio(
        "own",
        VirtioKind::Own(OwnDevice::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, io::Error>(umbra_devices::virtio::Rng::new())
        })),
    );
    let mut vm = builder(&bench)
        .mmio(place(), register.clone())
        .build()
        .unwrap();
    let handle = vm.handle();
    vm.start().unwrap();
    until(&handle, |news| {
        matches!(news, News::Started { boot: 4, .. })
    });
    assert_eq!(handle.devices()[0].kind, "own");
    drop(vm);
    assert!(register.reads.load(Ordering::Relaxed) >= 3);
    assert!(made.load(Ordering::Relaxed) >= 4);
    assert_eq!(Arc::strong_count(&register), 1);
}

/// A device that holds `file` while the second life is built for the first time, and lets go when that is tried again.
fn holder(file: PathBuf) -> (VirtioKind, Arc<AtomicU32>) {
    let made = Arc::new(AtomicU32::new(0));
    let (count, held) = (made.clone(), Mutex::new(None));
    let device = OwnDevice::new(move || {
        let mut held = held.lock();
        *held = None;
        // The first life lets go of it a moment later than it ends.
        while count.load(Ordering::Relaxed) == 1 && held.is_none() {
            *held = umbra_block::open_file(&file, &umbra_block::DiskOptions::default()).ok();
        }
        count.fetch_add(1, Ordering::Relaxed);
        Ok::<_, io::Error>(umbra_devices::virtio::Rng::new())
    });
    (VirtioKind::Own(device), made)
}

fn a_reset_waits_for_files_that_the_life_before_still_has(backend: Backend) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, vec![0; 2 << 20]).unwrap();
    for kind in [
        VirtioKind::Block(DiskSpec::new(&path)),
        VirtioKind::Pmem(PmemSpec::new(&path)),
    ] {
        let bench = bench(backend, &SPIN);
        let (own, made) = holder(path.clone());
        let spec = bench.spec.clone().pci().virtio("own", own);
        let mut vm = Builder::new(spec.virtio("file", kind)).build().unwrap();
        let handle = vm.handle();
        vm.start().unwrap();
        handle.reset().unwrap();
        until(&handle, |news| {
            matches!(news, News::Started { boot: 2, .. })
        });
        assert!(made.load(Ordering::Relaxed) >= 3, "nobody had to wait");
        drop(vm);
    }
}

fn what_was_changed_outlives_a_reset(backend: Backend) {
    let bench = bench(backend, &SPIN);
    let dir = tempfile::tempdir().unwrap();
    let disk = |name: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, [0; 512]).unwrap();
        path
    };
    let spec = bench.spec.clone().pci();
    let spec = spec.virtio("a", VirtioKind::Block(DiskSpec::new(disk("old"))));
    let mut vm = Builder::new(spec).build().unwrap();
    let handle = vm.handle();
    vm.start().unwrap();
    handle.replace_disk("a", &disk("new")).unwrap();
    let hot = VirtioSpec {
        id: "b".into(),
        kind: VirtioKind::Rng(RngSpec::default()),
    };
    handle.add_device(&hot).unwrap();
    std::fs::remove_file(dir.path().join("old")).unwrap();
    handle.reset().unwrap();
    let news = until(&handle, |news| {
        matches!(news, News::Started { boot: 2, .. })
    });
    let ids: Vec<_> = handle.devices().into_iter().map(|d| d.id).collect();
    assert_eq!(ids, ["a", "b"]);
    assert!(news.contains(&News::DeviceAdded {
        id: "b".into(),
        kind: "rng".into()
    }));
    let replaced =
        |news: &News| matches!(news, News::DiskReplaced { path, .. } if path.ends_with("new"));
    assert!(news.iter().any(replaced));
}

fn a_reset_waits_for_nobody_who_waits_for_it(backend: Backend) {
    let bench = bench(backend, &SPIN);
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::write(&disk, [0; 512]).unwrap();
    let spec = bench.spec.clone().pci().keyboard();
    let spec = spec.virtio("d", VirtioKind::Block(DiskSpec::new(&disk)));
    let mut vm = Builder::new(spec).build().unwrap();
    let handle = vm.handle();
    vm.start().unwrap();
    let calls: [fn(&Handle) -> bool; 9] = [
        |handle| handle.inspect().is_ok(),
        |handle| handle.page_tables(0, None).is_ok(),
        |handle| handle.press_ctrl_alt_del().is_ok(),
        |handle| handle.press_power_button().is_ok(),
        |handle| handle.pause().map(|_| handle.resume()).is_ok(),
        |handle| handle.pause_cpu(0).is_ok() && handle.resume_cpu(0).is_ok(),
        |handle| handle.device_specs().is_ok(),
        |handle| handle.disk("d").map(|disk| disk.statistics()).is_some(),
        |handle| {
            let asked = handle.remove_device("d").is_ok();
            asked && handle.wait_removed("d", Duration::from_secs(60))
        },
    ];
    let threads: Vec<_> = calls
        .into_iter()
        .map(|call| {
            let handle = handle.clone();
            thread::spawn(move || {
                while handle.cpus().is_ok() {
                    // What it gives is not the question, but when.
                    let _ = call(&handle);
                }
            })
        })
        .collect();
    for boot in 2..12 {
        let start = Instant::now();
        handle.reset().unwrap();
        until(
            &handle,
            |news| matches!(news, News::Started { boot: b, .. } if *b == boot),
        );
        assert!(start.elapsed() < Duration::from_secs(10), "boot {boot}");
    }
    handle.stop();
    assert_eq!(vm.wait().unwrap().outcome, Outcome::Stopped);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

fn a_device_that_comes_during_a_reset_is_not_told_of_an_end(backend: Backend) {
    let mut bench = bench(backend, &SPIN);
    bench.spec = bench.spec.pci();
    let mut vm = builder(&bench).build().unwrap();
    let handle = vm.handle();
    vm.start().unwrap();
    let adder = {
        let handle = handle.clone();
        thread::spawn(move || {
            let kind = VirtioKind::Rng(RngSpec::default());
            let id = "a".into();
            let spec = VirtioSpec { id, kind };
            loop {
                let added = handle.add_device(&spec);
                let _ = handle.remove_device_at_once("a");
                if matches!(added, Err(AddError::Ended)) {
                    // It is so then, from now on.
                    return handle.has_ended();
                }
            }
        })
    };
    for boot in 2..12 {
        handle.reset().unwrap();
        until(
            &handle,
            |news| matches!(news, News::Started { boot: b, .. } if *b == boot),
        );
    }
    assert!(!adder.is_finished());
    handle.stop();
    assert_eq!(vm.wait().unwrap().outcome, Outcome::Stopped);
    assert!(handle.has_ended() && adder.join().unwrap());
}

fn who_hears_that_a_device_has_gone_can_use_its_name(backend: Backend) {
    let mut bench = bench(backend, &SPIN);
    bench.spec = bench.spec.pci();
    let mut vm = builder(&bench).build().unwrap();
    let handle = vm.handle();
    vm.start().unwrap();
    let spec = VirtioSpec {
        id: "a".into(),
        kind: VirtioKind::Rng(RngSpec::default()),
    };
    let mut events = handle.events(None).unwrap();
    handle.add_device(&spec).unwrap();
    for _ in 0..200 {
        handle.remove_device_at_once("a").unwrap();
        let gone = News::DeviceRemoved { id: "a".into() };
        let mut heard = false;
        while !heard {
            let taken = events.wait(Duration::from_secs(60), 9);
            heard = taken.entries.iter().any(|entry| entry.news == gone);
        }
        handle.add_device(&spec).unwrap();
    }
}

fn a_kernel_that_crashes_is_news_once_in_each_life(backend: Backend) {
    let says = [0x66, 0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xee];
    let code = [says.to_vec(), says_and_resets()].concat();
    let mut bench = bench(backend, &code);
    restarts(&mut bench);
    let mut vm = builder(&bench).build().unwrap();
    let handle = vm.handle();
    vm.start().unwrap();
    let news = until(&handle, |news| {
        matches!(news, News::Started { boot: 3, .. })
    });
    let panics = news.iter().filter(|news| **news == News::GuestPanic);
    // The third life may have come to it, too.
    assert!((2..=3).contains(&panics.count()), "{news:?}");
}

/// Descriptors and threads of this process, and mappings of guest memory.
fn holdings() -> (usize, usize, usize) {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let guest = maps.lines().filter(|line| line.contains("memfd:")).count();
    (count("/proc/self/fd"), count("/proc/self/task"), guest)
}

fn a_machine_that_is_dropped_gives_everything_back_whoever_has_a_handle(backend: Backend) {
    let bench = bench(backend, &SPIN);
    // What the first one of a process makes stays.
    drop(builder(&bench).build().unwrap());
    let before = holdings();
    let mut handles = Vec::new();
    for started in [true, false, true] {
        let mut vm = builder(&bench).build().unwrap();
        if started {
            vm.start().unwrap();
        }
        handles.push((vm.handle(), vm.handle().console()));
        let during = holdings();
        assert!(during.2 > before.2 && during.0 > before.0, "{during:?}");
    }
    assert_eq!(holdings(), before);
    for (handle, console) in handles {
        assert!(handle.devices().is_empty());
        assert_eq!(console.send(b"x"), Err(ConsoleClosed));
        assert_eq!(console.try_send(b"x"), 0);
    }
}

on_both_backends! {
    a_guest_that_resets_begins_again_until_somebody_stops_it,
    without_it_a_reset_is_the_end,
    whoever_has_a_handle_resets_a_guest_that_hangs,
    a_machine_that_cannot_begin_again_says_why,
    counters_are_told_while_the_guest_runs_and_while_it_stands_still,
    own_devices_come_and_go_under_a_guest_that_hammers_them,
    what_the_builder_was_told_is_there_in_every_life,
    a_reset_waits_for_files_that_the_life_before_still_has,
    what_was_changed_outlives_a_reset,
    a_device_that_comes_during_a_reset_is_not_told_of_an_end,
    a_reset_waits_for_nobody_who_waits_for_it,
    a_kernel_that_crashes_is_news_once_in_each_life,
    who_hears_that_a_device_has_gone_can_use_its_name,
    a_machine_that_is_dropped_gives_everything_back_whoever_has_a_handle,
}

#[test]
fn a_processor_of_ones_own_executes_the_guest() {
    let code = [out(0x600, 1 << 5 | 5 << 2), SPIN.to_vec()].concat();
    let bench = bench(Backend::Kvm, &code);
    let vm = builder(&bench).backend(|parts| {
        let cpuid = |id| umbra_cpu_soft::model::x86_64_v2(id, parts.cpus);
        let config = umbra_cpu_soft::SoftConfig {
            cpus: parts.cpus,
            cpuid: (0..parts.cpus).map(cpuid).collect(),
            mmu: umbra_cpu_soft::MmuConfig::default(),
            processor: Processor::default(),
            measure: false,
        };
        Ok(umbra_cpu_soft::SoftBackend::new(parts.space, parts.clock, config) as _)
    });
    assert_eq!(
        vm.build().unwrap().run().unwrap().outcome,
        Outcome::PowerOff
    );
}

#[test]
fn a_machine_that_was_not_started_is_not_waited_for() {
    let bench = bench(Backend::Soft, &SPIN);
    let error = builder(&bench).build().unwrap().wait().unwrap_err();
    assert!(matches!(error, RunError::NotStarted));
}
