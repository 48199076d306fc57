//! Whole machines with guests of a few instructions, in 32-bit protected mode without paging.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;

use crate::*;

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

fn bench(code: &[u8]) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec::new(image(&dir, code)).memory(16 << 20);
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

#[test]
fn a_guest_prints_and_powers_off() {
    let code = [
        out(0x3f8, b'h'),
        out(0x3f8, b'i'),
        out(0x600, 1 << 5 | 5 << 2),
        SPIN.to_vec(),
    ];
    let bench = bench(&code.concat());
    assert_eq!(bench.run(), Outcome::PowerOff);
    assert_eq!(*bench.screen.0.lock(), b"hi");
}

#[test]
fn every_way_to_reset_is_a_reset() {
    for (port, value) in [(0x602, 1), (0x64, 0xfe)] {
        let bench = bench(&[out(port, value), SPIN.to_vec()].concat());
        assert_eq!(bench.run(), Outcome::Reset, "port {port:#x}");
    }
}

#[test]
fn a_triple_fault_is_a_crash_with_its_registers() {
    // ud2 without an interrupt descriptor table.
    let Outcome::Crash(crash) = bench(&[0x0f, 0x0b]).run() else {
        panic!("no crash");
    };
    assert_eq!(crash.state.rip, 0x10_0040);
    assert!(!crash.reason.is_empty());
}

#[test]
fn stopping_is_bounded_for_busy_halted_and_waiting_processors() {
    for code in [&SPIN[..], &HALT[..]] {
        let mut bench = bench(code);
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

#[test]
fn a_stop_before_the_run_ends_it_at_once() {
    let machine = bench(&SPIN).build();
    machine.handle().stop();
    assert_eq!(
        run_within(machine, Duration::from_secs(2)),
        Outcome::Stopped
    );
}

#[test]
fn a_terminal_that_stands_still_does_not_keep_a_machine_from_stopping() {
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
    let bench = bench(&code);
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

#[test]
fn input_reaches_a_guest_that_polls() {
    // wait: mov dx,0x3fd; in al,dx; test al,1; jz wait; mov dx,0x3f8; in al,dx; out dx,al;
    // cmp al,'.'; jne wait; power off
    let mut code = vec![
        0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee,
        0x3c, b'.', 0x75, 0xed,
    ];
    code.extend(out(0x600, 1 << 5 | 5 << 2));
    code.extend(SPIN);
    let bench = bench(&code);
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

#[test]
fn a_machine_that_never_ran_is_freed() {
    let bench = bench(&SPIN);
    let machine = bench.build();
    let space = Arc::downgrade(machine.space());
    let bus = Arc::downgrade(machine.bus());
    drop(machine);
    assert_eq!((space.strong_count(), bus.strong_count()), (0, 0));
}

#[test]
fn a_machine_that_ran_is_freed() {
    let bench = bench(&[out(0x602, 1), SPIN.to_vec()].concat());
    let machine = bench.build();
    let space = Arc::downgrade(machine.space());
    assert_eq!(machine.run().unwrap().outcome, Outcome::Reset);
    assert_eq!(space.strong_count(), 0);
}

#[test]
fn counters_tell_what_the_guest_did() {
    let code = [out(0x80, 1), out(0x80, 2), out(0x602, 1), SPIN.to_vec()].concat();
    let ended = bench(&code).build().run().unwrap();
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
