//! The Anthropic Messages API, streamed.
//!
//! [`request`] writes the request, [`stream`] reads the events; this module sends one and feeds the other.

mod request;
mod stream;

use engine::port::model::{ModelAnswer, ModelRequest, PreviewSink};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use session::agent::Speed;
use url::Url;

use super::http::failure::{Failure, ProviderError, classify_event, request_failed, request_unsent};
use super::http::{Outgoing, Transport};
use super::preview::Previews;
use super::settings::{Patience, ProviderKind, Thinking};
use super::sse::SseDecoder;
use crate::secret::Secret;
use stream::{Assembly, Problem};

/// Where the API is unless the settings say otherwise.
pub(super) const BASE_URL: &str = "https://api.anthropic.com";
/// What every current model can give.
pub(super) const MAX_OUTPUT_TOKENS: u32 = 32_000;
/// The context that every current model has.
pub(super) const CONTEXT_WINDOW_TOKENS: u64 = 200_000;

const VERSION: &str = "2023-06-01";
/// Without it some models refuse any `speed`.
const FAST_MODE_BETA: &str = "fast-mode-2026-02-01";

/// One account at one address.
#[derive(Clone, Debug)]
pub struct Anthropic {
    url: Url,
    api_key: Option<Secret>,
    options: Options,
    patience: Patience,
}

/// What the settings say about a model.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub max_output_tokens: u32,
    pub thinking: Thinking,
    pub effort: Option<bool>,
}

impl Anthropic {
    /// A provider at `base_url`, with or without `/v1` at its end.
    pub fn new(
        base_url: &str,
        api_key: Option<Secret>,
        options: Options,
        patience: Patience,
    ) -> Result<Self, url::ParseError> {
        let base = base_url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        Ok(Self { url: Url::parse(&format!("{base}/v1/messages"))?, api_key, options, patience })
    }

    /// Asks the model called `model` at the provider.
    pub async fn answer(
        &self,
        transport: &Transport,
        model: &str,
        request: &ModelRequest,
        previews: &mut dyn PreviewSink,
    ) -> Result<ModelAnswer, Failure> {
        let outgoing = Outgoing {
            provider: ProviderKind::Anthropic,
            url: &self.url,
            headers: self.headers(request)?,
            body: request::body(model, request, &self.options).into(),
            secret: self.api_key.as_ref(),
            patience: &self.patience,
        };
        let mut reply = transport.send(&outgoing).await?;
        if reply.media_type != "text/event-stream" {
            let message = "the model provider did not answer with an event stream: its base URL may not be right";
            return Err(Failure::before_answer(request_failed(message, false)));
        }
        let mut assembly = Assembly::new(Previews::new(previews));
        let mut events = SseDecoder::default();
        let failure = loop {
            let chunk = match reply.chunk().await {
                Ok(chunk) => chunk,
                Err(failure) => break failure,
            };
            let at_end = chunk.is_none();
            match read(&mut events, chunk.as_deref(), &mut assembly) {
                Ok(true) => return Ok(assembly.finish()),
                Ok(false) if !at_end => {}
                // Some gateways leave out the last event; the stop reason before it says as much.
                Ok(false) if assembly.has_stopped() => return Ok(assembly.finish()),
                Ok(false) => {
                    let message = "the model provider's answer ended in the middle";
                    break Failure::in_answer(request_failed(message, true));
                }
                Err(problem) => break self.failure(problem),
            }
            if assembly.has_stopped() {
                reply.hurry();
            }
        };
        if assembly.has_stopped() && failure.error.retryable {
            return Ok(assembly.finish());
        }
        Err(failure.with_usage(assembly.usage()))
    }

    fn headers(&self, request: &ModelRequest) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static("anthropic-version"), HeaderValue::from_static(VERSION));
        if request.model.speed == Speed::Fast {
            headers.insert(HeaderName::from_static("anthropic-beta"), HeaderValue::from_static(FAST_MODE_BETA));
        }
        if let Some(key) = &self.api_key {
            let mut value = HeaderValue::from_str(key.expose()).map_err(|_| {
                Failure::before_answer(request_unsent(
                    "the server's key for the model provider is not well formed",
                    false,
                ))
            })?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_static("x-api-key"), value);
        }
        Ok(headers)
    }

    fn failure(&self, problem: Problem) -> Failure {
        Failure::in_answer(match problem {
            Problem::Reported(error) => classify_event(&ProviderError::from_body(&error), self.api_key.as_ref()),
            Problem::Unreadable => request_failed("the model provider's answer cannot be read", true),
        })
    }
}

/// Takes in one chunk, or the end (`None`); says whether the answer is complete.
fn read(events: &mut SseDecoder, chunk: Option<&[u8]>, assembly: &mut Assembly<'_>) -> Result<bool, Problem> {
    if let Some(chunk) = chunk {
        events.push(chunk);
    }
    loop {
        let event = if chunk.is_some() { events.next() } else { events.finish() };
        match event.map_err(|_| Problem::Unreadable)? {
            Some(event) if assembly.take(&event.data)? => return Ok(true),
            Some(_) => {}
            None => return Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_url_may_end_in_v1_and_debug_hides_the_key() {
        let options = Options { max_output_tokens: 1, thinking: Thinking::Off, effort: None };
        for base in ["http://gateway/a", "http://gateway/a/", "http://gateway/a/v1", "http://gateway/a/v1/"] {
            let provider = Anthropic::new(base, Some(Secret::new("sk-hidden")), options, Patience::default()).unwrap();
            assert_eq!(provider.url.as_str(), "http://gateway/a/v1/messages");
            assert!(!format!("{provider:?}").contains("sk-hidden"));
        }
    }
}
