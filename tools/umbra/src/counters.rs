//! Counters as a machine tells them, and what they add up to.

use std::collections::BTreeMap;

/// Counters by name.
pub type Counters = BTreeMap<String, u64>;

/// The sum of counters, of which some may not be there.
pub fn sum(counters: &Counters, names: &[&str]) -> u64 {
    let there = names.iter().filter_map(|name| counters.get(*name));
    there.fold(0, |sum, count| sum.wrapping_add(*count))
}

/// How often a processor has left its guest. KVM counts entries, of which each ends once; the software processor leaves
/// for devices, ports and to sleep.
pub fn exits(cpu: &Counters) -> u64 {
    match cpu.get("entries") {
        Some(entries) => *entries,
        None => sum(cpu, &["device_accesses", "port_accesses", "halts"]),
    }
}

/// How often it has reached for a device's registers in memory.
pub fn mmio(cpu: &Counters) -> u64 {
    sum(cpu, &["device_accesses"])
}
