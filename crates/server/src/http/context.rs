//! Around every request: its id, its error envelope, its measurement and its line in the log.
//!
//! The outermost layer. Whatever happens inside, panics included, leaves with a `request-id` header, and every
//! status of 400 and above with the API's error envelope.

use std::any::Any;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use session::id::RequestId;

use super::Service;
use super::error::{ApiError, Kind};
use super::rate_limit::Bucket;
use super::{outage, rate_limit, unread};

/// Hears what the API does; the metrics implement it. Every method does nothing unless overridden.
pub trait HttpObserver: Send + Sync + 'static {
    /// A response was made; for streams, its headers.
    fn request_finished(&self, _request: &FinishedRequest<'_>) {}

    /// A request was refused or failed.
    fn error(&self, _class: ErrorClass) {}

    /// A worker's proxy refused a session's tools so often, for this reason. The reason is the worker's word.
    fn egress_refused(&self, _reason: &str, _count: u64) {}

    /// A worker sent a workspace snapshot.
    fn workspace_saved(&self, _saved: &Saved) {}

    /// A worker made a session's files anew.
    fn workspace_restored(&self, _restored: Restored) {}

    /// A worker sent a file that a session made.
    fn output_put(&self, _put: OutputPut) {}

    /// A stream of events was opened.
    fn stream_opened(&self) {}

    /// A stream of events ended, from either side.
    fn stream_closed(&self) {}
}

/// What became of a workspace snapshot. Size and length are the worker's word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Saved {
    Kept {
        /// Of all files together.
        bytes: u64,
        /// From the first look at the files.
        seconds: f64,
    },
    /// The lease had ended, or the files had changed again.
    Overtaken,
    Refused,
}

/// With what a session went on at another worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// All that it had.
    Whole,
    /// An earlier state of its files.
    Lost,
}

/// What became of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputPut {
    Stored,
    /// The session had it already.
    Unchanged,
    Refused,
}

/// An observer that looks away.
pub struct NoObserver;

impl HttpObserver for NoObserver {}

/// A request as measurements see it: no ids, no addresses.
#[derive(Clone, Copy, Debug)]
pub struct FinishedRequest<'r> {
    pub method: &'r Method,
    /// The route's template, or `None` for a path that is no route.
    pub route: Option<&'r str>,
    pub status: u16,
    pub duration: Duration,
}

/// What a request was refused or failed for, as far as measurements tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    Internal,
    Storage,
    /// The process drains and takes nothing that lasts.
    Draining,
    /// Its API key asks too often.
    RateLimited,
    Client,
}

/// Runs one request from the outside.
pub(super) async fn observe(State(service): State<Service>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let request_id: RequestId = service.id();
    let (method, version) = (request.method().clone(), request.version());
    let route = request.extensions().get::<MatchedPath>().cloned();

    let bucket = Bucket::of(&service, &request);
    let taken = match &bucket {
        Some(bucket) => Some(bucket.take().await),
        None => None,
    };
    let (request, rest) = unread::lend(request);
    let response = match taken.as_ref().and_then(rate_limit::refusal) {
        Some(refusal) => refusal.into_response(),
        None => outage::run(&service, request, next).await,
    };
    rest.discard().await;
    let mut response = finish(&service, response, &request_id, &method, route.as_ref());
    let request_id = HeaderValue::from_str(request_id.as_str()).expect("a request id is alphanumeric");
    response.headers_mut().insert("request-id", request_id);
    if let Some(taken) = &taken {
        rate_limit::write_headers(taken, service.now(), response.headers_mut());
    }
    // HTTP/2 knows no such header; its connections are told by the listener.
    if version <= Version::HTTP_11 && service.draining.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }

    service.observer.request_finished(&FinishedRequest {
        method: &method,
        route: route.as_ref().map(MatchedPath::as_str),
        status: response.status().as_u16(),
        duration: started.elapsed(),
    });
    response
}

/// Gives errors their envelope, and says once what went wrong.
fn finish(
    service: &Service,
    mut response: Response,
    request_id: &RequestId,
    method: &Method,
    route: Option<&MatchedPath>,
) -> Response {
    let status = response.status();
    let error = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => error,
        None if (status.is_client_error() || status.is_server_error()) && !is_json(&response) => {
            ApiError::of_status(status)
        }
        None => return response,
    };
    let class = match error.kind {
        Kind::Internal => ErrorClass::Internal,
        Kind::Unavailable => ErrorClass::Storage,
        Kind::Draining => ErrorClass::Draining,
        Kind::RateLimited => ErrorClass::RateLimited,
        _ => ErrorClass::Client,
    };
    service.observer.error(class);
    if !matches!(class, ErrorClass::Client | ErrorClass::Draining | ErrorClass::RateLimited) {
        tracing::error!(
            %request_id,
            %method,
            route = route.map_or("", MatchedPath::as_str),
            cause = error.cause.as_deref().unwrap_or(""),
            "request failed: {}",
            error.message
        );
    }
    error.render(request_id.as_str())
}

/// A handler that answers an error status with a body of its own, as `/ready` does, is left alone.
fn is_json(response: &Response) -> bool {
    response.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
}

/// A panic in a handler is a fault of the server, told to the log and not to the client.
pub(super) fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without text");
    ApiError::internal(format!("a handler panicked: {text}")).into_response()
}
