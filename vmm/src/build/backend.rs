//! Which backend executes the guest. The only place that knows more than one of them.

use std::sync::Arc;

use umbra_clock::Clock;
use umbra_cpu::Backend;
use umbra_cpu_soft::{Audit, MmuConfig, SoftBackend, SoftConfig, model};
use umbra_slots::AddressSpace;

use crate::error::BuildError;
use crate::spec::{CpuModel, Spec, Verify};

/// Makes the backend that the specification asks for.
pub fn make(
    spec: &Spec,
    space: &Arc<AddressSpace>,
    clock: Clock,
) -> Result<Arc<dyn Backend>, BuildError> {
    Ok(soft(spec, space, clock))
}

fn soft(spec: &Spec, space: &Arc<AddressSpace>, clock: Clock) -> Arc<dyn Backend> {
    let audit = match spec.verify {
        Verify::Off => Audit::Off,
        Verify::EveryFault(faults) => Audit::EveryFault(faults),
    };
    let cpuid = |id| match spec.cpu_model {
        CpuModel::Stock => model::x86_64_v2(id, spec.cpus),
        CpuModel::Maximal => model::maximal(id, spec.cpus),
    };
    let config = SoftConfig {
        cpus: spec.cpus,
        cpuid: (0..spec.cpus).map(cpuid).collect(),
        mmu: MmuConfig {
            tag_bits: spec.tag_bits,
            audit,
            ..MmuConfig::default()
        },
    };
    SoftBackend::new(space.clone(), clock, config)
}
