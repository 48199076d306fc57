//! `/entropy`: random bytes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use umbra_vmm::{RngSpec, VirtioKind};

use super::limits::RateLimiter;

/// A device that gives the host's random bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    /// How many.
    #[serde(default)]
    pub rate_limiter: Option<RateLimiter>,
}

impl Entropy {
    /// The device that it asks for.
    pub fn kind(&self) -> VirtioKind {
        VirtioKind::Rng(RngSpec {
            limits: self.rate_limiter.unwrap_or_default().limits(),
        })
    }
}
