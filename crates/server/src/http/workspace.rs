//! Workspace snapshots, as our own workers keep and fetch them. Not for clients.
//!
//! A worker holds no credential of the object store: its chunks come and go here, under the token of its work item. It
//! sends chunks first, then the manifest that names them; the record that makes it the session's comes last, so that
//! whatever a record names is there. A session sees only chunks that it refers to itself, whoever else has equal ones.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use engine::port::{AppendError, BlobHash, Blobs, Fence};
use engine::sessions::CommandError;
use serde_json::{Value, json};
use session::event::EnvironmentKind;
use session::id::EventId;
use session::manifest::{CHUNK_BYTES_MAX, ContentHash, MANIFEST_BYTES_MAX, Manifest};
use session::{Command, Refusal};

use super::Service;
use super::auth::Caller;
use super::body::{self, JsonBody};
use super::context::{Restored, Saved};
use super::error::ApiError;
use super::fields;
use super::idempotency;
use super::internal::{HeldItem, held_item};
use super::path::{self, Ids};
use super::query::{NoQuery, Query};

/// Hashes that a worker may ask about at once.
const HASHES_MAX: usize = 10_000;
/// How long a reference is kept that no snapshot needs: a worker may be about to send the manifest that does.
const REFERENCE_KEPT_MS: i64 = 3_600_000;

/// `GET /v1/internal/sessions/{session_id}/workspace`: which folder is the session's, and what of it is kept.
pub(super) async fn retrieve(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let held = held_item(caller, &ids)?;
    let session_id = &held.item.session_id;
    let state = service.sessions.state(session_id).await?;
    let state = state.ok_or_else(|| ApiError::not_found("session", session_id.as_str()))?;
    let saved = state.workspace.saved.as_ref();
    // The files of a client's environment are the client's own business.
    let is_tracked = state.environment_kind == EnvironmentKind::Cloud;
    let is_kept = is_tracked && service.world.blobs.is_some();
    Ok(Json(json!({
        "type": "workspace",
        "tip": state.workspace.tip,
        "manifest": saved.map(|saved| saved.manifest.as_str()),
        "is_tracked": is_tracked,
        "is_kept": is_kept,
    })))
}

/// `POST /v1/internal/sessions/{session_id}/workspace`: makes the manifest in the body the session's snapshot.
pub(super) async fn save(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    mut query: Query,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    idempotency::refuse(request.headers())?;
    let held = held_item(caller, &ids)?;
    let tip = query.string("tip")?.map(|tip| path::parse(&tip, "event")).transpose()?;
    let duration_ms: u64 = query.number("duration_ms", 0, u64::from(u32::MAX))?.unwrap_or_default();
    query.finish()?;
    let result = keep(&service, &held, tip, request).await;
    service.observer.workspace_saved(&match &result {
        Ok((_, bytes)) => Saved::Kept { bytes: *bytes, seconds: duration_ms as f64 / 1000.0 },
        Err(SaveError::Overtaken) => Saved::Overtaken,
        Err(SaveError::Other(_)) => Saved::Refused,
    });
    let (manifest, bytes) = result?;
    Ok(Json(json!({"type": "workspace_saved", "manifest": manifest, "bytes": bytes})))
}

enum SaveError {
    /// The lease has ended, or a call has changed the files.
    Overtaken,
    Other(ApiError),
}

impl From<ApiError> for SaveError {
    fn from(error: ApiError) -> Self {
        Self::Other(error)
    }
}

impl From<SaveError> for ApiError {
    fn from(error: SaveError) -> Self {
        match error {
            SaveError::Overtaken => {
                Self::conflict("the workspace is no longer as it was read, or no longer the caller's")
            }
            SaveError::Other(error) => error,
        }
    }
}

async fn keep(
    service: &Service,
    held: &HeldItem,
    tip: Option<EventId>,
    request: Request,
) -> Result<(ContentHash, u64), SaveError> {
    let blobs = blobs(service)?;
    let session_id = &held.item.session_id;
    let text = body::bytes(request, service, MANIFEST_BYTES_MAX).await?;
    let manifest = Manifest::read(&text).map_err(|error| ApiError::invalid(error.to_string()))?;
    let chunks: Vec<BlobHash> =
        manifest.chunks.iter().filter_map(|chunk| BlobHash::parse(chunk.hash.as_str())).collect();
    let missing = service.world.chunks.missing(session_id, &chunks).await.map_err(ApiError::from)?;
    if let Some(hash) = missing.first() {
        let count = missing.len();
        return Err(ApiError::invalid(format!("{count} chunks of the manifest were never sent, such as {hash}")).into());
    }
    let bytes = manifest.bytes();
    drop(manifest);
    let hash = put(service, blobs, held, text).await?;
    let mut kept = chunks;
    kept.push(hash.clone());
    let manifest = ContentHash::parse(hash.as_str()).expect("both are SHA-256");
    let command = Command::SaveWorkspace { manifest: manifest.clone(), bytes, tip };
    match service.sessions.command(session_id, command, held.fence()).await {
        Ok(_) => {}
        Err(CommandError::TokenEnded | CommandError::Refused(Refusal::Conflict { .. })) => {
            return Err(SaveError::Overtaken);
        }
        Err(error) => return Err(ApiError::from(error).into()),
    }
    // What is forgotten later costs room for a while; the snapshot is taken.
    if let Err(error) = service.world.chunks.forget(session_id, &kept, REFERENCE_KEPT_MS).await {
        tracing::debug!(%session_id, %error, "references to old chunks stay");
    }
    Ok((manifest, bytes))
}

