//! Whether this replica should get new work, and a look at its dependencies every few seconds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::port::Leases;
use tokio_util::sync::CancellationToken;

use crate::command::store::Database;
use crate::http::{AgentFigures, Readiness, ReadinessReport};
use crate::telemetry::metrics::Metrics;

/// Between two looks at the dependencies.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// How long the database may take to answer a small query before it counts as down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// What `/ready` says.
pub(super) struct ReplicaReadiness {
    metrics: Arc<Metrics>,
    draining: CancellationToken,
    max_agents: usize,
    database_is_up: AtomicBool,
    worker_is_up: AtomicBool,
}

impl ReplicaReadiness {
    pub(super) fn new(metrics: Arc<Metrics>, draining: CancellationToken, max_agents: usize) -> Self {
        let (database_is_up, worker_is_up) = (AtomicBool::new(true), AtomicBool::new(true));
        Self { metrics, draining, max_agents, database_is_up, worker_is_up }
    }

    /// Whether the server's own worker runs.
    pub(super) fn worker(&self, up: bool) {
        self.worker_is_up.store(up, Ordering::Relaxed);
        self.metrics.dependency("worker", up);
    }

    /// Looks at the dependencies until `stop`.
    pub(super) async fn watch(self: Arc<Self>, leases: Arc<dyn Leases>, database: Database, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let (open, idle) = database.connections();
            self.metrics.pool(open, idle);
            let up = matches!(tokio::time::timeout(ANSWER_TIMEOUT, leases.next_wake()).await, Ok(Ok(_)));
            if self.database_is_up.swap(up, Ordering::Relaxed) != up {
                if up {
                    tracing::info!("the database answers again")
                } else {
                    tracing::error!("the database does not answer")
                }
            }
            self.metrics.dependency("database", up);
        }
    }
}

impl Readiness for ReplicaReadiness {
    /// A loss of the database after the start makes nobody unready: all replicas would go at once.
    fn report(&self) -> ReadinessReport {
        let draining = self.draining.is_cancelled();
        let degraded = [("database", &self.database_is_up), ("worker", &self.worker_is_up)];
        let degraded =
            degraded.iter().filter(|(_, up)| !up.load(Ordering::Relaxed)).map(|(name, _)| (*name).to_owned());
        ReadinessReport {
            reasons: if draining { vec!["draining".to_owned()] } else { Vec::new() },
            degraded: degraded.collect(),
            draining,
            agents: AgentFigures { held: self.metrics.active_agents(), max: self.max_agents },
        }
    }
}
