//! Ids in paths. Anything that cannot be an id is simply not found, before any store hears of it.

use std::collections::HashMap;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use session::Identifier;

use super::error::{ApiError, Kind};

const ID_BYTES_MAX: usize = 256;

/// The parameters of a matched path, by name.
pub(super) struct Ids(HashMap<String, String>);

impl Ids {
    /// The id of the path parameter `name`, which is one of `what`.
    pub(super) fn get<I: Identifier>(&self, name: &str, what: &str) -> Result<I, ApiError> {
        parse(self.text(name), what)
    }

    /// The path parameter `name` as it stands.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

/// The id that `text` may be: characters of an id and the right prefix. Bodies are opaque.
pub(super) fn parse<I: Identifier>(text: &str, what: &str) -> Result<I, ApiError> {
    let plausible = text.len() <= ID_BYTES_MAX
        && text.starts_with(I::PREFIX)
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if plausible { Ok(I::from(text.to_owned())) } else { Err(ApiError::not_found(what, text)) }
}

impl<S: Send + Sync> FromRequestParts<S> for Ids {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(ids) = Path::<HashMap<String, String>>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::new(Kind::NotFound, "the path is not valid UTF-8"))?;
        Ok(Self(ids))
    }
}
