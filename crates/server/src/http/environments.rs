//! `/v1/environments`: where sessions run.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use engine::port::definitions::{DefinitionError, Environment, EnvironmentConfig, ListDefinitions, Networking};
use engine::port::{Order, TimeRange};
use serde_json::{Value, json};
use session::id::EnvironmentId;

use super::Service;
use super::auth::Caller;
use super::body::{JsonBody, KeyedBody, OptionalBody};
use super::environment_params::{CreateEnvironment, UpdateEnvironment, check_package_hosts};
use super::error::{ApiError, Kind};
use super::pagination::{self, CreatedPlace, ListName};
use super::path::{self, Ids};
use super::query::{NoQuery, Query};
use super::{idempotency, metadata};

/// How often an update looks again after losing a race.
const UPDATE_ATTEMPTS: usize = 8;

/// `POST /v1/environments`.
pub(super) async fn create(
    State(service): State<Service>,
    caller: Caller,
    _: NoQuery,
    KeyedBody(JsonBody(body), request): KeyedBody<JsonBody>,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    idempotency::once(&service, request.as_ref(), async {
        let params = CreateEnvironment::read(body)?;
        check_package_hosts(&params.config, &service.package_hosts)?;
        let now = service.now();
        let environment = Environment {
            id: service.id(),
            name: params.name,
            description: params.description,
            config: params.config,
            metadata: params.metadata,
            created_at: now,
            updated_at: now,
            archived_at: None,
        };
        service
            .definitions()
            .create_environment(&environment, idempotency::keep(request.as_ref(), view))
            .await
            .map_err(|error| refine(error, environment.id.as_str(), &environment.name))?;
        Ok(idempotency::ok(&view(&environment)))
    })
    .await
}

/// `GET /v1/environments/{environment_id}`.
pub(super) async fn retrieve(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    let environment = load(&service, ids.text("environment_id")).await?;
    Ok(Json(view(&environment)))
}

/// `POST /v1/environments/{environment_id}`.
pub(super) async fn update(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    KeyedBody(JsonBody(body), request): KeyedBody<JsonBody>,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    idempotency::once(&service, request.as_ref(), async {
        let params = UpdateEnvironment::read(body)?;
        for _ in 0..UPDATE_ATTEMPTS {
            let current = load(&service, ids.text("environment_id")).await?;
            let next = changed(&current, &params, &service)?;
            if next == current {
                return idempotency::unchanged(&service, request.as_ref(), &view(&current)).await;
            }
            let keep = idempotency::keep(request.as_ref(), view);
            match service.definitions().update_environment(&next, current.updated_at, keep).await {
                Ok(()) => return Ok(idempotency::ok(&view(&next))),
                Err(DefinitionError::Conflict) => {}
                Err(other) => return Err(refine(other, current.id.as_str(), &next.name)),
            }
        }
        Err(ApiError::unavailable(
            "the environment is changing too quickly; try again shortly",
            "conflicts outlasted retries",
        ))
    })
    .await
}

fn changed(current: &Environment, params: &UpdateEnvironment, service: &Service) -> Result<Environment, ApiError> {
    refuse_archived(current)?;
    let mut next = current.clone();
    if let Some(name) = &params.name {
        next.name.clone_from(name);
    }
    next.description = params.description.clone().apply(next.description);
    if let Some(config) = &params.config {
        next.config = config.clone().apply(&current.config)?;
        check_package_hosts(&next.config, &service.package_hosts)?;
    }
    next.metadata = metadata::merge(&current.metadata, &params.metadata)?;
    if next != *current {
        next.updated_at = service.now().max(current.updated_at.successor());
    }
    Ok(next)
}

/// `POST /v1/environments/{environment_id}/archive`.
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
        let id = parse_id(ids.text("environment_id"))?;
        let environment = service
            .definitions()
            .archive_environment(&id, service.now(), idempotency::keep(request.as_ref(), view))
            .await
            .map_err(|error| refine(error, id.as_str(), ""))?;
        Ok(idempotency::ok(&view(&environment)))
    })
    .await
}

