//! The record of an installation with many replicas: PostgreSQL.
//!
//! Appends take no lock before they know that they will write: one statement moves the session's row if the guard
//! holds, inserts the records and queues the work item ([`log`]). Times that decide who may do what are the
//! database's, asked for within the statement that decides. Every call is bounded in time: a database that hangs is
//! one that is unavailable.

mod blobs;
mod chunks;
mod definitions;
mod files;
mod idempotency;
mod keys;
mod leases;
mod ledger;
mod log;
mod resources;
mod tracks;
mod work_queue;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use engine::blobs::Announced;
use engine::port::{Blobs, StoreError};
use session::Timestamp;
use session::id::ReplicaId;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, Postgres};

use crate::body::Bodies;
use crate::connections::Connections;
use crate::failure::store_error;
use crate::migration::{self, MigrationStatus};

/// How long any one call may take, a wait for a connection included.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that nobody used for this long is tried before it is used again.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// The present time as the database tells it, in microseconds since the Unix epoch.
macro_rules! now {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    };
}
use now;

/// How to reach the database.
#[derive(Clone)]
pub struct PostgresOptions {
    /// `postgres://…`, perhaps of a pooler. Never printed.
    pub url: String,
    /// A way past any transaction pooler, for the one connection that holds a replica's lock; `url` if not given.
    pub direct_url: Option<String>,
    /// The most connections of this process, that one aside.
    pub connections_max: u32,
    /// Where large bodies go; without it every body stays in its row.
    pub blobs: Option<Arc<dyn Blobs>>,
}

/// A store in a PostgreSQL database that other processes may use too.
pub struct PostgresStore {
    pool: Connections<Postgres>,
    direct: PgConnectOptions,
    bodies: Bodies,
    registry: Arc<blobs::Registry>,
    /// The replicas that this process speaks for: one, tests aside.
    replicas: parking_lot::Mutex<BTreeMap<ReplicaId, Arc<tokio::sync::Mutex<leases::Lifeline>>>>,
}

impl PostgresStore {
    /// A store that connects when it is first used. Fails only if an address cannot be read.
    pub fn new(options: &PostgresOptions) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new()
            .max_connections(options.connections_max)
            .acquire_timeout(CALL_TIMEOUT / 2)
            .test_before_acquire(false)
            .after_connect(|connection, _| Box::pin(prepare(connection)))
            .before_acquire(|connection, usage| {
                Box::pin(async move { Ok(usage.idle_for < TRUSTED_IDLE || connection.ping().await.is_ok()) })
            })
            .connect_lazy_with(address(&options.url)?);
        let pool = Connections::new(pool);
        let registry = Arc::new(blobs::Registry { pool: pool.clone(), bytes: options.blobs.clone() });
        let announced = |bytes: &Arc<dyn Blobs>| {
            Arc::new(Announced::new(Arc::clone(&registry) as _, Arc::clone(bytes))) as Arc<dyn Blobs>
        };
        Ok(Self {
            pool,
            direct: address(options.direct_url.as_ref().unwrap_or(&options.url))?,
            bodies: Bodies::new(options.blobs.as_ref().map(announced)),
            registry,
            replicas: parking_lot::Mutex::default(),
        })
    }

    /// Brings the schema up to this build, under a lock that lets one process at a time do it.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let mut connection = self.direct.connect().await.map_err(store_error)?;
        let migrator = migration::migrator(migration::POSTGRES);
        migrator.run(&mut connection).await.map_err(migration::failed)?;
        connection.close().await.map_err(store_error)
    }

    /// Which migrations the database has.
    pub async fn migration_status(&self) -> Result<Vec<MigrationStatus>, StoreError> {
        bounded(async {
            let mut connection = self.pool.lend().await.map_err(store_error)?;
            migration::status(&mut *connection, migration::POSTGRES).await
        })
        .await
    }

    /// What time the database says it is.
    pub async fn time(&self) -> Result<Timestamp, StoreError> {
        bounded(async {
            let micros: i64 =
                sqlx::query_scalar(concat!("SELECT ", now!())).fetch_one(&self.pool).await.map_err(store_error)?;
            Ok(Timestamp::from_micros(micros))
        })
        .await
    }

    /// The store for blobs that it was given; what is put there is announced first.
    pub fn blobs(&self) -> Option<Arc<dyn Blobs>> {
        self.bodies.blobs().cloned()
    }

    /// Connections open, and how many of them are idle.
    pub fn connections(&self) -> (u32, u32) {
        let (open, idle) = self.pool.count();
        (open, u32::try_from(idle).unwrap_or(u32::MAX))
    }

    /// How long it takes now to get a connection; `None` if there is none to be had.
    pub async fn time_to_acquire(&self) -> Option<Duration> {
        let began = tokio::time::Instant::now();
        self.pool.lend().await.ok().map(|_| began.elapsed())
    }

    /// Closes every connection. Later calls are [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.replicas.lock().clear();
        self.pool.close().await;
    }
}

fn address(url: &str) -> Result<PgConnectOptions, StoreError> {
    let options: PgConnectOptions =
        url.parse().map_err(|_| StoreError::Unavailable("the database's address cannot be read".to_owned()))?;
    Ok(options.application_name("agent-service").disable_statement_logging())
}

/// What was acknowledged is durable, even where the database's default is otherwise; stronger settings stay. And a
/// statement is planned once for each connection: planning an append anew costs more than running it.
async fn prepare(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "SELECT set_config('plan_cache_mode', 'force_generic_plan', FALSE), \
         CASE WHEN current_setting('synchronous_commit') = 'off' \
         THEN set_config('synchronous_commit', 'on', FALSE) END",
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A call that gives up in time.
async fn bounded<T, E: From<StoreError>>(call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_) => Err(StoreError::Unavailable("the database did not answer in time".to_owned()).into()),
    }
}

/// Text as a parameter. PostgreSQL knows no NUL, so nothing that it holds has one: a text with NUL finds nothing.
fn findable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}
