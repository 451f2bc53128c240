//! `/v1/sessions`: create, retrieve, update, list, archive, delete.

use async_trait::async_trait;
use axum::Json;
use axum::extract::State as Shared;
use axum::response::Response;
use engine::port::log::ListSessions;
use engine::port::{Answer, Fence, FileResource, Order, StoreError};
use engine::sessions::{Outcome, Reply, Respond};
use futures::future::try_join_all;
use serde_json::{Map, Value, json};
use session::event::Created;
use session::id::SessionId;
use session::state::Status;
use session::{ClientEvent, Command, State, view};

use super::Service;
use super::auth::Caller;
use super::body::{JsonBody, KeyedBody, OptionalBody};
use super::error::ApiError;
use super::pagination::{self, CreatedPlace, ListName};
use super::path::{self, Ids};
use super::query::{NoQuery, Query};
use super::session_params::{CreateSession, UpdateSession};
use super::{agents, environments, idempotency, metadata, resources};

/// Snapshots read at once for a page of sessions.
const SNAPSHOTS_AT_ONCE: usize = 8;

/// `POST /v1/sessions`.
pub(super) async fn create(
    Shared(service): Shared<Service>,
    caller: Caller,
    _: NoQuery,
    KeyedBody(JsonBody(body), request): KeyedBody<JsonBody>,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    idempotency::once(&service, request.as_ref(), async {
        let params = CreateSession::read(body, &service)?;
        let (created, initial_events, given) = prepare(&service, &caller, params).await?;
        let reply = Reply { respond: &Shown { service: &service, given: Some(&given) }, request: request.as_ref() };
        Ok(service.sessions.create_answered(created, initial_events, &given, reply).await?)
    })
    .await
}

/// The session that is about to be created, with the agent and the files as they are now.
async fn prepare(
    service: &Service,
    caller: &Caller,
    params: CreateSession,
) -> Result<(Created, Vec<ClientEvent>, Vec<FileResource>), ApiError> {
    let agent = agents::load(service, &params.agent.id, params.agent.version).await?;
    if agent.archived_at.is_some() {
        return Err(ApiError::invalid(format!("agent: {} is archived and takes no new sessions", agent.id)));
    }
    let environment = environments::load(service, params.environment_id.as_str()).await?;
    environments::refuse_archived(&environment)?;
    if !params.resources.is_empty() {
        resources::refuse_self_hosted(environment.kind())?;
    }
    let session_id: SessionId = service.id();
    let given = resources::copies(service, &session_id, params.resources).await?;
    let created = Created {
        session_id,
        thread_id: service.id(),
        environment_id: environment.id.clone(),
        environment_kind: environment.kind(),
        agent: params.agent.apply(agents::snapshot(agent), service),
        title: params.title,
        metadata: params.metadata,
        api_key_id: caller.api_key_id().cloned(),
    };
    Ok((created, params.initial_events, given))
}

/// `GET /v1/sessions/{session_id}`.
pub(super) async fn retrieve(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let state = load(&service, &caller, &ids).await?;
    show(&service, &state).await.map(Json)
}

/// `POST /v1/sessions/{session_id}`.
pub(super) async fn update(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    KeyedBody(JsonBody(body), request): KeyedBody<JsonBody>,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    idempotency::once(&service, request.as_ref(), async {
        let params = UpdateSession::read(body)?;
        let state = load(&service, &caller, &ids).await?;
        metadata::merge(&state.metadata, &params.metadata)?;
        let agent = match params.tools {
            None => None,
            Some(tools) => {
                let mut agent = (*service.sessions.agent_snapshot(&state).await?).clone();
                agent.tools = tools;
                Some(Box::new(agent))
            }
        };
        let command = Command::Update { title: params.title, metadata: params.metadata, agent };
        let reply = Reply { respond: &Shown::of(&service), request: request.as_ref() };
        Ok(service.sessions.command_answered(&state.session_id, command, Fence::Client, reply).await?)
    })
    .await
}

/// `POST /v1/sessions/{session_id}/archive`.
pub(super) async fn archive(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    KeyedBody(OptionalBody(body), request): KeyedBody<OptionalBody>,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    idempotency::once(&service, request.as_ref(), async {
        body.finish()?;
        let id: SessionId = ids.get("session_id", "session")?;
        let reply = Reply { respond: &Shown::of(&service), request: request.as_ref() };
        Ok(service.sessions.command_answered(&id, Command::Archive, Fence::Client, reply).await?)
    })
    .await
}

/// `DELETE /v1/sessions/{session_id}`.
pub(super) async fn delete(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    OptionalBody(body): OptionalBody,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    body.finish()?;
    let state = load(&service, &caller, &ids).await?;
    service.sessions.command(&state.session_id, Command::Delete, Fence::Client).await?;
    Ok(Json(json!({"id": state.session_id, "type": "session_deleted"})))
}

