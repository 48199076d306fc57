//! What the guest and its machine do next.

use umbra_fuzz::Source;
use umbra_mmu::{Access, AccessKind, Kind, Scope};
use umbra_slots::Gpa;
use umbra_x86::{Gva, cr0, cr4, efer, pte};

use crate::entries::{Format, POINTERS, address, entry, place, table};
use crate::guest::{Cached, Cpu, Guest};
use crate::map;

/// Cached translations that a processor keeps.
const CACHED: usize = 16;

impl Guest {
    /// Does one thing.
    pub fn step(&mut self, source: &mut Source<'_>) {
        self.cpu().poll();
        match source.u8() & 15 {
            0..5 => self.access(source),
            5..8 => self.write_entry(source),
            8 => self.write_bytes(source),
            9 => self.write_through_cache(source),
            10 => self.device(source),
            11 => self.flush(source),
            12 => self.registers(source),
            13 => map::change(&self.space, source),
            14 => self.harvest(source),
            _ => self.others(source),
        }
    }

    fn access(&mut self, source: &mut Source<'_>) {
        let choice = source.u8();
        let access = Access {
            kind: match choice & 3 {
                0 | 1 => AccessKind::Write,
                2 => AccessKind::Read,
                _ => AccessKind::Fetch,
            },
            user: choice & 4 != 0,
            ac: choice & 8 != 0,
        };
        let cpu = self.cpu();
        let gva = address(cpu.format, source);
        for _ in 0..=choice >> 7 {
            let cpu = self.cpu();
            // A page fault is an answer that the oracle has confirmed.
            let Ok(found) = cpu.vcpu.translate(Gva(gva), access) else {
                return;
            };
            if let Kind::Ram(page) = found.kind {
                cpu.cached.truncate(CACHED - 1);
                let gfn = found.gpa.gfn();
                cpu.cached.insert(0, Cached { gva, gfn, page });
            }
            self.agree(found.gpa, &found.kind);
            if found.kind == Kind::Tracked && choice & 16 != 0 {
                let gpa = Gpa(found.gpa.0 & !7);
                self.tracked(gpa, &entry(source).to_le_bytes());
            }
        }
    }

    fn write_entry(&mut self, source: &mut Source<'_>) {
        let format = self.cpu().format;
        let (at, width) = place(format, source);
        let value = entry(source).to_le_bytes();
        self.tracked(Gpa(at), &value[..width]);
    }

    /// Any bytes of a table, aligned or not.
    fn write_bytes(&mut self, source: &mut Source<'_>) {
        let at = table(source.u8().into()) + u64::from(source.u16() & 0xfff);
        let room = 0x1000 - (at & 0xfff) as usize;
        let len = (1 + source.below(32)).min(room);
        let mut bytes = vec![0; len];
        let given = source.bytes(len);
        bytes[..given.len()].copy_from_slice(given);
        self.tracked(Gpa(at), &bytes);
    }

    fn tracked(&mut self, gpa: Gpa, bytes: &[u8]) {
        let write = |host: std::ptr::NonNull<u8>| {
            // SAFETY: `tracked` gives the host address of `bytes.len()` bytes of RAM; guest RAM is
            // never under a Rust reference.
            unsafe {
                host.copy_from_nonoverlapping(std::ptr::NonNull::from(bytes).cast(), bytes.len())
            }
        };
        // There may be no RAM any more, or none that may be written.
        let _ = self.cpu().vcpu.tracked(gpa, bytes.len(), write);
    }

    /// Writes where a cached translation says, with nobody asked.
    fn write_through_cache(&mut self, source: &mut Source<'_>) {
        let choice = source.u8();
        let (at, _) = place(Format::Level4, source);
        let value = entry(source);
        let cpu = self.cpu();
        let writable: Vec<_> = cpu.cached.iter().filter(|c| c.page.write).collect();
        let Some(cached) = writable.get(usize::from(choice) % writable.len().max(1)) else {
            return;
        };
        let to = cached
            .page
            .page
            .as_ptr()
            .wrapping_add((at & 0xff8) as usize);
        // SAFETY: the translation was given by the MMU and has not been flushed, so its page is
        // mapped; eight bytes at a multiple of eight lie inside the page.
        unsafe { to.cast::<u64>().write_volatile(value) };
    }

