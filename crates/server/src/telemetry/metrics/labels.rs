//! The labels of the series, and the allow-lists that their values pass.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::Metrics;

/// What stands for every name that is not on the list.
pub const OTHER: &str = "other";

/// Values of one label at most, [`OTHER`] among them.
pub const VALUES_MAX: usize = 50;

/// The tools that have a series of their own: those that the server itself offers.
const TOOLS: [&str; 8] = ["bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search"];
const TOOL_OUTCOMES: [&str; 2] = ["succeeded", "failed"];
/// What `error_type` says of a call and of a turn that failed.
pub(super) const TOOL_ERROR: &str = "tool_error";
pub(super) const TURN_FAILED: &str = "turn_failed";
const PROVIDERS: [&str; 2] = ["anthropic", "openai"];
/// What a request is sent again for.
const RETRY_REASONS: [&str; 4] =
    ["unknown_error", "model_overloaded_error", "model_rate_limited_error", "model_request_failed_error"];
/// What is asked of a cache.
const CACHE_OPS: [&str; 2] = ["agent_version", "rate_limit"];
const CACHE_OUTCOMES: [&str; 3] = ["hit", "miss", "error"];
const TOKEN_TYPES: [&str; 4] = ["input", "output", "cache_read", "cache_write"];

/// What a set of labels must be able to do.
pub(crate) trait Labels: Clone + Debug + Eq + Hash + EncodeLabelSet + Send + Sync + 'static {}

impl<T: Clone + Debug + Eq + Hash + EncodeLabelSet + Send + Sync + 'static> Labels for T {}

/// Labels of `http_server_request_duration_seconds`, as OpenTelemetry's HTTP conventions have them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RouteLabels {
    pub(crate) http_request_method: &'static str,
    pub(crate) http_route: Cow<'static, str>,
    pub(crate) http_response_status_code: u16,
}

/// Labels of `agent_tool_calls_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ToolLabels {
    pub(crate) tool: &'static str,
    pub(crate) outcome: &'static str,
}

/// Labels of `agent_tokens_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TokenLabels {
    pub(crate) r#type: &'static str,
    pub(crate) model: String,
}

/// Labels of `agent_cache_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CacheLabels {
    pub(crate) op: &'static str,
    pub(crate) outcome: &'static str,
}

/// Labels of a model request. Names follow OpenTelemetry's GenAI conventions (revision of November 2026, all of
/// them still at "Development"); this module is the only place that knows them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OperationLabels {
    pub(crate) gen_ai_operation_name: &'static str,
    pub(crate) gen_ai_provider_name: &'static str,
    pub(crate) gen_ai_request_model: String,
    pub(crate) error_type: &'static str,
}

/// Labels of `gen_ai_client_token_usage`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct UsageLabels {
    pub(crate) gen_ai_operation_name: &'static str,
    pub(crate) gen_ai_provider_name: &'static str,
    pub(crate) gen_ai_request_model: String,
    pub(crate) gen_ai_token_type: &'static str,
}

/// Labels of `gen_ai_invoke_agent_duration_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AgentLabels {
    pub(crate) gen_ai_agent_name: String,
    pub(crate) error_type: &'static str,
}

/// Labels of `gen_ai_execute_tool_duration_seconds`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ExecutedToolLabels {
    pub(crate) gen_ai_tool_name: &'static str,
    pub(crate) error_type: &'static str,
}

/// Labels of `agent_provider_retries_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RetryLabels {
    pub(crate) provider: &'static str,
    pub(crate) reason: &'static str,
}

/// 0.01 to 81.92 in steps of two, as the convention says.
pub(super) fn operation_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 14))
}

/// Powers of 4 up to 4¹³, as the convention says.
pub(super) fn usage_tokens() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 4.0, 14))
}

/// What has series of its own: models, each with the provider that answers for it, and agents.
#[derive(Clone, Debug, Default)]
pub struct Names {
    models: BTreeMap<String, &'static str>,
    agents: BTreeSet<String>,
}

