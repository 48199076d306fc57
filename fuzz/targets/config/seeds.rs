//! Files that say all there is.

use umbra_api::firecracker::config::ConfigFile;
use umbra_vmm::Spec;

/// What an input begins with that is Firecracker's, or a specification.
const FIRECRACKER: u8 = 0;
const SPECIFICATION: u8 = 1;

const FILES: &[&str] = &[
    r#"{"boot-source": {"kernel_image_path": "k", "boot_args": "a=1", "initrd_path": "i"},
        "drives": [{"drive_id": "root", "path_on_host": "d", "is_root_device": true, "is_read_only": false,
        "partuuid": "0eaa91a0-01", "cache_type": "Writeback", "io_engine": "Sync",
        "rate_limiter": {"bandwidth": {"size": 1000, "one_time_burst": 1, "refill_time": 100}, "ops": null}}],
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false,
        "huge_pages": "None", "cpu_template": "T2"}}"#,
    r#"{"boot-source": {"kernel_image_path": "k"}, "network-interfaces": [{"iface_id": "e", "host_dev_name": "tap0",
        "guest_mac": "06:00:00:00:00:01", "rx_rate_limiter": null, "tx_rate_limiter": null}],
        "vsock": {"guest_cid": 3, "uds_path": "v"}, "balloon": {"amount_mib": 1, "deflate_on_oom": true,
        "stats_polling_interval_s": 1, "free_page_hinting": true, "free_page_reporting": true},
        "mmds-config": {"version": "V2", "ipv4_address": "169.254.169.254", "network_interfaces": ["e"]}}"#,
    r#"{"boot-source": {"kernel_image_path": "k"}, "logger": {"log_path": "l", "level": "Info", "show_level": true,
        "show_log_origin": true}, "metrics": {"metrics_path": "m"}, "entropy": {"rate_limiter": null},
        "pmem": [{"id": "p", "path_on_host": "p", "root_device": false, "read_only": true}],
        "memory-hotplug": {"total_size_mib": 1024, "block_size_mib": 2, "slot_size_mib": 128},
        "serial": {"serial_out_path": "s"}, "cpu-config": "c"}"#,
];

const SPECIFICATIONS: &[&str] = &[
    r#"{"kernel": "k", "initrd": "i", "modules": [], "command_line": "c", "cpus": 3, "memory": 16777216,
        "backend": "soft", "processor": "interpreter", "cpu_template": "T2", "tag_bits": 4, "first_generation": 5,
        "verify": {"every_fault": 5}, "pci": true, "keyboard": true, "debug_exit": 244, "test_device": true,
        "serial_limit": {"size": 1000, "one_time_burst": 7, "refill_time_ms": 100}, "on_reset": "restart",
        "fw_cfg": [{"name": "opt/x", "content": {"text": "y"}}]}"#,
];

const DEVICES: &[&str] = &[
    r#"{"kind": "rng"}"#,
    r#"{"kind": "rng", "limits": {"bandwidth": {"size": 1000, "refill_time_ms": 100}}}"#,
    r#"{"kind": "blk", "path": "d", "read_only": true, "format": "qcow2", "backing": true, "cache": "unsafe",
        "engine": "threads", "limits": {"operations": {"size": 10, "one_time_burst": 1, "refill_time_ms": 100}}}"#,
    r#"{"kind": "net", "host": {"type": "user"}, "mac": "02:00:00:00:00:01", "mtu": 1400,
        "receive": {"bandwidth": {"size": 1, "refill_time_ms": 1}}, "metadata": {"data": {"a": [1, -0.5, null]},
        "version": 2, "address": "169.254.169.254"}}"#,
    r#"{"kind": "net", "host": {"type": "tap", "name": "tap0", "queues": 2}}"#,
    r#"{"kind": "net", "host": {"type": "vhost", "name": "tap0"}}"#,
    r#"{"kind": "vsock", "cid": 3, "path": "v"}"#,
    r#"{"kind": "vhost-user", "device": {"type": "block"}, "socket": "s", "queues": 1, "queue_size": 128}"#,
    r#"{"kind": "vhost-user", "device": {"type": "fs", "tag": "t"}, "socket": "s"}"#,
    r#"{"kind": "vhost-user", "device": {"type": "other", "id": 18, "config_len": 8}, "socket": "s"}"#,
    r#"{"kind": "vhost-vsock", "cid": 3}"#,
    r#"{"kind": "vdpa", "node": "n"}"#,
    r#"{"kind": "balloon", "size": 4096, "polling_ms": 1000}"#,
    r#"{"kind": "pmem", "path": "p", "read_only": true}"#,
    r#"{"kind": "mem", "max": 1073741824, "size": 2097152, "block": 2097152}"#,
    r#"{"kind": "console", "ports": [{"end": "console"}, {"name": "log", "end": {"file": "f"}},
        {"name": "s", "end": {"socket": "p"}}]}"#,
];

/// All of them, by name.
pub fn all() -> impl Iterator<Item = (String, Vec<u8>)> {
    let seed = |kind: u8, text: &str| {
        let refused = match kind {
            FIRECRACKER => ConfigFile::parse(text).err().map(|fault| fault.to_string()),
            _ => serde_json::from_str::<Spec>(text)
                .err()
                .map(|error| error.to_string()),
        };
        assert_eq!(refused, None, "{text}");
        [&[kind][..], text.as_bytes()].concat()
    };
    let files = FILES.iter().map(move |text| seed(FIRECRACKER, text));
    let whole = SPECIFICATIONS
        .iter()
        .map(move |text| seed(SPECIFICATION, text));
    let devices = DEVICES.iter().map(move |device| {
        let text = format!(r#"{{"kernel": "k", "virtio": [{{"id": "a", "device": {device}}}]}}"#);
        seed(SPECIFICATION, &text)
    });
    let inputs = files.chain(whole).chain(devices).enumerate();
    inputs.map(|(number, input)| (format!("file-{number}"), input))
}
