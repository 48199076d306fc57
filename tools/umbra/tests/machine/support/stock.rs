//! A stock kernel with devices, and the shell of its initramfs.

use std::time::Duration;

use super::guest::{Guest, command_line};
use super::{Ended, Input, Umbra};

const LIMIT: Duration = Duration::from_secs(240);

/// Boots a kernel with more arguments, has the shell of its initramfs run commands, and ends.
pub fn run(backend: &str, package: &str, more: &[&str], commands: &str) -> Option<Ended> {
    let guest = Guest::fetch(package)?;
    let mut arguments = vec![
        "--kernel",
        guest.kernel(),
        "--initrd",
        guest.initrd(),
        "--cmdline",
        command_line(package),
        "--backend",
        backend,
    ];
    arguments.extend(more);
    let input = format!("{commands}\npoweroff -f\n");
    let ended = Umbra::run(&arguments, Input::Pipe(&input), LIMIT);
    assert_eq!(ended.status, Some(0), "{ended}");
    assert_eq!(ended.stderr, "", "{ended}");
    Some(ended)
}

/// What a command printed behind a word that no terminal's echo of the command begins a line with.
pub fn answer<'a>(ended: &'a Ended, word: &str) -> &'a str {
    let line = ended
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix(word));
    line.unwrap_or_else(|| panic!("no line {word:?}: {ended}"))
        .trim()
}
