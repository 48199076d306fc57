//! Completions for shells and manual pages, made from the definitions by which the command line is read.

use std::path::Path;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::{self, Cli};
use crate::out;
use crate::status::Status;

/// What the program is called.
const NAME: &str = "umbra";

/// `umbra completions`.
pub fn completions(arguments: &args::Completions) -> Result<Status> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), NAME, &mut text);
    out::print(&String::from_utf8(text)?)?;
    Ok(Status::Success)
}

/// `umbra man`.
pub fn man(arguments: &args::Man) -> Result<Status> {
    let pages = pages()?;
    match &arguments.folder {
        Some(folder) => write(folder, &pages)?,
        None => out::print(&pages[0].text)?,
    }
    Ok(Status::Success)
}

/// A manual page.
struct Page {
    /// Its name, and that of its file without `.1`.
    name: String,
    text: String,
}

fn write(folder: &Path, pages: &[Page]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for page in pages {
        let path = folder.join(format!("{}.1", page.name));
        std::fs::write(&path, &page.text)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Makes the pages of the program and of all its commands; the program's is the first.
fn pages() -> Result<Vec<Page>> {
    let mut command = Cli::command().disable_help_subcommand(true);
    // Gives every command its whole name.
    command.build();
    let mut pages = Vec::new();
    add(&command, &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, pages: &mut Vec<Page>) -> Result<()> {
    let name = command.get_display_name().unwrap_or(NAME).to_owned();
    let mut text = Vec::new();
    let source = format!("{NAME} {}", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).source(source).render(&mut text)?;
    pages.push(Page {
        name,
        text: String::from_utf8(text)?,
    });
    let mut shown = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    shown.try_for_each(|below| add(below, pages))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command as Process, Stdio};

    use super::*;

    /// Tells why nothing is tested, if a program is not there.
    fn is_there(program: &str) -> bool {
        let there = Process::new(program).arg("--version").output().is_ok();
        if !there {
            println!("SKIPPED: {program} is not installed");
        }
        there
    }

    /// The words that bash offers behind a command line.
    fn offered(script: &str, words: &[&str]) -> Vec<String> {
        let line = words.join(" ");
        let (last, before) = (words[words.len() - 1], words[words.len() - 2]);
        let script = format!(
            "{script}\nCOMP_WORDS=({line}); COMP_CWORD={}; COMP_LINE='{line}'; _umbra umbra '{last}' '{before}'; \
             echo \"${{COMPREPLY[@]}}\"",
            words.len() - 1
        );
        let output = Process::new("bash")
            .args(["--norc", "-c", &script])
            .output()
            .unwrap();
        assert!(output.stderr.is_empty(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_commands_and_options() {
        if !is_there("bash") {
            return;
        }
        let mut script = Vec::new();
        clap_complete::generate(
            clap_complete::Shell::Bash,
            &mut Cli::command(),
            NAME,
            &mut script,
        );
        let script = String::from_utf8(script).unwrap();
        assert_eq!(offered(&script, &["umbra", "ct"]), ["ctl"]);
        assert_eq!(offered(&script, &["umbra", "ctl", "pau"]), ["pause"]);
        assert_eq!(
            offered(&script, &["umbra", "run", "--print"]),
            ["--print-config"]
        );
        assert_eq!(
            offered(&script, &["umbra", "run", "--on-reset", ""]),
            ["end", "restart"]
        );
    }

    #[test]
    fn every_shell_has_its_completions() {
        use clap::ValueEnum;
        for shell in clap_complete::Shell::value_variants() {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), NAME, &mut text);
            assert!(text.len() > 1000, "{shell}");
        }
    }

    #[test]
    fn every_command_has_a_page() {
        let names: Vec<_> = pages()
            .unwrap()
            .into_iter()
            .map(|page| {
                assert!(page.text.len() > 300, "{}", page.name);
                page.name
            })
            .collect();
        assert_eq!(names[0], NAME);
        let command = Cli::command();
        for below in command.get_subcommands() {
            let name = format!("{NAME}-{}", below.get_name());
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        for name in [
            "umbra-ctl-add",
            "umbra-ctl-inspect-page-tables",
            "umbra-backend-block",
        ] {
            assert!(names.contains(&name.to_owned()), "{name}: {names:?}");
        }
        let run = pages()
            .unwrap()
            .into_iter()
            .find(|page| page.name == "umbra-run")
            .unwrap();
        assert!(run.text.contains("print\\-config") && !run.text.contains("tag\\-bits"));
    }

    #[test]
    fn the_documentation_names_every_command_and_verb() {
        let text = include_str!("../../../docs/command.md");
        let command = Cli::command();
        for below in command.get_subcommands() {
            let row = format!("| `umbra {}` |", below.get_name());
            assert!(text.contains(&row), "{row}");
        }
        let ctl = command.find_subcommand("ctl").unwrap();
        for verb in ctl.get_subcommands().map(Command::get_name) {
            let there = [format!("`{verb}`"), format!("`{verb} ")];
            assert!(there.iter().any(|said| text.contains(said)), "{verb}");
        }
    }

    #[test]
    fn groff_finds_nothing_wrong_with_the_pages() {
        if !is_there("groff") {
            return;
        }
        for page in pages().unwrap() {
            let mut groff = Process::new("groff")
                .args(["-man", "-Tutf8", "-ww", "-z"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            groff
                .stdin
                .take()
                .unwrap()
                .write_all(page.text.as_bytes())
                .unwrap();
            let output = groff.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && said.is_empty(),
                "{}: {said}",
                page.name
            );
        }
    }
}
