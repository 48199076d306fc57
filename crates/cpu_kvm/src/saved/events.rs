//! What is being delivered, and what the processor is doing.

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_SHADOW, KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
    KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI, kvm_mp_state, kvm_vcpu_events,
};
use umbra_x86::vcpu::{Activity, Events, HeldException, HeldInterrupt, Nmi, Shadow, Stage};

const PAGE_FAULT: u8 = 14;
const DEBUG: u8 = 1;

/// The neutral form. `KVM_CAP_EXCEPTION_PAYLOAD` is not turned on: what an exception notes is noted.
pub fn from_kvm(events: &kvm_vcpu_events) -> Events {
    let exception = &events.exception;
    let interrupt = &events.interrupt;
    let shadow = u32::from(interrupt.shadow);
    let held = exception.injected != 0 || exception.pending != 0;
    Events {
        exception: held.then(|| HeldException {
            vector: exception.nr,
            error: (exception.has_error_code != 0).then_some(exception.error_code),
            payload: None,
            stage: if exception.injected != 0 {
                Stage::Injected
            } else {
                Stage::Pending
            },
        }),
        interrupt: (interrupt.injected != 0).then_some(HeldInterrupt {
            vector: interrupt.nr,
            soft: interrupt.soft != 0,
        }),
        shadow: match shadow {
            0 => Shadow::None,
            bits if bits & KVM_X86_SHADOW_INT_MOV_SS != 0 => Shadow::MovSs,
            _ => Shadow::Sti,
        },
        nmi: Nmi {
            injected: events.nmi.injected != 0,
            pending: events.nmi.pending,
            masked: events.nmi.masked != 0,
        },
        triple_fault: events.triple_fault.pending != 0,
    }
}

/// KVM's form.
pub fn to_kvm(events: &Events, activity: &Activity) -> kvm_vcpu_events {
    let mut kvm = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | KVM_VCPUEVENT_VALID_SHADOW,
        ..Default::default()
    };
    if let Some(held) = &events.exception {
        kvm.exception.nr = held.vector;
        kvm.exception.has_error_code = u8::from(held.error.is_some());
        kvm.exception.error_code = held.error.unwrap_or(0);
        // Without payloads KVM knows injected ones only, which come first: what had to be noted is.
        kvm.exception.injected = 1;
    }
    if let Some(held) = &events.interrupt {
        kvm.interrupt.injected = 1;
        kvm.interrupt.nr = held.vector;
        kvm.interrupt.soft = u8::from(held.soft);
    }
    kvm.interrupt.shadow = match events.shadow {
        Shadow::None => 0,
        Shadow::Sti => KVM_X86_SHADOW_INT_STI as u8,
        Shadow::MovSs => KVM_X86_SHADOW_INT_MOV_SS as u8,
    };
    kvm.nmi.injected = u8::from(events.nmi.injected);
    kvm.nmi.pending = events.nmi.pending;
    kvm.nmi.masked = u8::from(events.nmi.masked);
    if let Activity::SipiReceived { vector } = activity {
        kvm.sipi_vector = u32::from(*vector);
    }
    if events.triple_fault {
        kvm.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        kvm.triple_fault.pending = 1;
    }
    kvm
}

/// CR2 and DR6 with what a held exception has still to note (SDM vol. 3, 6.15 and 18.2.3).
pub fn noted(events: &Events, cr2: u64, dr6: u64) -> (u64, u64) {
    match &events.exception {
        Some(HeldException {
            vector: PAGE_FAULT,
            payload: Some(address),
            ..
        }) => (*address, dr6),
        Some(HeldException {
            vector: DEBUG,
            payload: Some(conditions),
            ..
        }) => (cr2, dr6 | conditions),
        _ => (cr2, dr6),
    }
}

pub fn activity(state: &kvm_mp_state, events: &kvm_vcpu_events) -> Activity {
    match state.mp_state {
        KVM_MP_STATE_HALTED => Activity::Halted,
        KVM_MP_STATE_UNINITIALIZED => Activity::WaitForInit,
        KVM_MP_STATE_INIT_RECEIVED => Activity::WaitForSipi,
        KVM_MP_STATE_SIPI_RECEIVED => Activity::SipiReceived {
            vector: events.sipi_vector as u8,
        },
        // The others are of other architectures, or of encrypted guests.
        _ => Activity::Running,
    }
}

pub fn mp_state(activity: &Activity) -> kvm_mp_state {
    let mp_state = match activity {
        Activity::Running => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::WaitForInit => KVM_MP_STATE_UNINITIALIZED,
        Activity::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
        Activity::SipiReceived { .. } => KVM_MP_STATE_SIPI_RECEIVED,
    };
    kvm_mp_state { mp_state }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_as_they_went() {
        let error = |vector, error| HeldException {
            vector,
            error,
            payload: None,
            stage: Stage::Injected,
        };
        for exception in [None, Some(error(14, Some(2))), Some(error(6, None))] {
            for (interrupt, shadow) in [
                (None, Shadow::None),
                (None, Shadow::Sti),
                (
                    Some(HeldInterrupt {
                        vector: 0x80,
                        soft: true,
                    }),
                    Shadow::MovSs,
                ),
            ] {
                let events = Events {
                    exception,
                    interrupt,
                    shadow,
                    nmi: Nmi {
                        injected: false,
                        pending: 1,
                        masked: true,
                    },
                    triple_fault: exception.is_none(),
                };
                assert_eq!(from_kvm(&to_kvm(&events, &Activity::Running)), events);
            }
        }
    }

    #[test]
    fn activities_come_back_as_they_went() {
        for wanted in [
            Activity::Running,
            Activity::Halted,
            Activity::WaitForInit,
            Activity::WaitForSipi,
            Activity::SipiReceived { vector: 0x9a },
        ] {
            let events = to_kvm(&Events::default(), &wanted);
            assert_eq!(activity(&mp_state(&wanted), &events), wanted);
        }
    }

    #[test]
    fn what_an_exception_has_to_note_is_noted() {
        let held = |vector, payload| Events {
            exception: Some(HeldException {
                vector,
                error: None,
                payload: Some(payload),
                stage: Stage::Pending,
            }),
            ..Events::default()
        };
        assert_eq!(
            noted(&held(14, 0xabc), 1, 0xffff_0ff0),
            (0xabc, 0xffff_0ff0)
        );
        assert_eq!(noted(&held(1, 0x4000), 1, 0xffff_0ff0), (1, 0xffff_4ff0));
        assert_eq!(noted(&Events::default(), 1, 2), (1, 2));
    }
}
