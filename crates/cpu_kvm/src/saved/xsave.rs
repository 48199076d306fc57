//! x87, SSE and further state. KVM gives and takes the standard form, with each component where the host's
//! processor has it; the image says where that is, and components move if another host's differ.

use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;
use umbra_cpu::{CpuError, Part};
use umbra_x86::cpuid::Table;
use umbra_x86::vcpu::{Component, XsaveImage};

use super::{judged, refused};
use crate::raw;
use crate::vm::failed;

/// Bytes that every kernel gives; more only where a guest was granted large state (AMX), which none is.
const AREA: usize = 4096;
const HEADER: usize = XsaveImage::LEGACY;
/// Leaf 1, ECX: XSAVE.
const XSAVE: u32 = 1 << 26;

/// The extended components that CPUID shows.
fn components(cpuid: &Table) -> Vec<Component> {
    let shown = u64::from(cpuid.get(0xd, 0).eax) | u64::from(cpuid.get(0xd, 0).edx) << 32;
    (2..=62)
        .filter(|number| shown >> number & 1 != 0)
        .map(|number| {
            let leaf = cpuid.get(0xd, number);
            Component {
                number,
                offset: leaf.ebx,
                len: leaf.eax,
            }
        })
        .filter(|component| component.len != 0)
        .collect()
}

fn bytes(area: &kvm_xsave) -> impl Iterator<Item = u8> + '_ {
    area.region.iter().flat_map(|word| word.to_le_bytes())
}

pub fn save(vcpu: &VcpuFd, cpuid: &Table) -> Result<XsaveImage, CpuError> {
    let area = vcpu.get_xsave().map_err(failed("KVM_GET_XSAVE"))?;
    let components = components(cpuid);
    let len = components
        .iter()
        .map(|c| (c.offset + c.len) as usize)
        .fold(XsaveImage::BASIC, usize::max);
    let mut bytes: Vec<u8> = bytes(&area).take(len).collect();
    let listed = components.iter().fold(3u64, |bits, c| bits | 1 << c.number);
    let header = &mut bytes[HEADER..XsaveImage::BASIC];
    let used = u64::from_le_bytes(*header.first_chunk().expect("64 bytes")) & listed;
    header.fill(0);
    header[..8].copy_from_slice(&used.to_le_bytes());
    XsaveImage::new(bytes, components).map_err(|error| CpuError::Unsupported {
        backend: "KVM",
        reason: format!("it gives no XSAVE image: {error}"),
    })
}

pub fn check(image: &XsaveImage, cpuid: &Table) -> Result<(), CpuError> {
    let own = components(cpuid);
    for component in image.components() {
        let used = image.component(component.number).is_some();
        let same = |c: &&Component| c.number == component.number && c.len == component.len;
        if used && !own.iter().any(|c| same(&c)) {
            let why = "it is in use, and this processor has no such component";
            return Err(refused(Part::Xsave(component.number), 1, why));
        }
    }
    Ok(())
}

/// Returns XCR0; 1 where CPUID shows no XSAVE.
pub fn xcr0(vcpu: &VcpuFd, cpuid: &Table) -> Result<u64, CpuError> {
    if cpuid.get(1, 0).ecx & XSAVE == 0 {
        return Ok(1);
    }
    let xcrs = vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?;
    let given = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize);
    let zero = given.into_iter().find(|xcr| xcr.xcr == 0);
    Ok(zero.map_or(1, |xcr| xcr.value))
}

pub fn restore(
    vcpu: &VcpuFd,
    cpuid: &Table,
    xcr0: u64,
    image: &XsaveImage,
) -> Result<(), CpuError> {
    if cpuid.get(1, 0).ecx & XSAVE != 0 {
        let mut xcrs = kvm_bindings::kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = xcr0;
        vcpu.set_xcrs(&xcrs).map_err(judged("KVM_SET_XCRS", xcr0))?;
    } else if xcr0 != 1 {
        return Err(refused(
            Part::Register("XCR0"),
            xcr0,
            "this processor has no XSAVE",
        ));
    }
    let mut area = [0u8; AREA];
    area[..XsaveImage::LEGACY].copy_from_slice(image.legacy());
    let mut used = image.xstate_bv() & 3;
    for own in components(cpuid) {
        let Some(from) = image.component(own.number) else {
            continue;
        };
        let to = own.offset as usize..(own.offset + own.len) as usize;
        let Some(to) = area.get_mut(to).filter(|to| to.len() == from.len()) else {
            let why = "it does not fit into the area that KVM takes";
            return Err(refused(Part::Xsave(own.number), own.len.into(), why));
        };
        to.copy_from_slice(from);
        used |= 1 << own.number;
    }
    area[HEADER..HEADER + 8].copy_from_slice(&used.to_le_bytes());
    let mut kvm = kvm_xsave::default();
    for (word, bytes) in kvm.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    raw::set_xsave(vcpu, &kvm).map_err(judged("KVM_SET_XSAVE", used))
}
