//! The root bus: functions by address, and their BARs as windows of the guest's map.
//!
//! ```text
//!   ECAM, ports ──> RootBus ── table: address → place ──> Function::write_config
//!                                                    └──> decoded? ── Bus: show, move, hide
//!   machine ── add, remove                                               │
//!                                                              one change of the map each
//! ```
//! A BAR has one id on the [`Bus`] from when its function appears to when it is removed. While memory
//! space is on and its address lies in one of the host bridge's windows, that id has a window in the
//! map; every change of that is one change of the map, and so of the generation. However often a
//! guest turns a BAR on and off, nothing grows.
//!
//! A BAR that would lie on something else is not shown, and neither is one outside the windows. It is
//! tried again with the next write to its function.
//!
//! **Locks**: a place's lock is held over a write to its function and the changes of the map that
//! follow, so that the map is always that of the last write. Order: place → function → map writer →
//! bus table. The table of functions is locked for a look-up only. All of this happens on the thread of
//! a processor that is inside a handler (of ECAM, of the ports), so nothing here waits for handlers:
//! hiding a BAR does not need to, and removing a function hands the waiting to the caller
//! ([`Unplugged::wait`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use umbra_bus::{Bus, MmioDevice, Removed};
use umbra_slots::{GpaRange, IoId};

use crate::{Address, Function};

/// Where the guest may put BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Below 4 GiB.
    pub low: GpaRange,
    /// Above.
    pub high: Option<GpaRange>,
}

impl Windows {
    fn hold(&self, range: &GpaRange) -> bool {
        let inside =
            |window: &GpaRange| window.contains(range.start()) && window.contains(range.last());
        inside(&self.low) || self.high.as_ref().is_some_and(inside)
    }
}

/// Why a function cannot appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// Another one is there.
    #[error("there is a function at {address} already; remove it or take another device number")]
    Taken {
        /// Where.
        address: Address,
    },
}

/// A BAR with its window.
struct Bar {
    index: u8,
    id: IoId,
    shown: Option<GpaRange>,
}

/// A function at its address.
struct Place {
    address: Address,
    function: Arc<dyn Function>,
    /// `None` when the function has been removed.
    bars: Mutex<Option<Vec<Bar>>>,
}

/// Bus 0, with its functions.
pub struct RootBus {
    /// Weak: the bus has the ways to this root bus's registers.
    bus: Weak<Bus>,
    windows: Windows,
    places: Mutex<BTreeMap<Address, Arc<Place>>>,
}

impl RootBus {
    /// Makes a bus without functions, whose BARs become windows of `bus` as long as that is there.
    pub fn new(bus: &Arc<Bus>, windows: Windows) -> Self {
        Self {
            bus: Arc::downgrade(bus),
            windows,
            places: Mutex::new(BTreeMap::new()),
        }
    }

    /// Adds a function; without a bus any more, nothing.
    ///
    /// # Errors
    /// If there is one at the address; nothing has changed then.
    pub fn add(&self, address: Address, function: Arc<dyn Function>) -> Result<(), PciError> {
        let Some(bus) = self.bus.upgrade() else {
            return Ok(());
        };
        let place = Arc::new(Place {
            address,
            function: function.clone(),
            bars: Mutex::new(Some(Vec::new())),
        });
        // Until its BARs are known, a guest that has found the function waits with its first write.
        let mut bars = place.bars.lock();
        {
            let mut places = self.places.lock();
            if places.contains_key(&address) {
                return Err(PciError::Taken { address });
            }
            places.insert(address, place.clone());
        }
        let known = function.clone().bars().into_iter().map(|(index, device)| {
            let id = bus.register(device);
            function.attach(index, id);
            Bar {
                index,
                id,
                shown: None,
            }
        });
        *bars = Some(known.collect());
        Ok(())
    }

    /// Removes a function: its registers read as all ones, its BARs hit nothing. `None` if there is
    /// none. May be called from a handler; what it returns is to be waited for elsewhere.
    pub fn remove(&self, address: Address) -> Option<Unplugged> {
        let place = self.places.lock().remove(&address)?;
        let bars = place.bars.lock().take().unwrap_or_default();
        let bus = self.bus.upgrade();
        let gone = |bar: &Bar| bus.as_ref()?.remove(bar.id);
        Some(Unplugged {
            removed: bars.iter().filter_map(gone).collect(),
            function: place.function.clone(),
        })
    }

    /// Tells whether there is a function.
    pub fn has(&self, address: Address) -> bool {
        self.places.lock().contains_key(&address)
    }

    fn place(&self, address: Address) -> Option<Arc<Place>> {
        self.places.lock().get(&address).cloned()
    }

    /// Reads configuration registers, as [`Function::read_config`]; all ones where there is no
    /// function.
    pub fn read_config(&self, address: Address, register: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(place) = self.place(address) {
            let bars = place.bars.lock();
            if bars.is_some() {
                place.function.read_config(register, data);
            }
        }
    }

    /// Writes configuration registers, and brings the function's windows to where they are now.
    pub fn write_config(&self, address: Address, register: u16, data: &[u8]) {
        let Some(place) = self.place(address) else {
            return;
        };
        let mut bars = place.bars.lock();
        // Nothing, if it was removed since.
        let Some(bars) = &mut *bars else {
            return;
        };
        place.function.write_config(register, data);
        if let Some(bus) = self.bus.upgrade() {
            for bar in bars {
                self.settle(&bus, &place, bar);
            }
        }
    }

    /// Makes the window of a BAR what the function decodes.
    fn settle(&self, bus: &Bus, place: &Place, bar: &mut Bar) {
        let wanted = place.function.decoded(bar.index);
        let wanted = wanted.filter(|range| self.windows.hold(range));
        if bar.shown == wanted {
            return;
        }
        let done = match (bar.shown, wanted) {
            (Some(_), Some(range)) => bus.move_to(bar.id, range.start()),
            (None, Some(range)) => bus.show(bar.id, range),
            (_, None) => bus.hide(bar.id),
        };
        match done {
            Ok(()) => bar.shown = wanted,
            Err(error) => {
                tracing::debug!(address = %place.address, bar = bar.index, %error, "not decoded");
                // It is not where it was, either.
                if bar.shown.take().is_some() {
                    let _ = bus.hide(bar.id);
                }
            }
        }
    }
}

/// A function that was removed, into whose BARs a processor may still be calling.
#[must_use = "a processor may still be inside the function until this is waited for"]
pub struct Unplugged {
    removed: Vec<Removed<MmioDevice>>,
    function: Arc<dyn Function>,
}

impl Unplugged {
    /// Blocks until no processor is inside, and gives the function back. Must not be called from a
    /// handler of one of its BARs.
    pub fn wait(self) -> Arc<dyn Function> {
        for removed in self.removed {
            drop(removed.wait());
        }
        self.function
    }
}

impl std::fmt::Debug for Unplugged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unplugged({} BARs)", self.removed.len())
    }
}
