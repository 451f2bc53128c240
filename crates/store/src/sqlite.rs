//! The record of one process: a SQLite file in the data folder.
//!
//! One connection writes ([`writer`]), and commits together what comes at the same time; a few connections read.
//! The file is in WAL mode with full synchronisation: what was acknowledged is on the disk. A lock on the folder
//! keeps a second process out, which is why every owner of an earlier start is known to be dead.

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
mod work_queue;
mod writer;

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::blobs::Announced;
use engine::port::{Blobs, Clock, StoreError};
use parking_lot::Mutex;
use session::id::ReplicaId;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Sqlite};

use crate::blobs::FolderBlobs;
use crate::body::Bodies;
use crate::connections::Connections;
use crate::failure::store_error;
use crate::migration::{self, MigrationStatus};
use writer::Writer;

/// How many connections read at the same time.
const READERS: u32 = 4;

/// A store in a folder of its own. Times are those of the clock it was opened with.
pub struct SqliteStore {
    writer: Writer,
    readers: Connections<Sqlite>,
    bodies: Bodies,
    clock: Arc<dyn Clock>,
    /// Replicas that registered since the folder was opened. Every other owner is dead.
    living: Mutex<BTreeSet<ReplicaId>>,
    registry: Arc<blobs::Registry>,
    /// The lock on the folder, which the system frees with the process; `None` beside the process that has it.
    _folder_lock: Option<File>,
}

/// Why a data folder could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the data folder {0} is in use by another process")]
    InUse(PathBuf),
    #[error("the data folder {folder} cannot be used: {error}")]
    Folder { folder: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl SqliteStore {
    /// Opens the store in `folder`, which is made if it is not there, and migrates it.
    pub async fn open(folder: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Folder { folder: folder.to_owned(), error };
        fs::create_dir_all(folder).map_err(failed)?;
        let folder_lock = lock(folder)?;
        Self::open_with(folder, clock, Some(folder_lock)).await
    }

    /// Opens the store for a tool that looks things up or changes definitions, beside a process that may have the
    /// folder open. Nothing that claims or drives sessions may use it.
    pub async fn open_beside(folder: &Path, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        Self::open_with(folder, clock, None).await
    }

    async fn open_with(folder: &Path, clock: Arc<dyn Clock>, folder_lock: Option<File>) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Folder { folder: folder.to_owned(), error };
        let bytes: Arc<dyn Blobs> = Arc::new(FolderBlobs::open(&folder.join("blobs")).map_err(failed)?);

        let file = options(folder);
        let mut connection = file.connect().await.map_err(store_error)?;
        migration::migrator(migration::SQLITE).run(&mut connection).await.map_err(migration::failed)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .connect_lazy_with(file.pragma("query_only", "on"));
        let writer = Writer::start(connection);
        let registry = blobs::Registry { writer: writer.clone(), bytes: Arc::clone(&bytes), clock: Arc::clone(&clock) };
        let registry = Arc::new(registry);
        Ok(Self {
            writer,
            readers: Connections::new(readers),
            bodies: Bodies::new(Some(Arc::new(Announced::new(Arc::clone(&registry) as _, bytes)))),
            registry,
            clock,
            living: Mutex::default(),
            _folder_lock: folder_lock,
        })
    }

    /// Which migrations the file in `folder` has. The folder may be in use.
    pub async fn migration_status(folder: &Path) -> Result<Vec<MigrationStatus>, StoreError> {
        if !folder.join(FILE).exists() {
            let files = migration::SQLITE.iter();
            return Ok(files.map(|&(version, name, _)| MigrationStatus { version, name, applied: false }).collect());
        }
        let mut connection = options(folder).connect().await.map_err(store_error)?;
        let status = migration::status(&mut connection, migration::SQLITE).await?;
        connection.close().await.map_err(store_error)?;
        Ok(status)
    }

    /// The blobs of its folder, announced before they are put.
    pub fn blobs(&self) -> Option<Arc<dyn Blobs>> {
        self.bodies.blobs().cloned()
    }

    /// Connections open, and how many of them are idle.
    pub fn connections(&self) -> (u32, u32) {
        let (open, idle) = self.readers.count();
        (open + 1, u32::try_from(idle).unwrap_or(u32::MAX))
    }

    /// Asks the file for a sign of life.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1 FROM sessions LIMIT 1").fetch_optional(&self.readers).await.map_err(store_error)?;
        Ok(())
    }

    /// Writes what is under way and closes the file. Later calls are [`StoreError::Unavailable`].
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    fn now(&self) -> i64 {
        self.clock.now().as_micros()
    }
}

const FILE: &str = "agent-service.sqlite";

fn options(folder: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(folder.join(FILE))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(std::time::Duration::from_secs(5))
        .foreign_keys(false)
        .disable_statement_logging()
}

fn lock(folder: &Path) -> Result<File, OpenError> {
    let failed = |error| OpenError::Folder { folder: folder.to_owned(), error };
    let path = folder.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse(folder.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// What a writing job gets to work with, inside its transaction.
type Connection = SqliteConnection;
