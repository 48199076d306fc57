//! The processors. Only the software processor exists so far.

use std::sync::Arc;

use umbra_clock::Clock;
use umbra_cpu::Vcpu;
use umbra_cpu_soft::{CodePages, SoftVcpu, SoftVcpuParts, model};
use umbra_irqchip::Chipset;
use umbra_mmu::{Audit, Config, Mmu};
use umbra_slots::AddressSpace;
use umbra_x86::state::CpuState;

use crate::error::BuildError;
use crate::spec::{CpuModel, Spec, Verify};

/// What the processors of a machine share: the MMU, and who has decoded code where.
pub struct Shared {
    pub mmu: Arc<Mmu>,
    pub code: Arc<CodePages>,
}

/// Makes what software processors share.
pub fn shared(spec: &Spec, space: &Arc<AddressSpace>) -> Shared {
    let audit = match spec.verify {
        Verify::Off => Audit::Off,
        Verify::EveryFault(faults) => Audit::EveryFault(faults),
    };
    let config = Config {
        tag_bits: spec.tag_bits,
        audit,
        ..Config::default()
    };
    Shared {
        mmu: Mmu::new(space.clone(), config),
        code: Arc::new(CodePages::new()),
    }
}

/// Makes software processors; number 0 starts in `state`, the others wait for it to wake them.
pub fn soft(
    spec: &Spec,
    space: &Arc<AddressSpace>,
    shared: &Shared,
    chipset: &Chipset,
    clock: Clock,
    state: &CpuState,
) -> Result<Vec<Box<dyn Vcpu>>, BuildError> {
    let mut vcpus: Vec<Box<dyn Vcpu>> = Vec::new();
    for id in 0..spec.cpus {
        let mut vcpu = SoftVcpu::new(SoftVcpuParts {
            id,
            boot: id == 0,
            space: space.clone(),
            mmu: shared.mmu.clone(),
            apic: chipset.apics.apic(id),
            clock,
            cpuid: match spec.cpu_model {
                CpuModel::Stock => model::x86_64_v2(id, spec.cpus),
                CpuModel::Maximal => model::maximal(id, spec.cpus),
            },
            code: shared.code.clone(),
        })?;
        if id == 0 {
            vcpu.set_state(state)?;
        }
        vcpus.push(Box::new(vcpu));
    }
    Ok(vcpus)
}
