//! One page of a session's events: each event once, in its latest form.
//!
//! Processed events are listed by the position at which they were processed. Events that wait have no such position
//! yet: they stand last in ascending order and first in descending order, and no range of times includes them. A
//! cursor therefore holds two positions, one in each part; an event that is processed between two pages is listed
//! again rather than lost.

use std::collections::BTreeSet;

use engine::port::log::ListEvents;
use engine::port::{Order, StoredRecord, TimeRange};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use session::id::EventId;
use session::state::State;

use super::Service;
use super::error::ApiError;
use super::exposure::Exposure;
use super::pagination::{self, ListName};
use super::query::Query;

const LIMIT_MAX: usize = 1_000;

/// Every type that the API lets clients filter by.
const TYPES: [&str; 41] = [
    "user.message",
    "user.interrupt",
    "user.tool_confirmation",
    "user.custom_tool_result",
    "user.tool_result",
    "user.define_outcome",
    "system.message",
    "agent.message",
    "agent.thinking",
    "agent.tool_use",
    "agent.tool_result",
    "agent.custom_tool_use",
    "agent.mcp_tool_use",
    "agent.mcp_tool_result",
    "agent.thread_message_received",
    "agent.thread_message_sent",
    "agent.thread_context_compacted",
    "session.error",
    "session.usage",
    "session.updated",
    "session.status_running",
    "session.status_idle",
    "session.status_rescheduled",
    "session.status_terminated",
    "session.thread_created",
    "session.thread_status_running",
    "session.thread_status_idle",
    "session.thread_status_rescheduled",
    "session.thread_status_terminated",
    "span.model_request_start",
    "span.model_request_end",
    "span.outcome_evaluation_start",
    "span.outcome_evaluation_ongoing",
    "span.outcome_evaluation_end",
    "workflow_run.created",
    "workflow_run.status_running",
    "workflow_run.status_idle",
    "workflow_run.status_ended",
    "workflow_run.error",
    "workflow_run.phase_started",
    "workflow_run.phase_ended",
];

/// Which events to list, and how.
pub(super) struct EventFilter {
    types: BTreeSet<String>,
    processed: TimeRange,
    order: Order,
}

impl EventFilter {
    pub(super) fn new(types: BTreeSet<String>, processed: TimeRange, order: Order) -> Result<Self, ApiError> {
        if let Some(unknown) = types.iter().find(|kind| !TYPES.contains(&kind.as_str())) {
            let shown: String = unknown.chars().take(64).collect();
            let suggestion = super::fields::suggestion(unknown, &TYPES);
            return Err(ApiError::invalid(format!("types: {shown:?} is not a type of event{suggestion}")));
        }
        Ok(Self { types, processed, order })
    }

    /// Everything, oldest first.
    pub(super) fn all() -> Self {
        Self { types: BTreeSet::new(), processed: TimeRange::default(), order: Order::Ascending }
    }

    fn admits_waiting(&self, kind: &str) -> bool {
        self.processed == TimeRange::default() && (self.types.is_empty() || self.types.contains(kind))
    }
}

/// Where a page begins.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventPlace {
    /// The last processed event listed.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    processed: Option<u64>,
    /// The last waiting event listed, by the position at which it was received.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    waiting: Option<u64>,
}

/// Reads `limit` and `page`, and answers with the page. `reader` is set where what is listed may be run.
pub(super) async fn page(
    service: &Service,
    state: &State,
    filter: &EventFilter,
    reader: Option<&Exposure>,
    mut query: Query,
) -> Result<Value, ApiError> {
    let name = ListName::within("events", state.session_id.as_str());
    let limit = query.limit(LIMIT_MAX, LIMIT_MAX)?;
    let place: EventPlace = pagination::decode(&mut query, &name, filter.order)?.unwrap_or_default();
    query.finish()?;

    let listed = match filter.order {
        Order::Ascending => ascending(service, state, filter, &place, limit).await?,
        Order::Descending => descending(service, state, filter, &place, limit).await?,
    };
    if let Some(reader) = reader {
        reader.record_listed(service, state, &listed.records).await?;
    }
    let next = listed.next.map(|place| pagination::encode(&name, filter.order, &place));
    let data = listed.records.iter().filter_map(|stored| stored.to_api().map(Value::Object)).collect();
    Ok(pagination::page(data, next))
}

