//! A stock guest behind the API: devices of every kind come and are let go, grow and shrink, and the machine is reset in
//! place; asked by `umbra ctl`, and followed by its events.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::back_ends;
use crate::support::backend::on_each_stock_backend;
use crate::support::guest::{Guest, LINUX_6_1, command_line};
use crate::support::{Input, Running, Umbra};

/// How long a guest may take for anything.
const PATIENCE: Duration = Duration::from_secs(120);

/// A guest that is served, and its shell.
struct Served {
    place: TempDir,
    serve: Running,
    /// The number of the event that was seen last.
    seen: u64,
    /// How often the shell was asked.
    asked: u32,
}

impl Served {
    fn boot(backend: &str) -> Option<Self> {
        let guest = Guest::fetch(LINUX_6_1)?;
        let place = tempfile::tempdir().unwrap();
        let spec = json!({
            "kernel": guest.kernel(), "initrd": guest.initrd(), "command_line": command_line(LINUX_6_1),
            "memory": 512 << 20, "backend": backend, "pci": true, "on_reset": "restart"
        });
        let path = |name: &str| place.path().join(name).to_str().unwrap().to_owned();
        fs::write(path("spec.json"), spec.to_string()).unwrap();
        let arguments = [
            "serve",
            "--api-sock",
            &path("api.sock"),
            "--config",
            &path("spec.json"),
        ];
        let serve = Umbra::new(&arguments, &Input::Pipe("")).start();
        let mut this = Self {
            place,
            serve,
            seen: 0,
            asked: 0,
        };
        this.ready();
        Some(this)
    }

    fn text(&self, name: &str) -> String {
        self.place.path().join(name).to_str().unwrap().to_owned()
    }

    /// Waits for the shell of this life, and makes it quiet.
    fn ready(&mut self) {
        self.ask("stty -echo; modprobe -a virtio_pci virtio_rng virtio_blk virtio_net virtio_console virtio_pmem nd_pmem \
             virtio_mem virtio_balloon vmw_vsock_virtio_transport; echo here");
    }

    /// Has the shell run something; returns the last line that it printed.
    fn ask(&mut self, commands: &str) -> String {
        self.asked += 1;
        let word = format!("answer{}:", self.asked);
        // Not what the terminal echoes, and not behind a prompt.
        let split = word.replacen("answer", "ans''wer", 1);
        let line = format!("echo; echo {split}\"$({commands} 2>&1 | tail -n 1)\"\n");
        self.serve.say(&line);
        self.serve.line(&word, PATIENCE)
    }

