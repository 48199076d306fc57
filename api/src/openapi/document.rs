//! Paths and operations, as the document has them (OpenAPI 3.1.1, 4.8).

use serde_json::{Map, Value, json};

use super::described::{Answer, Content, Described, Parameter, Place};
use super::schemas::{Contract, Schemas};

/// What readers have to know besides.
const ABOUT: &str = "A microVM, driven by HTTP and JSON on a unix socket. Success is answered with 200 and a body, or \
                     204 without one; the header `Deprecation: true` says that the request used what will go.";

/// Puts a document together.
///
/// # Panics
/// If an operation is described twice, two have one `id`, or a path has a name in it that is no parameter: mistakes of
/// a table, which a test finds.
pub fn document(title: &str, version: &str, operations: &[Described]) -> Value {
    check(operations);
    let mut schemas = Schemas::new();
    let mut paths: Map<String, Value> = Map::new();
    for described in operations {
        let item = paths.entry(described.path).or_insert_with(|| json!({}));
        item[described.method.to_ascii_lowercase()] = operation(described, &mut schemas);
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": { "title": title, "version": version, "description": ABOUT },
        "paths": paths,
    });
    let components = schemas.finish(&mut document);
    document["components"] = json!({ "schemas": components });
    document
}

fn check(operations: &[Described]) {
    for (index, described) in operations.iter().enumerate() {
        let Described {
            method, path, id, ..
        } = described;
        for other in &operations[..index] {
            assert_ne!(
                (other.method, other.path),
                (*method, *path),
                "described twice"
            );
            assert_ne!(other.id, *id, "two operations have one name");
        }
        let names = path.split('/').filter_map(|part| part.strip_prefix('{'));
        for name in names.filter_map(|name| name.strip_suffix('}')) {
            let there = |p: &Parameter| p.place == Place::Path && p.name == name;
            assert!(
                described.parameters.iter().any(there),
                "{method} {path}: {name} is no parameter"
            );
        }
    }
}

fn operation(described: &Described, schemas: &mut Schemas) -> Value {
    let mut object = json!({
        "operationId": described.id,
        "summary": described.summary,
        "tags": [described.tag],
        "responses": described
            .answers
            .iter()
            .map(|answer| (answer.status.to_string(), response(answer, schemas)))
            .collect::<Map<_, _>>(),
    });
    if described.deprecated {
        object["deprecated"] = true.into();
    }
    if !described.parameters.is_empty() {
        let all = described.parameters.iter();
        object["parameters"] = all.map(|one| parameter(one, schemas)).collect();
    }
    if let Some(request) = &described.request {
        object["requestBody"] = json!({
            "required": described.required,
            "content": content(request, schemas, Contract::Read),
        });
    }
    object
}

fn response(answer: &Answer, schemas: &mut Schemas) -> Value {
    let mut object = json!({ "description": answer.description });
    if let Some(body) = &answer.content {
        object["content"] = content(body, schemas, Contract::Written);
    }
    object
}

fn parameter(parameter: &Parameter, schemas: &mut Schemas) -> Value {
    json!({
        "in": match parameter.place {
            Place::Path => "path",
            Place::Query => "query",
        },
        "name": parameter.name,
        "description": parameter.description,
        "required": parameter.place == Place::Path,
        "schema": schemas.of(parameter.schema, Contract::Read),
    })
}

fn content(content: &Content, schemas: &mut Schemas, contract: Contract) -> Value {
    let schema = schemas.of(content.schema, contract);
    json!({ content.media: { "schema": schema } })
}
