//! `/v1/internal`: what our own worker asks of the server beyond the public API. Not for clients.

use axum::Json;
use axum::extract::State;
use engine::port::Fence;
use serde_json::{Value, json};
use session::Command;
use session::id::{EventId, SessionId};

use super::Service;
use super::auth::Caller;
use super::body::JsonBody;
use super::error::ApiError;
use super::fields;
use super::path::{self, Ids};
use super::query::NoQuery;

/// Sessions that a worker may ask about at once.
const WORKSPACES_MAX: usize = 100;

/// `POST /v1/internal/sessions/{session_id}/tool_starts`: a worker is about to run a call.
///
/// Once this has answered, the call counts as exposed: if the lease ends before its result, its outcome is unknown.
pub(super) async fn start_tool(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let id: SessionId = ids.get("session_id", "session")?;
    let (item, token_hash) = match caller {
        Caller::ItemHolder { item, token_hash } => (item, token_hash),
        Caller::FormerHolder => return Err(ApiError::token_ended()),
        _ => return Err(ApiError::forbidden("this needs the token of a work item")),
    };
    if item.session_id != id {
        return Err(ApiError::not_found("session", id.as_str()));
    }
    let tool_use_id: EventId = path::parse(&body.required_string("tool_use_id")?, "tool use")?;
    body.finish()?;
    let command = Command::StartTool { tool_use_id: tool_use_id.clone(), work_id: item.id.clone() };
    let fence = Fence::ItemToken { work_id: item.id, token_hash };
    service.sessions.command(&id, command, fence).await?;
    Ok(Json(json!({"type": "tool_start", "tool_use_id": tool_use_id})))
}

/// `POST /v1/internal/workspaces/ended`: which of these sessions are deleted, so that their files can go too.
pub(super) async fn ended_workspaces(
    State(service): State<Service>,
    caller: Caller,
    _: NoQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    if !matches!(caller, Caller::PoolWorker) {
        return Err(ApiError::forbidden("this needs a worker key"));
    }
    let asked = body.array("session_ids")?.unwrap_or_default();
    if asked.len() > WORKSPACES_MAX {
        return Err(ApiError::invalid(format!("session_ids: at most {WORKSPACES_MAX} are taken at once")));
    }
    body.finish()?;
    let mut ended = Vec::new();
    for id in asked {
        let id: SessionId = path::parse(&fields::string(id, "session_ids")?, "session")?;
        if service.sessions.state(&id).await?.is_none_or(|state| state.deleted) {
            ended.push(id);
        }
    }
    Ok(Json(json!({"data": ended})))
}
