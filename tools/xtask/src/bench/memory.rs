//! What a process holds in memory.
//!
//! Its resident set counts a page once for each mapping, and Umbra's code is mapped twice: to be written, and to be
//! executed. So this is the proportional set (PSS), where a page that is mapped n times counts 1/n at each, whoever
//! maps it. The kernel keeps no peak of it; it is asked for again and again (`proc_pid_smaps_rollup`, proc(5)).

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Between two questions. Each holds the lock of the mappings for a moment.
const PAUSE: Duration = Duration::from_millis(10);

/// Runs a command to its end; returns the most KiB that it has held.
pub fn peak_kib(command: &mut Command, patience: Duration) -> Result<u64> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let begin = Instant::now();
    let mut peak = 0;
    loop {
        if let Some(status) = child.try_wait()? {
            if !status.success() || peak == 0 {
                bail!("{command:?} ended with {status}, and held {peak} KiB");
            }
            return Ok(peak);
        }
        if begin.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} did not end within {} s", patience.as_secs());
        }
        peak = peak.max(held_kib(&child).unwrap_or(0));
        sleep(PAUSE);
    }
}

/// Nothing, when the process has just ended.
fn held_kib(child: &Child) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", child.id())).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}
