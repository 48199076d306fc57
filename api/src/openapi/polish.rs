//! What schemas of types do not say by themselves, or say in more words than readers and generators want.

use serde_json::{Map, Value};

/// Has a look at every object in a value.
pub fn walk(value: &mut Value, look: &mut impl FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Object(map) => {
            look(map);
            map.values_mut().for_each(|value| walk(value, look));
        }
        Value::Array(all) => all.iter_mut().for_each(|value| walk(value, look)),
        _ => {}
    }
}

/// Puts a schema in its final form.
pub fn schema(value: &mut Value) {
    walk(value, &mut |map| {
        bound(map);
        gather_words(map);
        // A field that may be left out is null then: that it may be null is said already.
        if map.get("default") == Some(&Value::Null) {
            map.remove("default");
        }
        // Line breaks and links of the source are none of the text.
        if let Some(Value::String(text)) = map.get_mut("description") {
            *text = text
                .split("\n\n")
                .map(|p| p.replace('\n', " ").replace("[`", "`").replace("`]", "`"))
                .collect::<Vec<_>>()
                .join("\n\n");
        }
    });
}

/// Lets objects have more than what is known of them.
pub fn open(value: &mut Value) {
    walk(value, &mut |map| {
        if map.get("additionalProperties") == Some(&Value::Bool(false)) {
            map.remove("additionalProperties");
        }
    });
}

/// Says how large a number can be where only its format does.
fn bound(map: &mut Map<String, Value>) {
    let largest = match map.get("format").and_then(Value::as_str) {
        Some("uint32") => u32::MAX.into(),
        Some("uint64") => u64::MAX,
        _ => return,
    };
    map.entry("maximum").or_insert_with(|| largest.into());
}

/// Makes an enumeration of words, each with its meaning, one schema.
fn gather_words(map: &mut Map<String, Value>) {
    let Some(words) = map.get("oneOf").and_then(words) else {
        return;
    };
    let mut text = map
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    if words.iter().any(|(_, meaning)| !meaning.is_empty()) {
        text.push_str("\n\n");
    }
    for (word, meaning) in words.iter().filter(|(_, meaning)| !meaning.is_empty()) {
        text.push_str(&format!("- `{word}`: {meaning}\n\n"));
    }
    let all = words.into_iter().map(|(word, _)| word).collect();
    map.remove("oneOf");
    map.insert("type".into(), "string".into());
    map.insert("enum".into(), all);
    map.insert("description".into(), text.trim_end().into());
}

/// The words of an enumeration, if it is one of words.
fn words(one_of: &Value) -> Option<Vec<(String, String)>> {
    let mut words = Vec::new();
    for one in one_of.as_array()? {
        let one = one.as_object()?;
        let text = |name: &str| one.get(name).and_then(Value::as_str);
        let meaning = text("description").unwrap_or_default();
        match (text("const"), one.get("enum").and_then(Value::as_array)) {
            (Some(word), None) => words.push((word.to_owned(), meaning.to_owned())),
            (None, Some(plain)) => {
                for word in plain {
                    words.push((word.as_str()?.to_owned(), meaning.to_owned()));
                }
            }
            _ => return None,
        }
    }
    Some(words)
}
