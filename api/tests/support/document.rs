//! Compares requests and answers with the OpenAPI document. Here answers have nothing that is not in it.

use std::collections::HashMap;
use std::sync::LazyLock;

use boon::{Compiler, SchemaIndex, Schemas};
use serde_json::Value;
use umbra_api::openapi;

use super::Answer;

/// What the document is called while it is looked at.
const NAME: &str = "http://localhost/openapi.json";

struct Document {
    value: Value,
    schemas: Schemas,
    /// By pointer.
    compiled: HashMap<String, SchemaIndex>,
}

static DOCUMENT: LazyLock<Document> = LazyLock::new(|| {
    let mut value: Value = serde_json::from_str(openapi::text()).unwrap();
    for schema in value["components"]["schemas"]
        .as_object_mut()
        .unwrap()
        .values_mut()
    {
        let schema = schema.as_object_mut().unwrap();
        // One that has some of its fields by several forms says of each which it has.
        if schema.contains_key("properties") && !schema.contains_key("oneOf") {
            schema.entry("additionalProperties").or_insert(false.into());
        }
    }
    let mut compiler = Compiler::new();
    compiler.add_resource(NAME, value.clone()).unwrap();
    let mut schemas = Schemas::new();
    let mut compiled = HashMap::new();
    let mut pointers = Vec::new();
    find_schemas(&value["paths"], "/paths", &mut pointers);
    for pointer in pointers {
        let place = pointer.replace('{', "%7B").replace('}', "%7D");
        let index = compiler.compile(&format!("{NAME}#{place}"), &mut schemas);
        compiled.insert(pointer, index.unwrap_or_else(|error| panic!("{error:#}")));
    }
    Document {
        value,
        schemas,
        compiled,
    }
});

/// Finds where schemas are.
fn find_schemas(value: &Value, at: &str, found: &mut Vec<String>) {
    let below = |name: &str| format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match name.as_str() {
                    "schema" => found.push(below(name)),
                    _ => find_schemas(value, &below(name), found),
                }
            }
        }
        Value::Array(all) => {
            for (index, value) in all.iter().enumerate() {
                find_schemas(value, &below(&index.to_string()), found);
            }
        }
        _ => {}
    }
}

impl Document {
    /// Checks a value by the schema at a place, if there is one.
    fn validate(&self, pointer: &str, value: &Value) -> Result<(), String> {
        let index = self
            .compiled
            .get(pointer)
            .ok_or_else(|| format!("nothing is at {pointer}"))?;
        let valid = self.schemas.validate(value, *index);
        valid.map_err(|error| format!("{error:#}"))
    }

    /// Finds the operation of a request: where it is, and what its path says of each parameter.
    fn find<'a>(&self, method: &str, path: &'a str) -> Option<(String, Vec<(String, &'a str)>)> {
        let path = path.split('?').next()?;
        let parts: Vec<_> = path.split('/').collect();
        for (pattern, item) in self.value["paths"].as_object()? {
            let wanted: Vec<_> = pattern.split('/').collect();
            let name = |part: &str| {
                let name = part.strip_prefix('{')?.strip_suffix('}')?;
                Some(name.to_owned())
            };
            let pairs = || wanted.iter().zip(&parts);
            let same = wanted.len() == parts.len()
                && pairs().all(|(wanted, part)| name(wanted).is_some() || wanted == part);
            let method = method.to_ascii_lowercase();
            if same && item.get(&method).is_some() {
                let names = pairs().filter_map(|(wanted, part)| Some((name(wanted)?, *part)));
                let place = format!("/paths/{}/{method}", pattern.replace('/', "~1"));
                return Some((place, names.collect()));
            }
        }
        None
    }

    fn check_request(
        &self,
        place: &str,
        names: &[(String, &str)],
        body: &str,
    ) -> Result<(), String> {
        let operation = self.value.pointer(place).unwrap();
        for (name, said) in names {
            let all = operation["parameters"].as_array().into_iter().flatten();
            let index = all
                .clone()
                .position(|one| one["in"] == "path" && one["name"] == **name);
            let index = index.ok_or_else(|| format!("{name} is no parameter"))?;
            let pointer = format!("{place}/parameters/{index}/schema");
            let number = said.parse::<u64>().map(Value::from);
            let text = || Value::String((*said).to_owned());
            let wanted = operation["parameters"][index]["schema"]["type"] == "integer";
            let value = number.ok().filter(|_| wanted).unwrap_or_else(text);
            self.validate(&pointer, &value)?;
        }
        match (&operation["requestBody"], body) {
            (Value::Null, "") => Ok(()),
            // What need not be there is not looked at.
            (Value::Null, _) if place.ends_with("/patch") => Ok(()),
            (Value::Null, _) => Err("there is no body".into()),
            (described, "") if described["required"] == true => Err("the body is missing".into()),
            (_, "") => Ok(()),
            (_, body) => {
                let value = serde_json::from_str(body).map_err(|error| error.to_string())?;
                let pointer = format!("{place}/requestBody/content/application~1json/schema");
                self.validate(&pointer, &value)
            }
        }
    }

    fn check_answer(&self, place: &str, answer: &Answer) -> Result<(), String> {
        let Answer { status, body, .. } = answer;
        let place = format!("{place}/responses/{status}");
        let described = self.value.pointer(&place);
        let described = described.ok_or_else(|| format!("the status {status} is not described"))?;
        let kind = answer.header("content-type");
        match (described.get("content"), kind) {
            (None, None) if body.is_empty() => Ok(()),
            (Some(content), Some(kind)) if content.get(media(kind)).is_some() => {
                let kind = media(kind);
                let value = match kind {
                    "application/json" => {
                        serde_json::from_str(body).map_err(|error| error.to_string())?
                    }
                    _ => Value::String(body.clone()),
                };
                let kind = kind.replace('/', "~1");
                self.validate(&format!("{place}/content/{kind}/schema"), &value)
            }
            _ => Err(format!("it has a body of {kind:?}")),
        }
    }
}

/// A media type without its parameters.
fn media(kind: &str) -> &str {
    kind.split(';').next().unwrap_or(kind)
}

/// Compares a request and its answer with what the document says: what is accepted is valid, and so are all answers.
/// What is valid may be refused, for machines have states.
pub fn compare(method: &str, path: &str, body: &str, answer: &Answer) -> Result<(), String> {
    let accepted = answer.status < 300;
    let Some((place, names)) = DOCUMENT.find(method, path) else {
        return match accepted {
            true => Err("it is accepted, and no operation".into()),
            false => Ok(()),
        };
    };
    let valid = DOCUMENT.check_request(&place, &names, body);
    if let (Err(why), true) = (valid, accepted) {
        return Err(format!("it is accepted, and invalid: {why}"));
    }
    let answer = DOCUMENT.check_answer(&place, answer);
    answer.map_err(|why| format!("the answer is another one: {why}"))
}

/// Has a test fail whose request, or the answer to it, is not as the document says.
pub fn check(method: &str, path: &str, body: &str, answer: &Answer) {
    if let Err(why) = compare(method, path, body, answer) {
        panic!("not as the document says: {method} {path} {body}\n{answer:?}\n{why}");
    }
}
