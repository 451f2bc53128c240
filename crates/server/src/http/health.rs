//! `/health` and `/ready`: for probes and load balancers, without credentials.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::Service;

/// `GET /health`: the process lives. Asks nothing of anybody.
pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// `GET /ready`: whether this replica should get new work, and why not.
pub(super) async fn ready(State(service): State<Service>) -> (StatusCode, Json<Value>) {
    let report = service.readiness.report();
    let status = if report.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report.to_json()))
}
