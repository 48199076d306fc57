//! A machine on KVM, from the host's device to its processors.

use std::sync::Arc;

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use umbra_clock::{Clock, Timer};
use umbra_cpu::template::{Template, TemplateError};
use umbra_cpu::{Backend, CoalescedPorts, CpuError, Doorbells, EventInterrupts, Vcpu};
use umbra_irq::{Chip, Controller, Line, MsiTarget};
use umbra_slots::{AccessError, AddressSpace, Dma, Gpa, GpaRange, SlotError, Target};
use umbra_x86::cpuid::Table;

use crate::coalesced::Coalesced;
use crate::cpuid;
use crate::dirty::Rings;
use crate::doorbell::{KvmDoorbells, Registry};
use crate::host::Host;
use crate::irq::{Irqchip, IrqchipMode};
use crate::kick::{Requests, request};
use crate::pen::Pen;
use crate::run_page::RunPage;
use crate::saved::{PowerUp, Saver};
use crate::slots::Mirror;
use crate::vcpu::{KvmVcpu, Machine};
use crate::vm::{Vm, failed};

/// How to make a [`KvmBackend`].
#[derive(Clone, Debug)]
pub struct KvmConfig {
    /// Number of processors.
    pub cpus: u32,
    /// Which interrupt controllers are in the kernel.
    pub irqchip: IrqchipMode,
    /// Dirty pages come by rings of so many entries, one for each processor; by bitmaps where there
    /// is no number. A power of two.
    pub dirty_ring: Option<u32>,
    /// Frequency of the guest's time-stamp counter in kHz; the host's if there is none.
    pub tsc_khz: Option<u32>,
    /// What CPUID shows less, and what model-specific registers hold instead.
    pub template: Option<Template>,
}

/// A machine on KVM.
pub struct KvmBackend {
    host: Host,
    clock: Clock,
    vm: Arc<Vm>,
    space: Arc<AddressSpace>,
    irqchip: Arc<Irqchip>,
    pen: Arc<Pen>,
    mirror: Arc<Mirror>,
    rings: Option<Arc<Rings>>,
    doorbells: Arc<KvmDoorbells>,
    coalesced: Arc<Coalesced>,
    cpuid: Table,
    config: KvmConfig,
    /// Makes the boot processor look at the 8259 pair, once it exists.
    look: Arc<std::sync::OnceLock<Arc<Requests>>>,
}

/// Why a machine on KVM could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvmError {
    /// The host refused something, or has less than was asked for.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// Guest memory does not fit into KVM's slots.
    #[error("KVM does not take the guest's memory")]
    Slots(#[from] SlotError),
    /// Too many processors.
    #[error("this kernel's KVM runs {max} processors a machine at most, not {cpus}")]
    Cpus {
        /// What was asked for.
        cpus: u32,
        /// The most.
        max: u32,
    },
    /// The CPU template needs what this host does not have.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// No such frequency here.
    #[error(
        "the guest's time-stamp counter cannot run at {wanted} kHz: this host's runs at {host} kHz and \
         cannot be scaled; leave the frequency out"
    )]
    Frequency {
        /// What was asked for.
        wanted: u32,
        /// What there is.
        host: u32,
    },
    /// No such ring.
    #[error("a dirty ring has a power of two of entries, up to {max} here, not {entries}")]
    Ring {
        /// What was asked for.
        entries: u32,
        /// The most; 0 where the kernel has no rings.
        max: u32,
    },
}

