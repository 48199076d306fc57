//! The whole state of a processor, out and in (see [`umbra_x86::vcpu`]).
//!
//! A state from outside is checked from end to end before anything changes ([`check`]); what then
//! happens cannot fail. Exceptions and interrupts whose delivery had begun elsewhere are held until
//! the next run, for delivery needs the machine around the processor; this processor itself never
//! stops between raising and delivering one.

mod check;
mod msrs;

use umbra_cpu::StateError;
use umbra_irqchip::{ApicState, Event};
use umbra_mmu::Scope;
use umbra_slots::Gpa;
use umbra_x86::vcpu::{
    Activity as Doing, Component, DebugRegisters, Events, HeldException, HeldInterrupt, Nmi,
    Shadow, Stage, Time, VcpuState, XsaveImage,
};
use umbra_x86::{Exception, vector};

use crate::cpu::{Activity, Cpu, Msrs};
use crate::fpu::FxArea;
use crate::interrupt::Origin;
use crate::ops::xsave::{self, component};

/// Frequency of every time-stamp counter here.
const TSC_KHZ: u32 = (umbra_clock::TSC_HZ / 1000) as u32;
/// Bytes of the FXSAVE image that are state; what follows is the software's.
const FX_STATE: usize = 416;
/// DR7: general detect.
const DR7_GD: u64 = 1 << 13;

/// What a restored state has to deliver before the first instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    exception: Option<HeldException>,
    interrupt: Option<HeldInterrupt>,
    nmi: bool,
}

/// A state that was found good, in the forms in which this processor keeps it.
struct Checked {
    fx: FxArea,
    msrs: Msrs,
    apic: ApicState,
    pdptes: Option<[u64; 4]>,
}

impl Cpu {
    /// The whole state. What others sent is acted upon first.
    pub fn save(&mut self) -> VcpuState {
        while let Some(event) = self.apic.take_event() {
            self.event(event);
        }
        let now = self.clock.now();
        let apic = self.apic.save(now);
        VcpuState {
            registers: self.export(),
            pdptes: self.pae().then(|| self.mmu.pdptes()),
            debug: DebugRegisters {
                address: [self.dr[0], self.dr[1], self.dr[2], self.dr[3]],
                dr6: self.dr[6],
                dr7: self.dr[7],
            },
            xcr0: self.xcr0,
            xsave: self.xsave_image(),
            msrs: self.msr_list(&apic),
            lapic: apic.image,
            events: self.save_events(),
            activity: match self.activity {
                Activity::Running | Activity::Shutdown => Doing::Running,
                Activity::Halted => Doing::Halted,
                Activity::WaitForSipi => Doing::WaitForSipi,
            },
            time: Time {
                clock_ns: now,
                tsc: now.wrapping_add(self.msrs.tsc_offset),
                tsc_khz: TSC_KHZ,
            },
        }
    }

    fn save_events(&self) -> Events {
        let watched = (self.debug_shadow && self.watch_hits != 0).then_some(HeldException {
            vector: vector::DB,
            error: None,
            payload: Some(self.watch_hits),
            stage: Stage::Pending,
        });
        Events {
            exception: self.held.exception.or(watched),
            interrupt: self.held.interrupt,
            shadow: match (self.shadow, self.debug_shadow) {
                (false, _) => Shadow::None,
                (true, false) => Shadow::Sti,
                (true, true) => Shadow::MovSs,
            },
            nmi: Nmi {
                injected: self.held.nmi,
                pending: self.nmi_pending,
                masked: self.nmi_blocked,
            },
            triple_fault: self.activity == Activity::Shutdown,
        }
    }

    /// The XSAVE image: every component that there is, in use or not.
    fn xsave_image(&self) -> XsaveImage {
        let pkru = Component {
            number: Component::PKRU,
            offset: xsave::PKRU_OFFSET as u32,
            len: xsave::PKRU_SIZE as u32,
        };
        let has_pkru = self.xcr0_allowed() & component::PKRU != 0;
        let components = if has_pkru { vec![pkru] } else { Vec::new() };
        let mut image = XsaveImage::initial(components).expect("one component behind the header");
        image.legacy_mut()[..FX_STATE].copy_from_slice(&self.fx.image()[..FX_STATE]);
        image.use_legacy();
        if let Some(bytes) = image.use_component(Component::PKRU) {
            bytes[..4].copy_from_slice(&self.pkru.to_le_bytes());
        }
        image
    }

