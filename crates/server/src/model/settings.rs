//! The `models` section of the settings: which provider answers for which model id.
//!
//! Types and their documentation only; [`super::route`] makes routes of them and checks what the types cannot.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::config::TimeSpan;
use crate::secret::Secret;

/// Model ids, or patterns in which `*` stands for any text, and who answers for each.
///
/// An id written out wins over every pattern, a pattern with more literal characters over one with fewer. Once the
/// section has an entry, ids that match none are refused. Without entries `demo` is the scripted model, and every
/// other id goes to Anthropic if `ANTHROPIC_API_KEY` is set, else to `OPENAI_BASE_URL` if that is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct ModelsConfig(pub BTreeMap<String, ModelSettings>);

/// One entry of the `models` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// The kind of provider.
    pub provider: ProviderKind,
    /// The model's name at the provider; the requested id if not given.
    #[serde(default)]
    pub model: Option<String>,
    /// What `GET /v1/models` shows; the id if not given.
    #[serde(default)]
    pub display_name: Option<String>,
    /// Where the provider is. If not given: `ANTHROPIC_BASE_URL` or `https://api.anthropic.com` for `anthropic`,
    /// `OPENAI_BASE_URL` or `https://api.openai.com/v1` for `openai`. The path `/v1/messages` is added for
    /// `anthropic`, `/chat/completions` for `openai`; an `openai` URL without a path gets `/v1` first.
    #[serde(default)]
    pub base_url: Option<String>,
    /// The provider's key. An entry without a `base_url` of its own may leave it to `ANTHROPIC_API_KEY` or
    /// `OPENAI_API_KEY`; a key from the environment is never sent to the `base_url` of an entry.
    #[serde(default, serialize_with = "hidden")]
    pub api_key: Option<Secret>,
    /// A file that holds the key.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// The most tokens an answer may have. If not given: 32000 for `anthropic`, whatever the server allows for
    /// `openai`.
    #[serde(default)]
    pub max_output_tokens: Option<u32>,
    /// The size of the model's context; sessions compact before they reach 80 % of it. If not given: 200000 for
    /// `anthropic` and `demo`, unknown for `openai`.
    #[serde(default)]
    pub context_window_tokens: Option<u64>,
    /// Whether the model thinks before it answers (`anthropic` only).
    #[serde(default)]
    pub thinking: Thinking,
    /// Whether the agent's `effort` is passed on. If not given, `anthropic` models are told of it when they think
    /// adaptively or when it is not `high`, their own default; `openai` models are not told.
    #[serde(default)]
    pub effort: Option<bool>,
    /// What the provider charges; needed for `limits.usd_per_day` only, which counts the dearest of the model and its
    /// fallbacks.
    #[serde(default)]
    pub price: Option<Price>,
    /// Model ids to ask instead, in this order, while this one is overloaded, rate limited or out of reach and has
    /// not begun to answer. Their own fallbacks are not followed.
    #[serde(default)]
    pub fallbacks: Vec<String>,
    /// How long to wait for the provider, and how often to try.
    #[serde(default)]
    pub patience: Patience,
}

/// The wire format that a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// The Anthropic Messages API.
    Anthropic,
    /// OpenAI-compatible chat completions.
    Openai,
    /// The scripted offline model.
    Demo,
}

/// How a model thinks before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Thinking {
    /// Not asked to: the model's own default.
    #[default]
    Off,
    /// As much as it sees fit.
    Adaptive,
    /// With a budget of so many tokens, at least 1024 and less than `max_output_tokens`; for older models.
    BudgetTokens(u32),
}

/// Prices in US dollars per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub input_per_million: f64,
    pub output_per_million: f64,
    /// Input read from the prompt cache; the price of other input if not given.
    #[serde(default)]
    pub cache_read_per_million: Option<f64>,
    /// Input written to the prompt cache; the price of other input if not given.
    #[serde(default)]
    pub cache_write_per_million: Option<f64>,
}

/// How long to wait for a provider, and how often to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Patience {
    /// How often a request is sent within one model call as long as no byte of an answer came, the first time
    /// included. What lasts longer is retried later, by the session.
    pub attempts_max: u32,
    /// From sending the request to the first byte of the answer.
    pub first_byte_timeout: TimeSpan,
    /// From one byte of the answer to the next.
    pub idle_timeout: TimeSpan,
    /// For the whole answer.
    pub total_timeout: TimeSpan,
}

impl Price {
    /// No price is higher, in US dollars per million tokens.
    const MAX: f64 = 1_000_000.0;

    /// Refuses what is no price.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { input_per_million, output_per_million, cache_read_per_million, cache_write_per_million } = *self;
        let prices =
            [Some(input_per_million), Some(output_per_million), cache_read_per_million, cache_write_per_million];
        if prices.into_iter().flatten().all(|price| (0.0..=Self::MAX).contains(&price)) {
            return Ok(());
        }
        Err(format!("price: prices are from 0 to {} US dollars per million tokens", Self::MAX))
    }

    /// The same in millionths of a US dollar, rounded up.
    pub(super) fn in_micro_usd(self) -> engine::port::ledger::Price {
        let micro_usd = |usd: f64| (usd * 1_000_000.0).ceil() as u64;
        engine::port::ledger::Price {
            input: micro_usd(self.input_per_million),
            output: micro_usd(self.output_per_million),
            cache_read: micro_usd(self.cache_read_per_million.unwrap_or(self.input_per_million)),
            cache_write: micro_usd(self.cache_write_per_million.unwrap_or(self.input_per_million)),
        }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts_max: 2,
            first_byte_timeout: TimeSpan::from_secs(300),
            idle_timeout: TimeSpan::from_secs(60),
            total_timeout: TimeSpan::from_secs(600),
        }
    }
}

impl ModelSettings {
    /// An entry for `provider` with every default.
    pub fn new(provider: ProviderKind) -> Self {
        Self {
            provider,
            model: None,
            display_name: None,
            base_url: None,
            api_key: None,
            api_key_file: None,
            max_output_tokens: None,
            context_window_tokens: None,
            thinking: Thinking::default(),
            effort: None,
            price: None,
            fallbacks: Vec::new(),
            patience: Patience::default(),
        }
    }
}

/// Says that there is a secret, never which.
fn hidden<S: Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    match secret {
        Some(_) => serializer.serialize_some("(hidden)"),
        None => serializer.serialize_none(),
    }
}
