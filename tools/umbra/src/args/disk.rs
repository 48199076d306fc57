//! Disks, as `--disk` has them.

use umbra_vmm::{
    BackingFiles, Cache, DiskSpec, EngineKind, Format, Limits, VirtioKind, VirtioSpec,
};

use super::limit;
use super::list::{number, pairs, set};

/// What one `--disk` says. Without a name the disk gets one by its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    id: Option<String>,
    spec: DiskSpec,
}

impl Disk {
    /// Makes the device of disk `number`.
    pub fn device(&self, number: usize) -> VirtioSpec {
        VirtioSpec {
            id: self.id.clone().unwrap_or_else(|| format!("disk{number}")),
            kind: VirtioKind::Block(self.spec.clone()),
        }
    }
}

/// Reads `[path=]PATH` with `[,format=raw|qcow2][,backing][,readonly][,direct][,cache=KIND][,serial=TEXT]`
/// `[,queues=N][,engine=KIND][,bandwidth=LIMIT][,ops=LIMIT][,id=NAME]`. Two commas stand for one.
pub fn parse(text: &str) -> Result<Disk, String> {
    let refused = |why: String| {
        format!(
            "{why}; write it like PATH,format=qcow2,readonly; there are format=, backing, readonly, \
             direct, cache=, serial=, queues=, engine=, bandwidth=, ops=, id="
        )
    };
    read(pairs(text)).map_err(refused)
}

/// Looks a word up.
fn choose<T: Copy>(key: &str, value: &str, table: &[(&str, T)]) -> Result<T, String> {
    let found = table.iter().find(|(word, _)| *word == value);
    let words: Vec<&str> = table.iter().map(|(word, _)| *word).collect();
    let unknown = || format!("{key}={value:?} is none of {}", words.join(", "));
    found.map(|(_, choice)| *choice).ok_or_else(unknown)
}

fn read(parts: Vec<(String, String)>) -> Result<Disk, String> {
    let (mut id, mut path, mut format, mut cache) = (None, None, None, None);
    let (mut serial, mut queues, mut engine) = (None, None, None);
    let (mut backing, mut read_only, mut direct) = (None, None, None);
    let mut limits = Limits::default();
    for (key, value) in parts {
        match &*key {
            "path" | "" => set(&mut path, "path", value)?,
            "format" => {
                let table = [("raw", Format::Raw), ("qcow2", Format::Qcow2)];
                set(&mut format, "format", choose("format", &value, &table)?)?;
            }
            "cache" => {
                let table = [
                    ("writeback", Cache::Writeback),
                    ("writethrough", Cache::Writethrough),
                    ("unsafe", Cache::Unsafe),
                ];
                set(&mut cache, "cache", choose("cache", &value, &table)?)?;
            }
            "engine" => {
                let table = [
                    ("io_uring", EngineKind::IoUring),
                    ("threads", EngineKind::Threads),
                ];
                set(&mut engine, "engine", choose("engine", &value, &table)?)?;
            }
            "serial" => set(&mut serial, "serial", value)?,
            "queues" => set(&mut queues, "queues", number("queues", &value)?)?,
            "id" => set(&mut id, "id", value)?,
            "backing" | "readonly" | "direct" if value.is_empty() => {
                let place = match &*key {
                    "backing" => &mut backing,
                    "readonly" => &mut read_only,
                    _ => &mut direct,
                };
                set(place, &key, ())?;
            }
            _ if limit::read(&mut limits, "", &key, &value)? => {}
            _ => return Err(format!("{key:?} is unknown, or takes no value")),
        }
    }
    let path = path.filter(|path: &String| !path.is_empty());
    let default = DiskSpec::new(path.ok_or("the file is not said")?);
    let spec = DiskSpec {
        format: format.unwrap_or(default.format),
        backing: match backing {
            Some(()) => BackingFiles::Follow,
            None => default.backing,
        },
        read_only: read_only.is_some(),
        direct: direct.is_some(),
        cache: cache.unwrap_or(default.cache),
        serial: serial.unwrap_or_default(),
        queues: queues.unwrap_or(default.queues),
        engine: engine.unwrap_or(default.engine),
        limits,
        ..default
    };
    Ok(Disk { id, spec })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_read() {
        let disk = |spec| Disk { id: None, spec };
        let default = || DiskSpec::new("/a");
        let table = [
            ("/a", disk(default())),
            ("path=/a", disk(default())),
            (
                "/a,readonly,direct,queues=4,serial=x y",
                disk(DiskSpec {
                    read_only: true,
                    direct: true,
                    queues: 4,
                    serial: "x y".into(),
                    ..default()
                }),
            ),
            (
                "/a,format=qcow2,backing,cache=unsafe,engine=threads",
                disk(DiskSpec {
                    format: Format::Qcow2,
                    backing: BackingFiles::Follow,
                    cache: Cache::Unsafe,
                    engine: EngineKind::Threads,
                    ..default()
                }),
            ),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        let limits = parse("/a,ops=5,bandwidth=1M:100").unwrap().spec.limits;
        assert_eq!(limits.operations.map(|bucket| bucket.size), Some(5));
        assert_eq!(limits.bandwidth.map(|bucket| bucket.size), Some(1 << 20));
        assert_eq!(parse("/a,id=root").unwrap().device(1).id, "root");
        assert_eq!(parse("/a,,b").unwrap().device(1).id, "disk1");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_reason() {
        let table = [
            ("", "the file is not said"),
            ("readonly", ""),
            ("/a,ro", "\"ro\" is unknown"),
            (
                "/a,readonly=off",
                "\"readonly\" is unknown, or takes no value",
            ),
            ("/a,format=vmdk", "none of raw, qcow2"),
            ("/a,path=/b", "\"path\" is one too many"),
            ("/a,queues=x", "queues=\"x\""),
            ("/a,ops=5,ops=6", "\"ops\" is one too many"),
        ];
        for (text, why) in table {
            match parse(text) {
                Err(refused) => assert!(refused.contains(why), "{text}: {refused}"),
                // A file may well have that name.
                Ok(_) => assert_eq!(text, "readonly"),
            }
        }
    }
}
