//! CPU templates: data files that mask what CPUID shows, so that a fleet of different hosts looks alike.
//!
//! The format is that of Firecracker's custom CPU templates: for each leaf and register a bitmap of `0`
//! (cleared), `1` (set) and `x` (left as it is). A file may clear what it likes. A `1` in a register of
//! features is a promise: where the processor does not have the feature, the template is refused, by
//! name. Sizes of the XSAVE area follow the components that are left.
//!
//! Vendor, family, model, stepping and brand stay the host's unless a file says otherwise: kernels choose
//! workarounds by them, and must choose those of the processor that executes.
//!
//! Start reading at [`Template::load`].

mod bitmap;
mod features;
mod file;

use std::path::{Path, PathBuf};

use umbra_x86::cpuid::{Leaf, Table};

use bitmap::Bitmap;
use features::Register;

/// The templates that come with this crate: the levels of the x86-64 psABI.
const NAMED: [(&str, &str); 3] = [
    ("x86-64-v2", include_str!("../../templates/x86-64-v2.json")),
    ("x86-64-v3", include_str!("../../templates/x86-64-v3.json")),
    ("x86-64-v4", include_str!("../../templates/x86-64-v4.json")),
];

/// Why a template cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// Neither a name nor a file.
    #[error("there is no CPU template {name:?}, and no such file: the named ones are {}", names().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The file cannot be read.
    #[error("the CPU template {path:?} cannot be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The file is no template.
    #[error("the CPU template {name:?} is not understood: {what}")]
    Malformed {
        /// Which.
        name: String,
        /// What is wrong, and where.
        what: String,
    },
    /// It promises what is not there.
    #[error(
        "the CPU template {name:?} needs what this processor does not have: {}; take a lower template",
        missing.join(", ")
    )]
    Missing {
        /// Which template.
        name: String,
        /// The features, with the places of their bits.
        missing: Vec<String>,
    },
    /// It changes what this backend does not let it.
    #[error(
        "the CPU template {name:?} changes MSR {msr:#x}, which the {backend} backend does not allow"
    )]
    Msr {
        /// Which template.
        name: String,
        /// The register.
        msr: u32,
        /// The backend.
        backend: &'static str,
    },
}

/// Returns the names of the templates that come with this crate.
pub fn names() -> Vec<&'static str> {
    NAMED.iter().map(|(name, _)| *name).collect()
}

/// A change of one register of one leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    leaf: u32,
    subleaf: u32,
    register: Register,
    bitmap: Bitmap,
}

/// A change of a model-specific register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrChange {
    /// Its number.
    pub msr: u32,
    bitmap: Bitmap,
}

impl MsrChange {
    /// Returns what the register holds instead of `value`.
    pub fn apply(&self, value: u64) -> u64 {
        self.bitmap.apply(value)
    }
}

/// A template that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    name: String,
    changes: Vec<Change>,
    msrs: Vec<MsrChange>,
}

impl Template {
    /// Reads the template of this name, or else the file of this path.
    ///
    /// # Errors
    /// If there is neither, or the file is no template.
    pub fn load(name: &str) -> Result<Self, TemplateError> {
        if let Some((name, text)) = NAMED.iter().find(|(known, _)| *known == name) {
            return Self::parse(name, text);
        }
        let path = Path::new(name);
        if !path.exists() {
            return Err(TemplateError::Unknown { name: name.into() });
        }
        let text = std::fs::read_to_string(path).map_err(|source| TemplateError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(name, &text)
    }

    /// Reads a template from the text of a file; `name` is for messages.
    ///
    /// # Errors
    /// If the text is no template: no JSON, a field that does not exist, a number or a bitmap that is
    /// none, a register that a leaf has twice.
    pub fn parse(name: &str, text: &str) -> Result<Self, TemplateError> {
        file::parse(text)
            .map(|(changes, msrs)| Self {
                name: name.to_owned(),
                changes,
                msrs,
            })
            .map_err(|what| TemplateError::Malformed {
                name: name.to_owned(),
                what,
            })
    }

    /// Returns its name, or its path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the changes of model-specific registers.
    pub fn msrs(&self) -> &[MsrChange] {
        &self.msrs
    }

    /// Returns `table` as the template leaves it. Leaves that the table does not have stay absent, which
    /// is all zeros.
    ///
    /// # Errors
    /// If the template promises features that `table` does not have; all of them are named.
    pub fn apply(&self, table: &Table) -> Result<Table, TemplateError> {
        let mut missing = Vec::new();
        let mut masked = table.clone();
        for change in &self.changes {
            let (leaf, subleaf) = (change.leaf, change.subleaf);
            let old = masked.get(leaf, subleaf);
            let value = change.register.of(&old);
            let new = change.bitmap.apply(value.into()) as u32;
            for bit in (0..32).filter(|bit| (new & !value) >> bit & 1 != 0) {
                missing.extend(features::name(leaf, subleaf, change.register, bit));
            }
            let Some(row) = masked
                .rows()
                .iter()
                .find(|row| row.function == leaf && row.index.is_none_or(|i| i == subleaf))
                .copied()
            else {
                continue;
            };
            let changed = change.register.with(row.leaf, new);
            masked.set(row.function, row.index, changed);
        }
        if !missing.is_empty() {
            let name = self.name.clone();
            return Err(TemplateError::Missing { name, missing });
        }
        settle_xsave(&mut masked);
        Ok(masked)
    }
}

/// Makes the leaves of XSAVE say what the components that are left need (SDM vol. 1, 13.4.2).
fn settle_xsave(table: &mut Table) {
    const LEAF: u32 = 0xd;
    /// The legacy area and the header.
    const LEAST: u32 = 512 + 64;
    let main = table.get(LEAF, 0);
    if main == Leaf::default() {
        return;
    }
    let components = u64::from(main.edx) << 32 | u64::from(main.eax);
    let mut size = if components == 0 { 0 } else { LEAST };
    for number in 2..63 {
        let component = table.get(LEAF, number);
        if component == Leaf::default() {
            continue;
        }
        // Bit 0 of ECX: a component of IA32_XSS, which has no place in the standard form.
        if components >> number & 1 == 0 {
            table.set(LEAF, Some(number), Leaf::default());
        } else if component.ecx & 1 == 0 {
            size = size.max(component.ebx.saturating_add(component.eax));
        }
    }
    let ebx = if components == 0 {
        0
    } else {
        main.ebx.min(size)
    };
    table.set(
        LEAF,
        Some(0),
        Leaf {
            ebx,
            ecx: size,
            ..main
        },
    );
}

#[cfg(test)]
mod tests;
