//! Whole machines with guests of a few instructions, in 32-bit protected mode without paging.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::*;

mod doorbell;
mod lives;
mod map;
mod state;

/// Makes each claim a test on either backend.
macro_rules! on_both_backends {
    ($($claim:ident,)*) => {
        mod soft {
            $(
                #[test]
                fn $claim() {
                    super::$claim(crate::Backend::Soft);
                }
            )*
        }
        /// Left out by `cargo xtask test` where there is no KVM.
        mod kvm {
            $(
                #[test]
                fn $claim() {
                    if crate::tests::has_kvm() {
                        super::$claim(crate::Backend::Kvm);
                    }
                }
            )*
        }
    };
}
use on_both_backends;

/// Tells whether a test that needs KVM can run; if not it is skipped, which is a failure unless the
/// environment allows it.
pub fn has_kvm() -> bool {
    let Err(error) = umbra_cpu_kvm::Host::open(umbra_cpu_kvm::DEVICE.as_ref()) else {
        return true;
    };
    eprintln!("SKIPPED: {error}");
    assert!(
        std::env::var_os("UMBRA_ALLOW_SKIP").is_some(),
        "skipped, for {error}; set UMBRA_ALLOW_SKIP=1 where there is no KVM"
    );
    false
}

/// `mov al, value; mov dx, port; out dx, al`.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xb0, value, 0x66, 0xba, low, high, 0xee]
}

/// `cli; hlt`, for ever.
const HALT: [u8; 4] = [0xfa, 0xf4, 0xeb, 0xfc];
/// `jmp $`.
const SPIN: [u8; 2] = [0xeb, 0xfe];

/// Writes a multiboot image that executes `code` at 1 MiB + 0x40.
fn image(dir: &TempDir, code: &[u8]) -> PathBuf {
    let (magic, flags) = (0x1bad_b002u32, 1u32 << 16);
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let (load, entry) = (0x10_0000u32, 0x10_0040u32);
    let end = entry + code.len() as u32;
    let header = [magic, flags, checksum, load, load, end, end + 0x1000, entry];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(0x40, 0);
    bytes.extend(code);
    let path = dir.path().join("guest");
    std::fs::write(&path, bytes).unwrap();
    path
}

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    _dir: TempDir,
    spec: Spec,
    screen: Screen,
}

fn bench(backend: Backend, code: &[u8]) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec::new(image(&dir, code))
        .memory(16 << 20)
        .backend(backend);
    Bench {
        _dir: dir,
        spec,
        screen: Screen::default(),
    }
}

impl Bench {
    fn build(&self) -> Machine {
        let plan = Plan::new(self.spec.clone()).unwrap();
        Machine::build(plan, Console::to(self.screen.clone())).unwrap()
    }

    fn run(&self) -> Outcome {
        self.build().run().unwrap().outcome
    }
}

/// Runs `machine` and fails if that takes longer than `limit`.
fn run_within(machine: Machine, limit: Duration) -> Outcome {
    let start = Instant::now();
    let outcome = machine.run().unwrap().outcome;
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
    outcome
}

fn a_guest_prints_and_powers_off(backend: Backend) {
    let code = [
        out(0x3f8, b'h'),
        out(0x3f8, b'i'),
        out(0x600, 1 << 5 | 5 << 2),
        SPIN.to_vec(),
    ];
    let bench = bench(backend, &code.concat());
    assert_eq!(bench.run(), Outcome::PowerOff);
    assert_eq!(*bench.screen.0.lock(), b"hi");
}

fn every_way_to_reset_is_a_reset(backend: Backend) {
    for (port, value) in [(0x602, 1), (0x64, 0xfe), (0xcf9, 6), (0x92, 1)] {
        let bench = bench(backend, &[out(port, value), SPIN.to_vec()].concat());
        assert_eq!(bench.run(), Outcome::Reset, "port {port:#x}");
    }
}

fn a_triple_fault_is_a_crash_with_its_registers(backend: Backend) {
    // ud2 without an interrupt descriptor table.
    let Outcome::Crash(crash) = bench(backend, &[0x0f, 0x0b]).run() else {
        panic!("no crash");
    };
    assert_eq!(crash.state.rip, 0x10_0040);
    assert!(!crash.reason.is_empty());
}

