//! Which backend executes the guest. The only place that knows more than one of them.

use std::path::Path;
use std::sync::Arc;

use umbra_clock::{Clock, TSC_HZ};
use umbra_cpu::template::{Template, TemplateError};
use umbra_cpu_kvm::{Host, HostError, KvmBackend, KvmConfig};
use umbra_cpu_soft::{Audit, MmuConfig, SoftBackend, SoftConfig, model};
use umbra_slots::AddressSpace;

use crate::error::BuildError;
use crate::own::{BackendParts, Own};
use crate::spec::{Backend, CpuModel, CpuTemplate, Spec, Verify};

/// Reads the CPU template, if one is wanted.
fn template(spec: &Spec) -> Result<Option<Template>, TemplateError> {
    match &spec.cpu_template {
        None => Ok(None),
        Some(CpuTemplate::Load(name)) => Template::load(name).map(Some),
        Some(CpuTemplate::Read(template)) => Ok(Some(template.clone())),
    }
}

/// What executes the guest, and why nothing better does.
pub struct Chosen {
    pub backend: Arc<dyn umbra_cpu::Backend>,
    /// Why KVM was not taken, where it would have been.
    pub fallback: Option<String>,
}

/// Makes the embedder's own backend if there is one, or else what the specification asks for.
pub fn choose(
    spec: &Spec,
    own: &Own,
    space: &Arc<AddressSpace>,
    clock: Clock,
) -> Result<Chosen, BuildError> {
    let Some(make_own) = &own.backend else {
        return make(spec, own, space, clock);
    };
    let backend = make_own(BackendParts {
        space: space.clone(),
        clock,
        cpus: spec.cpus,
    })?;
    Ok(Chosen {
        backend,
        fallback: None,
    })
}

/// Makes the backend that the specification asks for.
fn make(
    spec: &Spec,
    own: &Own,
    space: &Arc<AddressSpace>,
    clock: Clock,
) -> Result<Chosen, BuildError> {
    let chosen = |backend| Chosen {
        backend,
        fallback: None,
    };
    match spec.backend {
        Backend::Soft => Ok(chosen(soft(spec, own, space, clock)?)),
        Backend::Kvm => {
            let host = Host::open(&spec.kvm.device)?;
            Ok(chosen(kvm(spec, host, space, clock)?))
        }
        // What only the software processor has was asked for.
        Backend::Auto if spec.verify != Verify::Off => Ok(chosen(soft(spec, own, space, clock)?)),
        Backend::Auto => match fit(&spec.kvm.device) {
            Ok(host) => Ok(chosen(kvm(spec, host, space, clock)?)),
            Err(reason) => {
                tracing::info!(%reason, "the software processor is used");
                Ok(Chosen {
                    backend: soft(spec, own, space, clock)?,
                    fallback: Some(reason),
                })
            }
        },
    }
}

/// Tells whether KVM can be used at all, and then whether it runs stock systems, so that
/// [`Backend::Auto`] takes it; the errors say why not. Blocks for a few milliseconds: a few thousand
/// instructions are run.
///
/// # Errors
/// If KVM is missing, not permitted or too old.
pub fn probe(device: &Path) -> Result<Result<(), String>, HostError> {
    let host = Host::open(device)?;
    Ok(umbra_cpu_kvm::probe::run(&host).map_err(|error| error.to_string()))
}

/// Opens KVM if it runs stock systems; else tells why not.
fn fit(device: &Path) -> Result<Host, String> {
    let fit = |host| umbra_cpu_kvm::probe::run(&host).map(|()| host);
    let host = Host::open(device).and_then(fit);
    host.map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}

fn kvm(
    spec: &Spec,
    host: Host,
    space: &Arc<AddressSpace>,
    clock: Clock,
) -> Result<Arc<dyn umbra_cpu::Backend>, BuildError> {
    let config = KvmConfig {
        cpus: spec.cpus,
        irqchip: spec.kvm.irqchip,
        dirty_ring: spec.kvm.dirty_ring,
        tsc_khz: spec.kvm.tsc_khz,
        template: template(spec)?,
    };
    Ok(KvmBackend::new(host, space.clone(), clock, config)?)
}

fn soft(
    spec: &Spec,
    own: &Own,
    space: &Arc<AddressSpace>,
    clock: Clock,
) -> Result<Arc<dyn umbra_cpu::Backend>, BuildError> {
    const OWN_KHZ: u32 = (TSC_HZ / 1000) as u32;
    if let Some(khz) = spec.kvm.tsc_khz.filter(|khz| *khz != OWN_KHZ) {
        return Err(BuildError::Frequency { khz, own: OWN_KHZ });
    }
    let audit = match spec.verify {
        Verify::Off => Audit::Off,
        Verify::EveryFault(faults) => Audit::EveryFault(faults),
    };
    let template = template(spec)?;
    if let Some(template) = &template
        && let Some(change) = template.msrs().first()
    {
        return Err(BuildError::Template(TemplateError::Msr {
            name: template.name().to_owned(),
            msr: change.msr,
            backend: "soft",
        }));
    }
    let cpuid = |id| {
        let table = match spec.cpu_model {
            CpuModel::Stock => model::x86_64_v2(id, spec.cpus),
            CpuModel::Maximal => model::maximal(id, spec.cpus),
        };
        match &template {
            Some(template) => template.apply(&table),
            None => Ok(table),
        }
    };
    let config = SoftConfig {
        cpus: spec.cpus,
        cpuid: (0..spec.cpus).map(cpuid).collect::<Result<_, _>>()?,
        mmu: MmuConfig {
            tag_bits: spec.tag_bits,
            audit,
            ..MmuConfig::default()
        },
        processor: spec.processor,
        measure: own.measure,
    };
    Ok(SoftBackend::new(space.clone(), clock, config))
}
