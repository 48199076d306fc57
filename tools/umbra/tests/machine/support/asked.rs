//! A stock guest whose shell is asked things while it runs, one after the other.

use std::time::Duration;

use super::guest::{Guest, LINUX_6_1, command_line};
use super::{Ended, Input, Running, Umbra};

/// The machine.
pub struct Asked {
    /// The command that runs it.
    pub running: Running,
    asked: u32,
    limit: Duration,
}

impl Asked {
    /// Starts a 6.1 guest with more arguments. No answer of it takes longer than `limit`.
    pub fn start(guest: &Guest, backend: &str, more: &[&str], limit: Duration) -> Self {
        let mut arguments = vec![
            "run",
            "--kernel",
            guest.kernel(),
            "--initrd",
            guest.initrd(),
            "--cmdline",
            command_line(LINUX_6_1),
            "--backend",
            backend,
        ];
        arguments.extend(more);
        let mut running = Umbra::new(&arguments, &Input::Pipe("")).start();
        running.say("stty -echo; PS1=; PS2=\n");
        Self {
            running,
            asked: 0,
            limit,
        }
    }

    /// Returns what commands print, in one line.
    pub fn ask(&mut self, commands: &str) -> String {
        let word = format!("answer {}:", self.asked);
        self.asked += 1;
        self.running.say(&format!("echo {word} $({commands})\n"));
        self.running.line(&word, self.limit)
    }

    /// Asks, and knows the answer.
    pub fn check(&mut self, commands: &str, expected: &str) {
        let answer = self.ask(commands);
        assert_eq!(answer, expected, "{commands}: {}", self.running.so_far());
    }

    /// Leaves a file with commands in the guest.
    pub fn script(&mut self, name: &str, commands: &str) {
        let text = format!("cat > /tmp/{name} <<'EOF'\n{commands}EOF\n");
        self.running.say(&text);
    }

    /// Switches it off.
    pub fn finish(mut self) -> Ended {
        self.running.say("poweroff -f\n");
        let ended = self.running.finish(self.limit);
        assert_eq!(ended.status, Some(0), "{ended}");
        ended
    }
}
