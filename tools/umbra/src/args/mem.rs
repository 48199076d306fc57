//! Memory that comes and goes, as `--mem` has it.

use umbra_vmm::{MemSpec, VirtioKind, VirtioSpec};

use super::list::{pairs, set};
use crate::size;

/// What one `--mem` says. Without a name the device gets one by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mem {
    id: Option<String>,
    spec: MemSpec,
}

impl Mem {
    /// Makes the device of memory `number`.
    pub fn device(&self, number: usize) -> VirtioSpec {
        VirtioSpec {
            id: self.id.clone().unwrap_or_else(|| format!("mem{number}")),
            kind: VirtioKind::Mem(self.spec),
        }
    }
}

/// Reads `max=SIZE[,size=SIZE][,block=SIZE][,id=NAME]`.
pub fn parse(text: &str) -> Result<Mem, String> {
    read(text).map_err(|why| {
        format!("{why}; write it like max=4G,size=1G; there are max=, size=, block=, id=")
    })
}

fn read(text: &str) -> Result<Mem, String> {
    let (mut id, mut max, mut taken, mut block) = (None, None, None, None);
    for (key, value) in pairs(text) {
        match &*key {
            "" => return Err(format!("{value:?} is no KEY=VALUE")),
            "max" => set(&mut max, "max", size::parse(&value)?)?,
            "size" => set(&mut taken, "size", size::parse(&value)?)?,
            "block" => set(&mut block, "block", size::parse(&value)?)?,
            "id" => set(&mut id, "id", value)?,
            _ => return Err(format!("{key:?} is unknown")),
        }
    }
    let default = MemSpec::new(max.ok_or("how much there is at most is not said")?);
    let spec = MemSpec {
        size: taken.unwrap_or(default.size),
        block: block.unwrap_or(default.block),
        ..default
    };
    Ok(Mem { id, spec })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_is_read_and_has_a_name() {
        let spec = |max, size, block| MemSpec { max, size, block };
        let table = [
            ("max=4G", spec(4 * GIB, 0, 2 << 20)),
            ("size=1G,max=2G", spec(2 * GIB, GIB, 2 << 20)),
            ("block=128M,max=2G,id=m", spec(2 * GIB, 0, 128 << 20)),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text).map(|mem| mem.spec), Ok(expected), "{text}");
        }
        assert_eq!(parse("max=4G").unwrap().device(2).id, "mem2");
        assert_eq!(parse("max=4G,id=m").unwrap().device(2).id, "m");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let table = [
            ("", "\"\" is no KEY=VALUE"),
            ("size=1G", "at most is not said"),
            ("max=lots", "\"lots\" is no size"),
            ("max=1G,max=2G", "\"max\" is one too many"),
            ("max=1G,colour=red", "\"colour\" is unknown"),
        ];
        for (text, why) in table {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
