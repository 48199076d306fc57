//! The virtio devices of a machine: those that it began with, and those that come and go.
//!
//! ```text
//!   host ── add ────> function on the root bus ── PciHotplug: one has come ──> guest
//!   host ── remove ─> PciHotplug: it shall go ──> guest's driver stops ── ejects ──┐ (vCPU thread)
//!   host ── remove at once ────────────────────────────────────────────────────────┤
//!                      off the root bus ── a thread: nobody is inside ── shut down ┘── gone
//! ```
//! Who has been taken off the bus is *leaving* until its device has stopped and what it had of the host is
//! given back; its name is free then. A guest may eject what nobody asked for: it is its own loss.
//!
//! A device that is taken away is missed by the guest: Linux waits for the answer of a network device without
//! end, unless it is told. So it is asked to let go what is no longer there. Until it has, the place is
//! taken last, for what it lets go then must not be a device that has come since; and places are taken in
//! turn, for the same reason.
//!
//! **Pause.** Devices stand still after the processors. Leaving ones are waited for first, so that nothing
//! writes memory; one that is added meanwhile stands still from the beginning.
//!
//! **Locks**: `changes` (one host thread adds, or replaces a disk) → `state` → root bus, or the journal. Only `state` is taken on a
//! processor's thread, and nothing blocks under it but a pause, which happens while no processor runs.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use umbra_block::OpenError;
use umbra_cpu::{Backend, Statistics};
use umbra_devices::PciHotplug;
use umbra_devices::virtio::MemControl;
use umbra_irq::Line;
use umbra_pci::{Address, RootBus, Unplugged};
use umbra_slots::{AddressSpace, DmaSpace};
use umbra_vhost::BackEndState;
use umbra_virtio::{PciTransport, Transport};

use crate::build::{self, Control, Helper, HighMemory, Surroundings, Vhost};
use crate::console::Output;
use crate::error::{AddError, BuildError, DiskError, RemoveError};
use crate::journal::{Journal, News};
use crate::layout;
use crate::look::Look;
use crate::plan;
use crate::spec::{PortEnd, VirtioKind, VirtioSpec};
use crate::terminal::PortInput;

/// A virtio device of a machine. Fields are dropped in their order.
pub struct Attached {
    /// What it is.
    pub spec: VirtioSpec,
    /// Its transport.
    pub transport: Arc<dyn Transport>,
    /// Where it is, if it is a PCI function.
    pub address: Option<Address>,
    /// What changes it while it runs.
    pub control: Option<Control>,
    /// What it has outside.
    pub _helper: Helper,
}

/// A virtio device, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VirtioInfo {
    /// What it is called.
    pub id: String,
    /// Its kind, as in `virtio-NAME`.
    pub kind: &'static str,
    /// Device number on PCI bus 0; `None` for one that is no PCI function, and cannot be removed.
    pub pci_device: Option<u8>,
    /// A driver has started it.
    pub in_use: bool,
    /// It cannot go on until its driver resets it (DEVICE_NEEDS_RESET).
    pub needs_reset: bool,
    /// How its back end is, if it has one.
    pub back_end: Option<BackEndState>,
    /// What it has counted, named, for people and programs to read.
    pub counters: Statistics,
}

/// What the devices' thread and everybody else share.
struct Shared {
    state: Mutex<State>,
    /// One has gone.
    gone: Condvar,
    journal: Arc<Journal>,
}

impl Shared {
    fn new(journal: Arc<Journal>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            gone: Condvar::new(),
            journal,
        })
    }
}

#[derive(Default)]
struct State {
    devices: Vec<Attached>,
    /// The names of those that are leaving.
    leaving: BTreeSet<String>,
    /// Device numbers, a bit each, of those that were taken away and not let go yet.
    missed: u32,
    /// The device number that was taken last.
    last: u8,
    paused: bool,
    ended: bool,
}

