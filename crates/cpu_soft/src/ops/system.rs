//! System instructions: control and debug registers, descriptor tables, MSRs, CPUID, ports, HLT.
//!
//! What changes translation, privilege or pending events ends its block, so that everything behind
//! it is decoded and checked anew.

use umbra_mmu::AccessKind::{Read, Write};
use umbra_mmu::Scope;
use umbra_x86::state::{DescriptorTable, seg};
use umbra_x86::{Gva, cr4, vector};

use super::ok;
use crate::cpu::{Cpu, Trap};
use crate::op::{Leave, Op, next};
use crate::regs::offset;

/// Goes on behind `op` after looking at events.
pub(super) fn look(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.rip = cpu.rip_after(op);
    Leave::Look
}

fn require_cpl0(cpu: &mut Cpu) -> Result<(), Trap> {
    if cpu.cpl == 0 && !cpu.v86() {
        Ok(())
    } else {
        Err(cpu.gp(0))
    }
}

/// UMIP: SGDT, SIDT, SLDT, STR, SMSW only at level 0.
fn umip(cpu: &mut Cpu) -> Result<(), Trap> {
    if cpu.cr4 & cr4::UMIP != 0 && cpu.cpl != 0 {
        Err(cpu.gp(0))
    } else {
        Ok(())
    }
}

/// An instruction that is not implemented, or does not exist.
pub fn undefined(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.ud();
    cpu.fault(op)
}

/// An instruction that reaches beyond the limit of CS (SDM vol. 3, 5.3), or has more than fifteen
/// bytes (6.15, "Interrupt 13").
pub fn beyond_limit(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.gp(0);
    cpu.fault(op)
}

/// The same as [`undefined`] for one that exists: says so, once for each encoding.
pub fn unimplemented(cpu: &mut Cpu, op: &Op) -> Leave {
    let rip = cpu.rip_of(op);
    let mut bytes = [0; 15];
    let la = cpu.seg[seg::CS].base.wrapping_add(rip);
    let len = usize::from(op.len).min(15);
    if cpu.read(la, &mut bytes[..len]).is_ok() && cpu.reported.insert(bytes) {
        tracing::warn!(
            rip = format_args!("{rip:#x}"),
            bytes = format_args!("{:02x?}", &bytes[..len]),
            "instruction is not implemented: the guest gets #UD"
        );
    }
    cpu.ud();
    cpu.fault(op)
}

/// HLT.
pub fn hlt(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    cpu.rip = cpu.rip_after(op);
    Leave::Halt
}

/// CPUID.
pub fn cpuid(cpu: &mut Cpu, op: &Op) -> Leave {
    let (function, index) = (cpu.regs.get::<4>(0) as u32, cpu.regs.get::<4>(8) as u32);
    let leaf = cpu.cpuid_leaf(function, index);
    cpu.regs.set::<4>(offset(0), leaf.eax.into());
    cpu.regs.set::<4>(offset(3), leaf.ebx.into());
    cpu.regs.set::<4>(offset(1), leaf.ecx.into());
    cpu.regs.set::<4>(offset(2), leaf.edx.into());
    // Serialising: what other processors overwrote is noticed before the next block.
    look(cpu, op)
}

/// SERIALIZE.
pub fn serialize(cpu: &mut Cpu, op: &Op) -> Leave {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    look(cpu, op)
}

/// RDTSC.
pub fn rdtsc(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, read_counter(cpu));
    next(cpu, op)
}

/// RDTSCP.
pub fn rdtscp(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, read_counter(cpu));
    cpu.regs.set::<4>(offset(1), cpu.msrs.tsc_aux);
    next(cpu, op)
}

fn read_counter(cpu: &mut Cpu) -> Result<(), Trap> {
    if cpu.cr4 & cr4::TSD != 0 && cpu.cpl != 0 {
        return Err(cpu.gp(0));
    }
    let now = cpu.tsc();
    cpu.regs.set::<4>(offset(0), now);
    cpu.regs.set::<4>(offset(2), now >> 32);
    Ok(())
}

