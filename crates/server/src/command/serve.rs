//! `agent-service serve`: puts the server together, runs it, and takes it apart without losing a turn.
//!
//! The parts are in files of their own: [`listener`] accepts connections, [`gate`] answers probes while the database
//! is awaited, [`readiness`] says whether the replica wants work, [`embedded`] keeps the server's own worker alive.

mod embedded;
mod gate;
pub(super) mod listener;
mod metrics;
pub(super) mod models;
mod readiness;
pub(super) mod redis;
mod signals;
mod sweep;
mod welcome;

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use engine::port::{Bell, Blobs, Entropy as _, Model, Track};
use engine::{Hurry, Replica, ReplicaConfig, Sessions, World};
use session::id::{Ids, ReplicaId};
use store::CachedDefinitions;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::gate::Gate;
use self::models::Catalog;
use self::readiness::ReplicaReadiness;
use self::signals::Signals;
use self::welcome::Welcome;
use super::store::{Store, object_store};
use super::system::{SystemClock, SystemEntropy, draw_key, now};
use super::worker::{Handover, local_url};
use super::{SettingsArguments, data_folder};
use crate::config::{Config, NOT_YET, TimeSpan, WorkerSection};
use crate::http::{self, Credentials, Draining, HttpLimits, Service, Strictness};
use crate::secret::Secret;
use crate::telemetry::blobs::MeteredBlobs;
use crate::telemetry::log;
use crate::telemetry::metrics::{Facts, Metrics};
use crate::{failpoint, model};

/// The first and the longest pause between two attempts to reach the database.
const DATABASE_PAUSE_MIN: Duration = Duration::from_millis(100);
const DATABASE_PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long connections may take to end once nothing is left to answer.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// How long the database's connections may take to close.
const DATABASE_PATIENCE: Duration = Duration::from_secs(1);

/// What leaving may take beside the drain: to hand over what was cut, to end the worker, to close connections.
const LEAVING: Duration = Duration::from_secs(10);

/// The ends of streams are spread over this time, or over half the drain where that is shorter.
const STREAMS_SPREAD_MAX: Duration = Duration::from_secs(10);

/// A server with a database of its own drains for no longer than this: nobody else goes on with its sessions
/// meanwhile, and its next start asks again what is cut.
const LONE_DRAIN_MAX: Duration = Duration::from_secs(10);

/// How the server is run.
#[derive(Debug, Default, Args)]
pub struct ServeArguments {
    #[command(flatten)]
    settings: SettingsArguments,
    /// Address that both listeners bind. [default: ::, which takes IPv4 as well]
    #[arg(long, value_name = "ADDRESS")]
    host: Option<IpAddr>,
    /// Port of the API; 0 takes a free one. [env: AGENT_PORT] [default: 8080]
    #[arg(long)]
    port: Option<u16>,
    /// Port of the metrics; 0 takes a free one. [env: AGENT_METRICS_PORT] [default: 9090]
    #[arg(long, value_name = "PORT")]
    metrics_port: Option<u16>,
    /// Sessions that this replica drives at once. [default: 100]
    #[arg(long, value_name = "COUNT")]
    max_agents: Option<usize>,
    /// How long running turns may go on after SIGTERM. [default: 5m]
    #[arg(long, value_name = "DURATION")]
    drain_timeout: Option<TimeSpan>,
}

impl ServeArguments {
    fn load(&self) -> anyhow::Result<Config> {
        Ok(self.settings.load(|config| {
            config.server.host = self.host.unwrap_or(config.server.host);
            config.server.port = self.port.unwrap_or(config.server.port);
            config.server.metrics_port = self.metrics_port.unwrap_or(config.server.metrics_port);
            config.server.drain_timeout = self.drain_timeout.unwrap_or(config.server.drain_timeout);
            config.agent.max_agents = self.max_agents.unwrap_or(config.agent.max_agents);
        })?)
    }
}

