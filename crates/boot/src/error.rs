//! What can be wrong with the files and the numbers that a machine is asked to boot with.

use std::io;
use std::path::PathBuf;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The kernel.
    Kernel,
    /// The initial RAM disk.
    Initrd,
    /// A module of a multiboot kernel.
    Module,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Kernel => "kernel",
            Role::Initrd => "initrd",
            Role::Module => "module",
        })
    }
}

/// Why a machine cannot be booted. Each prints as one line: the cause, then the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be opened.
    #[error("cannot open the {role} {path:?}: {source}; check the path and its permissions")]
    Open {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read the {role} {path:?}: {source}; check the file system it is on")]
    Read {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The path names something else than a regular file.
    #[error("the {role} {path:?} is not a regular file; give the path of an image file")]
    NotAFile {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// The file has no bytes.
    #[error("the {role} {path:?} is empty; fetch or build it again")]
    Empty {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// The file ends before what its own header announces.
    #[error("the {role} {path:?} is truncated: {what}; fetch or build it again")]
    Truncated {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// The file is in no format that is known for its role.
    #[error("the {role} {path:?} is {found}; give {wanted}")]
    UnknownFormat {
        /// What the file is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// What it looks like.
        found: String,
        /// What would be right.
        wanted: &'static str,
    },
    /// The kernel's headers contradict themselves.
    #[error("the kernel {path:?} is damaged: {what}; fetch or build it again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Kernel and initrd do not fit into the machine's memory.
    #[error(
        "{what} needs {needed_mib} MiB of memory, the machine has {have_mib} MiB; \
         give the machine at least {needed_mib} MiB"
    )]
    TooLittleMemory {
        /// What does not fit.
        what: &'static str,
        /// How much memory would do.
        needed_mib: u64,
        /// How much there is.
        have_mib: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {len} bytes, this kernel takes at most {max}; shorten it")]
    CommandLineTooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The command line holds a byte that would end it.
    #[error("the command line holds a zero byte; remove it")]
    CommandLineNul,
    /// The kernel is entered by a protocol that knows no modules.
    #[error("this kernel takes no modules; give it an initrd, or a multiboot kernel its modules")]
    NoModules,
    /// Command line and module strings do not fit where they go.
    #[error("command line and modules take {len} bytes, there is room for {max}; shorten them")]
    InformationTooLong {
        /// Their length.
        len: usize,
        /// The room.
        max: usize,
    },
    /// Guest memory could not be written.
    #[error("writing {what} into guest memory failed")]
    Memory {
        /// What was to be written.
        what: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Wraps a failed write of `what`.
    pub(crate) fn memory<E>(what: &'static str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Memory {
            what,
            source: Box::new(source),
        }
    }
}
