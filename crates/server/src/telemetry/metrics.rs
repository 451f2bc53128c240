//! Every metric series of the server, and the places where engine and API report what happens.
//!
//! Names, types and labels are those of the catalogue in `docs/reference/metrics.md`. Each series carries `track`.
//! Label values come from fixed sets, or through an allow-list ([`labels`]) that turns what it does not know into
//! `other`: no id, path, prompt or error text ever becomes a label. Series whose labels are known beforehand exist
//! from the start, at 0, so that "never failed" and "no data" can be told apart.

mod api;
mod budget;
mod engine;
pub mod labels;
mod object_store;

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use self::budget::Budget;
use self::labels::{Names, RouteLabels};
use self::object_store::ObjectStoreMetrics;
use super::VERSION;
use super::process::ProcessCollector;
use super::runtime::RuntimeCollector;

/// A histogram for each combination of labels.
pub(crate) type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;
/// A family with one label, whose values are fixed.
pub(crate) type OneLabel = [(&'static str, &'static str); 1];

pub(crate) const ERROR_CLASSES: [&str; 7] =
    ["internal", "tool", "storage", "upstream", "timeout", "overload", "client"];
const TURN_SOURCES: [&str; 3] = ["user", "synthetic", "resume"];
const TURN_OUTCOMES: [&str; 5] = ["completed", "failed", "cancelled", "handed_off", "refused"];
const REJECTION_REASONS: [&str; 4] = ["draining", "max_agents", "rate_limit", "dependency"];
/// What the search for lost turns can find.
const LOST_CAUSES: [&str; 1] = ["no_wake_up"];
const HANDOVER_REASONS: [&str; 3] = ["drain", "crash", "rebalance"];

/// What a settlement in the ledger goes by.
const SETTLEMENT_BASES: [&str; 3] = ["usage", "estimate", "nothing"];
/// What an API key may be capped by.
const CAPS: [&str; 2] = ["tokens", "spend"];

/// What a worker's proxy refuses for, in its own words; a word of a newer worker is `other`.
const REFUSAL_REASONS: [&str; 8] =
    ["off", "not_allowed", "address", "malformed", "limit_connections", "limit_bytes", "limit_time", labels::OTHER];

const TURN_SECONDS: [f64; 12] = [0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0];
const FIRST_TOKEN_SECONDS: [f64; 10] = [0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0];
const ITERATIONS: [f64; 8] = [1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 34.0];
/// What becomes of a workspace snapshot.
pub(crate) const SNAPSHOT_OUTCOMES: [&str; 3] = ["kept", "overtaken", "refused"];
/// With what a session goes on at another worker.
pub(crate) const RESTORE_OUTCOMES: [&str; 2] = ["whole", "lost"];
/// What became of the files that tools made.
pub(crate) const OUTPUT_OUTCOMES: [&str; 3] = ["stored", "unchanged", "refused"];

const SNAPSHOT_SECONDS: [f64; 10] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];
const SNAPSHOT_BYTES: [f64; 9] = [1e4, 1e5, 1e6, 1e7, 5e7, 1e8, 5e8, 1e9, 1e10];
const DRAIN_SECONDS: [f64; 8] = [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 240.0, 300.0];
const ACQUIRE_SECONDS: [f64; 9] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0];
const CACHE_SECONDS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0];
const REQUEST_SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// What is only known once the process runs.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    pub track: &'a str,
    /// Hash of the settings in force, secrets left out.
    pub config_hash: &'a str,
    pub max_connections: u32,
}

