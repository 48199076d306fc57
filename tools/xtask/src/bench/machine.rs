//! A Linux machine with one processor, as Umbra and QEMU have it: the same kernel, initramfs, disks and memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet";

/// A disk, raw.
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// Whether the guest may write.
    pub access: Access,
}

/// What a guest may do with a disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// What both machines have.
pub struct Machine {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    pub memory_mib: u32,
    /// `/dev/vda` and so on.
    pub disks: Vec<Disk>,
    /// What is typed at the serial port. QEMU's loses some of what comes before the kernel has it, so the
    /// beginning should be a comment.
    pub commands: PathBuf,
    /// A machine that takes longer is ended.
    pub patience: Duration,
}

impl Machine {
    /// Runs it on the software processor; returns what the guest printed.
    pub fn umbra(&self, umbra: &Path) -> Result<String> {
        let mut command = self.patiently(umbra);
        command.args(["run", "--backend", "soft", "--memory"]);
        command.arg(format!("{}M", self.memory_mib));
        for disk in &self.disks {
            let suffix = match disk.access {
                Access::Read => ",readonly",
                Access::Write => "",
            };
            command.arg("--disk");
            command.arg(format!("{}{suffix}", disk.path.display()));
        }
        command.arg("--kernel").arg(&self.kernel);
        command.arg("--initrd").arg(&self.initrd);
        command.args(["--cmdline", COMMAND_LINE]);
        output(&mut command, Some(&self.commands))
    }

    /// Runs it on QEMU's TCG, as a PC; returns what the guest printed.
    pub fn qemu(&self, qemu: &str) -> Result<String> {
        let mut command = self.patiently(Path::new(qemu));
        command.args(["-accel", "tcg", "-M", "pc", "-cpu", "qemu64", "-m"]);
        command.arg(self.memory_mib.to_string());
        command.args(["-display", "none", "-serial", "stdio"]);
        command.args(["-nodefaults", "-no-reboot"]);
        for (number, disk) in self.disks.iter().enumerate() {
            let read_only = match disk.access {
                Access::Read => "on",
                Access::Write => "off",
            };
            command.arg("-drive").arg(format!(
                "if=none,id=d{number},format=raw,readonly={read_only},file={}",
                disk.path.display()
            ));
            command.arg("-device");
            command.arg(format!("virtio-blk-pci,drive=d{number}"));
        }
        command.arg("-kernel").arg(&self.kernel);
        command.arg("-initrd").arg(&self.initrd);
        command.args(["-append", COMMAND_LINE]);
        output(&mut command, Some(&self.commands))
    }

    fn patiently(&self, program: &Path) -> Command {
        let mut command = Command::new("timeout");
        command.arg(self.patience.as_secs().to_string());
        command.arg(program);
        command
    }
}

/// Runs a command to its end; returns what it printed.
pub fn output(command: &mut Command, input: Option<&Path>) -> Result<String> {
    command.stdin(match input {
        Some(path) => Stdio::from(fs::File::open(path)?),
        None => Stdio::null(),
    });
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
