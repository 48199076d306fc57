//! One processor: the loop around `KVM_RUN`.
//!
//! KVM completes an access to a device only when the processor enters again: until then the
//! registers are those of before the instruction. So a kick is answered only when nothing is
//! unfinished; the entry that finishes it returns at once, by `immediate_exit`.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_MP_STATE_RUNNABLE, KVM_SYSTEM_EVENT_CRASH,
    KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_mp_state,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use umbra_cpu::{CpuError, Crash, Exit, Io, Kick, Served, Statistics, SystemEvent, Vcpu};
use umbra_irqchip::Pic;
use umbra_slots::{AddressSpace, Gpa, Target};
use umbra_x86::state::CpuState;
use umbra_x86::vcpu::VcpuState;

use crate::coalesced::Coalesced;
use crate::convert;
use crate::irq::Irqchip;
use crate::kick::{Requests, request};
use crate::pen::{Pen, Place};
use crate::raw;
use crate::report::{self, InternalError};
use crate::saved::Saver;
use crate::signal;
use crate::slots::Mirror;
use crate::vm::failed;

/// What a processor needs of its machine.
pub(crate) struct Machine {
    pub space: Arc<AddressSpace>,
    pub irqchip: Arc<Irqchip>,
    pub pen: Arc<Pen>,
    pub mirror: Arc<Mirror>,
    pub coalesced: Arc<Coalesced>,
}

/// Counters, for people.
#[derive(Default)]
struct Stats {
    entries: u64,
    mmio: u64,
    ports: u64,
    kicks: u64,
    windows: u64,
    ends: u64,
    rings: u64,
}

/// A processor of KVM's.
pub(crate) struct KvmVcpu {
    fd: VcpuFd,
    machine: Machine,
    requests: Arc<Requests>,
    place: Arc<Place>,
    /// The 8259 pair whose vectors this processor takes, if that is not in the kernel.
    pic: Option<Arc<Pic>>,
    /// The last access was served, and KVM has not completed it.
    unfinished: bool,
    saver: Saver,
    stats: Stats,
}

/// What an exit leads to.
enum Next {
    Enter,
    Leave(Exit),
}

impl KvmVcpu {
    pub fn new(
        fd: VcpuFd,
        machine: Machine,
        requests: Arc<Requests>,
        pic: Option<Arc<Pic>>,
        saver: Saver,
    ) -> Self {
        let place = machine.pen.add(requests.clone());
        Self {
            fd,
            machine,
            requests,
            place,
            pic,
            unfinished: false,
            saver,
            stats: Stats::default(),
        }
    }

    fn execute(&mut self, io: &dyn Io) -> Result<Exit, CpuError> {
        loop {
            let wanted = self.requests.take();
            if wanted & request::KICK != 0 {
                if !self.unfinished {
                    self.stats.kicks += 1;
                    return Ok(Exit::Kicked);
                }
                // Enters to finish, and comes back at once.
                self.requests.put_back(request::KICK);
            }
            self.feed_pic()?;
            if let Next::Leave(exit) = self.enter(io)? {
                return Ok(exit);
            }
        }
    }

