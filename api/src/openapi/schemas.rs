//! Schemas of types, each once.
//!
//! A type that is read and written has two: a field with a default may be left out of what is read, and is always in
//! what is written; a field that is not known is refused where it is read, while a client has to expect that answers
//! will have more. Where the two differ, what is written has `Answer` behind its name. Until all are known, what is
//! written refers to a place of its own, [`WRITTEN`].

use std::collections::BTreeSet;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::described::SchemaOf;
use super::polish;

/// Where the document has schemas.
const READ: &str = "/components/schemas";
/// Where what is written is until it has its name.
const WRITTEN: &str = "/components/written";

/// What a schema is a promise of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// What the server takes.
    Read,
    /// What the server gives.
    Written,
}

/// All schemas of a document.
pub struct Schemas {
    read: SchemaGenerator,
    written: SchemaGenerator,
}

impl Schemas {
    /// Makes an empty set.
    pub fn new() -> Self {
        let at = |place: &'static str| {
            SchemaSettings::draft2020_12().with(|settings| {
                settings.definitions_path = place.into();
                settings.meta_schema = None;
            })
        };
        Self {
            read: at(READ).for_deserialize().into_generator(),
            written: at(WRITTEN).for_serialize().into_generator(),
        }
    }

    /// Returns the schema of a type, which is mostly a reference.
    pub fn of(&mut self, schema: SchemaOf, contract: Contract) -> Value {
        let generator = match contract {
            Contract::Read => &mut self.read,
            Contract::Written => &mut self.written,
        };
        let mut value = schema(generator).to_value();
        polish::schema(&mut value);
        value
    }

    /// Gives every schema its name, changes what the rest of the document refers to, and returns them.
    pub fn finish(mut self, rest: &mut Value) -> Map<String, Value> {
        let mut read = self.read.take_definitions(true);
        let mut written = self.written.take_definitions(true);
        read.values_mut().for_each(polish::schema);
        for value in written.values_mut() {
            polish::schema(value);
            polish::open(value);
        }
        let differ = differing(&read, &written);
        for (name, value) in written {
            read.insert(name_of(&name, &differ), refer(value, &differ));
        }
        *rest = refer(rest.take(), &differ);
        read
    }
}

/// Finds the types whose two schemas differ, be it only in what they refer to.
fn differing(read: &Map<String, Value>, written: &Map<String, Value>) -> BTreeSet<String> {
    let mut differ = BTreeSet::new();
    loop {
        let before = differ.len();
        for (name, value) in written {
            let other = read.get(name);
            if other.is_some_and(|other| *other != refer(value.clone(), &differ)) {
                differ.insert(name.clone());
            }
        }
        if differ.len() == before {
            return differ;
        }
    }
}

fn name_of(name: &str, differ: &BTreeSet<String>) -> String {
    match differ.contains(name) {
        true => format!("{name}Answer"),
        false => name.to_owned(),
    }
}

/// Has what refers to [`WRITTEN`] refer to where that is in the end.
fn refer(mut value: Value, differ: &BTreeSet<String>) -> Value {
    polish::walk(&mut value, &mut |map| {
        if let Some(Value::String(reference)) = map.get_mut("$ref")
            && let Some(name) = reference.strip_prefix(&format!("#{WRITTEN}/"))
        {
            *reference = format!("#{READ}/{}", name_of(name, differ));
        }
    });
    value
}
