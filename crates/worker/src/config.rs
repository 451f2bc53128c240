//! The settings of a worker. Where they come from (flags, environment, file) is the server executable's business.

use std::time::Duration;
use url::Url;

use crate::egress::NetworkConfig;
use crate::sandbox::config::SandboxConfig;
use crate::secret::Secret;

/// The reserved environment whose queue yields items of every cloud environment.
pub const POOL_ENVIRONMENT: &str = "env_pool";

/// What [`crate::run`] needs.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Where the server answers, without `/v1`.
    pub server_url: Url,
    /// The worker key, or an environment key.
    pub key: Secret,
    /// Whose queue to poll.
    pub environment_id: String,
    /// Tells this worker from others in the server's statistics.
    pub worker_id: String,
    /// Sessions served at the same time.
    pub max_sessions: usize,
    /// The lease asked for; the server bounds it to 3..=300. Short, because a dead worker is noticed by its end.
    pub lease_ttl_seconds: u16,
    /// How long the server may hold an empty poll, 1..=999.
    pub poll_block_ms: u16,
    /// An idle session without calls is given back after this, or when another one needs its slot; its processes end,
    /// its files stay.
    pub idle_timeout: Duration,
    /// A workspace that holds more, in bytes, is not kept for other workers.
    pub snapshot_bytes_max: u64,
    /// How often the workspaces of deleted sessions are looked for.
    pub sweep_period: Duration,
    pub sandbox: SandboxConfig,
    /// Whether the level of `sandbox` is to be the strongest that holds here, Landlock at least, instead of the one set.
    pub strongest_confinement: bool,
    /// What tools may reach, if their environment allows it.
    pub network: NetworkConfig,
}

impl WorkerConfig {
    /// The defaults for a worker of the pool.
    pub fn new(server_url: Url, key: Secret, worker_id: impl Into<String>, sandbox: SandboxConfig) -> Self {
        Self {
            server_url,
            key,
            environment_id: POOL_ENVIRONMENT.to_owned(),
            worker_id: worker_id.into(),
            max_sessions: 64,
            lease_ttl_seconds: 5,
            poll_block_ms: 999,
            idle_timeout: Duration::from_secs(600),
            snapshot_bytes_max: 2 << 30,
            sweep_period: Duration::from_secs(60),
            sandbox,
            strongest_confinement: false,
            network: NetworkConfig::default(),
        }
    }
}
