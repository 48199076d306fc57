//! `/cpu-config`: what the processors show of themselves (`docs/cpu-templates.md`).

use schemars::JsonSchema;
use serde::Deserialize;
use umbra_vmm::CpuTemplate;

use crate::firecracker::fault::{Fault, chain};
use crate::strict;

/// What the template is called in messages.
const NAME: &str = "cpu-config";

/// A number of 32 bits.
const NUMBER: &str = "^(0x[0-9A-Fa-f]+|0b[01]+|[0-9]+)$";
/// Bits of a register, highest first: `x` leaves one alone, underscores are for readers.
const BITS_32: &str = "^0b_*([01x]_*){1,32}$";
/// See [`BITS_32`].
const BITS_64: &str = "^0b_*([01x]_*){1,64}$";

/// What processors show of themselves, as far as it is not what the host's show.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
pub struct CpuConfig {
    /// Capabilities of KVM cannot be chosen.
    #[serde(default)]
    #[schemars(length(max = 0))]
    kvm_capabilities: Vec<String>,
    /// Changes of what CPUID says.
    #[serde(default)]
    cpuid_modifiers: Vec<CpuidModifier>,
    /// Changes of model-specific registers.
    #[serde(default)]
    msr_modifiers: Vec<MsrModifier>,
}

/// A change of a leaf of CPUID.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
pub struct CpuidModifier {
    /// The leaf, like `0x80000001`.
    #[schemars(regex(pattern = NUMBER))]
    leaf: String,
    /// The subleaf, like `0x0`.
    #[schemars(regex(pattern = NUMBER))]
    subleaf: String,
    /// KVM's flags of the entry.
    #[schemars(range(max = 7))]
    flags: u32,
    /// The registers that change.
    modifiers: Vec<CpuidRegisterModifier>,
}

/// A register that CPUID answers in.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A change of a register.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
pub struct CpuidRegisterModifier {
    /// Which.
    register: CpuidRegister,
    /// Its bits, like `0b01xx`: `x` leaves one alone.
    #[schemars(regex(pattern = BITS_32))]
    bitmap: String,
}

/// A change of a model-specific register.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
pub struct MsrModifier {
    /// Its number, like `0x10a`.
    #[schemars(regex(pattern = NUMBER))]
    addr: String,
    /// Its bits, like `0b01xx`: `x` leaves one alone.
    #[schemars(regex(pattern = BITS_64))]
    bitmap: String,
}

/// Checks a template. What the host's processor does not have is found when the machine starts.
pub fn parse(body: &str) -> Result<CpuTemplate, Fault> {
    let _: CpuConfig = strict::from_str(body).map_err(|error| Fault::Json(error.to_string()))?;
    CpuTemplate::parse(NAME, body).map_err(|error| Fault::Json(chain(&error)))
}
