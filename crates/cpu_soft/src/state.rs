//! Registers in and out.

use umbra_x86::state::{CpuState, seg};
use umbra_x86::{cr0, rflags};

use crate::cpu::Cpu;
use crate::saved::Held;

impl Cpu {
    /// The registers as a value.
    pub fn export(&self) -> CpuState {
        let mut gpr = [0; 16];
        for (i, value) in gpr.iter_mut().enumerate() {
            *value = self.regs.r(i);
        }
        CpuState {
            gpr,
            rip: self.rip,
            rflags: self.rflags(),
            seg: self.seg,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.apic.tpr().into(),
            efer: self.efer,
        }
    }

    /// Takes registers from a value, unchecked: whoever sets them is trusted like a debugger.
    pub fn load_state(&mut self, state: &CpuState) {
        for (i, value) in state.gpr.iter().enumerate() {
            self.regs.set_r(i, *value);
        }
        self.rip = state.rip;
        self.sys = state.rflags & rflags::DEFINED & !rflags::STATUS | rflags::FIXED;
        self.flags.set(state.rflags);
        for (i, segment) in state.seg.iter().enumerate() {
            self.set_seg(i, *segment);
        }
        self.ldtr = state.ldtr;
        self.tr = state.tr;
        self.gdtr = state.gdtr;
        self.idtr = state.idtr;
        self.cr0 = state.cr0 | cr0::ET;
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4;
        self.efer = state.efer;
        self.apic.set_tpr(state.cr8 as u8 & 15);
        self.pending = None;
        self.switched = false;
        self.held = Held::default();
        let protected = state.cr0 & cr0::PE != 0;
        self.cpl = match (protected, state.rflags & rflags::VM != 0) {
            (true, true) => 3,
            (true, false) => state.seg[seg::SS].dpl(),
            (false, _) => 0,
        };
        self.pool.clear();
        self.refresh_paging();
    }
}
