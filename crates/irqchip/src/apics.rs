//! All local APICs of a machine, and the way messages find theirs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use umbra_clock::Clock;
use umbra_irq::{Msi, MsiTarget};

use crate::apic::LocalApic;
use crate::message::{Delivery, Destination, Message, Messages};
use crate::pic::Pic;

type EoiListener = Box<dyn Fn(u8) + Send + Sync>;

/// The local APICs of a machine, by id.
pub struct Apics {
    apics: Vec<Arc<LocalApic>>,
    /// Where the search for the lowest priority starts, so that equals take turns.
    turn: AtomicUsize,
    eoi: OnceLock<EoiListener>,
}

impl Apics {
    /// Makes `count` local APICs with the ids 0 to `count` - 1; number 0 is the boot processor's.
    pub fn new(count: u32, clock: Clock) -> Arc<Self> {
        Arc::new_cyclic(|peers| Self {
            apics: (0..count)
                .map(|id| Arc::new(LocalApic::new(id, clock, peers.clone())))
                .collect(),
            turn: AtomicUsize::new(0),
            eoi: OnceLock::new(),
        })
    }

    /// Returns local APIC `id`.
    ///
    /// # Panics
    ///
    /// Panics if `id` is not below the count that the set was made with.
    pub fn apic(&self, id: u32) -> Arc<LocalApic> {
        Arc::clone(&self.apics[id as usize])
    }

    /// Returns all local APICs, by id.
    pub fn all(&self) -> &[Arc<LocalApic>] {
        &self.apics
    }

    /// Sets who hears of the end of level-triggered interrupts; once.
    pub(crate) fn on_end_of_interrupt(&self, listener: EoiListener) {
        // The set has one IOAPIC; a second listener would be a bug of this crate's own wiring.
        let _ = self.eoi.set(listener);
    }

    pub(crate) fn connect_pic(&self, pic: &Arc<Pic>) {
        self.apics
            .iter()
            .for_each(|apic| apic.connect_pic(Arc::clone(pic)));
    }

    pub(crate) fn pic_changed(&self) {
        self.apics.iter().for_each(|apic| apic.pic_changed());
    }

    pub(crate) fn end_of_interrupt(&self, vector: u8) {
        if let Some(listener) = self.eoi.get() {
            listener(vector);
        }
    }

    /// Finds the listed processor with the lowest arbitration priority (SDM vol. 3, 11.6.2.4).
    fn lowest(&self, message: &Message) -> Option<&LocalApic> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed) % self.apics.len().max(1);
        let (before, after) = self.apics.split_at(start);
        after
            .iter()
            .chain(before)
            .filter_map(|apic| Some((apic.candidate(message)?, apic)))
            .min_by_key(|(priority, _)| *priority)
            .map(|(_, apic)| &**apic)
    }
}

impl Messages for Apics {
    fn deliver(&self, message: &Message) -> bool {
        if message.delivery == Delivery::LowestPriority {
            return self.lowest(message).is_some_and(|apic| {
                let to_one = Message {
                    destination: Destination::Physical(apic.id()),
                    ..*message
                };
                apic.receive(&to_one)
            });
        }
        if let Destination::Physical(id) = message.destination {
            // Ids are positions: no need to ask everybody.
            return self
                .apics
                .get(id as usize)
                .is_some_and(|apic| apic.receive(message));
        }
        // Everybody listed gets it: no short circuit.
        let accepted = self.apics.iter().filter(|apic| apic.receive(message));
        accepted.count() > 0
    }
}

impl MsiTarget for Apics {
    fn send(&self, msi: Msi) {
        if let Some(message) = Message::from_msi(msi) {
            self.deliver(&message);
        }
    }
}
