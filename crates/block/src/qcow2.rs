//! Disks in the format qcow2, by the crate `imago`: allocated as they are written, over backing files
//! if they have any.
//!
//! Bytes go through a buffer of the host, a piece at a time, so that the format's code sees memory that
//! nobody changes. Its calls block, and are made by the threads of an engine. Discards change where
//! data are, and wait for all other requests.
//!
//! *Whom an image is from.* The header names the backing file, by any path of the host. So whoever opens
//! an image says whether these are followed, and an image whose header does not say what the format of
//! its backing file is, is refused: to look would be to trust what a guest once wrote there.
//!
//! Not here: external data files, encryption, images marked dirty or corrupt, compression by zstd. They
//! are refused when the disk is opened. A new size of the image is not seen while it is open.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use imago::file::File as Storage;
use imago::qcow2::Qcow2 as Image;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageExt, StorageOpenOptions,
};
use parking_lot::RwLock;

use crate::open::{BackingFiles, DiskOptions, open_file};
use crate::{Buffers, Disk, Extent, OpenError, SECTOR, Topology, Unmap, zeroes};

/// Bytes that are copied at a time.
const PIECE: usize = 1 << 20;
/// Images in a chain of backing files.
const DEPTH_MAX: usize = 32;

/// A qcow2 image.
pub(crate) struct Qcow2 {
    /// Held for writing by what moves data.
    image: RwLock<FormatAccess<Storage>>,
    path: PathBuf,
    read_only: bool,
    len: u64,
}

impl Qcow2 {
    /// Opens the image of a file that is open, and locked, and its backing files.
    pub fn new(file: File, path: &Path, options: &DiskOptions) -> Result<Self, OpenError> {
        let image = open_image(file, path, options, 1)?;
        let size = image.size();
        let len = size - size % SECTOR;
        if len != size {
            tracing::warn!(
                disk = %path.display(), bytes = size, used = len,
                "the size of a disk is no multiple of 512: the rest is not used"
            );
        }
        Ok(Self {
            image: RwLock::new(image),
            path: path.to_owned(),
            read_only: options.read_only,
            len,
        })
    }
}

fn wrong(path: &Path) -> impl Fn(io::Error) -> OpenError + '_ {
    move |source| OpenError::Image {
        path: path.to_owned(),
        source,
    }
}

fn storage(file: File, path: &Path, options: &DiskOptions) -> Result<Storage, OpenError> {
    let how = StorageOpenOptions::new()
        .filename(path)
        .write(!options.read_only)
        .direct(options.direct);
    Storage::from_open_file(file, how).map_err(wrong(path))
}

/// Tells whether the data are encrypted, which `imago` does not look at.
fn is_encrypted(file: &Storage) -> io::Result<bool> {
    const METHOD: usize = 32;
    let mut header = [0; METHOD + 4];
    file.read(&mut header[..], 0)?;
    Ok(header[METHOD..] != [0; 4])
}

fn open_image(
    file: File,
    path: &Path,
    options: &DiskOptions,
    depth: usize,
) -> Result<FormatAccess<Storage>, OpenError> {
    let file = storage(file, path, options)?;
    let encrypted = is_encrypted(&file).map_err(wrong(path))?;
    let mut image = Image::<Storage>::open_image(file, !options.read_only).map_err(wrong(path))?;
    let unsupported = |what: String| OpenError::Unsupported {
        path: path.to_owned(),
        what,
    };
    if encrypted {
        return Err(unsupported("encryption".into()));
    }
    if image.requires_external_data_file() {
        return Err(unsupported("an external data file".into()));
    }
    // Nothing that the header names is opened but by this function.
    image.set_data_file(None);
    let named = image.implicit_backing_file().cloned();
    let backing = match named {
        None => None,
        Some(name) if options.backing == BackingFiles::Refuse => {
            return Err(OpenError::Backing {
                path: path.to_owned(),
                name,
            });
        }
        Some(_) if depth == DEPTH_MAX => {
            return Err(unsupported(format!("more than {DEPTH_MAX} backing files")));
        }
        Some(name) => {
            let format = image.implicit_backing_format().map(String::as_str);
            let place = path.parent().unwrap_or(Path::new("")).join(&name);
            let backing = open_backing(&place, format, options, depth + 1);
            Some(backing?.ok_or_else(|| {
                let said = format.unwrap_or("none");
                unsupported(format!(
                    "the format {said:?} of its backing file {name:?}: qcow2 or raw is needed \
                     (`qemu-img rebase -u -F` writes it into the header)"
                ))
            })?)
        }
    };
    image.set_backing(backing);
    Ok(FormatAccess::new(image))
}

/// Opens a backing file, which is only read; `None` if it is in no format that we know.
fn open_backing(
    path: &Path,
    format: Option<&str>,
    options: &DiskOptions,
    depth: usize,
) -> Result<Option<FormatAccess<Storage>>, OpenError> {
    let options = DiskOptions {
        read_only: true,
        ..*options
    };
    match format {
        Some("qcow2") => {
            let file = open_file(path, &options)?;
            open_image(file, path, &options, depth).map(Some)
        }
        Some("raw" | "file") => {
            let file = storage(open_file(path, &options)?, path, &options)?;
            let raw = Raw::builder(file).open(DenyImplicitOpenGate::default());
            raw.map(|raw| Some(FormatAccess::new(raw)))
                .map_err(wrong(path))
        }
        _ => Ok(None),
    }
}

/// Goes over a request in pieces: where in it, and where on the disk.
fn pieces(
    offset: u64,
    len: usize,
    mut each: impl FnMut(usize, u64, usize) -> io::Result<()>,
) -> io::Result<()> {
    for done in (0..len).step_by(PIECE) {
        let at = offset.checked_add(done as u64);
        let at = at.ok_or(io::ErrorKind::InvalidInput)?;
        each(done, at, PIECE.min(len - done))?;
    }
    Ok(())
}

impl Disk for Qcow2 {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn topology(&self) -> Topology {
        Topology::default()
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    fn read(&self, offset: u64, to: &Buffers) -> io::Result<()> {
        let image = self.image.read();
        let mut bytes = vec![0; PIECE.min(to.len())];
        pieces(offset, to.len(), |done, at, len| {
            image.read(&mut bytes[..len], at)?;
            to.copy_from(done, &bytes[..len]);
            Ok(())
        })
    }

    fn write(&self, offset: u64, from: &Buffers) -> io::Result<()> {
        let image = self.image.read();
        let mut bytes = vec![0; PIECE.min(from.len())];
        pieces(offset, from.len(), |done, at, len| {
            from.copy_to(done, &mut bytes[..len]);
            image.write(&bytes[..len], at)
        })
    }

    fn flush(&self) -> io::Result<()> {
        let image = self.image.read();
        // First the tables that are in memory, then all of it to the medium.
        image.flush()?;
        image.sync()
    }

    fn discard(&self, extent: Extent) -> io::Result<()> {
        if extent.len == 0 {
            return Ok(());
        }
        let done = self.image.write().discard_to_any(extent.offset, extent.len);
        match done {
            // Old images cannot, and need not.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            done => done,
        }
    }

    fn write_zeroes(&self, extent: Extent, _: Unmap) -> io::Result<()> {
        if extent.len == 0 {
            return Ok(());
        }
        let done = self.image.read().write_zeroes(extent.offset, extent.len);
        match done {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                zeroes::write_by_hand(self, extent, 1)
            }
            done => done,
        }
    }

    fn refresh_len(&self) -> io::Result<u64> {
        Ok(self.len)
    }
}

// By this name the project's test command leaves them out where there is no qemu-img.
#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod qemu_img;
