//! Network interfaces, as `--net` has them.

use std::net::Ipv4Addr;

use umbra_vmm::{
    Limits, Mac, MacError, Metadata, MetadataConfig, MetadataVersion, NetHost, NetMetadata,
    NetSpec, VirtioKind, VirtioSpec,
};

use super::limit;
use super::list::{number, pairs, set};

/// What one `--net` says. Without a name the interface gets one by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net {
    id: Option<String>,
    spec: NetSpec,
}

impl Net {
    /// Makes the device of interface `number`.
    pub fn device(&self, number: usize) -> VirtioSpec {
        VirtioSpec {
            id: self.id.clone().unwrap_or_else(|| format!("net{number}")),
            kind: VirtioKind::Net(self.spec.clone()),
        }
    }
}

/// Reads `user[,tcp=SPEC][,udp=SPEC][,passt=FILE]`, `tap=NAME[,queues=N][,vhost]` or `socket=PATH`, each with
/// `[,mac=ADDRESS][,mtu=N][,id=NAME]`, `[,metadata=FILE[,metadata-version=N][,metadata-address=ADDRESS][,metadata-text]]`
/// and limits (`rx-bandwidth=`, `rx-ops=`, `tx-bandwidth=`, `tx-ops=`). Two commas stand for one.
pub fn parse(text: &str) -> Result<Net, String> {
    let refused = |why: String| {
        format!(
            "{why}; write it like user, tap=NAME (then queues=, vhost) or socket=PATH, then mac=, mtu=, id=, \
             metadata= (then metadata-version=, metadata-address=, metadata-text), rx-bandwidth=, rx-ops=, tx-bandwidth=, tx-ops="
        )
    };
    read(pairs(text)).map_err(refused)
}

fn read(parts: Vec<(String, String)>) -> Result<Net, String> {
    let (mut id, mut mac, mut mtu, mut queues, mut passt) = (None, None, None, None, None);
    let (mut host, mut arguments, mut vhost) = (None, Vec::new(), None);
    let (mut receive, mut transmit) = (Limits::default(), Limits::default());
    let mut metadata = MetadataArgument::default();
    for (key, value) in parts {
        match &*key {
            "" if value == "user" => set(&mut host, "user", NetHost::user())?,
            "" => return Err(format!("{value:?} is no kind of network")),
            "tap" => {
                let tap = NetHost::Tap {
                    name: value,
                    queues: 1,
                };
                set(&mut host, "tap", tap)?;
            }
            "socket" => {
                let path = value.into();
                set(&mut host, "socket", NetHost::Stream { path })?;
            }
            "vhost" if value.is_empty() => set(&mut vhost, "vhost", ())?,
            "tcp" => arguments.extend(["-t".to_owned(), value]),
            "udp" => arguments.extend(["-u".to_owned(), value]),
            "passt" => set(&mut passt, "passt", value)?,
            "queues" => set(&mut queues, "queues", number("queues", &value)?)?,
            "mtu" => set(&mut mtu, "mtu", number("mtu", &value)?)?,
            "mac" => {
                let read = value.parse::<Mac>();
                let read = read.map_err(|error: MacError| error.to_string())?;
                set(&mut mac, "mac", read)?;
            }
            "id" => set(&mut id, "id", value)?,
            _ if metadata.read(&key, &value)? => {}
            _ if limit::read(&mut receive, "rx-", &key, &value)? => {}
            _ if limit::read(&mut transmit, "tx-", &key, &value)? => {}
            _ => return Err(format!("{key:?} is unknown")),
        }
    }
    if vhost.is_some() && !matches!(host, None | Some(NetHost::Tap { .. })) {
        return Err("vhost is for tap".to_owned());
    }
    let host = match (host, queues, passt) {
        (None, ..) => return Err("where frames go is not said".to_owned()),
        (Some(NetHost::Tap { name, .. }), queues, None) if arguments.is_empty() => {
            let queues = queues.unwrap_or(1);
            match vhost {
                Some(()) => NetHost::Vhost { name, queues },
                None => NetHost::Tap { name, queues },
            }
        }
        (Some(NetHost::User { passt, .. }), None, other) => NetHost::User {
            passt: other.map_or(passt, Into::into),
            arguments,
        },
        (Some(stream @ NetHost::Stream { .. }), None, None) if arguments.is_empty() => stream,
        _ => return Err("queues= is for tap, and tcp=, udp=, passt= are for user".to_owned()),
    };
    let spec = NetSpec {
        host,
        mac,
        mtu,
        receive,
        transmit,
        metadata: metadata.service()?,
    };
    Ok(Net { id, spec })
}

/// What is said of the metadata service.
#[derive(Default)]
struct MetadataArgument {
    data: Option<Metadata>,
    version: Option<MetadataVersion>,
    address: Option<Ipv4Addr>,
    text: Option<()>,
}

