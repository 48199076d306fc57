//! Where the guest's status flags are, at each point of a block.
//!
//! They are the host's flags for as long as nothing of ours disturbs them. A check of the translation
//! caches does; and whatever may fault there must find the flags exact, for the handler sees them. So
//! before a check they are saved in the frame, unless they can be had again from registers that still
//! hold what they were computed from: then only the cold path computes them ([`Recipe`]).

use iced_x86::{Instruction, Mnemonic, OpKind, Register, RflagsBits};

use super::asm::{Alu, Asm};
use super::layout::{Home, S0, S1, frame, is_high_byte, slot};

/// The six status flags, as the decoder names them.
pub const STATUS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// The second operand of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Reg(Home),
    Imm(i32),
}

/// How flags come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Comparing the register with the source.
    Compare,
    /// Adding the source to what the register was before.
    Add,
    /// Subtracting the source from what the register was before.
    Subtract,
    /// A bitwise operation that left its result in the register.
    Logic,
    /// TEST of register and source.
    Test,
    /// Negating what the register was before.
    Negate,
}

/// How to compute flags anew from registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    kind: Kind,
    size: usize,
    reg: Home,
    source: Source,
}

impl Recipe {
    /// The recipe for the flags of `insn`, which executed without a memory operand, with guest registers at
    /// their `home`.
    pub fn of(insn: &Instruction, home: impl Fn(u8) -> Home) -> Option<Self> {
        let host = |register| named(register).map(&home);
        let kind = match insn.mnemonic() {
            Mnemonic::Cmp => Kind::Compare,
            Mnemonic::Add => Kind::Add,
            Mnemonic::Sub => Kind::Subtract,
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => Kind::Logic,
            Mnemonic::Test => Kind::Test,
            Mnemonic::Neg => Kind::Negate,
            _ => return None,
        };
        if insn.op0_kind() != OpKind::Register {
            return None;
        }
        let size = insn.op0_register().size();
        let reg = host(insn.op0_register())?;
        let source = match (kind, insn.op_count()) {
            (Kind::Logic, _) | (Kind::Negate, _) => Source::Imm(0),
            _ => match insn.op1_kind() {
                OpKind::Register => Source::Reg(host(insn.op1_register())?),
                OpKind::Memory => return None,
                _ => Source::Imm(i32::try_from(insn.immediate(1) as i64).ok().or_else(|| {
                    // Not sign-extended by the decoder where the operand is narrower.
                    (size < 8).then_some(insn.immediate(1) as i32)
                })?),
            },
        };
        // What was added to itself is gone; what was subtracted from itself is zero, as TEST says.
        let same = matches!(source, Source::Reg(other) if other == reg);
        match kind {
            Kind::Add if same => None,
            Kind::Subtract if same => Some(Kind::Logic),
            kind => Some(kind),
        }
        .map(|kind| Self {
            kind,
            size,
            reg,
            source,
        })
    }

    /// Tells whether a write of `reg` spoils it.
    fn depends_on(&self, reg: Home) -> bool {
        self.reg == reg || matches!(self.source, Source::Reg(other) if other == reg)
    }

    /// Computes the flags. `S0` and `S1` are lost.
    fn compute(&self, asm: &mut Asm) {
        let size = self.size;
        let source = match self.source {
            Source::Reg(Home::Host(from)) => Some(from),
            Source::Reg(Home::Frame(from)) => {
                asm.load(S0, from);
                Some(S0)
            }
            Source::Imm(_) => None,
        };
        let operate = |asm: &mut Asm, op, to| match (source, self.source) {
            (Some(from), _) => asm.alu(op, size, to, from),
            (None, Source::Imm(value)) => asm.alu_imm(op, size, to, value),
            (None, Source::Reg(_)) => {}
        };
        let copy = |asm: &mut Asm| match self.reg {
            Home::Host(reg) => asm.mov(S1, reg),
            Home::Frame(place) => asm.load(S1, place),
        };
        match (self.kind, self.reg) {
            (Kind::Compare, Home::Host(reg)) => return operate(asm, Alu::Cmp, reg),
            (Kind::Logic, Home::Host(reg)) => return asm.test(size, reg),
            _ => copy(asm),
        }
        match self.kind {
            Kind::Compare => operate(asm, Alu::Cmp, S1),
            Kind::Add => {
                operate(asm, Alu::Sub, S1);
                operate(asm, Alu::Add, S1);
            }
            Kind::Subtract => {
                operate(asm, Alu::Add, S1);
                operate(asm, Alu::Sub, S1);
            }
            Kind::Logic => asm.test(size, S1),
            Kind::Test => operate(asm, Alu::And, S1),
            Kind::Negate => {
                asm.neg(size, S1);
                asm.neg(size, S1);
            }
        }
    }
}