    /// Becomes what `state` says.
    ///
    /// # Errors
    /// What this processor cannot represent; nothing has then changed.
    pub fn restore(&mut self, state: &VcpuState) -> Result<(), StateError> {
        let checked = self.check(state)?;
        let debug = &state.debug;
        let [dr0, dr1, dr2, dr3] = debug.address;
        self.dr = [dr0, dr1, dr2, dr3, 0, 0, debug.dr6, debug.dr7];
        self.xcr0 = state.xcr0;
        self.pkru = state.xsave.pkru();
        *self.fx = checked.fx;
        self.msrs = checked.msrs;
        if let Some(pdptes) = checked.pdptes {
            self.mmu.set_pdptes(pdptes);
        }
        self.load_state(&state.registers);
        self.mmu.guest_flush(Scope::All);
        self.drain();
        // Behind the registers: CR8 has only half of the task priority.
        self.apic.restore(&checked.apic).expect("checked above");
        self.restore_events(&state.events);
        self.restore_activity(state);
        self.timer_changed();
        self.refresh_system_time();
        Ok(())
    }

    fn restore_events(&mut self, events: &Events) {
        self.held = Held {
            exception: events.exception,
            interrupt: events.interrupt,
            nmi: events.nmi.injected,
        };
        self.shadow = events.shadow != Shadow::None;
        self.debug_shadow = events.shadow == Shadow::MovSs;
        self.watch_hits = 0;
        // What a load of SS holds back waits where the processor itself would have it.
        if self.debug_shadow
            && let Some(watched) = self.held.exception.take_if(|e| is_watched(e))
        {
            self.watch_hits = watched.payload.unwrap_or(0);
        }
        self.nmi_pending = events.nmi.pending;
        self.nmi_blocked = events.nmi.masked;
    }

    fn restore_activity(&mut self, state: &VcpuState) {
        self.activity = match state.activity {
            Doing::Running => Activity::Running,
            Doing::Halted => Activity::Halted,
            // INIT does here what power-up has done.
            Doing::WaitForInit | Doing::WaitForSipi | Doing::SipiReceived { .. } => {
                Activity::WaitForSipi
            }
        };
        if let Doing::SipiReceived { vector } = state.activity {
            self.event(Event::Sipi(vector));
        }
        self.crash.clear();
        if state.events.triple_fault {
            self.activity = Activity::Shutdown;
            self.crash = "triple fault, before the state was saved".into();
        }
    }

    /// Delivers what a restored state had begun to.
    pub fn deliver_held(&mut self) {
        if self.held == Held::default() {
            return;
        }
        let held = std::mem::take(&mut self.held);
        self.activity = Activity::Running;
        let begun = |e: &HeldException| e.stage == Stage::Injected;
        if let Some(exception) = held.exception.filter(begun) {
            self.deliver_exception(&exception);
        }
        if held.nmi {
            self.nmi_blocked = true;
            if self.deliver(vector::NMI, None, Origin::External).is_err() {
                self.deliver_pending();
            }
        }
        if let Some(interrupt) = held.interrupt {
            self.deliver_interrupt(interrupt.vector);
        }
        if let Some(exception) = held.exception.filter(|e| !begun(e)) {
            self.deliver_exception(&exception);
        }
    }

    fn deliver_exception(&mut self, exception: &HeldException) {
        let (vector, payload) = (exception.vector, exception.payload);
        if let (vector::DB, Some(conditions)) = (vector, payload) {
            self.dr[6] = self.dr[6] & !0xf | conditions;
            self.dr[7] &= !DR7_GD;
            self.refresh_mode();
        }
        self.pending = Some(Exception {
            vector,
            error: exception.error,
            cr2: payload.filter(|_| vector == vector::PF),
        });
        self.deliver_pending();
    }

    /// Writes the guest's time structure anew where it says something else than this machine's
    /// clock, with another version: the guest may be in the middle of reading it.
    fn refresh_system_time(&mut self) {
        let at = self.msrs.kvm_system_time;
        if at & 1 == 0 {
            return;
        }
        let gpa = Gpa(at & !1);
        let (mut old, mut new) = ([0; 32], self.system_time());
        if self.space.load().read(gpa, &mut old).is_ok() && old[4..] != new[4..] {
            let version = u32::from_le_bytes([old[0], old[1], old[2], old[3]]);
            let next = (version | 1).wrapping_add(1);
            new[..4].copy_from_slice(&next.to_le_bytes());
            self.write_physical(gpa, &new);
        }
    }
}

/// A debug exception that may wait for the end of a shadow.
fn is_watched(exception: &HeldException) -> bool {
    exception.vector == vector::DB
        && exception.stage == Stage::Pending
        && exception.payload.is_some_and(|hits| hits != 0)
}