fn stopping_is_bounded_for_busy_halted_and_waiting_processors(backend: Backend) {
    for code in [&SPIN[..], &HALT[..]] {
        let mut bench = bench(backend, code);
        bench.spec.cpus = 3;
        let machine = bench.build();
        let handle = machine.handle();
        let stopper = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            handle.stop();
        });
        assert_eq!(
            run_within(machine, Duration::from_secs(2)),
            Outcome::Stopped
        );
        stopper.join().unwrap();
    }
}

/// Many pauses at once and one after the other: each gives the registers of processors that stand
/// still, and the machine goes on, or stops, afterwards.
fn pausing_is_bounded_and_leaves_nobody_behind(backend: Backend) {
    // inc dword [0x200000]; jmp back
    let count = [0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xf8];
    for (code, cpus) in [(&count[..], 1), (&count[..], 3), (&HALT[..], 2)] {
        let mut bench = bench(backend, code);
        bench.spec.cpus = cpus;
        let machine = bench.build();
        let (handle, space) = (machine.handle(), machine.space().clone());
        let counter = move || {
            let mut bytes = [0; 4];
            space
                .load()
                .read(umbra_slots::Gpa(0x20_0000), &mut bytes)
                .unwrap();
            u32::from_le_bytes(bytes)
        };
        let pausers: Vec<_> = (0..2)
            .map(|_| {
                let handle = handle.clone();
                std::thread::spawn(move || {
                    for _ in 0..100 {
                        let paused = handle.pause().unwrap();
                        assert_eq!(paused.states.len(), cpus as usize);
                        handle.resume();
                    }
                })
            })
            .collect();
        let watcher = std::thread::spawn(move || {
            for pauser in pausers {
                pauser.join().unwrap();
            }
            let first = handle.pause().unwrap();
            assert!(!first.already);
            let stood = counter();
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(counter(), stood, "it stands still");
            let again = handle.pause().unwrap();
            assert!(again.already);
            assert_eq!(again.states[0].rip, first.states[0].rip);
            match handle.page_tables(0, None) {
                Ok(tables) => assert!(tables[0].contains("Off"), "{tables:?}"),
                Err(error) => {
                    let kvm = HandleError::NoTables { backend: "kvm" };
                    assert_eq!((error, backend), (kvm, Backend::Kvm));
                }
            }
            let refused = handle.page_tables(7, None);
            let last = cpus as usize - 1;
            assert_eq!(refused, Err(HandleError::NoSuchCpu { cpu: 7, last }));
            assert_eq!(counter(), stood, "looking at it resumed nothing");
            handle.resume();
            // Stopped while it stands still.
            drop(handle.pause().unwrap());
            handle.stop();
            handle
        });
        assert_eq!(
            run_within(machine, Duration::from_secs(20)),
            Outcome::Stopped
        );
        let handle = watcher.join().unwrap();
        assert_eq!(handle.pause().unwrap_err(), HandleError::Ended);
    }
}

fn a_stop_before_the_run_ends_it_at_once(backend: Backend) {
    let machine = bench(backend, &SPIN).build();
    machine.handle().stop();
    assert_eq!(
        run_within(machine, Duration::from_secs(2)),
        Outcome::Stopped
    );
}

fn a_terminal_that_stands_still_does_not_keep_a_machine_from_stopping(backend: Backend) {
    struct Stuck(std::sync::mpsc::Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (release, wait) = std::sync::mpsc::channel();
    // Sends for ever: out; jmp back to it.
    let code = [out(0x3f8, b'x'), vec![0xeb, 0xf7]].concat();
    let bench = bench(backend, &code);
    let plan = Plan::new(bench.spec.clone()).unwrap();
    let machine = Machine::build(plan, Console::to(Stuck(wait))).unwrap();
    let handle = machine.handle();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        handle.stop();
    });
    assert_eq!(
        run_within(machine, Duration::from_secs(5)),
        Outcome::Stopped
    );
    stopper.join().unwrap();
    drop(release);
}

