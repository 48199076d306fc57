//! Effective and linear addresses (SDM vol. 1, 3.7.5; vol. 3, chapter 5 for the checks).

use umbra_mmu::AccessKind;
use umbra_x86::state::{Segment, seg};
use umbra_x86::{Exception, vector};

use crate::cpu::{Cpu, Trap};
use crate::op::{Op, addr};

impl Cpu {
    /// Linear address of the memory operand of `op`, for `N` bytes accessed as `kind`.
    #[inline(always)]
    pub fn ea<const N: usize>(&mut self, op: &Op, kind: AccessKind) -> Result<u64, Trap> {
        self.ea_sized(op, N, kind)
    }

    /// The same for a size that only the instruction knows.
    #[inline(always)]
    pub fn ea_sized(&mut self, op: &Op, len: usize, kind: AccessKind) -> Result<u64, Trap> {
        if op.addr & self.slow != 0 {
            return self.ea_slow(op, len, kind);
        }
        Ok(self.flat_ea(op))
    }

    /// Base + index * scale + displacement + segment base, as wide as linear addresses, unchecked.
    #[inline(always)]
    pub fn flat_ea(&self, op: &Op) -> u64 {
        self.flat_offset(op)
            .wrapping_add(self.seg_base[(op.seg & 7) as usize])
            & self.linear_mask
    }

    /// Base + index * scale + displacement.
    #[inline(always)]
    pub fn flat_offset(&self, op: &Op) -> u64 {
        self.regs
            .get::<8>(op.base)
            .wrapping_add(self.regs.get::<8>(op.index) << (op.scale & 3))
            .wrapping_add(op.disp as i64 as u64)
    }

    /// The offset part of the memory operand, truncated to the address size: LEA.
    #[cold]
    #[inline(never)]
    pub fn offset(&self, op: &Op) -> u64 {
        let offset = if op.addr & addr::ABSOLUTE != 0 {
            op.imm
        } else {
            self.flat_offset(op)
        };
        truncate(offset, op.addr)
    }

    #[cold]
    #[inline(never)]
    fn ea_slow(&mut self, op: &Op, len: usize, kind: AccessKind) -> Result<u64, Trap> {
        let offset = self.offset(op);
        self.linear(op.seg, offset, len, kind)
    }

    /// Linear address of `offset` in segment `index` (0 to 5; 6 is flat), checked where segments
    /// are: outside 64-bit code.
    pub fn linear(
        &mut self,
        index: u8,
        offset: u64,
        len: usize,
        kind: AccessKind,
    ) -> Result<u64, Trap> {
        let la = offset.wrapping_add(self.seg_base[(index & 7) as usize]);
        if index >= 6 || self.long_code() {
            return Ok(la);
        }
        self.check_segment(index as usize, offset, len, kind)?;
        Ok(la & 0xffff_ffff)
    }

    /// Recomputes what the fast address path may do: which segments have nothing to check.
    pub fn refresh_segments(&mut self) {
        if self.long_code() {
            self.slow = addr::OFFSET;
            self.linear_mask = u64::MAX;
            self.quick_stack = true;
            return;
        }
        self.linear_mask = 0xffff_ffff;
        // Offsets of 32 bits are cut with the linear address.
        self.slow = addr::A16 | addr::ABSOLUTE | addr::CODE;
        for (index, bit) in [
            (seg::ES, addr::DATA),
            (seg::DS, addr::DATA),
            (seg::SS, addr::STACK),
            (seg::FS, addr::FS),
            (seg::GS, addr::GS),
        ] {
            if !is_flat(&self.seg[index]) {
                self.slow |= bit;
            }
        }
        let stack = &self.seg[seg::SS];
        self.quick_stack = self.slow & addr::STACK == 0
            && stack.base == 0
            && stack.attr & Segment::DB != 0
            && self.seg[seg::CS].limit == u32::MAX;
    }

    /// Limit and type checks of a segment access (SDM vol. 3, 5.3, 5.5).
    fn check_segment(
        &mut self,
        index: usize,
        offset: u64,
        len: usize,
        kind: AccessKind,
    ) -> Result<(), Trap> {
        let segment = self.seg[index];
        if permits(&segment, kind) && within(&segment, offset, len as u64) {
            return Ok(());
        }
        let vector = if index == seg::SS {
            vector::SS
        } else {
            vector::GP
        };
        Err(self.raise(Exception::with_error(vector, 0)))
    }
}

/// Cuts an offset to the address size that `flags` name.
#[inline(always)]
pub fn truncate(offset: u64, flags: u8) -> u64 {
    if flags & addr::A16 != 0 {
        offset & 0xffff
    } else if flags & addr::A32 != 0 {
        offset & 0xffff_ffff
    } else {
        offset
    }
}

/// Writable data of 4 GiB: no access can be refused, except one that goes round at its end, which
/// processors are free to refuse or not (SDM vol. 3, 5.3).
fn is_flat(segment: &Segment) -> bool {
    const KIND: u16 = Segment::P | Segment::S | 0xe;
    segment.attr & KIND == Segment::P | Segment::S | 2 && segment.limit == u32::MAX
}

/// Type check; a null selector leaves the segment not present.
fn permits(segment: &Segment, kind: AccessKind) -> bool {
    let code = segment.attr & 8 != 0;
    let extra = segment.attr & 2 != 0; // writable data, readable code
    segment.attr & Segment::P != 0
        && match kind {
            AccessKind::Write => !code && extra,
            AccessKind::Read => !code || extra,
            AccessKind::Fetch => code,
        }
}

/// Limit check; expand-down segments allow what is above the limit (SDM vol. 3, 5.3).
pub fn within(segment: &Segment, offset: u64, len: u64) -> bool {
    let limit = u64::from(segment.limit);
    let last = offset + len.max(1) - 1;
    let expand_down = segment.attr & 0xc == 4;
    if !expand_down {
        return last <= limit;
    }
    let top = if segment.attr & Segment::DB != 0 {
        0xffff_ffff
    } else {
        0xffff
    };
    offset > limit && last <= top
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(limit: u32, attr: u16) -> Segment {
        Segment {
            selector: 8,
            base: 0,
            limit,
            attr: attr | Segment::S | Segment::P,
        }
    }

    #[test]
    fn the_last_byte_decides_about_the_limit() {
        assert!(within(&data(0xfff, 3), 0xffc, 4));
        assert!(!within(&data(0xfff, 3), 0xffd, 4));
    }

    #[test]
    fn expand_down_segments_begin_above_the_limit() {
        let segment = data(0xfff, 7 | Segment::DB);
        assert!(!within(&segment, 0xfff, 1));
        assert!(within(&segment, 0x1000, 4));
        assert!(!within(&segment, 0xffff_fffe, 4));
    }
}
