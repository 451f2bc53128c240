//! One request to a provider over HTTP, up to and including a stream of bytes back.
//!
//! Everything that is the same whatever is said: one client (`TCP_NODELAY`, no redirects, which would carry keys
//! elsewhere), time limits, and a second try while no byte of an answer has come. What a failure means is in
//! [`failure`]; what the bytes mean is the providers' own.

pub mod failure;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use engine::port::Entropy;
use engine::port::model::ModelError;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use session::event::SessionErrorKind;
use tokio::time::{Instant, sleep, timeout_at};
use url::Url;

use self::failure::{Failure, ProviderError, classify, request_failed, request_unsent, retry_after_ms};
use super::settings::{Patience, ProviderKind};
use crate::secret::Secret;

/// The longest wait between two tries within one call; whatever needs longer is the session's to retry.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);
/// The upper bound of the first random wait; it doubles with each try.
const RETRY_DELAY_FIRST: Duration = Duration::from_millis(500);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of an error's body is read, and how long.
const ERROR_BYTES_MAX: usize = 64 << 10;
const ERROR_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of a stream may take after the last of the answer.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest answer that is read, in bytes on the wire.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// Sends requests to providers; one for all of them, cheap to clone.
#[derive(Clone)]
pub struct Transport {
    /// Made by the first request: loading the system's certificates takes longer than the rest of the start.
    client: Arc<OnceLock<reqwest::Client>>,
    entropy: Arc<dyn Entropy>,
    on_retry: Arc<OnRetry>,
}

/// Is told of every request that is sent again: to whom, and what the failure was.
pub(super) type OnRetry = dyn Fn(ProviderKind, SessionErrorKind) + Send + Sync;

/// A request that may be sent more than once.
pub(super) struct Outgoing<'a> {
    pub(super) provider: ProviderKind,
    pub(super) url: &'a Url,
    pub(super) headers: HeaderMap,
    /// A JSON document.
    pub(super) body: Bytes,
    /// What must not be quoted from the provider's words.
    pub(super) secret: Option<&'a Secret>,
    pub(super) patience: &'a Patience,
}

/// A successful answer whose first bytes are here.
pub(super) struct Reply {
    response: reqwest::Response,
    first: Option<Bytes>,
    idle_timeout: Duration,
    deadline: Instant,
    bytes_left: usize,
    /// The media type that the provider names, in lower case and without parameters.
    pub(super) media_type: String,
}

impl Transport {
    /// `entropy` spreads the waits between tries.
    pub fn new(entropy: Arc<dyn Entropy>) -> Self {
        Self { client: Arc::default(), entropy, on_retry: Arc::new(|_, _| {}) }
    }

    /// The same, telling `on_retry` of requests that are sent again.
    pub(super) fn telling(self, on_retry: Arc<OnRetry>) -> Self {
        Self { on_retry, ..self }
    }

    /// Sends `outgoing` until the first bytes of a successful answer are here.
    ///
    /// What may pass within seconds is tried again up to `attempts_max` times in all; a `retry-after` of up to five
    /// seconds is obeyed, a longer one returned.
    pub(super) async fn send(&self, outgoing: &Outgoing<'_>) -> Result<Reply, Failure> {
        let client = self.client()?;
        let deadline = Instant::now() + outgoing.patience.total_timeout.get();
        let mut attempt = 1;
        let mut all_free = true;
        loop {
            let mut refused = match try_once(client, outgoing, deadline).await {
                Ok(reply) => return Ok(reply),
                Err(refused) => refused,
            };
            all_free &= refused.error.is_free;
            refused.error.is_free = all_free;
            let delay = match refused.error.retry_after_ms {
                Some(wish) => Duration::from_millis(wish),
                None => self.jitter(attempt),
            };
            let is_last = attempt >= outgoing.patience.attempts_max;
            if is_last || !refused.soon || delay > RETRY_DELAY_MAX || Instant::now() + delay >= deadline {
                return Err(Failure::before_answer(refused.error));
            }
            // The kind alone: a provider's message may quote the prompt.
            let (reason, delay_ms) = (refused.error.kind, delay.as_millis() as u64);
            tracing::debug!(attempt, delay_ms, ?reason, "model request is tried again");
            (self.on_retry)(outgoing.provider, refused.error.kind);
            sleep(delay).await;
            attempt += 1;
        }
    }

