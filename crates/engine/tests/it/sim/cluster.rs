//! Replicas that start, crash, drain, are replaced and come back, and how the others reach them.

use std::sync::{Arc, Mutex, Weak};

use engine::blobs::Announced;
use engine::port::{Entropy, Leases, Track};
use engine::workspaces::Workspaces;
use engine::{Hurry, Replica, ReplicaConfig, Sessions, World};
use session::Limits;
use session::id::{Identifier, ReplicaId};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Shared;
use super::actors::SimulatedModel;
use super::bell::FaultyBell;
use super::blobs::{self, FaultyBlobs};
use super::counts::Count;
use super::faults::{FaultyStore, SkewedClock};
use super::weather::Process;

/// How long a drain may take before what still runs is cut.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a server that has drained waits for its last requests.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// How long somebody waits for the answer to a request.
const PATIENCE: Duration = Duration::from_secs(10);

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
    replica_id: ReplicaId,
    shutdown: CancellationToken,
    hurry: Hurry,
    in_flight: TaskTracker,
}

/// The server died, or was not there, before it answered; or it took too long.
#[derive(Debug)]
pub(crate) struct ConnectionLost;

impl Cluster {
    pub(crate) fn start(shared: &Arc<Shared>, replicas: usize) -> Arc<Self> {
        let cluster = Arc::new(Self { nodes: Mutex::new(vec![None; replicas]), tasks: Mutex::default() });
        let mut tasks = cluster.tasks.lock().unwrap();
        for slot in 0..replicas {
            tasks.spawn(keep_one_up(Arc::clone(shared), Arc::downgrade(&cluster), slot));
        }
        tasks.spawn(roll_out(Arc::clone(shared), Arc::downgrade(&cluster), replicas));
        drop(tasks);
        cluster
    }

    /// Any server that is up and takes requests.
    pub(crate) fn any(&self, shared: &Shared) -> Option<Arc<Node>> {
        let nodes = self.nodes.lock().unwrap();
        let ready: Vec<&Arc<Node>> = nodes.iter().flatten().filter(|node| node.is_ready()).collect();
        if ready.is_empty() {
            return None;
        }
        Some(Arc::clone(ready[shared.dice.below(ready.len() as u64) as usize]))
    }

    fn ready_at(&self, slot: usize) -> Option<Arc<Node>> {
        self.nodes.lock().unwrap()[slot].clone().filter(|node| node.is_ready())
    }

    fn set(&self, slot: usize, node: Option<Arc<Node>>) {
        self.nodes.lock().unwrap()[slot] = node;
    }
}

impl Node {
    fn is_ready(&self) -> bool {
        !self.process.is_dead() && !self.shutdown.is_cancelled()
    }

    /// The workspaces of its sessions.
    pub(crate) fn workspaces(&self) -> Workspaces<'_> {
        self.sessions.workspaces()
    }

    /// Does something on this server, as one of its requests: it is dropped when the server dies.
    pub(crate) async fn request<T>(&self, work: impl Future<Output = T>) -> Result<T, ConnectionLost> {
        let _in_flight = self.in_flight.token();
        tokio::select! {
            biased;
            () = self.process.death() => Err(ConnectionLost),
            done = timeout(PATIENCE, work) => done.map_err(|_| ConnectionLost),
        }
    }

    /// The same for a stream, which the server ends when it drains.
    pub(crate) async fn stream<T>(&self, work: impl Future<Output = T>) -> Result<T, ConnectionLost> {
        tokio::select! {
            biased;
            () = self.process.death() => Err(ConnectionLost),
            () = self.shutdown.cancelled() => Err(ConnectionLost),
            done = work => Ok(done),
        }
    }
}

/// Runs one server after another.
async fn keep_one_up(shared: Arc<Shared>, cluster: Weak<Cluster>, slot: usize) {
    sleep(Duration::from_millis(shared.dice.below(500))).await;
    loop {
        let (node, mut tasks) = boot(&shared);
        let Some(up) = cluster.upgrade() else { return };
        up.set(slot, Some(Arc::clone(&node)));
        drop(up);

        let lifetime = Duration::from_millis(5_000 + shared.dice.below(60_000));
        tokio::select! {
            biased;
            () = node.process.death() => {}
            () = node.shutdown.cancelled() => {}
            () = sleep(lifetime) => {}
        }
        if !shared.weather.is_rough() && node.is_ready() {
            node.process.death().await;
        }
        if node.process.is_dead() || shared.weather.kills && shared.dice.chance(500) {
            node.process.die();
            shared.count(Count::Crash, 1);
        } else {
            drain(&shared, &node, &mut tasks).await;
        }
        if let Some(up) = cluster.upgrade() {
            up.set(slot, None);
        }
        drop(tasks);
        if shared.dice.chance(500) {
            shared.store.disconnect(&node.replica_id);
        }
        sleep(Duration::from_millis(shared.dice.below(3_000))).await;
    }
}

