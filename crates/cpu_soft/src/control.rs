//! Control registers, model-specific registers, time (SDM vol. 3, 2.5; vol. 4).

use umbra_mmu::Scope;
use umbra_slots::Gpa;
use umbra_x86::cpuid::Leaf;
use umbra_x86::state::{Segment, seg};
use umbra_x86::{cr0, cr4, efer, msr};

use crate::cpu::{Cpu, Trap};

/// Bits of CR4 whose change flushes all translations.
const CR4_PAGING: u64 =
    cr4::PSE | cr4::PAE | cr4::PGE | cr4::LA57 | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::PKE;

/// The bits of EFER that exist.
pub const EFER_ALLOWED: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;

/// CR3 bit 63: keep the translations of the new PCID.
const NO_FLUSH: u64 = 1 << 63;

/// Tells whether every byte of a page attribute table is a memory type (SDM vol. 3, 12.12.2).
pub fn known_pat(value: u64) -> bool {
    let known = |kind: &u8| matches!(kind, 0 | 1 | 4..=7);
    value.to_le_bytes().iter().all(known)
}

/// Tells whether MSR_KVM_ASYNC_PF_EN asks for nothing that CPUID does not announce.
pub fn known_async_pf(value: u64) -> bool {
    const RESERVED: u64 = 3 << 4;
    const UNANNOUNCED: u64 = 3 << 2;
    value & (RESERVED | UNANNOUNCED) == 0
}

