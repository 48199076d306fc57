//! Plain walks of a guest's tables, for crash reports of processors that this MMU does not serve.

use umbra_slots::{Gpa, Snapshot};
use umbra_x86::Gva;

use crate::mode::PagingRegs;
use crate::oracle::Registers;

/// A guest's tables as they stand in memory, walked without any cache and without changing them.
#[derive(Clone, Copy, Debug)]
pub struct PlainWalk(Registers);

impl PlainWalk {
    /// Walks for a processor with these registers. The four page-directory-pointer entries of PAE
    /// paging are read from memory: the processor may still use older ones.
    pub fn new(map: &Snapshot, regs: &PagingRegs) -> Self {
        let mut bytes = [0; 32];
        let pdptes = match map.read(Gpa(regs.cr3 & 0xffff_ffe0), &mut bytes) {
            Ok(()) => std::array::from_fn(|n| {
                let entry = bytes[8 * n..8 * n + 8].try_into();
                u64::from_le_bytes(entry.expect("eight bytes"))
            }),
            Err(_) => [0; 4],
        };
        Self(Registers {
            regs: *regs,
            pdptes,
            phys_bits: 52,
        })
    }

    /// Describes the walk for an address, one line a level.
    pub fn describe(&self, map: &Snapshot, gva: Gva) -> Vec<String> {
        self.0.describe(map, gva)
    }

    /// Reads up to `len` bytes of RAM from an address on: as many as there are, whoever may read
    /// them.
    pub fn peek_bytes(&self, map: &Snapshot, gva: Gva, len: usize) -> Vec<u8> {
        self.0.peek_bytes(map, gva, len)
    }
}