impl State {
    /// The next place that is free; one where something is missed only if there is no other.
    fn free_address(&self, root: &RootBus) -> Option<Address> {
        // Device 0 is the host bridge.
        let turn = (self.last + 1..32).chain(1..=self.last);
        let addresses = turn.filter_map(|device| Address::new(device, 0));
        let free: Vec<_> = addresses.filter(|address| !root.has(*address)).collect();
        let missed = |address: &Address| self.missed & 1 << address.device() != 0;
        let good = free.iter().find(|address| !missed(address));
        good.or(free.first()).copied()
    }
}

/// One that has been taken off the bus.
struct Leaver {
    device: Attached,
    unplugged: Unplugged,
}

/// The root bus of a machine that has one, what its guest is told by, and who sees devices off.
struct Pci {
    root: Arc<RootBus>,
    /// Bytes of the machine's memory.
    memory: u64,
    /// Where its console is shown.
    output: Output,
    hotplug: Arc<PciHotplug>,
    /// Both are there until the end.
    leavers: Option<Sender<Leaver>>,
    thread: Option<JoinHandle<()>>,
    /// Where memory is that comes with them.
    high: Arc<HighMemory>,
    /// What devices of back ends have in common.
    vhost: Vhost,
}

/// All of them.
pub struct Devices {
    backend: Arc<dyn Backend>,
    space: Arc<AddressSpace>,
    pci: Option<Pci>,
    changes: Mutex<()>,
    shared: Arc<Shared>,
}

impl Devices {
    /// Makes the collection of a machine in which nothing comes or goes.
    pub fn fixed(
        backend: Arc<dyn Backend>,
        space: Arc<AddressSpace>,
        devices: Vec<Attached>,
        journal: Arc<Journal>,
    ) -> Arc<Self> {
        let shared = Shared::new(journal);
        shared.state.lock().devices = devices;
        Arc::new(Self {
            backend,
            space,
            pci: None,
            changes: Mutex::new(()),
            shared,
        })
    }

    /// Makes the collection of a machine with a root bus, whose guest is interrupted by `line`. It has no
    /// devices yet.
    pub fn on_pci(
        backend: Arc<dyn Backend>,
        (space, high): (Arc<AddressSpace>, Arc<HighMemory>),
        root: Arc<RootBus>,
        line: Arc<dyn Line>,
        (memory, output): (u64, Output),
        journal: Arc<Journal>,
    ) -> Result<Arc<Self>, BuildError> {
        let shared = Shared::new(journal);
        let (leavers, theirs) = channel();
        let for_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("unplug".into())
            .spawn(move || see_off(&theirs, &for_thread))
            .map_err(|source| BuildError::Thread {
                what: "devices that leave",
                source,
            })?;
        Ok(Arc::new_cyclic(|this: &std::sync::Weak<Self>| {
            let this = this.clone();
            let on_eject = Box::new(move |device| {
                if let Some(this) = this.upgrade() {
                    this.ejected(device);
                }
            });
            let pci = Pci {
                root,
                memory,
                output,
                hotplug: Arc::new(PciHotplug::new(line, on_eject)),
                leavers: Some(leavers),
                thread: Some(thread),
                high,
                vhost: Vhost::default(),
            };
            Self {
                backend,
                space,
                pci: Some(pci),
                changes: Mutex::new(()),
                shared,
            }
        }))
    }

    /// Returns what the guest is told by.
    pub fn hotplug(&self) -> Option<&Arc<PciHotplug>> {
        self.pci.as_ref().map(|pci| &pci.hotplug)
    }

    /// Lists them, in the order in which they came.
    pub fn list(&self) -> Vec<VirtioInfo> {
        let info = |device: &Attached| VirtioInfo {
            id: device.spec.id.clone(),
            kind: device.spec.kind.name(),
            pci_device: device.address.map(Address::device),
            in_use: device.transport.is_active(),
            needs_reset: device.transport.needs_reset(),
            back_end: device.control.as_ref().and_then(Control::back_end),
            counters: device
                .control
                .as_ref()
                .map_or_else(Vec::new, Control::counters),
        };
        self.shared.state.lock().devices.iter().map(info).collect()
    }

    /// Returns what the devices are now: what has been changed about them since they were made is in it.
    pub fn specs(&self) -> Vec<VirtioSpec> {
        let spec = |device: &Attached| VirtioSpec {
            id: device.spec.id.clone(),
            kind: match &device.control {
                Some(control) => control.now(&device.spec.kind),
                None => device.spec.kind.clone(),
            },
        };
        self.shared.state.lock().devices.iter().map(spec).collect()
    }

