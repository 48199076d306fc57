//! RAM: one region of host memory, one or two slots of the map.

use std::sync::Arc;

use umbra_slots::{AddressSpace, Flags, Gpa, HugePages, RamOptions, RamRegion};

use crate::error::BuildError;
use crate::layout;

/// Adds `bytes` of RAM to an empty map.
pub fn add(space: &Arc<AddressSpace>, bytes: u64) -> Result<(), BuildError> {
    let region = RamRegion::new(RamOptions {
        len: bytes,
        huge: HugePages::Transparent,
        prefault: false,
    })?;
    let added = space.update("RAM appears", |editor| {
        for ram in layout::ram(bytes) {
            editor.add_ram(
                Gpa(ram.start),
                region.clone(),
                ram.offset,
                ram.len,
                Flags::default(),
            )?;
        }
        Ok(())
    })?;
    // Nothing left the map, and nobody uses it yet.
    drop(added.stale);
    Ok(())
}