    /// Enters the guest once, and serves what it was left for.
    fn enter(&mut self, io: &dyn Io) -> Result<Next, CpuError> {
        self.stats.entries += 1;
        self.machine.pen.enter(&self.place);
        let left = self.fd.run();
        self.machine.pen.leave(&self.place);
        self.unfinished = false;
        // What was written before this exit is heard before it.
        self.machine.coalesced.drain(io);
        match left {
            Ok(VcpuExit::MmioRead(gpa, data)) => {
                self.stats.mmio += 1;
                self.unfinished = true;
                read_memory(io, &self.machine, Gpa(gpa), data);
            }
            Ok(VcpuExit::MmioWrite(gpa, data)) => {
                self.stats.mmio += 1;
                self.unfinished = true;
                write_memory(io, &self.machine, Gpa(gpa), data);
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                self.stats.ports += 1;
                self.unfinished = true;
                // A string instruction brings several accesses to one port.
                let width = self.requests.page().port_width();
                data.chunks_mut(width)
                    .for_each(|piece| io.port_read(port, piece));
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                self.stats.ports += 1;
                self.unfinished = true;
                let width = self.requests.page().port_width();
                data.chunks(width)
                    .for_each(|piece| io.port_write(port, piece));
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                self.stats.ends += 1;
                self.machine.irqchip.end_of_interrupt(vector);
            }
            Ok(VcpuExit::IrqWindowOpen) => self.stats.windows += 1,
            // Without a local APIC in the kernel only; there it waits by itself.
            Ok(VcpuExit::Hlt | VcpuExit::Intr) => {}
            Ok(VcpuExit::Shutdown) => {
                let crash = self.crash("triple fault".into(), None);
                return Ok(Next::Leave(Exit::Shutdown(crash)));
            }
            Ok(VcpuExit::SystemEvent(kind, data)) => {
                let data = data.to_vec();
                return Ok(Next::Leave(self.system_event(kind, &data)));
            }
            Ok(VcpuExit::InternalError) => {
                let InternalError { reason, code } = InternalError::read(self.fd.get_kvm_run());
                return Ok(Next::Leave(Exit::Stuck(self.crash(reason, code))));
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                let reason = format!(
                    "the host's processor {cpu} refused to enter the guest (hardware reason \
                     {reason:#x}): its state is one that this processor does not allow"
                );
                return Ok(Next::Leave(Exit::Stuck(self.crash(reason, None))));
            }
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
                let reason = format!(
                    "KVM could not use guest memory: {size:#x} bytes at {gpa:#x} (flags {flags:#x})"
                );
                return Ok(Next::Leave(Exit::Stuck(self.crash(reason, None))));
            }
            Ok(VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL)) => {
                self.stats.rings += 1;
                self.machine
                    .mirror
                    .collect_rings()
                    .map_err(failed("KVM_RESET_DIRTY_RINGS"))?;
            }
            Ok(other) => {
                let reason =
                    format!("KVM left the guest for a reason that nobody asked for: {other:?}");
                return Ok(Next::Leave(Exit::Stuck(self.crash(reason, None))));
            }
            Err(errno) => match errno.errno() {
                // Somebody wants it out; what was unfinished is finished now.
                libc::EINTR => signal::drain(),
                // Its start-up message has come.
                libc::EAGAIN => {}
                _ => return Err(failed("KVM_RUN")(errno)),
            },
        }
        Ok(Next::Enter)
    }

    /// Gives the vector of the 8259 pair to KVM, or asks to be told when that is possible.
    fn feed_pic(&mut self) -> Result<(), CpuError> {
        let Some(pic) = &self.pic else {
            return Ok(());
        };
        let page = self.requests.page();
        if pic.intr() && page.ready_for_interrupt() {
            let vector = pic.acknowledge();
            raw::interrupt(&self.fd, vector).map_err(failed("KVM_INTERRUPT"))?;
        }
        page.request_interrupt_window(pic.intr());
        Ok(())
    }

    fn system_event(&self, kind: u32, data: &[u64]) -> Exit {
        match kind {
            KVM_SYSTEM_EVENT_SHUTDOWN => Exit::System(SystemEvent::PowerOff),
            KVM_SYSTEM_EVENT_RESET => Exit::System(SystemEvent::Reset),
            KVM_SYSTEM_EVENT_CRASH => Exit::System(SystemEvent::Crash),
            other => {
                let reason = format!("KVM reports system event {other} ({data:x?})");
                Exit::Stuck(self.crash(reason, None))
            }
        }
    }

    fn crash(&self, reason: String, code: Option<Vec<u8>>) -> Box<Crash> {
        let map = self.machine.space.load_full();
        Box::new(report::crash(&map, self.state(), reason, code))
    }
}

/// Reads for an instruction that KVM found no RAM for. If there is some by now, it is read as the
/// guest would have: the access has not ended, and this is one moment of it.
fn read_memory(io: &dyn Io, machine: &Machine, gpa: Gpa, data: &mut [u8]) {
    while io.mmio_read(gpa, data) == Served::Memory {
        let _reach = machine.mirror.reach();
        if machine.space.load_full().read(gpa, data).is_ok() {
            return;
        }
    }
}

/// Writes, the same way; the dirty log is marked.
fn write_memory(io: &dyn Io, machine: &Machine, gpa: Gpa, data: &[u8]) {
    while io.mmio_write(gpa, data) == Served::Memory {
        let _reach = machine.mirror.reach();
        let map = machine.space.load_full();
        let writable = |at: u64| matches!(map.resolve(Gpa(at)), Target::Ram(ram) if !ram.read_only);
        let last = gpa.0.wrapping_add(data.len() as u64 - 1);
        if writable(gpa.0) && writable(last) && map.write(gpa, data).is_ok() {
            return;
        }
    }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, io: &dyn Io) -> Result<Exit, CpuError> {
        let requests = self.requests.clone();
        let _running = requests
            .adopt(&self.fd.as_raw_fd())
            .map_err(failed("KVM_SET_SIGNAL_MASK"))?;
        self.execute(io)
    }

    fn state(&self) -> CpuState {
        // Neither call can fail for a processor that exists, but for want of a page of memory.
        let regs = self.fd.get_regs().expect("KVM_GET_REGS");
        let sregs = self.fd.get_sregs().expect("KVM_GET_SREGS");
        convert::from_kvm(&regs, &sregs)
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), CpuError> {
        let old = self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        self.fd
            .set_sregs(&convert::to_sregs(state, &old))
            .map_err(failed("KVM_SET_SREGS"))?;
        self.fd
            .set_regs(&convert::to_regs(state))
            .map_err(failed("KVM_SET_REGS"))?;
        let running = kvm_mp_state {
            mp_state: KVM_MP_STATE_RUNNABLE,
        };
        self.fd
            .set_mp_state(running)
            .map_err(failed("KVM_SET_MP_STATE"))
    }

    fn save(&mut self) -> Result<VcpuState, CpuError> {
        debug_assert!(!self.unfinished, "a run ends with nothing half done");
        self.saver.save(&self.fd)
    }

    fn restore(&mut self, state: &VcpuState) -> Result<(), CpuError> {
        self.saver.restore(&self.fd, state)
    }

    fn kick_handle(&self) -> Arc<dyn Kick> {
        self.requests.clone()
    }

    fn statistics(&self) -> Statistics {
        let s = &self.stats;
        vec![
            ("entries", s.entries),
            ("device accesses", s.mmio),
            ("port accesses", s.ports),
            ("kicks", s.kicks),
            ("interrupt windows", s.windows),
            ("ends of level interrupts", s.ends),
            ("full dirty rings", s.rings),
        ]
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.machine.pen.remove(&self.place);
    }
}
