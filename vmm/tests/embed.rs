//! The example that embeds the library runs. It looks at what the process has, so one runs at a time.

#[expect(dead_code, reason = "`main` and what reads its arguments")]
#[path = "../examples/embed.rs"]
mod example;

use std::error::Error;
use std::sync::{Mutex, PoisonError};

use umbra_vmm::Backend;

static ALONE: Mutex<()> = Mutex::new(());

type Done = Result<(), Box<dyn Error + Send + Sync>>;

fn runs(backend: Backend) -> Done {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    example::embed(backend, 1000)
}

mod soft {
    #[test]
    fn the_example_runs() -> super::Done {
        super::runs(super::Backend::Soft)
    }
}

/// Left out by `cargo xtask test` where there is no KVM.
mod kvm {
    #[test]
    fn the_example_runs() -> super::Done {
        let Err(error) = umbra_cpu_kvm::Host::open(umbra_vmm::KVM_DEVICE.as_ref()) else {
            return super::runs(super::Backend::Kvm);
        };
        eprintln!("SKIPPED: {error}");
        assert!(
            std::env::var_os("UMBRA_ALLOW_SKIP").is_some(),
            "skipped, for {error}; set UMBRA_ALLOW_SKIP=1 where there is no KVM"
        );
        Ok(())
    }
}