/// RDPMC: there are no counters.
pub fn rdpmc(cpu: &mut Cpu, op: &Op) -> Leave {
    cpu.gp(0);
    cpu.fault(op)
}

/// RDMSR.
pub fn rdmsr(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    let number = cpu.regs.get::<4>(offset(1)) as u32;
    let value = ok!(cpu, op, cpu.read_msr(number));
    cpu.regs.set::<4>(offset(0), value);
    cpu.regs.set::<4>(offset(2), value >> 32);
    next(cpu, op)
}

/// WRMSR.
pub fn wrmsr(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    let number = cpu.regs.get::<4>(offset(1)) as u32;
    let value = cpu.regs.get::<4>(offset(0)) | cpu.regs.get::<4>(offset(2)) << 32;
    ok!(cpu, op, cpu.write_msr(number, value));
    look(cpu, op)
}

/// SWAPGS.
pub fn swapgs(cpu: &mut Cpu, op: &Op) -> Leave {
    if !cpu.long_code() {
        cpu.ud();
        return cpu.fault(op);
    }
    ok!(cpu, op, require_cpl0(cpu));
    let base = cpu.seg[seg::GS].base;
    cpu.set_segment_base(seg::GS, cpu.msrs.kernel_gs_base);
    cpu.msrs.kernel_gs_base = base;
    next(cpu, op)
}

/// RDFSBASE, RDGSBASE: segment in `b`.
pub fn rd_base<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        cpu.ud();
        return cpu.fault(op);
    }
    let base = cpu.seg[op.b as usize % 6].base;
    cpu.regs.set::<N>(op.a, base);
    next(cpu, op)
}

/// WRFSBASE, WRGSBASE.
pub fn wr_base<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        cpu.ud();
        return cpu.fault(op);
    }
    let base = cpu.regs.get::<N>(op.a);
    if !cpu.canonical_at_most(base) {
        cpu.gp(0);
        return cpu.fault(op);
    }
    cpu.set_segment_base(op.b as usize % 6, base);
    next(cpu, op)
}

/// MOV register, CRn: number in `b`.
pub fn mov_from_cr(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    let value = match op.b {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.apic.tpr().into(),
        _ => return undefined(cpu, op),
    };
    if cpu.long_code() {
        cpu.regs.set::<8>(op.a, value);
    } else {
        cpu.regs.set::<4>(op.a, value);
    }
    next(cpu, op)
}

/// MOV CRn, register.
pub fn mov_to_cr(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    let value = if cpu.long_code() {
        cpu.regs.get::<8>(op.a)
    } else {
        cpu.regs.get::<4>(op.a)
    };
    match op.b {
        0 => ok!(cpu, op, cpu.set_cr0(value)),
        2 => cpu.cr2 = value,
        3 => ok!(cpu, op, cpu.set_cr3(value)),
        4 => ok!(cpu, op, cpu.set_cr4(value)),
        8 if value < 16 => cpu.apic.set_tpr(value as u8),
        8 => {
            cpu.gp(0);
            return cpu.fault(op);
        }
        _ => return undefined(cpu, op),
    }
    cpu.wake.want();
    look(cpu, op)
}

/// LMSW: cannot clear PE.
fn lmsw(cpu: &mut Cpu, op: &Op, value: u64) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    let low = value & 0xf | cpu.cr0 & 1;
    ok!(cpu, op, cpu.set_cr0(cpu.cr0 & !0xf | low));
    look(cpu, op)
}

/// LMSW register.
pub fn lmsw_r(cpu: &mut Cpu, op: &Op) -> Leave {
    let value = cpu.regs.get::<2>(op.a);
    lmsw(cpu, op, value)
}

/// LMSW memory.
pub fn lmsw_m(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    let la = ok!(cpu, op, cpu.ea::<2>(op, Read));
    let value = ok!(cpu, op, cpu.load::<2>(la));
    lmsw(cpu, op, value)
}

