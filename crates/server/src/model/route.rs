//! Finds the provider that answers for a model id.
//!
//! [`Router`] is the server's one `Model`. It is made once, from the `models` section and the provider variables of
//! the environment, which [`crate::config`] reads; whatever is wrong with them is said then. Agents are checked with
//! [`Router::check`] when they are saved.

use std::sync::Arc;

use async_trait::async_trait;
use engine::port::model::{Model, ModelAnswer, ModelError, ModelRequest, PreviewSink};
use engine::port::{Entropy, ledger};
use session::Timestamp;
use session::agent::{ModelConfig, Speed};
use session::event::SessionErrorKind;

use super::anthropic::{self, Anthropic};
use super::demo::{self, Demo};
use super::http::Transport;
use super::http::failure::{Failure, request_unsent};
use super::openai::{self, OpenAi};
use super::settings::{ModelSettings, ModelsConfig, ProviderKind, Thinking};
use crate::secret::Secret;

/// The least budget that the Messages API takes.
const THINKING_TOKENS_MIN: u32 = 1_024;

/// What the environment says about providers. Empty values count as unset.
#[derive(Clone, Debug, Default)]
pub struct ProviderEnvironment {
    /// `ANTHROPIC_API_KEY`.
    pub anthropic_api_key: Option<Secret>,
    /// `ANTHROPIC_BASE_URL`.
    pub anthropic_base_url: Option<String>,
    /// `OPENAI_API_KEY`.
    pub openai_api_key: Option<Secret>,
    /// `OPENAI_BASE_URL`.
    pub openai_base_url: Option<String>,
}

/// Settings that no router can be made of.
#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    #[error("models.{id}: {problem}")]
    Entry { id: String, problem: String },
    #[error("{name}: {problem}")]
    Environment { name: &'static str, problem: String },
}

/// A model as `GET /v1/models` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    pub id: String,
    pub display_name: String,
    /// The epoch: providers do not say when a model was made, and the API allows this where it is unknown.
    pub created_at: Timestamp,
    /// `max_input_tokens`.
    pub context_window_tokens: Option<u64>,
    /// `max_tokens`.
    pub max_output_tokens: Option<u32>,
}

/// Every provider, by model id.
pub struct Router {
    /// The most particular first.
    routes: Vec<Route>,
    transport: Transport,
    demo: Demo,
    /// Whether the `models` section has entries; says how to help with an unknown id.
    is_configured: bool,
}

/// One entry, ready to use.
struct Route {
    /// A model id, or a pattern with `*`.
    pattern: String,
    settings: ModelSettings,
    provider: Provider,
}

enum Provider {
    Anthropic(Anthropic),
    OpenAi(OpenAi),
    Demo,
}