impl Names {
    /// The models that the settings name, each with its provider.
    pub fn new(models: impl IntoIterator<Item = (String, &'static str)>) -> Self {
        Self { models: models.into_iter().take(VALUES_MAX - 1).collect(), agents: BTreeSet::new() }
    }

    /// The same with the agents that the settings name.
    #[must_use]
    pub fn with_agents(self, agents: impl IntoIterator<Item = String>) -> Self {
        Self { agents: agents.into_iter().take(VALUES_MAX - 1).collect(), ..self }
    }

    /// The labels for a model that a request named: its own name and its provider, or [`OTHER`] twice.
    pub(crate) fn model(&self, model: &str) -> (&str, &'static str) {
        match self.models.get_key_value(model) {
            Some((model, provider)) => (model, provider),
            None => (OTHER, OTHER),
        }
    }

    /// The label for an agent of this name.
    pub(crate) fn agent(&self, agent: &str) -> &str {
        self.agents.get(agent).map_or(OTHER, String::as_str)
    }

    /// The label for a tool that a model called.
    pub(crate) fn tool(&self, tool: &str) -> &'static str {
        TOOLS.iter().find(|known| **known == tool).copied().unwrap_or(OTHER)
    }
}

impl Metrics {
    /// Creates, at 0, the series whose labels come from fixed sets and from the settings.
    pub(super) fn prepare_labels(&self) {
        for tool in TOOLS.into_iter().chain([OTHER]) {
            for outcome in TOOL_OUTCOMES {
                drop(self.tool_calls.get_or_create(&ToolLabels { tool, outcome }));
            }
            for error_type in ["", TOOL_ERROR] {
                drop(self.execute_tool.get_or_create(&ExecutedToolLabels { gen_ai_tool_name: tool, error_type }));
            }
        }
        for agent in self.names.agents.iter().map(String::as_str).chain([OTHER]) {
            for error_type in ["", TURN_FAILED] {
                let labels = AgentLabels { gen_ai_agent_name: agent.to_owned(), error_type };
                drop(self.invoke_agent.get_or_create(&labels));
            }
        }
        for op in CACHE_OPS {
            drop(self.cache_duration.get_or_create(&[("op", op)]));
            for outcome in CACHE_OUTCOMES {
                drop(self.cache_requests.get_or_create(&CacheLabels { op, outcome }));
            }
        }
        for provider in PROVIDERS {
            for reason in RETRY_REASONS {
                drop(self.provider_retries.get_or_create(&RetryLabels { provider, reason }));
            }
        }
        for model in self.names.models.keys().map(String::as_str).chain([OTHER]) {
            for kind in TOKEN_TYPES {
                drop(self.tokens.get_or_create(&TokenLabels { r#type: kind, model: model.to_owned() }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_nobody_configured_are_other() {
        let names = Names::new([("demo".to_owned(), "demo")]);
        assert_eq!(names.model("demo"), ("demo", "demo"));
        assert_eq!(names.model("sesn_01\"} 1\n"), (OTHER, OTHER));
        assert_eq!((names.tool("bash"), names.tool("my_tool")), ("bash", OTHER));
    }

    #[test]
    fn a_label_has_a_bounded_number_of_values() {
        let names = Names::new((0..500).map(|n| (format!("m{n:03}"), "openai")));
        let labels: BTreeSet<_> = (0..500).map(|n| names.model(&format!("m{n:03}")).0.to_owned()).collect();
        assert_eq!(labels.len(), VALUES_MAX);
        let names = names.with_agents((0..500).map(|n| format!("a{n:03}")));
        let labels: BTreeSet<_> = (0..500).map(|n| names.agent(&format!("a{n:03}")).to_owned()).collect();
        assert_eq!(labels.len(), VALUES_MAX);
    }
}
