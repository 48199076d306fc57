//! The local APIC's page.
//!
//! Without `KVM_X2APIC_API_USE_32BIT_IDS`, which this backend does not turn on (its ids have eight bits),
//! KVM shows the id of an x2APIC where an xAPIC has it; the neutral form has the register's own value.

use kvm_bindings::kvm_lapic_state;
use umbra_x86::vcpu::LapicImage;

const ID: u32 = 2;
/// IA32_APIC_BASE: x2APIC mode.
const X2APIC: u64 = 1 << 10;
const ID_SHIFT: u32 = 24;

pub fn from_kvm(state: &kvm_lapic_state, apic_base: u64) -> LapicImage {
    let mut image = LapicImage::new(std::array::from_fn(|at| state.regs[at] as u8));
    if apic_base & X2APIC != 0 {
        image.set_register(ID, image.register(ID) >> ID_SHIFT);
    }
    image
}

pub fn to_kvm(image: &LapicImage, apic_base: u64) -> kvm_lapic_state {
    let mut image = image.clone();
    if apic_base & X2APIC != 0 {
        image.set_register(ID, image.register(ID) << ID_SHIFT);
    }
    let mut state = kvm_lapic_state::default();
    for (to, from) in state.regs.iter_mut().zip(image.bytes()) {
        *to = *from as _;
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_where_each_side_has_it() {
        let mut image = LapicImage::new([0; LapicImage::LEN]);
        image.set_register(ID, 3);
        image.set_register(0x3f, 0xdead_beef);
        let there = to_kvm(&image, X2APIC);
        assert_eq!(there.regs[0x23], 3);
        assert_eq!(from_kvm(&there, X2APIC), image);
        assert_eq!(from_kvm(&to_kvm(&image, 0), 0), image);
    }
}
