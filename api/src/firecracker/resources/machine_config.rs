//! `/machine-config`: processors and memory.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::firecracker::fault::Fault;

/// The most processors of a machine.
const VCPU_MAX: u8 = 32;
/// The most memory that has a number of bytes.
const MEM_MAX_MIB: u64 = u64::MAX >> 20;

/// Which pages of the host are the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum HugePages {
    /// What the host likes.
    #[default]
    None,
    /// Large ones where the host has them.
    Transparent,
    /// Reserved ones of 2 MiB (hugetlbfs).
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// A processor of a fleet, by name; deprecated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[allow(missing_docs)]
pub enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}

/// Processors and memory of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MachineConfiguration {
    /// Processors; an even number or 1 with `smt`.
    #[schemars(range(min = 1, max = VCPU_MAX))]
    pub vcpu_count: u8,
    /// Memory in MiB.
    #[schemars(range(min = 1, max = MEM_MAX_MIB))]
    pub mem_size_mib: u64,
    /// Two threads a core.
    pub smt: bool,
    /// The processors of a fleet.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("deprecated" = true))]
    pub cpu_template: Option<CpuTemplate>,
    /// Remember which pages were written.
    pub track_dirty_pages: bool,
    /// Pages of the host.
    pub huge_pages: HugePages,
}

impl Default for MachineConfiguration {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        }
    }
}

/// A whole configuration (PUT): what is not said is as at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PutMachineConfiguration {
    /// Processors; an even number or 1 with `smt`.
    #[schemars(range(min = 1, max = VCPU_MAX))]
    vcpu_count: u8,
    /// Memory in MiB; a multiple of 2 with `huge_pages` of `2M`.
    #[schemars(range(min = 1, max = MEM_MAX_MIB))]
    mem_size_mib: u64,
    /// Two threads a core.
    #[serde(default)]
    smt: bool,
    /// The processors of a fleet.
    #[serde(default)]
    #[schemars(extend("deprecated" = true))]
    cpu_template: Option<CpuTemplate>,
    /// Remember which pages were written.
    #[serde(default)]
    track_dirty_pages: bool,
    /// Pages of the host.
    #[serde(default)]
    huge_pages: HugePages,
}

impl From<PutMachineConfiguration> for PatchMachineConfiguration {
    fn from(put: PutMachineConfiguration) -> Self {
        Self {
            vcpu_count: Some(put.vcpu_count),
            mem_size_mib: Some(put.mem_size_mib),
            smt: Some(put.smt),
            cpu_template: put.cpu_template,
            track_dirty_pages: Some(put.track_dirty_pages),
            huge_pages: Some(put.huge_pages),
        }
    }
}

/// A change of it (PATCH): what is not said stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct PatchMachineConfiguration {
    /// Processors; an even number or 1 with `smt`.
    #[serde(default)]
    #[schemars(range(min = 1, max = VCPU_MAX))]
    pub vcpu_count: Option<u8>,
    /// Memory in MiB; a multiple of 2 with `huge_pages` of `2M`.
    #[serde(default)]
    #[schemars(range(min = 1, max = MEM_MAX_MIB))]
    mem_size_mib: Option<u64>,
    /// Two threads a core.
    #[serde(default)]
    smt: Option<bool>,
    /// The processors of a fleet.
    #[serde(default)]
    #[schemars(extend("deprecated" = true))]
    cpu_template: Option<CpuTemplate>,
    /// Remember which pages were written.
    #[serde(default)]
    track_dirty_pages: Option<bool>,
    /// Pages of the host.
    #[serde(default)]
    huge_pages: Option<HugePages>,
}

impl PatchMachineConfiguration {
    /// It says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Its deprecated field is used.
    pub fn is_deprecated(&self) -> bool {
        self.cpu_template.is_some()
    }

    /// Makes the change, if the outcome can be.
    pub fn apply(&self, old: &MachineConfiguration) -> Result<MachineConfiguration, Fault> {
        let smt = self.smt.unwrap_or(old.smt);
        let vcpu_count = self.vcpu_count.unwrap_or(old.vcpu_count);
        let odd = smt && vcpu_count > 1 && !vcpu_count.is_multiple_of(2);
        if vcpu_count == 0 || vcpu_count > VCPU_MAX || odd {
            return Err(Fault::MachineConfig(format!(
                "The number of vCPUs must be greater than 0, less than {VCPU_MAX} and must be 1 or an even \
                 number if SMT is enabled."
            )));
        }
        let mem_size_mib = self.mem_size_mib.unwrap_or(old.mem_size_mib);
        let huge_pages = self.huge_pages.unwrap_or(old.huge_pages);
        let page_mib = if huge_pages == HugePages::Hugetlbfs2M {
            2
        } else {
            1
        };
        if mem_size_mib == 0 || !mem_size_mib.is_multiple_of(page_mib) || mem_size_mib > MEM_MAX_MIB
        {
            return Err(Fault::MachineConfig(
                "The memory size (MiB) is either 0, or not a multiple of the configured page size."
                    .into(),
            ));
        }
        let cpu_template = match self.cpu_template {
            None => old.cpu_template,
            Some(CpuTemplate::None) => None,
            some => some,
        };
        Ok(MachineConfiguration {
            vcpu_count,
            mem_size_mib,
            smt,
            cpu_template,
            track_dirty_pages: self.track_dirty_pages.unwrap_or(old.track_dirty_pages),
            huge_pages,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(text: &str) -> Result<MachineConfiguration, String> {
        let patch: PatchMachineConfiguration =
            serde_json::from_str(text).map_err(|e| e.to_string())?;
        let old = MachineConfiguration::default();
        patch.apply(&old).map_err(|fault| fault.to_string())
    }

    #[test]
    fn numbers_are_checked() {
        for (text, good) in [
            (r#"{"vcpu_count": 32}"#, true),
            (r#"{"vcpu_count": 33}"#, false),
            (r#"{"vcpu_count": 0}"#, false),
            (r#"{"vcpu_count": 256}"#, false),
            (r#"{"vcpu_count": 3}"#, true),
            (r#"{"vcpu_count": 3, "smt": true}"#, false),
            (r#"{"vcpu_count": 1, "smt": true}"#, true),
            (r#"{"mem_size_mib": 0}"#, false),
            (r#"{"mem_size_mib": 18446744073709551615}"#, false),
            (r#"{"mem_size_mib": 129, "huge_pages": "2M"}"#, false),
            (r#"{"mem_size_mib": 130, "huge_pages": "2M"}"#, true),
            (r#"{"huge_pages": "1G"}"#, false),
            (r#"{"nope": 1}"#, false),
        ] {
            assert_eq!(apply(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn a_template_named_none_takes_it_away() {
        let with = apply(r#"{"cpu_template": "T2"}"#).unwrap();
        assert_eq!(with.cpu_template, Some(CpuTemplate::T2));
        let none: PatchMachineConfiguration =
            serde_json::from_str(r#"{"cpu_template": "None"}"#).unwrap();
        assert!(none.is_deprecated());
        assert_eq!(none.apply(&with).unwrap().cpu_template, None);
    }
}
