//! The schema's history: the files of `migrations/`, which are part of the executable.
//!
//! The policy is in `migrations/README.md`. A database that is ahead of this build is not refused: what a later
//! release added, this one does not see.

use std::collections::BTreeSet;

use engine::port::StoreError;
use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator};

/// Number, name and SQL of each migration of one dialect.
pub(crate) type Files = &'static [(i64, &'static str, &'static str)];

pub(crate) const SQLITE: Files = &[
    (1, "setup", include_str!("../migrations/sqlite/0001_setup.sql")),
    (2, "files", include_str!("../migrations/sqlite/0002_files.sql")),
    (3, "workspaces", include_str!("../migrations/sqlite/0003_workspaces.sql")),
    (4, "idempotency", include_str!("../migrations/sqlite/0004_idempotency.sql")),
    (5, "tracks", include_str!("../migrations/sqlite/0005_tracks.sql")),
    (6, "resources", include_str!("../migrations/sqlite/0006_resources.sql")),
    (7, "api_keys", include_str!("../migrations/sqlite/0007_api_keys.sql")),
];
pub(crate) const POSTGRES: Files = &[
    (1, "setup", include_str!("../migrations/postgres/0001_setup.sql")),
    (2, "files", include_str!("../migrations/postgres/0002_files.sql")),
    (3, "workspaces", include_str!("../migrations/postgres/0003_workspaces.sql")),
    (4, "idempotency", include_str!("../migrations/postgres/0004_idempotency.sql")),
    (5, "tracks", include_str!("../migrations/postgres/0005_tracks.sql")),
    (6, "resources", include_str!("../migrations/postgres/0006_resources.sql")),
    (7, "api_keys", include_str!("../migrations/postgres/0007_api_keys.sql")),
];

/// The number of the last migration that this build knows.
pub fn schema_version() -> i64 {
    POSTGRES.iter().map(|(version, _, _)| *version).max().unwrap_or(0)
}

/// One migration and whether the database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationStatus {
    pub version: i64,
    pub name: &'static str,
    pub applied: bool,
}

/// What applies `files` in order, each in a transaction, under the dialect's own lock.
pub(crate) fn migrator(files: Files) -> Migrator {
    let migrations = files.iter().map(|&(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.set_ignore_missing(true);
    migrator
}

/// Which of `files` the database behind `connection` has.
pub(crate) async fn status(connection: &mut impl Migrate, files: Files) -> Result<Vec<MigrationStatus>, StoreError> {
    let migrator = migrator(files);
    connection.ensure_migrations_table(&migrator.table_name).await.map_err(failed)?;
    let applied = connection.list_applied_migrations(&migrator.table_name).await.map_err(failed)?;
    let applied: BTreeSet<i64> = applied.iter().map(|migration| migration.version).collect();
    let status =
        files.iter().map(|&(version, name, _)| MigrationStatus { version, name, applied: applied.contains(&version) });
    Ok(status.collect())
}

/// A migration that did not work, as a problem of the store.
pub(crate) fn failed(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => crate::failure::store_error(error),
        error => StoreError::Corrupt(error.to_string()),
    }
}
