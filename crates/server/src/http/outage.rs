//! Refuses at once what needs the store while the store is away.
//!
//! Without this a request would wait for a connection, and every one for as long as such a wait may take. The
//! replica's own heartbeats say that the store is away: they have a connection to themselves, so that a store which is
//! merely busy is not mistaken for one that is gone. Requests that are under way are given up too: whether they took
//! place is unknown, as with every answer that gets lost.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::Service;
use super::error::ApiError;

/// Runs the request, or refuses it.
pub(super) async fn run(service: &Service, request: Request, next: Next) -> Response {
    let up = service.readiness.store_is_up().filter(|_| needs_store(request.uri().path()));
    let Some(mut up) = up else { return next.run(request).await };
    tokio::select! {
        biased;
        Ok(_) = up.wait_for(|up| !*up) => {}
        response = next.run(request) => return response,
    }
    let message = "the server's store does not answer; try again shortly";
    ApiError::unavailable(message, "no heartbeat comes through").into_response()
}

/// Probes say themselves how the store is, and the models are in the settings.
fn needs_store(path: &str) -> bool {
    path.starts_with("/v1/") && !path.starts_with("/v1/models")
}
