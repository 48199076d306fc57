//! Protocols of the past, as models: one processor, one page X, one map, no memory.
//!
//! What is modelled is KVM's way to keep MMIO entries true, with one flaw at a time as its history
//! records them. None of this is code of ours, and none of it is used outside these tests.

use super::{Answer, Change, Subject, When};

/// What was wrong, and when it was mended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// None that these sequences know: zap and publication in one step, checked installs.
    None,
    /// 2014: a record of the last MMIO access, without a generation, is asked first.
    RecordFirst,
    /// 2014: the number of an entry is read anew when it is made, not when it was decided.
    StampedAnew,
    /// 2019: a wrap is taken for the generation being 0, which some maps never are.
    WrapIsZero,
    /// 2019: the zap at a wrap comes after the number that collides is visible.
    ZapAfter,
    /// Until today: zap, publish; an entry made in between has the last number of the old cycle.
    ZapBefore,
}

/// A monitor with a flaw.
pub struct Old {
    flaw: Flaw,
    bits: u32,
    /// The number that processors see; `step` is 2 where two maps share the numbers.
    generation: u64,
    step: u64,
    ram: bool,
    entry: Option<u64>,
    record: bool,
}

impl Old {
    pub fn new(flaw: Flaw, bits: u32, first: u64) -> Self {
        let step = if flaw == Flaw::WrapIsZero { 2 } else { 1 };
        Self {
            flaw,
            bits,
            generation: first,
            step,
            ram: false,
            entry: None,
            record: false,
        }
    }

    fn tag(&self, generation: u64) -> u64 {
        generation % (1 << self.bits)
    }

    fn wraps(&self, next: u64) -> bool {
        match self.flaw {
            Flaw::WrapIsZero => self.tag(next) == 0,
            _ => next >> self.bits != self.generation >> self.bits,
        }
    }

    fn install(&mut self, ram: bool, decided_at: u64) -> Answer {
        if ram {
            self.entry = None;
            return Answer::Ram;
        }
        let number = match self.flaw {
            Flaw::StampedAnew => self.generation,
            _ => decided_at,
        };
        self.entry = Some(self.tag(number));
        self.record = true;
        Answer::Mmio
    }

    /// One publication; `between` is run at its inner step, whatever that is.
    fn publish(&mut self, between: &mut dyn FnMut(&mut Self)) {
        let next = self.generation + self.step;
        let zap = self.wraps(next);
        match self.flaw {
            Flaw::ZapAfter => {
                self.generation = next;
                between(self);
                self.entry = self.entry.filter(|_| !zap);
            }
            _ => {
                self.entry = self.entry.filter(|_| !zap);
                if self.flaw == Flaw::ZapBefore {
                    between(self);
                }
                self.generation = next;
                if self.flaw != Flaw::ZapBefore {
                    between(self);
                }
            }
        }
    }

    fn apply(&mut self, change: Change, between: &mut dyn FnMut(&mut Self)) {
        match change {
            Change::Create => {
                self.ram = true;
                self.publish(between);
            }
            Change::Nothing(times) => (0..times).for_each(|_| self.publish(between)),
        }
    }
}

impl Subject for Old {
    fn access(&mut self) -> Answer {
        if self.flaw == Flaw::RecordFirst && self.record {
            return Answer::Mmio;
        }
        if self.entry == Some(self.tag(self.generation)) {
            return Answer::Mmio;
        }
        self.install(self.ram, self.generation)
    }

    fn change(&mut self, change: Change) {
        self.apply(change, &mut |_| {});
    }

    fn access_during(&mut self, change: Change, when: When) -> Answer {
        let mut answer = None;
        match when {
            When::Decided => {
                let (ram, generation) = (self.ram, self.generation);
                self.change(change);
                if self.flaw == Flaw::None {
                    return self.access(); // no longer current: decided again
                }
                answer = Some(self.install(ram, generation));
            }
            When::Publishing => self.apply(change, &mut |me| answer = Some(me.access())),
        }
        answer.expect("the change was made")
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}

/// 2013: an entry whose fields are read without masking the others out.
pub mod packing {
    /// Frame in 12–51, access in 1–2, tag in 3–11 and 52–61.
    pub fn encode_2013(gfn: u64, access: u64, generation: u64) -> u64 {
        gfn << 12 | access << 1 | (generation & 0x1ff) << 3 | (generation >> 9 & 0x3ff) << 52
    }

    pub fn gfn_2013(entry: u64) -> u64 {
        entry >> 12
    }

    pub fn access_2013(entry: u64) -> u64 {
        (entry & 0xfff) >> 1
    }

    /// 2018: bits that are forced to one displace five bits of the frame, which are kept higher.
    pub const FORCED: u64 = 0x1f << 41;

    pub fn encode_2018(gpa: u64) -> u64 {
        gpa & !FORCED | FORCED | (gpa & FORCED) << 5
    }

    /// The moved bits are put back, and not taken out of where they were kept.
    pub fn gpa_2018(entry: u64) -> u64 {
        entry & !FORCED | entry >> 5 & FORCED
    }

    /// 2019: the kind of an entry moved into bits that the tag reaches.
    pub const KIND: u64 = 0b11 << 52;

    pub fn encode_2019(generation: u64) -> u64 {
        KIND & 1 << 52 | (generation & 0x1ff) << 3 | (generation >> 9 & 0x3ff) << 52
    }

    /// 2019: the shift of the upper half got lost: it repeats the low bits.
    pub fn tag_2020(generation: u64) -> u64 {
        let entry = (generation & 0x1ff) << 3 | (generation & 0x3ff) << 52 >> 9;
        let low = entry >> 3 & 0x1ff;
        let high = entry >> 52 & 0x3ff;
        low | high << 9
    }
}
