//! What can be asked: one table, from which requests are read and the OpenAPI document is made.

mod parameters;
mod parts;
mod table;

use std::time::Duration;

use serde::Serialize;
use umbra_vmm::{EventLog, Handle, Spec, VirtioSpec};

use super::problem::ProblemBody;
use super::tasks::Patience;
use super::types::VmInfo;
use super::{Code, Problem};
use crate::openapi::Described;

use parts::{Parts, Query};
use table::ROUTES;

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
    /// This makes it, and takes its time.
    Made(fn() -> Reply),
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
                "PUT",
                "/v1/devices/a",
                "",
                r#"["rng"]"#,
                Code::BadBody,
                None,
            ),
            (
                "PUT",
                "/v1/devices/a",
                "",
                r#"{"kind": "rng", "limits": [null, null]}"#,
                Code::BadBody,
                None,
            ),
            (
                "PUT",
                "/v1/devices/a",
                "",
                r#"{"kind": "net", "host": ["user"]}"#,
                Code::BadBody,
                None,
            ),
            (
                "PUT",
                "/v1/devices/a",
                "",
                r#"{"kind": "net", "host": {"type": 2}}"#,
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
