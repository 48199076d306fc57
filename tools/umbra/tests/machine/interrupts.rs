//! Interrupts reach a guest that waits for them: by lines, messages and events, on every backend and
//! with every set of controllers.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use umbra_irq::{Line, Msi};
use umbra_slots::{Gpa, GpaRange};
use umbra_vmm::{Backend, HandleError, IrqchipMode, KvmSpec, Machine, Outcome, Spec};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use crate::support::watched::{MAILBOX, PATIENCE, Watched, spec};

const READY: u64 = MAILBOX;
const TOTAL: u64 = MAILBOX + 8;
const STOP: u64 = MAILBOX + 16;
const DEVICE: u64 = MAILBOX + 24;
/// Where the device lies that is asked in each interrupt.
const ASKED: u64 = 0xd000_0000;
const VECTOR: u64 = 0x30;
const NMI: u64 = 2;
const LEVEL: u64 = 0x100;
const PAIR: u64 = 0x200;
const NOWHERE: u64 = 0x400;

/// Who executes the guest, with which controllers.
#[derive(Clone, Copy, Debug)]
struct On(Backend, IrqchipMode);

fn count(vector: u64) -> u64 {
    MAILBOX + 0x1000 + 8 * vector
}

fn message(vector: u64) -> Msi {
    Msi {
        address: 0xfee0_0000,
        data: vector as u32,
    }
}

fn start<T>(on: On, wiring: u64, prepare: impl FnOnce(&Machine) -> T) -> (Watched, T) {
    let spec = Spec {
        backend: on.0,
        kvm: KvmSpec {
            irqchip: on.1,
            ..KvmSpec::default()
        },
        ..spec(&format!("interrupts {MAILBOX:#x} {VECTOR:#x} {wiring:#x}"))
    };
    let (guest, prepared) = Watched::start(spec, prepare);
    guest.wait(READY, |ready| ready == 1);
    (guest, prepared)
}

/// Ends the guest, which `wake` wakes once more.
fn stop(guest: Watched, mut wake: impl FnMut()) {
    guest.set_word(STOP, 1);
    wake();
    let screen = guest.screen.clone();
    let ended = guest.finish();
    assert_eq!(ended.outcome, Outcome::Exit(0), "{}", screen.text());
}

fn edges_of_a_line_reach_the_guest_through_the_ioapic(on: On) {
    let (guest, line) = start(on, 5, |machine| machine.backend().chip().line(5).unwrap());
    for n in 1..=100 {
        line.pulse();
        guest.wait(count(VECTOR), |count| count == n);
    }
    stop(guest, || line.pulse());
}

fn edges_of_a_line_reach_the_guest_through_the_8259(on: On) {
    for number in [3, 11] {
        let (guest, line) = start(on, PAIR, |machine| {
            machine.backend().chip().line(number).unwrap()
        });
        for n in 1..=50 {
            line.pulse();
            guest.wait(count(VECTOR + u64::from(number)), |count| count == n);
        }
        stop(guest, || line.pulse());
    }
}

/// A device that holds its line until it has been asked as often as it wanted.
struct Insistent {
    line: Arc<dyn Line>,
    wants: AtomicU64,
    asked: AtomicU64,
}

