//! `/v1/sessions/{session_id}/events`: send and list. Following live is [`super::stream`]'s.

use async_trait::async_trait;
use axum::Json;
use axum::extract::State as Shared;
use axum::response::Response;
use engine::port::{Answer, Order, StoreError};
use engine::sessions::{Outcome, Reply, Respond};
use serde_json::{Value, json};
use session::id::SessionId;
use session::{ClientEvent, Command, Poster};

use super::Service;
use super::auth::Caller;
use super::body::{JsonBody, KeyedBody};
use super::error::ApiError;
use super::event_list::{self, EventFilter};
use super::exposure::Exposure;
use super::path::Ids;
use super::query::{NoQuery, Query};
use super::{event_params, idempotency, sessions};

/// `POST /v1/sessions/{session_id}/events`.
pub(super) async fn send(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    KeyedBody(JsonBody(body), request): KeyedBody<JsonBody>,
) -> Result<Response, ApiError> {
    idempotency::once(&service, request.as_ref(), async {
        let id: SessionId = ids.get("session_id", "session")?;
        authorize(&service, &caller, &ids, &id).await?;
        let events = event_params::read(body)?;
        let (poster, fence) = caller.poster()?;
        refuse_beside_sandbox(&events, poster)?;
        let reply = Reply { respond: &Posted, request: request.as_ref() };
        Ok(service.sessions.command_answered(&id, Command::Post { events, poster }, fence, reply).await?)
    })
    .await
}

/// Answers with the events as they were stored.
struct Posted;

#[async_trait]
impl Respond for Posted {
    async fn respond(&self, outcome: &Outcome) -> Result<Answer, StoreError> {
        let data: Vec<Value> = outcome.posted.iter().filter_map(|stored| stored.to_api().map(Value::Object)).collect();
        Ok(idempotency::ok(&json!({"data": data})))
    }
}

/// What runs beside a sandbox must not be able to confirm its own calls, nor, where it is ours, to speak for the user.
fn refuse_beside_sandbox(events: &[ClientEvent], poster: Poster) -> Result<(), ApiError> {
    let is_result = |event: &ClientEvent| matches!(event, ClientEvent::ToolResult { .. });
    let confirms = |event: &ClientEvent| matches!(event, ClientEvent::ToolConfirmation { .. });
    match poster {
        Poster::CloudWorker if !events.iter().all(is_result) => {
            Err(ApiError::forbidden("events: the holder of a work item may send user.tool_result only"))
        }
        Poster::SelfHostedWorker if events.iter().any(confirms) => {
            Err(ApiError::forbidden("events: user.tool_confirmation needs an API key; a worker cannot confirm calls"))
        }
        Poster::Application | Poster::SelfHostedWorker | Poster::CloudWorker => Ok(()),
    }
}

/// Whether the caller may write to the session; whether it exists is found out by the command itself.
async fn authorize(service: &Service, caller: &Caller, ids: &Ids, id: &SessionId) -> Result<(), ApiError> {
    match caller {
        Caller::Application { .. } => Ok(()),
        Caller::ItemHolder { item, .. } if item.session_id == *id => Ok(()),
        Caller::FormerHolder => Err(ApiError::token_ended()),
        _ => sessions::load(service, caller, ids).await.map(drop),
    }
}

/// `GET /v1/sessions/{session_id}/events`.
pub(super) async fn list(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    let state = sessions::load(&service, &caller, &ids).await?;
    let order = query.order(Order::Ascending)?;
    let types = query.strings("types").into_iter().collect();
    let processed = query.created_at()?;
    let filter = EventFilter::new(types, processed, order)?;
    event_list::page(&service, &state, &filter, Exposure::to(&caller).as_ref(), query).await.map(Json)
}
