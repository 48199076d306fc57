//! What is possible when. Pure.
//!
//! | | before the start | after it |
//! |---|---|---|
//! | what is looked at that is always there | yes | yes |
//! | what a machine is made of | yes | no |
//! | disks, files as memory, interfaces: PUT | yes | with PCI |
//! | the same: DELETE | no | with PCI |
//! | what changes a machine that runs | no | yes |
//!
//! What has ended answers nothing but that, also what is only looked at: Firecracker has no word for such a machine, and
//! its process would be gone.

use super::fault::Fault;
use super::request::Action;

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is being configured.
    Before,
    /// Its processors execute.
    Running,
    /// They stand still.
    Paused,
    /// It has ended.
    Ended,
}

/// When an action is possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Whatever the machine does.
    Always,
    /// Before it starts, only.
    Before,
    /// After it has started, only.
    After,
    /// Before it starts; and after that with PCI.
    BeforeOrPci,
    /// After it has started, with PCI.
    AfterWithPci,
}

/// Returns when an action is possible.
pub fn when(action: &Action) -> When {
    match action {
        Action::GetInstanceInfo
        | Action::GetVersion
        | Action::GetFullConfig
        | Action::GetMachineConfig
        | Action::GetMmds
        | Action::GetBalloon
        | Action::PutMmds(_)
        | Action::PatchMmds(_) => When::Always,
        Action::PutBootSource(_)
        | Action::ChangeMachineConfig(_)
        | Action::PutCpuConfig(_)
        | Action::PutVsock(_)
        | Action::PutEntropy(_)
        | Action::PutSerial(_)
        | Action::PutBalloon(_)
        | Action::PutMemoryHotplug(_)
        | Action::PutLogger(_)
        | Action::PutMetrics(_)
        | Action::PutMmdsConfig(_)
        | Action::Start
        | Action::LoadSnapshot(_) => When::Before,
        Action::PutDrive(_) | Action::PutPmem(_) | Action::PutNet(_) => When::BeforeOrPci,
        Action::DeleteDrive(_) | Action::DeletePmem(_) | Action::DeleteNet(_) => When::AfterWithPci,
        Action::GetBalloonStats
        | Action::GetHintingStatus
        | Action::GetMemoryHotplug
        | Action::PatchDrive(_)
        | Action::PatchPmem(_)
        | Action::PatchNet(_)
        | Action::PatchBalloon(_)
        | Action::PatchBalloonStats(_)
        | Action::StartHinting(_)
        | Action::StopHinting
        | Action::PatchMemoryHotplug(_)
        | Action::Pause
        | Action::Resume
        | Action::FlushMetrics
        | Action::SendCtrlAltDel
        | Action::CreateSnapshot(_) => When::After,
    }
}

/// Decides whether an action is possible.
///
/// # Errors
/// If it is not, with the sentence that clients know.
pub fn check(state: State, pci: bool, action: &Action) -> Result<(), Fault> {
    match (when(action), state) {
        (_, State::Ended) => Err(Fault::Ended),
        (When::Always, _) | (When::Before | When::BeforeOrPci, State::Before) => Ok(()),
        (When::After | When::AfterWithPci, State::Before) => Err(Fault::BeforeStart),
        (When::Before, _) => Err(Fault::AfterStart),
        (When::After, _) => Ok(()),
        (When::BeforeOrPci | When::AfterWithPci, _) if pci => Ok(()),
        (When::BeforeOrPci | When::AfterWithPci, _) => Err(Fault::NoPci),
    }
}
