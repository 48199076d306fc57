//! Refusals that a program can act upon.

use schemars::JsonSchema;
use serde::Serialize;
use umbra_vmm::{AddError, DiskError, Error, HandleError, PlanError, RemoveError};

use crate::firecracker::fault::{Fault, chain};

/// What is wrong, in a word that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// The body is no JSON, or not the JSON that it has to be.
    BadBody,
    /// A parameter behind the path is unknown, or no value for it.
    BadQuery,
    /// There is no such path.
    NoSuchPath,
    /// There is no device of this name.
    NoSuchDevice,
    /// There is no processor of this number.
    NoSuchCpu,
    /// The path has no such verb.
    NoSuchMethod,
    /// The machine has not begun.
    NotStarted,
    /// It has begun.
    Started,
    /// It has ended.
    Ended,
    /// The machine was described by Firecracker's paths, and cannot be described as a whole, or the other way round.
    DescribedOtherwise,
    /// Nothing says which kernel the machine boots.
    NoKernel,
    /// A device of this name is there.
    DeviceExists,
    /// A device of this name is on its way out.
    DeviceLeaving,
    /// The device stays as long as the machine.
    DeviceFixed,
    /// The guest has memory of the device.
    MemoryInUse,
    /// The machine has no bus to which devices could be added.
    NoHotplug,
    /// The machine has no keyboard.
    NoKeyboard,
    /// Its keyboard takes no keys now.
    KeyboardBusy,
    /// The device is at work and cannot be changed now.
    DeviceBusy,
    /// The body is larger than the server takes.
    TooLarge,
    /// A number is out of range, or two wishes contradict each other.
    Invalid,
    /// A device has nothing that could be changed this way.
    NotOfThisDevice,
    /// A file is wrong, or the host refuses something.
    HostRefused,
    /// As many tasks, or streams, as there can be are running.
    TooMany,
    /// What executes the guest, or this version, cannot do it.
    NotSupported,
    /// The server is about to end.
    Ending,
    /// A mistake of the monitor's.
    Internal,
}

impl Code {
    /// Returns the status that goes with it.
    pub fn status(self) -> u16 {
        match self {
            Self::BadBody | Self::BadQuery => 400,
            Self::NoSuchPath | Self::NoSuchDevice | Self::NoSuchCpu => 404,
            Self::NoSuchMethod => 405,
            Self::NotStarted
            | Self::Started
            | Self::Ended
            | Self::DescribedOtherwise
            | Self::NoKernel
            | Self::DeviceExists
            | Self::DeviceLeaving
            | Self::DeviceFixed
            | Self::MemoryInUse
            | Self::NoHotplug
            | Self::NoKeyboard
            | Self::KeyboardBusy
            | Self::DeviceBusy => 409,
            Self::TooLarge => 413,
            Self::Invalid | Self::NotOfThisDevice | Self::HostRefused => 422,
            Self::TooMany => 429,
            Self::Internal => 500,
            Self::NotSupported => 501,
            Self::Ending => 503,
        }
    }

    /// Returns what to do about it, where that is always the same.
    fn remedy(self) -> &'static str {
        match self {
            Self::BadBody => {
                "Compare the body with the schema of this request in /v1/openapi.json."
            }
            Self::BadQuery => {
                "Compare the parameters with those of this request in /v1/openapi.json."
            }
            Self::NoSuchPath | Self::NoSuchMethod => {
                "Look into /v1/openapi.json for what there is."
            }
            Self::NoSuchDevice => "GET /v1/devices lists the devices.",
            Self::NoSuchCpu => "GET /v1/vm/cpus lists the processors.",
            Self::NotStarted => "POST /v1/vm/start first.",
            Self::Started => "Say this before the start, or start another monitor.",
            Self::Ended | Self::Ending => "Start another monitor.",
            Self::DescribedOtherwise => {
                "Describe a machine either by /v1/vm/spec or by Firecracker's paths; start another monitor to begin \
                 anew."
            }
            Self::NoKernel => "PUT /v1/vm/spec with a kernel first.",
            Self::DeviceExists => "Take another name, or remove the device first.",
            Self::DeviceLeaving => "Wait for the event device_removed, or take another name.",
            Self::DeviceFixed | Self::NoHotplug => {
                "Start the machine with \"pci\": true in its specification (--pci; of `umbra firecracker`: --enable-pci)."
            }
            Self::MemoryInUse => {
                "PATCH the device with \"requested\": 0, wait for the event memory_changed with \"plugged\": 0, and \
                 remove it then."
            }
            Self::NoKeyboard => "Start the machine with \"keyboard\": true in its specification.",
            Self::KeyboardBusy | Self::DeviceBusy => {
                "Try again when the guest's driver has got on."
            }
            Self::TooLarge => {
                "Say less, or start the monitor with a larger --body-max (of `umbra firecracker`: --http-api-max-payload-size)."
            }
            Self::Invalid => "Change the value as the message says.",
            Self::NotOfThisDevice => "GET the device for its kind, and change what this kind has.",
            Self::HostRefused => {
                "Look at the path, its permissions and the limits of the monitor's process."
            }
            Self::TooMany => "Wait for an answer to what was asked before, and try again.",
            Self::NotSupported => "Do without it, or on another backend.",
            Self::Internal => "Report it, with the monitor's log.",
        }
    }
}

