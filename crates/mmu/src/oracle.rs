//! A second opinion: where an address lands according to nothing but the manual, the guest's
//! tables and the map (rule R40).
//!
//! Deliberately plain, and deliberately not the walker's code: it shares the constants of the
//! manual and no more. With [`Audit::EveryFault`](crate::Audit::EveryFault) every answer is
//! compared with it. Other processors may edit the tables, and the map may change, between the
//! answer and the comparison: a difference counts only if it is still there with the map held
//! still, under the MMU lock, and after tables that may be out of sync were read again.

use umbra_slots::{Gpa, Snapshot, Target};
use umbra_x86::{Gva, PageFaultError as Error, cr0, cr4, efer, pte};

use crate::mode::PagingRegs;
use crate::rights::{Access, AccessKind};
use crate::translation::{Kind, PageFault, Translation};
use crate::vcpu::VcpuMmu;

/// What a plain walk needs to know of a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    pub regs: PagingRegs,
    pub pdptes: [u64; 4],
    pub phys_bits: u32,
}

/// Where a plain walk ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    gpa: Gpa,
    write: bool,
    user: bool,
    execute: bool,
    key: u32,
    dirty: bool,
    paging: bool,
}

/// One entry that a plain walk read.
struct Line {
    level: u32,
    at: u64,
    raw: u64,
}

impl Registers {
    fn cr4(&self, bit: u64) -> bool {
        self.regs.cr4 & bit != 0
    }

    fn nxe(&self) -> bool {
        self.regs.efer & efer::NXE != 0 && self.cr4(cr4::PAE)
    }

    fn long(&self) -> bool {
        self.regs.efer & efer::LMA != 0
    }

    /// Walks; what is read is appended to `lines`. `Err` holds the P and RSVD bits.
    fn walk(&self, map: &Snapshot, gva: u64, lines: &mut Vec<Line>) -> Result<Found, u32> {
        let mut found = Found {
            gpa: Gpa(gva & 0xffff_ffff),
            write: true,
            user: true,
            execute: true,
            key: 0,
            dirty: true,
            paging: false,
        };
        if self.regs.cr0 & cr0::PG == 0 {
            return Ok(found);
        }
        found.paging = true;
        let wide = self.cr4(cr4::PAE);
        let gva = if self.long() { gva } else { gva & 0xffff_ffff };
        let (mut level, mut table) = match (wide, self.long(), self.cr4(cr4::LA57)) {
            (false, _, _) => (2, self.regs.cr3 & 0xffff_f000),
            (true, true, true) => (5, self.regs.cr3 & pte::FRAME),
            (true, true, false) => (4, self.regs.cr3 & pte::FRAME),
            (true, false, _) => {
                let pdpte = self.pdptes[(gva >> 30) as usize & 3];
                if pdpte & pte::P == 0 {
                    return Err(0);
                }
                (2, pdpte & pte::FRAME)
            }
        };
        loop {
            let (bits, size) = if wide { (9, 8) } else { (10, 4) };
            let shift = 12 + bits * (level - 1);
            let at = table + (gva >> shift & ((1 << bits) - 1)) * size;
            let mut bytes = [0xff; 8];
            if !wide {
                bytes[4..].fill(0);
            }
            let width = size as usize;
            if map.read(Gpa(at), &mut bytes[..width]).is_err() {
                bytes[..width].fill(0xff);
            }
            let raw = u64::from_le_bytes(bytes);
            lines.push(Line { level, at, raw });
            if raw & pte::P == 0 {
                return Err(0);
            }
            let large = self.is_large(level, raw);
            if raw & self.reserved_bits(level, large) != 0 {
                return Err(Error::PRESENT | Error::RESERVED);
            }
            found.write &= raw & pte::RW != 0;
            found.user &= raw & pte::US != 0;
            found.execute &= !wide || raw & pte::XD == 0;
            let frame = if wide {
                raw & pte::FRAME
            } else {
                raw & 0xffff_f000
            };
            if level > 1 && !large {
                table = frame;
                level -= 1;
                continue;
            }
            let offset = (1 << shift) - 1;
            let mut base = frame & !offset;
            if !wide && large {
                base |= (raw >> 13 & 0xff) << 32;
            }
            found.gpa = Gpa(base | gva & offset);
            found.dirty = raw & pte::D != 0;
            found.key = if self.long() {
                (raw >> pte::PKEY_SHIFT & 15) as u32
            } else {
                0
            };
            return Ok(found);
        }
    }

