//! `/v1/environments/{environment_id}/work`: the queue through which workers get sessions.
//!
//! Rules of api.md 5. Which items a call can see at all is a [`Pool`]: those of one self-hosted environment, or,
//! under the reserved id `env_pool` and for our own workers alone, those of every cloud environment.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use engine::Stopped;
use engine::port::definitions::EnvironmentConfig;
use engine::port::work_queue::{Acknowledged, ExpectedHeartbeat, Heartbeat, Pool};
use engine::port::{Fence, Frame, Listener, Order, TimeRange, Topic, WorkItem};
use serde_json::{Value, json};
use session::Timestamp;
use session::event::EnvironmentKind;
use session::id::WorkId;
use tokio::time::Instant;

use super::Service;
use super::auth::{self, Caller, POOL_ENVIRONMENT_ID};
use super::body::{JsonBody, KeyedBody, OptionalBody};
use super::error::{ApiError, Kind};
use super::pagination::{self, CreatedPlace, ListName};
use super::path::Ids;
use super::query::{NoQuery, Query};
use super::{environments, idempotency, metadata};

const RECLAIM_DEFAULT_MS: u32 = 5_000;
const RECLAIM_MAX_MS: u32 = 3_600_000;
/// Bounds of the lease that a worker may ask for.
pub const LEASE_SECONDS_MIN: u32 = 3;
pub const LEASE_SECONDS_MAX: u32 = 300;
const WORKER_ID_BYTES_MAX: usize = 256;

/// `GET /v1/environments/{environment_id}/work/poll`.
pub(super) async fn poll(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    headers: HeaderMap,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    let pool = worker_pool(&caller, ids.text("environment_id"))?;
    let block_ms = query.number("block_ms", 1, 999)?;
    let reclaim_ms = query.number("reclaim_older_than_ms", 1, RECLAIM_MAX_MS)?.unwrap_or(RECLAIM_DEFAULT_MS);
    query.finish()?;
    let worker_id = read_worker_id(&headers)?;
    let token = auth::item_token(&service);
    let token_hash = auth::secret_hash(&token);

    let deadline = block_ms.map(|block_ms| Instant::now() + Duration::from_millis(block_ms));
    // Listening begins before the first look, so that what is queued in between is heard of.
    let mut bell = deadline.map(|_| service.world.bell.listen(Topic::Work));
    loop {
        if let Some(item) = service.work().poll(&pool, &worker_id, reclaim_ms, &token_hash).await? {
            return Ok(Json(view(&item, Some(&token))));
        }
        let (Some(deadline), Some(bell)) = (deadline, bell.as_mut()) else { return Ok(Json(Value::Null)) };
        if Instant::now() >= deadline || service.draining.is_draining() {
            return Ok(Json(Value::Null));
        }
        wait(bell, &service, deadline).await;
    }
}

/// Until something was queued, the process drains, or the time is over.
async fn wait(bell: &mut Box<dyn Listener>, service: &Service, deadline: Instant) {
    let queued = async {
        loop {
            if matches!(bell.hear().await, None | Some(Frame::WorkQueued)) {
                return;
            }
        }
    };
    tokio::select! {
        () = queued => {}
        () = service.draining.begun().cancelled() => {}
        () = tokio::time::sleep_until(deadline) => {}
    }
}

/// `POST .../work/{work_id}/ack`.
pub(super) async fn acknowledge(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    OptionalBody(body): OptionalBody,
) -> Result<Json<Value>, ApiError> {
    let pool = worker_pool(&caller, ids.text("environment_id"))?;
    body.finish()?;
    let id: WorkId = ids.get("work_id", "work item")?;
    match service.work().acknowledge(&pool, &id, Some(service.limits.lease_seconds)).await? {
        Acknowledged::Yes(item) => Ok(Json(view(&item, None))),
        Acknowledged::Lost => {
            Err(ApiError::conflict(format!("work item {id} was acknowledged by another worker, or ended")))
        }
        Acknowledged::NotFound => Err(ApiError::not_found("work item", id.as_str())),
    }
}

/// `POST .../work/{work_id}/heartbeat`.
pub(super) async fn heartbeat(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    mut query: Query,
    OptionalBody(body): OptionalBody,
) -> Result<Json<Value>, ApiError> {
    body.finish()?;
    let ttl_seconds: Option<u32> = query.number("desired_ttl_seconds", 1, 86_400)?;
    let expected = read_expected(query.string("expected_last_heartbeat")?.as_deref());
    query.finish()?;
    let id: WorkId = ids.get("work_id", "work item")?;
    if matches!(caller, Caller::FormerHolder) {
        return Err(precondition_failed(None));
    }
    let pool = holder_pool(&caller, ids.text("environment_id"), &id)?;
    let ttl_seconds = ttl_seconds.map(|seconds| seconds.clamp(LEASE_SECONDS_MIN, LEASE_SECONDS_MAX));
    match service.work().heartbeat(&pool, &id, &expected, ttl_seconds).await? {
        Heartbeat::Beat { item, lease_extended } => Ok(Json(lease_view(&item, lease_extended))),
        Heartbeat::Mismatch { item } => Err(precondition_failed(Some(&item))),
        Heartbeat::NotFound => Err(ApiError::not_found("work item", id.as_str())),
    }
}