/// `POST /v1/internal/sessions/{session_id}/workspace/restores`: a worker has made the files anew from the last
/// snapshot, or has found none.
pub(super) async fn restore(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let held = held_item(caller, &ids)?;
    let tip = body.string("tip")?.map(|tip| path::parse(&tip, "event")).transpose()?;
    let manifest = match body.string("manifest")? {
        Some(text) => Some(ContentHash::parse(&text).ok_or_else(|| ApiError::invalid("manifest: expected a SHA-256"))?),
        None => None,
    };
    body.finish()?;
    let command = Command::RestoreWorkspace { manifest, tip };
    let restored = service.sessions.command(&held.item.session_id, command, held.fence()).await?;
    let workspace = &restored.state.workspace;
    service.observer.workspace_restored(if workspace.lost.is_some() { Restored::Lost } else { Restored::Whole });
    Ok(Json(json!({"type": "workspace_restored", "tip": workspace.tip})))
}

/// `POST /v1/internal/sessions/{session_id}/chunks/missing`: which of these chunks have to be sent.
pub(super) async fn missing_chunks(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let held = held_item(caller, &ids)?;
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
    let missing = service.world.chunks.missing(&held.item.session_id, &hashes).await?;
    let missing: Vec<&str> = missing.iter().map(BlobHash::as_str).collect();
    Ok(Json(json!({"data": missing})))
}

/// `PUT /v1/internal/sessions/{session_id}/chunks/{hash}`: keeps a chunk.
pub(super) async fn put_chunk(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    idempotency::refuse(request.headers())?;
    let held = held_item(caller, &ids)?;
    let blobs = blobs(&service)?;
    let named = chunk_hash(&ids)?;
    let bytes = body::bytes(request, &service, CHUNK_BYTES_MAX).await?;
    if bytes.is_empty() || ContentHash::of(&bytes).as_str() != named.as_str() {
        return Err(ApiError::invalid("the body is not the chunk that the path names"));
    }
    let count = bytes.len();
    put(&service, blobs, &held, bytes).await?;
    Ok(Json(json!({"type": "chunk", "hash": named.as_str(), "bytes": count})))
}

/// `GET /v1/internal/sessions/{session_id}/chunks/{hash}`: a chunk or manifest that the session refers to.
pub(super) async fn get_chunk(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Response, ApiError> {
    let held = held_item(caller, &ids)?;
    let hash = chunk_hash(&ids)?;
    let missing = service.world.chunks.missing(&held.item.session_id, std::slice::from_ref(&hash)).await?;
    if !missing.is_empty() {
        return Err(ApiError::not_found("chunk", hash.as_str()));
    }
    let bytes = blobs(&service)?.get(&hash).await?;
    let bytes = bytes.ok_or_else(|| ApiError::internal(format!("chunk {hash} is referred to and not there")))?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from(bytes)).into_response())
}

/// Puts the bytes and lets the session refer to them, while the token is the item's.
async fn put(service: &Service, blobs: &dyn Blobs, held: &HeldItem, bytes: Vec<u8>) -> Result<BlobHash, ApiError> {
    let hash = blobs.put(bytes).await?;
    let HeldItem { item, token_hash } = held;
    match service.world.chunks.refer(&item.session_id, &item.id, token_hash, &hash).await {
        Ok(()) => Ok(hash),
        Err(AppendError::Store(error)) => Err(error.into()),
        Err(AppendError::KeyUsed(used)) => Err(used.into()),
        Err(AppendError::TokenEnded | AppendError::Fenced) => Err(ApiError::token_ended()),
        // Nobody has put it for a day until just now, and the collector came in between. The worker sends it again.
        Err(error @ (AppendError::TooManyRunning(_) | AppendError::OverCap(_))) => {
            Err(ApiError::internal(error.to_string()))
        }
        Err(AppendError::Conflict) => Err(ApiError::unavailable("the chunk has to be sent again", "it was collected")),
    }
}

fn blobs(service: &Service) -> Result<&dyn Blobs, ApiError> {
    service.world.blobs.as_deref().ok_or_else(|| {
        ApiError::not_implemented("workspace snapshots need an object store; set OBJECT_STORE_URL at the server")
    })
}

fn chunk_hash(ids: &Ids) -> Result<BlobHash, ApiError> {
    let text = ids.text("hash");
    BlobHash::parse(text).ok_or_else(|| ApiError::not_found("chunk", text))
}

impl HeldItem {
    /// What checks the token again in the transaction.
    fn fence(&self) -> Fence {
        Fence::ItemToken { work_id: self.item.id.clone(), token_hash: self.token_hash.clone() }
    }
}
