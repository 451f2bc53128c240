//! Reads a JSON object field by field, and names what is wrong by its path.
//!
//! Fields that nobody asked for are refused at the end, with the nearest name that was: so the code that reads an
//! object is also the list of what it may hold. Absent, `null` and a value are told apart where it matters
//! ([`Patch`]).

use serde_json::{Map, Value};

use super::error::ApiError;

/// An object being read.
pub(super) struct Fields {
    path: String,
    fields: Map<String, Value>,
    asked: Vec<&'static str>,
}

/// What an update does to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Patch<T> {
    /// Absent.
    Keep,
    /// `null`.
    Clear,
    Set(T),
}

impl<T> Patch<T> {
    /// The field after the update.
    pub(super) fn apply(self, current: Option<T>) -> Option<T> {
        match self {
            Self::Keep => current,
            Self::Clear => None,
            Self::Set(value) => Some(value),
        }
    }
}

impl Fields {
    /// The body of a request.
    pub(super) fn body(fields: Map<String, Value>) -> Self {
        Self { path: String::new(), fields, asked: Vec::new() }
    }

    /// The object at `path`.
    pub(super) fn of(value: Value, path: impl Into<String>) -> Result<Self, ApiError> {
        let path = path.into();
        match value {
            Value::Object(fields) => Ok(Self { path, fields, asked: Vec::new() }),
            other => Err(expected(&path, "an object", &other)),
        }
    }

    /// The path of the field `name`, for messages.
    pub(super) fn at(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// The value of a field, `null` included.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Value> {
        self.asked.push(name);
        self.fields.remove(name)
    }

    /// The value of a field that may be absent or `null`.
    pub(super) fn given(&mut self, name: &'static str) -> Option<Value> {
        self.take(name).filter(|value| !value.is_null())
    }

    /// The value of a field that must be there.
    pub(super) fn required(&mut self, name: &'static str) -> Result<Value, ApiError> {
        self.given(name).ok_or_else(|| ApiError::invalid(format!("{}: required", self.at(name))))
    }

    pub(super) fn required_string(&mut self, name: &'static str) -> Result<String, ApiError> {
        let value = self.required(name)?;
        string(value, &self.at(name))
    }

    pub(super) fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        self.given(name).map(|value| string(value, &self.at(name))).transpose()
    }

    /// A string that an update may keep, clear or set.
    pub(super) fn string_patch(&mut self, name: &'static str) -> Result<Patch<String>, ApiError> {
        match self.take(name) {
            None => Ok(Patch::Keep),
            Some(Value::Null) => Ok(Patch::Clear),
            Some(value) => string(value, &self.at(name)).map(Patch::Set),
        }
    }

    pub(super) fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        match self.given(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(expected(&self.at(name), "true or false", &other)),
        }
    }

    /// A whole number from 1.
    pub(super) fn version(&mut self, name: &'static str) -> Result<Option<u32>, ApiError> {
        let Some(value) = self.given(name) else { return Ok(None) };
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) if number >= 1 => Ok(Some(number)),
            _ => Err(expected(&self.at(name), "a whole number from 1", &value)),
        }
    }

    pub(super) fn array(&mut self, name: &'static str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.given(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(expected(&self.at(name), "an array", &other)),
        }
    }

    pub(super) fn object(&mut self, name: &'static str) -> Result<Option<Fields>, ApiError> {
        let path = self.at(name);
        self.given(name).map(|value| Fields::of(value, path)).transpose()
    }

    /// Refuses a field of the API that this server does not have, unless it asks for nothing.
    pub(super) fn unsupported(&mut self, name: &'static str, hint: &str) -> Result<(), ApiError> {
        let asks = match self.take(name) {
            None | Some(Value::Null) => false,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(_) => true,
        };
        if asks { Err(ApiError::unsupported(&self.at(name), hint)) } else { Ok(()) }
    }

    /// Reads a field only to ignore it: what it says changes nothing in this server.
    pub(super) fn ignore(&mut self, name: &'static str) {
        self.take(name);
    }

    /// Every field as it stands, for objects whose names are the client's.
    pub(super) fn into_pairs(self) -> Vec<(String, Value)> {
        self.fields.into_iter().collect()
    }

    /// Refuses whatever was not asked for.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        let Some(unknown) = self.fields.keys().next() else { return Ok(()) };
        let path = self.at(&unknown.chars().take(64).collect::<String>());
        Err(ApiError::invalid(format!("{path}: unknown field{}", suggestion(unknown, &self.asked))))
    }
}

/// A text saying which of `known` was probably meant.
pub(super) fn suggestion(unknown: &str, known: &[&'static str]) -> String {
    let unknown: String = unknown.chars().take(64).collect();
    let nearest = known
        .iter()
        .map(|known| (strsim::jaro_winkler(&unknown, known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|left, right| left.0.total_cmp(&right.0));
    nearest.map_or_else(String::new, |(_, known)| format!("; did you mean {known}?"))
}

/// `value` as a string.
pub(super) fn string(value: Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(expected(path, "a string", &other)),
    }
}

/// The refusal of a value of the wrong type.
pub(super) fn expected(path: &str, what: &str, got: &Value) -> ApiError {
    let got = match got {
        Value::Number(number) => format!("{number}"),
        other => kind(other).to_owned(),
    };
    ApiError::invalid(format!("{path}: expected {what}, got {got}"))
}

/// What a value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Refuses text shorter or longer than allowed, in characters.
pub(super) fn check_length(text: &str, path: &str, min: usize, max: usize) -> Result<(), ApiError> {
    let length = text.chars().count();
    if length < min {
        return Err(ApiError::invalid(format!("{path}: must not be empty")));
    }
    if length > max {
        return Err(ApiError::invalid(format!("{path}: {length} characters long; at most {max} are allowed")));
    }
    Ok(())
}

/// The path of `name` within `path`.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
