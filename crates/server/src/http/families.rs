//! Parts of the API that this server knows of and does not have: 501, naming the family.

use axum::extract::OriginalUri;
use axum::http::Uri;

use super::auth::Caller;
use super::error::{ApiError, Kind};

/// First segments behind `/v1/` of whole families that do not exist here.
pub(super) const FAMILIES: [&str; 12] = [
    "complete",
    "deployment_runs",
    "deployments",
    "dreams",
    "memory_stores",
    "messages",
    "organizations",
    "skills",
    "tunnels",
    "user_profiles",
    "vaults",
    "webhooks",
];

/// Any method on a path of a family.
pub(super) async fn family(_caller: Caller, OriginalUri(uri): OriginalUri) -> ApiError {
    refusal(family_of(&uri))
}

fn family_of(uri: &Uri) -> &'static str {
    let segment = uri.path().split('/').nth(2).unwrap_or("");
    FAMILIES.into_iter().find(|family| *family == segment).unwrap_or("this part")
}

fn refusal(family: &str) -> ApiError {
    ApiError::new(Kind::NotImplemented, format!("{family}: this server does not implement this part of the API"))
}