/// Starts a server.
fn boot(shared: &Arc<Shared>) -> (Arc<Node>, JoinSet<()>) {
    let process = Process::new(Arc::clone(&shared.dice), Arc::clone(&shared.weather));
    let store = Arc::new(FaultyStore {
        process: Arc::clone(&process),
        store: Arc::clone(&shared.store),
        witness: Arc::clone(&shared.witness),
    });
    let blobs = Arc::new(FaultyBlobs { process: Arc::clone(&process), blobs: shared.store.bytes().clone() });
    let skew_ms = shared.weather.skew_ms;
    let error_ms = shared.dice.below(skew_ms) as i64 - skew_ms as i64 / 2;
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
        definitions: store.clone(),
        idempotency: store.clone(),
        files: store.clone(),
        resources: store.clone(),
        bell: Arc::new(FaultyBell::new(&shared.lines, Arc::clone(&process))),
        blobs: shared.weather.has_object_store.then(|| Arc::new(Announced::new(store.clone(), blobs)) as _),
        chunks: store.clone(),
        model: Arc::new(SimulatedModel { process: Arc::clone(&process), shared: Arc::clone(shared) }),
        clock: Arc::new(SkewedClock { clock: shared.clock.clone(), error_ms }),
        entropy: shared.dice.clone(),
        limits,
        key_limits: shared.weather.key_limits,
        watch: Arc::default(),
        gates: Arc::default(),
    };
    let config = ReplicaConfig {
        replica_id: ReplicaId::from_bits(shared.dice.draw()),
        track: Track::Stable,
        max_agents: 1 + shared.dice.below(4) as usize,
        drain_timeout: DRAIN_TIMEOUT,
        embedded: false,
    };
    let replica_id = config.replica_id.clone();
    shared.witness.server_started(&replica_id, &process);
    let replica = Replica::new(world.clone(), config, Arc::new(engine::observer::Silent));
    let sessions = Sessions::new(world.clone(), Some(replica.local_claims()));
    let (shutdown, hurry) = (CancellationToken::new(), replica.hurry());
    let mut tasks = JoinSet::new();
    tasks.spawn(replica.run(shutdown.clone()));
    let node = Node { process, world, sessions, replica_id, shutdown, hurry, in_flight: TaskTracker::new() };
    let node = Arc::new(node);
    tasks.spawn(blobs::sweep(Arc::clone(shared), Arc::clone(&node), store));
    (node, tasks)
}

/// Ends a server in good order: it takes no more requests, hands its sessions over, and is gone.
async fn drain(shared: &Shared, node: &Node, tasks: &mut JoinSet<()>) {
    shared.count(Count::Drain, 1);
    node.shutdown.cancel();
    while !shared.weather.is_orderly() && shared.dice.chance(200) {
        node.hurry.hurry();
    }
    let began = Instant::now();
    tokio::select! {
        biased;
        () = node.process.death() => return,
        _ = tasks.join_next() => {}
    }
    let took = began.elapsed();
    node.in_flight.close();
    let _ = timeout(LAST_REQUESTS, node.in_flight.wait()).await;
    node.process.die();
    if shared.weather.is_orderly() {
        let held = shared.store.held(&node.replica_id).await.expect("the store in memory answers");
        if !held.is_empty() {
            shared.violation(format!("{} drained and still holds {held:?}", node.replica_id));
        }
        if took >= DRAIN_TIMEOUT {
            shared.violation(format!("{} took {took:?} to drain", node.replica_id));
        }
    }
}

/// Replaces every server in turn, each when the one before is up again.
async fn roll_out(shared: Arc<Shared>, cluster: Weak<Cluster>, replicas: usize) {
    for _ in 0..shared.weather.rollouts {
        sleep(Duration::from_millis(shared.dice.below(15_000))).await;
        for slot in 0..replicas {
            let old = cluster.upgrade().and_then(|up| up.ready_at(slot));
            if let Some(old) = old.filter(|_| shared.weather.is_rough()) {
                old.shutdown.cancel();
            }
            while cluster.upgrade().is_some_and(|up| up.ready_at(slot).is_none()) {
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
