//! Counters on the way out: a line of JSON each time (`docs/api.md` lists them). Names are those of Firecracker where
//! something of the same meaning is counted; what is not counted here is left out.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use umbra_vmm::{DiskStatistics, Handle, NetStatistics};

use super::config::BALLOON_ID;
use super::fault::Fault;
use super::resources::metrics::MetricsConfig;

/// Where they go.
pub struct Metrics {
    file: File,
    /// What each line says besides.
    about: Map<String, Value>,
}

impl Metrics {
    /// Opens the file or pipe of a machine named `id`.
    pub fn open(id: &str, config: MetricsConfig) -> Result<Self, Fault> {
        // A pipe that nobody reads must not stop the machine.
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
            .open(&config.metrics_path)
            .map_err(|error| {
                Fault::Metrics(format!(
                    "Cannot initialize the metrics system due to bad user input: {}: {error}",
                    config.metrics_path.display()
                ))
            })?;
        let mut about = Map::new();
        if config.emit_id {
            about.insert("id".into(), id.into());
        }
        if let Some(properties) = config.properties {
            about.insert("properties".into(), Value::Object(properties));
        }
        Ok(Self { file, about })
    }

    /// Writes a line; of the devices of a machine that runs, if there is one.
    pub fn write(&mut self, handle: Option<&Handle>) -> Result<(), Fault> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut all = Map::new();
        all.insert("utc_timestamp_ms".into(), (now.as_millis() as u64).into());
        all.extend(self.about.clone());
        if let Some(handle) = handle {
            devices(handle, &mut all);
        }
        let mut line = Value::Object(all).to_string();
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|error| {
            Fault::Metrics(format!("Could not write to the metrics file: {error}"))
        })
    }
}

/// Counters of each device, and of all of a kind.
fn devices(handle: &Handle, all: &mut Map<String, Value>) {
    let (mut disks, mut nets) = (DiskStatistics::default(), NetStatistics::default());
    for device in handle.devices() {
        if let (Some(id), Some(disk)) = (device.id.strip_prefix("drive-"), handle.disk(&device.id))
        {
            let own = disk.statistics();
            disks = sum_disks(disks, own);
            all.insert(format!("block_{id}"), disk_counters(&own));
        }
        if let (Some(id), Some(net)) = (device.id.strip_prefix("net-"), handle.network(&device.id))
        {
            let own = net.statistics();
            nets = sum_nets(nets, own);
            all.insert(format!("net_{id}"), net_counters(&own));
        }
    }
    all.insert("block".into(), disk_counters(&disks));
    all.insert("net".into(), net_counters(&nets));
    if let Some(balloon) = handle.balloon(BALLOON_ID) {
        let own = balloon.counters();
        let counters = json!({
            "inflate_bytes": own.inflated,
            "deflate_bytes": own.deflated,
            "free_page_report_bytes": own.reported,
            "free_page_hint_bytes": own.hinted,
            "freed_bytes": own.freed,
        });
        all.insert("balloon".into(), counters);
    }
}

fn disk_counters(disk: &DiskStatistics) -> Value {
    json!({
        "read_bytes": disk.read_bytes,
        "write_bytes": disk.written_bytes,
        "read_count": disk.reads,
        "write_count": disk.writes,
        "flush_count": disk.flushes,
        "invalid_reqs_count": disk.refused,
        "execute_fails": disk.errors,
        "rate_limiter_throttled_events": disk.throttled,
    })
}

fn net_counters(net: &NetStatistics) -> Value {
    json!({
        "rx_bytes_count": net.received_bytes,
        "rx_packets_count": net.received_frames,
        "rx_fails": net.dropped_in,
        "rx_rate_limiter_throttled": net.throttled_in,
        "tx_bytes_count": net.sent_bytes,
        "tx_packets_count": net.sent_frames,
        "tx_fails": net.dropped_out,
        "tx_rate_limiter_throttled": net.throttled_out,
    })
}

fn sum_disks(a: DiskStatistics, b: DiskStatistics) -> DiskStatistics {
    DiskStatistics {
        reads: a.reads + b.reads,
        read_bytes: a.read_bytes + b.read_bytes,
        writes: a.writes + b.writes,
        written_bytes: a.written_bytes + b.written_bytes,
        flushes: a.flushes + b.flushes,
        discards: a.discards + b.discards,
        zero_writes: a.zero_writes + b.zero_writes,
        refused: a.refused + b.refused,
        errors: a.errors + b.errors,
        throttled: a.throttled + b.throttled,
    }
}

fn sum_nets(a: NetStatistics, b: NetStatistics) -> NetStatistics {
    NetStatistics {
        received_frames: a.received_frames + b.received_frames,
        received_bytes: a.received_bytes + b.received_bytes,
        sent_frames: a.sent_frames + b.sent_frames,
        sent_bytes: a.sent_bytes + b.sent_bytes,
        dropped_in: a.dropped_in + b.dropped_in,
        dropped_out: a.dropped_out + b.dropped_out,
        throttled_in: a.throttled_in + b.throttled_in,
        throttled_out: a.throttled_out + b.throttled_out,
    }
}