/// The series, shared by everything that reports.
pub struct Metrics {
    registry: Registry,
    pub(crate) names: Names,
    pub(crate) active: Gauge,
    pub(crate) errors: Family<OneLabel, Counter>,
    pub(crate) turns_started: Family<OneLabel, Counter>,
    pub(crate) turns: Family<OneLabel, Counter>,
    pub(crate) turns_in_flight: Gauge,
    pub(crate) turn_duration: Histograms<OneLabel>,
    pub(crate) time_to_first_token: Histogram,
    pub(crate) turn_iterations: Histogram,
    pub(crate) turns_lost: Family<OneLabel, Counter>,
    pub(crate) handed_off: Family<OneLabel, Counter>,
    pub(crate) resumed: Family<OneLabel, Counter>,
    pub(crate) sessions_created: Counter,
    pub(crate) rejections: Family<OneLabel, Counter>,
    pub(crate) tool_calls: Family<labels::ToolLabels, Counter>,
    pub(crate) tokens: Family<labels::TokenLabels, Counter>,
    pub(crate) ledger_settlements: Family<OneLabel, Counter>,
    pub(crate) ledger_refusals: Family<OneLabel, Counter>,
    pub(crate) egress_refused: Family<OneLabel, Counter>,
    pub(crate) snapshots: Family<OneLabel, Counter>,
    pub(crate) snapshot_duration: Histogram,
    pub(crate) snapshot_bytes: Histogram,
    pub(crate) restores: Family<OneLabel, Counter>,
    pub(crate) outputs: Family<OneLabel, Counter>,
    pub(crate) draining: Gauge,
    pub(crate) drain_duration: Histogram,
    pub(crate) request_duration: Histograms<RouteLabels>,
    pub(crate) streams: Gauge,
    pub(crate) operation_duration: Histograms<labels::OperationLabels>,
    pub(crate) time_to_first_chunk: Histograms<labels::OperationLabels>,
    pub(crate) token_usage: Histograms<labels::UsageLabels>,
    pub(crate) invoke_agent: Histograms<labels::AgentLabels>,
    pub(crate) execute_tool: Histograms<labels::ExecutedToolLabels>,
    pub(crate) provider_retries: Family<labels::RetryLabels, Counter>,
    pub(crate) cache_requests: Family<labels::CacheLabels, Counter>,
    pub(crate) cache_duration: Histograms<OneLabel>,
    pool: Family<OneLabel, Gauge>,
    pool_acquire: Histogram,
    budget: Budget,
    dependency_up: Family<OneLabel, Gauge>,
    object_store: ObjectStoreMetrics,
}

