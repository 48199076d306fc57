//! Events that raise message-signalled interrupts inside the kernel.
//!
//! A masked vector is one whose wire is not there: what is signalled meanwhile stays in the
//! descriptor, and KVM looks at it when the wire comes back. So no interrupt is lost, and nobody has
//! to poll the descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use umbra_cpu::{InterruptError, MsiVector};
use umbra_irq::Msi;

use crate::irq::routes::{Route, Routes};
use crate::raw;
use crate::vm::Vm;

pub struct Events {
    vm: Arc<Vm>,
    routes: Arc<Routes>,
}

/// Makes an error of a failed call.
pub fn failed(call: &'static str) -> impl FnOnce(std::io::Error) -> InterruptError {
    move |source| InterruptError::Host { call, source }
}

impl Events {
    pub fn new(vm: Arc<Vm>, routes: Arc<Routes>) -> Self {
        Self { vm, routes }
    }

    pub fn msi(&self, event: BorrowedFd<'_>) -> Result<Box<dyn MsiVector>, InterruptError> {
        let event = event.try_clone_to_owned().map_err(failed("dup"))?;
        let max = self.vm.limits().routes;
        let gsi = self
            .routes
            .allocate()
            .ok_or(InterruptError::NoRoute { max })?;
        Ok(Box::new(Vector {
            wire: Wire::new(self.vm.clone(), event, gsi),
            routes: self.routes.clone(),
        }))
    }
}

/// A descriptor that is wired to a number, or was and will be.
pub struct Wire {
    vm: Arc<Vm>,
    event: OwnedFd,
    gsi: u32,
    on: Mutex<bool>,
}

impl Wire {
    pub fn new(vm: Arc<Vm>, event: OwnedFd, gsi: u32) -> Self {
        Self {
            vm,
            event,
            gsi,
            on: Mutex::new(false),
        }
    }

    /// Puts the wire there. What the descriptor holds is delivered now.
    pub fn connect(&self) -> Result<(), InterruptError> {
        let mut on = self.on.lock();
        if !*on {
            raw::wire(self.vm.fd(), self.event.as_fd(), None, self.gsi)
                .map_err(failed("KVM_IRQFD"))?;
            *on = true;
        }
        Ok(())
    }

    /// Takes it away. What is signalled from now on stays in the descriptor.
    pub fn cut(&self) {
        let mut on = self.on.lock();
        if std::mem::take(&mut *on)
            && let Err(error) = raw::unwire(self.vm.fd(), self.event.as_fd(), self.gsi)
        {
            tracing::error!(gsi = self.gsi, %error, "KVM keeps an event wired");
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.cut();
    }
}

struct Vector {
    wire: Wire,
    routes: Arc<Routes>,
}

impl MsiVector for Vector {
    fn set(&self, msi: Msi) -> Result<(), InterruptError> {
        self.routes
            .set(self.wire.gsi, vec![Route::Msi(msi)])
            .and_then(|()| {
                // The route first: an event must not find none.
                self.wire.connect().map_err(std::io::Error::other)
            })
            .map_err(|error| {
                self.wire.cut();
                failed("KVM_SET_GSI_ROUTING")(error)
            })
    }

    fn mask(&self) {
        self.wire.cut();
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        self.wire.cut();
        self.routes.free(self.wire.gsi);
    }
}