/// `DELETE /v1/environments/{environment_id}`.
pub(super) async fn delete(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    OptionalBody(body): OptionalBody,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    body.finish()?;
    let id = parse_id(ids.text("environment_id"))?;
    service.definitions().delete_environment(&id).await.map_err(|error| refine(error, id.as_str(), ""))?;
    Ok(Json(json!({"id": id, "type": "environment_deleted"})))
}

/// `GET /v1/environments`.
pub(super) async fn list(
    State(service): State<Service>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    let name = ListName::of("environments");
    let limit = query.limit(20, 100)?;
    let include_archived = query.boolean("include_archived")?;
    let place: Option<CreatedPlace> = pagination::decode(&mut query, &name, Order::Descending)?;
    query.finish()?;
    let created = TimeRange::default();
    let after = place.map(|place| place.within(created)).transpose()?;
    let list = ListDefinitions { created, include_archived, after, limit: limit + 1 };
    let (environments, more) = pagination::cut(service.definitions().list_environments(&list).await?, limit);
    let next = environments.last().filter(|_| more).map(|last| {
        pagination::encode(&name, Order::Descending, &CreatedPlace::new(last.created_at, last.id.as_str()))
    });
    Ok(Json(pagination::page(environments.iter().map(view).collect(), next)))
}

/// The environment with this id.
pub(super) async fn load(service: &Service, id: &str) -> Result<Environment, ApiError> {
    let id = parse_id(id)?;
    service.definitions().environment(&id).await?.ok_or_else(|| ApiError::environment_not_found(id.as_str()))
}

/// Refuses what an archived environment no longer does.
pub(super) fn refuse_archived(environment: &Environment) -> Result<(), ApiError> {
    if environment.archived_at.is_some() {
        let message =
            format!("environment {} is archived; it cannot be changed, nor take new sessions", environment.id);
        return Err(ApiError::invalid(message).code("environment_archived"));
    }
    Ok(())
}

fn parse_id(id: &str) -> Result<EnvironmentId, ApiError> {
    path::parse(id, "environment").map_err(|error| match error.kind {
        Kind::NotFound => error.code("environment_not_found"),
        _ => error,
    })
}

fn refine(error: DefinitionError, id: &str, name: &str) -> ApiError {
    match error {
        DefinitionError::NotFound => ApiError::environment_not_found(id),
        DefinitionError::NameTaken => {
            ApiError::conflict(format!("name: another environment is called {name:?}; choose another name"))
        }
        DefinitionError::InUse => {
            ApiError::conflict(format!("environment {id} has sessions; delete them first, or archive the environment"))
        }
        other => other.into(),
    }
}

/// The environment as clients see it.
fn view(environment: &Environment) -> Value {
    let config = match &environment.config {
        EnvironmentConfig::SelfHosted => json!({"type": "self_hosted"}),
        EnvironmentConfig::Cloud { networking } => json!({
            "type": "cloud",
            "networking": networking_view(networking),
            "packages": {"type": "packages", "apt": [], "cargo": [], "gem": [], "go": [], "npm": [], "pip": []},
        }),
    };
    json!({
        "type": "environment",
        "id": environment.id,
        "name": environment.name,
        "description": environment.description,
        "config": config,
        "metadata": environment.metadata,
        "scope": "organization",
        "created_at": environment.created_at,
        "updated_at": environment.updated_at,
        "archived_at": environment.archived_at,
    })
}

fn networking_view(networking: &Networking) -> Value {
    match networking {
        Networking::Unrestricted => json!({"type": "unrestricted"}),
        Networking::Limited { allowed_hosts, allow_mcp_servers, allow_package_managers } => json!({
            "type": "limited",
            "allowed_hosts": allowed_hosts,
            "allow_mcp_servers": allow_mcp_servers,
            "allow_package_managers": allow_package_managers,
        }),
    }
}