    fn wait_for(&mut self, commands: &str, wanted: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let said = self.ask(commands);
            if said == wanted {
                return;
            }
            assert!(
                Instant::now() < until,
                "{commands}: {said}, and not {wanted}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks by the command; it has to be done.
    fn ctl(&self, arguments: &[&str]) -> Value {
        let socket = self.text("api.sock");
        let command = Command::new(env!("CARGO_BIN_EXE_umbra"))
            .args(["ctl", "--api-sock", &socket, "--json"])
            .args(arguments)
            .output()
            .unwrap();
        let (said, complaint) = (
            String::from_utf8_lossy(&command.stdout),
            String::from_utf8_lossy(&command.stderr),
        );
        assert!(
            command.status.success(),
            "{arguments:?}: {said}{complaint}\n{}",
            self.serve.so_far()
        );
        serde_json::from_str(&said).unwrap_or(Value::Null)
    }

    /// Waits for an event, from the one on that was seen last.
    fn event(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let since = self.seen.to_string();
            let page = self.ctl(&["events", "--since", &since, "--limit", "1", "--wait", "5"]);
            self.seen = page["next_since"].as_u64().unwrap();
            for event in page["events"].as_array().unwrap() {
                if wanted(event) {
                    return event.clone();
                }
            }
            assert!(Instant::now() < until, "{}", self.serve.so_far());
        }
    }

    fn event_of(&mut self, name: &str, id: &str) -> Value {
        self.event(|event| event["event"] == name && event["id"] == id)
    }

    /// Adds a device, and waits until the guest's driver has begun.
    fn add(&mut self, id: &str, device: &Value) {
        self.ctl(&["add", id, &device.to_string()]);
        self.event_of("device_added", id);
        self.event_of("driver_started", id);
    }

    /// Removes a device: the guest lets it go.
    fn remove(&mut self, id: &str) {
        let removal = self.ctl(&["remove", id, "--timeout", "60"]);
        assert_eq!(removal["state"], "let_go", "{id}: {removal}");
        self.event_of("device_removed", id);
    }
}

fn devices_of_every_kind_come_and_are_let_go(backend: &str) {
    let Some(mut guest) = Served::boot(backend) else {
        return;
    };
    let file = |name: &str, len: u64| {
        let path = guest.text(name);
        fs::File::create(&path).unwrap().set_len(len).unwrap();
        path
    };
    let (disk, theirs, pmem) = (
        file("disk", 1 << 20),
        file("theirs", 2 << 20),
        file("pmem", 4 << 20),
    );
    let (net, socket) = (guest.text("net"), guest.text("back_end.sock"));
    let _peer = UnixListener::bind(&net).unwrap();
    let log = guest.place.path().join("back_end.log");
    let arguments = ["backend", "block", &theirs, "--socket", &socket];
    let _back_end = back_ends::ours().start(&arguments, &log);
    back_ends::wait_for(|| fs::read_to_string(&log).is_ok_and(|text| text.contains("listens")));
    let (vsock, port) = (guest.text("vsock"), guest.text("port"));
    let end = json!({ "file": port });
    let host = json!({ "type": "stream", "path": net });
    for (id, device) in [
        ("rng", json!({ "kind": "rng" })),
        ("disk", json!({ "kind": "blk", "path": disk })),
        ("net", json!({ "kind": "net", "host": host })),
        ("vsock", json!({ "kind": "vsock", "cid": 3, "path": vsock })),
        ("balloon", json!({ "kind": "balloon" })),
        (
            "console",
            json!({ "kind": "console", "ports": [{ "name": "port", "end": end }] }),
        ),
        ("pmem", json!({ "kind": "pmem", "path": pmem })),
        ("mem", json!({ "kind": "mem", "max": 256 << 20 })),
        (
            "theirs",
            json!({ "kind": "vhost-user", "device": { "type": "block" }, "socket": socket }),
        ),
    ] {
        guest.add(id, &device);
        let shown = guest.ctl(&["device", id]);
        assert_eq!(shown["status"]["in_use"], true, "{shown}");
        if device["kind"] == "vhost-user" {
            assert_eq!(shown["status"]["back_end"]["connected"], true, "{shown}");
        }
        guest.remove(id);
        // Its name and what it had of the host can be used again.
        guest.add(id, &device);
        guest.remove(id);
    }
    assert_eq!(guest.ctl(&["devices"]), json!([]));
    guest.ctl(&["stop"]);
}

fn disks_and_memory_change_their_size_and_a_reset_keeps_them(backend: &str) {
    let Some(mut guest) = Served::boot(backend) else {
        return;
    };
    let disk = guest.text("disk");
    let resize = |len: u64| {
        let file = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&disk);
        file.unwrap().set_len(len).unwrap();
    };
    resize(1 << 20);
    guest.add("d", &json!({ "kind": "blk", "path": disk }));
    guest.wait_for("cat /sys/block/vda/size", "2048");
    resize(3 << 20);
    guest.ctl(&["change", "d", "--path", &disk]);
    guest.wait_for("cat /sys/block/vda/size", "6144");

