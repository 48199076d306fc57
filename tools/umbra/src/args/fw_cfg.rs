//! Items of the firmware configuration, written as for QEMU's `-fw_cfg`.

use umbra_vmm::{ConfigFile, Content};

use super::list::{pairs, set};

/// What one `--fw-cfg` says: an item, or only that the device is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item(pub Option<ConfigFile>);

/// Reads `[name=]NAME,file=PATH` or `[name=]NAME,string=TEXT`. Two commas stand for one.
pub fn parse(text: &str) -> Result<Item, String> {
    if text.is_empty() {
        return Ok(Item(None));
    }
    let refused = |why: &str| format!("{why}; write it like name=NAME,file=PATH or string=TEXT");
    let (mut name, mut content) = (None, None);
    for (key, value) in pairs(text) {
        match &*key {
            "name" | "" => set(&mut name, "name", value),
            "file" => set(&mut content, "file", Content::File(value.into())),
            "string" => set(&mut content, "string", Content::Text(value)),
            _ => Err(format!("{key:?} is unknown")),
        }
        .map_err(|why| refused(&why))?;
    }
    match (name, content) {
        (Some(name), Some(content)) => Ok(Item(Some(ConfigFile { name, content }))),
        (None, _) => Err(refused("the item has no name")),
        (_, None) => Err(refused("the item holds nothing")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str, content: Content) -> Item {
        Item(Some(ConfigFile {
            name: name.into(),
            content,
        }))
    }

    #[test]
    fn items_are_written_as_for_qemu() {
        let table = [
            ("", Item(None)),
            ("opt/a,string=b", item("opt/a", Content::Text("b".into()))),
            (
                "name=opt/a,file=/b",
                item("opt/a", Content::File("/b".into())),
            ),
            (
                "opt/a,,b,string=c,,d=e",
                item("opt/a,b", Content::Text("c,d=e".into())),
            ),
            ("opt/a,string=", item("opt/a", Content::Text(String::new()))),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn half_an_item_is_none() {
        for text in [
            "opt/a",
            "string=x",
            "opt/a,b",
            "opt/a,size=3",
            "a,string=x,file=y",
            "a,name=b",
        ] {
            assert!(parse(text).unwrap_err().contains("write it like"), "{text}");
        }
    }
}
