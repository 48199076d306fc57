//! A polling guest that runs while the test looks on, through its mailbox.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use umbra_slots::{AddressSpace, Gpa, HugePages, RamOptions, RamRegion};
use umbra_vmm::{Console, Ended, Handle, Machine, Plan, Spec};

use super::poll::poll_guest;
use super::screen::Screen;

/// Where the mailbox is: behind the image.
pub const MAILBOX: u64 = 0x40_0000;
/// Nothing that the guest has to do takes longer, also where it is interpreted.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A specification for the polling guest with a command; the exit port is there.
pub fn spec(command: &str) -> Spec {
    Spec {
        debug_exit: Some(0xf4),
        ..Spec::new(poll_guest())
            .command_line(command)
            .memory(32 << 20)
    }
}

/// Memory for a slot of its own.
pub fn region(len: u64) -> Arc<RamRegion> {
    RamRegion::new(RamOptions {
        len,
        huge: HugePages::No,
        prefault: false,
    })
    .unwrap()
}

/// The guest, running on a thread of its own; stopped when dropped.
pub struct Watched {
    pub space: Arc<AddressSpace>,
    pub handle: Handle,
    pub screen: Screen,
    thread: Option<JoinHandle<Ended>>,
}

impl Watched {
    /// Starts a machine after `prepare` has seen it.
    pub fn start<T>(spec: Spec, prepare: impl FnOnce(&Machine) -> T) -> (Self, T) {
        let screen = Screen::default();
        let plan = Plan::new(spec).unwrap();
        let machine = Machine::build(plan, Console::to(screen.clone())).unwrap();
        let prepared = prepare(&machine);
        let watched = Self {
            space: machine.space().clone(),
            handle: machine.handle(),
            screen,
            thread: Some(std::thread::spawn(|| machine.run().unwrap())),
        };
        (watched, prepared)
    }

    /// Reads a word of guest memory.
    pub fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.space.load().read(Gpa(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// Writes a word of guest memory.
    pub fn set_word(&self, at: u64, value: u64) {
        let bytes = value.to_le_bytes();
        self.space.load().write(Gpa(at), &bytes).unwrap();
    }

    /// Waits until a word fulfils a condition, and returns it.
    pub fn wait(&self, at: u64, condition: impl Fn(u64) -> bool) -> u64 {
        let start = Instant::now();
        loop {
            let value = self.word(at);
            if condition(value) {
                return value;
            }
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(
                start.elapsed() < PATIENCE && !ended,
                "{at:#x} stays {value:#x}, ended: {ended}; the guest said {:?}",
                self.screen.text()
            );
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Waits for the guest's end.
    pub fn finish(mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.stop();
            // A machine that failed has said so on its thread.
            let _ = thread.join();
        }
    }
}
