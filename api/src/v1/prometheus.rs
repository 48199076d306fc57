//! Counters as Prometheus reads them (text format 0.0.4).

use std::fmt::Write;

use umbra_vmm::Inspection;

use super::types::{VmInfo, VmState};

/// Where they are.
pub const PATH: &str = "/metrics/prometheus";
/// The type of the text.
pub const MEDIA: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What goes up and down; everything else only goes up.
const GAUGES: [&str; 9] = [
    "bytes_of_code_kept",
    "chained_of_10000_transfers",
    "pages",
    "unsettled",
    "target_bytes",
    "actual_bytes",
    "requested_bytes",
    "plugged_bytes",
    "back_end_connected",
];

/// Labels of a sample, `a="b"`.
type Labels = String;

/// Samples of one name.
struct Family {
    name: String,
    kind: &'static str,
    help: String,
    samples: Vec<(Labels, u64)>,
}

/// Families in the making: each has its samples together.
#[derive(Default)]
struct Page {
    families: Vec<Family>,
}

impl Page {
    fn add(&mut self, name: &str, kind: &'static str, help: &str, labels: Labels, value: u64) {
        let sample = (labels, value);
        let mut families = self.families.iter_mut();
        match families.find(|family| family.name == name) {
            Some(family) => family.samples.push(sample),
            None => self.families.push(Family {
                name: name.to_owned(),
                kind,
                help: help.to_owned(),
                samples: vec![sample],
            }),
        }
    }

    /// Adds something that was counted under a name of its own.
    fn count(&mut self, area: &str, name: &str, labels: Labels, value: u64) {
        let help = format!("{area}: {}", name.replace('_', " "));
        match GAUGES.contains(&name) {
            true => self.add(
                &format!("umbra_{area}_{name}"),
                "gauge",
                &help,
                labels,
                value,
            ),
            false => {
                let full = format!("umbra_{area}_{name}_total");
                self.add(&full, "counter", &help, labels, value);
            }
        }
    }

    fn text(self) -> String {
        let mut text = String::new();
        for family in self.families {
            let Family {
                name,
                kind,
                help,
                samples,
            } = family;
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = match labels.is_empty() {
                    true => writeln!(text, "{name} {value}"),
                    false => writeln!(text, "{name}{{{labels}}} {value}"),
                };
            }
        }
        text
    }
}

/// A label, its value quoted.
fn label(name: &str, value: &str) -> Labels {
    let value = value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

/// Writes everything down; what is inside only while there is a guest.
pub fn text(info: &VmInfo, inside: Option<&Inspection>) -> String {
    let mut page = Page::default();
    let states = [
        (VmState::NotStarted, "not_started"),
        (VmState::Running, "running"),
        (VmState::Paused, "paused"),
        (VmState::Ended, "ended"),
    ];
    for (state, name) in states {
        let help = "Where the machine is in its life: 1 for its state.";
        let labels = format!("{},{}", label("id", &info.id), label("state", name));
        let value = u64::from(state == info.state);
        page.add("umbra_vm_state", "gauge", help, labels, value);
    }
    let help = "How often the guest has begun.";
    page.add(
        "umbra_vm_boots_total",
        "counter",
        help,
        Labels::new(),
        info.boots,
    );
    let Some(inside) = inside else {
        return page.text();
    };
    let help = "The number of the guest-physical map.";
    let generation = inside.generation;
    page.add(
        "umbra_map_generation",
        "counter",
        help,
        Labels::new(),
        generation,
    );
    let help = "Slots of the guest-physical map.";
    let is_ram = |entry: &&umbra_vmm::MapEntry| matches!(entry, umbra_vmm::MapEntry::Ram { .. });
    let ram = inside.map.iter().filter(is_ram).count();
    for (kind, count) in [("ram", ram), ("window", inside.map.len() - ram)] {
        page.add(
            "umbra_map_slots",
            "gauge",
            help,
            label("kind", kind),
            count as u64,
        );
    }
    for (name, value) in &inside.machine {
        page.count("machine", name, Labels::new(), *value);
    }
    for (name, value) in &inside.mmu {
        page.count("mmu", name, Labels::new(), *value);
    }
    for cpu in &inside.cpus {
        for (name, value) in &cpu.counters {
            page.count("cpu", name, label("cpu", &cpu.cpu.to_string()), *value);
        }
    }
    for device in &inside.devices {
        let labels = format!(
            "{},{}",
            label("id", &device.id),
            label("kind", &device.kind)
        );
        let help = "The guest's driver has started the device.";
        let in_use = u64::from(device.in_use);
        page.add("umbra_device_in_use", "gauge", help, labels.clone(), in_use);
        for (name, value) in &device.counters {
            page.count("device", name, labels.clone(), *value);
        }
    }
    page.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_their_samples_together_and_labels_are_quoted() {
        let mut page = Page::default();
        page.count("cpu", "halts", label("cpu", "0"), 1);
        page.count("device", "actual_bytes", label("id", "a\"\\\n"), 2);
        page.count("cpu", "halts", label("cpu", "1"), 3);
        let expected = "# HELP umbra_cpu_halts_total cpu: halts\n# TYPE umbra_cpu_halts_total counter\n\
                        umbra_cpu_halts_total{cpu=\"0\"} 1\numbra_cpu_halts_total{cpu=\"1\"} 3\n\
                        # HELP umbra_device_actual_bytes device: actual bytes\n\
                        # TYPE umbra_device_actual_bytes gauge\n\
                        umbra_device_actual_bytes{id=\"a\\\"\\\\\\n\"} 2\n";
        assert_eq!(page.text(), expected);
    }
}
