//! The host's `/dev/kvm`: is it there, may we, and can it do what is needed?

use std::io;
use std::path::{Path, PathBuf};

use kvm_ioctls::{Cap, Kvm, VmFd};

/// Where KVM is.
pub const DEVICE: &str = "/dev/kvm";

/// `KVM_API_VERSION`: frozen since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Capabilities that there is no way around, and the kernel that brought each.
const NEEDED: &[(Cap, &str, &str)] = &[
    (Cap::UserMemory, "memory slots", "2.6.25"),
    (Cap::SetTssAddr, "KVM_SET_TSS_ADDR", "2.6.24"),
    (Cap::ExtCpuid, "KVM_GET_SUPPORTED_CPUID", "2.6.26"),
    (Cap::MpState, "KVM_GET_MP_STATE", "2.6.26"),
    (
        Cap::Irqchip,
        "an interrupt controller in the kernel",
        "2.6.20",
    ),
    (Cap::IrqRouting, "interrupt routes", "2.6.30"),
    (Cap::Irqfd, "interrupts by event", "2.6.32"),
    (Cap::Ioeventfd, "notifications by event", "2.6.32"),
    (
        Cap::DestroyMemoryRegionWorks,
        "removing memory slots",
        "2.6.30",
    ),
    (
        Cap::JoinMemoryRegionsWorks,
        "joining memory slots",
        "2.6.30",
    ),
    (Cap::VcpuEvents, "KVM_GET_VCPU_EVENTS", "2.6.33"),
    (Cap::Debugregs, "KVM_GET_DEBUGREGS", "2.6.35"),
    (Cap::Xsave, "KVM_GET_XSAVE", "2.6.36"),
    (Cap::Xcrs, "KVM_GET_XCRS", "2.6.36"),
    (Cap::SignalMsi, "KVM_SIGNAL_MSI", "3.5"),
    (Cap::ReadonlyMem, "read-only memory slots", "3.7"),
    (Cap::AdjustClock, "KVM_SET_CLOCK", "2.6.33"),
    (Cap::CheckExtensionVm, "KVM_CHECK_EXTENSION of a VM", "3.17"),
    (Cap::ImmediateExit, "immediate_exit", "4.13"),
];

/// Why KVM cannot be used here. Each says what was tried, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// There is no such device.
    #[error(
        "{path:?} does not exist: load the module kvm_intel or kvm_amd, turn virtualisation on in the \
         firmware, or give the container the device (--device {DEVICE})"
    )]
    Missing {
        /// What was opened.
        path: PathBuf,
    },
    /// It may not be opened.
    #[error(
        "{path:?} may not be opened by this user: add the user to the group that owns it (usermod -aG \
         kvm USER, then log in again), or run in a container that may use devices"
    )]
    NotPermitted {
        /// What was opened.
        path: PathBuf,
    },
    /// It could not be opened.
    #[error("{path:?} cannot be opened")]
    Open {
        /// What was opened.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "{path:?} is not KVM, or one of before 2007: its API version is {found}, not {API_VERSION}"
    )]
    ApiVersion {
        /// What was opened.
        path: PathBuf,
        /// What it says.
        found: i32,
    },
    /// It is too old.
    #[error(
        "this kernel's KVM has no {what}, which Linux has had since {since}: use a newer kernel"
    )]
    Lacks {
        /// What it lacks.
        what: &'static str,
        /// Since when it is there.
        since: &'static str,
    },
    /// It gives no machine.
    #[error(
        "KVM cannot make a virtual machine; another hypervisor may hold the processor (rmmod vboxdrv), \
         or too many machines run"
    )]
    CreateVm(#[source] io::Error),
    /// It works, but not for stock systems.
    #[error(transparent)]
    Unfit(#[from] crate::probe::Unfit),
}

/// An open KVM that can do what is needed.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
}

impl Host {
    /// Opens KVM and checks it.
    ///
    /// # Errors
    /// If it is missing, not permitted or too old.
    pub fn open(path: &Path) -> Result<Self, HostError> {
        let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| HostError::Missing { path: path.into() })?;
        let kvm = Kvm::new_with_path(name).map_err(|errno| {
            let path = path.to_owned();
            match errno.errno() {
                libc::ENOENT | libc::ENXIO | libc::ENODEV => HostError::Missing { path },
                libc::EACCES | libc::EPERM => HostError::NotPermitted { path },
                _ => HostError::Open {
                    path,
                    source: errno.into(),
                },
            }
        })?;
        let found = kvm.get_api_version();
        if found != API_VERSION {
            let path = path.into();
            return Err(HostError::ApiVersion { path, found });
        }
        for (cap, what, since) in NEEDED {
            if !kvm.check_extension(*cap) {
                return Err(HostError::Lacks { what, since });
            }
        }
        Ok(Self { kvm })
    }

    /// Returns the open device.
    pub(crate) fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Makes an empty machine.
    pub(crate) fn create_vm(&self) -> Result<VmFd, HostError> {
        // A signal may interrupt this call: the kernel then gives up what it did so far.
        loop {
            match self.kvm.create_vm() {
                Ok(vm) => return Ok(vm),
                Err(errno) if errno.errno() == libc::EINTR => {}
                Err(errno) => return Err(HostError::CreateVm(errno.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_is_not_kvm_is_said_in_one_line_with_a_way_out() {
        let table = [
            ("/nonexistent/kvm", "does not exist: load the module"),
            ("/dev/null", "is not KVM"),
            ("/", "cannot be opened"),
        ];
        for (path, text) in table {
            let error = Host::open(Path::new(path)).unwrap_err().to_string();
            assert!(error.contains(text) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn refusals_name_the_device_and_what_to_do() {
        let path = PathBuf::from(DEVICE);
        let refused = HostError::NotPermitted { path }.to_string();
        assert!(
            refused.contains(DEVICE) && refused.contains("usermod"),
            "{refused}"
        );
        let (what, since) = ("immediate_exit", "4.13");
        let old = HostError::Lacks { what, since }.to_string();
        assert!(
            old.contains("4.13") && old.contains("newer kernel"),
            "{old}"
        );
    }
}
