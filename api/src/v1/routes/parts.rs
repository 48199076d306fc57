//! The parts of a request: the name in its path, what is behind it, its body.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::parameters::{LET_GO_MS, MAX_WAIT_MS};
use crate::strict;
use crate::v1::tasks::Patience;
use crate::v1::{Code, Problem};

/// A request's parts, after its path was found.
pub struct Parts<'a> {
    /// The part of the path that is a name, if one is.
    pub name: &'a str,
    pub query: Query<'a>,
    pub body: &'a [u8],
}

/// What is behind a path: names, each once, and plain values.
pub struct Query<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Query<'a> {
    pub fn parse(text: &'a str, known: &[&str]) -> Result<Self, Problem> {
        let mut all: Vec<(&str, &str)> = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let wrong = match () {
                () if !known.contains(&name) => "is not known here",
                () if all.iter().any(|(other, _)| *other == name) => "is there twice",
                () => {
                    all.push((name, value));
                    continue;
                }
            };
            let there = match known {
                [] => "there is none".to_owned(),
                some => format!("there are {}", some.join(", ")),
            };
            let message = format!("the parameter {name:?} {wrong}; {there}");
            return Err(Problem::new(Code::BadQuery, message).of(name));
        }
        Ok(Self(all))
    }

    pub fn get(&self, name: &str) -> Option<&'a str> {
        let found = self.0.iter().find(|(other, _)| *other == name);
        found.map(|(_, value)| *value)
    }

    /// A number up to `max`, decimal, or hexadecimal behind `0x`.
    pub fn number(&self, name: &str, max: u64) -> Result<Option<u64>, Problem> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let read = match text.strip_prefix("0x") {
            Some(hex) if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u64::from_str_radix(hex, 16).ok()
            }
            None if plain => text.parse().ok(),
            _ => None,
        };
        match read.filter(|number| *number <= max) {
            Some(number) => Ok(Some(number)),
            None => Err(Problem::new(
                Code::BadQuery,
                format!("{name}={text:?} is no number from 0 to {max}"),
            )
            .of(name)),
        }
    }

    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(Problem::new(
                Code::BadQuery,
                format!("{name}={other:?} is neither true nor false"),
            )
            .of(name)),
        }
    }
}

impl Parts<'_> {
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        self.read(strict::from_str)
    }

    /// The same, of a type with enumerations whose words stand among their fields.
    pub fn json_tagged<T: DeserializeOwned + Serialize>(&self) -> Result<T, Problem> {
        self.read(strict::from_str_tagged)
    }

    fn read<T>(&self, read: fn(&str) -> Result<T, serde_json::Error>) -> Result<T, Problem> {
        let bad = |message: String| Problem::new(Code::BadBody, message);
        if self.body.is_empty() {
            return Err(bad("the request has no body; it needs one".into()));
        }
        let text = std::str::from_utf8(self.body)
            .map_err(|error| bad(format!("the body is no text: {error}")))?;
        read(text).map_err(|error| {
            let message = error.to_string();
            match named(&message) {
                Some(field) => bad(message.clone()).of(field),
                None => bad(message),
            }
        })
    }

    pub fn json_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Problem> {
        match self.body {
            [] => Ok(T::default()),
            _ => self.json(),
        }
    }

    pub fn cpu(&self) -> Result<usize, Problem> {
        let number = self.name.parse();
        number.map_err(|_| {
            let message = format!(
                "there is no processor {:?}; processors have numbers",
                self.name
            );
            Problem::new(Code::NoSuchCpu, message)
        })
    }

    pub fn patience(&self) -> Result<Patience, Problem> {
        let time = self.query.number("timeout_ms", MAX_WAIT_MS)?;
        Ok(Patience {
            time: Duration::from_millis(time.unwrap_or(LET_GO_MS)),
            force: self.query.flag("force")?,
        })
    }
}

/// The field that a reader complains about.
fn named(message: &str) -> Option<String> {
    let kinds = ["unknown field `", "missing field `", "duplicate field `"];
    let rest = kinds
        .iter()
        .find_map(|kind| message.split_once(kind).map(|(_, rest)| rest));
    Some(rest?.split_once('`')?.0.to_owned())
}
