//! A machine that has ended, before its owner hears of it: whoever has seen the end in the log, or by a call that failed,
//! hears nothing else from anybody.

// All of this is a test; the helpers are not recognised as such.
#![allow(clippy::unwrap_used)]

#[allow(unused)]
mod support;

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use support::{Silent, write_kernel};
use umbra_api::firecracker::config::Options;
use umbra_api::firecracker::fault::Fault;
use umbra_api::firecracker::instance::{Instance, Message};
use umbra_api::firecracker::request::{Action, Method, parse};
use umbra_api::v1::routes::{Given, Order};
use umbra_api::v1::types::VmState;
use umbra_api::v1::{Call, Code, Request, routes};
use umbra_vmm::{Backend, News};

fn action(method: &str, path: &str, body: &str) -> Action {
    let method = Method::parse(method).unwrap();
    parse(method, path, body.as_bytes()).action.unwrap()
}

fn order(method: &str, path: &str) -> Order {
    let request = Request {
        method,
        path,
        query: "",
        body: b"",
    };
    match routes::parse(request) {
        Ok(Call::Order(order)) => order,
        _ => panic!("{method} {path} is no order"),
    }
}

/// A machine whose log says that it has ended, and whose owner has not read its last message.
fn ended_unheard() -> (Instance, Receiver<Message>) {
    let place = tempfile::tempdir().unwrap();
    let kernel = place.path().join("kernel");
    // push 0; push 0; lidt [esp]; int3
    write_kernel(&kernel, &[0x6a, 0, 0x6a, 0, 0x0f, 0x01, 0x1c, 0x24, 0xcc]);
    let (to_self, messages) = channel();
    let options = Options {
        id: "a".into(),
        backend: Backend::Soft,
        pci: false,
        mmds_limit: 1000,
    };
    let mut instance = Instance::new(options, Box::new(Silent), to_self);
    let boot = format!(r#"{{"kernel_image_path": "{}"}}"#, kernel.display());
    let boot = action("PUT", "/boot-source", &boot);
    instance.carry_out(boot).unwrap();
    instance.carry_out(Action::Start).unwrap();
    let Ok(Given::Log(log)) = instance.carry_out_order(Order::Log) else {
        panic!("there is a log before the start");
    };
    let mut events = log.follow(Some(0)).unwrap();
    let is_last = |news: &News| matches!(news, News::Ended { .. });
    loop {
        let taken = events.wait(Duration::from_secs(60), 16);
        assert!(!taken.entries.is_empty(), "it does not end");
        if taken.entries.iter().any(|entry| is_last(&entry.news)) {
            return (instance, messages);
        }
    }
}

#[test]
fn firecrackers_paths_say_so_to_whatever_is_asked() {
    let (mut instance, _messages) = ended_unheard();
    for (method, path, body) in [
        ("GET", "/", ""),
        ("GET", "/vm/config", ""),
        ("GET", "/version", ""),
        ("GET", "/machine-config", ""),
        ("GET", "/mmds", ""),
        ("PUT", "/mmds", "{}"),
        ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
        ("PUT", "/entropy", "{}"),
        ("PUT", "/actions", r#"{"action_type": "InstanceStart"}"#),
        ("PUT", "/actions", r#"{"action_type": "FlushMetrics"}"#),
    ] {
        let answer = instance.carry_out(action(method, path, body));
        assert_eq!(answer, Err(Fault::Ended), "{method} {path} {body}");
    }
}

#[test]
fn so_does_v1() {
    let (mut instance, _messages) = ended_unheard();
    for (method, path) in [
        ("POST", "/v1/vm/start"),
        ("POST", "/v1/vm/pause"),
        ("POST", "/v1/vm/resume"),
        ("POST", "/v1/vm/reset"),
        ("POST", "/v1/vm/stop"),
        ("GET", "/v1/vm/spec"),
    ] {
        let answer = instance.carry_out_order(order(method, path));
        let code = answer.err().map(|problem| problem.code);
        assert_eq!(code, Some(Code::Ended), "{method} {path}");
    }
    let Ok(Given::Info(info)) = instance.carry_out_order(order("GET", "/v1/vm")) else {
        panic!("how it is can always be asked");
    };
    assert_eq!(info.state, VmState::Ended);
}
