//! `umbra ctl` and `umbra events` against a machine that is served: a life, answers in either form, and refusals.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use super::{HALT, Place, Served, end_by};

/// A machine that is served, and those who ask it.
pub struct Rig {
    pub place: Place,
    socket: String,
    server: Option<Served>,
}

impl Rig {
    /// Serves a machine of which nothing was said yet.
    pub fn new() -> Self {
        let place = Place::new(HALT);
        let server = Some(place.serve());
        Self {
            socket: place.text("api.sock"),
            server,
            place,
        }
    }

    /// Serves one that runs, with a bus.
    pub fn started() -> Self {
        let rig = Self::new();
        rig.describe();
        rig.done(&["start"]);
        rig
    }

    /// Says what the machine is, as `umbra run` prints it.
    fn describe(&self) {
        let kernel = self.place.text("kernel");
        let machine = [
            "--kernel",
            &kernel,
            "--memory",
            "16M",
            "--cpus",
            "2",
            "--backend",
            "soft",
            "--pci",
            "--keyboard",
        ];
        let printed = umbra(&[&["run", "--print-config"], &machine[..]].concat(), "");
        std::fs::write(self.place.path("spec"), printed.stdout).unwrap();
        self.done(&["put-spec", &self.place.text("spec")]);
    }

    pub fn command(&self, command: &str, arguments: &[&str], input: &str) -> Output {
        umbra(
            &[&[command, "--api-sock", &self.socket], arguments].concat(),
            input,
        )
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        self.command("ctl", arguments, "")
    }

    /// Asks, and returns what is printed of it.
    pub fn done(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.done(&[&["--json"], arguments].concat());
        serde_json::from_str(&text).unwrap()
    }

    /// Asks for what cannot be; returns what is said on standard error.
    fn refused(&self, arguments: &[&str], status: i32) -> String {
        let output = self.ctl(arguments);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{arguments:?}: {output:?}"
        );
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            said.starts_with("umbra: ") && said.lines().count() == 1,
            "{said}"
        );
        said
    }

    /// Ends the machine; the monitor ends with it.
    pub fn stop(mut self) {
        self.done(&["stop"]);
        let status = self.server.take().unwrap().wait();
        assert_eq!(status.code(), Some(5), "{status}");
    }
}

