//! Exceptions and interrupts between two instructions (SDM vol. 3, chapter 6; KVM's
//! `struct kvm_vcpu_events`). System management mode is not here: no backend has it.

use serde::{Deserialize, Serialize};

/// What is being delivered, waits inside the processor, or is held back.
///
/// What waits in the local APIC (IRR) is not here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// An exception to deliver before the next instruction.
    pub exception: Option<HeldException>,
    /// An interrupt that was accepted and whose delivery has begun, or has to begin now.
    pub interrupt: Option<HeldInterrupt>,
    /// What the instruction before holds back.
    pub shadow: Shadow,
    /// Non-maskable interrupts.
    pub nmi: Nmi,
    /// The processor has met a triple fault, and says so when it is run.
    pub triple_fault: bool,
}

/// An exception that the processor has raised and not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldException {
    /// The vector, 0 to 31 without 2.
    pub vector: u8,
    /// The error code, for the vectors that push one.
    pub error: Option<u32>,
    /// What is still to be noted when it is delivered: the address for CR2 with #PF, the conditions
    /// for DR6 with #DB. `None` where nothing is, or where it is noted already.
    pub payload: Option<u64>,
    /// How far it has come.
    pub stage: Stage,
}

/// How far an exception has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Raised; what comes first may still come first. #DB under a shadow of MOV SS waits until
    /// that is over.
    Pending,
    /// Delivery has begun, so it comes before everything else.
    Injected,
}

/// An interrupt that was taken from the interrupt controllers, or is one of INT n, and was not
/// delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldInterrupt {
    /// The vector.
    pub vector: u8,
    /// It is one of INT n.
    pub soft: bool,
}

/// What the instruction before holds back until one more has executed (SDM vol. 3, 6.8.3).
///
/// A backend that cannot tell the two says `MovSs`, which holds back more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// STI: interrupts.
    Sti,
    /// A load of SS: interrupts, NMI and debug exceptions.
    MovSs,
}

/// Non-maskable interrupts (SDM vol. 3, 6.7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nmi {
    /// The delivery of one has begun.
    pub injected: bool,
    /// How many wait: two at most.
    pub pending: u8,
    /// They are held back until IRET.
    pub masked: bool,
}
