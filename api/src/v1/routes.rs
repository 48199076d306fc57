//! What can be asked: one table, from which requests are read and the OpenAPI document is made.

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use umbra_vmm::{EventLog, Handle, Inspection, Spec, VirtioKind, VirtioSpec};

use super::device::DeviceChange;
use super::problem::ProblemBody;
use super::tasks::{self, Patience};
use super::types::{
    Cpu, CpuState, Device, EventPage, PageTables, Removal, Server, VmInfo, WhichCpu,
};
use super::{Code, Problem, prometheus};
use crate::openapi::{self, Answer, Content, Described, Parameter, Place};
use crate::strict;

/// A request, as it came.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The verb.
    pub method: &'a str,
    /// The path.
    pub path: &'a str,
    /// What is behind it.
    pub query: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// What is asked of the machine's owner.
#[derive(Debug)]
pub enum Order {
    /// How is it?
    Info,
    /// What is it?
    Spec,
    /// It is this.
    PutSpec(Box<Spec>),
    /// It begins.
    Start,
    /// It stands still.
    Pause,
    /// It goes on.
    Resume,
    /// It ends.
    Stop,
    /// It begins anew.
    Reset,
    /// Which devices does it have? And how can they be looked at, if it runs?
    Devices,
    /// It has this device, too.
    PutDevice(Box<VirtioSpec>),
    /// The guest is to let a device go; before the start it is just gone.
    Remove(String),
    /// A device has gone: nothing is remembered of it.
    Forget(String),
    /// What changes a machine that runs?
    Handle,
    /// What happens to it?
    Log,
}

/// What the owner gives.
pub enum Given {
    /// Nothing; it is done.
    Done,
    /// How the machine is.
    Info(VmInfo),
    /// What it is.
    Spec(Box<Spec>),
    /// Its devices as they are described, if it does not run.
    Devices(Vec<VirtioSpec>),
    /// What changes it.
    Handle(Handle),
    /// What happens to it.
    Log(EventLog),
}

/// What is done with a handle.
pub type Task = Box<dyn FnOnce(&Handle) -> Result<Reply, Problem> + Send>;

/// What a request means.
pub enum Call {
    /// This is the answer.
    Reply(Reply),
    /// The owner does it.
    Order(Order),
    /// It is done with a handle.
    Task(Task),
    /// One device, or all of them.
    Devices(Option<String>),
    /// The guest is asked to let a device go.
    Remove(String, Patience),
    /// Counters for Prometheus.
    Metrics,
    /// What happens, from the one after this number on.
    Events(Option<u64>),
    /// A piece of what has happened: after which number, how much, and how long it is waited for.
    EventPage(u64, usize, Duration),
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The type of the body, and the body, if there is one.
    pub body: Option<(&'static str, String)>,
}

impl Reply {
    /// Nothing but that it is done.
    pub fn done() -> Self {
        Self {
            status: 204,
            body: None,
        }
    }

    /// A value as JSON.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        let text = serde_json::to_string(value);
        let text = text.expect("keys are strings, and numbers are finite");
        Self {
            status,
            body: Some(("application/json", text)),
        }
    }

    /// Text of another type.
    pub fn text(media: &'static str, text: String) -> Self {
        Self {
            status: 200,
            body: Some((media, text)),
        }
    }
}

impl From<&Problem> for Reply {
    fn from(problem: &Problem) -> Self {
        let error = problem.clone();
        Self::json(problem.status(), &ProblemBody { error })
    }
}

impl From<Given> for Reply {
    fn from(given: Given) -> Self {
        match given {
            Given::Info(info) => Self::json(200, &info),
            Given::Spec(spec) => Self::json(200, &*spec),
            Given::Done | Given::Devices(_) | Given::Handle(_) | Given::Log(_) => Self::done(),
        }
    }
}

/// A request's parts, after its path was found.
struct Parts<'a> {
    /// The part of the path that is a name, if one is.
    name: &'a str,
    query: Query<'a>,
    body: &'a [u8],
}

