//! What `/v1` wants of the machine's owner.
//!
//! A machine is described either as a whole (`PUT /v1/vm/spec`) or by Firecracker's paths; devices of `/v1` join either
//! one.

use umbra_vmm::{Plan, Spec, VirtioSpec};

use super::{Instance, LaunchError, Phase};
use crate::firecracker::fault::{Fault, chain};
use crate::firecracker::policy::State;
use crate::v1::routes::{Given, Order};
use crate::v1::types::{VmInfo, VmState};
use crate::v1::{Code, Problem, policy};

/// What `/v1` has said before the start.
#[derive(Debug, Default)]
pub(super) struct Said {
    spec: Option<Spec>,
    devices: Vec<VirtioSpec>,
}

impl From<LaunchError> for Problem {
    fn from(error: LaunchError) -> Self {
        match error {
            LaunchError::Vm(error) => error.into(),
            error => Self::new(Code::HostRefused, chain(&error)),
        }
    }
}

impl Instance {
    /// Does one thing that `/v1` wants. Blocks as long as that takes.
    ///
    /// # Errors
    /// If it is not possible now, or not at all.
    pub fn carry_out_order(&mut self, order: Order) -> Result<Given, Problem> {
        policy::check(self.state(), &order).map_err(|code| Problem::new(code, sentence(code)))?;
        match order {
            Order::Info => {}
            Order::Log => return Ok(Given::Log(self.log.clone())),
            Order::Handle => return Ok(Given::Handle(self.handle()?.clone())),
            Order::Spec => return self.current_spec().map(|spec| Given::Spec(Box::new(spec))),
            Order::PutSpec(spec) => return self.put_spec(*spec).map(|()| Given::Done),
            Order::Devices => return self.devices(),
            Order::PutDevice(device) => return self.put_device(*device).map(|()| Given::Done),
            Order::Remove(id) => return self.begin_removal(&id),
            Order::Forget(id) => {
                self.forget(&id);
                return Ok(Given::Done);
            }
            Order::Start => {
                let spec = self.wanted()?;
                self.launch(spec)?;
            }
            Order::Pause => drop(self.pause()?),
            Order::Resume => drop(self.resume()?),
            Order::Stop => self.handle()?.stop(),
            Order::Reset => {
                if let Phase::Running(running) = &mut self.phase {
                    running.handle.reset()?;
                    running.paused = false;
                }
            }
        }
        Ok(Given::Info(self.vm_info()))
    }

    fn vm_info(&self) -> VmInfo {
        let running = match &self.phase {
            Phase::Running(running) => Some(running),
            Phase::Before | Phase::Ended => None,
        };
        VmInfo {
            id: self.options.id.clone(),
            state: match self.state() {
                State::Before => VmState::NotStarted,
                State::Running => VmState::Running,
                State::Paused => VmState::Paused,
                State::Ended => VmState::Ended,
            },
            boots: running.map_or(0, |running| running.handle.boots()),
            backend: running.map(|running| running.backend.to_owned()),
            fallback: running.and_then(|running| running.fallback.clone()),
        }
    }

    /// The machine that was described until now.
    pub(super) fn described(&self) -> Result<Spec, Fault> {
        let mut spec = match &self.said.spec {
            Some(_) if self.config.is_touched() => {
                return Err(Fault::Start(
                    "the machine is described by /v1/vm/spec and by paths of its own besides"
                        .into(),
                ));
            }
            Some(spec) => spec.clone(),
            None => self.config.spec(&self.options, &self.metadata)?,
        };
        spec.virtio.extend(self.said.devices.iter().cloned());
        Ok(spec)
    }

    /// The same, or what is missing.
    fn wanted(&self) -> Result<Spec, Problem> {
        if self.said.spec.is_none() && !self.config.has_kernel() {
            return Err(Problem::new(Code::NoKernel, "no kernel was named yet"));
        }
        Ok(self.described()?)
    }

    fn current_spec(&self) -> Result<Spec, Problem> {
        match &self.phase {
            Phase::Running(running) => Ok(Spec {
                virtio: running.handle.device_specs()?,
                ..running.spec.clone()
            }),
            Phase::Before | Phase::Ended => self.wanted(),
        }
    }

    fn put_spec(&mut self, spec: Spec) -> Result<(), Problem> {
        if self.config.is_touched() {
            let message = "the machine is described by Firecracker's paths already";
            return Err(Problem::new(Code::DescribedOtherwise, message));
        }
        check(spec.clone())?;
        self.said = Said {
            spec: Some(spec),
            devices: Vec::new(),
        };
        Ok(())
    }

    /// What is described until now; nothing is missing in it that a list of devices needs.
    fn described_devices(&self) -> Vec<VirtioSpec> {
        match self.described() {
            Ok(spec) => spec.virtio,
            // Without a kernel there is no machine yet, and there are devices.
            Err(_) => self.said.devices.clone(),
        }
    }

    fn devices(&self) -> Result<Given, Problem> {
        Ok(match &self.phase {
            Phase::Running(running) => Given::Handle(running.handle.clone()),
            Phase::Before | Phase::Ended => Given::Devices(self.described_devices()),
        })
    }

    fn put_device(&mut self, device: VirtioSpec) -> Result<(), Problem> {
        if let Phase::Running(running) = &self.phase {
            return Ok(running.handle.add_device(&device)?);
        }
        let mut all = self.described_devices();
        all.push(device.clone());
        // What it is checked with besides is the smallest machine there is.
        let mut spec = self
            .described()
            .unwrap_or_else(|_| Spec::new("kernel").pci());
        spec.virtio = all;
        check(spec)?;
        self.said.devices.push(device);
        Ok(())
    }

    fn begin_removal(&mut self, id: &str) -> Result<Given, Problem> {
        if let Phase::Running(running) = &self.phase {
            running.handle.remove_device(id)?;
            return Ok(Given::Handle(running.handle.clone()));
        }
        if !self
            .described_devices()
            .iter()
            .any(|device| device.id == id)
        {
            return Err(crate::v1::no_such_device(id));
        }
        if !self.forget(id) {
            let message =
                format!("the device {id:?} is described by Firecracker's paths, and stays");
            return Err(Problem::new(Code::DescribedOtherwise, message));
        }
        Ok(Given::Done)
    }

    /// Forgets a device that is no longer there; `false` if it is none that could come and go.
    fn forget(&mut self, id: &str) -> bool {
        let before = self.said.devices.len();
        self.said.devices.retain(|device| device.id != id);
        let mut found = self.said.devices.len() != before;
        if let Some(spec) = &mut self.said.spec {
            let before = spec.virtio.len();
            spec.virtio.retain(|device| device.id != id);
            found |= spec.virtio.len() != before;
        }
        found | self.config.forget(id)
    }
}

/// Why an order is not possible now.
fn sentence(code: Code) -> &'static str {
    match code {
        Code::NotStarted => "the machine has not been started",
        Code::Started => "the machine has been started already",
        _ => "the machine has ended",
    }
}

/// Checks what can be checked before anything is built.
fn check(spec: Spec) -> Result<(), Problem> {
    let checked = Plan::new(spec).map(drop);
    checked.map_err(|error| Problem::from(&error))
}
