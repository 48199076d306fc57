//! Local APICs in the kernel, the other controllers here.
//!
//! The IOAPIC sends its messages by `KVM_SIGNAL_MSI`. KVM tells the end of an interrupt only for
//! vectors that it finds in the routes of the IOAPIC's pins, as level-triggered messages: so each
//! entry of the redirection table is mirrored there. An entry that is masked keeps its last route: an
//! interrupt that is under way still has to be ended.
//!
//! An event wired to a level line raises the pin's message inside the kernel, while the entry is
//! unmasked; the end of that interrupt is told to the device by its resample event, and the device
//! asks again if it still wants attention. The pin itself stays low.
//!
//! **Locks**: the IOAPIC's comes before the one here; nothing here calls the IOAPIC.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use kvm_bindings::KVM_CAP_SPLIT_IRQCHIP;
use parking_lot::Mutex;
use umbra_clock::{Clock, Timer};
use umbra_cpu::{CpuError, EventLine, InterruptError};
use umbra_irq::{Chip, Controller, Line};
use umbra_irqchip::{Chips, Message, Messages, Pic};

use crate::irq::events::{Wire, failed};
use crate::irq::routes::{PINS, Route, Routes};
use crate::vm::Vm;

/// What is mirrored of one pin.
#[derive(Default)]
struct PinState {
    /// What it sends; nothing while it is masked.
    message: Option<Message>,
    /// The vector that its last message had.
    vector: u8,
    /// Events that are wired to it.
    lines: Vec<Weak<SplitLine>>,
}

pub struct Split {
    vm: Arc<Vm>,
    chips: Chips,
    mirror: Arc<PinMirror>,
}

/// The redirection table, in KVM's routes.
struct PinMirror {
    routes: Arc<Routes>,
    pins: Mutex<[PinState; PINS as usize]>,
}

impl Split {
    pub fn new(vm: Arc<Vm>, routes: Arc<Routes>, clock: Clock) -> Result<Arc<Self>, CpuError> {
        vm.enable(KVM_CAP_SPLIT_IRQCHIP, PINS.into())?;
        let chips = Chips::new(Arc::new(Apics(vm.clone())), clock);
        let mirror = Arc::new(PinMirror {
            routes,
            pins: Mutex::default(),
        });
        let to_mirror = mirror.clone();
        chips
            .ioapic
            .on_route(Box::new(move |pin, message| to_mirror.change(pin, message)));
        Ok(Arc::new(Self { vm, chips, mirror }))
    }

    pub fn chip(&self) -> &dyn Chip {
        &self.chips
    }

    pub fn pin(&self, number: u32) -> Option<Arc<dyn Line>> {
        self.chips.ioapic.line(number)
    }

    pub fn controllers(&self) -> Vec<Controller> {
        self.chips.controllers()
    }

    pub fn timer(&self) -> Arc<dyn Timer> {
        self.chips.pit.clone()
    }

    pub fn pic(&self) -> Arc<Pic> {
        self.chips.pic.clone()
    }

    pub fn on_pic_change(&self, look: Box<dyn Fn() + Send + Sync>) {
        self.chips.on_pic_change(Box::new(move |_| look()));
    }

    pub fn end_of_interrupt(&self, vector: u8) {
        self.chips.ioapic.end_of_interrupt(vector);
        self.mirror.end_of_interrupt(vector);
    }

    pub fn event_line(
        &self,
        number: u32,
        trigger: BorrowedFd<'_>,
        resample: BorrowedFd<'_>,
    ) -> Result<Box<dyn EventLine>, InterruptError> {
        // Interrupt 0 is pin 2, and pin 0 the 8259's: neither is for devices.
        if number >= PINS || matches!(number, 0 | 2) {
            return Err(InterruptError::NoSuchLine { number });
        }
        let owned = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(failed("dup"));
        let line = Arc::new(SplitLine {
            wire: Wire::new(self.vm.clone(), owned(trigger)?, number),
            resample: owned(resample)?,
        });
        let mut pins = self.mirror.pins.lock();
        let pin = &mut pins[number as usize];
        if pin.message.is_some() {
            line.wire.connect()?;
        }
        pin.lines.push(Arc::downgrade(&line));
        Ok(Box::new(Attached(line)))
    }
}

impl PinMirror {
    /// Follows the guest's change of a redirection entry.
    fn change(&self, pin: usize, message: Option<Message>) {
        let mut pins = self.pins.lock();
        let state = &mut pins[pin];
        state.lines.retain(|line| line.strong_count() > 0);
        let lines = state.lines.clone();
        let lines = lines.iter().filter_map(Weak::upgrade);
        state.message = message;
        let Some(message) = message else {
            lines.for_each(|line| line.wire.cut());
            return;
        };
        state.vector = message.vector;
        // The route first: an event must not find the old one any more.
        let route = Route::Msi(message.to_msi());
        if let Err(error) = self.routes.set(pin as u32, vec![route]) {
            tracing::error!(pin, %error, "KVM_SET_GSI_ROUTING failed: the end of an interrupt may be lost");
        }
        for line in lines {
            if let Err(error) = line.wire.connect() {
                tracing::error!(pin, %error, "an event raises no interrupt any more");
            }
        }
    }

    /// Tells devices whose interrupt was finished that they may ask again.
    fn end_of_interrupt(&self, vector: u8) {
        let pins = self.pins.lock();
        let ended = pins.iter().filter(|pin| pin.vector == vector);
        for line in ended.flat_map(|pin| &pin.lines).filter_map(Weak::upgrade) {
            line.resample();
        }
    }
}

/// An event wired to a pin.
struct SplitLine {
    wire: Wire,
    resample: OwnedFd,
}

impl SplitLine {
    fn resample(&self) {
        // Full means signalled already; anything else is a descriptor that its owner broke.
        if let Err(error) = rustix::io::write(self.resample.as_fd(), &1u64.to_ne_bytes()) {
            tracing::debug!(%error, "a resample event was not taken");
        }
    }
}

/// Keeps the wire there.
struct Attached(#[allow(dead_code, reason = "its drop is the point")] Arc<SplitLine>);

impl EventLine for Attached {}

/// The kernel's local APICs.
struct Apics(Arc<Vm>);

impl Messages for Apics {
    fn deliver(&self, message: &Message) -> bool {
        crate::irq::signal_msi(&self.0, message.to_msi())
    }
}
