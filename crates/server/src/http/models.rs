//! `/v1/models`: what an agent's `model` can name.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::Service;
use super::auth::Caller;
use super::error::ApiError;
use super::path::Ids;
use super::query::{NoQuery, Query};
use super::service::ModelInfo;

/// `GET /v1/models`.
///
/// Pages by `after_id` and `before_id`, unlike the other lists.
pub(super) async fn list(
    State(service): State<Service>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    let limit = query.limit(20, 1_000)?;
    let after = query.string("after_id")?;
    let before = query.string("before_id")?;
    let lifecycle = query.strings("lifecycle");
    query.finish()?;
    if let Some(other) = lifecycle.iter().find(|stage| !["active", "deprecated", "retired"].contains(&stage.as_str())) {
        let other: String = other.chars().take(64).collect();
        return Err(ApiError::invalid(format!("lifecycle: expected active, deprecated or retired, got {other:?}")));
    }
    let mut models = service.models.list();
    if !lifecycle.is_empty() && !lifecycle.iter().any(|stage| stage == "active") {
        models.clear();
    }
    let position = |name: &str, id: &str| {
        models
            .iter()
            .position(|model| model.id == id)
            .ok_or_else(|| ApiError::invalid(format!("{name}: not a model of this list")))
    };
    let (page, more) = match (after, before) {
        (Some(_), Some(_)) => return Err(ApiError::invalid("before_id: only allowed without after_id")),
        (Some(after), None) => forward(&models, position("after_id", &after)? + 1, limit),
        (None, Some(before)) => {
            let end = position("before_id", &before)?;
            let start = end.saturating_sub(limit);
            (&models[start..end], start > 0)
        }
        (None, None) => forward(&models, 0, limit),
    };
    Ok(Json(json!({
        "data": page.iter().map(view).collect::<Vec<Value>>(),
        "has_more": more,
        "first_id": page.first().map(|model| &model.id),
        "last_id": page.last().map(|model| &model.id),
    })))
}

fn forward(models: &[ModelInfo], start: usize, limit: usize) -> (&[ModelInfo], bool) {
    let end = models.len().min(start + limit);
    (&models[start..end], end < models.len())
}

/// `GET /v1/models/{model_id}`.
pub(super) async fn retrieve(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    let id = ids.text("model_id");
    let models = service.models.list();
    let model = models.iter().find(|model| model.id == id).ok_or_else(|| ApiError::not_found("model", id))?;
    Ok(Json(view(model)))
}

fn view(model: &ModelInfo) -> Value {
    json!({
        "type": "model",
        "id": model.id,
        "display_name": model.display_name,
        "created_at": model.created_at,
        "lifecycle": "active",
        "max_input_tokens": model.max_input_tokens,
        "max_tokens": model.max_tokens,
        "allowed_fallback_models": null,
        "capabilities": null,
        "deprecated_at": null,
        "line": null,
        "retires_at": null,
    })
}