    guest.add("m", &json!({ "kind": "mem", "max": 256 << 20 }));
    let plugged = |bytes: u64| {
        move |event: &Value| event["event"] == "memory_changed" && event["plugged"] == bytes
    };
    guest.ctl(&["change", "m", "--requested", "128M"]);
    guest.event(plugged(128 << 20));
    guest.ctl(&["change", "m", "--requested", "0"]);
    guest.event(plugged(0));
    guest.add("b", &json!({ "kind": "balloon" }));
    guest.ctl(&["change", "b", "--target", "64M"]);
    guest.event(|event| event["event"] == "balloon_changed" && event["actual"] == 64 << 20);

    let before = guest.ctl(&["devices"]);
    guest.ctl(&["reset"]);
    let begun = guest.event(|event| event["event"] == "started" && event["boot"] == 2);
    assert_eq!(begun["backend"], backend);
    guest.ready();
    guest.wait_for("cat /sys/block/vda/size", "6144");
    let after = guest.ctl(&["devices"]);
    let specs = |devices: &Value| {
        let all = devices.as_array().unwrap().iter();
        all.map(|one| one["device"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(specs(&after), specs(&before));

    // The guest's own reset is one, too.
    guest.serve.say("reboot -f\n");
    let reset = guest.event(|event| event["event"] == "reset");
    assert_eq!(reset["by_guest"], true);
    guest.ready();
    assert_eq!(guest.ctl(&["info"])["boots"], 3);
    guest.ctl(&["stop"]);
}

fn what_devices_and_the_guest_do_is_news(backend: &str) {
    let Some(mut guest) = Served::boot(backend) else {
        return;
    };
    let file = |name: &str| {
        let path = guest.text(name);
        fs::File::create(&path).unwrap().set_len(4 << 20).unwrap();
        path
    };
    let (disk, theirs) = (file("disk"), file("theirs"));
    let (net, socket) = (guest.text("net"), guest.text("back_end.sock"));
    let limits = json!({ "operations": { "size": 5, "refill_time_ms": 200 } });
    guest.add(
        "d",
        &json!({ "kind": "blk", "path": disk, "limits": limits }),
    );
    guest.ask("dd if=/dev/vda of=/dev/null bs=4k count=30 iflag=direct");
    let limited = guest.event_of("rate_limited", "d");
    assert!(limited["throttled"].as_u64() > Some(0), "{limited}");

    let _peer = UnixListener::bind(&net).unwrap();
    guest.add(
        "n",
        &json!({ "kind": "net", "host": { "type": "stream", "path": net } }),
    );
    guest.ctl(&["change", "n", "--link", "down"]);
    assert_eq!(guest.event_of("link_changed", "n")["up"], false);
    guest.ctl(&["change", "n", "--link", "up"]);
    assert_eq!(guest.event_of("link_changed", "n")["up"], true);

    let log = guest.place.path().join("back_end.log");
    let arguments = ["backend", "block", &theirs, "--socket", &socket];
    let begin = || {
        let server = back_ends::ours().start(&arguments, &log);
        back_ends::wait_for(|| fs::read_to_string(&log).is_ok_and(|text| text.contains("listens")));
        server
    };
    let mut back_end = begin();
    let device = json!({ "kind": "vhost-user", "device": { "type": "block" }, "socket": socket });
    guest.add("t", &device);
    back_end.kill();
    let lost = guest.event_of("back_end_lost", "t");
    assert!(!lost["reason"].as_str().unwrap().is_empty(), "{lost}");
    let _back_end = begin();
    guest.event_of("back_end_found", "t");

    guest.wait_for("grep -c ^pvpanic_mmio /proc/modules", "1");
    guest.serve.say("echo c > /proc/sysrq-trigger\n");
    guest.event(|event| event["event"] == "guest_panic");
    let reset = guest.event(|event| event["event"] == "reset");
    assert_eq!(reset["by_guest"], true);
    guest.ctl(&["stop"]);
}

on_each_stock_backend! {
    devices_of_every_kind_come_and_are_let_go,
    disks_and_memory_change_their_size_and_a_reset_keeps_them,
    what_devices_and_the_guest_do_is_news,
}
