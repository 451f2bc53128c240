//! `/v1/sessions/{session_id}/threads`: every session has one thread, its primary one.

use axum::Json;
use axum::extract::State as Shared;
use axum::response::Response;
use engine::port::Order;
use serde_json::Value;
use session::state::Status;
use session::{State, view};

use super::Service;
use super::auth::Caller;
use super::body::OptionalBody;
use super::error::ApiError;
use super::event_list::{self, EventFilter};
use super::pagination::{self, CreatedPlace, ListName};
use super::path::Ids;
use super::query::{NoQuery, Query};
use super::sessions;
use super::stream::{self, Deltas};

/// `GET /v1/sessions/{session_id}/threads`.
pub(super) async fn list(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    let state = sessions::load(&service, &caller, &ids).await?;
    query.limit(1_000, 1_000)?;
    let statuses: Vec<Status> =
        query.strings("statuses").iter().map(|text| sessions::read_status(text)).collect::<Result<_, _>>()?;
    let name = ListName::within("threads", state.session_id.as_str());
    let place: Option<CreatedPlace> = pagination::decode(&mut query, &name, Order::Ascending)?;
    query.finish()?;
    let listed = place.is_none() && (statuses.is_empty() || statuses.contains(&state.status));
    let data = if listed { vec![show(&service, &state).await?] } else { Vec::new() };
    Ok(Json(pagination::page(data, None)))
}

/// `GET /v1/sessions/{session_id}/threads/{thread_id}`.
pub(super) async fn retrieve(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let state = load(&service, &caller, &ids).await?;
    show(&service, &state).await.map(Json)
}

/// `POST /v1/sessions/{session_id}/threads/{thread_id}/archive`.
pub(super) async fn archive(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    OptionalBody(body): OptionalBody,
) -> Result<Json<Value>, ApiError> {
    body.finish()?;
    let state = load(&service, &caller, &ids).await?;
    Err(ApiError::invalid(format!(
        "thread {} is the primary thread of its session and cannot be archived alone; archive session {} instead",
        state.thread_id, state.session_id
    )))
}

/// `GET /v1/sessions/{session_id}/threads/{thread_id}/events`.
pub(super) async fn events(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let state = load(&service, &caller, &ids).await?;
    event_list::page(&service, &state, &EventFilter::all(), None, query).await.map(Json)
}

/// `GET /v1/sessions/{session_id}/threads/{thread_id}/stream`.
pub(super) async fn follow(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    mut query: Query,
) -> Result<Response, ApiError> {
    let deltas = Deltas::read(&mut query)?;
    query.finish()?;
    let state = load(&service, &caller, &ids).await?;
    stream::open(service, &caller, &state, deltas).await
}

/// The session whose primary thread the path names.
async fn load(service: &Service, caller: &Caller, ids: &Ids) -> Result<State, ApiError> {
    caller.require_application()?;
    let state = sessions::load(service, caller, ids).await?;
    if ids.text("thread_id") != state.thread_id.as_str() {
        return Err(ApiError::not_found("thread", ids.text("thread_id")));
    }
    Ok(state)
}

async fn show(service: &Service, state: &State) -> Result<Value, ApiError> {
    let snapshot = service.sessions.agent_snapshot(state).await?;
    Ok(view::primary_thread(state, &snapshot, service.now()))
}