/// CLTS.
pub fn clts(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    cpu.cr0 &= !umbra_x86::cr0::TS;
    next(cpu, op)
}

/// What a store-to-r/m system instruction stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stored {
    /// SMSW.
    Msw,
    /// SLDT.
    Ldtr,
    /// STR.
    Tr,
    /// MOV from a segment register, number in `b`.
    Segment,
}

fn stored(cpu: &mut Cpu, op: &Op) -> Result<u64, Trap> {
    const MSW: u8 = Stored::Msw as u8;
    const LDTR: u8 = Stored::Ldtr as u8;
    const TR: u8 = Stored::Tr as u8;
    if op.extra == Stored::Segment as u8 {
        return Ok(cpu.seg[op.b as usize % 6].selector.into());
    }
    if op.extra != MSW && !cpu.protected() {
        return Err(cpu.ud());
    }
    umip(cpu)?;
    Ok(match op.extra {
        MSW => cpu.cr0,
        LDTR => cpu.ldtr.selector.into(),
        TR => cpu.tr.selector.into(),
        _ => 0,
    })
}

/// SMSW, SLDT, STR, MOV r, sreg.
pub fn store_r<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let value = ok!(cpu, op, stored(cpu, op));
    cpu.regs.set::<N>(op.a, value);
    next(cpu, op)
}

/// The same to memory: always 16 bits.
pub fn store_m(cpu: &mut Cpu, op: &Op) -> Leave {
    let value = ok!(cpu, op, stored(cpu, op));
    let la = ok!(cpu, op, cpu.ea::<2>(op, Write));
    ok!(cpu, op, cpu.store::<2>(la, value));
    next(cpu, op)
}

/// SGDT (`extra` 0) and SIDT (1).
pub fn store_table(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, umip(cpu));
    let table = if op.extra == 0 { cpu.gdtr } else { cpu.idtr };
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = if cpu.long_code() { 10 } else { 6 };
    let la = ok!(cpu, op, cpu.ea_sized(op, len, Write));
    ok!(cpu, op, cpu.write(la, &bytes[..len]));
    next(cpu, op)
}

/// LGDT (`extra` 0) and LIDT (1); `b` is the operand size: 16 bits load 24 of the base.
pub fn load_table(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    let len = if cpu.long_code() { 10 } else { 6 };
    let la = ok!(cpu, op, cpu.ea_sized(op, len, Read));
    let mut bytes = [0; 10];
    ok!(cpu, op, cpu.read(la, &mut bytes[..len]));
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut base = 0;
    for (i, byte) in bytes[2..].iter().enumerate() {
        base |= u64::from(*byte) << (8 * i);
    }
    if op.b == 2 && len == 6 {
        base &= 0xff_ffff;
    }
    if len == 10 && !cpu.canonical_at_most(base) {
        cpu.gp(0);
        return cpu.fault(op);
    }
    let table = DescriptorTable { base, limit };
    if op.extra == 0 {
        cpu.gdtr = table
    } else {
        cpu.idtr = table
    }
    next(cpu, op)
}

fn selector_operand(cpu: &mut Cpu, op: &Op, memory: bool) -> Result<u16, Trap> {
    if !memory {
        return Ok(cpu.regs.get::<2>(op.b) as u16);
    }
    let la = cpu.ea::<2>(op, Read)?;
    Ok(cpu.load::<2>(la)? as u16)
}

/// LLDT (`extra` 0) and LTR (1), from register (`MEM` false) or memory.
pub fn load_system<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Leave {
    if !cpu.protected() {
        return undefined(cpu, op);
    }
    ok!(cpu, op, require_cpl0(cpu));
    let selector = ok!(cpu, op, selector_operand(cpu, op, MEM));
    let loaded = if op.extra == 0 {
        cpu.load_ldt(selector)
    } else {
        cpu.load_task(selector)
    };
    ok!(cpu, op, loaded);
    next(cpu, op)
}