    fn client(&self) -> Result<&reqwest::Client, Failure> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = reqwest::Client::builder()
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(Policy::none())
            .user_agent(concat!("agent-service/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| {
                tracing::error!(error = %error.without_url(), "no HTTP client for model providers");
                Failure::before_answer(request_unsent("the server cannot set up connections to model providers", false))
            })?;
        Ok(self.client.get_or_init(|| client))
    }

    /// Full jitter: anything up to a bound that doubles with each attempt, so that clients spread out.
    fn jitter(&self, attempt: u32) -> Duration {
        let bound = RETRY_DELAY_FIRST.saturating_mul(1 << (attempt - 1).min(8)).min(RETRY_DELAY_MAX);
        Duration::from_millis((self.entropy.draw() % (bound.as_millis() + 1)) as u64)
    }
}

/// Why one try came to nothing.
struct Refused {
    error: ModelError,
    /// Whether another try within this call makes sense. After a time limit it does not: the session waited enough.
    soon: bool,
}

impl Refused {
    fn soon(error: ModelError) -> Self {
        Self { soon: error.retryable, error }
    }

    fn later(error: ModelError) -> Self {
        Self { error, soon: false }
    }
}

async fn try_once(client: &reqwest::Client, outgoing: &Outgoing<'_>, deadline: Instant) -> Result<Reply, Refused> {
    let first_byte_by = deadline.min(Instant::now() + outgoing.patience.first_byte_timeout.get());
    let sending = client
        .post(outgoing.url.clone())
        .headers(outgoing.headers.clone())
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header(ACCEPT, HeaderValue::from_static("text/event-stream"))
        .body(outgoing.body.clone())
        .send();
    let response = match timeout_at(first_byte_by, sending).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(unsent(error)),
        Err(_) => return Err(Refused::later(request_failed("the model provider did not answer in time", true))),
    };
    if !response.status().is_success() {
        return Err(Refused::soon(refusal(response, outgoing.secret).await));
    }
    let mut reply = Reply {
        media_type: media_type(response.headers()),
        response,
        first: None,
        idle_timeout: outgoing.patience.idle_timeout.get(),
        deadline,
        bytes_left: ANSWER_BYTES_MAX,
    };
    match timeout_at(first_byte_by, reply.response.chunk()).await {
        Ok(Ok(Some(first))) => {
            reply.first = Some(first);
            Ok(reply)
        }
        Ok(Ok(None)) => Err(Refused::soon(request_failed("the model provider's answer was empty", true))),
        Ok(Err(error)) => Err(unsent(error)),
        Err(_) => Err(Refused::later(request_failed("the model provider did not answer in time", true))),
    }
}

impl Reply {
    /// More bytes, or `None` at the proper end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let chunk = match self.first.take() {
            Some(first) => Some(first),
            None => self.received().await.map_err(|message| Failure::in_answer(request_failed(message, true)))?,
        };
        let length = chunk.as_ref().map_or(0, Bytes::len);
        self.bytes_left = self
            .bytes_left
            .checked_sub(length)
            .ok_or_else(|| Failure::in_answer(request_failed("the model provider's answer is too long", false)))?;
        Ok(chunk)
    }

    /// All was said: only usage and the end may follow, and some servers never close the stream.
    pub(super) fn hurry(&mut self) {
        self.idle_timeout = self.idle_timeout.min(END_TIMEOUT);
    }

    async fn received(&mut self) -> Result<Option<Bytes>, &'static str> {
        let by = self.deadline.min(Instant::now() + self.idle_timeout);
        match timeout_at(by, self.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => {
                tracing::debug!(error = %error.without_url(), "model answer was cut");
                Err("the connection to the model provider broke in the middle of an answer")
            }
            Err(_) if by == self.deadline => Err("the model provider's answer took too long"),
            Err(_) => Err("the model provider fell silent in the middle of an answer"),
        }
    }
}

/// A request without a response. Addresses stay out of the words that clients see.
fn unsent(error: reqwest::Error) -> Refused {
    let problem = if error.is_connect() {
        request_unsent("the model provider cannot be reached", true)
    } else {
        request_failed("the connection to the model provider broke before an answer", true)
    };
    tracing::debug!(error = %error.without_url(), "model request got no response");
    Refused::soon(problem)
}

/// What a response other than a success says.
async fn refusal(mut response: reqwest::Response, secret: Option<&Secret>) -> ModelError {
    let status = response.status();
    let wish = retry_after_ms(response.headers());
    let mut body = Vec::new();
    let by = Instant::now() + ERROR_TIMEOUT;
    while body.len() < ERROR_BYTES_MAX
        && let Ok(Ok(Some(chunk))) = timeout_at(by, response.chunk()).await
    {
        body.extend_from_slice(&chunk);
    }
    let error = serde_json::from_slice(&body).map(|body| ProviderError::from_body(&body)).unwrap_or_default();
    classify(status, &error, wish, secret)
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}