impl Router {
    /// Reads key files and checks every entry. `entropy` spreads retries.
    pub fn new(
        models: &ModelsConfig,
        environment: &ProviderEnvironment,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, RouterError> {
        let is_configured = !models.0.is_empty();
        let mut routes = Vec::new();
        if is_configured {
            for (pattern, settings) in &models.0 {
                let route = Route::new(pattern, settings, environment)
                    .map_err(|problem| RouterError::Entry { id: pattern.clone(), problem })?;
                routes.push(route);
            }
            routes.sort_by_key(Route::rank);
        } else {
            routes = default_routes(environment)?;
        }
        let router = Self { routes, transport: Transport::new(entropy), demo: Demo::default(), is_configured };
        for route in &router.routes {
            for fallback in &route.settings.fallbacks {
                router.check(fallback).map_err(|problem| RouterError::Entry { id: route.pattern.clone(), problem })?;
            }
        }
        Ok(router)
    }

    /// The same router, telling `on_retry` of every request that is sent again within a call: to which provider, and
    /// what the failure was.
    #[must_use]
    pub fn telling(self, on_retry: impl Fn(ProviderKind, SessionErrorKind) + Send + Sync + 'static) -> Self {
        Self { transport: self.transport.telling(Arc::new(on_retry)), ..self }
    }

    /// Whether a model answers for this id; if not, a sentence that says what to set.
    pub fn check(&self, model_id: &str) -> Result<(), String> {
        if self.find(model_id).is_some() {
            return Ok(());
        }
        Err(if self.is_configured {
            let known: Vec<_> = self.routes.iter().map(|route| route.pattern.as_str()).collect();
            format!(
                "no model provider answers for model `{model_id}`: add it to the `models` section of the server's \
                 configuration, which has {}",
                known.join(", ")
            )
        } else {
            format!(
                "no model provider answers for model `{model_id}`: set ANTHROPIC_API_KEY, or OPENAI_BASE_URL for an \
                 OpenAI-compatible server, or use the model `{}`, which needs neither",
                demo::ID
            )
        })
    }

    /// Whether the model's provider can do what an agent asks of it: [`Router::check`], and `speed` and
    /// `inference_geo`, which the Messages API alone has.
    pub fn check_config(&self, model: &ModelConfig) -> Result<(), String> {
        self.check(&model.id)?;
        if matches!(self.find(&model.id), Some(Route { provider: Provider::Anthropic(_) | Provider::Demo, .. })) {
            return Ok(());
        }
        let field = match (model.speed, &model.inference_geo) {
            (Speed::Fast, _) => "speed `fast`",
            (Speed::Standard, Some(_)) => "inference_geo",
            (Speed::Standard, None) => return Ok(()),
        };
        Err(format!("the provider of model `{}` has no {field}: leave it out", model.id))
    }

    /// The models that can be named: every entry that is no pattern, the scripted one included.
    pub fn list(&self) -> Vec<ModelInfo> {
        let named = self.routes.iter().filter(|route| !route.is_pattern());
        named
            .map(|route| ModelInfo {
                id: route.pattern.clone(),
                display_name: route.settings.display_name.clone().unwrap_or_else(|| match route.provider {
                    Provider::Demo => "Scripted demo model".to_owned(),
                    _ => route.pattern.clone(),
                }),
                created_at: Timestamp::EPOCH,
                context_window_tokens: route.context_window(),
                max_output_tokens: route.max_output_tokens(),
            })
            .collect()
    }

    /// The size of the model's context in tokens, where it is known.
    pub fn context_window(&self, model_id: &str) -> Option<u64> {
        self.find(model_id)?.context_window()
    }

    /// The model's route, and those of its fallbacks.
    fn routes(&self, model_id: &str) -> impl Iterator<Item = &Route> {
        let first = self.find(model_id);
        let fallbacks = first.into_iter().flat_map(|route| &route.settings.fallbacks);
        first.into_iter().chain(fallbacks.filter_map(|fallback| self.find(fallback)))
    }

    fn find(&self, model_id: &str) -> Option<&Route> {
        self.routes.iter().find(|route| matches(&route.pattern, model_id))
    }

    async fn ask(
        &self,
        route: &Route,
        model_id: &str,
        request: &ModelRequest,
        previews: &mut dyn PreviewSink,
    ) -> Result<ModelAnswer, Failure> {
        let name = route.settings.model.as_deref().unwrap_or(model_id);
        match &route.provider {
            Provider::Anthropic(provider) => provider.answer(&self.transport, name, request, previews).await,
            Provider::OpenAi(provider) => provider.answer(&self.transport, name, request, previews).await,
            Provider::Demo => self.demo.answer(request, previews).await,
        }
    }
}

#[async_trait]
impl Model for Router {
    fn context_window_tokens(&self, model_id: &str) -> Option<u64> {
        self.context_window(model_id)
    }

    fn output_tokens_max(&self, model_id: &str) -> Option<u64> {
        let limits: Option<Vec<u32>> = self.routes(model_id).map(Route::max_output_tokens).collect();
        limits?.into_iter().max().map(u64::from)
    }