/// `POST .../work/{work_id}/stop`.
pub(super) async fn stop(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    OptionalBody(mut body): OptionalBody,
) -> Result<Json<Value>, ApiError> {
    let force = body.boolean("force")?.unwrap_or(false);
    body.finish()?;
    let id: WorkId = ids.get("work_id", "work item")?;
    let pool = match caller {
        Caller::Application { .. } => application_pool(&service, &caller, &ids).await?,
        Caller::FormerHolder => return Err(ApiError::token_ended()),
        _ => holder_pool(&caller, ids.text("environment_id"), &id)?,
    };
    let fence = match caller {
        Caller::ItemHolder { item, token_hash } => Fence::ItemToken { work_id: item.id, token_hash },
        _ => Fence::Client,
    };
    match service.sessions.stop_item(&pool, &id, force, fence).await? {
        Stopped::Yes(item) => Ok(Json(view(&item, None))),
        Stopped::Already => Err(ApiError::conflict(format!("work item {id} has stopped already"))),
        Stopped::NotFound => Err(ApiError::not_found("work item", id.as_str())),
    }
}

/// `GET .../work`.
pub(super) async fn list(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    let pool = worker_pool(&caller, ids.text("environment_id"))?;
    let name = ListName::within("work", ids.text("environment_id"));
    let limit = query.limit(20, 100)?;
    let place: Option<CreatedPlace> = pagination::decode(&mut query, &name, Order::Descending)?;
    query.finish()?;
    let after = place.map(|place| place.within(TimeRange::default())).transpose()?;
    let (items, more) = pagination::cut(service.work().list_items(&pool, after.as_ref(), limit + 1).await?, limit);
    let next = items.last().filter(|_| more).map(|last| {
        pagination::encode(&name, Order::Descending, &CreatedPlace::new(last.created_at, last.id.as_str()))
    });
    Ok(Json(pagination::page(items.iter().map(|item| view(item, None)).collect(), next)))
}

/// `GET .../work/{work_id}`.
pub(super) async fn retrieve(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let pool = application_pool(&service, &caller, &ids).await?;
    let item = load(&service, &pool, &ids.get("work_id", "work item")?).await?;
    Ok(Json(view(&item, None)))
}

/// `POST .../work/{work_id}`.
pub(super) async fn update(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    KeyedBody(JsonBody(mut body), request): KeyedBody<JsonBody>,
) -> Result<Response, ApiError> {
    idempotency::once(&service, request.as_ref(), async {
        let pool = application_pool(&service, &caller, &ids).await?;
        let patch = metadata::read_patch(&mut body)?;
        body.finish()?;
        let id: WorkId = ids.get("work_id", "work item")?;
        let item = load(&service, &pool, &id).await?;
        let merged = metadata::merge(&item.metadata, &patch)?;
        let keep = idempotency::keep(request.as_ref(), |item| view(item, None));
        match service.work().set_metadata(&pool, &id, &merged, keep).await? {
            Some(item) => Ok(idempotency::ok(&view(&item, None))),
            None => Err(ApiError::not_found("work item", id.as_str())),
        }
    })
    .await
}

/// `GET .../work/stats`.
pub(super) async fn stats(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let pool = match caller {
        Caller::Application { .. } => application_pool(&service, &caller, &ids).await?,
        _ => worker_pool(&caller, ids.text("environment_id"))?,
    };
    let stats = service.work().stats(&pool).await?;
    Ok(Json(json!({
        "type": "work_queue_stats",
        "depth": stats.depth,
        "pending": stats.pending,
        "oldest_queued_at": stats.oldest_queued_at,
        "workers_polling": stats.workers_polling,
    })))
}

async fn load(service: &Service, pool: &Pool, id: &WorkId) -> Result<WorkItem, ApiError> {
    service.work().item(pool, id).await?.ok_or_else(|| ApiError::not_found("work item", id.as_str()))
}

/// The items that a worker sees under this environment id.
fn worker_pool(caller: &Caller, environment_id: &str) -> Result<Pool, ApiError> {
    match caller {
        Caller::EnvironmentWorker { environment_id: own } if own.as_str() == environment_id => {
            Ok(Pool::Environment(own.clone()))
        }
        Caller::EnvironmentWorker { .. } => {
            Err(ApiError::forbidden("the environment key belongs to another environment"))
        }
        Caller::PoolWorker if environment_id == POOL_ENVIRONMENT_ID => Ok(Pool::Cloud),
        Caller::PoolWorker => {
            Err(ApiError::forbidden(format!("the worker key opens the environment {POOL_ENVIRONMENT_ID} only")))
        }
        Caller::Application { .. } => {
            Err(ApiError::forbidden("this needs an environment key; an API key does not open it"))
        }
        Caller::ItemHolder { .. } => {
            Err(ApiError::forbidden("this needs an environment key; the token of a work item does not open it"))
        }
        Caller::FormerHolder => Err(auth::former_holder()),
    }
}

