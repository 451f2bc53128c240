//! The HTTP calls of a worker, one function each. It retries nothing: who calls knows how long to go on.

use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use session::id::EventId;
use std::time::Duration;

use super::wire::{
    CALL_EVENTS, EndedWorkspaces, Event, EventPage, Heartbeat, MODEL_REQUEST_START, SandboxSettings, Session,
    ToolStart, WorkItem,
};
use crate::config::WorkerConfig;
use crate::egress::Reason;
use crate::sandbox::protocol::ToolOutcome;
use crate::secret::Secret;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The server pings every 15 s; a stream that is silent for so long is dead.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(45);
/// Small, because a list ends at the last model request, and that is rarely further away.
const PAGE_EVENTS: &str = "100";

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("no connection: {0}")]
    Unreachable(reqwest::Error),
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("the server's answer is not understood: {0}")]
    Malformed(String),
}

impl ApiError {
    /// Worth trying again: nothing was decided.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Status(status) => status.is_server_error() || matches!(status.as_u16(), 408 | 429),
            Self::Malformed(_) => false,
        }
    }

    pub(crate) fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }

    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Status(status) => Some(status.as_u16()),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    streams: reqwest::Client,
    server: Url,
    environment_id: String,
    worker_id: String,
    key: Secret,
    poll_block_ms: u16,
    lease_ttl_seconds: u16,
}

impl Client {
    pub(crate) fn new(config: &WorkerConfig) -> Result<Self, ApiError> {
        let builder = || {
            reqwest::Client::builder()
                .tcp_nodelay(true)
                .connect_timeout(CONNECT_TIMEOUT)
                // The server is the worker's own; a proxy of the environment is meant for the rest of the world.
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
        };
        Ok(Self {
            http: builder().timeout(REQUEST_TIMEOUT).build().map_err(unreachable)?,
            streams: builder().read_timeout(STREAM_SILENCE_MAX).build().map_err(unreachable)?,
            server: config.server_url.clone(),
            environment_id: config.environment_id.clone(),
            worker_id: config.worker_id.clone(),
            key: config.key.clone(),
            poll_block_ms: config.poll_block_ms.clamp(1, 999),
            lease_ttl_seconds: config.lease_ttl_seconds,
        })
    }

    pub(crate) fn key(&self) -> &Secret {
        &self.key
    }

    /// Asks for the next item; the server holds the request for a moment before it answers that there is none.
    pub(crate) async fn poll(&self) -> Result<Option<WorkItem>, ApiError> {
        let mut url = self.work(&["poll"]);
        url.query_pairs_mut().append_pair("block_ms", &self.poll_block_ms.to_string());
        let request = self.request(Method::GET, url, &self.key).header("Anthropic-Worker-ID", &self.worker_id);
        answer(request).await
    }

    pub(crate) async fn acknowledge(&self, work_id: &str) -> Result<(), ApiError> {
        let request = self.request(Method::POST, self.work(&[work_id, "ack"]), &self.key);
        accepted(request).await.map(drop)
    }

    /// Extends the lease; `expected` is the last beat's stamp, none for the first.
    pub(crate) async fn heartbeat(
        &self,
        work_id: &str,
        token: &Secret,
        expected: Option<&str>,
    ) -> Result<Heartbeat, ApiError> {
        let mut url = self.work(&[work_id, "heartbeat"]);
        url.query_pairs_mut()
            .append_pair("desired_ttl_seconds", &self.lease_ttl_seconds.to_string())
            .append_pair("expected_last_heartbeat", expected.unwrap_or("NO_HEARTBEAT"));
        let patience = Duration::from_secs(self.lease_ttl_seconds.into());
        answer(self.request(Method::POST, url, token).timeout(patience)).await
    }

    pub(crate) async fn stop(&self, work_id: &str, token: &Secret) -> Result<(), ApiError> {
        let request = self.request(Method::POST, self.work(&[work_id, "stop"]), token);
        accepted(request.json(&json!({"force": true}))).await.map(drop)
    }

    pub(crate) async fn session(&self, session_id: &str, token: &Secret) -> Result<Session, ApiError> {
        let url = self.path(&["v1", "sessions", session_id]);
        answer(self.request(Method::GET, url, token)).await
    }

    /// Opens the session's stream; from now on no event is missed until it breaks.
    pub(crate) async fn stream(&self, session_id: &str, token: &Secret) -> Result<Response, ApiError> {
        let url = self.path(&["v1", "sessions", session_id, "events", "stream"]);
        let request = self.streams.get(url).bearer_auth(token.expose());
        accepted(request.header("accept", "text/event-stream")).await
    }

