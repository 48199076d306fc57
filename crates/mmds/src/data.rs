//! The data, and who may read it.

use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::token::Tokens;

/// How a guest asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// Just so; a token is not needed.
    #[default]
    V1,
    /// With a token that it asked for before.
    V2,
}

/// How a guest reaches the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetadataConfig {
    /// Whether a guest needs a token.
    pub version: Version,
    /// At which address of the link ([`is_valid`](Self::is_valid)).
    pub address: Ipv4Addr,
    /// Answers are always text, whatever the guest says it takes (as EC2's).
    pub imds_compat: bool,
}

impl MetadataConfig {
    /// Where clouds have it.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    /// Bytes of the data, as JSON, where nothing else is said.
    pub const LIMIT: usize = 51200;

    /// Tells whether the address is one that hosts of a link may have (RFC 3927, 2.1): 169.254.1.0 to 169.254.254.255.
    /// Frames to any other one are not for a service on the guest's own link.
    pub const fn is_valid(&self) -> bool {
        matches!(self.address.octets(), [169, 254, 1..=254, _])
    }
}

impl Default for MetadataConfig {
    fn default() -> Self {
        Self {
            version: Version::default(),
            address: Self::ADDRESS,
            imds_compat: false,
        }
    }
}

/// Why the data was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetadataError {
    /// It is no object.
    #[error("the metadata is a JSON object; this is {what}")]
    NoObject {
        /// What it is.
        what: &'static str,
    },
    /// There is nothing to change.
    #[error("The MMDS data store is not initialized.")]
    Empty,
    /// It would be more than it may be.
    #[error(
        "the metadata would have {len} bytes, more than {limit}; leave something out, or raise the limit"
    )]
    TooLarge {
        /// How much it would be.
        len: usize,
        /// The most.
        limit: usize,
    },
}

/// The data of a machine. Cheap to clone, for any thread.
#[derive(Clone)]
pub struct Metadata(Arc<Inner>);

struct Inner {
    limit: usize,
    /// An object; `None` until something was put.
    data: Mutex<Option<Value>>,
    tokens: Tokens,
}

impl fmt::Debug for Metadata {
    /// Shows nothing of it: there may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata").finish_non_exhaustive()
    }
}

impl PartialEq for Metadata {
    /// It is the same data, not only an equal one.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Metadata {}

impl Metadata {
    /// Makes one without data, of which there may be so many bytes as JSON.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Inner {
            limit,
            data: Mutex::new(None),
            tokens: Tokens::new(),
        }))
    }

    /// Replaces the data.
    ///
    /// # Errors
    /// If it is no object, or too large. Nothing has changed then.
    pub fn put(&self, value: Value) -> Result<(), MetadataError> {
        let object = object(value)?;
        self.check(&object)?;
        *self.0.data.lock() = Some(object);
        Ok(())
    }

    /// Changes the data by a merge patch (RFC 7396): what the patch has is replaced, what it has as `null` is removed,
    /// the rest stays.
    ///
    /// # Errors
    /// If it is no object, there is no data, or there would be too much. Nothing has changed then.
    pub fn patch(&self, patch: Value) -> Result<(), MetadataError> {
        let patch = object(patch)?;
        let mut data = self.0.data.lock();
        let mut new = data.clone().ok_or(MetadataError::Empty)?;
        merge(&mut new, patch);
        self.check(&new)?;
        *data = Some(new);
        Ok(())
    }

    /// Returns the data; an empty object if there is none.
    pub fn get(&self) -> Value {
        let data = self.0.data.lock().clone();
        data.unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// Returns what is at a path of names and indices, `/` between them, as a guest asks for it: a JSON pointer
    /// (RFC 6901) in which empty names are passed over, so that `/` is the whole. `None` if there is nothing, or no data.
    pub fn at(&self, path: &str) -> Option<Value> {
        let names = path.split('/').filter(|name| !name.is_empty());
        let pointer: String = names.flat_map(|name| ["/", name]).collect();
        self.0.data.lock().as_ref()?.pointer(&pointer).cloned()
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.0.tokens
    }

    fn check(&self, object: &Value) -> Result<(), MetadataError> {
        let len = serde_json::to_string(object).map_or(usize::MAX, |text| text.len());
        match len <= self.0.limit {
            true => Ok(()),
            false => Err(MetadataError::TooLarge {
                len,
                limit: self.0.limit,
            }),
        }
    }
}

fn object(value: Value) -> Result<Value, MetadataError> {
    let what = match value {
        Value::Object(_) => return Ok(value),
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
    };
    Err(MetadataError::NoObject { what })
}

/// RFC 7396. As deep as the patch, whose depth `serde_json` bounds when it reads one.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (name, value) in patch {
        match value {
            Value::Null => drop(target.remove(&name)),
            value => merge(target.entry(name).or_insert(Value::Null), value),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patches_are_those_of_rfc_7396() {
        // Appendix A, as far as both are objects.
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (
                json!({"a": "b", "b": "c"}),
                json!({"a": null}),
                json!({"b": "c"}),
            ),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            let data = Metadata::new(1000);
            data.put(target.clone()).unwrap();
            data.patch(patch.clone()).unwrap();
            assert_eq!(data.get(), result, "{target} {patch}");
        }
    }

    #[test]
    fn what_cannot_be_changes_nothing() {
        let data = Metadata::new(20);
        assert_eq!(data.get(), json!({}));
        assert_eq!(data.patch(json!({"a": 1})), Err(MetadataError::Empty));
        for value in [json!(null), json!(1), json!("a"), json!([]), json!(true)] {
            assert!(matches!(
                data.put(value),
                Err(MetadataError::NoObject { .. })
            ));
        }
        data.put(json!({"a": "0123456789"})).unwrap();
        let more = data.patch(json!({"b": "0123456789"}));
        assert_eq!(more, Err(MetadataError::TooLarge { len: 35, limit: 20 }));
        assert_eq!(data.get(), json!({"a": "0123456789"}));
        assert!(!format!("{data:?}").contains("0123"));
    }

    #[test]
    fn paths_lead_into_objects_and_lists() {
        let data = Metadata::new(1000);
        assert_eq!(data.at("/"), None);
        let value = json!({"a": {"b": ["x", {"c": 1}]}, "d/e": 2, "f~": 3, "g": null});
        data.put(value.clone()).unwrap();
        for (path, found) in [
            ("/", Some(value)),
            ("/a/b/0", Some(json!("x"))),
            ("//a///b/1/c/", Some(json!(1))),
            ("/d~1e", Some(json!(2))),
            ("/f~0", Some(json!(3))),
            ("/g", Some(json!(null))),
            ("/a/b/2", None),
            ("/a/b/01", None),
            ("/a/b/+1", None),
            ("/a/b/99999999999999999999", None),
            ("/a/b/0/c", None),
            ("/b", None),
        ] {
            assert_eq!(data.at(path), found, "{path}");
        }
    }
}
