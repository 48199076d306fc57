//! A virtio device apart from a machine, for who has a transport of its own: another process.

use umbra_boot::layout::MIN_RAM;
use umbra_virtio::Device;

use crate::build::{Helper, make_apart};
use crate::error::{BuildError, PlanError};
use crate::plan::check_virtio;
use crate::spec::VirtioSpec;

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApartError {
    /// A number is out of range.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The host, or a file, does not allow it.
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl ApartError {
    /// Tells whether another process has the file of a disk, which may be about to end: one that was killed lets a
    /// file go when the host has ended what it was asked by io_uring.
    pub fn is_held_elsewhere(&self) -> bool {
        let Self::Build(BuildError::Disk { source, .. }) = self else {
            return false;
        };
        matches!(source, umbra_block::OpenError::Locked { .. })
    }
}

/// Who works for a device, as long as it is there; dropped after it.
pub struct Helpers {
    _helper: Helper,
}

/// Makes a device as a machine would have it: block, net, rng, vsock or console. The others are the memory of a
/// machine.
///
/// # Errors
/// If a number is out of range, a file or the host refuses, or the device is memory.
pub fn device_apart(spec: &VirtioSpec) -> Result<(Box<dyn Device>, Helpers), ApartError> {
    check_virtio([spec], MIN_RAM, 1)?;
    let made = make_apart(spec, None)?;
    let helpers = Helpers {
        _helper: made.helper,
    };
    Ok((made.device, helpers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{
        BalloonSpec, ConsoleSpec, DiskSpec, PmemSpec, PortEnd, PortSpec, RngSpec, VirtioKind,
        VsockSpec,
    };

    fn spec(kind: VirtioKind) -> VirtioSpec {
        VirtioSpec {
            id: "d".into(),
            kind,
        }
    }

    fn console(end: PortEnd) -> VirtioKind {
        let port = PortSpec { name: None, end };
        VirtioKind::Console(ConsoleSpec { ports: vec![port] })
    }

    #[test]
    fn devices_are_made_without_a_machine() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        std::fs::write(&disk, [0; 512]).unwrap();
        let vsock = VsockSpec::new(3, dir.path().join("vsock"));
        let table = [
            (VirtioKind::Rng(RngSpec::default()), 4),
            (VirtioKind::Block(DiskSpec::new(&disk)), 2),
            (VirtioKind::Vsock(vsock), 19),
            (console(PortEnd::File(dir.path().join("log"))), 3),
        ];
        for (kind, id) in table {
            assert_eq!(device_apart(&spec(kind)).unwrap().0.id(), id);
        }
    }

    #[test]
    fn requests_to_a_disk_fit_into_the_queues_that_front_ends_have() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(512).unwrap();
        let disk = spec(VirtioKind::Block(DiskSpec::new(file.path())));
        let (device, _helpers) = device_apart(&disk).unwrap();
        let mut segments = [0; 4];
        device.read_config(12, &mut segments);
        assert_eq!(u32::from_le_bytes(segments), 128 - 2);
    }

    #[test]
    fn what_is_no_device_apart_is_refused_with_its_reason() {
        let vsock = VsockSpec::new(1, "v");
        let table = [
            (
                VirtioKind::Balloon(BalloonSpec::default()),
                "machine's memory",
            ),
            (VirtioKind::Pmem(PmemSpec::new("p")), "machine's memory"),
            (VirtioKind::Block(DiskSpec::new("/no/such")), "/no/such"),
            (VirtioKind::Vsock(vsock), "CID"),
            (console(PortEnd::Console), "no terminal"),
        ];
        for (kind, why) in table {
            let Err(error) = device_apart(&spec(kind)) else {
                panic!("{why}");
            };
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text.push_str(&error.to_string());
                cause = error.source();
            }
            assert!(text.contains(why), "{text}");
        }
    }
}