impl Cpu {
    /// MOV CR0.
    pub fn set_cr0(&mut self, value: u64) -> Result<(), Trap> {
        let paging = value & cr0::PG != 0;
        let bad = value >> 32 != 0
            || paging && value & cr0::PE == 0
            || value & cr0::NW != 0 && value & cr0::CD == 0
            || !paging && self.cr4 & cr4::PCIDE != 0
            || !paging && self.long_code();
        if bad {
            return Err(self.gp(0));
        }
        let value = value & cr0::DEFINED | cr0::ET;
        let changed = value ^ self.cr0;
        let mut efer = self.efer;
        if changed & cr0::PG != 0 {
            if paging && efer & efer::LME != 0 {
                if self.cr4 & cr4::PAE == 0 || self.seg[seg::CS].attr & Segment::L != 0 {
                    return Err(self.gp(0));
                }
                efer |= efer::LMA;
            } else {
                efer &= !efer::LMA;
            }
        }
        let pae = paging && self.cr4 & cr4::PAE != 0 && efer & efer::LMA == 0;
        if pae && changed & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            self.load_pdptes(self.cr3)?;
        }
        self.cr0 = value;
        self.efer = efer;
        if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
            if changed & (cr0::PG | cr0::PE) != 0 {
                self.mmu.guest_flush(Scope::All);
            }
            self.pool.clear();
            self.refresh_paging();
        }
        self.refresh_mode();
        Ok(())
    }

    fn load_pdptes(&mut self, cr3: u64) -> Result<(), Trap> {
        let before = self.mmu.pdptes();
        let loaded = self.mmu.load_pdptes(cr3);
        self.drain();
        if self.mmu.pdptes() != before {
            // Another address space under the same CR3, of which no shadow entry was dropped.
            self.pool.clear();
        }
        loaded.map_err(|_| self.gp(0))
    }

    /// MOV CR3.
    pub fn set_cr3(&mut self, value: u64) -> Result<(), Trap> {
        let pcid = self.cr4 & cr4::PCIDE != 0;
        let keep = pcid && value & NO_FLUSH != 0;
        let value = if pcid { value & !NO_FLUSH } else { value };
        if self.long_mode() {
            let width = self.cpuid.get(0x8000_0008, 0).eax & 0xff;
            if value >> width.clamp(32, 52) != 0 {
                return Err(self.gp(0));
            }
        } else if self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 {
            self.load_pdptes(value)?;
        }
        self.cr3 = value;
        self.refresh_paging();
        if keep {
            return Ok(());
        }
        let scope = if pcid {
            Scope::Pcid((value & 0xfff) as u16)
        } else {
            Scope::NonGlobal
        };
        self.mmu.guest_flush(scope);
        self.drain();
        let epoch = self.mmu_epoch();
        if pcid {
            self.pool
                .clear_non_global(|cr3| cr3 & 0xfff == value & 0xfff && cr3 != value);
        }
        self.stats.context_flushes += self.pool.load(value, epoch);
        Ok(())
    }

    /// The bits of CR4 that this model has.
    pub fn cr4_allowed(&self) -> u64 {
        let one = self.cpuid.get(1, 0);
        let seven = self.cpuid.get(7, 0);
        let mut allowed = cr4::TSD
            | cr4::DE
            | cr4::PSE
            | cr4::PAE
            | cr4::MCE
            | cr4::PGE
            | cr4::PCE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT;
        for (has, bits) in [
            (one.edx >> 1 & 1, cr4::VME | cr4::PVI),
            (one.ecx >> 17 & 1, cr4::PCIDE),
            (one.ecx >> 26 & 1, cr4::OSXSAVE),
            (seven.ebx & 1, cr4::FSGSBASE),
            (seven.ebx >> 7 & 1, cr4::SMEP),
            (seven.ebx >> 20 & 1, cr4::SMAP),
            (seven.ecx >> 2 & 1, cr4::UMIP),
            (seven.ecx >> 3 & 1, cr4::PKE),
            (seven.ecx >> 16 & 1, cr4::LA57),
        ] {
            if has != 0 {
                allowed |= bits;
            }
        }
        allowed
    }

    /// MOV CR4.
    pub fn set_cr4(&mut self, value: u64) -> Result<(), Trap> {
        let changed = value ^ self.cr4;
        let long = self.long_mode();
        let bad = value & !self.cr4_allowed() != 0
            || long && value & cr4::PAE == 0
            || long && changed & cr4::LA57 != 0
            || changed & value & cr4::PCIDE != 0 && (!long || self.cr3 & 0xfff != 0);
        if bad {
            return Err(self.gp(0));
        }
        if changed & CR4_PAGING != 0 {
            if self.cr0 & cr0::PG != 0 && value & cr4::PAE != 0 && !long {
                self.load_pdptes(self.cr3)?;
            }
            self.cr4 = value;
            self.mmu.guest_flush(Scope::All);
            self.pool.clear();
            self.refresh_paging();
        }
        self.cr4 = value;
        Ok(())
    }

    /// Sets the base of FS or GS alone.
    pub fn set_segment_base(&mut self, index: usize, base: u64) {
        self.seg[index].base = base;
        self.seg_base[index] = base;
    }

    /// The guest's time-stamp counter.
    #[inline]
    pub fn tsc(&self) -> u64 {
        self.clock.now().wrapping_add(self.msrs.tsc_offset)
    }

    /// CPUID, with the bits that follow the control registers.
    pub fn cpuid_leaf(&self, function: u32, index: u32) -> Leaf {
        let basic_max = self.cpuid.get(0, 0).eax;
        let function = match function {
            0x4000_0000..0x5000_0000 => function,
            0x8000_0000.. if function > self.cpuid.get(0x8000_0000, 0).eax => basic_max,
            0x8000_0000.. => function,
            _ if function > basic_max => basic_max,
            _ => function,
        };
        let mut leaf = self.cpuid.get(function, index);
        if function == 1
            && self
                .apic
                .read_msr(msr::APIC_BASE)
                .is_some_and(|b| b >> 11 & 1 == 0)
        {
            leaf.edx &= !(1 << 9);
        }
        if function == 1 && self.cr4 & cr4::OSXSAVE != 0 {
            leaf.ecx |= 1 << 27; // OSXSAVE
        }
        if function == 0xd && leaf.eax != 0 && index < 2 {
            let (standard, compacted) = self.xsave_sizes();
            leaf.ebx = if index == 0 { standard } else { compacted };
        }
        if function == 7 && index == 0 && self.cr4 & cr4::PKE != 0 {
            leaf.ecx |= 1 << 4; // OSPKE
        }
        leaf
    }

    /// RDMSR.
    pub fn read_msr(&mut self, number: u32) -> Result<u64, Trap> {
        let m = &self.msrs;
        Ok(match number {
            msr::TSC => self.tsc(),
            msr::TSC_ADJUST => m.tsc_adjust,
            msr::APIC_BASE | msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                return self.apic.read_msr(number).ok_or_else(|| self.gp(0));
            }
            msr::SYSENTER_CS => m.sysenter_cs,
            msr::SYSENTER_ESP => m.sysenter_esp,
            msr::SYSENTER_EIP => m.sysenter_eip,
            msr::MISC_ENABLE => m.misc_enable,
            msr::PAT => m.pat,
            msr::EFER => self.efer,
            msr::STAR => m.star,
            msr::LSTAR => m.lstar,
            msr::CSTAR => m.cstar,
            msr::FMASK => m.fmask,
            msr::FS_BASE => self.seg[seg::FS].base,
            msr::GS_BASE => self.seg[seg::GS].base,
            msr::KERNEL_GS_BASE => m.kernel_gs_base,
            msr::TSC_AUX => m.tsc_aux,
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => m.kvm_system_time,
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => m.kvm_wall_clock,
            msr::KVM_ASYNC_PF_EN => m.kvm_async_pf,
            _ => {
                return self
                    .constant_msr(number)
                    .ok_or_else(|| self.unknown_msr(number));
            }
        })
    }

    /// An MSR that reads the same at all times.
    pub fn constant_msr(&self, number: u32) -> Option<u64> {
        Some(match number {
            msr::BIOS_SIGN_ID => 1 << 32,
            msr::ARCH_CAPABILITIES if self.cpuid.get(7, 0).edx >> 29 & 1 != 0 => {
                crate::model::ARCH_CAPABILITIES
            }
            msr::MCG_CAP | msr::MCG_STATUS => 0,
            _ => return None,
        })
    }

    fn unknown_msr(&mut self, number: u32) -> Trap {
        tracing::debug!(
            msr = format_args!("{number:#x}"),
            rip = self.rip,
            "unknown MSR read"
        );
        self.gp(0)
    }

    /// WRMSR.
    pub fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Trap> {
        match number {
            msr::TSC => {
                let before = self.msrs.tsc_offset;
                self.set_tsc_offset(value.wrapping_sub(self.clock.now()));
                let moved = self.msrs.tsc_offset.wrapping_sub(before);
                self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(moved);
            }
            msr::TSC_ADJUST => {
                let moved = value.wrapping_sub(self.msrs.tsc_adjust);
                self.msrs.tsc_adjust = value;
                self.set_tsc_offset(self.msrs.tsc_offset.wrapping_add(moved));
            }
            msr::APIC_BASE | msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let written = self.apic.write_msr(number, value);
                self.timer_changed();
                return written.ok_or_else(|| self.gp(0));
            }
            // A microcode update or its signature: accepted, nothing happens.
            0x79 | msr::BIOS_SIGN_ID => {}
            msr::SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            msr::SYSENTER_ESP => self.msrs.sysenter_esp = self.canonical_value(value)?,
            msr::SYSENTER_EIP => self.msrs.sysenter_eip = self.canonical_value(value)?,
            msr::MCG_STATUS if value == 0 => {}
            msr::MISC_ENABLE => self.msrs.misc_enable = value,
            msr::PAT => self.set_pat(value)?,
            msr::EFER => self.set_efer(value)?,
            msr::STAR => self.msrs.star = value,
            msr::LSTAR => self.msrs.lstar = self.canonical_value(value)?,
            msr::CSTAR => self.msrs.cstar = self.canonical_value(value)?,
            msr::FMASK => self.msrs.fmask = value & 0xffff_ffff,
            msr::FS_BASE => {
                let base = self.canonical_value(value)?;
                self.set_segment_base(seg::FS, base);
            }
            msr::GS_BASE => {
                let base = self.canonical_value(value)?;
                self.set_segment_base(seg::GS, base);
            }
            msr::KERNEL_GS_BASE => self.msrs.kernel_gs_base = self.canonical_value(value)?,
            msr::TSC_AUX if value >> 32 == 0 => self.msrs.tsc_aux = value,
            msr::KVM_SYSTEM_TIME | msr::KVM_SYSTEM_TIME_NEW => self.set_kvm_system_time(value),
            msr::KVM_WALL_CLOCK | msr::KVM_WALL_CLOCK_NEW => self.set_kvm_wall_clock(value),
            msr::KVM_ASYNC_PF_EN => self.set_kvm_async_pf(value)?,
            _ => {
                tracing::debug!(
                    msr = format_args!("{number:#x}"),
                    value = format_args!("{value:#x}"),
                    rip = self.rip,
                    "unknown MSR written"
                );
                return Err(self.gp(0));
            }
        }
        Ok(())
    }

    fn canonical_value(&mut self, value: u64) -> Result<u64, Trap> {
        if self.canonical_at_most(value) {
            Ok(value)
        } else {
            Err(self.gp(0))
        }
    }

    fn set_pat(&mut self, value: u64) -> Result<(), Trap> {
        if !known_pat(value) {
            return Err(self.gp(0));
        }
        self.msrs.pat = value;
        Ok(())
    }

    fn set_efer(&mut self, value: u64) -> Result<(), Trap> {
        let changed = value ^ self.efer;
        let paging = self.cr0 & cr0::PG != 0;
        if value & !EFER_ALLOWED != 0 || changed & efer::LME != 0 && paging {
            return Err(self.gp(0));
        }
        self.efer = value & !efer::LMA | self.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.mmu.guest_flush(Scope::All);
            self.pool.clear();
        }
        self.refresh_paging();
        Ok(())
    }

    fn set_tsc_offset(&mut self, offset: u64) {
        self.msrs.tsc_offset = offset;
        self.apic.set_tsc_offset(offset as i64);
        self.timer_changed();
        let system_time = self.msrs.kvm_system_time;
        if system_time & 1 != 0 {
            self.set_kvm_system_time(system_time);
        }
    }

    /// The APIC's timer may be due at another time now.
    pub fn timer_changed(&mut self) {
        self.timer_due = self.apic.next_timer().unwrap_or(u64::MAX);
        self.budget = 0;
    }

    /// Writes the time structure of this processor.
    fn set_kvm_system_time(&mut self, value: u64) {
        self.msrs.kvm_system_time = value;
        if value & 1 == 0 {
            return;
        }
        let record = self.system_time();
        self.write_physical(Gpa(value & !1), &record);
    }

    /// The time structure: system time is the clock, the time-stamp counter runs at 1 GHz beside it,
    /// so multiplier and shift are those of one to one.
    pub fn system_time(&self) -> [u8; 32] {
        // version(4) pad(4) tsc_timestamp(8) system_time(8) mul(4) shift(1) flags(1) pad(2)
        let mut record = [0u8; 32];
        record[0..4].copy_from_slice(&2u32.to_le_bytes());
        record[8..16].copy_from_slice(&self.msrs.tsc_offset.to_le_bytes());
        record[24..28].copy_from_slice(&0x8000_0000u32.to_le_bytes());
        record[28] = 1; // ns = (ticks << 1) * 2^31 >> 32
        record[29] = 1; // PVCLOCK_TSC_STABLE_BIT
        record
    }

    /// Lets the host say when a page is away (Linux's `Documentation/virt/kvm/x86/msr.rst`). No page
    /// of this machine ever is, so there is nothing to say. Delivery by interrupt and to a nested
    /// hypervisor are features that CPUID does not announce.
    fn set_kvm_async_pf(&mut self, value: u64) -> Result<(), Trap> {
        if !known_async_pf(value) {
            return Err(self.gp(0));
        }
        self.msrs.kvm_async_pf = value;
        Ok(())
    }

    /// Writes the wall-clock time at which the clock read zero.
    fn set_kvm_wall_clock(&mut self, value: u64) {
        self.msrs.kvm_wall_clock = value;
        let up = std::time::Duration::from_nanos(self.clock.now());
        let boot = umbra_clock::Clock::wall().saturating_sub(up);
        let mut record = [0u8; 12];
        record[0..4].copy_from_slice(&2u32.to_le_bytes());
        record[4..8].copy_from_slice(&(boot.as_secs() as u32).to_le_bytes());
        record[8..12].copy_from_slice(&boot.subsec_nanos().to_le_bytes());
        self.write_physical(Gpa(value), &record);
    }

    /// Writes guest RAM by physical address, as a device would: shadow tables and decoded code, this
    /// processor's too, must hear of it. What is no RAM is left alone.
    pub fn write_physical(&mut self, gpa: Gpa, data: &[u8]) {
        if self.write_for_device(gpa, data).is_err() {
            tracing::warn!(%gpa, "the guest put a paravirtual clock where there is no memory");
        }
        self.code.written_by_device(gpa.0, data.len() as u64);
        self.drain();
    }
}
