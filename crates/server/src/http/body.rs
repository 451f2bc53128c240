//! Reads a request's body into [`Fields`], whatever a client sends.
//!
//! Media types are not insisted on; an empty body counts as `{}` for verbs that need none. Limits apply to what is
//! read and again to what it decodes to. A key for repeated requests is refused unless the handler asks for it with
//! [`KeyedBody`].

use std::io::Read;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use engine::port::KeyedRequest;
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt;
use serde_json::{Map, Value};

use super::Service;
use super::error::{ApiError, Kind};
use super::fields::{self, Fields};
use super::{idempotency, json};

/// A body that must be a JSON object.
pub(super) struct JsonBody(pub(super) Fields);

/// A body that may be empty.
pub(super) struct OptionalBody(pub(super) Fields);

/// Either of them, of a request that may name an idempotency key.
pub(super) struct KeyedBody<B>(pub(super) B, pub(super) Option<KeyedRequest>);

/// What a body of JSON is read into.
trait Shape: Sized {
    /// `None` is a body with nothing but white space.
    fn of(object: Option<Fields>) -> Result<Self, ApiError>;
}

impl Shape for JsonBody {
    fn of(object: Option<Fields>) -> Result<Self, ApiError> {
        object.map(Self).ok_or_else(|| ApiError::invalid("the body is empty; expected a JSON object"))
    }
}

impl Shape for OptionalBody {
    fn of(object: Option<Fields>) -> Result<Self, ApiError> {
        Ok(Self(object.unwrap_or_else(|| Fields::body(Map::new()))))
    }
}

impl FromRequest<Service> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, service: &Service) -> Result<Self, ApiError> {
        unkeyed(request, service).await
    }
}

impl FromRequest<Service> for OptionalBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, service: &Service) -> Result<Self, ApiError> {
        unkeyed(request, service).await
    }
}

impl<B: Shape> FromRequest<Service> for KeyedBody<B> {
    type Rejection = ApiError;

    async fn from_request(request: Request, service: &Service) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let bytes = receive(&parts.headers, body, service).await?;
        let keyed = idempotency::read(&parts)?.map(|named| named.asking(&bytes));
        Ok(Self(B::of(object(bytes, &parts.headers, service)?)?, keyed))
    }
}

async fn unkeyed<B: Shape>(request: Request, service: &Service) -> Result<B, ApiError> {
    let (parts, body) = request.into_parts();
    idempotency::refuse(&parts.headers)?;
    let bytes = receive(&parts.headers, body, service).await?;
    B::of(object(bytes, &parts.headers, service)?)
}

/// The body as it comes over the wire.
async fn receive(headers: &HeaderMap, body: Body, service: &Service) -> Result<Vec<u8>, ApiError> {
    refuse_charset(headers)?;
    let limit = service.limits.body_bytes;
    if content_length(headers).is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    collect(body, limit, Duration::from_millis(service.limits.body_pause_ms)).await
}

/// The body's object, or `None` where there is nothing but white space.
fn object(bytes: Vec<u8>, headers: &HeaderMap, service: &Service) -> Result<Option<Fields>, ApiError> {
    let bytes = decode(bytes, headers, service.limits.body_bytes)?;
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    parse(&bytes).map(Some)
}

/// A body of other than JSON, as it came.
pub(super) async fn bytes(request: Request, service: &Service, limit: usize) -> Result<Vec<u8>, ApiError> {
    let (parts, body) = request.into_parts();
    idempotency::refuse(&parts.headers)?;
    if content_length(&parts.headers).is_some_and(|length| length > limit as u64) {
        return Err(too_large(limit));
    }
    collect(body, limit, Duration::from_millis(service.limits.body_pause_ms)).await
}

/// The object that `bytes` hold.
fn parse(bytes: &[u8]) -> Result<Fields, ApiError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| ApiError::invalid(format!("the body is not valid UTF-8 at byte {}", error.valid_up_to())))?;
    match json::parse(text)? {
        Value::Object(object) => Ok(Fields::body(object)),
        other => Err(ApiError::invalid(format!("the body: expected a JSON object, got {}", fields::kind(&other)))),
    }
}

/// A body piece by piece, none of which is waited for longer than the server's patience.
pub(super) struct Pieces {
    body: Body,
    pause: Duration,
}

impl Pieces {
    pub(super) fn of(request: Request, service: &Service) -> Self {
        Self { body: request.into_body(), pause: Duration::from_millis(service.limits.body_pause_ms) }
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let frame = tokio::time::timeout(self.pause, self.body.frame()).await.map_err(|_| {
                ApiError::invalid("the body did not arrive in time; send it again").code("request_body_timeout")
            })?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| ApiError::invalid(format!("the body could not be read: {error}")))?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }
}

/// Reads pieces until the end, at most `limit` bytes.
async fn collect(body: Body, limit: usize, pause: Duration) -> Result<Vec<u8>, ApiError> {
    let mut pieces = Pieces { body, pause };
    let mut bytes = BytesMut::new();
    while let Some(data) = pieces.next().await? {
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.into())
}

/// Undoes the `Content-Encoding`.
fn decode(bytes: Vec<u8>, headers: &HeaderMap, limit: usize) -> Result<Vec<u8>, ApiError> {
    let Some(encoding) = headers.get(header::CONTENT_ENCODING) else { return Ok(bytes) };
    match encoding.to_str().map(str::trim).map(str::to_ascii_lowercase).as_deref() {
        Ok("" | "identity") => return Ok(bytes),
        Ok("gzip" | "x-gzip") => {}
        _ => {
            return Err(ApiError::invalid("Content-Encoding: expected gzip or identity")
                .code("request_body_encoding_unsupported"));
        }
    }
    if bytes.is_empty() {
        return Ok(bytes);
    }
    let mut decoded = Vec::new();
    let read = MultiGzDecoder::new(bytes.as_slice()).take(limit as u64 + 1).read_to_end(&mut decoded);
    if read.is_err() {
        return Err(ApiError::invalid("the body is not valid gzip").code("request_body_encoding_invalid"));
    }
    if decoded.len() > limit {
        return Err(too_large(limit).code("request_body_too_large_after_decoding"));
    }
    Ok(decoded)
}

fn too_large(limit: usize) -> ApiError {
    ApiError::new(Kind::TooLarge, format!("the body is larger than {limit} bytes"))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// JSON is UTF-8; anything else is refused by name.
fn refuse_charset(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(Ok(media_type)) = headers.get(header::CONTENT_TYPE).map(|value| value.to_str()) else { return Ok(()) };
    let lower = media_type.to_ascii_lowercase();
    let charset = lower.split(';').skip(1).find_map(|parameter| parameter.trim().strip_prefix("charset="));
    match charset.map(|charset| charset.trim_matches('"')) {
        None | Some("" | "utf-8" | "utf8" | "us-ascii") => Ok(()),
        Some(_) => Err(ApiError::invalid("Content-Type: expected charset utf-8").code("unsupported_charset")),
    }
}
