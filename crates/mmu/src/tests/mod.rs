//! Tests of the MMU as a whole. A test is named after what it claims; the rule numbers are those
//! of the MMIO generation's rules.

mod auditor;
mod caches;
mod dump;
mod edges;
mod flush;
mod guest;
mod history;
mod last;
mod mmio;
#[cfg(umbra_loom)]
mod models;
mod modes;
mod oracle;
mod races;
mod random;
mod rights;
mod slots;
mod threads;
mod tracking;
