//! `/v1/agents`: definitions with versions.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use engine::port::Order;
use engine::port::definitions::{Agent, DefinitionError, ListDefinitions};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session::agent::AgentSnapshot;
use session::id::AgentId;

use super::Service;
use super::agent_params::{CreateAgent, UpdateAgent};
use super::auth::Caller;
use super::body::{JsonBody, KeyedBody, OptionalBody};
use super::error::ApiError;
use super::pagination::{self, CreatedPlace, ListName};
use super::path::Ids;
use super::query::{NoQuery, Query};
use super::{idempotency, metadata};

/// How often an update without a version looks again after losing a race.
const UPDATE_ATTEMPTS: usize = 8;

/// `POST /v1/agents`.
pub(super) async fn create(
    State(service): State<Service>,
    caller: Caller,
    _: NoQuery,
    KeyedBody(JsonBody(body), request): KeyedBody<JsonBody>,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    idempotency::once(&service, request.as_ref(), async {
        let params = CreateAgent::read(body, &service)?;
        let now = service.now();
        let agent = Agent {
            id: service.id(),
            version: 1,
            name: params.name,
            description: params.description,
            system: params.system,
            model: params.model,
            tools: params.tools,
            metadata: params.metadata,
            created_at: now,
            updated_at: now,
            archived_at: None,
        };
        service.definitions().create_agent(&agent, idempotency::keep(request.as_ref(), view)).await?;
        Ok(idempotency::ok(&view(&agent)))
    })
    .await
}

/// `GET /v1/agents/{agent_id}`.
pub(super) async fn retrieve(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    let id: AgentId = ids.get("agent_id", "agent")?;
    let version = query.number("version", 1, u32::MAX)?;
    query.finish()?;
    let agent = load(&service, &id, version).await?;
    Ok(Json(view(&agent)))
}

/// `POST /v1/agents/{agent_id}`.
pub(super) async fn update(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    KeyedBody(JsonBody(body), request): KeyedBody<JsonBody>,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    idempotency::once(&service, request.as_ref(), async {
        let id: AgentId = ids.get("agent_id", "agent")?;
        let params = UpdateAgent::read(body, &service)?;
        for _ in 0..UPDATE_ATTEMPTS {
            let current = load(&service, &id, None).await?;
            let Some(next) = changed(&current, &params, &service)? else {
                return idempotency::unchanged(&service, request.as_ref(), &view(&current)).await;
            };
            let keep = idempotency::keep(request.as_ref(), view);
            match service.definitions().add_agent_version(&next, keep).await {
                Ok(()) => return Ok(idempotency::ok(&view(&next))),
                // Somebody else's version came in between: the last write wins, unless the client named a version.
                Err(DefinitionError::Conflict) => {}
                Err(DefinitionError::NotFound) => return Err(ApiError::not_found("agent", id.as_str())),
                Err(other) => return Err(other.into()),
            }
        }
        Err(ApiError::unavailable(
            "the agent is changing too quickly; try again shortly",
            "conflicts outlasted retries",
        ))
    })
    .await
}

/// The version after `current`, or `None` when nothing changes.
fn changed(current: &Agent, params: &UpdateAgent, service: &Service) -> Result<Option<Agent>, ApiError> {
    if current.archived_at.is_some() {
        return Err(ApiError::invalid(format!("agent {} is archived and cannot be changed", current.id)));
    }
    if let Some(seen) = params.version
        && seen != current.version
    {
        return Err(ApiError::conflict(format!(
            "version: agent {} is at version {}, not {seen}; retrieve it and apply your change again",
            current.id, current.version
        )));
    }
    let mut next = current.clone();
    if let Some(name) = &params.name {
        next.name.clone_from(name);
    }
    next.description = params.description.clone().apply(next.description);
    next.system = params.system.clone().apply(next.system);
    if let Some(model) = &params.model {
        next.model = model.clone().resolve(Some(&current.model), service);
    }
    if let Some(tools) = &params.tools {
        next.tools.clone_from(tools);
    }
    next.metadata = metadata::merge(&current.metadata, &params.metadata)?;
    if next == *current {
        return Ok(None);
    }
    next.version += 1;
    next.updated_at = service.now().max(current.updated_at);
    Ok(Some(next))
}

