//! The socket device, as `--vsock` has it.

use umbra_vmm::{VhostVsockSpec, VirtioKind, VirtioSpec, VsockSpec};

use super::list::{number, pairs, set};

/// The first context identifier that no guest must not have. Machines of one host may share it if each has
/// sockets of its own; the kernel's are one for each identifier.
const DEFAULT_CID: u64 = 3;

/// What `--vsock` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vsock {
    id: Option<String>,
    kind: VirtioKind,
}

impl Vsock {
    /// Makes the device.
    pub fn device(&self) -> VirtioSpec {
        VirtioSpec {
            id: self.id.clone().unwrap_or_else(|| "vsock".to_owned()),
            kind: self.kind.clone(),
        }
    }
}

/// Reads `[path=]PATH[,cid=N][,id=NAME]`, or `vhost,cid=N[,id=NAME]`. Two commas stand for one. A path that is
/// `vhost` needs its `path=`.
pub fn parse(text: &str) -> Result<Vsock, String> {
    let refused = |why: String| {
        format!(
            "{why}; write it like cid=3,path=/run/vm.sock or cid=3,vhost; there are path=, vhost, cid=, id="
        )
    };
    read(pairs(text)).map_err(refused)
}

fn read(parts: Vec<(String, String)>) -> Result<Vsock, String> {
    let (mut id, mut cid, mut path, mut vhost) = (None, None, None, None);
    for (key, value) in parts {
        match &*key {
            "vhost" if value.is_empty() => set(&mut vhost, "vhost", ())?,
            "" if value == "vhost" => set(&mut vhost, "vhost", ())?,
            "path" | "" => set(&mut path, "path", value)?,
            "cid" => set(&mut cid, "cid", number("cid", &value)?)?,
            "id" => set(&mut id, "id", value)?,
            _ => return Err(format!("{key:?} is unknown")),
        }
    }
    let path = path.filter(|path: &String| !path.is_empty());
    let kind = match (path, vhost) {
        (Some(path), None) => VirtioKind::Vsock(VsockSpec::new(cid.unwrap_or(DEFAULT_CID), path)),
        (None, Some(())) => {
            let cid = cid.ok_or("the kernel's sockets need a cid= that no other guest has")?;
            VirtioKind::VhostVsock(VhostVsockSpec { cid })
        }
        (Some(_), Some(())) => {
            return Err("the kernel's sockets have no path: path= or vhost, not both".to_owned());
        }
        (None, None) => return Err("the path of its socket is not said".to_owned()),
    };
    Ok(Vsock { id, kind })
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
                kind: VirtioKind::Vsock(VsockSpec::new(cid, path)),
            };
            assert_eq!(parse(text).unwrap().device(), expected, "{text}");
        }
    }

    #[test]
    fn the_kernels_sockets_are_one_for_each_identifier() {
        let read = parse("cid=9,vhost,id=v").unwrap().device();
        let kind = VirtioKind::VhostVsock(VhostVsockSpec { cid: 9 });
        assert_eq!(
            read,
            VirtioSpec {
                id: "v".into(),
                kind
            }
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let table = [
            ("vhost", "need a cid="),
            ("cid=3,vhost,vhost", "\"vhost\" is one too many"),
            ("vhost,cid=3,path=/a", "not both"),
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
