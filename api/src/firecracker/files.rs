//! Whether files can be opened as they will be, when that is said and not only at the start.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// How a file is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It is read.
    Read,
    /// It is written, too.
    Write,
}

/// Opens a file that has a length: a plain one, or a block device. Does not wait, as a pipe would have it.
///
/// # Errors
/// If the host does not open it, or it is something else.
pub fn open(path: &Path, how: Use) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(how == Use::Write)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    let kind = file.metadata()?.file_type();
    match kind.is_file() || kind.is_block_device() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is neither a file nor a block device",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_length_is_refused_at_once() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        assert!(open(&path("file"), Use::Write).is_ok());
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("pipe"),
            rustix::fs::FileType::Fifo,
            mode,
            0,
        )
        .unwrap();
        for how in [Use::Read, Use::Write] {
            assert!(open(&path("pipe"), how).is_err());
        }
        for other in [place.path(), Path::new("/dev/zero"), &path("none")] {
            assert!(open(other, Use::Read).is_err(), "{}", other.display());
        }
    }
}
