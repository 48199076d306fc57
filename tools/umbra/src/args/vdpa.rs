//! Virtio devices of the host's, as `--vdpa` has them.

use umbra_vmm::{VdpaSpec, VirtioKind, VirtioSpec};

use super::list::{pairs, set};

/// What one `--vdpa` says. Without a name the device gets one by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vdpa {
    id: Option<String>,
    spec: VdpaSpec,
}

impl Vdpa {
    /// Makes device `number`.
    pub fn device(&self, number: usize) -> VirtioSpec {
        VirtioSpec {
            id: self.id.clone().unwrap_or_else(|| format!("vdpa{number}")),
            kind: VirtioKind::Vdpa(self.spec.clone()),
        }
    }
}

/// Reads `NODE[,id=NAME]`. Two commas stand for one.
pub fn parse(text: &str) -> Result<Vdpa, String> {
    let refused = |why: String| format!("{why}; write it like /dev/vhost-vdpa-0; there is id=");
    read(pairs(text)).map_err(refused)
}

fn read(parts: Vec<(String, String)>) -> Result<Vdpa, String> {
    let (mut id, mut node) = (None, None);
    for (key, value) in parts {
        match &*key {
            "" => set(&mut node, "node", value)?,
            "id" => set(&mut id, "id", value)?,
            _ => return Err(format!("{key:?} is unknown")),
        }
    }
    let node = node.filter(|node: &String| !node.is_empty());
    let node = node.ok_or("its node is not said")?.into();
    Ok(Vdpa {
        id,
        spec: VdpaSpec { node },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read() {
        for (text, id) in [("/dev/v", "vdpa2"), ("/dev/v,id=fast", "fast")] {
            let expected = VirtioSpec {
                id: id.into(),
                kind: VirtioKind::Vdpa(VdpaSpec {
                    node: "/dev/v".into(),
                }),
            };
            assert_eq!(parse(text).unwrap().device(2), expected, "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let table = [
            ("", "not said"),
            (",id=x", "not said"),
            ("/a,/b", "\"/b\" is unknown"),
            ("/a,queues=2", "\"queues\" is unknown"),
        ];
        for (text, why) in table {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