impl MetadataArgument {
    /// Takes a part that is about it; tells whether it was.
    fn read(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "metadata" => set(&mut self.data, key, read_metadata(value)?)?,
            "metadata-version" => {
                let read = match value {
                    "1" => MetadataVersion::V1,
                    "2" => MetadataVersion::V2,
                    _ => return Err(format!("metadata-version={value}: it is 1 or 2")),
                };
                set(&mut self.version, key, read)?;
            }
            "metadata-address" => {
                let read = value.parse();
                let read =
                    read.map_err(|_| format!("{key}={value}: it is like 169.254.169.254"))?;
                set(&mut self.address, key, read)?;
            }
            "metadata-text" if value.is_empty() => set(&mut self.text, key, ())?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn service(self) -> Result<Option<NetMetadata>, String> {
        let said = self.version.is_some() || self.address.is_some() || self.text.is_some();
        let Some(data) = self.data else {
            return match said {
                true => Err(
                    "metadata-version=, metadata-address= and metadata-text are for metadata="
                        .to_owned(),
                ),
                false => Ok(None),
            };
        };
        let config = MetadataConfig {
            version: self.version.unwrap_or_default(),
            address: self.address.unwrap_or(MetadataConfig::ADDRESS),
            imds_compat: self.text.is_some(),
        };
        Ok(Some(NetMetadata { data, config }))
    }
}

/// Reads what a guest shall find.
fn read_metadata(path: &str) -> Result<Metadata, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
    let value =
        serde_json::from_str(&text).map_err(|error| format!("{path} is no JSON: {error}"))?;
    let data = Metadata::new(MetadataConfig::LIMIT);
    data.put(value)
        .map_err(|error| format!("{path}: {error}"))?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(host: NetHost) -> Net {
        Net {
            id: None,
            spec: NetSpec::new(host),
        }
    }

    fn tap(queues: usize) -> NetHost {
        NetHost::Tap {
            name: "t0".into(),
            queues,
        }
    }

    fn vhost(queues: usize) -> NetHost {
        NetHost::Vhost {
            name: "t0".into(),
            queues,
        }
    }

    #[test]
    fn interfaces_are_read() {
        let user = |passt: &str, arguments: &[&str]| NetHost::User {
            passt: passt.into(),
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
        };
        let table = [
            ("user", net(user("passt", &[]))),
            ("tap=t0", net(tap(1))),
            ("queues=4,tap=t0", net(tap(4))),
            ("tap=t0,vhost", net(vhost(1))),
            ("tap=t0,queues=2,vhost", net(vhost(2))),
            (
                "user,tcp=8022:22,udp=53,passt=/bin/p",
                net(user("/bin/p", &["-t", "8022:22", "-u", "53"])),
            ),
            (
                "socket=/a,,b",
                net(NetHost::Stream {
                    path: "/a,b".into(),
                }),
            ),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        let all = parse("tap=t0,mac=52:54:00:00:00:07,mtu=9000,id=lan").unwrap();
        let mac = Some(Mac([0x52, 0x54, 0, 0, 0, 7]));
        assert_eq!((all.spec.mac, all.spec.mtu), (mac, Some(9000)));
        assert_eq!(all.device(3).id, "lan");
        assert_eq!(parse("user").unwrap().device(3).id, "net3");
        let limited = parse("user,rx-bandwidth=1M,rx-ops=5,tx-ops=9")
            .unwrap()
            .spec;
        let sizes = |limits: Limits| {
            [limits.bandwidth, limits.operations].map(|bucket| bucket.map(|bucket| bucket.size))
        };
        assert_eq!(sizes(limited.receive), [Some(1 << 20), Some(5)]);
        assert_eq!(sizes(limited.transmit), [None, Some(9)]);
    }

    #[test]
    fn metadata_is_read_from_its_file() {
        let place = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = place.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let good = file("good", r#"{"a": 1}"#);
        let read = parse(&format!("user,metadata={good}")).unwrap();
        let service = read.spec.metadata.unwrap();
        assert_eq!(service.config, MetadataConfig::default());
        assert_eq!(service.data.get(), serde_json::json!({"a": 1}));
        let read = parse(&format!(
            "user,metadata={good},metadata-version=2,metadata-address=169.254.7.7,metadata-text"
        ));
        let expected = MetadataConfig {
            version: MetadataVersion::V2,
            address: Ipv4Addr::new(169, 254, 7, 7),
            imds_compat: true,
        };
        assert_eq!(read.unwrap().spec.metadata.unwrap().config, expected);
        let large = format!(r#"{{"a": "{}"}}"#, "x".repeat(MetadataConfig::LIMIT));
        for (name, text, why) in [
            ("list", "[]", "this is an array"),
            ("half", "{", "is no JSON"),
            ("large", &large, "more than 51200"),
        ] {
            let refused = parse(&format!("user,metadata={}", file(name, text))).unwrap_err();
            assert!(refused.contains(why), "{name}: {refused}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let table = [
            ("", "\"\" is no kind"),
            ("usr", "\"usr\""),
            ("mtu=9000", "not said"),
            ("user,user=x", "\"user\" is unknown"),
            ("user,tap=t0", "\"tap\" is one too many"),
            ("tap=t0,tcp=1", "are for user"),
            ("user,queues=2", "is for tap"),
            ("user,vhost", "vhost is for tap"),
            ("socket=/a,vhost", "vhost is for tap"),
            ("mtu=9000,vhost", "not said"),
            ("vhost", "\"vhost\" is no kind"),
            ("tap=t0,vhost=on", "\"vhost\" is unknown"),
            ("tap=t0,vhost,vhost", "\"vhost\" is one too many"),
            ("tap=t0,mtu=70000", "mtu=\"70000\""),
            ("tap=t0,mac=1:2", "52:54:00"),
            ("tap=t0,x", "\"x\" is unknown"),
            ("user,ops=5", "\"ops\" is unknown"),
            ("user,tx-bandwidth=0", "limits nothing"),
            ("user,metadata=/none", "cannot read /none"),
            ("user,metadata-version=2", "are for metadata="),
            ("user,metadata-text", "are for metadata="),
            ("user,metadata-text=yes", "\"metadata-text\" is unknown"),
            ("user,metadata-version=3", "it is 1 or 2"),
            ("user,metadata-address=here", "it is like 169.254"),
        ];
        for (text, why) in table {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
