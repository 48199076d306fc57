//! Tests of the MMU as a whole. A test is named after what it claims; the rule numbers are those
//! of the MMIO generation's rules.

mod guest;
mod mmio;
