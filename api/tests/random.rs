//! Random requests, to machines whose guests halt, spin, reboot, or die at any moment: what is possible when is what the
//! policy says, nothing hangs, and a machine that has ended says so from then on.
//!
//! `UMBRA_RANDOM_CASES` says how many machines; 24 without it.

// All of this is a test; the helpers are not recognised as such.
#![allow(clippy::unwrap_used)]

mod support;

use std::cell::RefCell;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use support::{HALT, Rig, write_kernel};
use umbra_api::firecracker::policy::{self, State};
use umbra_api::firecracker::request::{Action, Method, parse};
use umbra_api::server::Limits;
use umbra_api::v1::routes::Order;
use umbra_api::v1::{self, Call, Code};

/// What is asked. `PLACE` is the folder of the machine.
#[rustfmt::skip]
const ASKED: &[(&str, &str, &str)] = &[
    ("GET", "/", ""),
    ("GET", "/vm/config", ""),
    ("GET", "/machine-config", ""),
    ("GET", "/mmds", ""),
    ("GET", "/nope", ""),
    ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
    ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
    ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#),
    ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#),
    ("PUT", "/boot-source", r#"{"kernel_image_path": "PLACE/kernel"}"#),
    ("PUT", "/boot-source", r#"{"kernel_image_path": "PLACE/kernel"}"#),
    ("PUT", "/boot-source", r#"{"kernel_image_path": "PLACE/none"}"#),
    ("PATCH", "/machine-config", r#"{"vcpu_count": 2}"#),
    ("PUT", "/machine-config", r#"{"vcpu_count": 0, "mem_size_mib": 1}"#),
    ("PUT", "/drives/a", r#"{"drive_id": "a", "is_root_device": false, "path_on_host": "PLACE/disk"}"#),
    ("PATCH", "/drives/a", r#"{"drive_id": "a", "path_on_host": "PLACE/disk"}"#),
    ("PATCH", "/drives/a", r#"{"drive_id": "a", "rate_limiter": {"ops": {"size": 5, "refill_time": 5}}}"#),
    ("DELETE", "/drives/a", ""),
    ("PUT", "/pmem/p", r#"{"id": "p", "path_on_host": "PLACE/pmem"}"#),
    ("DELETE", "/pmem/p", ""),
    ("PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "PLACE/v.sock"}"#),
    ("PUT", "/entropy", "{}"),
    ("PUT", "/balloon", r#"{"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1}"#),
    ("GET", "/balloon", ""),
    ("PATCH", "/balloon", r#"{"amount_mib": 1}"#),
    ("GET", "/balloon/statistics", ""),
    ("PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s": 2}"#),
    ("PATCH", "/balloon/hinting/start", ""),
    ("PUT", "/hotplug/memory", r#"{"total_size_mib": 128}"#),
    ("GET", "/hotplug/memory", ""),
    ("PUT", "/mmds", r#"{"a": 1}"#),
    ("PATCH", "/mmds", r#"{"b": 1}"#),
    ("PUT", "/logger", "{}"),
    ("PATCH", "/vm", r#"{"state": "Paused"}"#),
    ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
    ("PUT", "/snapshot/create", r#"{"snapshot_path": "s", "mem_file_path": "m"}"#),
    ("PUT", "/snapshot/load", r#"{"snapshot_path": "s", "mem_file_path": "m"}"#),
    ("GET", "/v1/vm", ""),
    ("GET", "/v1/vm", ""),
    ("GET", "/v1/nope", ""),
    ("GET", "/v1/vm/spec", ""),
    ("PUT", "/v1/vm/spec", r#"{"kernel": "PLACE/kernel", "memory": 16777216, "backend": "soft", "pci": true}"#),
    ("PUT", "/v1/vm/spec", r#"{"kernel": "PLACE/kernel", "memory": 16777216, "backend": "soft", "on_reset": "restart"}"#),
    ("PUT", "/v1/vm/spec", r#"{"kernel": "PLACE/kernel", "cpus": 0}"#),
    ("POST", "/v1/vm/start", ""),
    ("POST", "/v1/vm/start", ""),
    ("POST", "/v1/vm/pause", ""),
    ("POST", "/v1/vm/resume", ""),
    ("POST", "/v1/vm/reset", ""),
    ("POST", "/v1/vm/reset", ""),
    ("POST", "/v1/vm/stop", ""),
    ("POST", "/v1/vm/power-button", ""),
    ("POST", "/v1/vm/ctrl-alt-del", ""),
    ("GET", "/v1/vm/cpus", ""),
    ("POST", "/v1/vm/cpus/0/pause", ""),
    ("POST", "/v1/vm/cpus/0/resume", ""),
    ("GET", "/v1/devices", ""),
    ("PUT", "/v1/devices/r", r#"{"kind": "rng"}"#),
    ("PUT", "/v1/devices/b", r#"{"kind": "blk", "path": "PLACE/disk2"}"#),
    ("PATCH", "/v1/devices/b", r#"{"limits": {"operations": {"size": 5}}}"#),
    ("DELETE", "/v1/devices/r?timeout_ms=10&force=true", ""),
    ("DELETE", "/v1/devices/b?timeout_ms=10", ""),
    ("GET", "/v1/events/log?since=0&limit=5", ""),
    ("GET", "/v1/inspect", ""),
    ("GET", "/v1/inspect/page-tables", ""),
    ("GET", "/metrics/prometheus", ""),
];

/// What a machine begins with that is to run for sure.
const BEGIN: [(&str, &str, &str); 2] = [
    (
        "PUT",
        "/boot-source",
        r#"{"kernel_image_path": "PLACE/kernel"}"#,
    ),
    ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
];

/// What the policy alone says.
const OF_THE_POLICY: [&str; 3] = ["before_start", "after_start", "no_pci"];

/// What a guest does: some instructions, again and again, and then something at the end.
#[derive(Clone, Copy, Debug)]
enum Guest {
    Halts,
    Spins,
    /// Counts so far, and restarts the machine by the keyboard controller.
    Reboots(u32),
    /// Counts so far, and shuts its processor down by a triple fault.
    Dies(u32),
}

impl Guest {
    fn code(self) -> Vec<u8> {
        // mov ecx, COUNT; dec ecx; jnz -3
        let count = |count: u32| {
            [
                vec![0xb9],
                count.to_le_bytes().to_vec(),
                vec![0x49, 0x75, 0xfd],
            ]
            .concat()
        };
        match self {
            Self::Halts => HALT.to_vec(),
            Self::Spins => vec![0xeb, 0xfe],
            // mov al, 0xfe; out 0x64, al
            Self::Reboots(n) => [count(n), vec![0xb0, 0xfe, 0xe6, 0x64], HALT.to_vec()].concat(),
            // push 0; push 0; lidt [esp]; int3
            Self::Dies(n) => [
                count(n),
                vec![0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0xcc],
            ]
            .concat(),
        }
    }

    fn can_end(self) -> bool {
        matches!(self, Self::Reboots(_) | Self::Dies(_))
    }
}

fn guest() -> impl Strategy<Value = Guest> {
    prop_oneof![
        Just(Guest::Halts),
        Just(Guest::Spins),
        (1000u32..5_000_000).prop_map(Guest::Reboots),
        (1000u32..5_000_000).prop_map(Guest::Dies),
    ]
}

/// What the model knows of a machine.
struct Model {
    state: State,
    pci: bool,
    may_end: bool,
    /// What the description of `/v1` says of a bus.
    said_pci: Option<bool>,
}

/// What the owner is asked for by a request of `/v1`; whether it is the owner who answers.
fn order(call: Call) -> Option<(Order, bool)> {
    Some(match call {
        Call::Order(order) => (order, true),
        Call::Task(_) => (Order::Handle, false),
        Call::Devices(_) => (Order::Devices, false),
        Call::Remove(id, _) => (Order::Remove(id), false),
        Call::Events(_) | Call::EventPage(..) => (Order::Log, false),
        Call::Metrics => (Order::Info, false),
        Call::Reply(_) | Call::Made(_) => return None,
    })
}

impl Model {
    /// Compares an answer with what is possible, and goes on from there.
    fn compare(
        &mut self,
        asked: (&str, &str, &str),
        answer: &support::Answer,
    ) -> Result<(), String> {
        let (method, path, body) = asked;
        if v1::is_ours(path) {
            return self.compare_v1(asked, answer);
        }
        let wrong = |what: &str| Err(format!("{what}: {method} {path} {body}: {answer:?}"));
        let parsed = parse(Method::parse(method).unwrap(), path, body.as_bytes());
        let code =
            (answer.status >= 400).then(|| answer.json()["code"].as_str().unwrap().to_owned());
        let action = match parsed.action {
            Ok(action) => action,
            Err(fault) if code.as_deref() == Some(fault.code()) => return Ok(()),
            Err(_) => return wrong("nonsense is not refused as such"),
        };
        if code.as_deref() == Some("ended") {
            if self.state == State::Before || !self.may_end {
                return wrong("nothing has ended");
            }
            self.state = State::Ended;
            return Ok(());
        }
        if self.state == State::Ended {
            return wrong("it had ended");
        }
        match policy::check(self.state, self.pci, &action) {
            Err(fault) if code.as_deref() == Some(fault.code()) => return Ok(()),
            Err(_) => return wrong("the policy refuses it"),
            Ok(())
                if code
                    .as_deref()
                    .is_some_and(|code| OF_THE_POLICY.contains(&code)) =>
            {
                return wrong("the policy allows it");
            }
            Ok(()) => {}
        }
        if code.is_none() {
            match action {
                Action::Start | Action::Resume => self.runs(),
                Action::Pause => self.state = State::Paused,
                Action::GetInstanceInfo => {
                    let says = answer.json()["state"].as_str().unwrap().to_owned();
                    let right = match self.state {
                        State::Before => "Not started",
                        State::Running => "Running",
                        State::Paused => "Paused",
                        State::Ended => unreachable!("compared above"),
                    };
                    if says != right {
                        return wrong("another state");
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Model {
    fn runs(&mut self) {
        if self.state == State::Before {
            self.pci = self.said_pci.unwrap_or(self.pci);
        }
        self.state = State::Running;
    }

    fn compare_v1(
        &mut self,
        asked: (&str, &str, &str),
        answer: &support::Answer,
    ) -> Result<(), String> {
        let (method, path, body) = asked;
        let wrong = |what: &str| Err(format!("{what}: {method} {path} {body}: {answer:?}"));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let json = || answer.json();
        let code =
            (answer.status >= 400).then(|| json()["error"]["code"].as_str().unwrap().to_owned());
        let is = |wanted: Code| {
            let wanted = serde_json::to_value(wanted).unwrap();
            code.as_deref() == wanted.as_str()
        };
        let call = v1::routes::parse(v1::Request {
            method,
            path,
            query,
            body: body.as_bytes(),
        });
        let (order, by_owner) = match call.map(order) {
            Ok(Some(order)) => order,
            Ok(None) => return Ok(()),
            Err(problem) if is(problem.code) => return Ok(()),
            Err(_) => return wrong("nonsense is not refused as such"),
        };
        // Or the owner has gone, or is about to.
        if is(Code::Ended) || is(Code::Ending) {
            if self.state == State::Before || !self.may_end {
                return wrong("nothing has ended");
            }
            self.state = State::Ended;
            return Ok(());
        }
        match v1::policy::check(self.state, &order) {
            Err(code) if is(code) => return Ok(()),
            Err(_) => return wrong("the policy refuses it"),
            Ok(()) if is(Code::NotStarted) || is(Code::Started) => {
                return wrong("the policy allows it");
            }
            Ok(()) if code.is_some() => return Ok(()),
            Ok(()) => {}
        }
        match order {
            Order::PutSpec(spec) => self.said_pci = Some(spec.pci),
            Order::Start | Order::Resume | Order::Reset => self.runs(),
            Order::Pause => self.state = State::Paused,
            Order::Stop => self.may_end = true,
            // Whoever asked it to stop hears here first that it has.
            Order::Info | Order::Log if self.may_end && tells_of_the_end(path, answer) => {
                self.state = State::Ended;
            }
            Order::Info if by_owner => {
                let right = match self.state {
                    State::Before => "not_started",
                    State::Running => "running",
                    State::Paused => "paused",
                    State::Ended => "ended",
                };
                if json()["state"] != right {
                    return wrong("another state");
                }
            }
            Order::Info if self.state == State::Ended => return wrong("it had ended"),
            _ => {}
        }
        Ok(())
    }
}

/// Tells whether an answer that is none of a refusal says that the machine has ended.
fn tells_of_the_end(path: &str, answer: &support::Answer) -> bool {
    match path {
        "/v1/vm" => answer.json()["state"] == "ended",
        "/v1/events/log" => {
            let page = answer.json();
            let mut events = page["events"].as_array().unwrap().iter();
            events.any(|event| event["event"] == "ended")
        }
        "/metrics/prometheus" => answer.body.contains(r#"state="ended"} 1"#),
        _ => false,
    }
}

/// Lives through requests; returns the states that the machine was seen in.
fn live(
    guest: Guest,
    (pci, begins): (bool, bool),
    requests: &[(prop::sample::Index, u8)],
) -> Result<Vec<State>, String> {
    let rig = Rig::with(pci, Limits::default());
    write_kernel(&rig.path("kernel"), &guest.code());
    let place = rig.place.path().to_str().unwrap();
    let mut model = Model {
        state: State::Before,
        pci,
        may_end: guest.can_end(),
        said_pci: None,
    };
    let mut client = rig.client();
    let mut seen = Vec::new();
    let chosen = requests
        .iter()
        .map(|(index, wait)| (*index.get(ASKED), *wait));
    let begin = BEGIN.iter().filter(|_| begins).map(|asked| (*asked, 0));
    for ((method, path, body), wait) in begin.chain(chosen) {
        let body = body.replace("PLACE", place);
        let answer = client.ask(method, path, &body);
        if let Err(why) = model.compare((method, path, &body), &answer) {
            // How it ended says more, if it has.
            return Err(format!("{why}\n{:?}", rig.log()));
        }
        if !seen.contains(&model.state) {
            seen.push(model.state);
        }
        if wait > 200 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    match client.checked >= requests.len() {
        true => Ok(seen),
        false => Err("not everything was compared with the document".into()),
    }
}

#[test]
fn answers_agree_with_the_policy_whatever_the_guest_does() {
    let cases = std::env::var("UMBRA_RANDOM_CASES").map_or(24, |text| text.parse().unwrap());
    let config = Config {
        cases,
        max_shrink_iters: 50,
        failure_persistence: None,
        ..Config::default()
    };
    let requests = prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..80);
    let seen = RefCell::new(Vec::new());
    TestRunner::new(config)
        .run(
            &(guest(), any::<(bool, bool)>(), requests),
            |(guest, flags, requests)| {
                let states = live(guest, flags, &requests).map_err(TestCaseError::fail)?;
                seen.borrow_mut().extend(states);
                Ok(())
            },
        )
        .unwrap();
    for state in [State::Before, State::Running, State::Paused, State::Ended] {
        let times = seen
            .borrow()
            .iter()
            .filter(|other| **other == state)
            .count();
        println!("{state:?} in {times} of {cases} machines");
        assert!(times > 0, "no machine was ever {state:?}");
    }
}
