//! `/hotplug/memory`: memory that comes and goes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use umbra_vmm::{MemSpec, VirtioKind};

use crate::firecracker::fault::Fault;

const MIB: u64 = 1 << 20;

/// Memory that comes and goes, all in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
// Nothing is no size.
#[schemars(extend("required" = ["total_size_mib"]))]
pub struct MemoryHotplugConfig {
    /// The most: a multiple of `slot_size_mib`, 128 at least.
    #[serde(default)]
    #[schemars(range(min = SLOT_MIN, max = MIB_MAX), extend("multipleOf" = 2, "default" = null))]
    pub total_size_mib: u64,
    /// What the guest takes or gives back at once: a power of two, 2 to 1024.
    #[serde(default = "two")]
    #[schemars(extend("enum" = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]))]
    pub block_size_mib: u64,
    /// Firecracker's pieces of the host's memory; here they are as large as the guest wants.
    /// A multiple of `block_size_mib`.
    #[serde(default = "slot")]
    #[schemars(range(min = SLOT_MIN), extend("multipleOf" = 2))]
    pub slot_size_mib: u64,
}

/// The smallest size of a slot.
const SLOT_MIN: u64 = 128;
/// The most that numbers are checked for: far more than there are addresses.
const MIB_MAX: u64 = 1 << 32;

fn two() -> u64 {
    2
}

fn slot() -> u64 {
    SLOT_MIN
}

impl MemoryHotplugConfig {
    /// Checks the sizes, by themselves and against each other.
    pub fn check(&self) -> Result<(), Fault> {
        let Self {
            total_size_mib: total,
            block_size_mib: block,
            slot_size_mib: slot,
        } = *self;
        let wrong = |why: String| Err(Fault::MemoryHotplugConfig(why));
        if block < 2 {
            return wrong("Block size must not be lower than 2 MiB".into());
        }
        if !block.is_power_of_two() || block > 1024 {
            return wrong("Block size must be a power of 2, and 1024 MiB at most".into());
        }
        if slot < SLOT_MIN {
            return wrong(format!("Slot size must not be lower than {SLOT_MIN} MiB"));
        }
        if !slot.is_multiple_of(block) {
            return wrong("Slot size must be a multiple of block size".into());
        }
        if total < slot {
            return wrong(format!(
                "Total size must not be lower than slot size ({slot} MiB)"
            ));
        }
        if !total.is_multiple_of(slot) || total > MIB_MAX {
            return wrong(
                "Total size must be a multiple of slot size, and fit the addresses".into(),
            );
        }
        Ok(())
    }

    /// The device that it asks for. It has been checked.
    pub fn kind(&self) -> VirtioKind {
        VirtioKind::Mem(MemSpec {
            block: self.block_size_mib * MIB,
            ..MemSpec::new(self.total_size_mib * MIB)
        })
    }
}

/// Another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryHotplugSizeUpdate {
    /// What the guest shall have, in MiB.
    pub requested_size_mib: u64,
}

/// How it is, all in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MemoryHotplugStatus {
    /// The most.
    pub total_size_mib: u64,
    /// As it was said.
    pub slot_size_mib: u64,
    /// As it was said.
    pub block_size_mib: u64,
    /// What the guest has.
    pub plugged_size_mib: u64,
    /// What it shall have.
    pub requested_size_mib: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_fit_each_other() {
        for (text, good) in [
            (r#"{"total_size_mib": 1024}"#, true),
            ("{}", false),
            (r#"{"total_size_mib": 100}"#, false),
            (r#"{"total_size_mib": 200}"#, false),
            (r#"{"total_size_mib": 1024, "block_size_mib": 3}"#, false),
            (r#"{"total_size_mib": 1024, "block_size_mib": 0}"#, false),
            (
                r#"{"total_size_mib": 1024, "slot_size_mib": 256, "block_size_mib": 256}"#,
                true,
            ),
            (
                r#"{"total_size_mib": 1024, "slot_size_mib": 128, "block_size_mib": 256}"#,
                false,
            ),
            (r#"{"total_size_mib": 9223372036854775808}"#, false),
        ] {
            let config: MemoryHotplugConfig = serde_json::from_str(text).unwrap();
            assert_eq!(config.check().is_ok(), good, "{text}");
        }
    }
}
