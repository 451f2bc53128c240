//! What connects this replica with the others: Redis where it is configured, nothing but the database otherwise.

use std::sync::Arc;

use anyhow::Context as _;
use engine::memory::LocalBell;
use engine::port::{Bell, Entropy as _};
use store::{Redis, RedisBell, RedisOptions};

use crate::command::system::SystemEntropy;
use crate::config::{Config, RedisSection};

/// The Redis that the settings name. It is not looked at yet, and need not be there.
pub(in crate::command) fn open(section: &RedisSection) -> anyhow::Result<Option<Arc<Redis>>> {
    let Some(url) = &section.url else { return Ok(None) };
    let options = RedisOptions {
        url: url.expose().to_owned(),
        key_prefix: section.key_prefix.clone(),
        timeout: section.timeout.get(),
    };
    Redis::new(options).context("redis.url").map(Some)
}

/// The bell of this process.
pub(super) fn bell(config: &Config, redis: Option<&Arc<Redis>>) -> Arc<dyn Bell> {
    match redis {
        Some(redis) => Arc::new(RedisBell::start(redis, SystemEntropy.draw())),
        // A SQLite database has one process.
        None if config.database.url.is_none() => Arc::new(LocalBell::new()),
        None => {
            tracing::info!("redis.url is not set: if there are other replicas, they are heard through the database");
            Arc::new(LocalBell::among_others())
        }
    }
}
