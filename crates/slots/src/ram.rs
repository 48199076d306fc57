//! Guest RAM: a memfd mapped shared, so that other processes can be given it; or a file of the host, whose
//! bytes are what the guest finds.
//!
//! **A file that becomes shorter.** Who touches a page behind the end of a mapped file gets SIGBUS, and so does
//! who writes to a hole of a file for which the host has no room left. Nothing here catches that: it ends the
//! process. Linux cannot keep others from truncating a file (only a memfd can be sealed), so whoever maps one
//! locks it, and has to know who else may write it. Memory made here is sealed against it, so that whoever is
//! given it need not trust this process; [`RamRegion::is_sealed`] tells whether memory of another process is.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};

use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, SeekFrom, fallocate, fcntl_add_seals, fcntl_get_seals,
    fstat, ftruncate, memfd_create, seek,
};
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::{DirtyLog, RamError, advise};

/// What kind of host pages hold guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// The host's base pages.
    #[default]
    No,
    /// Base pages, with the advice to use transparent huge pages; the host may ignore it.
    Transparent,
    /// 2 MiB pages of hugetlbfs; fails if the host has reserved too few.
    Hugetlbfs,
}

impl HugePages {
    /// Bytes of a page that the host gives and takes.
    fn page(self) -> u64 {
        match self {
            Self::No | Self::Transparent => 0x1000,
            Self::Hugetlbfs => 0x20_0000,
        }
    }
}

/// How to make a [`RamRegion`].
#[derive(Clone, Copy, Debug)]
pub struct RamOptions {
    /// Bytes; a multiple of the page size that `huge` implies.
    pub len: u64,
    /// What host pages to use.
    pub huge: HugePages,
    /// Takes all memory now instead of at the first touch; too little memory is then an error
    /// here and not a SIGBUS later.
    pub prefault: bool,
}

/// What may be done with a file of the host that a guest is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileAccess {
    /// It is read. Every slot of such a region is read-only, and nothing here can write it.
    Read,
    /// What is written is in the file: at once for who reads it, and to stay when it is synchronised.
    ReadWrite,
}

/// How a region is mapped, and every part of it.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    prot: i32,
    flags: i32,
    hugetlbfs: bool,
    /// It is a file of the host's, and not memory of its own.
    of_file: bool,
}

const PROT_READ: i32 = 0x1;
const PROT_WRITE: i32 = 0x2;
const MAP_SHARED: i32 = 0x1;
const MAP_PRIVATE: i32 = 0x2;
const MAP_NORESERVE: i32 = 0x4000;
const MAP_POPULATE: i32 = 0x8000;

impl Mapping {
    fn memory(huge: HugePages) -> Self {
        let reserve = match huge {
            // Without a reservation the first touch of a page that is not there would be SIGBUS.
            HugePages::Hugetlbfs => 0,
            HugePages::No | HugePages::Transparent => MAP_NORESERVE,
        };
        Self {
            prot: PROT_READ | PROT_WRITE,
            flags: MAP_SHARED | reserve,
            hugetlbfs: huge == HugePages::Hugetlbfs,
            of_file: false,
        }
    }

    fn file(access: FileAccess) -> Self {
        let (prot, sharing) = match access {
            FileAccess::Read => (PROT_READ, MAP_PRIVATE),
            FileAccess::ReadWrite => (PROT_READ | PROT_WRITE, MAP_SHARED),
        };
        Self {
            prot,
            flags: sharing | MAP_NORESERVE,
            hugetlbfs: false,
            of_file: true,
        }
    }

    /// The same with all pages taken at once.
    fn prefaulted(self) -> Self {
        Self {
            flags: self.flags | MAP_POPULATE,
            ..self
        }
    }
}

/// A piece of guest RAM: host memory behind a file descriptor, mapped once.
///
/// Lives as long as some snapshot, or some user, holds its `Arc`.
#[derive(Debug)]
pub struct RamRegion {
    map: Arc<MmapRegion<DirtyLog>>,
    file: FileOffset,
    mapping: Mapping,
}