/// Why a request was not carried out. It has changed nothing then, unless the message says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// What is wrong, for programs.
    pub code: Code,
    /// The field of the body, or the parameter, that is wrong, where it is one.
    pub field: Option<String>,
    /// What is wrong, with its value and its reason, for people.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// What a refusal's body is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ProblemBody {
    /// Why.
    pub error: Problem,
}

impl Problem {
    /// Makes one with the usual advice.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            field: None,
            message: message.into(),
            remedy: code.remedy().into(),
        }
    }

    /// Says which field it is about.
    #[must_use]
    pub fn of(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// Returns the status.
    pub fn status(&self) -> u16 {
        self.code.status()
    }
}

/// The field of a specification that an error is about.
fn field(error: &PlanError) -> Option<&'static str> {
    Some(match error {
        PlanError::Cpus { .. } => "cpus",
        PlanError::Memory { .. } | PlanError::MemoryUnaligned { .. } => "memory",
        PlanError::NothingToVerify => "verify",
        PlanError::TooManyVirtio { .. } => "virtio",
        PlanError::Id { .. } | PlanError::SameId { .. } => "id",
        PlanError::TagBits { .. } => "tag_bits",
        PlanError::FirstGeneration { .. } => "first_generation",
        PlanError::NamedOnPci => "virtio_on_command_line",
        _ => return None,
    })
}

impl From<&PlanError> for Problem {
    fn from(error: &PlanError) -> Self {
        let code = match error {
            PlanError::SameId { .. } => Code::DeviceExists,
            _ => Code::Invalid,
        };
        Self {
            field: field(error).map(Into::into),
            ..Self::new(code, chain(error))
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match &error {
            Error::Plan(plan) => plan.into(),
            error => Self::new(Code::HostRefused, chain(error)),
        }
    }
}

impl From<AddError> for Problem {
    fn from(error: AddError) -> Self {
        let code = match &error {
            AddError::Plan(plan) => return plan.into(),
            AddError::NoPci => Code::NoHotplug,
            AddError::Leaving { .. } => Code::DeviceLeaving,
            AddError::Terminal => Code::Invalid,
            AddError::Ended => Code::Ended,
            _ => Code::HostRefused,
        };
        Self::new(code, chain(&error))
    }
}

impl From<RemoveError> for Problem {
    fn from(error: RemoveError) -> Self {
        let code = match &error {
            RemoveError::NoSuchDevice { .. } => Code::NoSuchDevice,
            RemoveError::Fixed { .. } => Code::DeviceFixed,
            RemoveError::Memory { .. } => Code::MemoryInUse,
            _ => Code::HostRefused,
        };
        Self::new(code, chain(&error))
    }
}

impl From<DiskError> for Problem {
    fn from(error: DiskError) -> Self {
        let code = match &error {
            DiskError::Ended => Code::Ended,
            DiskError::NoSuchDisk { .. } => Code::NotOfThisDevice,
            DiskError::Replace(umbra_vmm::ReplaceError::Busy { .. }) => Code::DeviceBusy,
            _ => Code::HostRefused,
        };
        Self::new(code, chain(&error)).of("path")
    }
}

impl From<HandleError> for Problem {
    fn from(error: HandleError) -> Self {
        let code = match error {
            HandleError::Ended => Code::Ended,
            HandleError::NoSuchCpu { .. } => Code::NoSuchCpu,
            HandleError::NoKeyboard => Code::NoKeyboard,
            HandleError::Keyboard(_) => Code::KeyboardBusy,
            HandleError::NoTables { .. } => Code::NotSupported,
        };
        Self::new(code, chain(&error))
    }
}

/// What Firecracker's half of the machine refuses.
impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let code = match fault {
            Fault::BeforeStart => Code::NotStarted,
            Fault::AfterStart => Code::Started,
            Fault::Ended => Code::Ended,
            Fault::Logger(_) => Code::HostRefused,
            _ => Code::Invalid,
        };
        Self::new(code, fault.to_string())
    }
}
