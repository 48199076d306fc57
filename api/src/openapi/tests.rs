//! Documents of types that nobody else has.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Content, Described, Parameter, Place, document};

/// Both ways the same.
#[derive(Deserialize, Serialize, JsonSchema)]
enum Word {
    /// The first.
    One,
    /// The second.
    Two,
}

/// Its field may be left out of what is read.
#[derive(Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Inner {
    #[serde(default)]
    number: u32,
}

/// Says the same both ways, and refers to what does not.
#[derive(Deserialize, Serialize, JsonSchema)]
struct Outer {
    inner: Inner,
    word: Word,
}

fn number(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<u8>()
}

fn parameter(place: Place, name: &'static str) -> Parameter {
    Parameter {
        place,
        name,
        description: "A number.",
        schema: number,
    }
}

fn one() -> Described {
    Described::new("POST", "/things/{thing}", "makeThing")
        .about("Things", "Makes a thing.")
        .parameter(parameter(Place::Path, "thing"))
        .parameter(parameter(Place::Query, "wait"))
        .takes::<Outer>()
        .gives::<Outer>(201, "It is there.")
        .done(409, "It was there.")
}

#[test]
fn an_operation_is_all_that_is_said_of_it() {
    let mut stream = Described::new("GET", "/things", "watchThings").done(200, "They come.");
    stream.deprecated = true;
    stream.answers[0].content = Some(Content {
        media: "text/event-stream",
        schema: number,
    });
    let document = document("Things", "1", &[one(), stream]);
    let made = &document["paths"]["/things/{thing}"]["post"];
    assert_eq!(made["operationId"], "makeThing");
    assert_eq!(made["parameters"][0]["in"], "path");
    assert_eq!(made["parameters"][0]["required"], true);
    assert_eq!(made["parameters"][1]["in"], "query");
    assert_eq!(made["parameters"][1]["required"], false);
    assert_eq!(made["requestBody"]["required"], true);
    assert_eq!(
        made["responses"]["409"],
        json!({ "description": "It was there." })
    );
    let watched = &document["paths"]["/things"]["get"];
    assert_eq!(watched["deprecated"], true);
    let content = &watched["responses"]["200"]["content"]["text/event-stream"];
    assert_eq!(content["schema"]["maximum"], 255);
}

#[test]
fn what_is_written_has_a_name_of_its_own_where_it_is_another_thing() {
    let document = document("Things", "1", &[one()]);
    let schemas = &document["components"]["schemas"];
    let names: Vec<_> = schemas.as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        ["Inner", "InnerAnswer", "Outer", "OuterAnswer", "Word"]
    );
    let refers = |name: &str| schemas[name]["properties"]["inner"]["$ref"].clone();
    assert_eq!(refers("Outer"), "#/components/schemas/Inner");
    assert_eq!(refers("OuterAnswer"), "#/components/schemas/InnerAnswer");
    assert_eq!(schemas["Inner"].get("required"), None);
    assert_eq!(schemas["Inner"]["additionalProperties"], false);
    assert_eq!(
        schemas["Inner"]["properties"]["number"]["maximum"],
        u32::MAX
    );
    assert_eq!(schemas["InnerAnswer"]["required"], json!(["number"]));
    assert_eq!(schemas["InnerAnswer"].get("additionalProperties"), None);
    let answer = &document["paths"]["/things/{thing}"]["post"]["responses"]["201"];
    assert_eq!(
        answer["content"]["application/json"]["schema"]["$ref"],
        "#/components/schemas/OuterAnswer"
    );
}

#[test]
fn words_are_one_enumeration_with_their_meanings() {
    let document = document("Things", "1", &[one()]);
    let word = &document["components"]["schemas"]["Word"];
    assert_eq!(word["enum"], json!(["One", "Two"]));
    assert_eq!(
        word["description"],
        "Both ways the same.\n\n- `One`: The first.\n\n- `Two`: The second."
    );
    assert_eq!(word.get("oneOf"), None);
}

#[test]
#[should_panic(expected = "described twice")]
fn nothing_is_described_twice() {
    let mut other = one();
    other.id = "another";
    let _: Value = document("Things", "1", &[one(), other]);
}

#[test]
#[should_panic(expected = "two operations have one name")]
fn every_operation_has_a_name_of_its_own() {
    let mut other = one();
    other.method = "PUT";
    let _: Value = document("Things", "1", &[one(), other]);
}

#[test]
#[should_panic(expected = "thing is no parameter")]
fn every_name_in_a_path_is_a_parameter() {
    let mut other = one();
    other.parameters.clear();
    let _: Value = document("Things", "1", &[other]);
}
