//! One local APIC: the face that its processor and everybody else see.
//!
//! The processor's own thread polls [`LocalApic::work`] and [`LocalApic::next_timer`], both one
//! atomic load, and takes the lock only when they say so or when the guest touches a register.
//! Other threads put messages in under the same lock and then wake the processor.

mod access;
mod regs;
mod saved;
mod timer;
mod vectors;

#[cfg(test)]
mod saved_tests;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use umbra_clock::Clock;

use crate::apics::Apics;
use crate::message::{Delivery, Destination, Message, Messages};
use crate::pic::Pic;
pub use saved::{ApicPart, ApicState, BadApicState};

use regs::{Effect, Registers, base, error, lvt, reg};

const APIC_BASE: u32 = 0x1b;
const TSC_DEADLINE: u32 = 0x6e0;
const X2APIC_FIRST: u32 = 0x800;
const X2APIC_LAST: u32 = 0x8ff;
/// In [`LocalApic::deadline`] and [`LocalApic::window`]: there is none.
const NONE: u64 = u64::MAX;

/// What a message asks of the processor itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Reset to the state after INIT and wait for a start-up message. The chip has been reset.
    Init,
    /// Start at page `.0` in real mode, if waiting for it.
    Sipi(u8),
    /// Take a non-maskable interrupt.
    Nmi,
}

/// One non-maskable interrupt is taken and one is latched behind it; more are merged (SDM vol. 3,
/// 6.7.1).
const NMI_MAX: u8 = 2;

/// Events that wait for the processor to take them.
#[derive(Debug, Default)]
struct Events {
    init: bool,
    sipi: Option<u8>,
    /// Non-maskable interrupts that were not taken yet, [`NMI_MAX`] at most.
    nmi: u8,
    /// A message of mode ExtINT came in: the 8259 pair has the vector.
    ext_int: bool,
}

struct Inner {
    regs: Registers,
    events: Events,
    wake: Box<dyn Fn() + Send + Sync>,
}

/// A local APIC (SDM vol. 3, chapter 11).
pub struct LocalApic {
    id: u32,
    clock: Clock,
    /// True when there is an event, or an interrupt that the processor could take.
    work: AtomicBool,
    /// When the timer fires, in nanoseconds, or [`NONE`].
    deadline: AtomicU64,
    /// Where the xAPIC page is, or [`NONE`].
    window: AtomicU64,
    inner: Mutex<Inner>,
    pic: OnceLock<Arc<Pic>>,
    peers: Weak<Apics>,
}

impl LocalApic {
    pub(crate) fn new(id: u32, clock: Clock, peers: Weak<Apics>) -> Self {
        Self {
            id,
            clock,
            work: AtomicBool::new(false),
            deadline: AtomicU64::new(NONE),
            window: AtomicU64::new(base::DEFAULT),
            inner: Mutex::new(Inner {
                regs: Registers::new(id),
                events: Events::default(),
                wake: Box::new(|| {}),
            }),
            pic: OnceLock::new(),
            peers,
        }
    }

    /// Returns the local APIC id, which is the processor's number in either mode.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Returns IA32_APIC_BASE as it is after power-up.
    pub fn power_up_base(&self) -> u64 {
        Registers::new(self.id).base
    }

    /// Sets what is called whenever something may have become deliverable. It is called from any
    /// thread with this chip's lock held: it may set a flag or unpark, and nothing else.
    pub fn set_wake(&self, wake: Box<dyn Fn() + Send + Sync>) {
        self.inner.lock().wake = wake;
    }

    /// Wires the 8259 pair to LINT0.
    pub(crate) fn connect_pic(&self, pic: Arc<Pic>) {
        // A second pair cannot be wired to the same pin; the first stays.
        let _ = self.pic.set(pic);
    }

    /// True when there is an event to take or an interrupt that may be deliverable. One load.
    #[inline]
    pub fn work(&self) -> bool {
        // Acquire pairs with the release in `refresh`: who sees the flag sees what it stands for
        // once it takes the lock.
        self.work.load(Ordering::Acquire)
    }