/// VERR (`extra` 0) and VERW (1).
pub fn verify<const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Leave {
    if !cpu.protected() {
        return undefined(cpu, op);
    }
    let selector = ok!(cpu, op, selector_operand(cpu, op, MEM));
    let visible = ok!(cpu, op, cpu.visible(selector));
    let good = visible.is_some_and(|d| {
        let writable = !d.is_code() && d.kind() & 2 != 0;
        let readable = !d.is_code() || d.kind() & 2 != 0;
        d.is_segment() && if op.extra == 0 { readable } else { writable }
    });
    cpu.flags.set_zf(good);
    next(cpu, op)
}

/// LAR (`extra` 0) and LSL (1).
pub fn inspect<const MEM: bool, const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    if !cpu.protected() {
        return undefined(cpu, op);
    }
    let selector = ok!(cpu, op, selector_operand(cpu, op, MEM));
    let visible = ok!(cpu, op, cpu.visible(selector));
    let lar = op.extra == 0;
    let long = cpu.long_mode();
    let known = visible.filter(|d| {
        let kind = d.kind();
        d.is_segment()
            || match kind {
                2 | 9 | 0xb => true,
                0xc => lar,
                1 | 3 => !long,
                4 | 5 => lar && !long,
                _ => false,
            }
    });
    cpu.flags.set_zf(known.is_some());
    if let Some(descriptor) = known {
        let value = if lar {
            descriptor.raw >> 32 & 0x00ff_ff00
        } else {
            descriptor.segment(selector).limit.into()
        };
        cpu.regs.set::<N>(op.a, value);
    }
    next(cpu, op)
}

/// INVLPG.
pub fn invlpg(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    let la = cpu
        .offset(op)
        .wrapping_add(cpu.seg_base[(op.seg & 7) as usize])
        & cpu.linear_mask;
    if cpu.canonical(la) {
        cpu.mmu.guest_flush(Scope::Page(Gva(la)));
        cpu.drain();
        cpu.pool.drop_page(la);
    }
    look(cpu, op)
}

/// INVPCID: type in register `a`, descriptor in memory.
pub fn invpcid<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    let la = ok!(cpu, op, cpu.ea::<16>(op, Read));
    let kind = cpu.regs.get::<N>(op.a);
    let pcid = ok!(cpu, op, cpu.load::<8>(la));
    let address = ok!(cpu, op, cpu.load::<8>(la.wrapping_add(8)));
    let reserved = pcid >> 12 != 0 || kind < 2 && pcid != 0 && cpu.cr4 & cr4::PCIDE == 0;
    if kind > 3 || reserved || kind == 0 && !cpu.canonical_at_most(address) {
        cpu.gp(0);
        return cpu.fault(op);
    }
    match kind {
        0 => {
            cpu.mmu
                .guest_flush(Scope::PcidPage(pcid as u16, Gva(address)));
            cpu.drain();
            cpu.pool.drop_page(address);
        }
        1 => {
            cpu.mmu.guest_flush(Scope::Pcid(pcid as u16));
            cpu.drain();
            cpu.pool.clear_non_global(|cr3| cr3 & 0xfff == pcid);
        }
        2 => {
            cpu.mmu.guest_flush(Scope::All);
            cpu.drain();
            cpu.pool.clear();
        }
        _ => {
            cpu.mmu.guest_flush(Scope::All);
            cpu.drain();
            cpu.pool.clear_non_global(|_| true);
        }
    }
    look(cpu, op)
}

/// INVD, WBINVD: caches are coherent.
pub fn wbinvd(cpu: &mut Cpu, op: &Op) -> Leave {
    ok!(cpu, op, require_cpl0(cpu));
    next(cpu, op)
}

/// MOV register, DRn: number in `b`.
pub fn mov_from_dr(cpu: &mut Cpu, op: &Op) -> Leave {
    let number = ok!(cpu, op, debug_register(cpu, op));
    let value = cpu.dr[number];
    if cpu.long_code() {
        cpu.regs.set::<8>(op.a, value);
    } else {
        cpu.regs.set::<4>(op.a, value);
    }
    next(cpu, op)
}

