//! The file: JSON, strictly.

use serde::Deserialize;

use super::bitmap::Bitmap;
use super::features::Register;
use super::{Change, MsrChange};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Capabilities of KVM to check or to leave out: none of ours depends on one.
    #[serde(default)]
    kvm_capabilities: Vec<String>,
    #[serde(default)]
    cpuid_modifiers: Vec<LeafModifier>,
    #[serde(default)]
    msr_modifiers: Vec<MsrModifier>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LeafModifier {
    leaf: String,
    subleaf: String,
    /// KVM's flags of the entry: 1 where the subleaf counts. They follow the leaf here.
    flags: u32,
    modifiers: Vec<RegisterModifier>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegisterModifier {
    register: Register,
    bitmap: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MsrModifier {
    addr: String,
    bitmap: String,
}

/// Flags that KVM defines: the index counts, the function keeps state, the state is read next.
const FLAGS: u32 = 7;

/// Reads a file; says what is wrong with it, and where.
pub fn parse(text: &str) -> Result<(Vec<Change>, Vec<MsrChange>), String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if let Some(capability) = file.kvm_capabilities.first() {
        return Err(format!(
            "kvm_capabilities has {capability:?}: capabilities cannot be chosen, leave the list empty"
        ));
    }
    let mut changes: Vec<Change> = Vec::new();
    for modifier in &file.cpuid_modifiers {
        let (leaf, subleaf) = (number(&modifier.leaf)?, number(&modifier.subleaf)?);
        let place = format!("leaf {leaf:#x}, subleaf {subleaf:#x}");
        if modifier.flags & !FLAGS != 0 {
            let flags = modifier.flags;
            return Err(format!("{place}: flags {flags:#x} are none of KVM's"));
        }
        for RegisterModifier { register, bitmap } in &modifier.modifiers {
            let twice = |c: &Change| (c.leaf, c.subleaf, c.register) == (leaf, subleaf, *register);
            if changes.iter().any(twice) {
                return Err(format!("{place}: {register:?} is there twice"));
            }
            let bitmap = Bitmap::parse(bitmap, 32).map_err(|e| format!("{place}: {e}"))?;
            changes.push(Change {
                leaf,
                subleaf,
                register: *register,
                bitmap,
            });
        }
    }
    let mut msrs: Vec<MsrChange> = Vec::new();
    for MsrModifier { addr, bitmap } in &file.msr_modifiers {
        let msr = number(addr)?;
        if msrs.iter().any(|other| other.msr == msr) {
            return Err(format!("MSR {msr:#x} is there twice"));
        }
        let bitmap = Bitmap::parse(bitmap, 64).map_err(|e| format!("MSR {msr:#x}: {e}"))?;
        msrs.push(MsrChange { msr, bitmap });
    }
    Ok((changes, msrs))
}

/// Reads a number: hexadecimal with 0x, binary with 0b, else decimal.
fn number(text: &str) -> Result<u32, String> {
    let parsed = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
        (Some(digits), _) => u32::from_str_radix(digits, 16),
        (_, Some(digits)) => u32::from_str_radix(digits, 2),
        _ => text.parse(),
    };
    let wrong = || format!("{text:?} is no number of 32 bits, like 0x80000001");
    // Rust takes a sign before the digits.
    parsed
        .ok()
        .filter(|_| !text.contains('+'))
        .ok_or_else(wrong)
}