/// `POST /v1/agents/{agent_id}/archive`.
pub(super) async fn archive(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    KeyedBody(OptionalBody(body), request): KeyedBody<OptionalBody>,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    idempotency::once(&service, request.as_ref(), async {
        body.finish()?;
        let id: AgentId = ids.get("agent_id", "agent")?;
        let keep = idempotency::keep(request.as_ref(), view);
        match service.definitions().archive_agent(&id, service.now(), keep).await {
            Ok(agent) => Ok(idempotency::ok(&view(&agent))),
            Err(DefinitionError::NotFound) => Err(ApiError::not_found("agent", id.as_str())),
            Err(other) => Err(other.into()),
        }
    })
    .await
}

/// `GET /v1/agents`.
pub(super) async fn list(
    State(service): State<Service>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    let name = ListName::of("agents");
    let limit = query.limit(20, 100)?;
    let created = query.created_at()?;
    let include_archived = query.boolean("include_archived")?;
    let place: Option<CreatedPlace> = pagination::decode(&mut query, &name, Order::Descending)?;
    query.finish()?;
    let after = place.map(|place| place.within(created)).transpose()?;
    let list = ListDefinitions { created, include_archived, after, limit: limit + 1 };
    let (agents, more) = pagination::cut(service.definitions().list_agents(&list).await?, limit);
    let next = agents.last().filter(|_| more).map(|last| {
        pagination::encode(&name, Order::Descending, &CreatedPlace::new(last.created_at, last.id.as_str()))
    });
    Ok(Json(pagination::page(agents.iter().map(view).collect(), next)))
}

/// The place in a list of versions.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionPlace {
    #[serde(rename = "v")]
    before: u32,
}

/// `GET /v1/agents/{agent_id}/versions`.
pub(super) async fn versions(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    let id: AgentId = ids.get("agent_id", "agent")?;
    let name = ListName::within("agent_versions", id.as_str());
    let limit = query.limit(20, 100)?;
    let place: Option<VersionPlace> = pagination::decode(&mut query, &name, Order::Descending)?;
    query.finish()?;
    load(&service, &id, None).await?;
    let before = place.map(|place| place.before);
    let (agents, more) = pagination::cut(service.definitions().agent_versions(&id, before, limit + 1).await?, limit);
    let next = agents
        .last()
        .filter(|_| more)
        .map(|last| pagination::encode(&name, Order::Descending, &VersionPlace { before: last.version }));
    Ok(Json(pagination::page(agents.iter().map(view).collect(), next)))
}

/// One version of an agent, or its latest.
pub(super) async fn load(service: &Service, id: &AgentId, version: Option<u32>) -> Result<Agent, ApiError> {
    match (service.definitions().agent(id, version).await?, version) {
        (Some(agent), _) => Ok(agent),
        (None, None) => Err(ApiError::not_found("agent", id.as_str())),
        (None, Some(version)) => Err(ApiError::not_found("agent version", &format!("{id} version {version}"))),
    }
}

/// What a session keeps of an agent.
pub(super) fn snapshot(agent: Agent) -> AgentSnapshot {
    AgentSnapshot {
        id: agent.id,
        version: agent.version,
        name: agent.name,
        description: agent.description,
        system: agent.system,
        model: agent.model,
        tools: agent.tools,
    }
}

/// The agent as clients see it.
fn view(agent: &Agent) -> Value {
    json!({
        "type": "agent",
        "id": agent.id,
        "version": agent.version,
        "name": agent.name,
        "description": agent.description,
        "system": agent.system,
        "model": agent.model,
        "tools": agent.tools,
        "mcp_servers": [],
        "skills": [],
        "multiagent": null,
        "execution_identity": {"type": "service_account"},
        "metadata": agent.metadata,
        "created_at": agent.created_at,
        "updated_at": agent.updated_at,
        "archived_at": agent.archived_at,
    })
}
