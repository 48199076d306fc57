//! `/cpu-config`: what the processors show of themselves (`docs/cpu-templates.md`).

use umbra_vmm::CpuTemplate;

use crate::firecracker::fault::{Fault, chain};

/// What the template is called in messages.
const NAME: &str = "cpu-config";

/// Checks a template. What the host's processor does not have is found when the machine starts.
pub fn parse(body: &str) -> Result<CpuTemplate, Fault> {
    CpuTemplate::parse(NAME, body).map_err(|error| Fault::Json(chain(&error)))
}
