//! What is told of a guest that cannot go on.

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};
use umbra_cpu::Crash;
use umbra_mmu::{PagingRegs, PlainWalk};
use umbra_slots::Snapshot;
use umbra_x86::Gva;
use umbra_x86::state::{CpuState, seg};

/// No instruction is longer (SDM vol. 2, 2.3.11).
const INSTRUCTION_MAX: usize = 15;

/// What KVM says of an internal error: the reason in words, and the instruction if it names one.
pub struct InternalError {
    pub reason: String,
    pub code: Option<Vec<u8>>,
}

impl InternalError {
    /// Reads what KVM left in its page.
    #[allow(unsafe_code)]
    pub fn read(run: &kvm_run) -> Self {
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which this is the member; all of it
        // is plain words, which any bytes are.
        let error = unsafe { run.__bindgen_anon_1.internal };
        let given = (error.ndata as usize).min(error.data.len());
        Self::from_words(error.suberror, &error.data[..given])
    }

    fn from_words(suberror: u32, data: &[u64]) -> Self {
        let mut code = None;
        let reason = match suberror {
            KVM_INTERNAL_ERROR_EMULATION => {
                code = instruction(data);
                "KVM cannot emulate this instruction; a host with hardware help rarely has to (on \
                 one without, use --backend soft)"
                    .to_owned()
            }
            KVM_INTERNAL_ERROR_SIMUL_EX => {
                format!("two events came at once that KVM cannot combine ({data:x?})")
            }
            KVM_INTERNAL_ERROR_DELIVERY_EV => {
                format!("the processor left the guest while delivering an event ({data:x?})")
            }
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
                format!(
                    "the processor left the guest for a reason that KVM does not know ({data:x?})"
                )
            }
            other => format!("KVM had internal error {other} ({data:x?})"),
        };
        Self { reason, code }
    }
}

/// The bytes that KVM could not emulate (KVM API, 5, `emulation_failure`): flags, then a byte with
/// their number, then the bytes.
fn instruction(data: &[u64]) -> Option<Vec<u8>> {
    let (flags, words) = data.split_first()?;
    if flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0 {
        return None;
    }
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (&len, bytes) = bytes.split_first()?;
    let len = usize::from(len).min(INSTRUCTION_MAX).min(bytes.len());
    (len > 0).then(|| bytes[..len].to_vec())
}

/// Tells all that is known: the registers, the instruction, the walk to the address that faulted.
pub fn crash(map: &Snapshot, state: CpuState, reason: String, code: Option<Vec<u8>>) -> Crash {
    let registers = PagingRegs {
        cr0: state.cr0,
        cr3: state.cr3,
        cr4: state.cr4,
        efer: state.efer,
        pkru: 0,
    };
    let tables = PlainWalk::new(map, &registers);
    let rip = state.seg[seg::CS].base.wrapping_add(state.rip);
    let at = if state.cr2 != 0 { state.cr2 } else { rip };
    let mut walk = tables.describe(map, Gva(at));
    walk.insert(0, format!("walk of {at:#x}:"));
    Crash {
        reason,
        code: code.unwrap_or_else(|| tables.peek_bytes(map, Gva(rip), INSTRUCTION_MAX)),
        state,
        walk,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_is_read_as_the_kernel_lays_it_out() {
        // As seen for xorps xmm0, xmm0; hlt: flags 1, then 15 and the bytes.
        let data = [1, 0x00f4_c057_0f0f, 0];
        let error = InternalError::from_words(KVM_INTERNAL_ERROR_EMULATION, &data);
        assert_eq!(error.code.unwrap()[..4], [0x0f, 0x57, 0xc0, 0xf4]);
        assert!(error.reason.contains("emulate"), "{}", error.reason);
    }

    #[test]
    fn what_the_kernel_does_not_give_is_not_made_up() {
        for data in [&[][..], &[0, 5], &[1], &[1, 0]] {
            let error = InternalError::from_words(KVM_INTERNAL_ERROR_EMULATION, data);
            assert_eq!(error.code, None, "{data:?}");
        }
        // A number larger than what follows.
        let error = InternalError::from_words(KVM_INTERNAL_ERROR_EMULATION, &[1, 0xff]);
        assert_eq!(error.code.map(|code| code.len()), Some(7));
    }

    #[test]
    fn every_other_internal_error_has_its_words() {
        for suberror in [2, 3, 4, 99] {
            let error = InternalError::from_words(suberror, &[0xabc]);
            assert!(
                error.reason.contains("abc") && error.code.is_none(),
                "{}",
                error.reason
            );
        }
    }
}
