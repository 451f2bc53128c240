//! What this replica shares with the others beside the database: through Redis where it is configured, not at all
//! otherwise.

use std::sync::Arc;

use anyhow::Context as _;
use engine::Observer;
use engine::memory::{LocalBell, MemoryRateLimits};
use engine::port::{Bell, Entropy as _, RateLimits};
use store::{Redis, RedisBell, RedisOptions, RedisRateLimits};

use crate::command::system::{SystemClock, SystemEntropy};
use crate::config::{Config, RedisSection};
use crate::http::RequestLimits;

/// The Redis that the settings name. It is not looked at yet, and need not be there.
pub(in crate::command) fn open(section: &RedisSection) -> anyhow::Result<Option<Arc<Redis>>> {
    let Some(url) = &section.url else { return Ok(None) };
    let options = RedisOptions {
        url: url.expose().to_owned(),
        key_prefix: section.key_prefix.clone(),
        timeout: section.timeout.get(),
        answer_timeout: section.answer_timeout.get(),
    };
    Redis::new(options).context("redis.url").map(Some)
}

/// The limits of requests that the settings name, if any.
pub(super) fn request_limits(
    config: &Config,
    redis: Option<&Arc<Redis>>,
    observer: Arc<dyn Observer>,
) -> Option<RequestLimits> {
    let (create, read) = config.limits.requests_per_minute.rates();
    create.or(read)?;
    let clock = Arc::new(SystemClock);
    let counters: Arc<dyn RateLimits> = match redis {
        Some(redis) => Arc::new(RedisRateLimits::start(redis, clock, observer)),
        None => Arc::new(MemoryRateLimits::new(clock)),
    };
    Some(RequestLimits { counters, create, read })
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