    /// Takes the next event: INIT before start-up before NMI. INIT resets the registers on the way
    /// (SDM vol. 3, 11.4.7.3); other events stay, for a start-up message may have followed already.
    pub fn take_event(&self) -> Option<Event> {
        self.with(|inner| {
            let Inner { regs, events, .. } = inner;
            if std::mem::take(&mut events.init) {
                regs.init();
                return Some(Event::Init);
            }
            if let Some(page) = events.sipi.take() {
                return Some(Event::Sipi(page));
            }
            events.nmi = events.nmi.checked_sub(1)?;
            Some(Event::Nmi)
        })
    }

    /// Tells how many bits a physical address of the processor has: an address of the xAPIC page
    /// beyond them is #GP. 52 where nobody says anything.
    pub fn set_physical_bits(&self, bits: u32) {
        self.inner.lock().regs.physical_bits = bits.clamp(32, 52);
    }

    /// Returns the vector that [`LocalApic::acknowledge`] would return, and changes nothing.
    pub fn pending(&self) -> Option<u8> {
        let (ext_int, vector) = self.with(|inner| (self.ext_int(inner), inner.regs.deliverable()));
        match self.pic.get() {
            Some(pic) if ext_int => Some(pic.peek()),
            _ => vector,
        }
    }

    /// Accepts the most important interrupt: from the 8259 pair through an ExtINT pin with its
    /// acknowledge cycle, else the highest vector above the processor priority.
    pub fn acknowledge(&self) -> Option<u8> {
        let mut inner = self.inner.lock();
        if self.ext_int(&inner)
            && let Some(pic) = self.pic.get()
        {
            inner.events.ext_int = false;
            // The pair drives its output, which comes back here: not under the lock.
            drop(inner);
            let vector = pic.acknowledge();
            self.with(|_| {});
            return Some(vector);
        }
        let vector = inner.regs.acknowledge();
        self.refresh(&inner);
        vector
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register; `None` is #GP.
    pub fn read_msr(&self, msr: u32) -> Option<u64> {
        let inner = self.inner.lock();
        let regs = &inner.regs;
        match msr {
            APIC_BASE => Some(regs.base),
            TSC_DEADLINE => Some(regs.timer.deadline()),
            X2APIC_FIRST..=X2APIC_LAST if regs.x2apic() => match msr - X2APIC_FIRST {
                reg::ICR => Some(regs.icr()),
                register => regs.read(register, self.clock.now()).map(u64::from),
            },
            _ => None,
        }
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register; `None` is #GP.
    pub fn write_msr(&self, msr: u32, value: u64) -> Option<()> {
        let effect = self.with(|inner| match msr {
            APIC_BASE => inner.regs.set_base(value).map(|()| Effect::None),
            TSC_DEADLINE => {
                inner.regs.timer.set_deadline(value);
                // A deadline that has passed is due now, not when the processor looks at the clock.
                fire(inner, self.clock.now());
                Some(Effect::None)
            }
            X2APIC_FIRST..=X2APIC_LAST if inner.regs.x2apic() => {
                let now = self.clock.now();
                fire(inner, now);
                inner.regs.write_x2apic(msr - X2APIC_FIRST, value, now)
            }
            _ => None,
        })?;
        self.perform(effect);
        Some(())
    }

    /// Sends one message to each of `ids`: the vector and delivery mode in the lower half of an ICR,
    /// edge-triggered as every inter-processor interrupt. Returns how many accepted it; `None` if
    /// `icr` names a destination of its own (a shorthand) or a reserved mode.
    pub fn multicast(&self, ids: impl IntoIterator<Item = u32>, icr: u32) -> Option<u64> {
        let (delivery, vector) = access::multicast(icr)?;
        let peers = self.peers.upgrade()?;
        let accepted = ids.into_iter().filter(|&id| {
            peers.deliver(&Message {
                delivery,
                vector,
                level: false,
                destination: Destination::Physical(id),
            })
        });
        Some(accepted.count() as u64)
    }

    /// Returns where the xAPIC page is, or `None` when the chip is off or in x2APIC mode.
    #[inline]
    pub fn window(&self) -> Option<u64> {
        // Only the processor's own thread moves the page: program order is enough.
        let page = self.window.load(Ordering::Relaxed);
        (page != NONE).then_some(page)
    }

    /// Reads the 32-bit register at `offset` of the xAPIC page. What lies between the registers
    /// reads as zero.
    pub fn mmio_read(&self, offset: u32) -> u32 {
        self.with(|inner| {
            if offset & 0xf != 0 || inner.regs.x2apic() {
                return 0;
            }
            let value = inner.regs.read(offset >> 4, self.clock.now());
            if value.is_none() {
                inner.regs.report(error::ILLEGAL_REGISTER);
            }
            value.unwrap_or(0)
        })
    }

    /// Writes the 32-bit register at `offset` of the xAPIC page.
    pub fn mmio_write(&self, offset: u32, value: u32) {
        let effect = self.with(|inner| {
            if offset & 0xf != 0 || inner.regs.x2apic() || !inner.regs.hardware_enabled() {
                return Effect::None;
            }
            // What was due before is decided by the old registers: a mask that comes off later lets
            // nothing out.
            let now = self.clock.now();
            fire(inner, now);
            inner.regs.write_xapic(offset >> 4, value, now)
        });
        self.perform(effect);
    }

    /// Returns the task priority as CR8 shows it: 0 to 15.
    pub fn tpr(&self) -> u8 {
        self.inner.lock().regs.tpr >> 4
    }

    /// Sets the task priority as a write to CR8 does (SDM vol. 3, 11.8.6).
    pub fn set_tpr(&self, class: u8) {
        self.with(|inner| inner.regs.tpr = class << 4);
    }

    /// Returns when the timer fires next, in nanoseconds of the clock. One load.
    #[inline]
    pub fn next_timer(&self) -> Option<u64> {
        // Changed by the processor's own thread, or by a reset that wakes it.
        let at = self.deadline.load(Ordering::Relaxed);
        (at != NONE).then_some(at)
    }

    /// Lets the timer see that it is `now_ns`; it fires if due.
    pub fn tick(&self, now_ns: u64) {
        self.with(|inner| fire(inner, now_ns));
    }

    /// Tells the chip that the guest's time-stamp counter is `offset` ahead of the clock.
    pub fn set_tsc_offset(&self, offset: i64) {
        self.with(|inner| inner.regs.timer.set_tsc_offset(offset));
    }

    /// Sets the chip up as firmware leaves it for a kernel that knows nothing of APICs: enabled,
    /// LINT0 for the 8259 pair, LINT1 for NMI (MultiProcessor Specification 1.4, 3.6.2.2).
    pub fn set_virtual_wire(&self) {
        self.with(|inner| {
            let now = self.clock.now();
            for (register, value) in [(reg::SVR, 0x10f), (0x35, 0x700), (0x36, 0x400)] {
                let _none = inner.regs.write_xapic(register, value, now);
            }
        });
    }

    /// Pulses LINT1, to which a PC wires its NMI.
    pub fn pulse_lint1(&self) {
        self.with_wake(|inner| deliver_lvt(inner, lvt::LINT1));
    }

    /// Hears that the output of the 8259 pair has changed.
    pub(crate) fn pic_changed(&self) {
        self.with_wake(|_| {});
    }

    /// Tells the arbitration priority, if `message` lists this chip and could be accepted.
    pub(crate) fn candidate(&self, message: &Message) -> Option<u8> {
        let inner = self.inner.lock();
        let regs = &inner.regs;
        (regs.is_listed(message.destination) && regs.accepts()).then(|| regs.apr())
    }

    /// Takes `message` if it lists this chip; true when accepted.
    pub(crate) fn receive(&self, message: &Message) -> bool {
        self.with_wake(|inner| inner.regs.is_listed(message.destination) && accept(inner, message))
    }

    fn perform(&self, effect: Effect) {
        let Some(peers) = self.peers.upgrade() else {
            return;
        };
        match effect {
            Effect::None => {}
            Effect::Send(message) => {
                peers.deliver(&message);
            }
            Effect::EndOfInterrupt(vector) => peers.end_of_interrupt(vector),
        }
    }

    /// Runs `f` under the lock and brings the atomics up to date.
    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.inner.lock();
        let result = f(&mut inner);
        self.refresh(&inner);
        result
    }

    /// The same for changes from outside: wakes the processor if there is something for it.
    fn with_wake<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.inner.lock();
        let result = f(&mut inner);
        if self.refresh(&inner) {
            (inner.wake)();
        }
        result
    }

