//! Why a disk cannot be opened.

use std::io;
use std::path::PathBuf;

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The host does not open the file.
    #[error("cannot open disk {path}; check that it exists and may be read{}", and_written(*.write))]
    Open {
        /// Which.
        path: PathBuf,
        /// It was to be written, too.
        write: bool,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system has no direct I/O.
    #[error(
        "disk {path} is on a file system without direct I/O (O_DIRECT); open it without, or move it"
    )]
    Direct {
        /// Which.
        path: PathBuf,
    },
    /// It is no file that could be a disk.
    #[error("disk {path} is {what}; a regular file or a block device is needed")]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Somebody else has it.
    #[error(
        "disk {path} is in use: another virtual machine or an image tool holds a lock on it \
         (`lslocks` lists who); end that, or open the disk read-only in both"
    )]
    Locked {
        /// Which.
        path: PathBuf,
    },
    /// It cannot be locked at all.
    #[error("cannot lock disk {path}; its file system may have no locks")]
    Lock {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no image of its format, or one that is damaged or has unknown features.
    #[error("disk {path} cannot be used as qcow2; check its format, and it with `qemu-img check`")]
    Image {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It needs what is not supported.
    #[error("disk {path} needs {what}, which is not supported")]
    Unsupported {
        /// Which.
        path: PathBuf,
        /// What it needs.
        what: String,
    },
    /// It has a backing file, and these are not followed.
    #[error(
        "disk {path} has the backing file {name:?}, and backing files are not followed; allow them if \
         you trust whoever made the image, or make one without (`qemu-img convert`)"
    )]
    Backing {
        /// Which.
        path: PathBuf,
        /// What its header names.
        name: String,
    },
    /// The host does not say how large it is.
    #[error("cannot find out the size of disk {path}")]
    Size {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn and_written(write: bool) -> &'static str {
    if write {
        " and written (or open it read-only)"
    } else {
        ""
    }
}
