//! Metadata: at most 16 pairs of short strings, changed by merge patch.

use std::collections::BTreeMap;

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, expected, join};

const PAIRS_MAX: usize = 16;
const KEY_CHARACTERS_MAX: usize = 64;
const VALUE_CHARACTERS_MAX: usize = 512;

/// The pairs of a resource.
pub(super) type Metadata = BTreeMap<String, String>;

/// Keys to set, and keys (`None`) to delete.
pub(super) type MetadataPatch = BTreeMap<String, Option<String>>;

/// Reads `metadata` of a new resource.
pub(super) fn read(fields: &mut Fields) -> Result<Metadata, ApiError> {
    let mut metadata = Metadata::new();
    for (key, value) in pairs(fields)? {
        let path = join(&fields.at("metadata"), &key);
        match value {
            Value::String(value) => metadata.insert(key, value),
            other => return Err(expected(&path, "a string", &other)),
        };
    }
    check(&metadata)?;
    Ok(metadata)
}

/// Reads `metadata` of an update; absent and `null` change nothing.
pub(super) fn read_patch(fields: &mut Fields) -> Result<MetadataPatch, ApiError> {
    let mut patch = MetadataPatch::new();
    for (key, value) in pairs(fields)? {
        let path = join(&fields.at("metadata"), &key);
        match value {
            Value::String(value) => patch.insert(key, Some(value)),
            Value::Null => patch.insert(key, None),
            other => return Err(expected(&path, "a string or null", &other)),
        };
    }
    Ok(patch)
}

/// `current` after `patch`; the limits hold for the result.
pub(super) fn merge(current: &Metadata, patch: &MetadataPatch) -> Result<Metadata, ApiError> {
    let mut merged = current.clone();
    for (key, value) in patch {
        match value {
            Some(value) => merged.insert(key.clone(), value.clone()),
            None => merged.remove(key),
        };
    }
    check(&merged)?;
    Ok(merged)
}

/// Names every problem of a bag, not only the first.
fn check(metadata: &Metadata) -> Result<(), ApiError> {
    let mut problems = Vec::new();
    if metadata.len() > PAIRS_MAX {
        problems.push(format!("{} pairs, at most {PAIRS_MAX} are allowed", metadata.len()));
    }
    for (key, value) in metadata {
        let shown: String = key.chars().take(KEY_CHARACTERS_MAX).collect();
        if key.is_empty() {
            problems.push("a key is empty".to_owned());
        }
        if key.chars().count() > KEY_CHARACTERS_MAX {
            problems.push(format!("the key starting {shown:?} is longer than {KEY_CHARACTERS_MAX} characters"));
        }
        if value.chars().count() > VALUE_CHARACTERS_MAX {
            problems.push(format!("the value of {shown:?} is longer than {VALUE_CHARACTERS_MAX} characters"));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    problems.truncate(8);
    Err(ApiError::invalid(format!("metadata: {}", problems.join("; "))).code("invalid_metadata"))
}

fn pairs(fields: &mut Fields) -> Result<Vec<(String, Value)>, ApiError> {
    Ok(match fields.object("metadata")? {
        Some(object) => object.into_pairs(),
        None => Vec::new(),
    })
}

/// An empty string deletes as `null` does: environments alone read patches so.
pub(super) fn empty_deletes(patch: MetadataPatch) -> MetadataPatch {
    patch.into_iter().map(|(key, value)| (key, value.filter(|value| !value.is_empty()))).collect()
}
