//! What is done with a machine's handle, on a thread of its own: it may wait for the guest.

use std::time::{Duration, Instant};

use umbra_vmm::{Handle, VirtioSpec};

use super::routes::Reply;
use super::types::{Cpu, CpuState, Device, DeviceStatus, PageTables, Removal, RemovalState};
use super::{Code, Problem};

/// How long what a device had of the host may take to be given back.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// `GET /v1/vm/cpus`
pub fn cpus(handle: &Handle) -> Result<Reply, Problem> {
    let seen = handle.inspect()?;
    let cpus = seen.cpus.into_iter().map(|cpu| Cpu {
        cpu: cpu.cpu,
        paused: seen.paused || cpu.held,
        held: cpu.held,
        counters: cpu.counters,
    });
    Ok(Reply::json(200, &cpus.collect::<Vec<_>>()))
}

/// `POST /v1/vm/cpus/{cpu}/pause`
pub fn pause_cpu(handle: &Handle, cpu: usize) -> Result<Reply, Problem> {
    let paused = handle.pause_cpu(cpu)?;
    let state = paused.state;
    Ok(Reply::json(
        200,
        &CpuState {
            cpu,
            already: paused.already,
            rip: state.rip,
            rflags: state.rflags,
            registers: state.gpr.to_vec(),
            cr0: state.cr0,
            cr3: state.cr3,
            cr4: state.cr4,
        },
    ))
}

/// All devices.
fn list(handle: &Handle) -> Result<Vec<Device>, Problem> {
    let seen = handle.inspect()?.devices;
    let status = |spec: &VirtioSpec| {
        let found = seen.iter().find(|device| device.id == spec.id)?;
        Some(DeviceStatus {
            pci_device: found.pci_device,
            in_use: found.in_use,
            needs_reset: found.needs_reset,
            back_end: found.back_end.clone(),
            counters: found.counters.clone(),
        })
    };
    let specs = handle.device_specs()?.into_iter();
    let devices = specs.map(|spec| Device {
        status: status(&spec),
        id: spec.id,
        device: spec.kind,
    });
    Ok(devices.collect())
}

/// `GET /v1/devices`
pub fn devices(handle: &Handle) -> Result<Reply, Problem> {
    Ok(Reply::json(200, &list(handle)?))
}

/// `GET /v1/devices/{id}`
pub fn device(handle: &Handle, id: &str) -> Result<Reply, Problem> {
    let found = list(handle)?.into_iter().find(|device| device.id == id);
    match found {
        Some(device) => Ok(Reply::json(200, &device)),
        None => Err(no_such_device(id)),
    }
}

/// Says that there is no device of this name.
pub fn no_such_device(id: &str) -> Problem {
    Problem::new(
        Code::NoSuchDevice,
        format!("there is no device named {id:?}"),
    )
}

/// How long a guest has to let a device go, and what becomes of it else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// How long.
    pub time: Duration,
    /// It is taken away then.
    pub force: bool,
}

/// What became of a device that was only described.
pub fn never_there(id: &str) -> Removal {
    Removal {
        id: id.to_owned(),
        state: RemovalState::LetGo,
        waited_ms: 0,
    }
}

/// Waits until the guest has let go the device that it was asked for.
pub fn wait_removed(handle: &Handle, id: &str, patience: Patience) -> Result<Removal, Problem> {
    let start = Instant::now();
    let mut state = RemovalState::LetGo;
    if !handle.wait_removed(id, patience.time) {
        state = RemovalState::Asked;
        if patience.force {
            handle.remove_device_at_once(id)?;
            if handle.wait_removed(id, GIVE_BACK) {
                state = RemovalState::TakenAway;
            }
        }
    }
    let waited = start.elapsed().as_millis();
    Ok(Removal {
        id: id.to_owned(),
        state,
        waited_ms: waited.try_into().unwrap_or(u64::MAX),
    })
}

/// `GET /v1/inspect/page-tables`
pub fn page_tables(handle: &Handle, cpu: usize, address: Option<u64>) -> Result<Reply, Problem> {
    let lines = handle.page_tables(cpu, address)?;
    Ok(Reply::json(200, &PageTables { lines }))
}
