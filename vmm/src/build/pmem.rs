//! Persistent memory: a file of the host, locked and mapped, and the device that says where.

use std::io::{Seek, SeekFrom};
use std::path::Path;

use umbra_block::DiskOptions;
use umbra_devices::virtio::Pmem;
use umbra_devices::virtio::pmem::Flush;
use umbra_slots::{FileAccess, RamRegion};

use super::high::Shown;
use super::virtio::{Control, Helper, Made, Surroundings};
use crate::error::{BuildError, PmemError};
use crate::spec::PmemSpec;

/// Makes the device, when its memory is in the map.
pub fn make(id: &str, spec: &PmemSpec, around: &Surroundings<'_>) -> Result<Made, BuildError> {
    let made = try_make(id, spec, around);
    made.map_err(|source| BuildError::Pmem {
        id: id.to_owned(),
        source,
    })
}

fn try_make(id: &str, spec: &PmemSpec, around: &Surroundings<'_>) -> Result<Made, PmemError> {
    let options = DiskOptions {
        read_only: spec.read_only,
        ..DiskOptions::default()
    };
    let file = umbra_block::open_file(&spec.path, &options)?;
    let host = |source| PmemError::Host {
        path: spec.path.clone(),
        source,
    };
    // The end of a block device, too.
    let file_len = (&file).seek(SeekFrom::End(0)).map_err(host)?;
    let len = shown_len(&spec.path, file_len, spec.size)?;
    let flush: Flush = match spec.read_only {
        true => Box::new(|| Ok(())),
        false => {
            let file = file.try_clone().map_err(host)?;
            Box::new(move || file.sync_data())
        }
    };
    let access = match spec.read_only {
        true => FileAccess::Read,
        false => FileAccess::ReadWrite,
    };
    let region = RamRegion::of_file(file, len, access)?;
    let claim = around.high.claim(len).ok_or(PmemError::NoRoom { len })?;
    let range = claim.range();
    let shown = Shown::new(around.space, claim, region)?;
    let device = Pmem::new(id, range, flush).map_err(host)?;
    let control = device.control();
    control.set_limits(spec.limits);
    tracing::debug!(id, %range, path = %spec.path.display(), "persistent memory");
    Ok(Made {
        control: Some(Control::Pmem(control)),
        device: Box::new(device),
        helper: Helper::memory(shown),
    })
}

/// How much of a file is shown.
fn shown_len(path: &Path, file_len: u64, wanted: Option<u64>) -> Result<u64, PmemError> {
    let path = || path.to_owned();
    match wanted {
        Some(wanted) if wanted > file_len => Err(PmemError::TooShort {
            path: path(),
            len: file_len,
            wanted,
        }),
        Some(wanted) => Ok(wanted),
        None if file_len == 0 || !file_len.is_multiple_of(Pmem::ALIGNMENT) => {
            let good = file_len.max(1).checked_next_multiple_of(Pmem::ALIGNMENT);
            Err(PmemError::Size {
                path: path(),
                len: file_len,
                good: good.unwrap_or(Pmem::ALIGNMENT),
            })
        }
        None => Ok(file_len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_file_is_shown_whole_or_its_beginning() {
        let len = |file, wanted| shown_len(Path::new("/f"), file, wanted);
        assert_eq!(len(4 * MIB, None).unwrap(), 4 * MIB);
        assert_eq!(len(5 * MIB, Some(2 * MIB)).unwrap(), 2 * MIB);
        let refused = len(MIB, Some(2 * MIB)).unwrap_err().to_string();
        assert!(refused.contains("1048576 bytes"), "{refused}");
    }

    #[test]
    fn a_size_that_no_guest_could_map_is_refused_with_one_that_it_could() {
        for (file, good) in [(0, 2 * MIB), (1, 2 * MIB), (2 * MIB + 1, 4 * MIB)] {
            let refused = shown_len(Path::new("/f"), file, None)
                .unwrap_err()
                .to_string();
            let advice = format!("truncate -s {good} /f");
            assert!(refused.contains(&advice), "{refused}");
        }
        assert!(shown_len(Path::new("/f"), u64::MAX, None).is_err());
    }
}
