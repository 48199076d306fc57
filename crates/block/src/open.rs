//! Opening a disk: which file, in which format, with which rights; and the lock on it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::qcow2::Qcow2;
use crate::raw::Raw;
use crate::sys::{self, Sharing};
use crate::{Disk, OpenError};

/// What a file's bytes mean. Said by whoever adds the disk, and never guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// They are the disk's.
    #[default]
    Raw,
    /// QEMU's format: allocated when it is written, perhaps over a backing file.
    Qcow2,
}

/// What is done about the backing file that an image's header names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackingFiles {
    /// Such an image is refused.
    #[default]
    Refuse,
    /// They are opened, to be read. Whoever made the image chooses which files of the host the guest
    /// reads.
    Follow,
}

/// How to open a disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskOptions {
    /// The format of the file.
    pub format: Format,
    /// Refuses whatever would change the disk, and lets others read it, too.
    pub read_only: bool,
    /// Passes by the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// What is done about backing files.
    pub backing: BackingFiles,
}

/// Opens a disk, and locks its file as long as it is open: a writer alone, or any number of readers.
///
/// # Errors
/// If the host refuses, or somebody else has the file.
pub fn open(path: &Path, options: &DiskOptions) -> Result<Arc<dyn Disk>, OpenError> {
    let file = open_file(path, options)?;
    match options.format {
        Format::Raw => Ok(Arc::new(Raw::new(
            file,
            path,
            options.read_only,
            options.direct,
        )?)),
        Format::Qcow2 => Ok(Arc::new(Qcow2::new(file, path, options)?)),
    }
}

/// Opens the file of a raw disk as [`open`] does, for whoever maps it.
///
/// # Errors
/// If the host refuses, it is neither a regular file nor a block device, or somebody else has it.
pub fn open_file(path: &Path, options: &DiskOptions) -> Result<File, OpenError> {
    let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    if options.direct {
        flags |= libc::O_DIRECT;
    }
    let failed = |source| OpenError::Open {
        path: path.to_owned(),
        write: !options.read_only,
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(!options.read_only)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) if options.direct => OpenError::Direct {
                path: path.to_owned(),
            },
            _ => failed(error),
        })?;
    let kind = file.metadata().map_err(failed)?.file_type();
    let what = match () {
        () if kind.is_file() || kind.is_block_device() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_char_device() => Some("a character device"),
        () => Some("a pipe or a socket"),
    };
    if let Some(what) = what {
        return Err(OpenError::Kind {
            path: path.to_owned(),
            what,
        });
    }
    wait_for_bytes(&file).map_err(failed)?;
    lock(&file, path, options.read_only)?;
    Ok(file)
}

/// Lets reads and writes wait, now that it is no pipe which would hold up the opening. Otherwise some
/// file systems refuse what io_uring asks of them, and every request takes the longer way.
fn wait_for_bytes(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(
        file,
        flags - rustix::fs::OFlags::NONBLOCK,
    )?)
}

fn lock(file: &File, path: &Path, read_only: bool) -> Result<(), OpenError> {
    let sharing = match read_only {
        true => Sharing::Readers,
        false => Sharing::Nobody,
    };
    let path = path.to_owned();
    sys::lock(file.as_fd(), sharing).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { path },
        _ => OpenError::Lock { path, source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn read_only() -> DiskOptions {
        DiskOptions {
            read_only: true,
            ..DiskOptions::default()
        }
    }

    #[test]
    fn a_writer_is_alone_and_readers_are_many() {
        let file = file(&[0; 512]);
        let writer = open(file.path(), &DiskOptions::default()).unwrap();
        for options in [DiskOptions::default(), read_only()] {
            let error = open(file.path(), &options).err().unwrap();
            assert!(matches!(error, OpenError::Locked { .. }), "{error}");
            assert!(error.to_string().contains("another virtual machine"));
        }
        drop(writer);
        let readers = [(); 2].map(|()| open(file.path(), &read_only()).unwrap());
        let error = open(file.path(), &DiskOptions::default()).err().unwrap();
        assert!(matches!(error, OpenError::Locked { .. }), "{error}");
        drop(readers);
        open(file.path(), &DiskOptions::default()).unwrap();
    }

    #[test]
    fn what_is_no_disk_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let pipe = folder.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
        let table = [
            (missing.as_path(), "missing"),
            (folder.path(), "a directory"),
            (Path::new("/dev/null"), "a character device"),
            (pipe.as_path(), "a pipe"),
        ];
        for (path, part) in table {
            let error = open(path, &read_only()).err().unwrap().to_string();
            assert!(error.contains(part), "{error}");
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }

    #[test]
    fn a_file_system_without_direct_i_o_is_named_as_the_reason() {
        let options = DiskOptions {
            direct: true,
            ..read_only()
        };
        let error = open(Path::new("/proc/self/status"), &options)
            .err()
            .unwrap();
        assert!(matches!(error, OpenError::Direct { .. }), "{error}");
    }

    #[test]
    fn a_disk_keeps_direct_i_o_and_waits_for_its_bytes() {
        use rustix::fs::OFlags;
        let file = crate::raw::tests::scratch();
        for direct in [false, true] {
            let options = DiskOptions {
                direct,
                ..read_only()
            };
            let open = open_file(file.path(), &options).unwrap();
            let flags = rustix::fs::fcntl_getfl(&open).unwrap();
            assert_eq!(flags.contains(OFlags::DIRECT), direct);
            assert!(!flags.contains(OFlags::NONBLOCK));
        }
    }

    #[test]
    fn the_header_of_another_format_in_a_raw_disk_is_data() {
        let file = file(&[b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 1016]].concat());
        let disk = open(file.path(), &read_only()).unwrap();
        assert_eq!(disk.len(), 1024);
        let bytes = crate::Buffers::host(512, 1);
        disk.read(0, &bytes).unwrap();
        let mut magic = [0; 4];
        bytes.copy_to(0, &mut magic);
        assert_eq!(&magic, b"QFI\xfb");
    }
}
