//! What the API's listener serves: nothing but probes until the database was reached, then the API.
//!
//! So a server that waits for its database is alive (`/health`) and not ready (`/ready`), and says which.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use serde_json::json;
use tower::ServiceExt as _;

/// Opens once.
#[derive(Clone, Default)]
pub(super) struct Gate {
    api: Arc<OnceLock<Router>>,
}

impl Gate {
    /// Lets requests through to `api` from now on.
    pub(super) fn open(&self, api: Router) {
        assert!(self.api.set(api).is_ok(), "the gate is opened once");
    }

    /// What the listener serves.
    pub(super) fn router(&self) -> Router {
        let gate = self.clone();
        Router::new().fallback(move |request: Request| {
            let gate = gate.clone();
            async move { gate.answer(request).await }
        })
    }

    async fn answer(&self, request: Request<Body>) -> Response {
        match self.api.get() {
            Some(api) => api.clone().oneshot(request).await.into_response(),
            None if request.uri().path() == "/health" => Json(json!({"status": "ok"})).into_response(),
            None if request.uri().path() == "/ready" => {
                let body = json!({
                    "status": "not_ready",
                    "reasons": ["the database was not reached yet"],
                    "degraded": ["database"],
                    "draining": false,
                });
                (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
            }
            None => {
                let message = "the server is starting: it has not reached its database yet";
                let error = json!({"type": "api_error", "message": message});
                let body = json!({"type": "error", "error": error, "request_id": null});
                (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], Json(body)).into_response()
            }
        }
    }
}
