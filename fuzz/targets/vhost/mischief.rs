//! What a back end does wrong. Zeros, which follow an input, are a back end that does its work.

use umbra_fuzz::Source;

/// How a message is answered.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    Right,
    /// Not at all.
    Silence,
    /// By going away.
    Close,
    /// With a failure, of what was not done.
    No,
    /// As another request, with other flags, or with another size.
    Header(usize, u32),
    /// With as many bytes of it as these.
    Part(usize),
    /// With one byte changed.
    Changed(usize, u8),
    /// With a number for an answer.
    Number(u64),
    /// With files.
    Files(usize),
    /// Twice.
    Twice,
    /// With more bytes than anybody wants.
    Endless,
}

/// What it does in place of its work.
#[derive(Clone, Copy, Debug)]
pub enum Deed {
    Work,
    /// Nothing now.
    Rest,
    /// The last chain that is there first.
    Backwards,
    /// A chain with this for its length.
    Length(u32),
    /// A used element with this in it.
    Element(u32, u32),
    /// The index of the used ring goes on by this.
    Jump(u16),
    /// The same chain again.
    Twice,
    /// Bytes somewhere in the memory of rings.
    Poke(u32, u64),
    /// What the used ring says of notifications.
    Hint(u16),
    /// It says that it cannot go on.
    Fault,
    /// It notifies of nothing.
    Call,
    /// An answer to nothing.
    Unasked,
    /// It says so often that the configuration has changed, and wants an answer or not.
    Ask(usize, u32),
    /// Anything, where one asks.
    Garbage(u64, usize),
    /// It asks no more.
    AskNoMore,
    /// It goes.
    Die,
}

impl Answer {
    pub fn next(source: &mut Source<'_>) -> Self {
        // One of sixteen is wrong: there are a dozen before anything else happens.
        if source.u8() < 0xf0 {
            return Self::Right;
        }
        match source.below(12) {
            0 => Self::Silence,
            1 => Self::Close,
            2 => Self::No,
            3 | 4 => Self::Header(source.below(3), source.u32()),
            5 => Self::Part(source.below(24)),
            6 => Self::Changed(source.below(24), source.u8()),
            7 => Self::Number(source.u64()),
            8 => Self::Number(source.u8().into()),
            9 => Self::Files(source.below(64)),
            10 => Self::Twice,
            _ => Self::Endless,
        }
    }
}

impl Deed {
    pub fn next(source: &mut Source<'_>) -> Self {
        if source.u8() < 0xa0 {
            return Self::Work;
        }
        match source.below(20) {
            0 => Self::Backwards,
            1 => Self::Length(source.u32()),
            2 => Self::Length(source.u8().into()),
            3 => Self::Element(source.u32(), source.u32()),
            4 => Self::Element(source.u8() as u32 & 0xf, source.u8().into()),
            5 => Self::Jump(source.u16()),
            6 => Self::Jump(source.u16() & 3),
            7 => Self::Twice,
            8..=10 => Self::Poke(source.u32(), source.u64()),
            11 => Self::Hint(source.u16()),
            12 => Self::Fault,
            13 => Self::Call,
            14 => Self::Unasked,
            15 => Self::Ask(source.u8().into(), source.pick(&[1, 9])),
            16 => Self::Garbage(source.u64(), source.below(40)),
            17 => Self::AskNoMore,
            18 => Self::Die,
            _ => Self::Rest,
        }
    }
}
