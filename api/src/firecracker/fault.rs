//! Refusals. The sentences at the beginning are those that clients of Firecracker know; a cause says what it is.

use schemars::JsonSchema;
use serde::Serialize;

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "Fault")]
pub struct FaultBody {
    /// A sentence.
    pub fault_message: String,
    /// A word for programs, which stays the same when the sentence becomes a better one.
    pub code: &'static str,
}

/// What an answer says of what is no request as HTTP knows it, or is too large for one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Unreadable {
    /// A sentence.
    pub error: String,
}

/// What a refusal says: why it was not carried out, or why it could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Refusal {
    /// It was read.
    Fault(FaultBody),
    /// It was not.
    Unreadable(Unreadable),
}

/// Why a request was not carried out. It has changed nothing then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The path has an empty name in it.
    #[error("The ID cannot be empty.")]
    EmptyId,
    /// The path has a name with other characters.
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    InvalidId,
    /// Path and body name two resources.
    #[error("The id from the path does not match the id from the body!")]
    TwoIds,
    /// There is no such operation.
    #[error("Invalid request method and/or path: {method} {path}.")]
    NoSuchOperation {
        /// The verb.
        method: String,
        /// The path's first part.
        path: String,
    },
    /// The body is not what it has to be.
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(String),
    /// There is a body where none can be, or none where one has to be.
    #[error("{0}")]
    Body(&'static str),
    /// It is possible before the start only.
    #[error("The requested operation is not supported after starting the microVM.")]
    AfterStart,
    /// It is possible after the start only.
    #[error("The requested operation is not supported before starting the microVM.")]
    BeforeStart,
    /// The machine has ended, and the process is about to.
    #[error("The microVM has ended.")]
    Ended,
    /// Devices come and go on PCI only.
    #[error("PCI is not enabled")]
    NoPci,
    /// Of `/boot-source`.
    #[error("Boot source error: {0}")]
    BootSource(String),
    /// Of `/machine-config`.
    #[error("Machine config error: {0}")]
    MachineConfig(String),
    /// Of `/drives`.
    #[error("Drive config error: {0}")]
    DriveConfig(String),
    /// Of `/pmem`.
    #[error("Pmem device error: {0}")]
    PmemDevice(String),
    /// Of `/network-interfaces`.
    #[error("Network config error: {0}")]
    NetworkConfig(String),
    /// Of `/vsock`.
    #[error("Vsock config error: {0}")]
    VsockConfig(String),
    /// Of `/balloon` before the start.
    #[error("Balloon config error: {0}")]
    BalloonConfig(String),
    /// Of `/balloon` after it.
    #[error("Balloon update error: {0}")]
    BalloonUpdate(String),
    /// Of `/hotplug/memory` before the start.
    #[error("Memory hotplug config error: {0}")]
    MemoryHotplugConfig(String),
    /// Of `/hotplug/memory` after it.
    #[error("Memory hotplug update error: {0}")]
    MemoryHotplugUpdate(String),
    /// Of `/mmds/config`.
    #[error("MMMDS config error: {0}")]
    MmdsConfig(String),
    /// Of `/mmds`.
    #[error("MMDS error: {0}")]
    Mmds(String),
    /// The metadata is larger than it may be.
    #[error("MMDS limit exceeded error: {0}")]
    MmdsLimit(String),
    /// Of `/logger`.
    #[error("Logger error: {0}")]
    Logger(String),
    /// Of `/metrics`.
    #[error("Metrics error: {0}")]
    Metrics(String),
    /// Of `/snapshot/create`.
    #[error("Create snapshot error: {0}")]
    CreateSnapshot(String),
    /// Of `/snapshot/load`.
    #[error("Load snapshot error: {0}")]
    LoadSnapshot(String),
    /// The machine did not start.
    #[error("Start microvm error: {0}")]
    Start(String),
    /// A device could not be added, changed or removed.
    #[error("Internal VMM error: {0}")]
    Device(String),
}

impl Fault {
    /// The status of its answer: what clients of Firecracker know, and nothing else.
    pub fn status(&self) -> u16 {
        match self {
            Self::MmdsLimit(_) => 413,
            _ => 400,
        }
    }

    /// What its answer says.
    pub fn body(&self) -> FaultBody {
        FaultBody {
            fault_message: self.to_string(),
            code: self.code(),
        }
    }

    /// A word for programs, which stays the same when the sentence becomes a better one.
    pub fn code(&self) -> &'static str {
        match self {
            Self::EmptyId | Self::InvalidId => "invalid_id",
            Self::TwoIds => "id_mismatch",
            Self::NoSuchOperation { .. } => "no_such_operation",
            Self::Json(_) | Self::Body(_) => "invalid_body",
            Self::AfterStart => "after_start",
            Self::BeforeStart => "before_start",
            Self::Ended => "ended",
            Self::NoPci => "no_pci",
            Self::BootSource(_) => "boot_source",
            Self::MachineConfig(_) => "machine_config",
            Self::DriveConfig(_) => "drive",
            Self::PmemDevice(_) => "pmem",
            Self::NetworkConfig(_) => "network_interface",
            Self::VsockConfig(_) => "vsock",
            Self::BalloonConfig(_) | Self::BalloonUpdate(_) => "balloon",
            Self::MemoryHotplugConfig(_) | Self::MemoryHotplugUpdate(_) => "memory_hotplug",
            Self::MmdsConfig(_) => "mmds_config",
            Self::Mmds(_) => "mmds",
            Self::MmdsLimit(_) => "mmds_limit",
            Self::Logger(_) => "logger",
            Self::Metrics(_) => "metrics",
            Self::CreateSnapshot(_) | Self::LoadSnapshot(_) => "snapshot",
            Self::Start(_) => "start",
            Self::Device(_) => "device",
        }
    }
}

/// An error and what it comes from, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // A cause that its parent has quoted already is not said twice.
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_the_sentence_and_the_word() {
        let text = serde_json::to_string(&Refusal::Fault(Fault::NoPci.body())).unwrap();
        assert_eq!(
            text,
            r#"{"fault_message":"PCI is not enabled","code":"no_pci"}"#
        );
    }
}