    fn refresh(&self, inner: &Inner) -> bool {
        let events = &inner.events;
        let work = events.init
            || events.nmi != 0
            || events.sipi.is_some()
            || inner.regs.deliverable().is_some()
            || self.ext_int(inner);
        self.work.store(work, Ordering::Release);
        let at = inner.regs.timer.expires().unwrap_or(NONE);
        self.deadline.store(at, Ordering::Relaxed);
        let paged = inner.regs.hardware_enabled() && !inner.regs.x2apic();
        let page = if paged {
            inner.regs.base & base::ADDRESS
        } else {
            NONE
        };
        self.window.store(page, Ordering::Relaxed);
        work
    }

    /// True when the output of the 8259 pair is high and reaches this processor: through an
    /// ExtINT message, through LINT0, or, on the boot processor, directly while the chip is off
    /// (SDM vol. 3, 11.4.3: the pins are then INTR and NMI).
    fn ext_int(&self, inner: &Inner) -> bool {
        const EXT_INT: u32 = 7;
        let entry = inner.regs.lvt[lvt::LINT0];
        let open = inner.events.ext_int
            || self.id == 0 && !inner.regs.hardware_enabled()
            || entry & lvt::MASKED == 0 && entry >> 8 & 7 == EXT_INT;
        open && self.pic.get().is_some_and(|pic| pic.intr())
    }
}