    /// Says which device is behind a window of the map, if one of these is.
    pub fn owner(&self, start: u64) -> Option<String> {
        let state = self.shared.state.lock();
        let bar = |address: Address| {
            let mut register = [0; 4];
            let pci = self.pci.as_ref()?;
            pci.root
                .read_config(address, PciTransport::BAR_REGISTER, &mut register);
            Some(u64::from(u32::from_le_bytes(register) & !0xf))
        };
        let found = state.devices.iter().enumerate().find(|(number, device)| {
            let at = match device.address {
                Some(address) => bar(address),
                None => Some(layout::virtio_address(*number).into()),
            };
            at == Some(start)
        });
        found.map(|(_, device)| device.spec.id.clone())
    }

    /// Looks what they have done by themselves, if it is time.
    pub fn look(&self, look: &mut Look, journal: &Journal) {
        if look.begin(Instant::now(), journal) {
            look.at(&self.shared.state.lock().devices, journal);
        }
    }

    /// Returns where input goes if a device has the machine's console.
    pub fn console_input(&self) -> Option<Arc<PortInput>> {
        let state = self.shared.state.lock();
        let mut controls = state.devices.iter().filter_map(|d| d.control.as_ref());
        controls.find_map(|control| match control {
            Control::Console(_, input) => input.clone(),
            _ => None,
        })
    }

    /// Returns what changes a device.
    pub fn control(&self, id: &str) -> Option<Control> {
        let state = self.shared.state.lock();
        let device = state.devices.iter().find(|device| device.spec.id == id)?;
        device.control.clone()
    }