/// The number of the guest register, unless it is named in its second part.
fn named(register: Register) -> Option<u8> {
    let whole = !is_high_byte(register) && register.is_gpr();
    whole.then(|| register.full_register().number() as u8)
}

/// Where the flags are; several may be true at once, and one always is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// In the host's flags.
    pub host: bool,
    /// In the frame.
    pub saved: bool,
    /// They can be computed.
    pub recipe: Option<Recipe>,
}

impl Place {
    /// In the host's flags alone.
    pub const HOST: Self = Self {
        host: true,
        saved: false,
        recipe: None,
    };
    /// In the frame alone.
    pub const SAVED: Self = Self {
        host: false,
        saved: true,
        recipe: None,
    };
    /// Nowhere, but they can be computed.
    pub const fn computed(recipe: Recipe) -> Self {
        Self {
            host: false,
            saved: false,
            recipe: Some(recipe),
        }
    }

    /// In both, as after a call of the interpreter.
    pub const BOTH: Self = Self {
        host: true,
        saved: true,
        recipe: None,
    };

    /// Before something that disturbs the host's flags and may need the guest's: emits what makes them
    /// safe. `S0` is lost.
    pub fn secure(&mut self, asm: &mut Asm) {
        if !self.saved && self.recipe.is_none() {
            save(asm);
            self.saved = true;
        }
    }

    /// The host's flags are disturbed.
    pub fn disturbed(&mut self) {
        debug_assert!(self.saved || self.recipe.is_some(), "flags are lost");
        self.host = false;
    }

    /// Tells whether they are nowhere, and have to be computed.
    pub fn is_computed(&self) -> bool {
        !self.host && !self.saved
    }

    /// Emits what brings the flags into the frame. `S0` is lost, and `S1` if they are computed.
    pub fn save(&mut self, asm: &mut Asm) {
        if self.saved {
            return;
        }
        if let (false, Some(recipe)) = (self.host, self.recipe) {
            recipe.compute(asm);
            self.host = true;
        }
        save(asm);
        self.saved = true;
    }

    /// Emits what brings them into the host's flags. `S0` and `S1` are lost.
    pub fn restore(&mut self, asm: &mut Asm) {
        if self.host {
            return;
        }
        if self.saved {
            restore(asm);
        } else if let Some(recipe) = self.recipe {
            recipe.compute(asm);
        }
        self.host = true;
    }

    /// The guest wrote `reg`.
    pub fn wrote(&mut self, reg: Home) {
        if self.depends_on(reg) {
            debug_assert!(self.host || self.saved, "flags are lost");
            self.recipe = None;
        }
    }

    /// Tells whether they can be computed from `reg`, among others.
    pub fn depends_on(&self, reg: Home) -> bool {
        self.recipe.is_some_and(|r| r.depends_on(reg))
    }

    /// Tells whether a write of `reg` would lose the only way to the flags.
    pub fn needs(&self, reg: Home) -> bool {
        self.is_computed() && self.depends_on(reg)
    }
}

fn save(asm: &mut Asm) {
    asm.flags_to_ax();
    asm.store(2, frame(slot::FLAGS), S0);
}

/// Loads the host's flags from the frame. `S0` is lost.
pub fn restore(asm: &mut Asm) {
    asm.load16(S0, frame(slot::FLAGS));
    asm.flags_from_ax();
}

/// What an instruction does with the status flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Reads them.
    Reads,
    /// Replaces all of them without looking.
    Replaces,
    /// Changes some, or reads and changes.
    Changes,
}

/// The effect of `insn`.
pub fn effect(insn: &Instruction) -> Effect {
    let (read, modified) = (insn.rflags_read() & STATUS, insn.rflags_modified() & STATUS);
    match (read, modified) {
        // By no bits, flags stay; and by as many as the operand has, the decoder says so too, but
        // processors change OF.
        _ if shifts(insn) && !by_constant(insn) => Effect::Changes,
        (0, 0) => Effect::None,
        (_, 0) => Effect::Reads,
        (0, STATUS) => Effect::Replaces,
        _ => Effect::Changes,
    }
}

fn shifts(insn: &Instruction) -> bool {
    use Mnemonic::*;
    matches!(
        insn.mnemonic(),
        Shl | Sal | Shr | Sar | Rol | Ror | Rcl | Rcr | Shld | Shrd
    )
}

/// By a number of bits that is known and is not zero, for a shift that is no rotation.
fn by_constant(insn: &Instruction) -> bool {
    use Mnemonic::*;
    let last = insn.op_count() - 1;
    !matches!(insn.mnemonic(), Rol | Ror | Rcl | Rcr)
        && insn.op_kind(last) == OpKind::Immediate8
        && insn.immediate8() & 31 != 0
}