    fn price(&self, model_id: &str) -> Option<ledger::Price> {
        let prices = self.routes(model_id).filter_map(|route| route.settings.price);
        prices.map(|price| price.in_micro_usd()).reduce(ledger::Price::or_dearer)
    }

    /// Asks the model's provider, then its fallbacks while nothing was answered. When all fail, the first failure
    /// counts: it is the model that was asked for.
    async fn answer(&self, request: ModelRequest, previews: &mut dyn PreviewSink) -> Result<ModelAnswer, ModelError> {
        let model_id = request.model.id.as_str();
        let Some(route) = self.find(model_id) else {
            return Err(request_unsent(self.check(model_id).err().unwrap_or_default(), false));
        };
        let mut first = match self.ask(route, model_id, &request, previews).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        if first.answer_begun || !first.error.retryable {
            return Err(first.error);
        }
        for fallback_id in &route.settings.fallbacks {
            let Some(fallback) = self.find(fallback_id) else { continue };
            tracing::info!(model = model_id, fallback = fallback_id, reason = ?first.error.kind, "a fallback model is asked");
            match self.ask(fallback, fallback_id, &request, previews).await {
                Ok(answer) => return Ok(answer),
                Err(failure) if failure.answer_begun => return Err(failure.error),
                Err(failure) => first.error.is_free &= failure.error.is_free,
            }
        }
        Err(first.error)
    }
}

impl Route {
    fn new(pattern: &str, settings: &ModelSettings, environment: &ProviderEnvironment) -> Result<Self, String> {
        if let Some(price) = &settings.price {
            price.check()?;
        }
        if settings.patience.attempts_max == 0 {
            return Err("patience.attempts_max must be at least 1".to_owned());
        }
        let provider = match settings.provider {
            ProviderKind::Anthropic => Provider::Anthropic(anthropic(settings, environment)?),
            ProviderKind::Openai => Provider::OpenAi(openai(settings, environment)?),
            ProviderKind::Demo => Provider::Demo,
        };
        Ok(Self { pattern: pattern.to_owned(), settings: settings.clone(), provider })
    }

    fn is_pattern(&self) -> bool {
        self.pattern.contains('*')
    }

    /// Ids before patterns, then by what is written out, longest first.
    fn rank(&self) -> (bool, std::cmp::Reverse<usize>) {
        let literal = self.pattern.chars().filter(|c| *c != '*').count();
        (self.is_pattern(), std::cmp::Reverse(literal))
    }

    fn context_window(&self) -> Option<u64> {
        self.settings.context_window_tokens.or(match self.provider {
            Provider::Anthropic(_) => Some(anthropic::CONTEXT_WINDOW_TOKENS),
            Provider::OpenAi(_) => None,
            Provider::Demo => Some(demo::CONTEXT_WINDOW_TOKENS),
        })
    }