fn input_reaches_a_guest_that_polls(backend: Backend) {
    // wait: mov dx,0x3fd; in al,dx; test al,1; jz wait; mov dx,0x3f8; in al,dx; out dx,al;
    // cmp al,'.'; jne wait; power off
    let mut code = vec![
        0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee,
        0x3c, b'.', 0x75, 0xed,
    ];
    code.extend(out(0x600, 1 << 5 | 5 << 2));
    code.extend(SPIN);
    let bench = bench(backend, &code);
    let machine = bench.build();
    let input = machine.handle().console();
    let text: Vec<u8> = b"0123456789abcdef"
        .iter()
        .copied()
        .cycle()
        .take(20_000)
        .collect();
    let sent = text.clone();
    let sender = std::thread::spawn(move || {
        input.send(&sent)?;
        input.send(b".")?;
        input.send(&[b'x'; 100_000])
    });
    assert_eq!(
        run_within(machine, Duration::from_secs(10)),
        Outcome::PowerOff
    );
    assert_eq!(
        sender.join().unwrap(),
        Err(ConsoleClosed),
        "nobody reads any more"
    );
    assert_eq!(*bench.screen.0.lock(), [&text[..], b"."].concat());
}

fn a_machine_that_never_ran_is_freed(backend: Backend) {
    let bench = bench(backend, &SPIN);
    let machine = bench.build();
    let space = Arc::downgrade(machine.space());
    let bus = Arc::downgrade(machine.bus());
    drop(machine);
    assert_eq!((space.strong_count(), bus.strong_count()), (0, 0));
}

fn a_machine_that_ran_is_freed(backend: Backend) {
    let bench = bench(backend, &[out(0x602, 1), SPIN.to_vec()].concat());
    let machine = bench.build();
    let space = Arc::downgrade(machine.space());
    assert_eq!(machine.run().unwrap().outcome, Outcome::Reset);
    assert_eq!(space.strong_count(), 0);
}

fn counters_tell_what_the_guest_did(backend: Backend) {
    let code = [out(0x80, 1), out(0x80, 2), out(0x602, 1), SPIN.to_vec()].concat();
    let ended = bench(backend, &code).build().run().unwrap();
    let missed = ended
        .statistics
        .iter()
        .find(|(_, name, _)| name.starts_with("port accesses that"));
    assert_eq!(missed.map(|(_, _, count)| *count), Some(2));
}

#[test]
fn a_bad_kernel_is_one_line() {
    let plan = Plan::new(Spec::new("/nonexistent/kernel")).unwrap();
    let error = Machine::build(plan, Console::discarded())
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("cannot open the kernel") && !error.contains('\n'),
        "{error}"
    );
}

fn a_write_of_0x2000_to_port_0x604_powers_off(backend: Backend) {
    // mov ax, 0x2000; mov dx, 0x604; out dx, ax
    let mut code = vec![0x66, 0xb8, 0x00, 0x20, 0x66, 0xba, 0x04, 0x06, 0x66, 0xef];
    code.extend(SPIN);
    assert_eq!(bench(backend, &code).run(), Outcome::PowerOff);
}

fn the_exit_port_is_where_it_was_wanted_and_nowhere_else(backend: Backend) {
    let code = [out(0xf4, 1), out(0x501, 7), SPIN.to_vec()].concat();
    let mut bench = bench(backend, &code);
    bench.spec.debug_exit = Some(0x501);
    assert_eq!(bench.run(), Outcome::Exit(7));
    bench.spec.test_device = true;
    assert_eq!(
        bench.run(),
        Outcome::Exit(7),
        "the test device brings no second one"
    );
    bench.spec.debug_exit = None;
    assert_eq!(bench.run(), Outcome::Exit(1));
    bench.spec.debug_exit = Some(0xe2);
    let plan = Plan::new(bench.spec.clone()).unwrap();
    let taken = Machine::build(plan, Console::discarded()).err().unwrap();
    assert!(taken.to_string().contains("0xe2"), "{taken}");
}

fn the_test_device_echoes_and_keeps_memory(backend: Backend) {
    let code = [
        // mov al, 5; out 0xe1, al; mov byte [0xff000003], 3; in al, 0xe1; add al, [0xff000003]
        vec![
            0xb0, 5, 0xe6, 0xe1, 0xc6, 0x05, 3, 0, 0, 0xff, 3, 0xe4, 0xe1,
        ],
        vec![0x02, 0x05, 3, 0, 0, 0xff],
        // out 0xf4, al
        vec![0xe6, 0xf4],
        SPIN.to_vec(),
    ];
    let mut bench = bench(backend, &code.concat());
    bench.spec.test_device = true;
    assert_eq!(bench.run(), Outcome::Exit(8));
}