impl DeviceMmio for Insistent {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
        let asked = 1 + self.asked.fetch_add(1, Ordering::SeqCst);
        if asked >= self.wants.load(Ordering::SeqCst) {
            self.line.set(false);
        }
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

fn a_level_line_interrupts_as_long_as_it_is_asserted(on: On) {
    let (guest, device) = start(on, 10 | LEVEL, |machine| {
        let device = Arc::new(Insistent {
            line: machine.backend().chip().line(10).unwrap(),
            wants: AtomicU64::new(0),
            asked: AtomicU64::new(0),
        });
        let range = GpaRange::new(Gpa(ASKED), 0x1000).unwrap();
        machine.bus().insert(range, device.clone()).unwrap();
        device
    });
    guest.set_word(DEVICE, ASKED);
    for n in 1..=50 {
        // Three interrupts each time.
        device.wants.store(3 * n, Ordering::SeqCst);
        device.line.set(true);
        guest.wait(count(VECTOR), |count| count >= 3 * n);
        assert!(device.asked.load(Ordering::SeqCst) >= 3 * n);
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
    let quiet = guest.word(count(VECTOR));
    // A KVM that interprets the guest brings one too many now and then.
    assert!((150..160).contains(&quiet), "{quiet} interrupts");
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(guest.word(count(VECTOR)), quiet, "the line is low");
    // Once more, not for ever: a line that never falls lets the guest do nothing else.
    device.wants.store(0, Ordering::SeqCst);
    stop(guest, || device.line.set(true));
}

fn messages_reach_the_guest(on: On) {
    let (guest, msi) = start(on, NOWHERE, |machine| machine.backend().msi());
    for n in 1..=100 {
        msi.send(message(VECTOR + n % 3));
        guest.wait(TOTAL, |total| total == n);
    }
    for vector in VECTOR..VECTOR + 3 {
        assert!(guest.word(count(vector)) >= 33);
    }
    stop(guest, || msi.send(message(VECTOR)));
}

fn nmis_reach_the_guest(on: On) {
    let (guest, ()) = start(on, NOWHERE, |_| ());
    for n in 1..=50 {
        let cpu = (n % 2 == 0).then_some(0);
        guest.handle.inject_nmi(cpu).unwrap();
        guest.wait(count(NMI), |count| count == n);
    }
    let refused = guest.handle.inject_nmi(Some(1));
    assert_eq!(refused, Err(HandleError::NoSuchCpu { cpu: 1, last: 0 }));
    let handle = guest.handle.clone();
    stop(guest, || handle.inject_nmi(None).unwrap());
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn signal(event: &OwnedFd) {
    rustix::io::write(event, &1u64.to_ne_bytes()).unwrap();
}

/// Waits until an event was signalled, and takes it.
fn take(event: &OwnedFd) -> u64 {
    let mut wanted = [PollFd::new(event, PollFlags::IN)];
    let limit = Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut wanted, Some(&limit)).unwrap(), 1, "no event came");
    let mut bytes = [0; 8];
    rustix::io::read(event, &mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

fn no_interrupt_is_lost_while_the_route_of_its_event_changes(on: On) {
    let trigger = event();
    let (guest, vector) = start(on, NOWHERE, |machine| {
        let events = machine.backend().event_interrupts().unwrap();
        events.msi(trigger.as_fd()).unwrap()
    });
    // Masked at first: what is signalled waits.
    signal(&trigger);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(guest.word(TOTAL), 0);
    vector.set(message(VECTOR)).unwrap();
    guest.wait(count(VECTOR), |count| count == 1);

    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let router = scope.spawn(|| {
            let mut changes = 0u64;
            while !done.load(Ordering::Relaxed) {
                changes += 1;
                if changes.is_multiple_of(5) {
                    vector.mask();
                }
                vector.set(message(VECTOR + 1 + changes % 2)).unwrap();
            }
            changes
        });
        let mut total = 1;
        for _ in 0..2000 {
            signal(&trigger);
            // One at a time: if one were lost, this would wait for ever.
            total = guest.wait(TOTAL, |now| now > total);
        }
        done.store(true, Ordering::Relaxed);
        let changes = router.join().unwrap();
        assert!(changes > 100, "the route changed {changes} times");
    });
    assert!(guest.word(count(VECTOR + 1)) > 0 && guest.word(count(VECTOR + 2)) > 0);

    vector.mask();
    let before = guest.word(TOTAL);
    signal(&trigger);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(guest.word(TOTAL), before);
    stop(guest, || vector.set(message(VECTOR)).unwrap());
}

fn an_event_on_a_level_line_asks_for_another_when_the_interrupt_has_ended(on: On) {
    let (trigger, resample) = (event(), event());
    let (guest, line) = start(on, 10 | LEVEL, |machine| {
        let events = machine.backend().event_interrupts().unwrap();
        assert!(events.line(99, trigger.as_fd(), resample.as_fd()).is_err());
        events.line(10, trigger.as_fd(), resample.as_fd()).unwrap()
    });
    for n in 1..=200 {
        signal(&trigger);
        guest.wait(count(VECTOR), |count| count >= n);
        take(&resample);
    }
    let quiet = guest.word(count(VECTOR));
    assert!((200..220).contains(&quiet), "{quiet} interrupts");
    stop(guest, || signal(&trigger));
    drop(line);
}

macro_rules! on_each_set_of_controllers {
    ([$($everywhere:ident,)*] [$($events:ident,)*]) => {
        mod soft {
            use super::*;
            $(
                #[test]
                fn $everywhere() {
                    super::$everywhere(On(Backend::Soft, IrqchipMode::Auto));
                }
            )*
        }
        mod kvm {
            use super::*;
            use crate::support::backend::any_kvm;
            mod split {
                use super::*;
                on_each_set_of_controllers!(@kvm Split $($everywhere,)* $($events,)*);
            }
            mod full {
                use super::*;
                on_each_set_of_controllers!(@kvm Full $($everywhere,)* $($events,)*);
            }
        }
    };
    (@kvm $mode:ident $($claim:ident,)*) => {
        $(
            #[test]
            fn $claim() {
                if any_kvm() {
                    crate::interrupts::$claim(On(Backend::Kvm, IrqchipMode::$mode));
                }
            }
        )*
    };
}

on_each_set_of_controllers! {
    [
        edges_of_a_line_reach_the_guest_through_the_ioapic,
        edges_of_a_line_reach_the_guest_through_the_8259,
        a_level_line_interrupts_as_long_as_it_is_asserted,
        messages_reach_the_guest,
        nmis_reach_the_guest,
    ]
    [
        no_interrupt_is_lost_while_the_route_of_its_event_changes,
        an_event_on_a_level_line_asks_for_another_when_the_interrupt_has_ended,
    ]
}
