//! What the manual promises, by chapter.

mod debug;
mod exceptions;
mod interrupts;
mod mmio;
mod msrs;
mod paging;
mod platform;
mod privilege;
mod processors;
mod timers;

use crate::report::Claim;

/// All claims, in the order in which they are checked.
pub const TABLES: &[&[Claim]] = &[
    exceptions::CLAIMS,
    debug::CLAIMS,
    privilege::CLAIMS,
    paging::CLAIMS,
    mmio::CLAIMS,
    msrs::CLAIMS,
    interrupts::CLAIMS,
    timers::CLAIMS,
    processors::CLAIMS,
    platform::CLAIMS,
];

/// Makes a table of claims: function, and what promises it.
macro_rules! claims {
    ($($name:ident: $section:literal,)*) => {
        pub const CLAIMS: &[$crate::report::Claim] = &[$($crate::report::Claim {
            name: stringify!($name),
            section: $section,
            run: $name,
        }),*];
    };
}
pub(crate) use claims;

/// How a claim's check ends.
pub type Check = Result<(), crate::report::Stop>;