pub(super) fn run(arguments: ServeArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.load()?;
    log::install(&config.logging, &config.server.track, now);
    for name in NOT_YET.iter().filter(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())) {
        tracing::warn!("{name} is set, and this version does not use it yet");
    }
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(serve(config));
    // Nothing that is still running has anything left to lose.
    runtime.shutdown_background();
    code
}

/// Lets this process open as many descriptors as the system allows it: every stream is one.
pub(super) fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open descriptors stays where it is");
    }
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let metrics = Arc::new(Metrics::new(
        &Facts {
            track: &config.server.track,
            config_hash: &http::secret_hash(&config.to_yaml())[..16],
            max_connections: config.database.max_connections,
        },
        models::names(&config.models).with_agents(config.metrics.agent_names.iter().cloned()),
    ));
    let retries = Arc::clone(&metrics);
    let models = model::Router::new(&config.models, &models::access(&config), Arc::new(SystemEntropy))?
        .telling(move |provider, error| retries.provider_retried(models::provider_label(provider), error));
    let models = Arc::new(models);

    // SQLite is there or it is not; another machine's database may be a moment away.
    let local_store = match config.database.url {
        None => Some(Store::open_sqlite(&config).await?),
        Some(_) => None,
    };
    let object_store = object_store(&config)?.map(|blobs| {
        let metered: Arc<dyn Blobs> = Arc::new(MeteredBlobs::new(blobs, Arc::clone(&metrics)));
        metered
    });
    let (api_key, is_made) = api_key(&config)?;
    let listener = listener::bind(config.server.host, config.server.port)?;
    let metrics_listener = listener::bind(config.server.host, config.server.metrics_port)?;
    let (port, metrics_port) = (listener.local_addr()?.port(), metrics_listener.local_addr()?.port());
    let url = local_url(config.server.host, port);
    let redis = redis::open(&config.redis)?;

    let close = CancellationToken::new();
    let gate = Gate::default();
    let is_lone = config.database.url.is_none();
    let drain_timeout = drain_timeout(&config, is_lone);
    // The clients of a server that is alone can only come back to its next start.
    let spread = if is_lone { Duration::ZERO } else { STREAMS_SPREAD_MAX.min(drain_timeout / 2) };
    let draining = Draining::new(spread);
    let api = tokio::spawn(listener::serve(listener, gate.router(), draining.begun().clone(), close.clone()));
    let scrapes = metrics::router(Arc::clone(&metrics));
    let metrics_api = tokio::spawn(listener::serve(metrics_listener, scrapes, CancellationToken::new(), close.clone()));

    let store = match local_store {
        Some(store) => store,
        None => tokio::select! {
            store = reach_database(&config, object_store.clone()) => store?,
            () = signals.stop() => return Ok(ExitCode::SUCCESS),
        },
    };
    let running = Running::start(
        &config,
        &store,
        Parts { redis, models, metrics, gate: &gate, draining, drain_timeout, api_key: &api_key, url: &url },
    )?;
    let key_path = data_folder::key_path(&config.server.data_dir);
    Welcome {
        url: &url,
        metrics_url: &format!("{}/metrics", local_url(config.server.host, metrics_port)),
        made_key: is_made.then_some((&api_key, key_path.as_path())),
        database: if config.database.url.is_some() { "PostgreSQL" } else { "SQLite" },
        blobs: &blobs_place(&config),
        models: &running.model_ids,
    }
    .say(config.logging.format);

    signals.stop().await;
    running.drain(&mut signals).await;
    close.cancel();
    let closing = async {
        let _ = tokio::join!(api, metrics_api);
    };
    if tokio::time::timeout(CLOSE_PATIENCE, closing).await.is_err() {
        tracing::warn!("some connections did not end in time and are cut");
    }
    if tokio::time::timeout(DATABASE_PATIENCE, store.database().close()).await.is_err() {
        tracing::warn!("the database's connections did not close in time");
    }
    Ok(ExitCode::SUCCESS)
}

