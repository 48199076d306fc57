//! What happened between two looks, by the second.

use super::sample::{Device, Inside, Sample, Seen};
use crate::counters::{Counters, exits, mmio, sum};

/// Of a machine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rates {
    /// How often its processors left the guest.
    pub exits: f64,
    /// How often they reached for a device's registers.
    pub mmio: f64,
    /// How often the MMU knew that it is a device.
    pub hits: f64,
    /// How often what it knew was of an older map.
    pub stale: f64,
    /// Of its devices.
    pub devices: Vec<DeviceRates>,
}

/// Of a device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceRates {
    /// Its name.
    pub id: String,
    /// What it is.
    pub kind: String,
    /// Bytes that the guest got.
    pub taken: f64,
    /// Bytes that it gave.
    pub given: f64,
    /// Requests, or frames.
    pub operations: f64,
    /// How often a limit held something back.
    pub throttled: f64,
}

/// Compares two looks. There is nothing to compare if the machine was not there both times, or has begun anew.
pub fn between(before: &Sample, after: &Sample) -> Option<Rates> {
    let (Seen::There(first, Some(from)), Seen::There(then, Some(to))) = (&before.seen, &after.seen)
    else {
        return None;
    };
    let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
    if first.boots != then.boots || seconds == 0.0 {
        return None;
    }
    let processors = |inside: &Inside, count: fn(&Counters) -> u64| -> u64 {
        inside.cpus.iter().map(|cpu| count(&cpu.counters)).sum()
    };
    let mmu = |inside: &Inside, names: &[&str]| sum(&inside.mmu, names);
    const HITS: [&str; 2] = ["mmio_hits", "mmio_record_hits"];
    let devices = to.devices.iter().map(|device| {
        // One that came meanwhile has counted from nothing.
        let none = Device::default();
        let same = |other: &&Device| other.id == device.id && other.kind == device.kind;
        let before = from.devices.iter().find(same).unwrap_or(&none);
        device_rates(before, device, seconds)
    });
    Some(Rates {
        exits: rate(processors(from, exits), processors(to, exits), seconds),
        mmio: rate(processors(from, mmio), processors(to, mmio), seconds),
        hits: rate(mmu(from, &HITS), mmu(to, &HITS), seconds),
        stale: rate(
            mmu(from, &["mmio_stale"]),
            mmu(to, &["mmio_stale"]),
            seconds,
        ),
        devices: devices.collect(),
    })
}

fn device_rates(before: &Device, after: &Device, seconds: f64) -> DeviceRates {
    let of = |names: &[&str]| {
        rate(
            sum(&before.counters, names),
            sum(&after.counters, names),
            seconds,
        )
    };
    DeviceRates {
        id: after.id.clone(),
        kind: after.kind.clone(),
        taken: of(&["read_bytes", "received_bytes"]),
        given: of(&["written_bytes", "sent_bytes"]),
        operations: of(&[
            "reads",
            "writes",
            "flushes",
            "discards",
            "zero_writes",
            "received_frames",
            "sent_frames",
        ]),
        throttled: of(&["throttled", "throttled_in", "throttled_out"]),
    }
}

/// A counter that goes back is another one: of a device that came in the place of one that went.
fn rate(before: u64, after: u64, seconds: f64) -> f64 {
    after.saturating_sub(before) as f64 / seconds
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::top::sample::{Cpu, Info};

    fn counters(all: &[(&str, u64)]) -> Counters {
        all.iter()
            .map(|(name, count)| ((*name).to_owned(), *count))
            .collect()
    }

    fn sample(at: Instant, boots: u64, times: u64) -> Sample {
        let info = Info {
            id: "a".into(),
            state: "running".into(),
            boots,
        };
        let cpu = |mmio, ports| Cpu {
            counters: counters(&[
                ("device_accesses", mmio),
                ("port_accesses", ports),
                ("instructions", 1000),
            ]),
        };
        let device = |id: &str, all: &[(&str, u64)]| Device {
            id: id.into(),
            kind: "blk".into(),
            counters: counters(all),
        };
        let inside = Inside {
            mmu: counters(&[
                ("mmio_hits", 5 * times),
                ("mmio_record_hits", 15 * times),
                ("mmio_stale", times),
            ]),
            cpus: vec![cpu(10 * times, 2 * times), cpu(10 * times, 0)],
            devices: vec![
                device(
                    "d",
                    &[
                        ("reads", times),
                        ("read_bytes", 512 * times),
                        ("writes", times),
                        ("throttled", 3),
                    ],
                ),
                device("n", &[("sent_bytes", 100 * times), ("sent_frames", times)]),
            ],
        };
        Sample {
            at,
            seen: Seen::There(info, Some(inside)),
        }
    }

    #[test]
    fn rates_are_differences_over_the_time_that_passed() {
        let now = Instant::now();
        let then = now + Duration::from_millis(500);
        let rates = between(&sample(now, 1, 10), &sample(then, 1, 20)).unwrap();
        assert_eq!(
            (rates.exits, rates.mmio, rates.hits, rates.stale),
            (440.0, 400.0, 400.0, 20.0)
        );
        let [disk, net] = &rates.devices[..] else {
            panic!("{rates:?}");
        };
        assert_eq!(
            (disk.taken, disk.operations, disk.throttled),
            (10240.0, 40.0, 0.0)
        );
        assert_eq!((net.given, net.operations), (2000.0, 20.0));
    }

    #[test]
    fn what_cannot_be_compared_is_not() {
        let now = Instant::now();
        let then = now + Duration::from_secs(1);
        let gone = |at| Sample {
            at,
            seen: Seen::Gone,
        };
        for (before, after) in [
            (sample(now, 1, 10), sample(then, 2, 20)),
            (gone(now), sample(then, 1, 20)),
            (sample(now, 1, 10), gone(then)),
            (sample(now, 1, 10), sample(now, 1, 20)),
        ] {
            assert_eq!(between(&before, &after), None);
        }
        // A device in the place of another one.
        let back = between(&sample(now, 1, 10), &sample(then, 1, 5)).unwrap();
        assert_eq!(back.devices[0].taken, 0.0);
    }
}