/// `mov dword [at], value`.
fn store(at: u32, value: u32) -> Vec<u8> {
    [&[0xc7, 0x05][..], &at.to_le_bytes(), &value.to_le_bytes()].concat()
}

fn code_that_a_device_overwrites_is_decoded_anew(backend: Backend) {
    const BASE: u32 = 0x10_0040;
    const REQUEST: u32 = 0x20_0000;
    // The user's item comes behind the four whose names begin with "etc".
    const ITEM: u32 = 0x24;
    let new = [out(0xf4, 5), SPIN.to_vec()].concat();
    let program = |function: u32| {
        let mut code = Vec::new();
        let call = |code: &mut Vec<u8>| {
            let next = BASE + code.len() as u32 + 5;
            code.push(0xe8);
            code.extend(function.wrapping_sub(next).to_le_bytes());
        };
        call(&mut code);
        let request = [ITEM << 16 | 8 | 2, new.len() as u32, 0, function];
        for (at, word) in (REQUEST..).step_by(4).zip(request) {
            code.extend(store(at, word.swap_bytes()));
        }
        // mov eax, request; mov dx, 0x518; out dx, eax
        code.push(0xb8);
        code.extend(REQUEST.swap_bytes().to_le_bytes());
        code.extend([0x66, 0xba, 0x18, 0x05, 0xef]);
        call(&mut code);
        code.extend(out(0xf4, 9));
        code.extend(SPIN);
        code
    };
    let mut code = program(0);
    let function = BASE + code.len() as u32;
    code = program(function);
    code.push(0xc3); // ret
    let mut bench = bench(backend, &code);
    bench.spec.debug_exit = Some(0xf4);
    let path = bench._dir.path().join("code");
    std::fs::write(&path, &new).unwrap();
    bench.spec.fw_cfg = Some(vec![ConfigFile {
        name: "opt/code".into(),
        content: Content::File(path),
    }]);
    assert_eq!(bench.run(), Outcome::Exit(5));
}

fn the_firmware_configuration_counts_processors(backend: Backend) {
    // mov ax, 5; mov dx, 0x510; out dx, ax; inc dx; in al, dx; out 0xf4, al
    let mut code = vec![
        0x66, 0xb8, 5, 0, 0x66, 0xba, 0x10, 0x05, 0x66, 0xef, 0x42, 0xec,
    ];
    code.extend([0xe6, 0xf4]);
    code.extend(SPIN);
    let mut bench = bench(backend, &code);
    bench.spec = bench.spec.clone().cpus(3);
    bench.spec.debug_exit = Some(0xf4);
    bench.spec.fw_cfg = Some(vec![]);
    assert_eq!(bench.run(), Outcome::Exit(3));
}

fn items_of_the_users_must_exist_and_differ(backend: Backend) {
    let mut bench = bench(backend, &SPIN);
    let mut refusal = |name: &str, content| {
        let name = name.into();
        bench.spec.fw_cfg = Some(vec![ConfigFile { name, content }]);
        let plan = Plan::new(bench.spec.clone()).unwrap();
        Machine::build(plan, Console::discarded()).err().unwrap()
    };
    let missing = refusal("opt/a", Content::File("/nonexistent".into()));
    assert!(
        matches!(missing, BuildError::ConfigFile { .. }),
        "{missing}"
    );
    let taken = refusal("etc/e820", Content::Text("x".into()));
    assert!(matches!(taken, BuildError::ConfigItem(_)), "{taken}");
}

fn a_multiboot_kernel_gets_no_command_line_of_ours(backend: Backend) {
    // mov esi, [ebx+16]; again: lodsb; test al, al; jnz again; mov al, [esi-2]; out 0xf4, al
    let code = [
        &[
            0x8b, 0x73, 0x10, 0xac, 0x84, 0xc0, 0x75, 0xfb, 0x8a, 0x46, 0xfe, 0xe6, 0xf4,
        ][..],
        &SPIN,
    ];
    let mut bench = bench(backend, &code.concat());
    bench.spec.debug_exit = Some(0xf4);
    assert_eq!(
        bench.run(),
        Outcome::Exit(b' '.into()),
        "its path and a space"
    );
    bench.spec = bench.spec.clone().command_line("x y");
    assert_eq!(bench.run(), Outcome::Exit(b'y'.into()));
}

