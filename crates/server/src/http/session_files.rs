//! Files of sessions as our own workers move them: those that are mounted, and those that tools have made. Not for
//! clients.
//!
//! As with workspace snapshots the worker holds the token of its work item and nothing else: it reads the content of
//! what its session was given, and what it sends becomes a file of that session.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use engine::port::resources::{Output, OutputError, PutOutput};
use engine::port::{Blob, BlobHash, Blobs, File};
use engine::workspaces::HeldItem;
use serde_json::{Value, json};

use super::Service;
use super::context::OutputPut;
use super::error::{ApiError, Kind};
use super::internal::Held;
use super::path::Ids;
use super::query::{NoQuery, Query};
use super::upload::{self, FILE_BYTES_MAX};
use super::{body, files, resources};

/// The longest path of an output, in bytes.
const PATH_BYTES_MAX: usize = 1_024;

/// `GET /v1/internal/sessions/{session_id}/resources`: what is to be mounted, and the version of that.
pub(super) async fn mounts(
    State(service): State<Service>,
    Held(held): Held,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let session_id = &held.item.session_id;
    // Read first: what changes in between is then told once more.
    let version = service.world.resources.resources_version(session_id).await?;
    let given = resources::of(&service, session_id).await?;
    let given = given.iter().filter_map(|resource| {
        let hash = resource.file.blob.as_ref()?.as_str();
        Some(json!({"mount_path": resource.mount_path, "hash": hash, "bytes": resource.file.bytes}))
    });
    Ok(Json(json!({"type": "resources", "version": version, "data": given.collect::<Vec<_>>()})))
}

/// `GET /v1/internal/sessions/{session_id}/resources/{hash}`: the content of a file that the session was given.
pub(super) async fn content(
    State(service): State<Service>,
    Held(held): Held,
    ids: Ids,
    _: NoQuery,
) -> Result<Response, ApiError> {
    let named = ids.text("hash");
    let hash = BlobHash::parse(named).ok_or_else(|| ApiError::not_found("content", named))?;
    if !service.world.resources.is_given(&held.item.session_id, &hash).await? {
        return Err(ApiError::not_found("content", named));
    }
    let open = files::blobs(&service)?.open(&hash).await?;
    let open = open.ok_or_else(|| ApiError::internal(format!("the content {hash} of a resource is gone")))?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    let mut response = (headers, Body::from_stream(open.content)).into_response();
    response.headers_mut().insert(header::CONTENT_LENGTH, open.bytes.into());
    Ok(response)
}

/// `GET /v1/internal/sessions/{session_id}/outputs`: what each path had last, so that a worker sends only what is new.
pub(super) async fn outputs(
    State(service): State<Service>,
    Held(held): Held,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let known = service.world.resources.outputs(&held.item.session_id).await?;
    let known: BTreeMap<&str, &str> = known.iter().map(|output| (output.path.as_str(), output.hash.as_str())).collect();
    Ok(Json(json!({"type": "outputs", "is_kept": service.world.blobs.is_some(), "data": known})))
}

/// `PUT /v1/internal/sessions/{session_id}/outputs`: a file that the session made, at `path` below its folder of
/// outputs, with the content that `hash` names.
pub(super) async fn put_output(
    State(service): State<Service>,
    Held(held): Held,
    mut query: Query,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let path = query.string("path")?.ok_or_else(|| ApiError::invalid("path: required"))?;
    let hash = query.string("hash")?.ok_or_else(|| ApiError::invalid("hash: required"))?;
    query.finish()?;
    let filename = filename(&path)?;
    let result = receive(&service, &held, &path, &hash, filename, request).await;
    service.observer.output_put(match &result {
        Ok(PutOutput::Stored { .. }) => OutputPut::Stored,
        Ok(PutOutput::Unchanged) => OutputPut::Unchanged,
        Err(_) => OutputPut::Refused,
    });
    let is_new = matches!(result?, PutOutput::Stored { .. });
    Ok(Json(json!({"type": "output", "path": path, "is_new": is_new})))
}

async fn receive(
    service: &Service,
    held: &HeldItem,
    path: &str,
    hash: &str,
    filename: String,
    request: Request,
) -> Result<PutOutput, ApiError> {
    let blob = take(service, files::blobs(service)?, hash, request).await?;
    let file = File {
        id: service.id(),
        mime_type: upload::mime_type_of(&filename).to_owned(),
        filename,
        bytes: blob.bytes,
        blob: Some(blob.hash),
        created_at: service.now(),
        expires_at: None,
        session_id: Some(held.item.session_id.clone()),
    };
    let output = Output { path: path.to_owned(), file };
    let HeldItem { item, token_hash } = held;
    Ok(service.world.resources.put_output(&output, &item.id, token_hash).await?)
}

/// Streams the body into the blobs and keeps it, if it is what `hash` names.
async fn take(service: &Service, blobs: &dyn Blobs, hash: &str, request: Request) -> Result<Blob, ApiError> {
    let hash = BlobHash::parse(hash).ok_or_else(|| ApiError::invalid("hash: expected a SHA-256"))?;
    let mut content = blobs.begin().await?;
    let mut pieces = body::Pieces::of(request, service);
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await? {
        bytes += piece.len() as u64;
        if bytes > FILE_BYTES_MAX {
            return Err(ApiError::new(Kind::TooLarge, format!("the output is larger than {FILE_BYTES_MAX} bytes")));
        }
        content.write(piece).await?;
    }
    let blob = content.seal().await?;
    if blob.hash != hash {
        return Err(ApiError::invalid("hash: the body is not what it names; read the file again"));
    }
    content.keep().await?;
    Ok(blob)
}

/// The last component of an output's path, as the name of its file.
fn filename(path: &str) -> Result<String, ApiError> {
    let is_plain = |name: &str| !name.is_empty() && !matches!(name, "." | "..") && !name.contains('\0');
    if path.len() > PATH_BYTES_MAX || !path.split('/').all(is_plain) {
        return Err(ApiError::invalid(format!(
            "path: expected a path below the folder of outputs, of at most {PATH_BYTES_MAX} bytes"
        )));
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    Ok(name.chars().map(|character| if character.is_control() { '_' } else { character }).collect())
}

impl From<OutputError> for ApiError {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::TokenEnded => Self::token_ended(),
            OutputError::Full => Self::invalid(format!("{error}; delete some in the Files API")),
            OutputError::ContentGone => {
                Self::unavailable("the output has to be sent again", "its content was collected meanwhile")
            }
            OutputError::Store(error) => error.into(),
        }
    }
}
