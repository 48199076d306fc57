//! An event as a line for people.

use serde_json::Value;

use crate::table::plain;

/// Writes an event: when, its number, its name, and what else it says.
pub fn event(event: &Value) -> String {
    let at = event["at_ms"].as_u64().unwrap_or_default();
    let number = event["number"].as_u64().unwrap_or_default();
    let name = event["event"].as_str().unwrap_or("?");
    let mut text = format!("{} {number:>6} {}", time(at), plain(name));
    let fields = event.as_object().into_iter().flatten();
    for (key, value) in fields.filter(|(key, _)| !matches!(&key[..], "at_ms" | "number" | "event"))
    {
        text.push_str(&format!(" {}={}", plain(key), said(value)));
    }
    text
}

/// Writes that events are no longer kept.
pub fn missed(count: u64) -> String {
    format!(
        "{:24} {:>6} missed: {count} events are no longer kept",
        "", "-"
    )
}

/// A value; one with blanks in quotes.
fn said(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=']) => plain(text),
        Value::Null => "-".into(),
        other => plain(&other.to_string()),
    }
}

/// Writes milliseconds since 1970 as UTC (ISO 8601).
pub fn time(ms: u64) -> String {
    let (seconds, rest) = (ms / 1000, ms % 1000);
    let (days, of_day) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{rest:03}Z")
}

/// The date of a day since 1970. Years are counted from March, so that the day that some of them have more is the last.
fn date(days: u64) -> (u64, u64, u64) {
    const OF_400_YEARS: u64 = 146_097;
    // From the first of March of the year 0.
    let days = days + 719_468;
    let (era, of_era) = (days / OF_400_YEARS, days % OF_400_YEARS);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_dates() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_001, "2000-02-29T00:00:00.001Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (1_709_251_200_000, "2024-03-01T00:00:00.000Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn an_event_is_a_line_with_its_fields() {
        let lost = json!({"event": "back_end_lost", "number": 12, "at_ms": 1, "id": "fs", "reason": "it\nhung up"});
        assert_eq!(
            event(&lost),
            "1970-01-01T00:00:00.001Z     12 back_end_lost id=fs reason=\"it\\nhung up\""
        );
        let changed = json!({"event": "link_changed", "number": 1, "at_ms": 0, "id": "\u{1b}[2J", "up": false});
        assert!(event(&changed).ends_with("link_changed id=?[2J up=false"));
    }
}