    fn is_large(&self, level: u32, raw: u64) -> bool {
        let can = match level {
            2 => self.cr4(cr4::PAE) || self.cr4(cr4::PSE),
            3 => true,
            _ => false,
        };
        can && raw & pte::PS != 0
    }

    /// SDM vol. 3, figures 4-4, 4-7 and 4-11.
    fn reserved_bits(&self, level: u32, large: bool) -> u64 {
        if !self.cr4(cr4::PAE) {
            if !large {
                return 0;
            }
            let extra = (self.phys_bits.min(40)) - 32;
            return 0x3f_e000 & !(((1u64 << extra) - 1) << 13);
        }
        let mut reserved = 0;
        for bit in self.phys_bits..52 {
            reserved |= 1 << bit;
        }
        if !self.nxe() {
            reserved |= pte::XD;
        }
        if !self.long() {
            reserved |= 0x7ff0_0000_0000_0000;
        }
        match (level, large) {
            (2, true) => reserved | 0x001f_e000,
            (3, true) => reserved | 0x3fff_e000,
            (4 | 5, _) => reserved | pte::PS,
            _ => reserved,
        }
    }

    fn key_bits(&self, found: &Found) -> (bool, bool) {
        let on = self.long() && self.cr4(cr4::PKE) && found.user;
        let bits = self.regs.pkru >> (found.key * 2);
        (on && bits & 1 != 0, on && bits & 2 != 0)
    }

    /// SDM vol. 3, 4.6: `Some` error bits besides those of the access if it is forbidden.
    fn forbids(&self, found: &Found, access: Access) -> Option<u32> {
        if !found.paging {
            return None;
        }
        let wp = self.regs.cr0 & cr0::WP != 0;
        let data = access.kind != AccessKind::Fetch;
        let writes = access.kind == AccessKind::Write;
        let mut forbidden = false;
        if access.user && !found.user {
            forbidden = true;
        }
        if writes && !found.write && (access.user || wp) {
            forbidden = true;
        }
        if !data && !found.execute {
            forbidden = true;
        }
        if !access.user && found.user {
            if data && self.cr4(cr4::SMAP) && !access.ac {
                forbidden = true;
            }
            if !data && self.cr4(cr4::SMEP) {
                forbidden = true;
            }
        }
        let (no_access, no_write) = self.key_bits(found);
        let key = data && (no_access || (no_write && writes && (access.user || wp)));
        match (key, forbidden) {
            (true, _) => Some(Error::PRESENT | Error::PKEY),
            (false, true) => Some(Error::PRESENT),
            (false, false) => None,
        }
    }

    fn code(&self, access: Access, bits: u32) -> Error {
        let mut code = bits;
        if access.user {
            code |= Error::USER;
        }
        match access.kind {
            AccessKind::Write => code |= Error::WRITE,
            AccessKind::Fetch if self.nxe() || self.cr4(cr4::SMEP) => code |= Error::FETCH,
            _ => {}
        }
        Error(code)
    }

    /// The right answer.
    pub fn resolve(&self, map: &Snapshot, gva: Gva, access: Access) -> Result<Found, Error> {
        let found = self
            .walk(map, gva.0, &mut Vec::new())
            .map_err(|bits| self.code(access, bits))?;
        match self.forbids(&found, access) {
            Some(bits) => Err(self.code(access, bits)),
            None => Ok(found),
        }
    }

    /// Tells whether `answer` is right.
    pub fn agrees(
        &self,
        map: &Snapshot,
        gva: Gva,
        access: Access,
        answer: &Result<Translation, PageFault>,
    ) -> bool {
        match (self.resolve(map, gva, access), answer) {
            (Err(error), Err(fault)) => error == fault.error,
            (Ok(found), Ok(given)) => {
                found.gpa == given.gpa && self.agrees_on_kind(map, &found, access, &given.kind)
            }
            _ => false,
        }
    }

    fn agrees_on_kind(&self, map: &Snapshot, found: &Found, access: Access, kind: &Kind) -> bool {
        let writes = access.kind == AccessKind::Write;
        let page = Gpa(found.gpa.0 & !0xfff);
        let may = |kind| {
            let access = Access { kind, ..access };
            self.forbids(found, access).is_none()
        };
        match (map.resolve(page), kind) {
            (Target::Ram(ram), Kind::Ram(given)) => {
                given.page == ram.host
                    && given.read == may(AccessKind::Read)
                    && given.fetch == may(AccessKind::Fetch)
                    && (!given.write || (may(AccessKind::Write) && found.dirty && !ram.read_only))
                    && (!writes || given.write)
            }
            (Target::Ram(ram), Kind::Tracked) => writes && !ram.read_only,
            (Target::Ram(ram), Kind::ReadOnly) => writes && ram.read_only,
            (Target::Io { .. } | Target::Nothing, Kind::Mmio { .. }) => true,
            _ => false,
        }
    }

