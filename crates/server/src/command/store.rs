//! Opens the store that the settings name, for the subcommands that work on it.

use std::sync::Arc;

use anyhow::Context as _;
use engine::port::{Definitions, EventLog, Leases, WorkQueue};
use store::{MigrationStatus, SqliteStore};

use super::data_folder;
use super::system::SystemClock;
use crate::config::Config;

/// An open store, as the ports that it implements.
pub(super) struct Store {
    pub(super) log: Arc<dyn EventLog>,
    pub(super) leases: Arc<dyn Leases>,
    pub(super) work: Arc<dyn WorkQueue>,
    pub(super) definitions: Arc<dyn Definitions>,
    database: Database,
}

#[derive(Clone)]
pub(super) enum Database {
    Sqlite(Arc<SqliteStore>),
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

    /// The PostgreSQL store at `url`; its schema may be old.
    pub(super) async fn open_postgres(_config: &Config, _url: &str) -> anyhow::Result<Self> {
        anyhow::bail!("this build has no PostgreSQL: unset POSTGRES_URL")
    }

    /// For tools: whichever the settings name, beside a server that may be running.
    pub(super) async fn open_beside(config: &Config) -> anyhow::Result<Self> {
        match &config.database.url {
            Some(url) => Self::open_postgres(config, url.expose()).await.context("cannot open the database"),
            None => Self::open_sqlite_beside(config).await,
        }
    }

    fn new(database: Database) -> Self {
        match database.clone() {
            Database::Sqlite(store) => {
                Self { log: store.clone(), leases: store.clone(), work: store.clone(), definitions: store, database }
            }
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
        }
    }

    /// Connections open, and how many of them are idle.
    pub(super) fn connections(&self) -> (u32, u32) {
        match self {
            Self::Sqlite(store) => store.connections(),
        }
    }

    /// Writes what is under way and closes.
    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(store) => store.close().await,
        }
    }
}

/// Which migrations the database has. The server may be running.
pub(super) async fn migrations(config: &Config) -> anyhow::Result<Vec<MigrationStatus>> {
    Ok(SqliteStore::migration_status(&config.server.data_dir).await?)
}