/// `GET /v1/sessions`.
pub(super) async fn list(
    Shared(service): Shared<Service>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    let name = ListName::of("sessions");
    let limit = query.limit(20, 100)?;
    let order = query.order(Order::Descending)?;
    let place: Option<CreatedPlace> = pagination::decode(&mut query, &name, order)?;
    let mut list = read_filters(&mut query)?;
    query.finish()?;

    let backwards = place.as_ref().is_some_and(|place| place.backwards);
    list.after = place.as_ref().map(|place| place.within(list.created)).transpose()?;
    list.order = if backwards { opposite(order) } else { order };
    list.limit = limit + 1;
    let (mut states, more) = pagination::cut(service.log().list_sessions(&list).await?, limit);
    if backwards {
        states.reverse();
    }
    let place_of = |state: &State| CreatedPlace::new(state.created_at, state.session_id.as_str());
    let has_previous = if backwards { more } else { place.is_some() };
    let previous = states
        .first()
        .filter(|_| has_previous)
        .map(|first| pagination::encode(&name, order, &place_of(first).backwards()));
    let next =
        states.last().filter(|_| more || backwards).map(|last| pagination::encode(&name, order, &place_of(last)));

    let mut data: Vec<Value> = Vec::with_capacity(states.len());
    let ids: Vec<SessionId> = states.iter().map(|state| state.session_id.clone()).collect();
    let given = service.world.resources.resources(&ids).await?;
    for some in states.chunks(SNAPSHOTS_AT_ONCE) {
        data.extend(try_join_all(some.iter().map(|state| show_given(&service, state, &given))).await?);
    }
    let mut page = Map::new();
    page.insert("data".to_owned(), data.into());
    page.insert("next_page".to_owned(), next.into());
    page.insert("prev_page".to_owned(), previous.into());
    Ok(Json(Value::Object(page)))
}

/// Reads what sessions are filtered by; order and place are the caller's to fill in.
fn read_filters(query: &mut Query) -> Result<ListSessions, ApiError> {
    let agent_id = query.string("agent_id")?.map(|id| path::parse(&id, "agent")).transpose()?;
    let agent_version = query.number("agent_version", 1, u32::MAX)?;
    if agent_version.is_some() && agent_id.is_none() {
        return Err(ApiError::invalid("agent_version: only allowed together with agent_id"));
    }
    for (name, hint) in
        [("deployment_id", "deployments do not exist yet"), ("memory_store_id", "memory stores do not exist yet")]
    {
        if query.string(name)?.is_some() {
            return Err(ApiError::unsupported(name, hint));
        }
    }
    let created = query.created_at()?;
    let include_archived = query.boolean("include_archived")?;
    let statuses = query.strings("statuses").iter().map(|text| read_status(text)).collect::<Result<_, _>>()?;
    Ok(ListSessions {
        agent_id,
        agent_version,
        created,
        include_archived,
        statuses,
        order: Order::Descending,
        after: None,
        limit: 0,
    })
}

/// A status by its name in the API.
pub(super) fn read_status(text: &str) -> Result<Status, ApiError> {
    match text {
        "idle" => Ok(Status::Idle),
        "running" => Ok(Status::Running),
        "rescheduling" => Ok(Status::Rescheduling),
        "terminated" => Ok(Status::Terminated),
        _ => Err(ApiError::invalid("statuses: expected idle, running, rescheduling or terminated")),
    }
}

fn opposite(order: Order) -> Order {
    match order {
        Order::Ascending => Order::Descending,
        Order::Descending => Order::Ascending,
    }
}

/// The session that the path names, if it is there and this caller may see it.
pub(super) async fn load(service: &Service, caller: &Caller, ids: &Ids) -> Result<State, ApiError> {
    let id: SessionId = ids.get("session_id", "session")?;
    let not_found = || ApiError::not_found("session", id.as_str());
    let state = service.sessions.state(&id).await?.filter(|state| !state.deleted).ok_or_else(not_found)?;
    caller.require_session(&state)?;
    Ok(state)
}

/// The session as clients see it.
async fn show(service: &Service, state: &State) -> Result<Value, ApiError> {
    let given = resources::of(service, &state.session_id).await?;
    show_given(service, state, &given).await
}

/// The same, where the resources of this session and perhaps others are known.
async fn show_given(service: &Service, state: &State, given: &[FileResource]) -> Result<Value, ApiError> {
    let snapshot = service.sessions.agent_snapshot(state).await?;
    Ok(with_resources(state, view::session(state, &snapshot, service.now()), given))
}

fn with_resources(state: &State, mut shown: Value, given: &[FileResource]) -> Value {
    let theirs = given.iter().filter(|resource| resource.file.session_id.as_ref() == Some(&state.session_id));
    shown["resources"] = theirs.map(resources::view).collect();
    shown
}

/// Answers with the session as clients see it.
struct Shown<'s> {
    service: &'s Service,
    /// What a session that is being created is given; `None` for one that is there.
    given: Option<&'s [FileResource]>,
}

impl<'s> Shown<'s> {
    fn of(service: &'s Service) -> Self {
        Self { service, given: None }
    }
}

#[async_trait]
impl Respond for Shown<'_> {
    async fn respond(&self, outcome: &Outcome) -> Result<Answer, StoreError> {
        let (service, state) = (self.service, &outcome.state);
        let snapshot = service.sessions.agent_snapshot_after(outcome).await?;
        let shown = view::session(state, &snapshot, service.now());
        let shown = match self.given {
            Some(given) => with_resources(state, shown, given),
            None => {
                let ids = std::slice::from_ref(&state.session_id);
                with_resources(state, shown, &service.world.resources.resources(ids).await?)
            }
        };
        Ok(idempotency::ok(&shown))
    }
}