/// How long the drain may take; says so where that cannot work.
fn drain_timeout(config: &Config, is_lone: bool) -> Duration {
    let asked = config.server.drain_timeout.get();
    let drain_timeout = if is_lone { asked.min(LONE_DRAIN_MAX) } else { asked };
    if let Some(grace) = config.server.termination_grace
        && drain_timeout + LEAVING > grace.get()
    {
        tracing::error!(
            "server.termination_grace is {grace}, but a drain may take {} s and leaving {} s more: this server will be \
             killed before it has handed its turns over; raise the grace period or lower server.drain_timeout",
            drain_timeout.as_secs(),
            LEAVING.as_secs()
        );
    }
    drain_timeout
}

/// Where large content is kept, for people.
fn blobs_place(config: &Config) -> String {
    match (&config.object_store.url, &config.database.url) {
        (Some(url), _) => url.clone(),
        (None, Some(_)) => {
            "in the database; no files, and no snapshots of workspaces (set OBJECT_STORE_URL)".to_owned()
        }
        (None, None) => config.server.data_dir.join("blobs").display().to_string(),
    }
}

/// The key that clients send, and whether it was made here.
fn api_key(config: &Config) -> anyhow::Result<(Secret, bool)> {
    match &config.server.api_key {
        Some(key) => Ok((key.clone(), false)),
        None => {
            data_folder::create(&config.server.data_dir)?;
            Ok((data_folder::read_or_make_key(&config.server.data_dir)?, true))
        }
    }
}

