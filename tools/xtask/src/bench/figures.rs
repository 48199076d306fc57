//! What guests say that they have measured, and what is made of it.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// How long a machine may take, in seconds.
const PATIENCE: &str = "240";

/// One figure: the word that a guest says, what it is, and in which unit.
pub type Figure = (&'static str, &'static str, &'static str);

/// What was measured of one side, by word.
pub struct Figures {
    all: &'static [Figure],
    values: BTreeMap<&'static str, Vec<f64>>,
}

impl Figures {
    /// Begins without any.
    pub fn new(all: &'static [Figure]) -> Self {
        Self {
            all,
            values: BTreeMap::new(),
        }
    }

    /// Takes those that a guest has printed, and prints them.
    pub fn add(&mut self, who: &str, text: &str) -> Result<()> {
        for (word, name, unit) in self.all {
            let Some(value) = said(text, word).and_then(|value| value.parse().ok()) else {
                bail!("{who} says nothing of {name}: {text}");
            };
            println!("  {who}: {name} {value:.1} {unit}");
            self.values.entry(word).or_default().push(value);
        }
        Ok(())
    }

    /// Returns the median of one.
    pub fn median(&self, word: &str) -> f64 {
        let mut all = self.values.get(word).cloned().unwrap_or_default();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }
}

/// Returns what a guest has said after a word.
pub fn said<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let mut lines = text.lines();
    lines.find_map(|line| Some(line.strip_prefix(word)?.strip_prefix(": ")?.trim()))
}

/// Ratios by name, what they shall be, and whether they are: the last line of a benchmark.
pub struct Ratios {
    bench: &'static str,
    values: Map<String, Value>,
    targets: Map<String, Value>,
    met: bool,
}

impl Ratios {
    /// Begins without any, for a benchmark of this name.
    pub fn new(bench: &'static str) -> Self {
        Self {
            bench,
            values: Map::new(),
            targets: Map::new(),
            met: true,
        }
    }

    /// Takes one that nothing was promised of.
    pub fn told(&mut self, name: impl Into<String>, ratio: f64) {
        self.values.insert(name.into(), rounded(ratio));
    }

    /// Takes one that shall not be more than `target`.
    pub fn at_most(&mut self, name: impl Into<String>, ratio: f64, target: f64) {
        self.judge(name.into(), ratio, ratio <= target, ("<=", target));
    }

    /// Takes one that shall not be less than `target`.
    pub fn at_least(&mut self, name: impl Into<String>, ratio: f64, target: f64) {
        self.judge(name.into(), ratio, ratio >= target, (">=", target));
    }

    fn judge(&mut self, name: String, ratio: f64, met: bool, (sign, target): (&str, f64)) {
        let target = format!("{sign}{}", rounded(target));
        self.targets.insert(name.clone(), target.into());
        self.told(name, ratio);
        self.met &= met;
    }

    /// Prints the line.
    pub fn print(self) {
        println!(
            "{}",
            json!({"bench": self.bench, "ratios": self.values, "targets": self.targets, "met": self.met})
        );
    }
}

fn rounded(ratio: f64) -> Value {
    json!((ratio * 100.0).round() / 100.0)
}

/// Runs a script, with a network and processes of its own: what it has started ends with it. Returns what it
/// printed.
pub fn run_apart(script: &str) -> Result<String> {
    let output = Command::new("timeout")
        .args([PATIENCE, "unshare", "--map-root-user", "--net", "--pid"])
        .args(["--fork", "--kill-child", "sh", "-eu", "-c", script])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run unshare")?;
    let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    if !output.status.success() {
        bail!("{script}: {}: {text}", output.status);
    }
    Ok(text)
}
