//! JSON that is what it has to be, and not only something that could be meant.
//!
//! Derived readers of structures take arrays, too, field by field: `[1, 128]` would be two processors' worth of a
//! machine, and `[]` an object in which everything is left out. Derived readers of plain enumerations take `{"Word":
//! null}` for `"Word"`. No document says so, and no client does it on purpose.

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer,
    Unexpected, VariantAccess, Visitor,
};
use serde::{Serialize, forward_to_deserialize_any};
use serde_json::{Error, Value};

/// Reads a value: structures from objects, plain enumerations from strings.
///
/// # Errors
/// If it is something else.
pub fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    // This one says in which line the mistake is, and finds names that are there twice.
    let value = serde_json::from_str(text)?;
    T::deserialize(Strict(serde_json::from_str(text)?))?;
    Ok(value)
}

/// Reads a value as [`from_str`], of a type with enumerations whose words stand among their fields (`tag`): readers of
/// these look at their fields by themselves, and not strictly. What was read is written again, and what
/// is written is what was said: no array where an object is, no number where a word is.
///
/// # Errors
/// If it is something else.
pub fn from_str_tagged<T: DeserializeOwned + Serialize>(text: &str) -> Result<T, Error> {
    let value: T = from_str(text)?;
    let written = serde_json::to_value(&value)?;
    compare(&serde_json::from_str(text)?, &written, "the body")?;
    Ok(value)
}

/// Compares what was said with what it was taken for.
fn compare(said: &Value, taken: &Value, place: &str) -> Result<(), Error> {
    match (said, taken) {
        (Value::Object(said), Value::Object(taken)) => {
            let both = said
                .iter()
                .filter_map(|(name, value)| Some((name, value, taken.get(name)?)));
            for (name, said, taken) in both {
                compare(said, taken, name)?;
            }
            Ok(())
        }
        (Value::Array(said), Value::Array(taken)) => {
            let mut both = said.iter().zip(taken);
            both.try_for_each(|(said, taken)| compare(said, taken, place))
        }
        // What is left out may be said so.
        (Value::Null, _) => Ok(()),
        _ if kind(said) == kind(taken) => Ok(()),
        _ => {
            let (said, taken) = (kind(said), kind(taken));
            Err(Error::custom(format!(
                "invalid type: {said}, expected {taken} for `{place}`"
            )))
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value that is read strictly, and all in it.
struct Strict(Value);

fn unexpected(value: &Value) -> Unexpected<'_> {
    match value {
        Value::Array(_) => Unexpected::Seq,
        Value::Object(_) => Unexpected::Map,
        Value::Null => Unexpected::Unit,
        _ => Unexpected::Other("another value"),
    }
}

impl<'de> IntoDeserializer<'de, Error> for Strict {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Strict {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(all) => visitor.visit_seq(SeqDeserializer::new(all.into_iter().map(Self))),
            Value::Object(map) => {
                let fields = map.into_iter().map(|(name, value)| (name, Self(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::Object(_) => self.deserialize_any(visitor),
            other => Err(Error::invalid_type(unexpected(&other), &visitor)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(word) => visitor.visit_enum(word.into_deserializer()),
            Value::Object(map) if map.len() == 1 => {
                let mut map = map.into_iter();
                match map.next() {
                    Some((name, value)) => visitor.visit_enum(Variant { name, value }),
                    None => Err(Error::custom("an object with one field has one")),
                }
            }
            other => Err(Error::invalid_type(unexpected(&other), &visitor)),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

/// A word that comes with a value, as an object of one field.
struct Variant {
    name: String,
    value: Value,
}

impl<'de> EnumAccess<'de> for Variant {
    type Error = Error;
    type Variant = Strict;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Strict), Error> {
        let name = seed.deserialize(IntoDeserializer::<Error>::into_deserializer(self.name))?;
        Ok((name, Strict(self.value)))
    }
}

impl<'de> VariantAccess<'de> for Strict {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Err(Error::custom("this word is a string, and no object"))
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_struct("", fields, visitor)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    enum Word {
        Yes,
        Number(u8),
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        number: u8,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Outer {
        #[serde(default)]
        word: Option<Word>,
        #[serde(default)]
        inner: Vec<Inner>,
        #[serde(default)]
        any: Value,
    }

    #[test]
    fn structures_are_objects_and_words_are_strings_wherever_they_are() {
        for (text, good) in [
            ("{}", true),
            ("[]", false),
            (r#"["Yes", []]"#, false),
            (r#"{"word": "Yes"}"#, true),
            (r#"{"word": null}"#, true),
            (r#"{"word": {"Yes": null}}"#, false),
            (r#"{"word": {"Number": 7}}"#, true),
            (r#"{"word": {"Number": 7, "Yes": 1}}"#, false),
            (r#"{"word": "Number"}"#, false),
            (r#"{"word": {"Number": [7]}}"#, false),
            (r#"{"inner": [{"number": 255}]}"#, true),
            (r#"{"inner": [[255]]}"#, false),
            (r#"{"inner": [{"number": 256}]}"#, false),
            (r#"{"any": [[], {"Yes": null}]}"#, true),
        ] {
            assert_eq!(from_str::<Outer>(text).is_ok(), good, "{text}");
        }
    }
}