    fn device(&mut self, source: &mut Source<'_>) {
        let at = match source.u8() {
            choice @ 0..128 => table(choice.into()) + u64::from(source.u16() & 0xfff),
            128..240 => entry(source) & pte::FRAME | u64::from(source.u16() & 0xfff),
            _ => source.u64(),
        };
        let len = usize::from(source.u8()) * 2;
        let mut bytes = entry(source).to_le_bytes().repeat(64);
        bytes.truncate(len);
        // What is no RAM is refused.
        let _ = self.mmu.write_for_device(Gpa(at), &bytes);
    }

    fn flush(&mut self, source: &mut Source<'_>) {
        let choice = source.u8();
        let cpu = self.cpu();
        let gva = address(cpu.format, source);
        let pcid = (cpu.regs.cr3 & 0xfff) as u16;
        let scope = match choice % 6 {
            0 | 1 => Scope::Page(Gva(gva)),
            2 => Scope::PcidPage(pcid, Gva(gva)),
            3 => Scope::Pcid(pcid),
            4 => Scope::NonGlobal,
            _ => Scope::All,
        };
        cpu.flush(scope, gva);
    }

    fn registers(&mut self, source: &mut Source<'_>) {
        let (format, bits, number) = (source.below(5), source.u16(), u64::from(source.u8()));
        let pkru = source.u32();
        let cpu = self.cpu();
        cpu.format = [
            Format::Level4,
            Format::Level5,
            Format::Pae,
            Format::Bits32,
            Format::Off,
        ][format];
        let has = |bit: u32, value: u64| if bits >> bit & 1 != 0 { value } else { 0 };
        let long = matches!(cpu.format, Format::Level4 | Format::Level5);
        let regs = &mut cpu.regs;
        regs.cr0 = cr0::PE | has(0, cr0::WP);
        regs.cr4 = has(1, cr4::SMEP) | has(2, cr4::SMAP) | has(3, cr4::PGE) | has(4, cr4::PSE);
        regs.cr4 |= has(5, cr4::PKE) | has(6, cr4::LA57);
        regs.efer = has(7, efer::NXE);
        regs.pkru = pkru;
        match cpu.format {
            Format::Off => regs.cr4 |= has(8, cr4::PAE),
            Format::Bits32 => regs.cr0 |= cr0::PG,
            _ => {
                regs.cr0 |= cr0::PG;
                regs.cr4 |= cr4::PAE;
            }
        }
        if long {
            regs.efer |= efer::LME | efer::LMA;
            regs.cr4 &= !cr4::LA57;
            regs.cr4 |= if cpu.format == Format::Level5 {
                cr4::LA57
            } else {
                0
            };
        }
        regs.cr3 = match cpu.format {
            Format::Pae if number & 0x80 == 0 => table(POINTERS) | (number & 0x7f) << 5,
            _ => table(number) | u64::from(bits >> 9 & 3) << 3,
        };
        cpu.vcpu.set_regs(&cpu.regs);
        cpu.cached.clear();
        if cpu.format == Format::Pae {
            // A reserved bit is #GP for the guest, and the registers stay as they were.
            let _ = cpu.vcpu.load_pdptes(cpu.regs.cr3);
        }
        if bits >> 15 == 0 {
            cpu.flush(Scope::All, 0);
        }
    }

    fn harvest(&mut self, source: &mut Source<'_>) {
        map::harvest(&self.space, source);
    }

    fn others(&mut self, source: &mut Source<'_>) {
        match source.u8() & 7 {
            0..3 => self.switch(),
            3 => {
                let gfn = Gpa(table(source.u8().into())).gfn();
                self.cpu().vcpu.flush_writers(gfn);
            }
            4 => {
                // The other processor goes, and a new one comes.
                let other = self.now ^ 1;
                self.cpus[other] = Cpu::new(&self.mmu);
                self.cpus[other].regs.cr3 = table(0);
            }
            5 => {
                let cpu = self.cpu();
                let gva = address(cpu.format, source);
                let _ = cpu.vcpu.describe_walk(Gva(gva));
            }
            _ => {
                let updated = self.space.update("nothing", |_| Ok(()));
                updated.expect("nothing can be refused").wait();
            }
        }
    }
}

impl Cpu {
    /// Flushes what the processor has cached, and tells the MMU.
    fn flush(&mut self, scope: Scope, gva: u64) {
        match scope {
            Scope::Page(_) | Scope::PcidPage(..) => {
                self.cached.retain(|c| c.gva >> 12 != gva >> 12);
            }
            _ => self.cached.clear(),
        }
        self.vcpu.guest_flush(scope);
    }
}
