//! What firmware would say about memory: the e820 map (ACPI 6.5, 15.1).

use crate::layout::{ACPI, HIGH_RAM, LOW_RAM_END};

/// What a region of memory may be used for (ACPI 6.5, table 15.374).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Free for the operating system.
    Ram,
    /// In use by the machine.
    Reserved,
}

impl Usage {
    /// Returns the number by which e820, PVH and multiboot call it.
    pub const fn code(self) -> u32 {
        match self {
            Usage::Ram => 1,
            Usage::Reserved => 2,
        }
    }
}

/// One region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// Number of bytes, never zero.
    pub len: u64,
    /// What it may be used for.
    pub usage: Usage,
}

/// Makes the map from the ranges of RAM (start and length, ascending): the first mebibyte as a PC
/// has it, all else free.
pub fn memory_map(ram: impl IntoIterator<Item = (u64, u64)>) -> Vec<Region> {
    let mut map = vec![
        Region {
            start: 0,
            len: LOW_RAM_END,
            usage: Usage::Ram,
        },
        Region {
            start: LOW_RAM_END,
            len: 0xa_0000 - LOW_RAM_END,
            usage: Usage::Reserved,
        },
        Region {
            start: ACPI,
            len: HIGH_RAM - ACPI,
            usage: Usage::Reserved,
        },
    ];
    for (start, len) in ram {
        let end = start.saturating_add(len);
        let start = start.max(HIGH_RAM);
        if end > start {
            map.push(Region {
                start,
                len: end - start,
                usage: Usage::Ram,
            });
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_ascend_and_do_not_overlap() {
        let map = memory_map([(0, 0xc000_0000), (0x1_0000_0000, 0x4000_0000)]);
        assert_eq!(map.len(), 5);
        for pair in map.windows(2) {
            assert!(pair[0].start + pair[0].len <= pair[1].start, "{pair:x?}");
        }
        let free: u64 = map
            .iter()
            .filter(|r| r.usage == Usage::Ram)
            .map(|r| r.len)
            .sum();
        assert_eq!(free, 0xc000_0000 - 0x10_0000 + 0x4000_0000 + LOW_RAM_END);
    }

    #[test]
    fn the_tables_are_not_offered_as_free_memory() {
        let map = memory_map([(0, 0x20_0000)]);
        assert!(
            map.iter()
                .any(|r| r.start == ACPI && r.usage == Usage::Reserved)
        );
    }
}
