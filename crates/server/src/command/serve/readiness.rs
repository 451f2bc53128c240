//! Whether this replica should get new work, and how its dependencies are.
//!
//! Whether the database answers is read from the replica's heartbeats, which have a connection of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use engine::Heartbeats;
use engine::port::Blobs;
use store::Presence;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::command::store::Database;
use crate::http::{AgentFigures, Draining, Readiness, ReadinessReport};
use crate::telemetry::metrics::Metrics;

/// Between two looks at the heartbeats and the pool.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// How long the object store may take to answer before it counts as down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Between two tries of the pool.
const TRY_INTERVAL: Duration = Duration::from_secs(1);

/// What `/ready` says.
pub(super) struct ReplicaReadiness {
    metrics: Arc<Metrics>,
    draining: Draining,
    max_agents: usize,
    database_is_up: watch::Sender<bool>,
    worker_is_up: AtomicBool,
    redis_is_up: AtomicBool,
    object_store_is_up: AtomicBool,
}

impl ReplicaReadiness {
    pub(super) fn new(metrics: Arc<Metrics>, draining: Draining, max_agents: usize) -> Self {
        let up = || AtomicBool::new(true);
        Self {
            metrics,
            draining,
            max_agents,
            database_is_up: watch::Sender::new(true),
            worker_is_up: up(),
            redis_is_up: up(),
            object_store_is_up: up(),
        }
    }

    /// Whether the server's own worker runs.
    pub(super) fn worker(&self, up: bool) {
        self.worker_is_up.store(up, Ordering::Relaxed);
        self.metrics.dependency("worker", up);
    }

    /// Keeps in step with what the bell knows of Redis until `stop`.
    pub(super) async fn watch_redis(self: Arc<Self>, mut presence: watch::Receiver<Presence>, stop: CancellationToken) {
        loop {
            let up = *presence.borrow_and_update() != Presence::Away;
            self.redis_is_up.store(up, Ordering::Relaxed);
            self.metrics.dependency("redis", up);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = presence.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Tries once a second how long a connection of the pool is waited for, until `stop`.
    pub(super) async fn try_pool(self: Arc<Self>, database: Database, stop: CancellationToken) {
        let tries = async {
            loop {
                tokio::time::sleep(TRY_INTERVAL).await;
                if let Some(wait) = database.time_to_acquire().await {
                    self.metrics.pool_acquired(wait.as_secs_f64());
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = tries => {}
        }
    }

    /// Looks at the dependencies until `stop`.
    pub(super) async fn watch(self: Arc<Self>, heartbeats: Heartbeats, database: Database, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let (open, idle) = database.connections();
            self.metrics.pool(open, idle);
            let up = heartbeats.come_through();
            if self.database_is_up.send_replace(up) != up {
                if up {
                    tracing::info!("the database answers again")
                } else {
                    tracing::error!("the database does not answer: requests that need it are refused")
                }
                self.metrics.dependency("database", up);
            }
        }
    }

    /// Looks at the object store until `stop`.
    pub(super) async fn watch_object_store(self: Arc<Self>, blobs: Arc<dyn Blobs>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let answer = tokio::time::timeout(ANSWER_TIMEOUT, blobs.ping()).await;
            let cause = match &answer {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("it did not answer in time".to_owned()),
            };
            let up = cause.is_none();
            if self.object_store_is_up.swap(up, Ordering::Relaxed) != up {
                match cause {
                    None => tracing::info!("the object store answers again"),
                    Some(cause) => tracing::error!(
                        cause,
                        "the object store does not answer: large records stay in the database, files wait"
                    ),
                }
            }
            self.metrics.dependency("object_store", up);
        }
    }
}

impl Readiness for ReplicaReadiness {
    /// A loss of the database after the start makes nobody unready: all replicas would go at once.
    fn report(&self) -> ReadinessReport {
        let draining = self.draining.is_draining();
        let dependencies = [
            ("database", *self.database_is_up.borrow()),
            ("worker", self.worker_is_up.load(Ordering::Relaxed)),
            ("redis", self.redis_is_up.load(Ordering::Relaxed)),
            ("object_store", self.object_store_is_up.load(Ordering::Relaxed)),
        ];
        let degraded = dependencies.iter().filter(|(_, up)| !up).map(|(name, _)| (*name).to_owned());
        ReadinessReport {
            reasons: if draining { vec!["draining".to_owned()] } else { Vec::new() },
            degraded: degraded.collect(),
            draining,
            agents: AgentFigures { held: self.metrics.active_agents(), max: self.max_agents },
        }
    }

    fn store_is_up(&self) -> Option<watch::Receiver<bool>> {
        Some(self.database_is_up.subscribe())
    }
}
