//! Instructions that a processor has or has not, as its CPUID says: what handler selection asks for them.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::Builder;
use super::classify::operand_size;
use super::operands::gpr;
use super::select::Pick::{self, End, On, Other};
use crate::op::{Handler, Op};
use crate::ops::{bmi, system, xsave};
use crate::regs;

impl Builder<'_> {
    /// XSAVE and its kin, where the model has them.
    pub(super) fn pick_xsave(&self, insn: &Instruction, op: &mut Op) -> Pick {
        use Mnemonic::*;
        use xsave::form;
        if self.cpu.cpuid.get(1, 0).ecx >> 26 & 1 == 0 {
            return End(system::undefined);
        }
        let (form, handler): (u8, Handler) = match insn.mnemonic() {
            Xsave => (form::PLAIN, xsave::xsave),
            Xsave64 => (form::PLAIN | form::WIDE, xsave::xsave),
            Xsaveopt => (form::OPT, xsave::xsave),
            Xsaveopt64 => (form::OPT | form::WIDE, xsave::xsave),
            Xsavec => (form::COMPACT, xsave::xsave),
            Xsavec64 => (form::COMPACT | form::WIDE, xsave::xsave),
            Xrstor => (form::PLAIN, xsave::xrstor),
            Xrstor64 => (form::WIDE, xsave::xrstor),
            Xgetbv => (form::PLAIN, xsave::xgetbv),
            _ => (form::PLAIN, xsave::xsetbv),
        };
        op.extra = form;
        On(handler)
    }

    /// BMI1, BMI2, ADX, random numbers: each where the model has it.
    pub(super) fn pick_bmi(&self, insn: &Instruction, op: &mut Op, memory: bool) -> Pick {
        use Mnemonic::*;
        let (one, seven) = (self.cpu.cpuid.get(1, 0), self.cpu.cpuid.get(7, 0));
        let claimed = match insn.mnemonic() {
            Andn | Bextr | Blsi | Blsmsk | Blsr => seven.ebx >> 3 & 1,
            Bzhi | Mulx | Pdep | Pext | Rorx | Sarx | Shlx | Shrx => seven.ebx >> 8 & 1,
            Adcx | Adox => seven.ebx >> 19 & 1,
            Rdrand => one.ecx >> 30 & 1,
            Rdseed => seven.ebx >> 18 & 1,
            Rdpid => seven.ecx >> 22 & 1,
            _ => return Other,
        };
        let vex = insn.op_code().encoding() == iced_x86::EncodingKind::VEX;
        if claimed == 0 || vex && (!self.cpu.protected() || self.cpu.v86()) {
            return End(system::undefined);
        }
        let size = operand_size(insn);
        // Where the operand that may be memory stands: last, or before the last.
        let last = insn.op_count() - 1;
        let (rm, other) = match insn.mnemonic() {
            Bextr | Bzhi | Sarx | Shlx | Shrx => (1, 2),
            Blsi | Blsmsk | Blsr | Rorx => (1, 0),
            Adcx | Adox => (1, 0),
            _ => (last, 1),
        };
        let register = |i: u32| match insn.op_kind(i) {
            OpKind::Register => gpr(insn.op_register(i)),
            _ => regs::ZERO,
        };
        op.a = register(0);
        if last > 0 {
            (op.extra, op.b) = (register(rm), register(other));
        }
        On(match insn.mnemonic() {
            Andn => bmi::three::<bmi::Andn>(memory, size),
            Bextr => bmi::three::<bmi::Bextr>(memory, size),
            Blsi => bmi::three::<bmi::Blsi>(memory, size),
            Blsmsk => bmi::three::<bmi::Blsmsk>(memory, size),
            Blsr => bmi::three::<bmi::Blsr>(memory, size),
            Bzhi => bmi::three::<bmi::Bzhi>(memory, size),
            Pdep => bmi::three::<bmi::Pdep>(memory, size),
            Pext => bmi::three::<bmi::Pext>(memory, size),
            Sarx => bmi::three::<bmi::Sarx>(memory, size),
            Shlx => bmi::three::<bmi::Shlx>(memory, size),
            Shrx => bmi::three::<bmi::Shrx>(memory, size),
            Adcx => bmi::three::<bmi::Adcx>(memory, size),
            Adox => bmi::three::<bmi::Adox>(memory, size),
            Mulx => bmi::mulx(memory, size),
            Rorx => bmi::rorx(memory, size),
            Rdpid => bmi::rdpid,
            _ => match size {
                2 => bmi::random::<2>,
                4 => bmi::random::<4>,
                _ => bmi::random::<8>,
            },
        })
    }

    pub(super) fn has_bmi1(&self) -> bool {
        self.cpu.cpuid.get(7, 0).ebx >> 3 & 1 != 0
    }

    pub(super) fn has_lzcnt(&self) -> bool {
        self.cpu.cpuid.get(0x8000_0001, 0).ecx >> 5 & 1 != 0
    }
}
