//! The socket device, as `--vsock` has it.

use umbra_vmm::{VirtioKind, VirtioSpec, VsockSpec};

use super::list::{number, pairs, set};

/// The first context identifier that no guest must not have. Machines of one host may share it: each has
/// sockets of its own.
const DEFAULT_CID: u64 = 3;

/// What `--vsock` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vsock {
    id: Option<String>,
    spec: VsockSpec,
}

impl Vsock {
    /// Makes the device.
    pub fn device(&self) -> VirtioSpec {
        VirtioSpec {
            id: self.id.clone().unwrap_or_else(|| "vsock".to_owned()),
            kind: VirtioKind::Vsock(self.spec.clone()),
        }
    }
}

/// Reads `[path=]PATH[,cid=N][,id=NAME]`. Two commas stand for one.
pub fn parse(text: &str) -> Result<Vsock, String> {
    let refused = |why: String| {
        format!("{why}; write it like cid=3,path=/run/vm.sock; there are path=, cid=, id=")
    };
    read(pairs(text)).map_err(refused)
}

fn read(parts: Vec<(String, String)>) -> Result<Vsock, String> {
    let (mut id, mut cid, mut path) = (None, None, None);
    for (key, value) in parts {
        match &*key {
            "path" | "" => set(&mut path, "path", value)?,
            "cid" => set(&mut cid, "cid", number("cid", &value)?)?,
            "id" => set(&mut id, "id", value)?,
            _ => return Err(format!("{key:?} is unknown")),
        }
    }
    let path = path.filter(|path: &String| !path.is_empty());
    let path = path.ok_or("the path of its socket is not said")?.into();
    let cid = cid.unwrap_or(DEFAULT_CID);
    Ok(Vsock {
        id,
        spec: VsockSpec { cid, path },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_devices_are_read() {
        let table = [
            ("/v", "vsock", 3, "/v"),
            ("cid=7,path=/a,,b", "vsock", 7, "/a,b"),
            (
                "path=v.sock,id=agent,cid=4294967294",
                "agent",
                0xffff_fffe,
                "v.sock",
            ),
        ];
        for (text, id, cid, path) in table {
            let expected = VirtioSpec {
                id: id.into(),
                kind: VirtioKind::Vsock(VsockSpec {
                    cid,
                    path: path.into(),
                }),
            };
            assert_eq!(parse(text).unwrap().device(), expected, "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let table = [
            ("", "not said"),
            ("cid=3", "not said"),
            ("path=", "not said"),
            ("/a,path=/b", "\"path\" is one too many"),
            ("/a,cid=x", "cid=\"x\""),
            ("/a,port=5", "\"port\" is unknown"),
        ];
        for (text, why) in table {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
