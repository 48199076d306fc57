//! What translated code stands for, for the host's profilers.
//!
//! `perf` looks names of code that no file has up in `/tmp/perf-PID.map` (the kernel's
//! `tools/perf/Documentation/jit-interface.txt`): a line for each piece of code, with its address and length in
//! hexadecimal, and a name. A unit's name is the address of the guest's code: `perf report` tells which of the
//! guest's code is hot, and the guest's own symbols tell what that is.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::unit::Key;

/// There is one such file of a process, whatever machines are in it.
static MAP: OnceLock<Mutex<File>> = OnceLock::new();

/// Has all code that is translated from now on listed in a new file at `path`, for `perf`, which expects
/// `/tmp/perf-PID.map`. A unit is `guest-user-ADDRESS` or `guest-kernel-ADDRESS`, after the linear address of
/// its first instruction. Code is listed when it is made; where the code cache was full and began anew, the later of
/// two lines counts. What cannot be written is left out.
///
/// # Errors
/// If there is such a file (one of a process that ended; remove it), or it cannot be made, or this process
/// has one already.
pub fn perf_map(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let taken = |_| io::Error::new(io::ErrorKind::AlreadyExists, "code is listed already");
    MAP.set(Mutex::new(file)).map_err(taken)
}

/// A unit was made, of `len` bytes at `entry`.
pub fn made(key: Key, entry: u64, len: usize) {
    if let Some(map) = MAP.get() {
        // One write a line: whoever reads it meanwhile finds whole ones.
        let _ = map.lock().write_all(line(key, entry, len).as_bytes());
    }
}

fn line(key: Key, entry: u64, len: usize) -> String {
    let level = if key.user { "user" } else { "kernel" };
    format!("{entry:x} {len:x} guest-{level}-{:#x}\n", key.rip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_perf_reads() {
        let key = Key {
            gpa: 0x5010,
            rip: 0xffff_ffff_8100_0010,
            user: false,
        };
        assert_eq!(
            line(key, 0x7f00_1000, 0x2a),
            "7f001000 2a guest-kernel-0xffffffff81000010\n"
        );
    }
}
