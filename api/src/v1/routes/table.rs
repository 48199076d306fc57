//! All operations.

use std::time::Duration;

use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use umbra_vmm::{Handle, Inspection, Spec, VirtioKind, VirtioSpec};

use super::parameters::{
    ADDRESS, CPU, FORCE, ID, LIMIT, MAX_WAIT_MS, PAGE, SINCE, TIMEOUT_MS, WAIT_MS, WHICH_CPU,
};
use super::{Call, Order, Reply, Route, route};
use crate::openapi::{self, Answer, Content};
use crate::v1::device::DeviceChange;
use crate::v1::types::{
    Cpu, CpuState, Device, EventPage, PageTables, Removal, Server, VmInfo, WhichCpu,
};
use crate::v1::{Problem, prometheus, tasks};

const MACHINE: &str = "v1: machine";
const CPUS: &str = "v1: processors";
const DEVICES: &str = "v1: devices";
const EVENTS: &str = "v1: events";
const INSIDE: &str = "v1: inspection";

fn order(order: Order) -> Result<Call, Problem> {
    Ok(Call::Order(order))
}

fn task(
    task: impl FnOnce(&Handle) -> Result<Reply, Problem> + Send + 'static,
) -> Result<Call, Problem> {
    Ok(Call::Task(Box::new(task)))
}

/// A part of what is inside.
fn inside<T: Serialize + 'static>(part: fn(Inspection) -> T) -> Result<Call, Problem> {
    task(move |handle| Ok(Reply::json(200, &part(handle.inspect()?))))
}

/// A map and its generation, in one look.
#[derive(Serialize, JsonSchema)]
struct Map {
    /// The number of this map.
    generation: u64,
    /// Its slots, by ascending address.
    slots: Vec<umbra_vmm::MapEntry>,
}

/// How the map came to be what it is.
#[derive(Serialize, JsonSchema)]
struct Generation {
    /// The number of the map.
    generation: u64,
    /// Its last changes, with their causes, the oldest first.
    bumps: Vec<umbra_vmm::Bump>,
}

/// What the processors share.
#[derive(Serialize, JsonSchema)]
struct Mmu {
    /// What executes the guest.
    backend: String,
    /// MMIO entries hit and stale, shadow pages made and zapped, and more; none on KVM, whose MMU is the host's.
    counters: umbra_vmm::Counters,
}