impl RamRegion {
    /// Takes memory from the host. It reads as zeros.
    ///
    /// # Errors
    /// If the length does not fit the page size, or the host refuses.
    pub fn new(options: RamOptions) -> Result<Arc<Self>, RamError> {
        let RamOptions {
            len,
            huge,
            prefault,
        } = options;
        let size = checked_size(len, huge)?;
        let file = FileOffset::new(memory_file(len, huge, prefault)?, 0);
        let mapping = Mapping::memory(huge);
        // The log grows with the length: a host that will not map so much is asked before.
        drop(map(&file, size, mapping, ())?);
        let first = match prefault {
            true => mapping.prefaulted(),
            false => mapping,
        };
        let map = map(&file, size, first, DirtyLog::new(size))?;
        if huge == HugePages::Transparent {
            // Advice that the host does not take is no failure: the guest runs on small pages.
            if let Err(error) = advise::huge_pages(&map) {
                tracing::debug!(%error, "no transparent huge pages for guest RAM");
            }
        }
        Ok(Arc::new(Self { map, file, mapping }))
    }

    /// Shows the first `len` bytes of a file, which is opened for what `access` says. Whoever truncates it
    /// while it is mapped may end this process: see the module.
    ///
    /// # Errors
    /// If the length is no multiple of 4 KiB, the file is shorter, or the host does not map it.
    pub fn of_file(file: File, len: u64, access: FileAccess) -> Result<Arc<Self>, RamError> {
        let size = checked_size(len, HugePages::No)?;
        // Block devices have a size, too. Nobody uses the position of the file.
        let file_len = seek(&file, SeekFrom::End(0)).map_err(failed("lseek", len))?;
        if file_len < len {
            return Err(RamError::FileTooShort { len, file_len });
        }
        let file = FileOffset::new(file, 0);
        let mapping = Mapping::file(access);
        drop(map(&file, size, mapping, ())?);
        let map = map(&file, size, mapping, DirtyLog::new(size))?;
        Ok(Arc::new(Self { map, file, mapping }))
    }

    /// Shows memory of another process, `len` bytes of its file from `offset` on, as both write it. The
    /// region keeps no dirty log: who wants to know what is written here has to listen to
    /// [`Dma::written`](crate::Dma::written). Whoever truncates the file while it is mapped ends this
    /// process, unless it [is sealed](Self::is_sealed).
    ///
    /// # Errors
    /// If offset or length are no multiples of 4 KiB (of huge pages the host wants theirs), the file is
    /// shorter, or the host does not map it.
    pub fn shared(file: File, offset: u64, len: u64) -> Result<Arc<Self>, RamError> {
        let size = checked_size(len, HugePages::No)?;
        let page = HugePages::No.page();
        if !offset.is_multiple_of(page) {
            return Err(RamError::BadOffset { offset, page });
        }
        // The position is the other process's as well: it is left alone.
        let stat = fstat(&file).map_err(failed("fstat", len))?;
        let file_len = u64::try_from(stat.st_size).unwrap_or(0);
        let file_len = file_len.saturating_sub(offset);
        if file_len < len {
            return Err(RamError::FileTooShort { len, file_len });
        }
        let file = FileOffset::new(file, offset);
        let mapping = Mapping::memory(HugePages::No);
        let map = map(&file, size, mapping, DirtyLog::none())?;
        Ok(Arc::new(Self { map, file, mapping }))
    }

    /// Returns what tells when its memory is mapped no more.
    pub fn watch(&self) -> MappingWatch {
        MappingWatch(self.dirty().watch())
    }

    /// Tells whether nobody can make its file shorter, so that every access finds memory (or, if the host has
    /// none left, is the host's to end).
    pub fn is_sealed(&self) -> bool {
        // Files that cannot be sealed have no seals to tell.
        fcntl_get_seals(self.file()).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
    }

    /// Tells whether what it holds is a file of the host's, which stays.
    pub fn is_of_file(&self) -> bool {
        self.mapping.of_file
    }

    /// Tells whether nothing can write it: it is a file that is only read.
    pub fn is_read_only(&self) -> bool {
        self.mapping.prot & PROT_WRITE == 0
    }

