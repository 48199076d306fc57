//! Virtio consoles and ports, as `--console` has them.

use umbra_vmm::{ConsoleSpec, PortEnd, PortSpec, VirtioKind, VirtioSpec};

use super::list::{pairs, set};

/// Makes the devices: one for consoles, whose first port is the one that a driver without control messages
/// has, and one for ports with names.
pub fn devices(ports: &[PortSpec]) -> impl Iterator<Item = VirtioSpec> {
    let (consoles, named): (Vec<_>, Vec<_>) =
        ports.iter().cloned().partition(|port| port.name.is_none());
    [("console", consoles), ("ports", named)]
        .into_iter()
        .filter(|(_, ports)| !ports.is_empty())
        .map(|(id, ports)| VirtioSpec {
            id: id.into(),
            kind: VirtioKind::Console(ConsoleSpec { ports }),
        })
}

/// Reads `stdio`, `socket=PATH` or `file=PATH`, each with `[,name=NAME]`. Two commas stand for one.
pub fn parse(text: &str) -> Result<PortSpec, String> {
    read(text).map_err(|why| {
        format!("{why}; write it like stdio, socket=PATH or file=PATH, then name=NAME for a port")
    })
}

fn read(text: &str) -> Result<PortSpec, String> {
    let (mut end, mut name) = (None, None);
    for (key, value) in pairs(text) {
        match &*key {
            "" if value == "stdio" => set(&mut end, "stdio", PortEnd::Console)?,
            "" => return Err(format!("{value:?} is no end of a console")),
            "socket" | "file" if value.is_empty() => return Err(format!("{key}= needs a path")),
            "socket" => set(&mut end, &key, PortEnd::Socket(value.into()))?,
            "file" => set(&mut end, &key, PortEnd::File(value.into()))?,
            "name" => set(&mut name, &key, value)?,
            _ => return Err(format!("{key:?} is unknown")),
        }
    }
    let end = end.ok_or("the host's end is not said")?;
    Ok(PortSpec { name, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let port = |name: Option<&str>, end| PortSpec {
            name: name.map(str::to_owned),
            end,
        };
        let table = [
            ("stdio", port(None, PortEnd::Console)),
            ("socket=/a,,b", port(None, PortEnd::Socket("/a,b".into()))),
            (
                "name=x,file=log",
                port(Some("x"), PortEnd::File("log".into())),
            ),
            ("stdio,name=y", port(Some("y"), PortEnd::Console)),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn consoles_and_ports_with_names_are_two_devices() {
        let made = |texts: &[&str]| {
            let ports: Vec<_> = texts.iter().map(|text| parse(text).unwrap()).collect();
            let counts = devices(&ports).map(|device| match device.kind {
                VirtioKind::Console(console) => (device.id, console.ports.len()),
                other => panic!("{other:?}"),
            });
            counts.collect::<Vec<_>>()
        };
        assert_eq!(made(&[]), []);
        assert_eq!(made(&["stdio"]), [("console".into(), 1)]);
        let both = made(&["file=a,name=a", "stdio", "file=b,name=b"]);
        assert_eq!(both, [("console".into(), 1), ("ports".into(), 2)]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let table = [
            ("", "\"\" is no end"),
            ("name=x", "not said"),
            ("stdio,file=x", "\"file\" is one too many"),
            ("socket=", "socket= needs a path"),
            ("stdio,colour=red", "\"colour\" is unknown"),
        ];
        for (text, why) in table {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
