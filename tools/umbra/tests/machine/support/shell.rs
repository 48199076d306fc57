//! A stock kernel in this process, and the shell of its initramfs, which is asked one thing after the other.

use std::cell::Cell;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use umbra_vmm::{Console, Ended, Handle, Machine, Outcome, Plan, Spec};

use super::backend::backend;
use super::guest::{Guest, command_line};
use super::screen::Screen;

/// Nothing that is asked takes longer, also where it is interpreted.
const PATIENCE: Duration = Duration::from_secs(120);

/// The machine; stopped when dropped.
pub struct Shell {
    pub handle: Handle,
    pub screen: Screen,
    asked: Cell<u32>,
    thread: Option<JoinHandle<Ended>>,
}

impl Shell {
    /// Boots a kernel with more words on its command line. `None` is a skip that was allowed.
    pub fn boot(
        name: &str,
        package: &str,
        more: &str,
        change: impl FnOnce(Spec) -> Spec,
    ) -> Option<Self> {
        let guest = Guest::fetch(package)?;
        let spec = Spec::new(&guest.kernel)
            .initrd(&guest.initrd)
            .command_line(format!("{} {more}", command_line(package)))
            .backend(backend(name));
        let screen = Screen::default();
        let plan = Plan::new(change(spec)).unwrap();
        let machine = Machine::build(plan, Console::to(screen.clone())).unwrap();
        let shell = Self {
            handle: machine.handle(),
            screen,
            asked: Cell::new(0),
            thread: Some(std::thread::spawn(|| machine.run().unwrap())),
        };
        shell.line("This is a shell inside the machine");
        Some(shell)
    }

    /// Waits for a line that begins so; returns the rest of it.
    fn line(&self, begin: &str) -> String {
        let start = Instant::now();
        loop {
            let text = self.screen.text();
            // The last line may not be whole.
            let lines = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
            if let Some(rest) = lines.lines().find_map(|line| line.strip_prefix(begin)) {
                return rest.trim().to_owned();
            }
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            assert!(
                start.elapsed() < PATIENCE && !ended,
                "no line {begin:?}, ended: {ended}; the guest said {text}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Has the shell run commands; returns what they print, in one line.
    pub fn ask(&self, commands: &str) -> String {
        let number = self.asked.get();
        self.asked.set(number + 1);
        // Without quotes, so that lines become words.
        let line = format!("echo answer {number}: $({commands})\n");
        self.handle.console().send(line.as_bytes()).unwrap();
        self.line(&format!("answer {number}:"))
    }

    /// Switches the machine off from inside.
    pub fn power_off(self) {
        self.handle.console().send(b"poweroff -f\n").unwrap();
        self.expect(&Outcome::PowerOff);
    }

    /// Waits until the machine has ended, which it has to in this way.
    pub fn expect(mut self, outcome: &Outcome) {
        let ended = self.thread.take().unwrap().join().unwrap();
        let text = self.screen.text();
        assert_eq!(ended.outcome, *outcome, "{text}");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.handle.stop();
            // A machine that failed has said so on its thread.
            let _ = thread.join();
        }
    }
}