impl Metrics {
    /// Every series of the catalogue that this version has, at 0.
    pub fn new(facts: &Facts<'_>, names: Names) -> Self {
        let mut registry = Registry::with_labels(std::iter::once(("track".into(), facts.track.to_owned().into())));
        let r = &mut registry;
        let mut metrics = Self {
            active: gauge(r, "agent_active_count", "Sessions that this process drives now"),
            errors: counters(r, "agent_errors", "Failed turns and refused requests", "class", &ERROR_CLASSES),
            turns_started: counters(r, "agent_turns_started", "Turns begun", "source", &TURN_SOURCES),
            turns: counters(r, "agent_turns", "Turns finished", "outcome", &TURN_OUTCOMES),
            turns_in_flight: gauge(r, "agent_turns_in_flight", "Turns that this process is running"),
            turn_duration: histograms(r, "agent_turn_duration_seconds", "Length of finished turns", || {
                Histogram::new(TURN_SECONDS)
            }),
            time_to_first_token: histogram(
                r,
                "agent_turn_time_to_first_token_seconds",
                "From the start of a turn to its first text",
                &FIRST_TOKEN_SECONDS,
            ),
            turn_iterations: histogram(r, "agent_turn_iterations", "Model requests in a finished turn", &ITERATIONS),
            turns_lost: counters(
                r,
                "agent_turns_lost",
                "Turns that nobody drove and nothing would have woken",
                "cause",
                &LOST_CAUSES,
            ),
            handed_off: counters(r, "agent_turns_handed_off", "Turns let go unfinished", "reason", &HANDOVER_REASONS),
            resumed: counters(r, "agent_turns_resumed", "Turns taken from another owner", "reason", &HANDOVER_REASONS),
            sessions_created: counter(r, "agent_sessions_created", "Sessions created"),
            rejections: counters(
                r,
                "agent_admission_rejections",
                "Claiming passes cut short and requests turned away",
                "reason",
                &REJECTION_REASONS,
            ),
            tool_calls: family(r, "agent_tool_calls", "Tool calls finished"),
            tokens: family(r, "agent_tokens", "Tokens used, as the provider counts them"),
            ledger_settlements: counters(
                r,
                "agent_ledger_settlements",
                "Model requests of capped API keys that were settled",
                "basis",
                &SETTLEMENT_BASES,
            ),
            ledger_refusals: counters(
                r,
                "agent_ledger_refusals",
                "Model requests that did not fit under the cap of their API key",
                "cap",
                &CAPS,
            ),
            egress_refused: counters(
                r,
                "agent_egress_refused",
                "What tools asked of the network and were refused",
                "reason",
                &REFUSAL_REASONS,
            ),
            snapshots: counters(
                r,
                "agent_workspace_snapshots",
                "Snapshots of workspaces that workers sent",
                "outcome",
                &SNAPSHOT_OUTCOMES,
            ),
            snapshot_duration: histogram(
                r,
                "agent_workspace_snapshot_duration_seconds",
                "From a worker's first look at the files to its kept snapshot",
                &SNAPSHOT_SECONDS,
            ),
            snapshot_bytes: histogram(
                r,
                "agent_workspace_snapshot_bytes",
                "Size of all files of a kept snapshot",
                &SNAPSHOT_BYTES,
            ),
            restores: counters(
                r,
                "agent_workspace_restores",
                "Workspaces that a worker made anew",
                "outcome",
                &RESTORE_OUTCOMES,
            ),
            outputs: counters(
                r,
                "agent_session_outputs",
                "Files that tools made and workers sent",
                "outcome",
                &OUTPUT_OUTCOMES,
            ),
            draining: gauge(r, "agent_draining", "1 while the process hands its work over"),
            drain_duration: histogram(r, "agent_drain_duration_seconds", "Length of finished drains", &DRAIN_SECONDS),
            request_duration: histograms(
                r,
                "http_server_request_duration_seconds",
                "From a request to its answer, for streams to its headers",
                || Histogram::new(REQUEST_SECONDS),
            ),
            streams: gauge(r, "agent_sse_connections", "Event streams open"),
            operation_duration: histograms(
                r,
                "gen_ai_client_operation_duration_seconds",
                "Length of model requests",
                labels::operation_seconds,
            ),
            time_to_first_chunk: histograms(
                r,
                "gen_ai_client_operation_time_to_first_chunk_seconds",
                "From a model request to the first sign of its answer",
                labels::operation_seconds,
            ),
            invoke_agent: histograms(
                r,
                "gen_ai_invoke_agent_duration_seconds",
                "Length of finished turns",
                labels::operation_seconds,
            ),
            execute_tool: histograms(
                r,
                "gen_ai_execute_tool_duration_seconds",
                "Length of finished tool calls",
                labels::operation_seconds,
            ),
            token_usage: histograms(r, "gen_ai_client_token_usage", "Tokens of a model request", labels::usage_tokens),
            provider_retries: family(r, "agent_provider_retries", "Model requests sent again"),
            cache_requests: family(r, "agent_cache_requests", "Questions to Redis that a request waited for"),
            cache_duration: histograms(
                r,
                "agent_cache_request_duration_seconds",
                "How long requests waited for Redis",
                || Histogram::new(CACHE_SECONDS),
            ),
            pool: gauges(
                r,
                "agent_db_pool_connections",
                "Database connections of this process",
                "state",
                &["idle", "used", "max"],
            ),
            pool_acquire: histogram(
                r,
                "agent_db_acquire_seconds",
                "Wait for a database connection, tried once a second",
                &ACQUIRE_SECONDS,
            ),
            budget: Budget::new(counter(r, "agent_metrics_dropped", "Series that would have been too many")),
            dependency_up: gauges(
                r,
                "agent_dependency_up",
                "1 while the dependency answers",
                "dependency",
                &["database", "worker", "redis", "object_store"],
            ),
            object_store: ObjectStoreMetrics::new(r),
            names,
            registry: Registry::default(),
        };
        for outcome in TURN_OUTCOMES {
            drop(metrics.turn_duration.get_or_create(&[("outcome", outcome)]));
        }
        metrics.prepare_labels();
        metrics.dependency("database", true);
        metrics.dependency("worker", true);
        metrics.dependency("redis", true);
        metrics.dependency("object_store", true);
        metrics.pool.get_or_create(&[("state", "max")]).set(i64::from(facts.max_connections));
        let schema = store::schema_version().to_string();
        let build = [
            ("version", VERSION.to_owned()),
            ("revision", option_env!("AGENT_BUILD_REVISION").unwrap_or("unknown").to_owned()),
            ("digest", option_env!("AGENT_BUILD_DIGEST").unwrap_or("unknown").to_owned()),
            // Each build needs every migration that it knows, and runs on later ones.
            ("schema_min", schema.clone()),
            ("schema_max", schema),
        ];
        information(&mut registry, "agent_build_info", "This build", build);
        information(
            &mut registry,
            "agent_config_info",
            "The settings in force",
            [("hash", facts.config_hash.to_owned())],
        );
        registry.register_collector(Box::new(ProcessCollector));
        registry.register_collector(Box::new(RuntimeCollector));
        metrics.registry = registry;
        metrics.budget.open(metrics.expose("").1.lines().filter(|line| !line.starts_with('#')).count());
        metrics
    }

