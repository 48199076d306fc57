//! The JSON form.

use std::time::Duration;

use super::*;

fn read(json: &str) -> Result<Spec, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

#[test]
fn what_has_a_default_need_not_be_said() {
    assert_eq!(read(r#"{"kernel": "k"}"#), Ok(Spec::new("k")));
    let device = |json: &str| {
        let device: VirtioSpec = serde_json::from_str(json).unwrap();
        device.kind
    };
    let table = [
        (
            r#"{"id": "a", "device": {"kind": "blk", "path": "d"}}"#,
            VirtioKind::Block(DiskSpec::new("d")),
        ),
        (
            r#"{"id": "a", "device": {"kind": "net", "host": {"type": "user"}}}"#,
            VirtioKind::Net(NetSpec::new(NetHost::user())),
        ),
        (
            r#"{"id": "a", "device": {"kind": "vsock", "cid": 3, "path": "v"}}"#,
            VirtioKind::Vsock(VsockSpec::new(3, "v")),
        ),
        (
            r#"{"id": "a", "device": {"kind": "vhost-user", "device": {"type": "block"}, "socket": "s"}}"#,
            VirtioKind::VhostUser(VhostUserSpec::new(VhostKind::Block, "s")),
        ),
        (
            r#"{"id": "a", "device": {"kind": "balloon"}}"#,
            VirtioKind::Balloon(BalloonSpec::default()),
        ),
        (
            r#"{"id": "a", "device": {"kind": "pmem", "path": "p"}}"#,
            VirtioKind::Pmem(PmemSpec::new("p")),
        ),
        (
            r#"{"id": "a", "device": {"kind": "mem", "max": 1048576}}"#,
            VirtioKind::Mem(MemSpec::new(1 << 20)),
        ),
        (
            r#"{"id": "a", "device": {"kind": "rng"}}"#,
            VirtioKind::Rng(RngSpec::default()),
        ),
    ];
    for (json, kind) in table {
        assert_eq!(device(json), kind, "{json}");
    }
}

#[test]
fn what_is_written_is_read_again() {
    let bucket = Bucket {
        size: 1 << 20,
        one_time_burst: 7,
        refill_time: Duration::from_millis(100),
    };
    let limits = Limits {
        bandwidth: Some(bucket),
        operations: None,
    };
    let disk = DiskSpec {
        format: Format::Qcow2,
        backing: BackingFiles::Follow,
        cache: Cache::Unsafe,
        engine: EngineKind::Threads,
        limits,
        ..DiskSpec::new("/d")
    };
    let net = NetSpec {
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        mtu: Some(1400),
        receive: limits,
        ..NetSpec::new(NetHost::Tap {
            name: "tap0".into(),
            queues: 2,
        })
    };
    let other = VhostKind::Other {
        id: 18,
        config_len: 8,
    };
    let ports = vec![
        PortSpec {
            name: None,
            end: PortEnd::Console,
        },
        PortSpec {
            name: Some("log".into()),
            end: PortEnd::File("/log".into()),
        },
    ];
    let spec = Spec {
        processor: Processor::Interpreter,
        cpu_template: Some(CpuTemplate::Load("T2".into())),
        serial_limit: Some(bucket),
        verify: Verify::EveryFault(5),
        fw_cfg: Some(vec![ConfigFile {
            name: "opt/x".into(),
            content: Content::Text("y".into()),
        }]),
        on_reset: OnReset::Restart,
        ..Spec::new("/k").cpus(3).pci().keyboard()
    };
    let spec = spec
        .virtio("disk", VirtioKind::Block(disk))
        .virtio("net", VirtioKind::Net(net))
        .virtio(
            "own",
            VirtioKind::VhostUser(VhostUserSpec::new(other, "/s")),
        )
        .virtio(
            "balloon",
            VirtioKind::Balloon(BalloonSpec {
                polling: Some(Duration::from_secs(1)),
                ..BalloonSpec::default()
            }),
        )
        .virtio("console", VirtioKind::Console(ConsoleSpec { ports }))
        .virtio("vdpa", VirtioKind::Vdpa(VdpaSpec { node: "/n".into() }));
    let json = serde_json::to_string_pretty(&spec).unwrap();
    assert_eq!(read(&json), Ok(spec), "{json}");
}

#[test]
fn metadata_is_written_with_what_it_says() {
    let json = r#"{"kernel": "k", "virtio": [{"id": "n", "device": {"kind": "net",
        "host": {"type": "user"}, "metadata": {"data": {"a": 1}, "version": 2}}}]}"#;
    let spec = read(json).unwrap();
    let VirtioKind::Net(net) = &spec.virtio[0].kind else {
        panic!("{spec:?}");
    };
    let metadata = net.metadata.as_ref().unwrap();
    assert_eq!(metadata.data.get()["a"], 1);
    let written = serde_json::to_value(&spec).unwrap();
    let metadata = &written["virtio"][0]["device"]["metadata"];
    assert_eq!(metadata["data"]["a"], 1);
    assert_eq!(metadata["address"], "169.254.169.254");
}

#[test]
fn what_is_unknown_or_wrong_is_refused_by_name() {
    let device =
        |text: &str| format!(r#"{{"kernel": "k", "virtio": [{{"id": "a", "device": {text}}}]}}"#);
    let net = |text: &str| {
        device(&format!(
            r#"{{"kind": "net", "host": {{"type": "user"}}, {text}}}"#
        ))
    };
    for (json, said) in [
        (r#"{}"#.to_owned(), "missing field `kernel`"),
        (r#"{"kernel": "k", "cpu": 1}"#.into(), "unknown field `cpu`"),
        (
            device(r#"{"kind": "disk", "path": "d"}"#),
            "unknown variant `disk`",
        ),
        (device(r#"{"kind": "own"}"#), "unknown variant `own`"),
        (device(r#"{"kind": "blk"}"#), "missing field `path`"),
        (
            device(r#"{"kind": "blk", "path": "d", "size": 1}"#),
            "unknown field `size`",
        ),
        (
            net(r#""mac": "01:00:00:00:00:01""#),
            "the first byte of one interface's is even",
        ),
        (
            net(r#""metadata": {"data": [], "version": 1}"#),
            "a JSON object",
        ),
        (
            net(r#""metadata": {"data": {}, "address": "1.2.3.4"}"#),
            "169.254.1.0",
        ),
    ] {
        let error = read(&json).unwrap_err();
        assert!(error.contains(said), "{json}: {error}");
    }
}
