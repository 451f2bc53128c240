//! What every handler shares, and the few things that the HTTP API asks of the rest of the server.

use std::sync::Arc;

use engine::port::{Definitions, EventLog, WorkQueue};
use engine::{Sessions, World};
use serde_json::{Value, json};
use session::Timestamp;
use session::agent::{Effort, Speed};
use session::id::{Identifier, Ids};
use subtle::{Choice, ConstantTimeEq};
use tokio::sync::watch;

use super::auth::secret_hash;
use super::context::HttpObserver;
use super::draining::Draining;
use super::rate_limit::RequestLimits;

/// The state of the API: cheap to clone, the same in every request.
#[derive(Clone)]
pub struct Service {
    pub world: World,
    pub sessions: Sessions,
    pub credentials: Arc<Credentials>,
    pub models: Arc<dyn ModelCatalog>,
    pub observer: Arc<dyn HttpObserver>,
    pub readiness: Arc<dyn Readiness>,
    pub limits: HttpLimits,
    /// `None` where API keys may make any number of requests.
    pub request_limits: Option<RequestLimits>,
    /// What `allow_package_managers` of an environment allows.
    pub package_hosts: Arc<[String]>,
    pub strictness: Strictness,
    pub draining: Draining,
}

impl Service {
    pub(super) fn now(&self) -> Timestamp {
        self.world.clock.now()
    }

    /// A fresh id.
    pub(super) fn id<I: Identifier>(&self) -> I {
        Ids::from_seed(self.world.entropy.draw()).next()
    }

    pub(super) fn definitions(&self) -> &dyn Definitions {
        &*self.world.definitions
    }

    pub(super) fn work(&self) -> &dyn WorkQueue {
        &*self.world.work
    }

    pub(super) fn log(&self) -> &dyn EventLog {
        &*self.world.log
    }
}

/// The credentials that the configuration names, as hashes. Environment keys and item tokens are in the store.
#[derive(Default)]
pub struct Credentials {
    api_key_hashes: Vec<String>,
    worker_key_hash: Option<String>,
}

impl Credentials {
    /// Keeps the hashes of the API keys and of the key that pool workers share.
    pub fn new<'k>(api_keys: impl IntoIterator<Item = &'k str>, worker_key: Option<&str>) -> Self {
        Self {
            api_key_hashes: api_keys.into_iter().map(secret_hash).collect(),
            worker_key_hash: worker_key.map(secret_hash),
        }
    }

    /// Whether `hash` is that of an API key; compared with all of them, in constant time.
    pub(super) fn is_api_key(&self, hash: &str) -> bool {
        let mut found = Choice::from(0);
        for known in &self.api_key_hashes {
            found |= known.as_bytes().ct_eq(hash.as_bytes());
        }
        found.into()
    }

    /// Whether `hash` is that of the worker key.
    pub(super) fn is_worker_key(&self, hash: &str) -> bool {
        self.worker_key_hash.as_ref().is_some_and(|known| known.as_bytes().ct_eq(hash.as_bytes()).into())
    }
}

/// Which models there are.
pub trait ModelCatalog: Send + Sync + 'static {
    /// Refuses a model id that no provider would take; the text says what to set.
    fn check(&self, model_id: &str) -> Result<(), String>;

    /// Every model that can be named, newest first.
    fn list(&self) -> Vec<ModelInfo>;

    /// What an agent gets that does not say how hard the model should think.
    fn default_effort(&self, _model_id: &str) -> Effort {
        Effort::High
    }

    /// Whether the model can be run at this speed.
    fn offers_speed(&self, _model_id: &str, speed: Speed) -> bool {
        speed == Speed::Standard
    }
}

/// A model as `GET /v1/models` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    pub id: String,
    pub display_name: String,
    pub created_at: Timestamp,
    pub max_input_tokens: Option<u64>,
    pub max_tokens: Option<u64>,
}

/// Whether this replica should get new work.
pub trait Readiness: Send + Sync + 'static {
    fn report(&self) -> ReadinessReport;

    /// Whether the store answers, for requests that need it; `None` where nobody watches that.
    fn store_is_up(&self) -> Option<watch::Receiver<bool>> {
        None
    }
}

/// The answer of `GET /ready`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadinessReport {
    /// Why the replica should get no new work; empty when it should.
    pub reasons: Vec<String>,
    /// Dependencies that are in trouble without making the replica unready.
    pub degraded: Vec<String>,
    pub draining: bool,
    pub agents: AgentFigures,
}

/// Sessions that this replica drives, and how many it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentFigures {
    pub held: usize,
    pub max: usize,
}

impl ReadinessReport {
    pub(super) fn ready(&self) -> bool {
        self.reasons.is_empty() && !self.draining
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "status": if self.ready() { "ready" } else { "not_ready" },
            "reasons": self.reasons,
            "degraded": self.degraded,
            "draining": self.draining,
            "agents": {"held": self.agents.held, "max": self.agents.max},
        })
    }
}

/// Bounds on requests and responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Largest JSON body, in bytes, after decoding.
    pub body_bytes: usize,
    /// How long a client may pause within a body, in milliseconds.
    pub body_pause_ms: u64,
    /// Time between pings on an idle stream, in milliseconds.
    pub ping_interval_ms: u64,
    /// Lease on a work item that its worker did not ask to be another, in seconds.
    pub lease_seconds: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self { body_bytes: 32 * 1024 * 1024, body_pause_ms: 30_000, ping_interval_ms: 15_000, lease_seconds: 30 }
    }
}

/// Rules of the hosted service that this server relaxes unless told otherwise; for conformance tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strictness {
    /// Requests must name an `anthropic-version`.
    pub require_version: bool,
    /// Beta-gated paths do not exist without their `anthropic-beta` value, and unknown values are refused.
    pub require_beta: bool,
}
