//! One source, several backends: each claim is a test on each of them.
//!
//! `kvm` modules need a KVM that can be opened, `kvm_stock` modules one that runs stock systems.
//! `cargo xtask test` leaves out what the host does not have, and says so; a test that is run all the
//! same says SKIPPED and fails, unless the environment allows it.

use std::path::Path;

use super::guest::or_skip;

/// Makes each claim about a backend a test on the software processor and on any KVM.
macro_rules! on_each_backend {
    ($($claim:ident,)*) => {
        crate::support::backend::on_backends!(kvm, any_kvm, $($claim,)*);
    };
}

/// The same, on a KVM that runs stock systems.
macro_rules! on_each_stock_backend {
    ($($claim:ident,)*) => {
        crate::support::backend::on_backends!(kvm_stock, stock_kvm, $($claim,)*);
    };
}

macro_rules! on_backends {
    ($kvm:ident, $has:ident, $($claim:ident,)*) => {
        mod soft {
            $(
                #[test]
                fn $claim() {
                    super::$claim("soft");
                }
            )*
        }

        mod $kvm {
            $(
                #[test]
                fn $claim() {
                    if crate::support::backend::$has() {
                        super::$claim("kvm");
                    }
                }
            )*
        }
    };
}

pub(crate) use {on_backends, on_each_backend, on_each_stock_backend};

/// The backend of a name, for machines that a test builds itself.
pub fn backend(name: &str) -> umbra_vmm::Backend {
    match name {
        "kvm" => umbra_vmm::Backend::Kvm,
        _ => umbra_vmm::Backend::Soft,
    }
}

/// Tells whether KVM can be used at all.
pub fn any_kvm() -> bool {
    let device = Path::new(umbra_vmm::KVM_DEVICE);
    or_skip(umbra_vmm::probe(device).map_err(Into::into)).is_some()
}

/// Tells whether there is a KVM that runs stock systems.
pub fn stock_kvm() -> bool {
    let device = Path::new(umbra_vmm::KVM_DEVICE);
    let answer = umbra_vmm::probe(device).map_err(anyhow::Error::from);
    or_skip(answer.and_then(|fit| fit.map_err(anyhow::Error::msg))).is_some()
}
