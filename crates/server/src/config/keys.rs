//! Finds keys that no section knows, and names the nearest one that exists.
//!
//! The known keys are those of the JSON schema of [`super::Config`], so this cannot fall behind the types.

use serde_json::{Map, Value};

/// A key that does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnknownKey {
    /// Where it stands, such as `server.prot`.
    pub path: String,
    /// The key beside it that it resembles most, if any does.
    pub nearest: Option<String>,
}

/// The first key of `document` that `schema` does not know.
pub(super) fn find_unknown(schema: &Value, document: &Value) -> Option<UnknownKey> {
    Walk { root: schema }.value(&[schema], document, "")
}

/// The name among `known` that `name` was probably meant to be.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(&name.to_lowercase(), candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

struct Walk<'a> {
    root: &'a Value,
}

impl<'a> Walk<'a> {
    /// `schemas` are the alternatives that hold for `value`.
    fn value(&self, schemas: &[&'a Value], value: &Value, path: &str) -> Option<UnknownKey> {
        let schemas = self.alternatives(schemas);
        match value {
            Value::Object(object) => self.object(&schemas, object, path),
            Value::Array(items) => {
                let inner: Vec<&Value> = schemas.iter().filter_map(|schema| schema.get("items")).collect();
                items.iter().enumerate().find_map(|(index, item)| self.value(&inner, item, &format!("{path}[{index}]")))
            }
            _ => None,
        }
    }

    fn object(&self, schemas: &[&'a Value], object: &Map<String, Value>, path: &str) -> Option<UnknownKey> {
        let properties: Vec<&Map<String, Value>> =
            schemas.iter().filter_map(|schema| schema.get("properties")?.as_object()).collect();
        let others: Vec<&Value> = schemas.iter().filter_map(|schema| schema.get("additionalProperties")).collect();
        let open = others.iter().any(|other| *other != &Value::Bool(false)) || properties.is_empty();
        object.iter().find_map(|(key, value)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let known: Vec<&Value> = properties.iter().filter_map(|map| map.get(key)).collect();
            if !known.is_empty() {
                return self.value(&known, value, &path);
            }
            if open {
                return self.value(&others, value, &path);
            }
            let names = properties.iter().flat_map(|map| map.keys().map(String::as_str));
            Some(UnknownKey { nearest: nearest(key, names).map(str::to_owned), path })
        })
    }

    /// `schemas` with references followed and `anyOf`, `oneOf` and `allOf` opened.
    fn alternatives(&self, schemas: &[&'a Value]) -> Vec<&'a Value> {
        let mut found = Vec::new();
        let mut open: Vec<&'a Value> = schemas.to_vec();
        while let Some(schema) = open.pop() {
            found.push(schema);
            if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
                open.extend(self.root.pointer(reference.trim_start_matches('#')));
            }
            for word in ["anyOf", "oneOf", "allOf"] {
                open.extend(schema.get(word).and_then(Value::as_array).into_iter().flatten());
            }
        }
        found
    }
}