    /// Puts another file in the place of the one behind a disk.
    pub fn replace_disk(&self, id: &str, path: &Path) -> Result<(), DiskError> {
        // Two of them would disagree in the end about which file it is.
        let _changes = self.changes.lock();
        let find = |state: &State| {
            let device = state.devices.iter().find(|device| device.spec.id == id)?;
            match (&device.spec.kind, &device.control) {
                (VirtioKind::Block(spec), Some(Control::Block(control))) => {
                    Some((spec.clone(), control.clone()))
                }
                _ => None,
            }
        };
        let found = find(&self.shared.state.lock());
        let (mut spec, control) =
            found.ok_or_else(|| DiskError::NoSuchDisk { id: id.to_owned() })?;
        let is_there = spec.path == path;
        spec.path = path.to_owned();
        match build::open_disk(&spec) {
            Ok(disk) => control.replace(disk)?,
            // By this machine: it is the same file.
            Err(OpenError::Locked { .. }) if is_there => {
                let looked = control.refresh_size();
                looked.map_err(|source| DiskError::Size {
                    path: spec.path,
                    source,
                })?;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let mut state = self.shared.state.lock();
        let mut devices = state.devices.iter_mut();
        if let Some(device) = devices.find(|device| device.spec.id == id) {
            device.spec.kind = VirtioKind::Block(spec);
        }
        drop(state);
        self.shared.journal.note(News::DiskReplaced {
            id: id.to_owned(),
            path: path.display().to_string(),
        });
        Ok(())
    }

    /// Tells the device that has the machine's console how large that is.
    pub fn resize_console(&self, columns: u16, rows: u16) {
        for device in &self.shared.state.lock().devices {
            if let Some(Control::Console(control, Some(_))) = &device.control {
                control.resize(columns, rows);
            }
        }
    }

    /// Adds a device that the guest finds when it begins, with its BAR at an address, as firmware leaves
    /// it.
    pub fn add_first(&self, spec: &VirtioSpec) -> Result<(), AddError> {
        let pci = self.pci.as_ref().ok_or(AddError::NoPci)?;
        let address = self.put(pci, spec)?;
        // Below 2 MiB behind the window's beginning.
        let bar = layout::PCI_WINDOW.0 + PciTransport::BAR_LEN * u32::from(address.device());
        pci.root
            .write_config(address, PciTransport::BAR_REGISTER, &bar.to_le_bytes());
        Ok(())
    }

    /// Adds a device while the guest runs, and tells it.
    pub fn add(&self, spec: &VirtioSpec) -> Result<(), AddError> {
        let pci = self.pci.as_ref().ok_or(AddError::NoPci)?;
        if let VirtioKind::Console(console) = &spec.kind
            && console
                .ports
                .iter()
                .any(|port| port.end == PortEnd::Console)
        {
            return Err(AddError::Terminal);
        }
        let address = self.put(pci, spec)?;
        // A guest that has not heard yet that it shall let go who was here before must not hear it now.
        pci.hotplug.forget(address.device());
        // First: what the guest does with it is news that follows.
        self.shared.journal.note(News::DeviceAdded {
            id: spec.id.clone(),
            kind: spec.kind.name().to_owned(),
        });
        pci.hotplug.tell_of(address.device());
        Ok(())
    }

    /// Makes a device, and puts it where nobody is.
    fn put(&self, pci: &Pci, spec: &VirtioSpec) -> Result<Address, AddError> {
        let _changes = self.changes.lock();
        let mut spec = spec.clone();
        spec.settle();
        let id = &spec.id;
        let address = {
            let state = self.shared.state.lock();
            let there = state.devices.iter().map(|device| &device.spec);
            let all = there.chain([&spec]);
            plan::check_virtio(all, pci.memory, layout::PCI_MAX)?;
            if state.leaving.contains(id) {
                return Err(AddError::Leaving { id: id.clone() });
            }
            let free = state.free_address(&pci.root);
            free.expect("there are fewer devices than places")
        };
        let around = Surroundings {
            space: &self.space,
            high: &pci.high,
            output: &pci.output,
            vhost: &pci.vhost,
        };
        let made = build::make(&spec, &around)?;
        let memory = DmaSpace::new(self.space.clone(), self.backend.dma());
        let (msi, doorbells) = (self.backend.msi(), self.backend.doorbells());
        let transport = PciTransport::new(made.device, memory, msi, doorbells)
            .expect("the capabilities of every virtio device are the same, and fit");
        let mut state = self.shared.state.lock();
        if state.ended {
            return Err(AddError::Ended);
        }
        if state.paused {
            transport.pause();
        }
        pci.root
            .add(address, transport.clone())
            .expect("nobody else adds functions");
        state.last = address.device();
        state.missed &= !(1 << address.device());
        let kind = spec.kind.name();
        tracing::debug!(id = spec.id, kind, %address, "a virtio device");
        state.devices.push(Attached {
            spec,
            transport,
            address: Some(address),
            control: made.control,
            _helper: made.helper,
        });
        Ok(address)
    }

    /// Asks the guest to let a device go. It may take its time, or never do it.
    pub fn ask_for(&self, id: &str) -> Result<(), RemoveError> {
        let state = self.shared.state.lock();
        if let Some((pci, address, at)) = self.find(&state, id)? {
            if let Some(Control::Mem(memory)) = &state.devices[at].control {
                nothing_to_lose(id, memory)?;
            }
            let id = id.to_owned();
            self.shared.journal.note(News::DeviceRemovalAsked { id });
            pci.hotplug.ask_for(address.device());
        }
        Ok(())
    }

    /// Takes a device away, whatever the guest does with it.
    pub fn take(&self, id: &str) -> Result<(), RemoveError> {
        let mut state = self.shared.state.lock();
        if let Some((pci, address, at)) = self.find(&state, id)? {
            take_off(pci, &mut state, at);
            state.missed |= 1 << address.device();
            pci.hotplug.ask_for(address.device());
        }
        Ok(())
    }

    /// Finds a device that can be removed; `None` if it is leaving.
    fn find(&self, state: &State, id: &str) -> Result<Option<(&Pci, Address, usize)>, RemoveError> {
        let found = state.devices.iter().position(|device| device.spec.id == id);
        let Some(at) = found else {
            let id = id.to_owned();
            return match state.leaving.contains(&id) {
                true => Ok(None),
                false => Err(RemoveError::NoSuchDevice { id }),
            };
        };
        match (&self.pci, state.devices[at].address) {
            (Some(pci), Some(address)) => Ok(Some((pci, address, at))),
            _ => Err(RemoveError::Fixed { id: id.to_owned() }),
        }
    }

    /// Takes away what the guest has let go. On a processor's thread.
    fn ejected(&self, device: u8) {
        let mut state = self.shared.state.lock();
        let is_it = |attached: &Attached| attached.address.map(Address::device) == Some(device);
        let found = state.devices.iter().position(is_it);
        match (&self.pci, found) {
            (Some(pci), Some(at)) => take_off(pci, &mut state, at),
            _ => {
                tracing::debug!(device, "the guest lets go what is not there");
                state.missed &= !1u32.checked_shl(device.into()).unwrap_or(0);
            }
        }
    }

    /// Waits until there is no device of this name; `false` if there still is one after `patience`.
    pub fn wait_gone(&self, id: &str, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let mut state = self.shared.state.lock();
        loop {
            let there = state.devices.iter().any(|device| device.spec.id == id);
            if !there && !state.leaving.contains(id) {
                return true;
            }
            if self.shared.gone.wait_until(&mut state, until).timed_out() {
                return false;
            }
        }
    }

    /// Makes all stand still. No processor runs.
    pub fn hold(&self) {
        let mut state = self.shared.state.lock();
        state.paused = true;
        self.wait_for_leavers(&mut state);
        for device in &state.devices {
            device.transport.pause();
        }
    }

    /// Lets all go on.
    pub fn go_on(&self) {
        let mut state = self.shared.state.lock();
        state.paused = false;
        for device in &state.devices {
            device.transport.resume();
        }
    }

    /// Resets all for good. Nothing can be added from now on.
    pub fn shut_down(&self) {
        let devices = {
            let mut state = self.shared.state.lock();
            state.ended = true;
            self.wait_for_leavers(&mut state);
            std::mem::take(&mut state.devices)
        };
        for device in devices {
            device.transport.shut_down();
        }
        self.shared.gone.notify_all();
    }

    fn wait_for_leavers(&self, state: &mut parking_lot::MutexGuard<'_, State>) {
        while !state.leaving.is_empty() {
            self.shared.gone.wait(state);
        }
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        if let Some(pci) = &mut self.pci {
            pci.leavers = None;
            if let Some(thread) = pci.thread.take() {
                // One that has panicked has said so.
                let _ = thread.join();
            }
        }
    }
}

/// Memory that the guest works in goes only when it has given it back: Linux lets the device go and keeps the
/// memory.
fn nothing_to_lose(id: &str, memory: &MemControl) -> Result<(), RemoveError> {
    match memory.plugged().max(memory.requested()) {
        0 => Ok(()),
        bytes => Err(RemoveError::Memory {
            id: id.to_owned(),
            bytes,
        }),
    }
}

/// Takes a function off the bus, and hands it to the thread that sees it off.
fn take_off(pci: &Pci, state: &mut State, at: usize) {
    let device = state.devices.remove(at);
    let Some(address) = device.address else {
        unreachable!("only PCI functions are taken off");
    };
    pci.hotplug.forget(address.device());
    tracing::debug!(id = device.spec.id, %address, "a virtio device leaves");
    if let (Some(unplugged), Some(leavers)) = (pci.root.remove(address), &pci.leavers) {
        state.leaving.insert(device.spec.id.clone());
        let sent = leavers.send(Leaver { device, unplugged });
        // The thread ends when the sender does, or has panicked.
        debug_assert!(sent.is_ok());
    }
}

/// Sees devices off, until nobody sends any more.
fn see_off(leavers: &Receiver<Leaver>, shared: &Shared) {
    for Leaver { device, unplugged } in leavers {
        // No processor is inside its registers any more …
        drop(unplugged.wait());
        // … and it neither works nor has anything of the host.
        device.transport.shut_down();
        let id = device.spec.id.clone();
        drop(device);
        // In one step: who hears of it can use the name, and nobody uses it before it is told.
        let mut state = shared.state.lock();
        state.leaving.remove(&id);
        shared.journal.note(News::DeviceRemoved { id });
        drop(state);
        shared.gone.notify_all();
    }
}
