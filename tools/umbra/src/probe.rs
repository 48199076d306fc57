//! `umbra probe`: what this host has to execute guests, one line each, for people and scripts.

use std::io::Write;
use std::path::Path;

use crate::status::Status;

/// Prints `kvm: yes` or `kvm: no: WHY`, then `auto: kvm` or `auto: soft: WHY`.
pub fn run(device: &Path) -> Status {
    let lines = match umbra_vmm::probe(device) {
        Err(error) => format!("kvm: no: {error}\nauto: soft: there is no KVM\n"),
        Ok(Err(reason)) => format!("kvm: yes\nauto: soft: {reason}\n"),
        Ok(Ok(())) => "kvm: yes\nauto: kvm\n".to_owned(),
    };
    match std::io::stdout().write_all(lines.as_bytes()) {
        Ok(()) => Status::Success,
        // Nobody reads the answer.
        Err(_) => Status::Failed,
    }
}