/// Tries until the database is there, and brings its schema up to date.
async fn reach_database(config: &Config, object_store: Option<Arc<dyn Blobs>>) -> anyhow::Result<Store> {
    let url = config.database.url.as_ref().context("no database is configured")?;
    let mut pause = DATABASE_PAUSE_MIN;
    loop {
        let attempt = async {
            let store = Store::open_postgres(config, url, object_store.clone())?;
            let database = store.database();
            if config.database.migrate {
                database.migrate().await?
            } else {
                database.expect_schema().await?
            }
            anyhow::Ok(store)
        };
        match attempt.await {
            Ok(store) => return Ok(store),
            Err(error) => {
                let cause = format!("{error:#}");
                tracing::warn!(cause, pause_ms = pause.as_millis() as u64, "the database cannot be reached yet");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(DATABASE_PAUSE_MAX);
    }
}

/// What [`Running`] is put together from.
struct Parts<'a> {
    redis: Option<Arc<store::Redis>>,
    models: Arc<model::Router>,
    metrics: Arc<Metrics>,
    gate: &'a Gate,
    draining: Draining,
    drain_timeout: Duration,
    api_key: &'a Secret,
    url: &'a str,
}

/// The parts that work behind the API.
struct Running {
    model_ids: Vec<String>,
    draining: Draining,
    hurry: Hurry,
    /// Cancelled when it is over.
    drained: CancellationToken,
    replica: JoinHandle<()>,
    worker: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts everything, and opens the gate.
    fn start(config: &Config, store: &Store, parts: Parts<'_>) -> anyhow::Result<Self> {
        let Parts { redis, models, metrics, gate, draining, drain_timeout, api_key, url } = parts;
        let drained = CancellationToken::new();
        let mut world = world(config, store, redis::bell(config, redis.as_ref()), Arc::clone(&models) as _)?;
        if let Some(redis) = &redis {
            world.definitions = Arc::new(CachedDefinitions::start(world.definitions, redis, Arc::clone(&metrics) as _));
        }
        let replica_id: ReplicaId = Ids::from_seed(SystemEntropy.draw()).next();
        let is_embedded = config.worker.is_embedded();
        let replica_config = ReplicaConfig {
            replica_id,
            track: if config.server.track == Track::Canary.name() { Track::Canary } else { Track::Stable },
            max_agents: config.agent.max_agents,
            drain_timeout,
            // With a database of its own nobody else's worker can hold anything.
            embedded: is_embedded && config.database.url.is_none(),
        };
        let replica = Replica::new(world.clone(), replica_config, Arc::clone(&metrics) as _);
        let sessions =
            Sessions::new(world.clone(), Some(replica.local_claims())).with_observer(Arc::clone(&metrics) as _);
        let (hurry, heartbeats) = (replica.hurry(), replica.heartbeats());
        let replica = tokio::spawn(replica.run(draining.begun().clone()));

        let readiness =
            Arc::new(ReplicaReadiness::new(Arc::clone(&metrics), draining.clone(), config.agent.max_agents));
        let watch = Arc::clone(&readiness).watch(heartbeats, store.database(), drained.clone());
        tokio::spawn(watch);
        tokio::spawn(Arc::clone(&readiness).try_pool(store.database(), drained.clone()));
        if let Some(redis) = &redis {
            tokio::spawn(Arc::clone(&readiness).watch_redis(redis.presence(), drained.clone()));
        }
        if let Some(blobs) = store.blobs.clone().filter(|_| config.object_store.url.is_some()) {
            tokio::spawn(Arc::clone(&readiness).watch_object_store(blobs, drained.clone()));
        }
        tokio::spawn(sweep::run(world.clone(), Arc::clone(&store.registry), drained.clone()));

        let request_limits = redis::request_limits(config, redis.as_ref(), Arc::clone(&metrics) as _);
        let worker_key = config.worker.key.as_ref().map(|key| key.expose().to_owned());
        let worker_key = worker_key.or_else(|| is_embedded.then(|| draw_key("sk-worker-")));
        let model_ids = models.list().into_iter().map(|model| model.id).collect();
        gate.open(http::router(Service {
            world,
            sessions,
            credentials: Arc::new(Credentials::new([api_key.expose()], worker_key.as_deref())),
            models: Arc::new(Catalog(models)),
            observer: metrics,
            readiness: Arc::clone(&readiness) as _,
            request_limits,
            limits: HttpLimits { lease_seconds: config.environments.lease_seconds(), ..HttpLimits::default() },
            package_hosts: config.worker.network.package_hosts.clone().into(),
            strictness: Strictness::default(),
            draining: draining.clone(),
        }));

        let worker = worker_key.filter(|_| is_embedded).map(|key| {
            let handover = Handover {
                key,
                server_url: url.to_owned(),
                track: config.server.track.clone(),
                data_dir: config.server.data_dir.clone(),
                logging: config.logging.clone(),
                worker: WorkerSection { key: None, key_file: None, ..config.worker.clone() },
            };
            tokio::spawn(embedded::keep(handover, readiness, drained.clone()))
        });
        Ok(Self { model_ids, draining, hurry, drained, replica, worker })
    }

    /// Hands everything over. A second signal leaves open model requests the last fifth of the drain, a third none.
    async fn drain(mut self, signals: &mut Signals) {
        tracing::info!("draining: no new turn begins here");
        self.draining.begin();
        loop {
            tokio::select! {
                _ = &mut self.replica => break,
                () = signals.stop() => {
                    tracing::warn!("told to hurry");
                    self.hurry.hurry();
                }
            }
        }
        self.draining.streams_ended().await;
        self.drained.cancel();
        if let Some(worker) = self.worker {
            let _ = worker.await;
        }
        tracing::info!("drained");
    }
}

/// The ports of this process.
fn world(config: &Config, store: &Store, bell: Arc<dyn Bell>, model: Arc<dyn Model>) -> anyhow::Result<World> {
    Ok(World {
        log: failpoint::install(Arc::clone(&store.log))?,
        leases: Arc::clone(&store.leases),
        work: Arc::clone(&store.work),
        definitions: Arc::clone(&store.definitions),
        idempotency: Arc::clone(&store.idempotency),
        files: Arc::clone(&store.files),
        resources: Arc::clone(&store.resources),
        bell,
        blobs: store.blobs.clone(),
        chunks: Arc::clone(&store.chunks),
        model,
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        limits: session::Limits { compact_at_tokens: config.agent.token_limit, ..session::Limits::default() },
        key_limits: config.limits.of_keys(),
        watch: Arc::default(),
        gates: Arc::default(),
    })
}
