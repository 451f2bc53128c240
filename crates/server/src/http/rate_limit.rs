//! How many requests an API key may make a minute.
//!
//! Two buckets a key, as the hosted service has them: one for reads (every GET), one for what creates ([`CREATES`]).
//! Other requests, workers' credentials and the probes are not counted, and neither is a credential that nobody knows.
//! Who asked too often gets a 429; every counted answer says how much is left.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderValue, Method};
use engine::port::rate_limits::{Rate, RateLimits, Taken};
use session::Timestamp;

use super::Service;
use super::auth;
use super::error::{ApiError, Kind};

/// The routes whose POST creates something: sessions, their events, what they are made from.
const CREATES: [&str; 6] = [
    "/v1/agents",
    "/v1/environments",
    "/v1/files",
    "/v1/sessions",
    "/v1/sessions/{session_id}/events",
    "/v1/sessions/{session_id}/resources",
];

/// The limits of every API key, and who counts.
#[derive(Clone)]
pub struct RequestLimits {
    pub counters: Arc<dyn RateLimits>,
    pub create: Option<Rate>,
    pub read: Option<Rate>,
}

impl RequestLimits {
    /// The bucket of a request, and its rate.
    fn bucket(&self, method: &Method, route: &str) -> Option<(&'static str, Rate)> {
        if !route.starts_with("/v1/") || route.starts_with("/v1/internal/") {
            return None;
        }
        match *method {
            Method::GET | Method::HEAD => self.read.map(|rate| ("read", rate)),
            Method::POST if CREATES.contains(&route) => self.create.map(|rate| ("create", rate)),
            _ => None,
        }
    }
}

/// What a request is taken from.
pub(super) struct Bucket {
    counters: Arc<dyn RateLimits>,
    key: String,
    rate: Rate,
}

impl Bucket {
    /// The bucket of a request that belongs to a limited API key.
    pub(super) fn of(service: &Service, request: &Request) -> Option<Self> {
        let route = request.extensions().get::<MatchedPath>()?;
        let limits = service.request_limits.as_ref()?;
        let (name, rate) = limits.bucket(request.method(), route.as_str())?;
        let key_hash = auth::api_key_hash(service, request.headers())?;
        Some(Self { counters: Arc::clone(&limits.counters), key: format!("{name}:{key_hash}"), rate })
    }

    pub(super) async fn take(&self) -> Taken {
        self.counters.take(&self.key, self.rate).await
    }
}

/// The refusal of a request that came too soon.
pub(super) fn refusal(taken: &Taken) -> Option<ApiError> {
    let wait = taken.retry_after?;
    let seconds = wait.as_millis().div_ceil(1_000).max(1);
    let limit = taken.limit;
    let message = format!("this API key may make {limit} requests of this kind a minute; try again in {seconds} s");
    Some(ApiError::new(Kind::RateLimited, message).retry_after(u32::try_from(seconds).unwrap_or(u32::MAX)))
}

/// Says in the answer how much is left.
pub(super) fn write_headers(taken: &Taken, now: Timestamp, headers: &mut HeaderMap) {
    let full_at = Timestamp::from_micros(now.as_micros() + i64::try_from(taken.reset.as_micros()).unwrap_or(0));
    headers.insert("anthropic-ratelimit-requests-limit", taken.limit.into());
    headers.insert("anthropic-ratelimit-requests-remaining", taken.remaining.into());
    let reset = HeaderValue::from_str(&full_at.to_string()).expect("a time is ASCII");
    headers.insert("anthropic-ratelimit-requests-reset", reset);
}