/// MOV DRn, register.
pub fn mov_to_dr(cpu: &mut Cpu, op: &Op) -> Leave {
    let number = ok!(cpu, op, debug_register(cpu, op));
    let value = if cpu.long_code() {
        cpu.regs.get::<8>(op.a)
    } else {
        cpu.regs.get::<4>(op.a)
    };
    if number >= 6 && value >> 32 != 0 {
        cpu.gp(0);
        return cpu.fault(op);
    }
    cpu.dr[number] = match number {
        6 => value & 0xe00f | 0xffff_0ff0,
        7 => value & !0xd000 | 0x400,
        _ => value,
    };
    cpu.refresh_mode();
    look(cpu, op)
}

fn debug_register(cpu: &mut Cpu, op: &Op) -> Result<usize, Trap> {
    require_cpl0(cpu)?;
    let number = op.b as usize & 7;
    if cpu.dr[7] >> 13 & 1 != 0 {
        // General detect: the access itself is trapped (SDM vol. 3, 17.2.4).
        cpu.dr[6] |= 1 << 13;
        cpu.dr[7] &= !(1 << 13);
        return Err(cpu.raise(umbra_x86::Exception::plain(vector::DB)));
    }
    match number {
        4 | 5 if cpu.cr4 & cr4::DE != 0 => Err(cpu.ud()),
        4 | 5 => Ok(number + 2),
        _ => Ok(number),
    }
}

/// IN: port in `imm`, or in DX where `extra` is set.
pub fn port_in<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let port = port_number(cpu, op);
    ok!(cpu, op, cpu.check_port(port, N));
    let value = cpu.port_in::<N>(port);
    cpu.regs.set::<N>(0, value);
    look(cpu, op)
}

/// OUT.
pub fn port_out<const N: usize>(cpu: &mut Cpu, op: &Op) -> Leave {
    let port = port_number(cpu, op);
    ok!(cpu, op, cpu.check_port(port, N));
    let value = cpu.regs.get::<N>(0);
    cpu.port_out::<N>(port, value);
    look(cpu, op)
}

fn port_number(cpu: &Cpu, op: &Op) -> u16 {
    if op.extra != 0 {
        cpu.regs.get::<2>(offset(2)) as u16
    } else {
        op.imm as u16
    }
}

impl Cpu {
    /// Reads a port, privilege checked already.
    pub fn port_in<const N: usize>(&mut self, port: u16) -> u64 {
        self.stats.ports += 1;
        let mut data = [0; 8];
        self.outside(|io| io.port_read(port, &mut data[..N]));
        u64::from_le_bytes(data)
    }

    /// Writes a port, privilege checked already.
    pub fn port_out<const N: usize>(&mut self, port: u16, value: u64) {
        self.stats.ports += 1;
        self.outside(|io| io.port_write(port, &value.to_le_bytes()[..N]));
    }
}

/// RDPKRU.
pub fn rdpkru(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.cr4 & cr4::PKE == 0 {
        return undefined(cpu, op);
    }
    if cpu.regs.get::<4>(offset(1)) != 0 {
        cpu.gp(0);
        return cpu.fault(op);
    }
    cpu.regs.set::<4>(0, cpu.pkru.into());
    cpu.regs.set::<4>(offset(2), 0);
    next(cpu, op)
}

/// WRPKRU.
pub fn wrpkru(cpu: &mut Cpu, op: &Op) -> Leave {
    if cpu.cr4 & cr4::PKE == 0 {
        return undefined(cpu, op);
    }
    if cpu.regs.get::<4>(offset(1)) != 0 || cpu.regs.get::<4>(offset(2)) != 0 {
        cpu.gp(0);
        return cpu.fault(op);
    }
    let value = cpu.regs.get::<4>(0) as u32;
    if value != cpu.pkru {
        cpu.pkru = value;
        cpu.pool.clear();
        cpu.refresh_paging();
    }
    next(cpu, op)
}
