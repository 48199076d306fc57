//! What is seen, as lines.

use super::rates::Rates;
use super::sample::{Sample, Seen};
use crate::table::Table;

/// A machine, as it is shown.
pub struct Row<'a> {
    /// Where its API is.
    pub socket: &'a str,
    /// What it was called when it was last seen, if it was.
    pub name: Option<&'a str>,
    /// How it is.
    pub sample: &'a Sample,
    /// What has happened since the last look.
    pub rates: Option<&'a Rates>,
}

/// Machines, and below them their devices.
pub fn lines(rows: &[Row]) -> Vec<String> {
    let mut machines = Table::new(&[
        "VM", "STATE", "BOOTS", "EXITS/S", "MMIO/S", "HITS/S", "STALE/S", "SOCKET",
    ]);
    let mut devices = Table::new(&[
        "VM",
        "DEVICE",
        "KIND",
        "TAKEN/S",
        "GIVEN/S",
        "OPS/S",
        "THROTTLED/S",
    ]);
    for row in rows {
        let (state, boots) = match &row.sample.seen {
            Seen::There(info, _) => (info.state.replace('_', " "), info.boots.to_string()),
            Seen::Gone => ("gone".into(), "-".into()),
            Seen::Silent => ("no answer".into(), "-".into()),
        };
        let rate = |pick: fn(&Rates) -> f64| {
            row.rates
                .map_or_else(|| "-".into(), |rates| amount(pick(rates)))
        };
        let label = label(row, rows);
        machines.row([
            label.clone(),
            state,
            boots,
            rate(|rates| rates.exits),
            rate(|rates| rates.mmio),
            rate(|rates| rates.hits),
            rate(|rates| rates.stale),
            row.socket.to_owned(),
        ]);
        for device in row.rates.map(|rates| &rates.devices).into_iter().flatten() {
            devices.row([
                label.clone(),
                device.id.clone(),
                device.kind.clone(),
                amount(device.taken),
                amount(device.given),
                amount(device.operations),
                amount(device.throttled),
            ]);
        }
    }
    let mut lines = machines.lines();
    if !devices.is_empty() {
        lines.push(String::new());
        lines.extend(devices.lines());
    }
    lines
}

/// A machine's name; its socket where that is not known, or another one has the same.
fn label(row: &Row, rows: &[Row]) -> String {
    let same = rows.iter().filter(|other| other.name == row.name).count();
    let name = row.name.filter(|_| same == 1);
    name.unwrap_or(row.socket).to_owned()
}

/// A number for people: three digits and a unit.
fn amount(number: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let (mut number, mut unit) = (number, 0);
    while number >= 999.5 && unit + 1 < UNITS.len() {
        number /= 1000.0;
        unit += 1;
    }
    match number {
        few if few < 9.95 && few.fract() > 0.0 => format!("{few:.1}{}", UNITS[unit]),
        many => format!("{many:.0}{}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::top::rates::DeviceRates;
    use crate::top::sample::Info;

    fn there(id: &str) -> Sample {
        let info = Info {
            id: id.into(),
            state: "not_started".into(),
            boots: 0,
        };
        Sample {
            at: Instant::now(),
            seen: Seen::There(info, None),
        }
    }

    #[test]
    fn numbers_are_short() {
        for (number, text) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (7.0, "7"),
            (42.4, "42"),
            (999.0, "999"),
            (999.6, "1.0k"),
            (1536.0, "1.5k"),
            (65_000_000.0, "65M"),
        ] {
            assert_eq!(amount(number), text);
        }
    }

    #[test]
    fn machines_are_told_apart_and_one_that_is_gone_stays_in_view() {
        let gone = Sample {
            at: Instant::now(),
            seen: Seen::Gone,
        };
        let (a, b) = (there("a"), there("b"));
        let rates = Rates {
            exits: 1500.0,
            devices: vec![DeviceRates {
                id: "d".into(),
                kind: "blk".into(),
                taken: 2e6,
                ..DeviceRates::default()
            }],
            ..Rates::default()
        };
        let row = |socket, name, sample, rates| Row {
            socket,
            name,
            sample,
            rates,
        };
        let shown = lines(&[
            row("/1", Some("a"), &a, Some(&rates)),
            row("/2", Some("b"), &b, None),
            row("/3", Some("b"), &gone, None),
        ]);
        assert_eq!(
            shown,
            [
                "VM  STATE        BOOTS  EXITS/S  MMIO/S  HITS/S  STALE/S  SOCKET",
                "a   not started      0     1.5k       0       0        0  /1",
                "/2  not started      0        -       -       -        -  /2",
                "/3  gone             -        -       -       -        -  /3",
                "",
                "VM  DEVICE  KIND  TAKEN/S  GIVEN/S  OPS/S  THROTTLED/S",
                "a   d       blk        2M        0      0            0",
            ]
        );
    }
}
