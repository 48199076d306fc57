//! Registers between the neutral form and KVM's.

use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs, kvm_sregs2,
};
use umbra_x86::state::{CpuState, DescriptorTable, Segment, gpr, seg};

/// General registers, instruction pointer and flags.
pub fn to_regs(state: &CpuState) -> kvm_regs {
    let g = &state.gpr;
    kvm_regs {
        rax: g[gpr::RAX],
        rbx: g[gpr::RBX],
        rcx: g[gpr::RCX],
        rdx: g[gpr::RDX],
        rsi: g[gpr::RSI],
        rdi: g[gpr::RDI],
        rsp: g[gpr::RSP],
        rbp: g[gpr::RBP],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: state.rip,
        rflags: state.rflags,
    }
}

/// Segments, tables and control registers; the rest of `old` stays.
pub fn to_sregs(state: &CpuState, old: &kvm_sregs) -> kvm_sregs {
    let s = |index: usize| to_segment(&state.seg[index]);
    kvm_sregs {
        es: s(seg::ES),
        cs: s(seg::CS),
        ss: s(seg::SS),
        ds: s(seg::DS),
        fs: s(seg::FS),
        gs: s(seg::GS),
        tr: to_segment(&state.tr),
        ldt: to_segment(&state.ldtr),
        gdt: to_table(&state.gdtr),
        idt: to_table(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        ..*old
    }
}

/// The neutral form of both.
pub fn from_kvm(regs: &kvm_regs, sregs: &kvm_sregs) -> CpuState {
    let r = regs;
    CpuState {
        gpr: [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ],
        rip: r.rip,
        rflags: r.rflags,
        seg: [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs].map(from_segment),
        ldtr: from_segment(sregs.ldt),
        tr: from_segment(sregs.tr),
        gdtr: from_table(&sregs.gdt),
        idtr: from_table(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
    }
}

/// The same with the newer structure; `pdptes` are registers of their own where PAE paging is on.
pub fn to_sregs2(state: &CpuState, apic_base: u64, pdptes: Option<[u64; 4]>) -> kvm_sregs2 {
    let s = |index: usize| to_segment(&state.seg[index]);
    kvm_sregs2 {
        es: s(seg::ES),
        cs: s(seg::CS),
        ss: s(seg::SS),
        ds: s(seg::DS),
        fs: s(seg::FS),
        gs: s(seg::GS),
        tr: to_segment(&state.tr),
        ldt: to_segment(&state.ldtr),
        gdt: to_table(&state.gdtr),
        idt: to_table(&state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base,
        flags: pdptes.map_or(0, |_| KVM_SREGS2_FLAGS_PDPTRS_VALID.into()),
        pdptrs: pdptes.unwrap_or_default(),
    }
}

/// The neutral form of the newer structure.
pub fn from_kvm2(regs: &kvm_regs, sregs: &kvm_sregs2) -> CpuState {
    from_kvm(regs, &downgrade(sregs))
}

/// The older structure, without page-directory pointers.
pub fn downgrade(sregs: &kvm_sregs2) -> kvm_sregs {
    let s = sregs;
    kvm_sregs {
        es: s.es,
        cs: s.cs,
        ss: s.ss,
        ds: s.ds,
        fs: s.fs,
        gs: s.gs,
        tr: s.tr,
        ldt: s.ldt,
        gdt: s.gdt,
        idt: s.idt,
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
        ..Default::default()
    }
}

/// The newer structure.
pub fn upgrade(sregs: &kvm_sregs) -> kvm_sregs2 {
    let state = from_kvm(&kvm_regs::default(), sregs);
    to_sregs2(&state, sregs.apic_base, None)
}

/// The page-directory pointers, where they are registers.
pub fn pdptes(sregs: &kvm_sregs2) -> Option<[u64; 4]> {
    let valid = sregs.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0;
    valid.then_some(sregs.pdptrs)
}

fn to_segment(segment: &Segment) -> kvm_segment {
    let bit = |mask: u16| u8::from(segment.attr & mask != 0);
    let present = bit(Segment::P);
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (segment.attr & 0xf) as u8,
        present,
        dpl: segment.dpl(),
        db: bit(Segment::DB),
        s: bit(Segment::S),
        l: bit(Segment::L),
        g: bit(Segment::G),
        avl: bit(1 << 12),
        unusable: 1 - present,
        padding: 0,
    }
}

fn from_segment(segment: kvm_segment) -> Segment {
    let bit = |value: u8, mask: u16| if value != 0 { mask } else { 0 };
    let present = segment.present != 0 && segment.unusable == 0;
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        attr: u16::from(segment.type_ & 0xf)
            | u16::from(segment.dpl & 3) << 5
            | bit(segment.s, Segment::S)
            | bit(u8::from(present), Segment::P)
            | bit(segment.avl, 1 << 12)
            | bit(segment.l, Segment::L)
            | bit(segment.db, Segment::DB)
            | bit(segment.g, Segment::G),
    }
}

fn to_table(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        ..Default::default()
    }
}

fn from_table(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: table.base,
        limit: table.limit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_come_back_as_they_went() {
        let mut state = CpuState::default();
        for (n, register) in (1..).zip(&mut state.gpr) {
            *register = n << 32 | 0xabc;
        }
        (state.rip, state.rflags) = (0x1234, 0x202);
        for (n, segment) in (0u16..).zip(&mut state.seg) {
            *segment = Segment {
                selector: 8 * n,
                base: 0x1000 * u64::from(n),
                limit: 0xf_ffff,
                attr: 0x3 | Segment::S | Segment::P | (n & 3) << 5 | Segment::G | Segment::DB,
            };
        }
        state.seg[seg::CS].attr = 0xb | Segment::S | Segment::P | Segment::L | 1 << 12;
        (state.cr0, state.cr2, state.cr3, state.cr4) = (1, 2, 3, 4);
        (state.cr8, state.efer) = (5, 6);
        let back = from_kvm(&to_regs(&state), &to_sregs(&state, &kvm_sregs::default()));
        assert_eq!(back, state);
    }

    #[test]
    fn a_segment_that_is_not_present_is_unusable_and_comes_back() {
        let null = Segment {
            selector: 0,
            base: 0,
            limit: 0,
            attr: 0,
        };
        let there = to_segment(&null);
        assert_eq!((there.present, there.unusable), (0, 1));
        assert_eq!(from_segment(there), null);
    }
}
