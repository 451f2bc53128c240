//! Chat completions as OpenAI defined them and many servers imitate them, streamed.
//!
//! [`request`] writes the request, [`stream`] reads the chunks; this module sends one and feeds the other. Imitations
//! differ: what is tolerated is listed at the top of [`stream`] and of [`request`].

mod request;
mod stream;

use engine::port::model::{ModelAnswer, ModelRequest, PreviewSink};
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use url::Url;

use super::http::failure::{Failure, ProviderError, classify_event, request_failed, request_unsent};
use super::http::{Outgoing, Reply, Transport};
use super::preview::Previews;
use super::settings::{Patience, ProviderKind};
use super::sse::SseDecoder;
use crate::secret::Secret;
use stream::{Assembly, Problem};

/// Where the API is unless the settings say otherwise.
pub(super) const BASE_URL: &str = "https://api.openai.com/v1";

/// One server.
#[derive(Clone, Debug)]
pub struct OpenAi {
    url: Url,
    api_key: Option<Secret>,
    options: Options,
    patience: Patience,
}

/// What the settings say about a model.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The server's own limit if `None`.
    pub max_output_tokens: Option<u32>,
    /// Whether the agent's effort is passed on as `reasoning_effort`.
    pub effort: bool,
}

impl OpenAi {
    /// A provider at `base_url`. A URL without a path gets `/v1`; any other path is taken as it is, and
    /// `/chat/completions` added unless it is there.
    pub fn new(
        base_url: &str,
        api_key: Option<Secret>,
        options: Options,
        patience: Patience,
    ) -> Result<Self, url::ParseError> {
        let mut url = Url::parse(base_url)?;
        let path = url.path().trim_end_matches('/');
        let path = match path.strip_suffix("/chat/completions").unwrap_or(path) {
            "" => "/v1".to_owned(),
            path => path.to_owned(),
        };
        url.set_path(&format!("{path}/chat/completions"));
        Ok(Self { url, api_key, options, patience })
    }

    /// Asks the model called `model` at the provider.
    pub async fn answer(
        &self,
        transport: &Transport,
        model: &str,
        request: &ModelRequest,
        previews: &mut dyn PreviewSink,
    ) -> Result<ModelAnswer, Failure> {
        // OpenAI's own reasoning models refuse the name that everyone else still expects.
        let is_original = self.url.host_str() == Some("api.openai.com");
        let outgoing = Outgoing {
            provider: ProviderKind::Openai,
            url: &self.url,
            headers: self.headers()?,
            body: request::body(model, request, &self.options, is_original).into(),
            secret: self.api_key.as_ref(),
            patience: &self.patience,
        };
        let mut reply = transport.send(&outgoing).await?;
        let mut assembly = Assembly::new(Previews::new(previews));
        let read = match reply.media_type.as_str() {
            "application/json" => self.read_whole(&mut reply, &mut assembly).await,
            // Servers that forget the header send events all the same.
            "text/event-stream" | "" => self.read_events(&mut reply, &mut assembly).await,
            _ => {
                let message = "the model provider did not answer with an event stream: its base URL may not be right";
                return Err(Failure::before_answer(request_failed(message, false)));
            }
        };
        match read {
            Ok(()) => {}
            // All was said; what broke is only the wait for the usage.
            Err(failure) if failure.error.retryable && assembly.has_stopped() => {}
            Err(failure) => return Err(failure.with_usage(assembly.usage())),
        }
        if !assembly.counts_usage() {
            tracing::debug!(model, "the provider reported no usage: it is estimated from the length of the texts");
        }
        Ok(assembly.finish(outgoing.body.len()))
    }

    fn headers(&self) -> Result<HeaderMap, Failure> {
        let mut headers = HeaderMap::new();
        if let Some(key) = &self.api_key {
            let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose())).map_err(|_| {
                Failure::before_answer(request_unsent(
                    "the server's key for the model provider is not well formed",
                    false,
                ))
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        Ok(headers)
    }

    /// Reads until `[DONE]` or the end; either is one only after a finish reason.
    async fn read_events(&self, reply: &mut Reply, assembly: &mut Assembly<'_>) -> Result<(), Failure> {
        let mut events = SseDecoder::default();
        let mut is_over = false;
        while !is_over {
            let chunk = reply.chunk().await?;
            is_over = self.take_events(&mut events, chunk.as_deref(), assembly)? || chunk.is_none();
            if assembly.has_stopped() {
                reply.hurry();
            }
        }
        if assembly.has_stopped() {
            Ok(())
        } else {
            Err(Failure::in_answer(request_failed("the model provider's answer ended in the middle", true)))
        }
    }

    /// Takes in one chunk, or the end (`None`); says whether `[DONE]` was in it.
    fn take_events(
        &self,
        events: &mut SseDecoder,
        chunk: Option<&[u8]>,
        assembly: &mut Assembly<'_>,
    ) -> Result<bool, Failure> {
        if let Some(chunk) = chunk {
            events.push(chunk);
        }
        loop {
            let event = if chunk.is_some() { events.next() } else { events.finish() };
            match event.map_err(|_| self.failure(Problem::Unreadable))? {
                Some(event) if assembly.take(&event.data).map_err(|problem| self.failure(problem))? => return Ok(true),
                Some(_) => {}
                None => return Ok(false),
            }
        }
    }

    /// Reads an answer in one piece, from a server that does not stream.
    async fn read_whole(&self, reply: &mut Reply, assembly: &mut Assembly<'_>) -> Result<(), Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = reply.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        let text = std::str::from_utf8(&body).map_err(|_| self.failure(Problem::Unreadable))?;
        assembly.take(text).map_err(|problem| self.failure(problem))?;
        if assembly.has_stopped() { Ok(()) } else { Err(self.failure(Problem::Unreadable)) }
    }

    fn failure(&self, problem: Problem) -> Failure {
        Failure::in_answer(match problem {
            Problem::Reported(error) => classify_event(&ProviderError::from_body(&error), self.api_key.as_ref()),
            Problem::Unreadable => request_failed("the model provider's answer cannot be read", true),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_without_a_path_gets_v1() {
        let options = Options { max_output_tokens: None, effort: false };
        for (base, expected) in [
            ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1/chat/completions"),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1/chat/completions"),
            ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/chat/completions"),
            ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1/chat/completions"),
            ("https://host/api/v3", "https://host/api/v3/chat/completions"),
            ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
            ("https://host/openai?version=1", "https://host/openai/chat/completions?version=1"),
        ] {
            let key = Some(Secret::new("sk-hidden"));
            let provider = OpenAi::new(base, key, options, Patience::default()).unwrap();
            assert_eq!(provider.url.as_str(), expected);
            assert!(!format!("{provider:?}").contains("sk-hidden"));
        }
    }
}