    /// What a scraper gets: media type and body.
    pub fn expose(&self, accept: &str) -> (&'static str, String) {
        super::exposition::expose(&self.registry, accept)
    }

    /// Whether a dependency answers.
    pub fn dependency(&self, dependency: &'static str, up: bool) {
        self.dependency_up.get_or_create(&[("dependency", dependency)]).set(up.into());
    }

    /// How many database connections are open and how many of them idle.
    pub fn pool(&self, open: u32, idle: u32) {
        self.pool.get_or_create(&[("state", "idle")]).set(idle.into());
        self.pool.get_or_create(&[("state", "used")]).set(open.saturating_sub(idle).into());
    }

    /// How long a try took to get a database connection.
    pub fn pool_acquired(&self, seconds: f64) {
        self.pool_acquire.observe(seconds);
    }

    /// Observes a value in a series that may be new.
    pub(crate) fn observe<L: labels::Labels>(&self, family: &Histograms<L>, labels: &L, value: f64) {
        if let Some(histogram) = self.budget.histogram(family, labels) {
            histogram.observe(value);
        }
    }

    /// How many sessions this process drives now.
    pub fn active_agents(&self) -> usize {
        usize::try_from(self.active.get()).unwrap_or(0)
    }

    pub(crate) fn error(&self, class: &'static str) {
        self.errors.get_or_create(&[("class", class)]).inc();
    }
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::<u64, AtomicU64>::default();
    registry.register(name, help, counter.clone());
    counter
}

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn histogram(registry: &mut Registry, name: &str, help: &str, bounds: &[f64]) -> Histogram {
    let histogram = Histogram::new(bounds.iter().copied());
    registry.register(name, help, histogram.clone());
    histogram
}

fn histograms<L>(registry: &mut Registry, name: &str, help: &str, new: fn() -> Histogram) -> Histograms<L>
where
    L: labels::Labels,
{
    let family = Family::new_with_constructor(new);
    registry.register(name, help, family.clone());
    family
}

fn family<L: labels::Labels>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Counter> {
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}

/// A counter for each value of its label, all at 0.
fn counters(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: &[&'static str],
) -> Family<OneLabel, Counter> {
    let family = family::<OneLabel>(registry, name, help);
    for value in values {
        drop(family.get_or_create(&[(label, *value)]));
    }
    family
}

/// A gauge for each value of its label, all at 0.
fn gauges(
    registry: &mut Registry,
    name: &str,
    help: &str,
    label: &'static str,
    values: &[&'static str],
) -> Family<OneLabel, Gauge> {
    let family = Family::<OneLabel, Gauge>::default();
    registry.register(name, help, family.clone());
    for value in values {
        drop(family.get_or_create(&[(label, *value)]));
    }
    family
}

/// A gauge that is always 1 and says something in its labels.
fn information<const N: usize, V>(registry: &mut Registry, name: &str, help: &str, labels: [(&'static str, V); N])
where
    [(&'static str, V); N]: EncodeLabelSet + labels::Labels,
{
    let family = Family::<[(&'static str, V); N], Gauge>::default();
    family.get_or_create(&labels).set(1);
    registry.register(name, help, family);
}