    /// The events that tell which calls are open, oldest first: those since the last model request.
    pub(crate) async fn open_events(&self, session_id: &str, token: &Secret) -> Result<Vec<Event>, ApiError> {
        let mut newest_first = Vec::new();
        let mut page = None;
        loop {
            let mut url = self.path(&["v1", "sessions", session_id, "events"]);
            url.query_pairs_mut()
                .append_pair("limit", PAGE_EVENTS)
                .append_pair("order", "desc")
                .extend_pairs(CALL_EVENTS.map(|kind| ("types[]", kind)))
                .extend_pairs(page.iter().map(|page: &String| ("page", page)));
            let EventPage { data, next_page } = answer(self.request(Method::GET, url, token)).await?;
            let end = data.iter().position(|event| event.kind == MODEL_REQUEST_START);
            newest_first.extend(data.into_iter().take(end.map_or(usize::MAX, |index| index + 1)));
            page = next_page;
            if end.is_some() || page.is_none() {
                newest_first.reverse();
                return Ok(newest_first);
            }
        }
    }

    /// Records that a call is about to run. Only after this may it have an effect.
    /// `tip` is what the files are called from then on.
    pub(crate) async fn tool_start(
        &self,
        session_id: &str,
        token: &Secret,
        call: &str,
        tip: Option<&EventId>,
    ) -> Result<ToolStart, ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "tool_starts"]);
        let request = self.request(Method::POST, url, token);
        let body = match tip {
            Some(tip) => json!({"tool_use_id": call, "tip": tip}),
            None => json!({"tool_use_id": call}),
        };
        answer(request.json(&body)).await
    }

    /// How the session's next sandbox is to be made.
    pub(crate) async fn sandbox_settings(&self, session_id: &str, token: &Secret) -> Result<SandboxSettings, ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "sandbox"]);
        answer(self.request(Method::GET, url, token)).await
    }

    /// Tells what the session's tools were refused since the last time.
    pub(crate) async fn report_refusals(
        &self,
        session_id: &str,
        token: &Secret,
        counts: &[(Reason, u64)],
    ) -> Result<(), ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "refusals"]);
        let counts: Map<String, Value> =
            counts.iter().map(|(reason, count)| (reason.name().to_owned(), Value::from(*count))).collect();
        accepted(self.request(Method::POST, url, token).json(&json!({"counts": counts}))).await.map(drop)
    }

    /// Which of these sessions are deleted.
    pub(crate) async fn ended_workspaces(&self, session_ids: &[String]) -> Result<Vec<String>, ApiError> {
        let url = self.path(&["v1", "internal", "workspaces", "ended"]);
        let request = self.request(Method::POST, url, &self.key);
        let EndedWorkspaces { data } = answer(request.json(&json!({"session_ids": session_ids}))).await?;
        Ok(data)
    }

    pub(crate) async fn tool_result(
        &self,
        session_id: &str,
        token: &Secret,
        call: &str,
        outcome: &ToolOutcome,
    ) -> Result<(), ApiError> {
        let event: Value = json!({
            "type": "user.tool_result",
            "tool_use_id": call,
            "content": outcome.content,
            "is_error": outcome.is_error,
        });
        let url = self.path(&["v1", "sessions", session_id, "events"]);
        let request = self.request(Method::POST, url, token);
        accepted(request.json(&json!({"events": [event]}))).await.map(drop)
    }

    pub(super) fn request(&self, method: Method, url: Url, credential: &Secret) -> RequestBuilder {
        self.http.request(method, url).bearer_auth(credential.expose())
    }

    fn work(&self, rest: &[&str]) -> Url {
        let head = ["v1", "environments", &self.environment_id, "work"];
        self.path(&[&head, rest].concat())
    }

    /// A path below the server's URL. Ids become one segment each, whatever they hold.
    pub(super) fn path(&self, segments: &[&str]) -> Url {
        let mut url = self.server.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }
}

pub(super) async fn answer<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, ApiError> {
    let body = accepted(request).await?.bytes().await.map_err(unreachable)?;
    serde_json::from_slice(&body).map_err(|error| ApiError::Malformed(error.to_string()))
}

pub(super) async fn accepted(request: RequestBuilder) -> Result<Response, ApiError> {
    let response = request.send().await.map_err(unreachable)?;
    if response.status().is_success() { Ok(response) } else { Err(ApiError::Status(response.status())) }
}

pub(super) fn unreachable(error: reqwest::Error) -> ApiError {
    ApiError::Unreachable(error.without_url())
}