/// Takes a message that is for this chip; true when accepted.
fn accept(inner: &mut Inner, message: &Message) -> bool {
    let Inner { regs, events, .. } = inner;
    match message.delivery {
        Delivery::Fixed | Delivery::LowestPriority => {
            return regs.request(message.vector, message.level);
        }
        Delivery::Smi => {}
        Delivery::Nmi => events.nmi = NMI_MAX.min(events.nmi + 1),
        Delivery::Init => {
            events.init = true;
            events.sipi = None;
        }
        Delivery::StartUp => events.sipi = Some(message.vector),
        Delivery::ExtInt => events.ext_int = true,
    }
    regs.hardware_enabled()
}

/// Lets the timer fire if it is due.
fn fire(inner: &mut Inner, now: u64) {
    if inner.regs.timer.fire(now) {
        deliver_lvt(inner, lvt::TIMER);
    }
}

/// Delivers what a local vector table entry says, unless it is masked (SDM vol. 3, 11.5.1).
fn deliver_lvt(inner: &mut Inner, index: usize) {
    let entry = inner.regs.lvt[index];
    if entry & lvt::MASKED != 0 {
        return;
    }
    // Only the LINT, thermal and counter entries have a delivery mode; in the timer's those bits
    // are not writable and read as zero, which is Fixed.
    match Delivery::from_bits(entry >> 8) {
        Some(Delivery::Fixed) => {
            inner.regs.request(entry as u8, false);
        }
        Some(Delivery::Nmi) => inner.events.nmi = NMI_MAX.min(inner.events.nmi + 1),
        _ => {}
    }
}
