//! Where sessions, definitions, the work queue and files are kept: SQLite for one process, PostgreSQL for many; and
//! Redis, by which many hear of each other at once.
//!
//! [`SqliteStore`] and [`PostgresStore`] implement the ports of `engine::port` that need a database, and only they
//! name sqlx. Both pass the suite of `engine::contract`, and [`RedisBell`] the bell's part of it. What is large lies
//! beside them, in a folder or in object storage ([`blobs`]). What they share is here: [`row`] between the types of
//! the ports and columns, [`body`] for the content of records, [`connections`] between one statement and the next,
//! [`failure`] for what a database says, [`migration`] for the schema. SQL stands in each dialect's own folder, one file
//! a port, readable as it is sent.
//!
//! What happens in a session is decided by the crate `session`; when to claim and what to do next, by `engine`.

mod blobs;
mod body;
mod connections;
mod failure;
mod fold;
mod migration;
mod postgres;
mod redis;
mod references;
mod row;
mod sqlite;
#[cfg(feature = "testing")]
pub mod testing;
mod work;

pub use blobs::{BlobsError, FolderBlobs, ObjectBlobs, open_blobs};
pub use migration::{MigrationStatus, schema_version};
pub use postgres::{PostgresOptions, PostgresStore};
pub use redis::{
    CachedDefinitions, Presence, Redis, RedisAddressError, RedisBell, RedisError, RedisOptions, RedisRateLimits,
};
pub use sqlite::{OpenError, SqliteStore};
