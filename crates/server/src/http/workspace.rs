//! Workspace snapshots, as our own workers keep and fetch them. Not for clients.
//!
//! A worker holds no credential of the object store: its chunks come and go here, under the token of its work item. What
//! becomes of them is [`engine::workspaces`]' business.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use engine::port::BlobHash;
use engine::workspaces::{Kept, Known, WorkspaceError};
use serde_json::{Value, json};
use session::manifest::{CHUNK_BYTES_MAX, ContentHash, MANIFEST_BYTES_MAX};

use super::Service;
use super::body::{self, JsonBody};
use super::context::{Restored, Saved};
use super::error::ApiError;
use super::fields;
use super::internal::Held;
use super::path::{self, Ids};
use super::query::{NoQuery, Query};

/// Hashes that a worker may ask about at once.
const HASHES_MAX: usize = 10_000;

/// `GET /v1/internal/sessions/{session_id}/workspace`: which folder is the session's, and what of it is kept.
pub(super) async fn retrieve(
    State(service): State<Service>,
    Held(held): Held,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let Known { tip, manifest, is_tracked, is_kept } = service.sessions.workspaces().known(&held).await?;
    Ok(Json(json!({
        "type": "workspace",
        "tip": tip,
        "manifest": manifest,
        "is_tracked": is_tracked,
        "is_kept": is_kept,
    })))
}

/// `POST /v1/internal/sessions/{session_id}/workspace`: makes the manifest in the body the session's snapshot.
pub(super) async fn save(
    State(service): State<Service>,
    Held(held): Held,
    mut query: Query,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let tip = query.string("tip")?.map(|tip| path::parse(&tip, "event")).transpose()?;
    let duration_ms: u64 = query.number("duration_ms", 0, u64::from(u32::MAX))?.unwrap_or_default();
    query.finish()?;
    let result = match body::bytes(request, &service, MANIFEST_BYTES_MAX).await {
        Ok(text) => service.sessions.workspaces().save(&held, text, tip).await.map_err(SaveError::Workspace),
        Err(error) => Err(SaveError::Body(error)),
    };
    service.observer.workspace_saved(&match &result {
        Ok(kept) => Saved::Kept { bytes: kept.bytes, seconds: duration_ms as f64 / 1000.0 },
        Err(SaveError::Workspace(WorkspaceError::Overtaken)) => Saved::Overtaken,
        Err(_) => Saved::Refused,
    });
    let Kept { manifest, bytes } = result?;
    Ok(Json(json!({"type": "workspace_saved", "manifest": manifest, "bytes": bytes})))
}

enum SaveError {
    Body(ApiError),
    Workspace(WorkspaceError),
}

impl From<SaveError> for ApiError {
    fn from(error: SaveError) -> Self {
        match error {
            SaveError::Body(error) => error,
            SaveError::Workspace(error) => error.into(),
        }
    }
}

/// `POST /v1/internal/sessions/{session_id}/workspace/restores`: a worker has made the files anew from the last
/// snapshot, or has found none.
pub(super) async fn restore(
    State(service): State<Service>,
    Held(held): Held,
    _: NoQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let tip = body.string("tip")?.map(|tip| path::parse(&tip, "event")).transpose()?;
    let manifest = match body.string("manifest")? {
        Some(text) => Some(ContentHash::parse(&text).ok_or_else(|| ApiError::invalid("manifest: expected a SHA-256"))?),
        None => None,
    };
    body.finish()?;
    let workspace = service.sessions.workspaces().restored(&held, manifest, tip).await?;
    service.observer.workspace_restored(if workspace.lost.is_some() { Restored::Lost } else { Restored::Whole });
    Ok(Json(json!({"type": "workspace_restored", "tip": workspace.tip})))
}

/// `POST /v1/internal/sessions/{session_id}/chunks/missing`: which of these chunks have to be sent.
pub(super) async fn missing_chunks(
    State(service): State<Service>,
    Held(held): Held,
    _: NoQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let asked = body.array("hashes")?.unwrap_or_default();
    if asked.len() > HASHES_MAX {
        return Err(ApiError::invalid(format!("hashes: at most {HASHES_MAX} are taken at once")));
    }
    body.finish()?;
    let mut hashes = Vec::with_capacity(asked.len());
    for hash in asked {
        let hash = BlobHash::parse(&fields::string(hash, "hashes")?);
        hashes.push(hash.ok_or_else(|| ApiError::invalid("hashes: expected SHA-256 in hexadecimal digits"))?);
    }
    let unsent = service.sessions.workspaces().unsent(&held, &hashes).await?;
    let unsent: Vec<&str> = unsent.iter().map(BlobHash::as_str).collect();
    Ok(Json(json!({"data": unsent})))
}

/// `PUT /v1/internal/sessions/{session_id}/chunks/{hash}`: keeps a chunk.
pub(super) async fn put_chunk(
    State(service): State<Service>,
    Held(held): Held,
    ids: Ids,
    _: NoQuery,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let named = chunk_hash(&ids)?;
    let bytes = body::bytes(request, &service, CHUNK_BYTES_MAX).await?;
    if bytes.is_empty() || ContentHash::of(&bytes).as_str() != named.as_str() {
        return Err(ApiError::invalid("the body is not the chunk that the path names"));
    }
    let count = bytes.len();
    service.sessions.workspaces().put(&held, bytes).await?;
    Ok(Json(json!({"type": "chunk", "hash": named.as_str(), "bytes": count})))
}

/// `GET /v1/internal/sessions/{session_id}/chunks/{hash}`: a chunk or manifest that the session refers to.
pub(super) async fn get_chunk(
    State(service): State<Service>,
    Held(held): Held,
    ids: Ids,
    _: NoQuery,
) -> Result<Response, ApiError> {
    let bytes = service.sessions.workspaces().chunk(&held, &chunk_hash(&ids)?).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from(bytes)).into_response())
}

fn chunk_hash(ids: &Ids) -> Result<BlobHash, ApiError> {
    let text = ids.text("hash");
    BlobHash::parse(text).ok_or_else(|| ApiError::not_found("chunk", text))
}

impl From<WorkspaceError> for ApiError {
    fn from(error: WorkspaceError) -> Self {
        match error {
            WorkspaceError::NoBlobs => {
                Self::not_implemented("workspace snapshots need an object store; set OBJECT_STORE_URL at the server")
            }
            WorkspaceError::Manifest(_) | WorkspaceError::Unsent { .. } => Self::invalid(error.to_string()),
            WorkspaceError::NoSuchChunk(hash) => Self::not_found("chunk", hash.as_str()),
            WorkspaceError::Collected(_) => Self::unavailable("the chunk has to be sent again", error.to_string()),
            WorkspaceError::Overtaken => Self::conflict(error.to_string()),
            WorkspaceError::TokenEnded => Self::token_ended(),
            WorkspaceError::Missing(_) => Self::internal(error.to_string()),
            WorkspaceError::Command(error) => error.into(),
            WorkspaceError::Store(error) => error.into(),
        }
    }
}
