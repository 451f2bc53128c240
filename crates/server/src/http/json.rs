//! Reads JSON text into a value, more strictly than `serde_json` does by itself.
//!
//! A name given twice in one object is refused, because its readers would not agree on which one counts; so is the
//! character U+0000, which cannot be stored everywhere. Nesting is bounded by `serde_json`.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::error::ApiError;
use super::fields;

/// The value that `text` says.
pub(super) fn parse(text: &str) -> Result<Value, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let value = Strict.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    let value = value.map_err(|error| ApiError::invalid(format!("the body is not valid JSON: {}", problem(&error))))?;
    // Only an escape can bring the character in, so most texts need no second look.
    if text.contains("\\u0000") {
        refuse_nul(&value, "")?;
    }
    Ok(value)
}

/// What is wrong and where, but nothing of what the text says.
fn problem(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Data => "a field is given twice in one object",
        _ => "unexpected content, a bad number or too much nesting",
    };
    format!("{what}, at line {} column {}", error.line(), error.column())
}

fn refuse_nul(value: &Value, path: &str) -> Result<(), ApiError> {
    let refusal = |path: &str| ApiError::invalid(format!("{path}: the character U+0000 is not allowed"));
    match value {
        Value::String(text) if text.contains('\0') => Err(refusal(path)),
        Value::Array(items) => {
            items.iter().enumerate().try_for_each(|(index, item)| refuse_nul(item, &format!("{path}[{index}]")))
        }
        Value::Object(object) => object.iter().try_for_each(|(name, field)| {
            if name.contains('\0') {
                return Err(refusal(&format!("a field name in {}", if path.is_empty() { "the body" } else { path })));
            }
            refuse_nul(field, &fields::join(path, name))
        }),
        _ => Ok(()),
    }
}

/// Builds a [`Value`], and minds names given twice.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Self)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(A::Error::custom("a name given twice"));
            }
            let value = entries.next_value_seed(Self)?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_serde_json_reads() {
        for text in [
            r#"{"a":[1,-2,0.5,1e3,18446744073709551615,true,null,"t\u00e9\ud83c\udf89"],"":{}}"#,
            "null",
            " [ ] ",
            "1e-7",
        ] {
            let expected: Value = serde_json::from_str(text).unwrap();
            assert_eq!(parse(text).unwrap(), expected);
        }
    }

    #[test]
    fn says_where_but_not_what() {
        for (text, named) in [
            (r#"{"secret": "x", "secret": "y"}"#, "twice"),
            (r#"{"a": {"b": 1, "b": 1}}"#, "twice"),
            (r#"{"a": secret}"#, "column 7"),
            (r#"{"a": "secret"#, "too early"),
            ("{} secret", "unexpected"),
            (r#"{"a": [{"b": "secret\u0000"}]}"#, "a[0].b: the character U+0000"),
        ] {
            let message = parse(text).unwrap_err().message;
            assert!(message.contains(named) && !message.contains("secret"), "{text}: {message}");
        }
    }
}
