//! Doorbells in the kernel (`KVM_IOEVENTFD`), kept where the map has their windows.
//!
//! KVM looks a written address up among the doorbells before anybody asks what is there. So a
//! doorbell must be gone before its address can become something else, and come after its window
//! did: the map's listener takes them away before the swap and brings them after it. In between the
//! write reaches the device itself, which does the same.
//!
//! **Locks**: the map's writer lock comes before the registry's.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use umbra_cpu::{Doorbell, DoorbellError, Doorbells};
use umbra_slots::{AddressSpace, Backing, Change, GpaRange, IoId, Snapshot};

use crate::raw::{self, IoEvent};
use crate::vm::Vm;

struct Bell {
    doorbell: Doorbell,
    event: OwnedFd,
    /// Where KVM has it.
    at: Option<IoEvent>,
}

/// All doorbells of a machine.
pub(crate) struct Registry {
    vm: Arc<Vm>,
    bells: Mutex<HashMap<IoId, Vec<Bell>>>,
}

impl Registry {
    pub fn new(vm: Arc<Vm>) -> Self {
        Self {
            vm,
            bells: Mutex::default(),
        }
    }

    /// Takes those away whose windows go or move.
    pub fn before(&self, change: &Change) {
        let mut bells = self.bells.lock();
        if bells.is_empty() {
            return;
        }
        for (id, bells) in bells.iter_mut() {
            if window(&change.old, *id) != window(&change.new, *id) {
                bells.iter_mut().for_each(|bell| self.silence(bell));
            }
        }
    }

    /// Brings those whose windows came.
    pub fn after(&self, change: &Change) {
        let mut bells = self.bells.lock();
        for (id, bells) in bells.iter_mut() {
            let Some(window) = window(&change.new, *id) else {
                continue;
            };
            for bell in bells.iter_mut().filter(|bell| bell.at.is_none()) {
                if let Err(error) = self.arm(bell, *id, window) {
                    // The device gets these writes itself: slower, and not wrong.
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a doorbell is not in the kernel"
                    );
                }
            }
        }
    }

    fn arm(&self, bell: &mut Bell, id: IoId, window: GpaRange) -> Result<(), DoorbellError> {
        let Doorbell { offset, len, value } = bell.doorbell;
        let end = offset.checked_add(len.max(1).into());
        if end.is_none_or(|end| end > window.len()) {
            let window = window.len();
            return Err(DoorbellError::Outside {
                id,
                offset,
                len,
                window,
            });
        }
        let at = IoEvent {
            address: window.start().0 + offset,
            len,
            value,
        };
        raw::io_event(self.vm.fd(), at, bell.event.as_raw_fd(), true)
            .map_err(|source| DoorbellError::Host { id, offset, source })?;
        bell.at = Some(at);
        Ok(())
    }

    fn silence(&self, bell: &mut Bell) {
        if let Some(at) = bell.at.take()
            && let Err(error) = raw::io_event(self.vm.fd(), at, bell.event.as_raw_fd(), false)
        {
            tracing::error!(?at, %error, "KVM keeps a doorbell");
        }
    }
}

/// Where a window is.
fn window(map: &Snapshot, id: IoId) -> Option<GpaRange> {
    let is = |backing: &Backing| matches!(backing, Backing::Io(other) if *other == id);
    let slot = map.slots().iter().find(|slot| is(slot.backing()))?;
    Some(slot.range())
}

/// The registry, and the map that says where windows are.
pub(crate) struct KvmDoorbells {
    pub registry: Arc<Registry>,
    pub space: Arc<AddressSpace>,
}

impl Doorbells for KvmDoorbells {
    fn add(
        &self,
        id: IoId,
        doorbell: Doorbell,
        event: BorrowedFd<'_>,
    ) -> Result<(), DoorbellError> {
        if !matches!(doorbell.len, 0 | 1 | 2 | 4 | 8) {
            return Err(DoorbellError::Width { len: doorbell.len });
        }
        let host = |source| DoorbellError::Host {
            id,
            offset: doorbell.offset,
            source,
        };
        let event = event.try_clone_to_owned().map_err(host)?;
        // Held still: a window that moves now would leave its doorbell behind.
        let map = self.space.hold();
        let mut bells = self.registry.bells.lock();
        let list = bells.entry(id).or_default();
        if list.iter().any(|bell| bell.doorbell == doorbell) {
            return Err(DoorbellError::Taken { id, doorbell });
        }
        let mut bell = Bell {
            doorbell,
            event,
            at: None,
        };
        if let Some(window) = window(&map, id) {
            self.registry.arm(&mut bell, id, window)?;
        }
        list.push(bell);
        Ok(())
    }

    fn remove(&self, id: IoId, doorbell: Doorbell) {
        let mut bells = self.registry.bells.lock();
        let Some(list) = bells.get_mut(&id) else {
            return;
        };
        if let Some(at) = list.iter().position(|bell| bell.doorbell == doorbell) {
            self.registry.silence(&mut list[at]);
            list.swap_remove(at);
        }
        if list.is_empty() {
            bells.remove(&id);
        }
    }

    fn remove_all(&self, id: IoId) {
        let mut bells = self.registry.bells.lock();
        for mut bell in bells.remove(&id).unwrap_or_default() {
            self.registry.silence(&mut bell);
        }
    }
}