fn umbra(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_umbra"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who does not want it has closed it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[test]
fn a_machine_lives_by_ctl() {
    let rig = Rig::new();
    assert_eq!(rig.done(&["info"]), "umbra: not started\n");
    assert!(rig.refused(&["start"], 8).contains("(no_kernel)"));
    rig.describe();
    assert_eq!(rig.done(&["start"]), "umbra: running, boot 1, on soft\n");
    assert_eq!(rig.done(&["pause"]), "umbra: paused, boot 1, on soft\n");
    assert_eq!(rig.done(&["cpus"]).matches("paused").count(), 2);
    assert_eq!(rig.done(&["resume"]), "umbra: running, boot 1, on soft\n");

    std::fs::write(rig.place.path("disk"), vec![0; 1 << 20]).unwrap();
    let disk = format!("{},readonly", rig.place.text("disk"));
    assert_eq!(rig.done(&["add", "--disk", &disk]), "disk0 is there\n");
    assert_eq!(
        rig.done(&["add", "r", r#"{"kind": "rng"}"#]),
        "r is there\n"
    );
    let piped = rig.command("ctl", &["add", "s", "-"], r#"{"kind": "rng"}"#);
    assert_eq!(piped.status.code(), Some(0), "{piped:?}");
    let devices = rig.done(&["devices"]);
    let rows: Vec<_> = devices
        .lines()
        .map(|row| row.split("  ").next().unwrap())
        .collect();
    assert_eq!(rows, ["ID", "disk0", "r", "s"]);
    assert!(
        rig.done(&["device", "disk0"])
            .contains(&rig.place.text("disk"))
    );
    assert_eq!(
        rig.done(&["change", "disk0", "--limits", "ops=10:100"]),
        "disk0 is changed\n"
    );
    let changed = rig.json(&["device", "disk0"]);
    assert_eq!(changed["device"]["limits"]["operations"]["size"], 10);
    let asked = rig.ctl(&["remove", "r", "--timeout", "0.05"]);
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    assert!(
        String::from_utf8_lossy(&asked.stdout).contains("it still may"),
        "{asked:?}"
    );
    assert!(
        rig.done(&["remove", "r", "--timeout", "0.05", "--force"])
            .starts_with("r was taken away")
    );

    let inside = rig.done(&["inspect"]);
    for said in ["generation ", "ram", "IOAPIC", "disk0", "mmio_hits"] {
        assert!(inside.contains(said), "{said}: {inside}");
    }
    assert!(rig.done(&["inspect", "generation"]).contains("CAUSE"));
    assert!(rig.done(&["inspect", "map"]).contains("0x1000000"));
    rig.done(&["inspect", "page-tables", "--address", "0x100040"]);
    assert!(rig.done(&["metrics"]).contains("umbra_vm_state"));
    assert!(rig.done(&["cpu", "pause", "0"]).contains("rip"));
    rig.done(&["cpu", "resume", "0"]);
    // The other one waits for the first, who is not there for such things.
    rig.done(&["nmi", "--cpu", "1"]);
    rig.done(&["ctrl-alt-del"]);
    rig.done(&["power-button"]);
    rig.done(&["reset"]);
    let reset = rig.done(&["events", "--since", "0", "--wait", "1"]);
    assert!(reset.contains("reset by_guest=false"), "{reset}");
    // What it is now is a machine again.
    assert_eq!(rig.json(&["spec"])["virtio"][0]["id"], "disk0");
    let now = rig.place.text("now");
    std::fs::write(&now, rig.done(&["spec"])).unwrap();
    let printed = umbra(&["run", "--config", &now, "--print-config"], "");
    assert_eq!(printed.stdout, std::fs::read(&now).unwrap(), "{printed:?}");
    rig.stop();
}

#[test]
fn answers_come_as_they_are_if_that_is_wanted() {
    let rig = Rig::started();
    assert_eq!(rig.json(&["info"])["state"], "running");
    assert_eq!(rig.json(&["server"])["name"], "Umbra");
    assert_eq!(rig.json(&["openapi"])["openapi"], "3.1.0");
    assert_eq!(rig.json(&["cpus"])[0]["cpu"], 0);
    assert_eq!(rig.done(&["--json", "power-button"]), "");
    let refused = rig.ctl(&["device", "none", "--json"]);
    assert_eq!(refused.status.code(), Some(8), "{refused:?}");
    let body: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(body["error"]["code"], "no_such_device");
    // Firecracker's paths, too.
    let old = rig.done(&["request", "get", "/vm/config"]);
    assert!(old.contains("machine-config"), "{old}");
    assert!(
        rig.refused(&["request", "PATCH", "/vm", r#"{"state": "Gone"}"#], 8)
            .contains("Gone")
    );
    assert_eq!(
        rig.done(&["request", "PATCH", "/vm", r#"{"state": "Paused"}"#]),
        ""
    );
    assert_eq!(rig.json(&["info"])["state"], "paused");
    rig.stop();
}

#[test]
fn who_is_refused_is_told_from_who_is_not_heard() {
    let rig = Rig::started();
    let said = rig.refused(&["start"], 8);
    assert!(said.contains("(started): "), "{said}");
    let said = rig.refused(&["put-spec", &rig.place.text("spec")], 8);
    assert!(said.contains("Say this before the start"), "{said}");
    let said = rig.refused(&["change", "none", "--target", "1M"], 8);
    assert!(said.contains("no_such_device"), "{said}");
    let said = rig.refused(&["add", "a", r#"{"kind": "blk"}"#], 8);
    assert!(said.contains("(bad_body, path)"), "{said}");
    // More than the server takes.
    let long = format!(r#"{{"kind": "blk", "path": "{}"}}"#, "p".repeat(100_000));
    let said = rig.refused(&["add", "a", &long], 8);
    assert!(said.contains("too_large"), "{said}");
    for arguments in [
        &["fly"][..],
        &["add", "a", "@/no/such/file"],
        &["device", "a/b"],
    ] {
        rig.refused(arguments, 2);
    }
    let socket = rig.place.text("api.sock");
    let place = rig.place.path("").to_owned();
    let kept = tempfile::tempdir_in(place.parent().unwrap()).unwrap();
    let (none, dead) = (kept.path().join("none"), kept.path().join("dead"));
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    rig.stop();
    for (path, why) in [(none, "there is no socket"), (dead, "nobody listens")] {
        for command in [&["ctl", "info"][..], &["events"]] {
            let (name, rest) = command.split_first().unwrap();
            let path = path.to_str().unwrap();
            let output = umbra(&[&[*name, "--api-sock", path], rest].concat(), "");
            assert_eq!(output.status.code(), Some(9), "{output:?}");
            assert!(
                String::from_utf8_lossy(&output.stderr).contains(why),
                "{output:?}"
            );
        }
    }
    assert_eq!(
        umbra(&["ctl", "--api-sock", &socket, "info"], "")
            .status
            .code(),
        Some(9)
    );
}

#[test]
fn events_are_lines_until_the_machine_has_ended() {
    let rig = Rig::started();
    rig.done(&["pause"]);
    let past = rig.command("events", &["--no-follow"], "");
    let past = String::from_utf8(past.stdout).unwrap();
    let names: Vec<_> = past
        .lines()
        .map(|line| line.split_whitespace().nth(2).unwrap())
        .collect();
    assert_eq!(names, ["started", "paused"]);
    let mut follower = Command::new(env!("CARGO_BIN_EXE_umbra"))
        .args([
            "events",
            "--since",
            "1",
            "--json",
            "--api-sock",
            &rig.socket,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.next()?.unwrap();
        Some(serde_json::from_str::<Value>(&line).unwrap())
    };
    let first = next().unwrap();
    assert_eq!(
        (&first["number"], &first["event"]),
        (&Value::from(2), &Value::from("paused"))
    );
    rig.done(&["resume"]);
    assert_eq!(next().unwrap()["event"], "resumed");
    rig.stop();
    assert_eq!(next().unwrap()["event"], "ended");
    assert_eq!(next(), None);
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}

#[test]
fn a_monitor_that_ends_without_a_machine_leaves_its_followers() {
    let mut rig = Rig::new();
    let follower = Command::new(env!("CARGO_BIN_EXE_umbra"))
        .args(["events", "--json", "--api-sock", &rig.socket])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its connection may not be there yet; then it finds no socket, which is the same to it.
    std::thread::sleep(std::time::Duration::from_millis(200));
    end_by(rig.server.take().unwrap().into_child(), Signal::TERM);
    let output = follower.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(9), "{output:?}");
}

/// Somebody who answers one request with this.
fn answered_with(answer: &'static str) -> (tempfile::TempDir, String) {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        while !lines.next().unwrap().unwrap().is_empty() {}
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let path = path.to_str().unwrap().to_owned();
    (place, path)
}

#[test]
fn events_that_are_no_longer_kept_are_told() {
    let stream = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n: here\n\nevent: missed\ndata: {\"missed\":7}\n\n\
                  event: ended\ndata: {\"at_ms\":0,\"event\":\"ended\",\"number\":8,\"reason\":\"by itself\"}\n\n";
    for (more, said) in [
        (
            &[][..],
            "missed: 7 events are no longer kept\n1970-01-01T00:00:00.000Z      8 ended reason=\"by itself\"\n",
        ),
        (
            &["--json"],
            "{\"missed\":7}\n{\"at_ms\":0,\"event\":\"ended\",\"number\":8,\"reason\":\"by itself\"}\n",
        ),
    ] {
        let (_place, socket) = answered_with(stream);
        let output = umbra(
            &[&["events", "--since", "0", "--api-sock", &socket], more].concat(),
            "",
        );
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.trim_start_matches([' ', '-']).ends_with(said),
            "{text}"
        );
    }
    let (_place, socket) =
        answered_with("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nevent: x\ndata: {\n\n");
    let odd = umbra(&["events", "--api-sock", &socket], "");
    assert_eq!(odd.status.code(), Some(9), "{odd:?}");
}