    /// Reads up to `len` bytes of RAM from an address on: as many as there are, whoever may read
    /// them.
    pub fn peek_bytes(&self, map: &Snapshot, gva: Gva, len: usize) -> Vec<u8> {
        let byte = |n: u64| {
            let at = gva.0.wrapping_add(n);
            let found = self.walk(map, at, &mut Vec::new()).ok()?;
            let mut byte = [0];
            map.read(found.gpa, &mut byte).ok()?;
            Some(byte[0])
        };
        (0..len as u64).map_while(byte).collect()
    }

    /// The walk, one line a level.
    pub fn describe(&self, map: &Snapshot, gva: Gva) -> Vec<String> {
        let mut lines = Vec::new();
        let end = self.walk(map, gva.0, &mut lines);
        let mut text: Vec<String> = lines
            .iter()
            .map(|l| format!("level {}: entry at {:#x} is {:#018x}", l.level, l.at, l.raw))
            .collect();
        text.push(match end {
            Err(0) => "not present".to_owned(),
            Err(_) => "a reserved bit is set".to_owned(),
            Ok(found) => {
                let what = match map.resolve(found.gpa) {
                    Target::Ram(_) => "RAM",
                    Target::Io { .. } => "an I/O window",
                    Target::Nothing => "nothing",
                };
                format!(
                    "{} is {what} (write {}, user {}, execute {}, dirty {})",
                    found.gpa, found.write, found.user, found.execute, found.dirty
                )
            }
        });
        text
    }
}

/// How often a difference may be another processor's doing.
const RACES_MAX: u32 = 64;
/// How often a table that is out of sync may be written just after it was read.
const REREADS_MAX: u32 = 16;

impl VcpuMmu {
    /// Compares an answer with the oracle's, and gives it, or a later one, back.
    ///
    /// # Panics
    /// If the shadow contradicts the guest's tables.
    pub(crate) fn verify(
        &mut self,
        gva: Gva,
        access: Access,
        mut answer: Result<Translation, PageFault>,
    ) -> Result<Translation, PageFault> {
        let mmu = self.mmu().clone();
        mmu.audit_sometimes();
        for _ in 0..RACES_MAX {
            if self
                .registers()
                .agrees(&mmu.space.load(), gva, access, &answer)
            {
                return answer;
            }
            self.judge(gva, access);
            self.forget_last(); // as good as a TLB entry: the guest has not flushed what it wrote
            // Asked anew, because the processor was outside meanwhile.
            answer = self.ask(gva, access);
        }
        let walk = self.describe_walk(gva).join("\n  ");
        panic!("R40: {gva} {access:?} was answered {answer:?}, but the tables say\n  {walk}");
    }

    /// Looks again, with the map held still and nobody else in the shadow. Tables that may be out
    /// of sync are read again, more than once: others may be writing them.
    ///
    /// # Panics
    /// If the shadow still contradicts the tables.
    fn judge(&mut self, gva: Gva, access: Access) {
        let mmu = self.mmu().clone();
        let map = self.hold(&mmu);
        if let Some(given) = self.ask_last(gva, access)
            && matches!(map.resolve(given.gpa), Target::Ram(_))
        {
            panic!("R40: {gva} {access:?} was last {given:?}, and there is RAM now");
        }
        let mut tables = mmu.tables.lock();
        let registers = self.registers();
        let wrong = |shadow: Option<Translation>| {
            shadow.filter(|&given| !registers.agrees(&map, gva, access, &Ok(given)))
        };
        let mut contradiction = None;
        for _ in 0..REREADS_MAX {
            contradiction = wrong(self.peek(&mut tables, gva, access));
            if contradiction.is_none() {
                return;
            }
            tables.flush(&map, self.port());
        }
        if let Some(given) = contradiction {
            let walk = registers.describe(&map, gva).join("\n  ");
            panic!("R40: {gva} {access:?} is {given:?}, but the tables say\n  {walk}");
        }
    }
}
