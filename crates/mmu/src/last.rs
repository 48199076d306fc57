//! The last MMIO translations of one processor: answers without the MMU lock.
//!
//! A driver hammers one register page. What the shadow said of that page is kept beside the
//! processor, one record for reads and one for writes, each good for an access that is exactly
//! like the one that made it (rule R32: rights are not computed again, so nothing else may hit).
//!
//! A record carries the whole generation of the map that decided, never the tag (rules R9, R18):
//! no change of the map can be missed, and a wrap needs no action here. It carries no map of its
//! own because a processor has one MMU and that has one map (rule R33).
//!
//! For the guest a record is a TLB entry: it goes with every flush that covers the page, and with
//! every change of the registers that translation depends on (rule R31).

use umbra_slots::{Generation, Gfn, Gpa};
use umbra_x86::Gva;

use crate::rights::{Access, AccessKind};
use crate::translation::{Kind, Translation};

/// One translation. The page may be number 0 (rule R4): that there is a record at all is told by
/// the `Option` around it.
#[derive(Clone, Copy, Debug)]
struct Record {
    page: u64,
    access: Access,
    frame: Gfn,
    generation: Generation,
}

/// The records of one processor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LastMmio {
    read: Option<Record>,
    write: Option<Record>,
}

impl LastMmio {
    fn slot(&mut self, access: Access) -> &mut Option<Record> {
        match access.kind {
            AccessKind::Write => &mut self.write,
            AccessKind::Read | AccessKind::Fetch => &mut self.read,
        }
    }

    /// Answers if the same access to the same page was MMIO in the map of now.
    #[inline]
    pub fn hit(
        &mut self,
        gva: Gva,
        access: Access,
        now: impl FnOnce() -> Generation,
    ) -> Option<Translation> {
        let record = self.slot(access).as_ref()?;
        if record.page != gva.0 >> 12 || record.access != access || record.generation != now() {
            return None;
        }
        Some(Translation {
            gpa: Gpa(record.frame.gpa().0 | gva.page_offset()),
            kind: Kind::Mmio {
                generation: record.generation,
            },
        })
    }

    /// Remembers an answer of the shadow, if it is MMIO.
    pub fn note(&mut self, gva: Gva, access: Access, answer: &Translation) {
        let Kind::Mmio { generation } = answer.kind else {
            return;
        };
        *self.slot(access) = Some(Record {
            page: gva.0 >> 12,
            access,
            frame: answer.gpa.gfn(),
            generation,
        });
    }

    /// Forgets one page.
    pub fn forget_page(&mut self, gva: Gva) {
        for slot in [&mut self.read, &mut self.write] {
            if slot.is_some_and(|record| record.page == gva.0 >> 12) {
                *slot = None;
            }
        }
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}
