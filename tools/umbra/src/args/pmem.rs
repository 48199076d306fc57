//! Persistent memory, as `--pmem` has it.

use umbra_vmm::{Limits, PmemSpec, VirtioKind, VirtioSpec};

use super::limit;
use super::list::{pairs, set};
use crate::size;

/// What one `--pmem` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pmem {
    id: Option<String>,
    spec: PmemSpec,
}

impl Pmem {
    /// Makes the device; one without a name is called by its number.
    pub fn device(&self, number: usize) -> VirtioSpec {
        VirtioSpec {
            id: self.id.clone().unwrap_or_else(|| format!("pmem{number}")),
            kind: VirtioKind::Pmem(self.spec.clone()),
        }
    }
}

/// Reads `[path=]PATH[,readonly][,size=SIZE][,id=NAME]` and limits. Two commas stand for one.
pub fn parse(text: &str) -> Result<Pmem, String> {
    let refused = |why| {
        format!(
            "{why}; write it like /data.img,readonly; there are readonly, size=, id=, bandwidth=, ops="
        )
    };
    read(pairs(text)).map_err(refused)
}

fn read(parts: Vec<(String, String)>) -> Result<Pmem, String> {
    let (mut id, mut path, mut shown, mut read_only) = (None, None, None, None);
    let mut limits = Limits::default();
    for (key, value) in parts {
        match (&*key, &*value) {
            ("path" | "", _) => set(&mut path, "path", value)?,
            ("readonly", "") => set(&mut read_only, "readonly", ())?,
            ("size", _) => set(&mut shown, "size", size::parse(&value)?)?,
            ("id", _) => set(&mut id, "id", value)?,
            _ if limit::read(&mut limits, "", &key, &value)? => {}
            _ => return Err(format!("{key:?} is unknown, or is not {value:?}")),
        }
    }
    let path = path.filter(|path: &String| !path.is_empty());
    let spec = PmemSpec {
        read_only: read_only.is_some(),
        size: shown,
        limits,
        ..PmemSpec::new(path.ok_or("the path of its file is not said")?)
    };
    Ok(Pmem { id, spec })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persistent_memory_is_read() {
        let spec = |path: &str, read_only, size| PmemSpec {
            read_only,
            size,
            ..PmemSpec::new(path)
        };
        let table = [
            ("/p", "pmem1", spec("/p", false, None)),
            ("path=/a,,b,readonly", "pmem1", spec("/a,b", true, None)),
            ("p,id=data", "data", spec("p", false, None)),
            (
                "p,readonly,size=4M",
                "pmem1",
                spec("p", true, Some(4 << 20)),
            ),
        ];
        for (text, id, spec) in table {
            let expected = VirtioSpec {
                id: id.into(),
                kind: VirtioKind::Pmem(spec),
            };
            assert_eq!(parse(text).unwrap().device(1), expected, "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let table = [
            ("", "not said"),
            (
                "/p,readonly=maybe",
                "\"readonly\" is unknown, or is not \"maybe\"",
            ),
            ("/p,path=/q", "\"path\" is one too many"),
            ("/p,size=lots", "\"lots\" is no size"),
            ("/p,format=raw", "\"format\" is unknown"),
        ];
        for (text, why) in table {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