    fn max_output_tokens(&self) -> Option<u32> {
        self.settings.max_output_tokens.or(match self.provider {
            Provider::Anthropic(_) => Some(anthropic::MAX_OUTPUT_TOKENS),
            Provider::OpenAi(_) | Provider::Demo => None,
        })
    }
}

/// `demo`, and one provider for everything else if the environment names one.
fn default_routes(environment: &ProviderEnvironment) -> Result<Vec<Route>, RouterError> {
    let demo = ModelSettings::new(ProviderKind::Demo);
    let mut routes = vec![Route { pattern: demo::ID.to_owned(), settings: demo, provider: Provider::Demo }];
    let (name, kind) = if present(&environment.anthropic_api_key).is_some() {
        ("ANTHROPIC_BASE_URL", ProviderKind::Anthropic)
    } else if filled(&environment.openai_base_url).is_some() {
        ("OPENAI_BASE_URL", ProviderKind::Openai)
    } else {
        return Ok(routes);
    };
    let route = Route::new("*", &ModelSettings::new(kind), environment)
        .map_err(|problem| RouterError::Environment { name, problem })?;
    routes.push(route);
    Ok(routes)
}

fn anthropic(settings: &ModelSettings, environment: &ProviderEnvironment) -> Result<Anthropic, String> {
    let options = anthropic::Options {
        max_output_tokens: settings.max_output_tokens.unwrap_or(anthropic::MAX_OUTPUT_TOKENS),
        thinking: settings.thinking,
        effort: settings.effort,
    };
    if let Thinking::BudgetTokens(budget) = settings.thinking
        && !(THINKING_TOKENS_MIN..options.max_output_tokens).contains(&budget)
    {
        return Err(format!(
            "thinking.budget_tokens must be at least {THINKING_TOKENS_MIN} and less than max_output_tokens ({})",
            options.max_output_tokens
        ));
    }
    let own_key = own_key(settings)?;
    let (base_url, api_key) = match settings.base_url.as_deref() {
        Some(own) => (own, own_key),
        None => {
            let base_url = filled(&environment.anthropic_base_url).unwrap_or(anthropic::BASE_URL);
            let api_key = own_key.or_else(|| present(&environment.anthropic_api_key));
            if api_key.is_none() {
                return Err("there is no key: set api_key, api_key_file or ANTHROPIC_API_KEY".to_owned());
            }
            (base_url, api_key)
        }
    };
    check_base_url(base_url)?;
    Anthropic::new(base_url, api_key, options, settings.patience).map_err(|error| bad_base_url(&error))
}

fn openai(settings: &ModelSettings, environment: &ProviderEnvironment) -> Result<OpenAi, String> {
    if settings.thinking != Thinking::Off {
        return Err("thinking is for provider anthropic: use effort".to_owned());
    }
    let options =
        openai::Options { max_output_tokens: settings.max_output_tokens, effort: settings.effort.unwrap_or(false) };
    let own_key = own_key(settings)?;
    let (base_url, api_key) = match settings.base_url.as_deref() {
        Some(own) => (own, own_key),
        None => {
            let base_url = filled(&environment.openai_base_url).unwrap_or(openai::BASE_URL);
            (base_url, own_key.or_else(|| present(&environment.openai_api_key)))
        }
    };
    check_base_url(base_url)?;
    OpenAi::new(base_url, api_key, options, settings.patience).map_err(|error| bad_base_url(&error))
}

/// The entry's key, from the settings or the file that they name.
fn own_key(settings: &ModelSettings) -> Result<Option<Secret>, String> {
    let from_file = match (&settings.api_key, &settings.api_key_file) {
        (Some(_), Some(_)) => return Err("api_key and api_key_file are both set: keep one of them".to_owned()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("api_key_file: cannot read {}: {error}", path.display()))?;
            Some(Secret::new(text))
        }
        (_, None) => settings.api_key.clone(),
    };
    match from_file {
        Some(key) if key.is_empty() => Err("the key is empty".to_owned()),
        key => Ok(key),
    }
}

fn check_base_url(base_url: &str) -> Result<(), String> {
    let url = url::Url::parse(base_url).map_err(|error| bad_base_url(&error))?;
    if matches!(url.scheme(), "http" | "https") && url.has_host() {
        Ok(())
    } else {
        Err("the base URL must begin with http:// or https://".to_owned())
    }
}

/// The URL itself is not quoted: it may carry a password.
fn bad_base_url(error: &url::ParseError) -> String {
    format!("the base URL cannot be read: {error}")
}

fn present(secret: &Option<Secret>) -> Option<Secret> {
    secret.clone().filter(|secret| !secret.is_empty())
}

fn filled(text: &Option<String>) -> Option<&str> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

/// Whether `text` is `pattern`, in which each `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let mut rest = rest;
    // Leftmost matches of all pieces but the last leave the most for those that follow.
    while let Some((piece, after)) = rest.split_once('*') {
        let Some(at) = text.find(piece) else { return false };
        text = &text[at + piece.len()..];
        rest = after;
    }
    text.ends_with(rest)
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