/// What is behind a path: names, each once, and plain values.
struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    fn parse(text: &'a str, known: &[&str]) -> Result<Self, Problem> {
        let mut all: Vec<(&str, &str)> = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let wrong = match () {
                () if !known.contains(&name) => "is not known here",
                () if all.iter().any(|(other, _)| *other == name) => "is there twice",
                () => {
                    all.push((name, value));
                    continue;
                }
            };
            let there = match known {
                [] => "there is none".to_owned(),
                some => format!("there are {}", some.join(", ")),
            };
            let message = format!("the parameter {name:?} {wrong}; {there}");
            return Err(Problem::new(Code::BadQuery, message).of(name));
        }
        Ok(Self(all))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.0.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| *value)
    }

    /// A number up to `max`, decimal, or hexadecimal behind `0x`.
    fn number(&self, name: &str, max: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let read = match text.strip_prefix("0x") {
            Some(hex) if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u64::from_str_radix(hex, 16).ok()
            }
            None if plain => text.parse().ok(),
            _ => None,
        };
        match read.filter(|number| *number <= max) {
            Some(number) => Ok(Some(number)),
            None => Err(Problem::new(
                Code::BadQuery,
                format!("{name}={text:?} is no number from 0 to {max}"),
            )
            .of(name)),
        }
    }

    fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(Problem::new(
                Code::BadQuery,
                format!("{name}={other:?} is neither true nor false"),
            )
            .of(name)),
        }
    }
}

impl Parts<'_> {
    fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        let bad = |message: String| Problem::new(Code::BadBody, message);
        if self.body.is_empty() {
            return Err(bad("the request has no body; it needs one".into()));
        }
        let text = std::str::from_utf8(self.body)
            .map_err(|error| bad(format!("the body is no text: {error}")))?;
        strict::from_str(text).map_err(|error| {
            let message = error.to_string();
            match named(&message) {
                Some(field) => bad(message.clone()).of(field),
                None => bad(message),
            }
        })
    }

    fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Problem> {
        match self.body {
            [] => Ok(T::default()),
            _ => self.json(),
        }
    }

    fn cpu(&self) -> Result<usize, Problem> {
        let number = self.name.parse();
        number.map_err(|_| {
            let message = format!(
                "there is no processor {:?}; processors have numbers",
                self.name
            );
            Problem::new(Code::NoSuchCpu, message)
        })
    }

    fn patience(&self) -> Result<Patience, Problem> {
        let time = self.query.number("timeout_ms", MAX_WAIT_MS)?;
        Ok(Patience {
            time: Duration::from_millis(time.unwrap_or(LET_GO_MS)),
            force: self.query.flag("force")?,
        })
    }
}

/// The field that a reader complains about.
fn named(message: &str) -> Option<String> {
    let kinds = ["unknown field `", "missing field `", "duplicate field `"];
    let rest = kinds
        .iter()
        .find_map(|kind| message.split_once(kind).map(|(_, rest)| rest));
    Some(rest?.split_once('`')?.0.to_owned())
}

/// How long a guest has to let a device go where nothing is said.
const LET_GO_MS: u64 = 10_000;
/// How long it can have, and how long events can be waited for.
const MAX_WAIT_MS: u64 = 600_000;
/// How many events there are in a piece where nothing is said, and at the most.
const PAGE: u64 = 1000;

/// An operation.
struct Route {
    method: &'static str,
    path: &'static str,
    /// Its name for generated clients.
    id: &'static str,
    /// Parameters behind the path.
    query: &'static [&'static str],
    has_body: bool,
    parse: fn(&Parts<'_>) -> Result<Call, Problem>,
    describe: fn(Described) -> Described,
}

