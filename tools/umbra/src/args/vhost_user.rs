//! Devices of back ends, as `--vhost-user` has them.

use umbra_vmm::{Mac, MacError, VhostKind, VhostUserSpec, VirtioKind, VirtioSpec};

use super::list::{number, pairs, set};

/// What one `--vhost-user` says. Without a name the device gets one by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUser {
    id: Option<String>,
    spec: VhostUserSpec,
}

impl VhostUser {
    /// Makes device `number`.
    pub fn device(&self, number: usize) -> VirtioSpec {
        let id = self.id.clone();
        VirtioSpec {
            id: id.unwrap_or_else(|| format!("vhost{number}")),
            kind: VirtioKind::VhostUser(self.spec.clone()),
        }
    }
}

/// Reads `KIND,socket=PATH[,queues=N][,queue-size=N][,id=NAME]`, where KIND is `block`, `fs[,tag=NAME]`,
/// `net[,mac=ADDRESS]`, `vsock` or `device=TYPE[,config=BYTES]`. Two commas stand for one.
pub fn parse(text: &str) -> Result<VhostUser, String> {
    let refused = |why: String| {
        format!(
            "{why}; write it like block,socket=PATH; there are block, fs (with tag=), net (with mac=), \
             vsock, device=TYPE (with config=BYTES), each with socket=, queues=, queue-size=, id="
        )
    };
    read(pairs(text)).map_err(refused)
}

fn read(parts: Vec<(String, String)>) -> Result<VhostUser, String> {
    let (mut id, mut socket, mut queues, mut queue_size) = (None, None, None, None);
    let (mut kind, mut tag, mut mac, mut config) = (None, None, None, None);
    for (key, value) in parts {
        match &*key {
            "" => set(&mut kind, &value, plain_kind(&value)?)?,
            "device" => {
                let other = VhostKind::Other {
                    id: number("device", &value)?,
                    config_len: 0,
                };
                set(&mut kind, "device", other)?;
            }
            "socket" => set(&mut socket, "socket", value)?,
            "queues" => set(&mut queues, "queues", number("queues", &value)?)?,
            "queue-size" => set(&mut queue_size, "queue-size", number("queue-size", &value)?)?,
            "tag" => set(&mut tag, "tag", value)?,
            "config" => set(&mut config, "config", number("config", &value)?)?,
            "mac" => {
                let read = value.parse::<Mac>();
                let read = read.map_err(|error: MacError| error.to_string())?;
                set(&mut mac, "mac", read)?;
            }
            "id" => set(&mut id, "id", value)?,
            _ => return Err(format!("{key:?} is unknown")),
        }
    }
    let kind = match (kind, tag, mac, config) {
        (None, ..) => return Err("what device it is is not said".to_owned()),
        (Some(VhostKind::Fs { .. }), tag, None, None) => VhostKind::Fs { tag },
        (Some(VhostKind::Net { .. }), None, mac, None) => VhostKind::Net {
            mac: mac.unwrap_or_else(Mac::random).0,
        },
        (Some(VhostKind::Other { id, .. }), None, None, config) => VhostKind::Other {
            id,
            config_len: config.unwrap_or(0),
        },
        (Some(kind), None, None, None) => kind,
        _ => return Err("tag= is for fs, mac= for net, and config= for device=".to_owned()),
    };
    let socket = socket.filter(|path: &String| !path.is_empty());
    let socket = socket.ok_or("the socket of its back end is not said")?;
    Ok(VhostUser {
        id,
        spec: VhostUserSpec {
            queues,
            queue_size,
            ..VhostUserSpec::new(kind, socket)
        },
    })
}

/// The kinds that are one word.
fn plain_kind(word: &str) -> Result<VhostKind, String> {
    Ok(match word {
        "block" => VhostKind::Block,
        "fs" => VhostKind::Fs { tag: None },
        "net" => VhostKind::Net { mac: [0; 6] },
        "vsock" => VhostKind::Vsock,
        _ => return Err(format!("{word:?} is no kind of device")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: VhostKind) -> VhostUserSpec {
        VhostUserSpec::new(kind, "/s")
    }

    #[test]
    fn devices_are_read() {
        let fs = |tag: Option<&str>| VhostKind::Fs {
            tag: tag.map(Into::into),
        };
        let other = |id, config_len| VhostKind::Other { id, config_len };
        let table = [
            ("block,socket=/s", spec(VhostKind::Block)),
            ("socket=/s,device=4", spec(other(4, 0))),
            ("device=18,config=136,socket=/s", spec(other(18, 136))),
            ("fs,socket=/s", spec(fs(None))),
            ("fs,socket=/s,tag=a,,b", spec(fs(Some("a,b")))),
            ("vsock,socket=/s", spec(VhostKind::Vsock)),
            (
                "net,mac=52:54:00:00:00:07,socket=/s",
                spec(VhostKind::Net {
                    mac: [0x52, 0x54, 0, 0, 0, 7],
                }),
            ),
            (
                "block,socket=/s,queues=4,queue-size=128",
                VhostUserSpec {
                    queues: Some(4),
                    queue_size: Some(128),
                    ..spec(VhostKind::Block)
                },
            ),
        ];
        for (text, expected) in table {
            let read = parse(text).unwrap();
            assert_eq!(read.spec, expected, "{text}");
            assert_eq!(read.device(2).id, "vhost2");
        }
        let named = parse("block,socket=/s,id=data").unwrap();
        assert_eq!(named.device(0).id, "data");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let table = [
            ("", "\"\" is no kind"),
            ("disk,socket=/s", "\"disk\" is no kind"),
            ("socket=/s", "not said"),
            ("block", "the socket"),
            ("block,socket=", "the socket"),
            ("block,socket=/s,socket=/t", "\"socket\" is one too many"),
            ("block,socket=/s,tag=x", "tag= is for fs"),
            ("fs,socket=/s,config=8", "config= for device"),
            ("block,device=4,socket=/s", "\"device\" is one too many"),
            ("block,socket=/s,queues=x", "queues=\"x\""),
            ("block,socket=/s,path=x", "\"path\" is unknown"),
        ];
        for (text, why) in table {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