impl KvmBackend {
    /// Makes the machine over a map, whose RAM it has from then on.
    ///
    /// # Errors
    /// If the host refuses something.
    pub fn new(
        host: Host,
        space: Arc<AddressSpace>,
        clock: Clock,
        config: KvmConfig,
    ) -> Result<Arc<Self>, KvmError> {
        let max = u32::try_from(host.kvm().get_max_vcpus()).unwrap_or(u32::MAX);
        if config.cpus > max {
            let cpus = config.cpus;
            return Err(KvmError::Cpus { cpus, max });
        }
        let mut cpuid = cpuid::supported(&host)?;
        if let Some(template) = &config.template {
            cpuid = template.apply(&cpuid)?;
        }
        let vm = Arc::new(Vm::new(&host)?);
        let rings = match config.dirty_ring {
            Some(entries) => Some(Self::rings(&vm, entries)?),
            None => {
                vm.protect_manually()?;
                None
            }
        };
        let irqchip = Arc::new(Irqchip::new(&vm, config.irqchip, clock)?);
        let look = Arc::new(std::sync::OnceLock::<Arc<Requests>>::new());
        let to_look = look.clone();
        irqchip.on_pic_change(Box::new(move || {
            if let Some(requests) = to_look.get() {
                requests.ask(request::LOOK);
            }
        }));
        let pen = Arc::new(Pen::default());
        let registry = Arc::new(Registry::new(vm.clone()));
        let mirror = Arc::new(Mirror::new(
            vm.clone(),
            pen.clone(),
            registry.clone(),
            rings.clone(),
        ));
        mirror.adopt(&space.load_full())?;
        space.add_listener(mirror.clone());
        vm.set_clock(clock.now())?;
        Ok(Arc::new(Self {
            host,
            clock,
            cpuid,
            coalesced: Arc::new(Coalesced::new(vm.clone())),
            doorbells: Arc::new(KvmDoorbells {
                registry,
                space: space.clone(),
            }),
            vm,
            space,
            irqchip,
            pen,
            mirror,
            rings,
            config,
            look,
        }))
    }

    fn rings(vm: &Arc<Vm>, entries: u32) -> Result<Arc<Rings>, KvmError> {
        const ENTRY: u32 = size_of::<kvm_bindings::kvm_dirty_gfn>() as u32;
        let max = vm.limits().dirty_ring / ENTRY;
        if !entries.is_power_of_two() || entries > max {
            return Err(KvmError::Ring { entries, max });
        }
        vm.enable_rings(entries * ENTRY)?;
        Ok(Arc::new(Rings::new(vm.clone(), entries)))
    }

    /// Sets the frequency of a processor's time-stamp counter, and returns it.
    fn set_frequency(&self, vcpu: &VcpuFd) -> Result<Option<u32>, CpuError> {
        let host = vcpu.get_tsc_khz().ok().filter(|khz| *khz != 0);
        let Some(wanted) = self.config.tsc_khz else {
            return Ok(host);
        };
        if host != Some(wanted) {
            let refused = || CpuError::Unsupported {
                backend: "KVM",
                reason: KvmError::Frequency {
                    wanted,
                    host: host.unwrap_or(0),
                }
                .to_string(),
            };
            if !self.vm.limits().tsc_control {
                return Err(refused());
            }
            vcpu.set_tsc_khz(wanted).map_err(|_| refused())?;
        }
        Ok(Some(wanted))
    }
}

/// IA32_MISC_ENABLE with fast strings, and MTRRs that are on and make all memory write-back.
const FIRST_MSRS: [(u32, u64); 2] = [(0x1a0, 1), (0x2ff, 1 << 11 | 6)];

/// Sets what firmware leaves in model-specific registers.
fn set_first_msrs(vcpu: &VcpuFd) -> Result<(), CpuError> {
    for (index, data) in FIRST_MSRS {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).expect("one entry fits");
        let set = vcpu.set_msrs(&msrs).map_err(failed("KVM_SET_MSRS"))?;
        if set != 1 {
            // Kernels differ in what they know; none of this is needed to run.
            tracing::debug!(msr = format_args!("{index:#x}"), "KVM takes no such MSR");
        }
    }
    Ok(())
}

/// Changes model-specific registers as a template says.
fn change_msrs(vcpu: &VcpuFd, template: &Template) -> Result<(), CpuError> {
    for change in template.msrs() {
        let refused = || CpuError::Unsupported {
            backend: "KVM",
            reason: format!(
                "the CPU template {:?} changes MSR {:#x}, which this host's KVM does not let it",
                template.name(),
                change.msr
            ),
        };
        let entry = |data| {
            let entry = kvm_msr_entry {
                index: change.msr,
                data,
                ..Default::default()
            };
            Msrs::from_entries(&[entry]).expect("one entry fits")
        };
        let mut now = entry(0);
        let read = vcpu.get_msrs(&mut now).map_err(failed("KVM_GET_MSRS"))?;
        let [old] = now.as_slice() else {
            return Err(refused());
        };
        let wanted = entry(change.apply(old.data));
        if read != 1 || vcpu.set_msrs(&wanted).map_err(failed("KVM_SET_MSRS"))? != 1 {
            return Err(refused());
        }
    }
    Ok(())
}

