//! Opens the store that the settings name, for the subcommands that work on it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use engine::port::{
    BlobRegistry, Blobs, Chunks, Definitions, EventLog, Files, Idempotency, Leases, Resources, WorkQueue,
};
use store::{MigrationStatus, PostgresOptions, PostgresStore, SqliteStore};

use super::data_folder;
use super::system::SystemClock;
use crate::config::Config;
use crate::secret::Secret;

/// An open store, as the ports that it implements.
pub(super) struct Store {
    pub(super) log: Arc<dyn EventLog>,
    pub(super) leases: Arc<dyn Leases>,
    pub(super) work: Arc<dyn WorkQueue>,
    pub(super) definitions: Arc<dyn Definitions>,
    pub(super) idempotency: Arc<dyn Idempotency>,
    pub(super) files: Arc<dyn Files>,
    pub(super) resources: Arc<dyn Resources>,
    pub(super) blobs: Option<Arc<dyn Blobs>>,
    pub(super) registry: Arc<dyn BlobRegistry>,
    pub(super) chunks: Arc<dyn Chunks>,
    database: Database,
}

#[derive(Clone)]
pub(super) enum Database {
    Sqlite(Arc<SqliteStore>),
    Postgres(Arc<PostgresStore>),
}

impl Store {
    /// The SQLite store of the data folder, which no other process may have open.
    pub(super) async fn open_sqlite(config: &Config) -> anyhow::Result<Self> {
        data_folder::create(&config.server.data_dir)?;
        let store = SqliteStore::open(&config.server.data_dir, Arc::new(SystemClock)).await?;
        Ok(Self::new(Database::Sqlite(Arc::new(store))))
    }

    /// The same beside a server that runs on it.
    async fn open_sqlite_beside(config: &Config) -> anyhow::Result<Self> {
        data_folder::create(&config.server.data_dir)?;
        let store = SqliteStore::open_beside(&config.server.data_dir, Arc::new(SystemClock)).await?;
        Ok(Self::new(Database::Sqlite(Arc::new(store))))
    }

    /// The PostgreSQL store that the settings name. It connects when it is first used, and its schema may be old.
    /// Large content goes to `blobs`.
    pub(super) fn open_postgres(config: &Config, url: &Secret, blobs: Option<Arc<dyn Blobs>>) -> anyhow::Result<Self> {
        Ok(Self::new(Database::Postgres(Arc::new(postgres(config, url, blobs)?))))
    }

    /// For tools: whichever the settings name, beside a server that may be running.
    pub(super) async fn open_beside(config: &Config) -> anyhow::Result<Self> {
        match &config.database.url {
            // Nothing that tools look up is large.
            Some(url) => Self::open_postgres(config, url, None),
            None => Self::open_sqlite_beside(config).await,
        }
    }

    fn new(database: Database) -> Self {
        match database.clone() {
            Database::Sqlite(store) => Self::of(&store, store.blobs(), database),
            Database::Postgres(store) => Self::of(&store, store.blobs(), database),
        }
    }

    fn of<S>(store: &Arc<S>, blobs: Option<Arc<dyn Blobs>>, database: Database) -> Self
    where
        S: EventLog + Leases + WorkQueue + BlobRegistry + Chunks + Definitions + Files + Idempotency + Resources,
    {
        Self {
            log: store.clone(),
            leases: store.clone(),
            work: store.clone(),
            blobs,
            registry: store.clone(),
            chunks: store.clone(),
            definitions: store.clone(),
            files: store.clone(),
            resources: store.clone(),
            idempotency: store.clone(),
            database,
        }
    }

    /// What is behind the ports.
    pub(super) fn database(&self) -> Database {
        self.database.clone()
    }
}

impl Database {
    /// Brings the schema up to date. A SQLite store does that when it is opened.
    pub(super) async fn migrate(&self) -> anyhow::Result<()> {
        match self {
            Self::Sqlite(_) => Ok(()),
            Self::Postgres(store) => store.migrate().await.context("cannot bring the schema up to date"),
        }
    }

    /// Fails unless the schema is this build's, or a newer one. A SQLite store is migrated when it is opened.
    pub(super) async fn expect_schema(&self) -> anyhow::Result<()> {
        let Self::Postgres(store) = self else { return Ok(()) };
        let missing = store.migration_status().await?.iter().filter(|migration| !migration.applied).count();
        anyhow::ensure!(missing == 0, "the schema lacks {missing} migrations: run `agent-service migrate`");
        Ok(())
    }

    /// Connections open, and how many of them are idle.
    pub(super) fn connections(&self) -> (u32, u32) {
        match self {
            Self::Sqlite(store) => store.connections(),
            Self::Postgres(store) => store.connections(),
        }
    }

    /// How long it takes now to get a connection. SQLite has a writer of its own and no pool to wait for.
    pub(super) async fn time_to_acquire(&self) -> Option<Duration> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(store) => store.time_to_acquire().await,
        }
    }

    /// Writes what is under way and closes.
    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(store) => store.close().await,
            Self::Postgres(store) => store.close().await,
        }
    }
}

/// Which migrations the database has. The server may be running.
pub(super) async fn migrations(config: &Config) -> anyhow::Result<Vec<MigrationStatus>> {
    let Some(url) = &config.database.url else {
        return Ok(SqliteStore::migration_status(&config.server.data_dir).await?);
    };
    let database = postgres(config, url, None)?;
    let migrations = database.migration_status().await.context("cannot reach the database")?;
    database.close().await;
    Ok(migrations)
}

/// The place for large content that the settings name, if they do.
pub(super) fn object_store(config: &Config) -> anyhow::Result<Option<Arc<dyn Blobs>>> {
    let Some(url) = &config.object_store.url else { return Ok(None) };
    let variables =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let blobs = store::open_blobs(url, variables, &config.server.data_dir.join("spool"));
    blobs.map(Some).context("object_store.url (OBJECT_STORE_URL)")
}

pub(super) fn postgres(config: &Config, url: &Secret, blobs: Option<Arc<dyn Blobs>>) -> anyhow::Result<PostgresStore> {
    Ok(PostgresStore::new(&PostgresOptions {
        url: url.expose().to_owned(),
        direct_url: config.database.direct_url.as_ref().map(|url| url.expose().to_owned()),
        connections_max: config.database.max_connections,
        blobs,
    })?)
}
