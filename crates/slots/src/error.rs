//! What can be wrong with a change of the map, with RAM, or with an access.

use crate::{Gpa, GpaRange, SlotId};

/// Why a change of the map was refused. Nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// The range shares an address with another slot.
    #[error("{range} overlaps slot {with} at {taken}")]
    Overlap {
        /// The range that was asked for.
        range: GpaRange,
        /// The slot that is there already.
        with: SlotId,
        /// Its range.
        taken: GpaRange,
    },
    /// RAM begins and ends on 4 KiB borders.
    #[error("{what} {value:#x} is not a multiple of 4 KiB")]
    Misaligned {
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// The range is empty or reaches past the 52-bit physical address space.
    #[error("{len:#x} bytes at {start} are no range of physical addresses")]
    BadRange {
        /// First address.
        start: Gpa,
        /// Number of bytes.
        len: u64,
    },
    /// The map holds as many slots as it may.
    #[error("the map holds {max} slots already")]
    TooMany {
        /// The limit.
        max: usize,
    },
    /// Whoever mirrors the map has no room for so many pieces of RAM.
    #[error("the host takes {max} pieces of RAM at most, and this change needs {needed}")]
    TooManyPieces {
        /// The limit.
        max: usize,
        /// How many there would be.
        needed: usize,
    },
    /// Whoever mirrors the map could not follow: the host refused.
    #[error("{call} failed for {range}")]
    Host {
        /// Which call.
        call: &'static str,
        /// For which addresses.
        range: GpaRange,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
    /// Whoever follows the map refuses this change.
    #[error("{who} does not take the change")]
    Follower {
        /// Who.
        who: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No such slot.
    #[error("there is no slot {0}")]
    NoSuchSlot(SlotId),
    /// The operation is for RAM only.
    #[error("slot {0} is an I/O window, not RAM")]
    NotRam(SlotId),
    /// The slot would reach past the end of its region.
    #[error("{len:#x} bytes from {offset:#x} reach past a region of {region_len:#x} bytes")]
    OutsideRegion {
        /// Offset in the region.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Size of the region.
        region_len: u64,
    },
    /// The region cannot be written, and so no slot of it.
    #[error("a file that is only read cannot be a slot that is written; make the slot read-only")]
    ReadOnlyRegion,
    /// The host would not map a part of the region.
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// Why guest RAM could not be had from the host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// The length is zero, no multiple of the page size, or beyond what this process can map.
    #[error("{len:#x} bytes is no size for RAM with pages of {page:#x} bytes")]
    BadLength {
        /// Bytes asked for.
        len: u64,
        /// The page size that it must be a multiple of.
        page: u64,
    },
    /// A system call failed.
    #[error("{call} failed for {len:#x} bytes of guest RAM")]
    Host {
        /// Which call.
        call: &'static str,
        /// Bytes asked for.
        len: u64,
        /// Its error.
        #[source]
        source: std::io::Error,
    },
    /// What is to be shown of a file does not begin at a page.
    #[error("guest RAM cannot begin {offset:#x} bytes into a file with pages of {page:#x} bytes")]
    BadOffset {
        /// Where in the file.
        offset: u64,
        /// The page size that it must be a multiple of.
        page: u64,
    },
    /// A file ends before what was to be shown of it does.
    #[error("a file of {file_len:#x} bytes cannot be {len:#x} bytes of guest RAM")]
    FileTooShort {
        /// Bytes asked for.
        len: u64,
        /// Bytes that it has.
        file_len: u64,
    },
    /// The region could not be mapped.
    #[error(
        "mapping {len:#x} bytes of guest RAM failed: huge pages must be reserved in \
         /proc/sys/vm/nr_hugepages, a file be open for what is done with it, and ulimit -v allow the length"
    )]
    Map {
        /// Bytes asked for.
        len: u64,
        /// Why.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
}

/// Why bytes of guest memory could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// There is no RAM at the address.
    #[error("there is no RAM at {0}")]
    NotRam(Gpa),
    /// The RAM at the address cannot be written.
    #[error("the RAM at {0} is read-only")]
    ReadOnly(Gpa),
}