/// Output that nobody asked about afterwards: the guest sends and then never leaves the processor.
fn output_is_heard_although_the_guest_says_nothing_more(backend: Backend) {
    // mov dx, 0x3f8; mov ecx, 3000; again: mov al, cl; out dx, al; loop again; jmp $
    let code = [
        &[0x66, 0xba, 0xf8, 0x03, 0xb9, 0xb8, 0x0b, 0x00, 0x00][..],
        &[0x88, 0xc8, 0xee, 0xe2, 0xfb],
        &SPIN,
    ];
    let bench = bench(backend, &code.concat());
    let machine = bench.build();
    let (handle, screen) = (machine.handle(), bench.screen.clone());
    let wanted: Vec<u8> = (1..=3000u32).rev().map(|n| n as u8).collect();
    let length = wanted.len();
    let watcher = std::thread::spawn(move || {
        let start = Instant::now();
        while screen.0.lock().len() < length && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        handle.stop();
    });
    let ended = machine.run().unwrap();
    watcher.join().unwrap();
    assert_eq!(ended.outcome, Outcome::Stopped);
    assert!(*bench.screen.0.lock() == wanted, "in order, and all of it");
    if backend == Backend::Kvm {
        let exits = ended
            .statistics
            .iter()
            .find(|(_, n, _)| *n == "port accesses");
        assert!(exits.unwrap().2 < 2000, "{exits:?}: it left for every byte");
    }
}

/// Between two bytes the guest turns the transmitter's interrupt on; later it is a polled one again.
fn output_keeps_its_order_when_the_guest_begins_to_take_interrupts(backend: Backend) {
    // mov dx, 0x3f8; mov ecx, 100; mov al, '.'; again: out dx, al; loop again
    let many = [
        0x66, 0xba, 0xf8, 0x03, 0xb9, 100, 0, 0, 0, 0xb0, b'.', 0xee, 0xe2, 0xfd,
    ];
    let code = [
        many.to_vec(),
        out(0x3f8, b'a'),
        out(0x3f8, b'b'),
        out(0x3f9, 2),
        out(0x3f8, b'c'),
        out(0x3f9, 0),
        out(0x3f8, b'd'),
        // The divisor is no output: DLAB, 0x31 to both registers, and back.
        out(0x3fb, 0x80),
        out(0x3f8, b'1'),
        out(0x3f9, b'1'),
        out(0x3fb, 3),
        out(0x3f8, b'e'),
        out(0x600, 1 << 5 | 5 << 2),
        SPIN.to_vec(),
    ];
    let bench = bench(backend, &code.concat());
    assert_eq!(bench.run(), Outcome::PowerOff);
    let wanted = [&[b'.'; 100][..], b"abcde"].concat();
    assert_eq!(*bench.screen.0.lock(), wanted);
}

on_both_backends! {
    output_is_heard_although_the_guest_says_nothing_more,
    output_keeps_its_order_when_the_guest_begins_to_take_interrupts,
    a_guest_prints_and_powers_off,
    every_way_to_reset_is_a_reset,
    a_triple_fault_is_a_crash_with_its_registers,
    stopping_is_bounded_for_busy_halted_and_waiting_processors,
    pausing_is_bounded_and_leaves_nobody_behind,
    a_stop_before_the_run_ends_it_at_once,
    a_terminal_that_stands_still_does_not_keep_a_machine_from_stopping,
    input_reaches_a_guest_that_polls,
    a_machine_that_never_ran_is_freed,
    a_machine_that_ran_is_freed,
    counters_tell_what_the_guest_did,
    a_write_of_0x2000_to_port_0x604_powers_off,
    the_exit_port_is_where_it_was_wanted_and_nowhere_else,
    the_test_device_echoes_and_keeps_memory,
    code_that_a_device_overwrites_is_decoded_anew,
    the_firmware_configuration_counts_processors,
    items_of_the_users_must_exist_and_differ,
    a_multiboot_kernel_gets_no_command_line_of_ours,
}
