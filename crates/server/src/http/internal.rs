//! `/v1/internal`: what our own worker asks of the server beyond the public API. Not for clients.
//!
//! What it asks about the session's files is in [`super::workspace`] and [`super::session_files`].

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use engine::port::definitions::{EnvironmentConfig, Networking};
use engine::workspaces::HeldItem;
use serde_json::{Value, json};
use session::Command;
use session::id::{EventId, SessionId};

use super::Service;
use super::auth::Caller;
use super::body::JsonBody;
use super::environments;
use super::error::ApiError;
use super::fields;
use super::idempotency;
use super::path::{self, Ids};
use super::query::NoQuery;

/// Sessions that a worker may ask about at once.
const WORKSPACES_MAX: usize = 100;
/// More reasons than any proxy has.
const REASONS_MAX: usize = 32;

/// `POST /v1/internal/sessions/{session_id}/tool_starts`: a worker is about to run a call.
///
/// Once this has answered, the call counts as exposed: if the lease ends before its result, its outcome is unknown.
/// The answer names the version of the session's resources, which the worker mounts before it runs the call.
pub(super) async fn start_tool(
    State(service): State<Service>,
    Held(held): Held,
    _: NoQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let id = held.item.session_id.clone();
    let tool_use_id: EventId = path::parse(&body.required_string("tool_use_id")?, "tool use")?;
    let tip: Option<EventId> = body.string("tip")?.map(|tip| path::parse(&tip, "event")).transpose()?;
    body.finish()?;
    let work_id = held.item.id.clone();
    let command = match tip {
        Some(tip) => Command::StartToolAt { tool_use_id: tool_use_id.clone(), work_id, tip },
        None => Command::StartTool { tool_use_id: tool_use_id.clone(), work_id },
    };
    service.sessions.command(&id, command, held.fence()).await?;
    let version = service.world.resources.resources_version(&id).await?;
    Ok(Json(json!({"type": "tool_start", "tool_use_id": tool_use_id, "resources_version": version})))
}

/// `GET /v1/internal/sessions/{session_id}/sandbox`: how the session's next sandbox is to be made.
///
/// The environment is read anew for each, so that a change of it reaches new sandboxes.
pub(super) async fn sandbox(
    State(service): State<Service>,
    Held(held): Held,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let item = held.item;
    let environment = environments::load(&service, item.environment_id.as_str()).await?;
    let network = match environment.config {
        EnvironmentConfig::Cloud {
            networking: Networking::Limited { mut allowed_hosts, allow_package_managers, .. },
        } => {
            // `allow_mcp_servers` adds nothing as long as no agent can have one.
            if allow_package_managers {
                allowed_hosts.extend(service.package_hosts.iter().cloned());
            }
            json!({"type": "limited", "allowed_hosts": allowed_hosts})
        }
        EnvironmentConfig::Cloud { networking: Networking::Unrestricted } | EnvironmentConfig::SelfHosted => {
            json!({"type": "unrestricted"})
        }
    };
    Ok(Json(json!({"type": "sandbox", "network": network})))
}

/// `POST /v1/internal/sessions/{session_id}/refusals`: what the session's tools were refused since the last time.
pub(super) async fn count_refusals(
    State(service): State<Service>,
    _: Held,
    _: NoQuery,
    JsonBody(mut body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let counts = body.object("counts")?.ok_or_else(|| ApiError::invalid("counts: required"))?;
    body.finish()?;
    let counts = counts.into_pairs();
    if counts.len() > REASONS_MAX {
        return Err(ApiError::invalid(format!("counts: at most {REASONS_MAX} reasons are taken at once")));
    }
    let mut read = Vec::with_capacity(counts.len());
    for (reason, count) in counts {
        // More than so many in a few seconds no worker has refused.
        let count = count.as_u64().filter(|count| u32::try_from(*count).is_ok());
        read.push((reason, count.ok_or_else(|| ApiError::invalid("counts: expected whole numbers"))?));
    }
    for (reason, count) in read {
        service.observer.egress_refused(&reason, count);
    }
    Ok(Json(json!({"type": "refusals"})))
}

/// The caller's work item, whose session the path names. A worker tries again without an idempotency key.
pub(super) struct Held(pub(super) HeldItem);

impl FromRequestParts<Service> for Held {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<Self, ApiError> {
        idempotency::refuse(&parts.headers)?;
        let caller = Caller::from_request_parts(parts, service).await?;
        let ids = Ids::from_request_parts(parts, service).await?;
        let id: SessionId = ids.get("session_id", "session")?;
        match caller {
            Caller::ItemHolder { item, token_hash } if item.session_id == id => Ok(Self(HeldItem { item, token_hash })),
            Caller::ItemHolder { .. } => Err(ApiError::not_found("session", id.as_str())),
            Caller::FormerHolder => Err(ApiError::token_ended()),
            _ => Err(ApiError::forbidden("this needs the token of a work item")),
        }
    }
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
