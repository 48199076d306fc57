//! Asks the host for transparent huge pages. Unsafe because `madvise` takes a raw range; the one
//! advice that is given here never changes what the memory contains.
#![allow(unsafe_code)]

use rustix::mm::{Advice, madvise};
use vm_memory::MmapRegion;

use crate::DirtyLog;

/// Asks for transparent huge pages behind the whole mapping.
pub(crate) fn huge_pages(map: &MmapRegion<DirtyLog>) -> std::io::Result<()> {
    // SAFETY: the range is exactly the mapping that `map` owns, alive for the call, and
    // MADV_HUGEPAGE alters no contents.
    unsafe { madvise(map.as_ptr().cast(), map.size(), Advice::LinuxHugepage) }?;
    Ok(())
}
