//! Replicas that start, crash, drain and come back, and how the others reach them.

use std::sync::{Arc, Mutex};

use engine::{Replica, ReplicaConfig, Sessions, World};
use session::Limits;
use session::id::{Identifier, ReplicaId};
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::actors::SimulatedModel;
use super::faults::{FaultyBell, FaultyStore, Process, SkewedClock};
use engine::port::Entropy;

/// The replicas that can be reached now.
pub(crate) struct Cluster {
    nodes: Mutex<Vec<Option<Arc<Node>>>>,
    tasks: Mutex<JoinSet<()>>,
}

/// One start of one server.
pub(crate) struct Node {
    pub(crate) process: Arc<Process>,
    pub(crate) world: World,
    pub(crate) sessions: Sessions,
}

/// The server died, or was not there, before it answered.
#[derive(Debug)]
pub(crate) struct ConnectionLost;

impl Cluster {
    pub(crate) fn start(shared: &Arc<Shared>, replicas: usize) -> Arc<Self> {
        let cluster = Arc::new(Self { nodes: Mutex::new(vec![None; replicas]), tasks: Mutex::default() });
        for slot in 0..replicas {
            let keep = keep_one_up(Arc::clone(shared), Arc::downgrade(&cluster), slot);
            cluster.tasks.lock().unwrap().spawn(keep);
        }
        cluster
    }

    /// Any server that is up.
    pub(crate) fn any(&self, shared: &Shared) -> Option<Arc<Node>> {
        let nodes = self.nodes.lock().unwrap();
        let up: Vec<&Arc<Node>> = nodes.iter().flatten().filter(|node| !node.process.is_dead()).collect();
        if up.is_empty() {
            return None;
        }
        Some(Arc::clone(up[shared.dice.below(up.len() as u64) as usize]))
    }
}

impl Node {
    /// Does something on this server, as one of its requests: it is dropped when the server dies.
    pub(crate) async fn request<T>(&self, work: impl Future<Output = T>) -> Result<T, ConnectionLost> {
        tokio::select! {
            biased;
            () = self.process.death() => Err(ConnectionLost),
            done = work => Ok(done),
        }
    }
}

/// Runs one server after another.
async fn keep_one_up(shared: Arc<Shared>, cluster: std::sync::Weak<Cluster>, slot: usize) {
    sleep(Duration::from_millis(shared.dice.below(500))).await;
    loop {
        let process = Process::new(Arc::clone(&shared.dice), Arc::clone(&shared.weather));
        let store = Arc::new(FaultyStore { process: Arc::clone(&process), store: Arc::clone(&shared.store) });
        let error_ms = shared.dice.below(400) as i64 - 200;
        let limits = Limits {
            compact_at_tokens: 200 + shared.dice.below(2_000),
            model_attempts: 3,
            requests_per_turn: 12,
            takeovers: 3,
            ..Limits::default()
        };
        let world = World {
            log: store.clone(),
            leases: store.clone(),
            work: store.clone(),
            definitions: store,
            idempotency: Arc::clone(&shared.store) as _,
            files: Arc::clone(&shared.store) as _,
            bell: Arc::new(FaultyBell { process: Arc::clone(&process), bell: Arc::clone(&shared.bell) }),
            blobs: None,
            model: Arc::new(SimulatedModel { process: Arc::clone(&process), shared: Arc::clone(&shared) }),
            clock: Arc::new(SkewedClock { clock: shared.clock.clone(), error_ms }),
            entropy: shared.dice.clone(),
            limits,
            watch: Arc::default(),
        };
        let config = ReplicaConfig {
            replica_id: ReplicaId::from_bits(shared.dice.draw()),
            max_agents: 1 + shared.dice.below(4) as usize,
            drain_timeout: Duration::from_secs(3),
            embedded: false,
        };
        let replica_id = config.replica_id.clone();
        let replica = Replica::new(world.clone(), config, Arc::new(engine::observer::Silent));
        let sessions = Sessions::new(world.clone(), Some(replica.local_claims()));
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(replica.run(shutdown.clone()));
        let Some(up) = cluster.upgrade() else { return };
        up.nodes.lock().unwrap()[slot] = Some(Arc::new(Node { process: Arc::clone(&process), world, sessions }));
        drop(up);

        let lifetime = Duration::from_millis(5_000 + shared.dice.below(60_000));
        tokio::select! {
            biased;
            () = process.death() => {}
            () = sleep(lifetime) => {}
        }
        if !process.is_dead() && shared.weather.is_rough() && shared.dice.chance(500) {
            shared.note(|notes| notes.drains += 1);
            shutdown.cancel();
            tokio::select! {
                biased;
                () = process.death() => {}
                _ = tasks.join_next() => {}
            }
        } else if !process.is_dead() && !shared.weather.is_rough() {
            process.death().await;
        }
        process.die();
        shared.note(|notes| notes.crashes += 1);
        if let Some(up) = cluster.upgrade() {
            up.nodes.lock().unwrap()[slot] = None;
        }
        drop(tasks);
        if shared.dice.chance(500) {
            shared.store.disconnect(&replica_id);
        }
        sleep(Duration::from_millis(shared.dice.below(3_000))).await;
    }
}
