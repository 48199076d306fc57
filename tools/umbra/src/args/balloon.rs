//! The balloon, as `--balloon` has it.

use umbra_vmm::{BalloonSpec, VirtioKind, VirtioSpec};

use super::list::{pairs, set, switch};
use crate::size;

/// What `--balloon` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balloon {
    id: Option<String>,
    spec: BalloonSpec,
}

impl Balloon {
    /// Makes the device.
    pub fn device(&self) -> VirtioSpec {
        VirtioSpec {
            id: self.id.clone().unwrap_or_else(|| "balloon".into()),
            kind: VirtioKind::Balloon(self.spec),
        }
    }
}

/// Reads `[size=SIZE][,deflate-on-oom=on|off][,free-page-reporting=on|off][,id=NAME]`, or nothing.
pub fn parse(text: &str) -> Result<Balloon, String> {
    read(text).map_err(|why| {
        format!("{why}; write it like size=128M,deflate-on-oom=on,free-page-reporting=off")
    })
}

fn read(text: &str) -> Result<Balloon, String> {
    let (mut id, mut lent, mut deflate, mut report) = (None, None, None, None);
    for (key, value) in pairs(text) {
        match &*key {
            "" if value.is_empty() && text.is_empty() => {}
            "" => return Err(format!("{value:?} is no KEY=VALUE")),
            "size" => set(&mut lent, "size", size::parse(&value)?)?,
            "deflate-on-oom" => set(&mut deflate, &key, switch(&key, &value)?)?,
            "free-page-reporting" => set(&mut report, &key, switch(&key, &value)?)?,
            "id" => set(&mut id, "id", value)?,
            _ => return Err(format!("{key:?} is unknown")),
        }
    }
    let default = BalloonSpec::default();
    let spec = BalloonSpec {
        size: lent.unwrap_or(default.size),
        deflate_on_oom: deflate.unwrap_or(default.deflate_on_oom),
        free_page_reporting: report.unwrap_or(default.free_page_reporting),
        ..default
    };
    Ok(Balloon { id, spec })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balloon_is_read_and_has_a_name() {
        let spec = |size, deflate_on_oom, free_page_reporting| BalloonSpec {
            size,
            deflate_on_oom,
            free_page_reporting,
            ..BalloonSpec::default()
        };
        let table = [
            ("", spec(0, true, true)),
            ("size=128M", spec(128 << 20, true, true)),
            ("free-page-reporting=off", spec(0, true, false)),
            (
                "deflate-on-oom=off,size=1G,free-page-reporting=on",
                spec(1 << 30, false, true),
            ),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text).map(|b| b.spec), Ok(expected), "{text}");
        }
        assert_eq!(parse("").unwrap().device().id, "balloon");
        assert_eq!(parse("id=b").unwrap().device().id, "b");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let table = [
            ("128M", "\"128M\" is no KEY=VALUE"),
            ("size=lots", "\"lots\" is no size"),
            ("size=1M,size=2M", "\"size\" is one too many"),
            (
                "deflate-on-oom=yes",
                "deflate-on-oom=\"yes\" is neither on nor off",
            ),
            ("size=1M,deflate-on-oom", "neither on nor off"),
            ("colour=red", "\"colour\" is unknown"),
            (",size=1M", "\"\" is no KEY=VALUE"),
        ];
        for (text, why) in table {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
