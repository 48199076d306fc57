//! An image file: opened, measured, and recognised by its first bytes.

mod recognise;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::error::{Error, Role};

pub use recognise::Kind;

/// A kernel, an initrd or a module, open.
#[derive(Debug)]
pub struct Image {
    role: Role,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Image {
    /// Opens the regular file at `path`.
    ///
    /// # Errors
    ///
    /// If it cannot be opened, is no regular file, or is empty and no module.
    pub fn open(role: Role, path: &Path) -> Result<Self, Error> {
        let open = |source| Error::Open {
            role,
            path: path.to_owned(),
            source,
        };
        // Looked at before it is opened: opening a fifo would wait for a writer.
        if !std::fs::metadata(path).map_err(open)?.is_file() {
            return Err(Error::NotAFile {
                role,
                path: path.to_owned(),
            });
        }
        Self::from_file(role, path, File::open(path).map_err(open)?)
    }

    /// Takes a file that is already open; `path` is what messages call it.
    ///
    /// # Errors
    ///
    /// If it is no regular file, or is empty and no module.
    pub fn from_file(role: Role, path: &Path, file: File) -> Result<Self, Error> {
        let path = path.to_owned();
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(Error::Read { role, path, source }),
        };
        if !metadata.is_file() {
            return Err(Error::NotAFile { role, path });
        }
        match metadata.len() {
            0 if role != Role::Module => Err(Error::Empty { role, path }),
            len => Ok(Self {
                role,
                path,
                file,
                len,
            }),
        }
    }

    /// Returns what messages call the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of bytes; zero only for a module.
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Recognises a kernel's format.
    ///
    /// # Errors
    ///
    /// If it is in no format that can be booted, or ends within its headers.
    pub fn kind(&mut self) -> Result<Kind, Error> {
        recognise::kind(self)
    }

    /// Returns the file, at its beginning.
    pub(crate) fn rewound(&mut self) -> Result<&mut File, Error> {
        self.seek(0)?;
        Ok(&mut self.file)
    }

    /// Reads up to `max` bytes from `offset`; fewer only at the end of the file.
    pub(crate) fn read_at(&mut self, offset: u64, max: usize) -> Result<Vec<u8>, Error> {
        self.seek(offset)?;
        let mut bytes = Vec::new();
        match (&mut self.file).take(max as u64).read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(source) => Err(self.unreadable(source)),
        }
    }

    /// Reads exactly `len` bytes from `offset`.
    pub(crate) fn read_exact_at(
        &mut self,
        offset: u64,
        len: usize,
        what: &str,
    ) -> Result<Vec<u8>, Error> {
        let bytes = self.read_at(offset, len)?;
        if bytes.len() < len {
            return Err(self.truncated(format!("{what} ends after {} of {len} bytes", bytes.len())));
        }
        Ok(bytes)
    }

    fn seek(&mut self, offset: u64) -> Result<(), Error> {
        match self.file.seek(SeekFrom::Start(offset)) {
            Ok(_) => Ok(()),
            Err(source) => Err(self.unreadable(source)),
        }
    }

    /// Copies the whole file into guest memory at `address`, where there is room for it.
    pub(crate) fn copy_to<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        address: u64,
        what: &'static str,
    ) -> Result<(), Error> {
        let mut buffer = vec![0; 1 << 20];
        let (mut at, mut left) = (address, self.len);
        self.seek(0)?;
        while left > 0 {
            let want = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = match self.file.read(&mut buffer[..want]) {
                Ok(0) => {
                    let what = format!("it shrank by {left} bytes while it was read");
                    return Err(self.truncated(what));
                }
                Ok(got) => got,
                Err(source) => return Err(self.unreadable(source)),
            };
            memory
                .write_slice(&buffer[..got], GuestAddress(at))
                .map_err(Error::memory(what))?;
            at += got as u64;
            left -= got as u64;
        }
        Ok(())
    }

    pub(crate) fn unreadable(&self, source: std::io::Error) -> Error {
        Error::Read {
            role: self.role,
            path: self.path.clone(),
            source,
        }
    }

    pub(crate) fn truncated(&self, what: String) -> Error {
        Error::Truncated {
            role: self.role,
            path: self.path.clone(),
            what,
        }
    }

    pub(crate) fn damaged(&self, what: impl Into<String>) -> Error {
        Error::Damaged {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    pub(crate) fn unknown(&self, found: impl Into<String>, wanted: &'static str) -> Error {
        Error::UnknownFormat {
            role: self.role,
            path: self.path.clone(),
            found: found.into(),
            wanted,
        }
    }
}

/// Reads a little-endian number out of a header; zero past its end, which every caller has
/// excluded by asking for enough bytes first.
pub(crate) fn le(bytes: &[u8], offset: usize, len: usize) -> u64 {
    let field = bytes.get(offset..offset + len).unwrap_or_default();
    field
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
