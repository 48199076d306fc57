//! Changes of a device while it is at work. What a change may say depends on the device's kind; all of it is checked
//! before anything of it is done.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use umbra_vmm::{Handle, LimitsForm, VirtioKind};

use super::{Code, Problem};
use crate::firecracker::fault::chain;

/// What is to be another way. Fields that are left out stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceChange {
    /// Of a disk: another file for it. The file that is there already is looked at again, for its size.
    pub path: Option<PathBuf>,
    /// Of a disk, and of a file as memory: how much the guest may do in what time.
    pub limits: Option<LimitsForm>,
    /// Of a network interface: how much the guest may receive.
    pub receive: Option<LimitsForm>,
    /// Of a network interface: how much it may send.
    pub transmit: Option<LimitsForm>,
    /// Of a network interface: whether its cable is plugged in.
    pub link: Option<bool>,
    /// Of a balloon: how many bytes the guest shall lend.
    pub target: Option<u64>,
    /// Of a balloon: how often the guest is asked for statistics, in milliseconds, 100 or more; 0 is never.
    pub polling_ms: Option<u64>,
    /// Of memory that comes and goes: how many bytes the guest shall have.
    pub requested: Option<u64>,
}

/// The shortest time between two questions for statistics.
const POLLING_MIN_MS: u64 = 100;

impl DeviceChange {
    /// The fields that it has, by name.
    fn fields(&self) -> Vec<&'static str> {
        let all = [
            ("path", self.path.is_some()),
            ("limits", self.limits.is_some()),
            ("receive", self.receive.is_some()),
            ("transmit", self.transmit.is_some()),
            ("link", self.link.is_some()),
            ("target", self.target.is_some()),
            ("polling_ms", self.polling_ms.is_some()),
            ("requested", self.requested.is_some()),
        ];
        let there = all.into_iter().filter(|(_, there)| *there);
        there.map(|(name, _)| name).collect()
    }

    fn check(&self, kind: &VirtioKind) -> Result<(), Problem> {
        let fields = self.fields();
        if fields.is_empty() {
            return Err(Problem::new(Code::Invalid, "the change says nothing"));
        }
        let possible: &[&str] = match kind {
            VirtioKind::Block(_) => &["path", "limits"],
            VirtioKind::Pmem(_) => &["limits"],
            VirtioKind::Net(_) => &["receive", "transmit", "link"],
            VirtioKind::Balloon(_) => &["target", "polling_ms"],
            VirtioKind::Mem(_) => &["requested"],
            _ => &[],
        };
        let other = fields.into_iter().find(|field| !possible.contains(field));
        if let Some(field) = other {
            let kind = kind.name();
            let has = match possible {
                [] => "nothing".to_owned(),
                some => some.join(", "),
            };
            let message = format!(
                "a virtio-{kind} device has no {field} that could be changed; it has {has}"
            );
            return Err(Problem::new(Code::NotOfThisDevice, message).of(field));
        }
        match self.polling_ms {
            Some(ms) if ms != 0 && ms < POLLING_MIN_MS => Err(Problem::new(
                Code::Invalid,
                format!(
                    "the guest is asked every {POLLING_MIN_MS} ms at the most, not {ms}; 0 is never"
                ),
            )
            .of("polling_ms")),
            _ => Ok(()),
        }
    }

    /// Changes a device. Blocks as long as the host needs to open and flush a disk.
    ///
    /// # Errors
    /// If there is no such device, it is of another kind, or the host refuses. Limits are changed first, the file last:
    /// what has been changed when that fails stays so.
    pub fn apply(self, handle: &Handle, id: &str) -> Result<(), Problem> {
        let missing = || {
            Problem::new(
                Code::NoSuchDevice,
                format!("there is no device named {id:?}"),
            )
        };
        let specs = handle.device_specs()?;
        let spec = specs.into_iter().find(|spec| spec.id == id);
        self.check(&spec.ok_or_else(missing)?.kind)?;
        if let (Some(limits), Some(disk)) = (self.limits, handle.disk(id)) {
            disk.set_limits(limits.into());
        }
        if let (Some(limits), Some(pmem)) = (self.limits, handle.pmem(id)) {
            pmem.set_limits(limits.into());
        }
        if self.receive.is_some() || self.transmit.is_some() || self.link.is_some() {
            self.change_network(handle, id)?;
        }
        if let (Some(bytes), Some(balloon)) = (self.target, handle.balloon(id)) {
            let most = handle.ram()?;
            if bytes >= most {
                let message = format!(
                    "the guest has {most} bytes of memory, and cannot lend {bytes} of them"
                );
                return Err(Problem::new(Code::Invalid, message).of("target"));
            }
            let set = balloon.set_target(bytes);
            set.map_err(|error| Problem::new(Code::Invalid, chain(&error)).of("target"))?;
        }
        if let (Some(ms), Some(balloon)) = (self.polling_ms, handle.balloon(id)) {
            balloon.set_polling((ms != 0).then(|| Duration::from_millis(ms)));
        }
        if let (Some(bytes), Some(memory)) = (self.requested, handle.memory(id)) {
            let set = memory.request(bytes);
            set.map_err(|error| Problem::new(Code::Invalid, chain(&error)).of("requested"))?;
        }
        if let Some(path) = &self.path {
            handle.replace_disk(id, path)?;
        }
        Ok(())
    }

    fn change_network(&self, handle: &Handle, id: &str) -> Result<(), Problem> {
        let Some(net) = handle.network(id) else {
            let message =
                "the host's kernel moves this interface's frames: it has no limits and no cable";
            return Err(Problem::new(Code::NotOfThisDevice, message));
        };
        if let Some(limits) = self.receive {
            net.set_receive_limits(limits.into());
        }
        if let Some(limits) = self.transmit {
            net.set_transmit_limits(limits.into());
        }
        if let Some(up) = self.link {
            net.set_link(up);
        }
        Ok(())
    }
}