const fn route(
    method: &'static str,
    path: &'static str,
    id: &'static str,
    parse: fn(&Parts<'_>) -> Result<Call, Problem>,
    describe: fn(Described) -> Described,
) -> Route {
    Route {
        method,
        path,
        id,
        query: &[],
        has_body: false,
        parse,
        describe,
    }
}

impl Route {
    const fn query(mut self, names: &'static [&'static str]) -> Self {
        self.query = names;
        self
    }

    const fn body(mut self) -> Self {
        self.has_body = true;
        self
    }
}

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
static ROUTES: &[Route] = &[
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
        Ok(Call::Reply(Reply::text("application/json", openapi::text().to_owned())))
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
        order(Order::PutSpec(Box::new(parts.json()?)))
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
        let kind: VirtioKind = parts.json()?;
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

const fn query(
    name: &'static str,
    description: &'static str,
    schema: openapi::SchemaOf,
) -> Parameter {
    Parameter {
        place: Place::Query,
        name,
        description,
        schema,
    }
}

const SINCE: Parameter = query(
    "since",
    "The number of the event that was seen last; 0 for all that are kept. A stream without it begins with now.",
    |_| schemars::json_schema!({ "type": "integer", "minimum": 0 }),
);
const LIMIT: Parameter = query(
    "limit",
    "The most events.",
    |_| schemars::json_schema!({ "type": "integer", "minimum": 0, "maximum": PAGE, "default": PAGE }),
);
const WAIT_MS: Parameter = query(
    "wait_ms",
    "How long an event is waited for if there is none, in milliseconds.",
    |_| schemars::json_schema!({ "type": "integer", "minimum": 0, "maximum": MAX_WAIT_MS, "default": 0 }),
);
const TIMEOUT_MS: Parameter = query(
    "timeout_ms",
    "How long the guest has, in milliseconds.",
    |_| {
        schemars::json_schema!({
            "type": "integer", "minimum": 0, "maximum": MAX_WAIT_MS, "default": LET_GO_MS
        })
    },
);
const FORCE: Parameter = query(
    "force",
    "Take the device away when the guest has not let it go in time: to the guest it is as if it had been pulled out.",
    |_| schemars::json_schema!({ "type": "boolean", "default": false }),
);
const WHICH_CPU: Parameter = query(
    "cpu",
    "The number of the processor.",
    |_| schemars::json_schema!({ "type": "integer", "minimum": 0, "maximum": 255, "default": 0 }),
);
const ADDRESS: Parameter = query(
    "address",
    "Only what translates this linear address, decimal, or hexadecimal behind 0x.",
    |_| schemars::json_schema!({ "type": "string", "pattern": "^(0x[0-9a-fA-F]{1,16}|[0-9]{1,19})$" }),
);
const ID: Parameter = Parameter {
    place: Place::Path,
    name: "id",
    description: "The device's name: 1 to 64 letters, digits, `_`, `-` and `.`.",
    schema: |_| schemars::json_schema!({ "type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$" }),
};
const CPU: Parameter = Parameter {
    place: Place::Path,
    name: "cpu",
    description: "The processor's number.",
    schema: cpu_schema,
};

fn cpu_schema(_: &mut SchemaGenerator) -> Schema {
    schemars::json_schema!({ "type": "integer", "minimum": 0, "maximum": 254 })
}

/// Describes all of them.
pub fn operations() -> Vec<Described> {
    ROUTES.iter().map(describe).collect()
}

fn describe(route: &Route) -> Described {
    let mut about = (route.describe)(Described::new(route.method, route.path, route.id));
    for (status, description) in [
        (400, "The request is not what it has to be."),
        (404, "There is no such thing."),
        (409, "Not in this state of the machine."),
        (413, "The body is larger than the server takes."),
        (422, "A value cannot be, or the host refuses it."),
        (429, "Too much is being done already."),
        (500, "A mistake of the monitor's."),
        (501, "What executes the guest cannot do it."),
        (503, "The server is about to end."),
    ] {
        about = about.gives::<ProblemBody>(status, description);
    }
    about
}

/// Reads a request.
///
/// # Errors
/// If it is none that there is.
pub fn parse(request: Request<'_>) -> Result<Call, Problem> {
    let at_path = ROUTES
        .iter()
        .filter_map(|route| Some((route, matches(route.path, request.path)?)));
    let mut methods = Vec::new();
    for (route, name) in at_path {
        if route.method != request.method {
            methods.push(route.method);
            continue;
        }
        let parts = Parts {
            name,
            query: Query::parse(request.query, route.query)?,
            body: request.body,
        };
        if !route.has_body && !request.body.is_empty() {
            let message = format!("{} {} has no body", route.method, route.path);
            return Err(Problem::new(Code::BadBody, message));
        }
        return (route.parse)(&parts);
    }
    let Request { method, path, .. } = request;
    Err(match methods[..] {
        [] => Problem::new(Code::NoSuchPath, format!("there is no path {path:?}")),
        _ => {
            let has = methods.join(", ");
            Problem::new(
                Code::NoSuchMethod,
                format!("{path:?} has no {method}; it has {has}"),
            )
        }
    })
}

/// The verbs that a path has, for the header `Allow`.
pub fn allowed(path: &str) -> String {
    let there = ROUTES
        .iter()
        .filter(|route| matches(route.path, path).is_some());
    there
        .map(|route| route.method)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Compares a path with that of a route; `Some` with the name in it, which is empty if there is none.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    let mut parts = path.split('/');
    let mut name = "";
    for wanted in pattern.split('/') {
        let part = parts.next()?;
        match wanted.starts_with('{') {
            true if part.is_empty() => return None,
            true => name = part,
            false if part != wanted => return None,
            false => {}
        }
    }
    parts.next().is_none().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(method: &str, path: &str, query: &str, body: &str) -> Problem {
        let request = Request {
            method,
            path,
            query,
            body: body.as_bytes(),
        };
        match parse(request) {
            Err(problem) => problem,
            Ok(_) => panic!("{method} {path} is accepted"),
        }
    }

    #[test]
    fn what_is_wrong_has_a_code_a_field_and_a_remedy() {
        for (method, path, query, body, code, field) in [
            ("GET", "/v1/nothing", "", "", Code::NoSuchPath, None),
            ("GET", "/v1/devices/", "", "", Code::NoSuchPath, None),
            ("GET", "/v1/devices/a/b", "", "", Code::NoSuchPath, None),
            ("DELETE", "/v1/vm", "", "", Code::NoSuchMethod, None),
            ("GET", "/v1/vm", "x=1", "", Code::BadQuery, Some("x")),
            (
                "GET",
                "/v1/events",
                "since=1&since=2",
                "",
                Code::BadQuery,
                Some("since"),
            ),
            (
                "GET",
                "/v1/events",
                "since=-1",
                "",
                Code::BadQuery,
                Some("since"),
            ),
            (
                "GET",
                "/v1/events",
                "since=%31",
                "",
                Code::BadQuery,
                Some("since"),
            ),
            (
                "GET",
                "/v1/events/log",
                "limit=1001",
                "",
                Code::BadQuery,
                Some("limit"),
            ),
            (
                "DELETE",
                "/v1/devices/a",
                "force=1",
                "",
                Code::BadQuery,
                Some("force"),
            ),
            (
                "DELETE",
                "/v1/devices/a",
                "timeout_ms=600001",
                "",
                Code::BadQuery,
                Some("timeout_ms"),
            ),
            (
                "GET",
                "/v1/inspect/page-tables",
                "address=0x",
                "",
                Code::BadQuery,
                Some("address"),
            ),
            (
                "GET",
                "/v1/inspect/page-tables",
                "address=0x+1",
                "",
                Code::BadQuery,
                Some("address"),
            ),
            ("GET", "/v1/vm", "", "{}", Code::BadBody, None),
            ("PUT", "/v1/vm/spec", "", "", Code::BadBody, None),
            (
                "PUT",
                "/v1/vm/spec",
                "",
                "{}",
                Code::BadBody,
                Some("kernel"),
            ),
            (
                "PUT",
                "/v1/vm/spec",
                "",
                r#"{"kernel": "k", "cpu": 1}"#,
                Code::BadBody,
                Some("cpu"),
            ),
            ("PUT", "/v1/vm/spec", "", r#"["k"]"#, Code::BadBody, None),
            (
                "PUT",
                "/v1/devices/a",
                "",
                r#"{"kind": "own"}"#,
                Code::BadBody,
                None,
            ),
            (
                "PATCH",
                "/v1/devices/a",
                "",
                r#"{"size": 1}"#,
                Code::BadBody,
                Some("size"),
            ),
            ("POST", "/v1/vm/cpus/x/pause", "", "", Code::NoSuchCpu, None),
        ] {
            let found = problem(method, path, query, body);
            assert_eq!(
                (found.code, found.field.as_deref()),
                (code, field),
                "{method} {path}: {found:?}"
            );
            assert!(!found.remedy.is_empty() && !found.message.is_empty());
        }
    }

    #[test]
    fn numbers_and_flags_are_read() {
        let query = Query::parse("a=0xff&b=12&c=true", &["a", "b", "c", "d"]).unwrap();
        assert_eq!(query.number("a", u64::MAX).unwrap(), Some(255));
        assert_eq!(query.number("b", 12).unwrap(), Some(12));
        assert!(query.flag("c").unwrap() && !query.flag("d").unwrap());
        assert!(query.number("b", 11).is_err());
        assert_eq!(query.number("d", 1).unwrap(), None);
    }

    #[test]
    fn every_operation_is_described_and_has_one_name() {
        let operations = operations();
        assert_eq!(operations.len(), ROUTES.len());
        for operation in operations {
            assert!(!operation.summary.is_empty(), "{}", operation.id);
            let success = operation
                .answers
                .iter()
                .filter(|answer| answer.status < 300);
            assert!(success.count() >= 1, "{}", operation.id);
        }
    }

    #[test]
    fn paths_say_what_they_allow() {
        assert_eq!(allowed("/v1/devices/a"), "GET, PUT, PATCH, DELETE");
        assert_eq!(allowed("/v1/vm"), "GET");
        assert_eq!(allowed("/v1/no"), "");
    }
}