/// The items that a worker, or the holder of this very item, sees.
fn holder_pool(caller: &Caller, environment_id: &str, work_id: &WorkId) -> Result<Pool, ApiError> {
    let Caller::ItemHolder { item, .. } = caller else { return worker_pool(caller, environment_id) };
    let cloud = item.environment_kind == EnvironmentKind::Cloud;
    let own_environment =
        item.environment_id.as_str() == environment_id || (cloud && environment_id == POOL_ENVIRONMENT_ID);
    if item.id != *work_id || !own_environment {
        return Err(ApiError::not_found("work item", work_id.as_str()));
    }
    Ok(if cloud { Pool::Cloud } else { Pool::Environment(item.environment_id.clone()) })
}

/// The items of a self-hosted environment, for an application. Those of cloud environments are the server's own.
async fn application_pool(service: &Service, caller: &Caller, ids: &Ids) -> Result<Pool, ApiError> {
    caller.require_application()?;
    let environment = environments::load(service, ids.text("environment_id")).await?;
    match environment.config {
        EnvironmentConfig::SelfHosted => Ok(Pool::Environment(environment.id)),
        EnvironmentConfig::Cloud { .. } => Err(ApiError::invalid(format!(
            "environment {} is a cloud environment; only self_hosted environments have a work queue",
            environment.id
        ))),
    }
}

fn read_worker_id(headers: &HeaderMap) -> Result<String, ApiError> {
    let Some(value) = headers.get("anthropic-worker-id") else { return Ok("unnamed".to_owned()) };
    match value.to_str() {
        Ok(id) if !id.is_empty() && id.len() <= WORKER_ID_BYTES_MAX => Ok(id.to_owned()),
        _ => {
            Err(ApiError::invalid(format!("Anthropic-Worker-ID: expected 1 to {WORKER_ID_BYTES_MAX} ASCII characters")))
        }
    }
}

/// What the heartbeat before must have been. The comparison is of texts, so any other spelling never matches.
fn read_expected(text: Option<&str>) -> ExpectedHeartbeat {
    match text {
        None | Some("") => ExpectedHeartbeat::Any,
        Some("NO_HEARTBEAT") => ExpectedHeartbeat::None,
        Some(text) => match text.parse::<Timestamp>() {
            Ok(at) if at.to_string() == text => ExpectedHeartbeat::At(at),
            _ => ExpectedHeartbeat::At(Timestamp::EPOCH),
        },
    }
}

/// 412, with what is known of the lease: nothing, where the token itself has ended.
fn precondition_failed(item: Option<&WorkItem>) -> ApiError {
    let current = item.map_or_else(
        || json!({"state": null, "last_heartbeat": null, "ttl_seconds": null, "lease_extended": false}),
        |item| {
            json!({
                "state": item.state,
                "last_heartbeat": last_heartbeat(item),
                "ttl_seconds": item.lease_ttl_seconds,
                "lease_extended": false,
            })
        },
    );
    ApiError::new(Kind::PreconditionFailed, "the lease is not, or no longer, yours: the last heartbeat was another's")
        .code("heartbeat_precondition_failed")
        .detail("current_state", current)
}

fn lease_view(item: &WorkItem, lease_extended: bool) -> Value {
    json!({
        "type": "work_heartbeat",
        "state": item.state,
        "last_heartbeat": last_heartbeat(item),
        "lease_extended": lease_extended,
        "ttl_seconds": item.lease_ttl_seconds,
    })
}

/// The time that the next heartbeat names; empty before the first one.
fn last_heartbeat(item: &WorkItem) -> String {
    item.latest_heartbeat_at.map(|at| at.to_string()).unwrap_or_default()
}

/// The item as workers see it; the token goes out once, with the poll that made it.
fn view(item: &WorkItem, token: Option<&str>) -> Value {
    let secret = token.map(|token| URL_SAFE.encode(json!({"sessions_token": token}).to_string()));
    json!({
        "type": "work",
        "id": item.id,
        "data": {"type": "session", "id": item.session_id},
        "environment_id": item.environment_id,
        "state": item.state,
        "metadata": item.metadata,
        "secret": secret,
        "created_at": item.created_at,
        "acknowledged_at": item.acknowledged_at,
        "started_at": item.started_at,
        "latest_heartbeat_at": item.latest_heartbeat_at,
        "stop_requested_at": item.stop_requested_at,
        "stopped_at": item.stopped_at,
    })
}