struct Listed {
    records: Vec<StoredRecord>,
    next: Option<EventPlace>,
}

/// Processed events, then those that wait.
async fn ascending(
    service: &Service,
    state: &State,
    filter: &EventFilter,
    place: &EventPlace,
    limit: usize,
) -> Result<Listed, ApiError> {
    let (mut records, more) =
        pagination::cut(processed(service, state, filter, place.processed, limit + 1).await?, limit);
    let mut next = EventPlace {
        processed: records.last().map(|last| last.record.position).or(place.processed),
        waiting: place.waiting,
    };
    if more {
        return Ok(Listed { records, next: Some(next) });
    }
    let listed: BTreeSet<EventId> = records.iter().filter_map(|stored| stored.record.event.id().cloned()).collect();
    let room = limit - records.len();
    let positions = waiting_positions(state).into_iter().filter(|position| Some(*position) > place.waiting);
    let (waiting, more) = waiting(service, state, filter, positions, &listed, room).await?;
    next.waiting = waiting.last().map(|last| last.record.position).or(next.waiting);
    records.extend(waiting);
    Ok(Listed { records, next: more.then_some(next) })
}

/// Events that wait, then processed ones.
async fn descending(
    service: &Service,
    state: &State,
    filter: &EventFilter,
    place: &EventPlace,
    limit: usize,
) -> Result<Listed, ApiError> {
    let mut records = Vec::new();
    if place.processed.is_none() {
        let before = place.waiting.unwrap_or(u64::MAX);
        let positions = waiting_positions(state).into_iter().rev().filter(|position| *position < before);
        let (waiting, more) = waiting(service, state, filter, positions, &BTreeSet::new(), limit).await?;
        records = waiting;
        if more {
            let next = EventPlace { processed: None, waiting: records.last().map(|last| last.record.position) };
            return Ok(Listed { records, next: Some(next) });
        }
    }
    let listed: BTreeSet<EventId> = records.iter().filter_map(|stored| stored.record.event.id().cloned()).collect();
    let room = limit - records.len();
    let found = processed(service, state, filter, place.processed, room + 1).await?;
    let (found, more) = pagination::cut(found, room);
    let last = found.last().map(|last| last.record.position);
    records.extend(found.into_iter().filter(|stored| !stored.record.event.id().is_some_and(|id| listed.contains(id))));
    let next = EventPlace {
        processed: last.or(place.processed),
        waiting: if last.is_none() { records.last().map(|last| last.record.position) } else { None },
    };
    Ok(Listed { records, next: more.then_some(next) })
}

async fn processed(
    service: &Service,
    state: &State,
    filter: &EventFilter,
    after: Option<u64>,
    limit: usize,
) -> Result<Vec<StoredRecord>, ApiError> {
    let list = ListEvents {
        session_id: state.session_id.clone(),
        types: filter.types.clone(),
        processed: filter.processed,
        order: filter.order,
        after,
        limit,
    };
    Ok(service.log().list(&list).await?)
}

/// Positions of the events that wait, in the order in which they came.
fn waiting_positions(state: &State) -> Vec<u64> {
    let mut positions: Vec<u64> =
        state.queue.iter().chain(state.interrupt.as_ref()).map(|waiting| waiting.position).collect();
    positions.sort_unstable();
    positions
}

/// Up to `limit` of the waiting events at `positions`, and whether there are more.
async fn waiting(
    service: &Service,
    state: &State,
    filter: &EventFilter,
    positions: impl Iterator<Item = u64>,
    listed: &BTreeSet<EventId>,
    limit: usize,
) -> Result<(Vec<StoredRecord>, bool), ApiError> {
    let mut records = Vec::new();
    for position in positions {
        let found = service.log().read(&state.session_id, position - 1, 1).await?;
        let Some(stored) = found.into_iter().next().filter(|stored| stored.record.position == position) else {
            continue;
        };
        let already = stored.record.event.id().is_some_and(|id| listed.contains(id));
        if already || !filter.admits_waiting(stored.kind()) {
            continue;
        }
        if records.len() == limit {
            return Ok((records, true));
        }
        records.push(stored);
    }
    Ok((records, false))
}