    /// Returns the number of bytes; never zero.
    #[allow(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> u64 {
        self.map.size() as u64
    }

    /// Returns the file that holds the memory, to be shared with another process. Offset 0 of the
    /// region is at [`file_offset`](Self::file_offset).
    pub fn file(&self) -> &File {
        self.file.file()
    }

    /// Returns where in the file the region begins: 0, unless it is memory of another process.
    pub fn file_offset(&self) -> u64 {
        self.file.start()
    }

    /// Returns the host address of the byte at `offset`. Offset 0 is aligned to a host page.
    ///
    /// # Panics
    /// If `offset` is outside the region.
    pub fn host_addr(&self, offset: u64) -> NonNull<u8> {
        assert!(offset < self.len(), "offset {offset:#x} outside the region");
        NonNull::new(self.map.as_ptr().wrapping_add(offset as usize))
            .expect("a mapping never holds address 0")
    }

    /// Returns the dirty bits of the region.
    pub fn dirty(&self) -> &DirtyLog {
        self.map.bitmap()
    }

    /// Gives memory back to the host, which reads as zeros then. `offset` and `len` are multiples of 4 KiB
    /// inside the region. What still writes there takes a page anew.
    ///
    /// # Errors
    /// If the host does not take it.
    pub fn discard(&self, offset: u64, len: u64) -> Result<(), RamError> {
        let huge = match self.mapping.hugetlbfs {
            true => HugePages::Hugetlbfs,
            false => HugePages::No,
        };
        let page = huge.page();
        let end = offset + len;
        // The host frees whole pages of its own; what is left of others is zeroed here.
        let first = offset.next_multiple_of(page).min(end);
        let last = (end / page * page).max(first);
        self.zero(offset, first);
        self.zero(last, end);
        if first == last {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let at = self.file_offset() + first;
        let punched =
            rustix::io::retry_on_intr(|| fallocate(self.file.file(), flags, at, last - first));
        punched.map_err(failed("fallocate", last - first))
    }

    /// Writes zeros from one offset to another one.
    fn zero(&self, from: u64, to: u64) {
        let zeros = [0; 0x1000];
        for at in (from..to).step_by(zeros.len()) {
            let page = self.map.get_slice(at as usize, zeros.len());
            page.expect("inside the region").copy_from(&zeros);
        }
    }

    /// Returns the mapping.
    pub(crate) fn map(&self) -> &Arc<MmapRegion<DirtyLog>> {
        &self.map
    }

    /// Returns a part of the region as a mapping of its own; the whole region is the mapping that
    /// exists already.
    pub(crate) fn view(
        &self,
        offset: u64,
        len: u64,
    ) -> Result<Arc<MmapRegion<DirtyLog>>, RamError> {
        if offset == 0 && len == self.len() {
            return Ok(self.map.clone());
        }
        let file = FileOffset::from_arc(self.file.arc().clone(), self.file_offset() + offset);
        let log = self.dirty().at_offset(offset as usize);
        map(&file, len as usize, self.mapping, log)
    }
}

/// Tells when the memory of a [`RamRegion`], with every part of it, is mapped no more.
#[derive(Debug)]
pub struct MappingWatch(Weak<[AtomicU64]>);

impl MappingWatch {
    /// Tells whether somebody in this process still has it mapped.
    pub fn is_mapped(&self) -> bool {
        // A mapping ends before what it marks is dropped.
        self.0.strong_count() != 0
    }
}

/// What a call of the host's has become.
fn failed(call: &'static str, len: u64) -> impl FnOnce(rustix::io::Errno) -> RamError {
    move |errno| RamError::Host {
        call,
        len,
        source: io::Error::from(errno),
    }
}

fn checked_size(len: u64, huge: HugePages) -> Result<usize, RamError> {
    let page = huge.page();
    match usize::try_from(len) {
        Ok(size) if len != 0 && len.is_multiple_of(page) && len < 1 << 52 => Ok(size),
        _ => Err(RamError::BadLength { len, page }),
    }
}

fn memory_file(len: u64, huge: HugePages, prefault: bool) -> Result<File, RamError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let flags = match huge {
        HugePages::No | HugePages::Transparent => flags,
        HugePages::Hugetlbfs => flags | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
    };
    let file = memfd_create("guest-ram", flags).map_err(failed("memfd_create", len))?;
    ftruncate(&file, len).map_err(failed("ftruncate", len))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(failed("fcntl", len))?;
    if prefault {
        fallocate(&file, FallocateFlags::empty(), 0, len).map_err(failed("fallocate", len))?;
    }
    Ok(File::from(file))
}

fn map<B: Bitmap>(
    file: &FileOffset,
    size: usize,
    mapping: Mapping,
    log: B,
) -> Result<Arc<MmapRegion<B>>, RamError> {
    MmapRegionBuilder::new_with_bitmap(size, log)
        .with_mmap_prot(mapping.prot)
        .with_mmap_flags(mapping.flags)
        .with_file_offset(file.clone())
        .with_hugetlbfs(mapping.hugetlbfs)
        .build()
        .map(Arc::new)
        .map_err(|source| RamError::Map {
            len: size as u64,
            source,
        })
}