/// Sets the boot processor's local APIC up as firmware leaves it for a kernel that knows nothing of
/// APICs: LINT0 for the 8259 pair, LINT1 for NMI (MultiProcessor Specification 1.4, 3.6.2.2).
fn set_virtual_wire(vcpu: &VcpuFd) -> Result<(), CpuError> {
    let mut lapic = vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?;
    for (offset, value) in [(0xf0, 0x10fu32), (0x350, 0x700), (0x360, 0x400)] {
        for (to, from) in lapic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
            *to = from as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(failed("KVM_SET_LAPIC"))
}

impl Backend for KvmBackend {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, CpuError> {
        let fd = self
            .vm
            .fd()
            .create_vcpu(id.into())
            .map_err(failed("KVM_CREATE_VCPU"))?;
        if let Some(rings) = &self.rings {
            rings
                .add(crate::vm::borrow(&fd))
                .map_err(failed("mmap of a dirty ring"))?;
        }
        let frequency = self.set_frequency(&fd)?;
        let table = cpuid::of_processor(&self.cpuid, id, self.config.cpus, frequency);
        fd.set_cpuid2(&cpuid::to_kvm(&table)?)
            .map_err(failed("KVM_SET_CPUID2"))?;
        set_first_msrs(&fd)?;
        if let Some(template) = &self.config.template {
            change_msrs(&fd, template)?;
        }
        let page = RunPage::map(crate::vm::borrow(&fd)).map_err(failed("mmap of kvm_run"))?;
        let requests = Arc::new(Requests::new(page));
        let mut pic = None;
        if id == 0 {
            set_virtual_wire(&fd)?;
            self.coalesced
                .map(crate::vm::borrow(&fd), requests.clone())
                .map_err(failed("mmap of the ring of port writes"))?;
            pic = self.irqchip.pic();
            // Processor 0 is made once.
            let _ = self.look.set(requests.clone());
        }
        let machine = Machine {
            space: self.space.clone(),
            irqchip: self.irqchip.clone(),
            pen: self.pen.clone(),
            mirror: self.mirror.clone(),
            coalesced: self.coalesced.clone(),
        };
        let saver = Saver {
            clock: self.clock,
            power_up: PowerUp::read(&self.host, &fd)?,
            cpuid: table,
        };
        Ok(Box::new(KvmVcpu::new(fd, machine, requests, pic, saver)))
    }

    fn physical_bits(&self) -> u32 {
        self.cpuid.physical_bits()
    }

    fn chip(&self) -> &dyn Chip {
        self.irqchip.chip()
    }

    fn pin(&self, number: u32) -> Option<Arc<dyn Line>> {
        self.irqchip.pin(number)
    }

    fn msi(&self) -> Arc<dyn MsiTarget> {
        self.irqchip.msi()
    }

    fn dma(&self) -> Arc<dyn Dma> {
        Arc::new(DeviceMemory(self.space.clone()))
    }

    fn controllers(&self) -> Vec<Controller> {
        self.irqchip.controllers()
    }

    fn timer(&self) -> Option<Arc<dyn Timer>> {
        self.irqchip.timer()
    }

    fn doorbells(&self) -> Option<Arc<dyn Doorbells>> {
        Some(self.doorbells.clone())
    }

    fn coalesced_ports(&self) -> Option<&dyn CoalescedPorts> {
        self.coalesced.is_offered().then_some(&*self.coalesced)
    }

    fn event_interrupts(&self) -> Option<&dyn EventInterrupts> {
        Some(&*self.irqchip)
    }
}

/// Guest memory, for devices: KVM sees what is written there as the guest itself does.
struct DeviceMemory(Arc<AddressSpace>);

impl Dma for DeviceMemory {
    fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), AccessError> {
        self.0.load().read(gpa, data)
    }

    fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), AccessError> {
        let map = self.0.load();
        let mut at = gpa.0;
        let end = gpa.0.wrapping_add(data.len() as u64);
        while at < end {
            let Target::Ram(ram) = map.resolve(Gpa(at)) else {
                return Err(AccessError::NotRam(Gpa(at)));
            };
            if ram.read_only {
                return Err(AccessError::ReadOnly(Gpa(at)));
            }
            at = at.saturating_add(ram.remaining);
        }
        map.write(gpa, data)
    }

    fn written(&self, _: GpaRange) {}
}