/// All of them.
pub static ROUTES: &[Route] = &[
    route("GET", "/v1", "getServer", |_| {
        Ok(Call::Reply(Reply::json(
            200,
            &Server {
                name: "Umbra",
                version: env!("CARGO_PKG_VERSION"),
                openapi: "/v1/openapi.json",
            },
        )))
    }, |about| about.about(MACHINE, "What serves here.").gives::<Server>(200, "It.")),
    route("GET", "/v1/openapi.json", "getOpenapi", |_| {
        // It is made when somebody asks first, which takes ten milliseconds.
        Ok(Call::Made(|| Reply::text("application/json", openapi::text().to_owned())))
    }, |about| {
        about
            .about(MACHINE, "The description of this interface: OpenAPI 3.1.")
            .gives::<serde_json::Map<String, serde_json::Value>>(200, "It.")
    }),
    route("GET", "/v1/vm", "getVm", |_| order(Order::Info), |about| {
        about.about(MACHINE, "How the machine is.").gives::<VmInfo>(200, "It.")
    }),
    route("GET", "/v1/vm/spec", "getSpec", |_| order(Order::Spec), |about| {
        about
            .about(MACHINE, "What the machine is: what was asked for, and what came, went and was changed since.")
            .gives::<Spec>(200, "The specification, with which the same machine can be asked for again.")
    }),
    route("PUT", "/v1/vm/spec", "putSpec", |parts| {
        order(Order::PutSpec(Box::new(parts.json_tagged()?)))
    }, |about| {
        about
            .about(MACHINE, "Says what the machine is, all of it, before it starts.")
            .takes::<Spec>()
            .done(204, "It is noted.")
    })
    .body(),
    route("POST", "/v1/vm/start", "startVm", |_| order(Order::Start), |about| {
        about.about(MACHINE, "Builds the machine, and lets its guest begin.").gives::<VmInfo>(200, "It runs.")
    }),
    route("POST", "/v1/vm/pause", "pauseVm", |_| order(Order::Pause), |about| {
        about.about(MACHINE, "Makes all processors and devices stand still.").gives::<VmInfo>(200, "They do.")
    }),
    route("POST", "/v1/vm/resume", "resumeVm", |_| order(Order::Resume), |about| {
        about.about(MACHINE, "Lets them go on.").gives::<VmInfo>(200, "They do.")
    }),
    route("POST", "/v1/vm/stop", "stopVm", |_| order(Order::Stop), |about| {
        about
            .about(MACHINE, "Ends the machine, as if its plug was pulled; the monitor ends with it.")
            .gives::<VmInfo>(200, "It was told.")
    }),
    route("POST", "/v1/vm/reset", "resetVm", |_| order(Order::Reset), |about| {
        about
            .about(MACHINE, "Resets the machine in place: it is built again from what it is now, and its guest begins.")
            .gives::<VmInfo>(200, "It was told; the event `started` tells when it is done.")
    }),
    route("POST", "/v1/vm/power-button", "pressPowerButton", |_| {
        task(|handle| Ok(handle.press_power_button().map(|()| Reply::done())?))
    }, |about| {
        about
            .about(MACHINE, "Presses the power button; what that means is the guest's decision.")
            .done(204, "It was pressed.")
    }),
    route("POST", "/v1/vm/ctrl-alt-del", "pressCtrlAltDel", |_| {
        task(|handle| Ok(handle.press_ctrl_alt_del().map(|()| Reply::done())?))
    }, |about| {
        about
            .about(MACHINE, "Presses Ctrl, Alt and Delete; what that means is the guest's decision.")
            .done(204, "They were pressed.")
    }),
    route("POST", "/v1/vm/nmi", "injectNmi", |parts| {
        let WhichCpu { cpu } = parts.json_or_default()?;
        task(move |handle| Ok(handle.inject_nmi(cpu).map(|()| Reply::done())?))
    }, |about| {
        about
            .about(MACHINE, "Sends a non-maskable interrupt to all processors, or to one.")
            .may_take::<WhichCpu>()
            .done(204, "It was sent.")
    })
    .body(),
    route("GET", "/v1/vm/cpus", "getCpus", |_| task(tasks::cpus), |about| {
        about
            .about(CPUS, "All processors, and what they have counted; each leaves the guest once for it.")
            .gives::<Vec<Cpu>>(200, "They.")
    }),
    route("POST", "/v1/vm/cpus/{cpu}/pause", "pauseCpu", |parts| {
        let cpu = parts.cpu()?;
        task(move |handle| tasks::pause_cpu(handle, cpu))
    }, |about| {
        about
            .about(CPUS, "Makes one processor stand still, and shows its registers.")
            .parameter(CPU)
            .gives::<CpuState>(200, "It does.")
    }),
    route("POST", "/v1/vm/cpus/{cpu}/resume", "resumeCpu", |parts| {
        let cpu = parts.cpu()?;
        task(move |handle| Ok(handle.resume_cpu(cpu).map(|()| Reply::done())?))
    }, |about| {
        about
            .about(CPUS, "Lets a processor go on that was held by itself.")
            .parameter(CPU)
            .done(204, "It was told.")
    }),
    route("GET", "/v1/devices", "getDevices", |_| Ok(Call::Devices(None)), |about| {
        about
            .about(DEVICES, "All virtio devices, in the order in which they came.")
            .gives::<Vec<Device>>(200, "They.")
    }),
    route("GET", "/v1/devices/{id}", "getDevice", |parts| {
        Ok(Call::Devices(Some(parts.name.to_owned())))
    }, |about| {
        about.about(DEVICES, "A virtio device.").parameter(ID).gives::<Device>(200, "It.")
    }),
    route("PUT", "/v1/devices/{id}", "putDevice", |parts| {
        let kind: VirtioKind = parts.json_tagged()?;
        order(Order::PutDevice(Box::new(VirtioSpec {
            id: parts.name.to_owned(),
            kind,
        })))
    }, |about| {
        about
            .about(DEVICES, "Adds a device: to the description before the start, and to the guest afterwards.")
            .parameter(ID)
            .takes::<VirtioKind>()
            .done(204, "It is there; the event `driver_started` tells when the guest has begun to use it.")
    })
    .body(),
    route("PATCH", "/v1/devices/{id}", "patchDevice", |parts| {
        let change: DeviceChange = parts.json()?;
        let id = parts.name.to_owned();
        task(move |handle| change.apply(handle, &id).map(|()| Reply::done()))
    }, |about| {
        about
            .about(DEVICES, "Changes a device while it is at work: its file, size, limits, cable.")
            .parameter(ID)
            .takes::<DeviceChange>()
            .done(204, "It is changed; what the guest makes of it is told by events.")
    })
    .body(),
    route("DELETE", "/v1/devices/{id}", "deleteDevice", |parts| {
        Ok(Call::Remove(parts.name.to_owned(), parts.patience()?))
    }, |about| {
        about
            .about(DEVICES, "Asks the guest to let a device go, and answers when it has, or has not in time.")
            .parameter(ID)
            .parameter(TIMEOUT_MS)
            .parameter(FORCE)
            .gives::<Removal>(200, "It has gone, and what it had of the host is given back.")
            .gives::<Removal>(202, "The guest was asked, and has not let it go in time. It still may.")
    })
    .query(&["timeout_ms", "force"]),
    route("GET", "/v1/events", "followEvents", |parts| {
        Ok(Call::Events(parts.query.number("since", u64::MAX)?))
    }, |about| {
        let stream = Answer {
            status: 200,
            description: "Events, each with its number, until the machine has ended. The header `Last-Event-ID` says \
                          the same as `since`.",
            content: Some(Content {
                media: "text/event-stream",
                schema: SchemaGenerator::subschema_for::<String>,
            }),
        };
        let mut about = about
            .about(EVENTS, "Follows what happens: Server-Sent Events.")
            .parameter(SINCE);
        about.answers.push(stream);
        about
    })
    .query(&["since"]),
    route("GET", "/v1/events/log", "getEvents", |parts| {
        let since = parts.query.number("since", u64::MAX)?.unwrap_or(0);
        let limit = parts.query.number("limit", PAGE)?.unwrap_or(PAGE);
        let wait = parts.query.number("wait_ms", MAX_WAIT_MS)?.unwrap_or(0);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Ok(Call::EventPage(since, limit, Duration::from_millis(wait)))
    }, |about| {
        about
            .about(EVENTS, "What has happened, piece by piece.")
            .parameter(SINCE)
            .parameter(LIMIT)
            .parameter(WAIT_MS)
            .gives::<EventPage>(200, "What has happened after that number.")
    })
    .query(&["since", "limit", "wait_ms"]),
    route("GET", "/v1/inspect", "inspect", |_| inside(|inside| inside), |about| {
        about.about(INSIDE, "All that is inside, in one look.").gives::<Inspection>(200, "It.")
    }),
    route("GET", "/v1/inspect/map", "inspectMap", |_| {
        inside(|inside| Map { generation: inside.generation, slots: inside.map })
    }, |about| {
        about
            .about(INSIDE, "The guest-physical map: slots of memory, windows of devices.")
            .gives::<Map>(200, "It.")
    }),
    route("GET", "/v1/inspect/generation", "inspectGeneration", |_| {
        inside(|inside| Generation { generation: inside.generation, bumps: inside.bumps })
    }, |about| {
        about
            .about(INSIDE, "The number of the map, and the log of its changes with their causes.")
            .gives::<Generation>(200, "It.")
    }),
    route("GET", "/v1/inspect/mmu", "inspectMmu", |_| {
        inside(|inside| Mmu { backend: inside.backend, counters: inside.mmu })
    }, |about| about.about(INSIDE, "What the MMU has counted.").gives::<Mmu>(200, "It.")),
    route("GET", "/v1/inspect/page-tables", "inspectPageTables", |parts| {
        let cpu = parts.query.number("cpu", 255)?.unwrap_or(0);
        let address = parts.query.number("address", u64::MAX)?;
        let cpu = usize::try_from(cpu).unwrap_or(usize::MAX);
        task(move |handle| tasks::page_tables(handle, cpu, address))
    }, |about| {
        about
            .about(INSIDE, "A processor's page tables, guest and shadow side by side; the machine is paused for it.")
            .parameter(WHICH_CPU)
            .parameter(ADDRESS)
            .gives::<PageTables>(200, "They.")
    })
    .query(&["cpu", "address"]),
    route("GET", prometheus::PATH, "getPrometheus", |_| Ok(Call::Metrics), |about| {
        let mut about = about.about(INSIDE, "All counters, as Prometheus reads them.");
        about.answers.push(Answer {
            status: 200,
            description: "Text format 0.0.4.",
            content: Some(Content {
                media: "text/plain",
                schema: SchemaGenerator::subschema_for::<String>,
            }),
        });
        about
    }),
];
