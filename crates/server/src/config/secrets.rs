//! Secrets in settings: given in place or in a file of their own, never shown.

use std::path::{Path, PathBuf};

use serde::Serializer;

use crate::secret::Secret;

/// A secret could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("{name} and {name}_file are both set: keep one of them")]
    Both { name: &'static str },
    #[error("{name}_file: cannot read {}: {source}", path.display())]
    Unreadable { name: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{name}_file: {} is empty", path.display())]
    Empty { name: &'static str, path: PathBuf },
}

/// What `config check` prints in place of a secret.
pub const HIDDEN: &str = "(hidden)";

/// Fills `value` from `file` when one is named. A line feed at the end of the file is no part of the secret.
pub(super) fn read(name: &'static str, value: &mut Option<Secret>, file: Option<&Path>) -> Result<(), SecretError> {
    let Some(path) = file else { return Ok(()) };
    if value.is_some() {
        return Err(SecretError::Both { name });
    }
    let text = std::fs::read_to_string(path).map_err(|source| SecretError::Unreadable {
        name,
        path: path.to_owned(),
        source,
    })?;
    let secret = Secret::new(text);
    if secret.is_empty() {
        return Err(SecretError::Empty { name, path: path.to_owned() });
    }
    *value = Some(secret);
    Ok(())
}

/// Says that there is a secret, never which.
pub(super) fn serialize<S: Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(_) => serializer.serialize_some(HIDDEN),
        None => serializer.serialize_none(),
    }
}
