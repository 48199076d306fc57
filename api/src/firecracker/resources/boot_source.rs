//! `/boot-source`: what is booted.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::firecracker::fault::Fault;
use crate::firecracker::files::{self, Use};

/// The kernel's command line where none is given: that of Firecracker, which has no serial console.
pub const DEFAULT_BOOT_ARGS: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux \
                                     i8042.dumbkbd swiotlb=noforce";

/// A kernel, its initial RAM disk and its command line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel: an ELF image with a PVH note, or a bzImage.
    pub kernel_image_path: PathBuf,
    /// The initial RAM disk.
    #[serde(default)]
    pub initrd_path: Option<PathBuf>,
    /// The command line; one without a console if there is none ([`DEFAULT_BOOT_ARGS`]).
    #[serde(default)]
    #[schemars(description = BOOT_ARGS_ABOUT, length(max = COMMAND_LINE_MAX), regex(pattern = r"^[^\x00]*$"))]
    pub boot_args: Option<String>,
}

/// The same for clients.
const BOOT_ARGS_ABOUT: &str =
    "The command line, of 2047 bytes at most; without it there is no console.";

/// Bytes of a command line, without the zero at its end (Linux on x86).
const COMMAND_LINE_MAX: usize = 2047;

impl BootSource {
    /// Checks that the files can be read.
    pub fn check(&self) -> Result<(), Fault> {
        files::open(&self.kernel_image_path, Use::Read).map_err(|error| {
            Fault::BootSource(format!("The kernel file cannot be opened: {error}"))
        })?;
        if let Some(initrd) = &self.initrd_path {
            files::open(initrd, Use::Read).map_err(|error| {
                Fault::BootSource(format!(
                    "The initrd file cannot be opened due to invalid path or invalid permissions: \
                     {error}"
                ))
            })?;
        }
        let line = self.boot_args.as_deref().unwrap_or(DEFAULT_BOOT_ARGS);
        if line.len() > COMMAND_LINE_MAX || line.contains('\0') {
            return Err(Fault::BootSource(format!(
                "The kernel command line is invalid: it has {} bytes; {COMMAND_LINE_MAX} are possible, none of \
                 them zero",
                line.len()
            )));
        }
        Ok(())
    }
}
