//! `Idempotency-Key`: a request that names a key has one effect, however often its client sends it.
//!
//! A handler that honours keys takes [`KeyedBody`](super::body::KeyedBody) and runs within [`once`]; the write that
//! it makes keeps the answer in its own transaction ([`engine::port::idempotency`]). Every other handler refuses the
//! header by name. An answer is looked up before the handler runs, since what it would find has changed by then, and
//! after it failed, since a twin may have been first. Keys are those of one credential.

use std::sync::Arc;

use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::port::{Answer, Keep, Kept, KeyedRequest};
use serde_json::Value;

use super::Service;
use super::auth::{self, secret_hash};
use super::error::ApiError;

const HEADER: &str = "idempotency-key";

/// On an answer that was kept: the request had its effect before.
const REPLAYED: &str = "idempotent-replayed";

const KEY_BYTES_MAX: usize = 255;

/// The request, if it names a key. `body` is what came over the wire.
pub(super) fn read(parts: &Parts, body: &[u8]) -> Result<Option<KeyedRequest>, ApiError> {
    let mut keys = parts.headers.get_all(HEADER).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err(ApiError::invalid("Idempotency-Key: given twice; send one key"));
    }
    let printable = |key: &[u8]| key.iter().all(|byte| matches!(byte, 0x20..=0x7e));
    let key = Some(key.as_bytes()).filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()) && printable(key));
    let key = key.and_then(|key| std::str::from_utf8(key).ok()).ok_or_else(|| {
        ApiError::invalid(format!("Idempotency-Key: expected 1 to {KEY_BYTES_MAX} printable ASCII characters"))
    })?;
    Ok(Some(KeyedRequest {
        credential_hash: secret_hash(auth::credential(&parts.headers)?),
        key: key.to_owned(),
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path_and_query().map_or_else(|| parts.uri.path().to_owned(), ToString::to_string),
        body_hash: auth::hash(body),
    }))
}

/// For a request whose handler honours no key.
pub(super) fn refuse(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.contains_key(HEADER) {
        return Err(ApiError::unsupported("Idempotency-Key", "send this request without it"));
    }
    Ok(())
}

/// Answers with what is kept for the request, or else with what `handler` does.
pub(super) fn once<'r>(
    service: &'r Service,
    request: Option<&'r KeyedRequest>,
    handler: impl Future<Output = Result<Answer, ApiError>> + Send + 'r,
) -> impl Future<Output = Result<Response, ApiError>> + Send + 'r {
    // In a box, since an argument that is awaited lies in the future twice.
    answer_once(service, request, Box::pin(handler))
}

async fn answer_once(
    service: &Service,
    request: Option<&KeyedRequest>,
    handler: impl Future<Output = Result<Answer, ApiError>>,
) -> Result<Response, ApiError> {
    let Some(request) = request else { return handler.await.map(response) };
    let kept = async || service.world.idempotency.kept(&request.credential_hash, &request.key).await;
    if let Some(kept) = kept().await? {
        return replay(kept, request);
    }
    match handler.await {
        Ok(answer) => Ok(response(answer)),
        Err(error) => match kept().await {
            Ok(Some(kept)) => replay(kept, request),
            Ok(None) | Err(_) => Err(error),
        },
    }
}

fn replay(kept: Kept, request: &KeyedRequest) -> Result<Response, ApiError> {
    let Kept { request: first, answer } = kept;
    let differs = if (&first.method, &first.path) != (&request.method, &request.path) {
        Some(format!("{} {}", first.method, first.path))
    } else {
        (first.body_hash != request.body_hash).then(|| "another body".to_owned())
    };
    if let Some(differs) = differs {
        let message = format!("Idempotency-Key: the key was used for {differs}; a new request needs a new key");
        return Err(ApiError::conflict(message).code("idempotency_key_reused"));
    }
    let mut response = response(answer);
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    Ok(response)
}

/// Has a write keep what `show` makes of it.
pub(super) fn keep<T>(request: Option<&KeyedRequest>, show: fn(&T) -> Value) -> Option<Keep<T>>
where
    T: 'static,
{
    let request = request?.clone();
    Some(Keep { request, answer: Arc::new(move |written| ok(&show(written))) })
}

/// The answer of a request that found nothing to change, kept if it names a key.
pub(super) async fn unchanged(
    service: &Service,
    request: Option<&KeyedRequest>,
    body: &Value,
) -> Result<Answer, ApiError> {
    let answer = ok(body);
    if let Some(request) = request {
        service.world.idempotency.keep(&Kept { request: request.clone(), answer: answer.clone() }).await?;
    }
    Ok(answer)
}

/// A success with this body.
pub(super) fn ok(body: &Value) -> Answer {
    Answer { status: StatusCode::OK.as_u16(), body: body.to_string() }
}

fn response(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    (status, [(header::CONTENT_TYPE, "application/json")], answer.body).into_response()
}
