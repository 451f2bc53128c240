//! Rate limits that all replicas on one Redis share.
//!
//! One script takes a request from its bucket, by Redis's own clock and by the rule of [`Rate::take`]. While Redis does
//! not answer each replica counts for itself, from a full bucket: a limit is then kept by each of them and not by all
//! together.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use async_trait::async_trait;
use engine::Observer;
use engine::memory::MemoryRateLimits;
use engine::observer::CacheOutcome;
use engine::port::Clock;
use engine::port::rate_limits::{Rate, RateLimits, Taken};

use super::Redis;
use super::commands::Commands;

/// `KEYS[1]` holds when the bucket will be full; the arguments are the time that a request costs and the time that a
/// full bucket holds. Answers how long to wait, 0 for not at all, and when the bucket will be full from now. All times
/// are in microseconds. A bucket that is full again is forgotten.
static TAKE: LazyLock<::redis::Script> = LazyLock::new(|| {
    ::redis::Script::new(
        "local time = redis.call('TIME')
        local now = time[1] * 1000000 + time[2]
        local before = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
        local after = before + ARGV[1]
        local wait = after - ARGV[2] - now
        if wait > 0 then return {wait, before - now} end
        redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
        return {0, after - now}",
    )
});

/// Counters in Redis, and in this process while it is away.
pub struct RedisRateLimits {
    commands: Arc<Commands>,
    key_prefix: String,
    meanwhile: MemoryRateLimits,
    observer: Arc<dyn Observer>,
}

impl RedisRateLimits {
    /// Call it inside a runtime.
    pub fn start(redis: &Arc<Redis>, clock: Arc<dyn Clock>, observer: Arc<dyn Observer>) -> Self {
        Self {
            commands: redis.commands(),
            key_prefix: format!("{}:rate:", redis.options.key_prefix),
            meanwhile: MemoryRateLimits::new(clock),
            observer,
        }
    }

    /// Waits until the counters in Redis are used.
    pub async fn connected(&self) {
        self.commands.connected().await;
    }
}

#[async_trait]
impl RateLimits for RedisRateLimits {
    async fn take(&self, key: &str, rate: Rate) -> Taken {
        let started = Instant::now();
        let mut invocation = TAKE.prepare_invoke();
        invocation.key(format!("{}{key}", self.key_prefix)).arg(rate.interval_micros()).arg(rate.burst_micros());
        let counted = self.commands.ask(async |line| invocation.invoke_async::<(i64, i64)>(line).await).await;
        let outcome = if counted.is_ok() { CacheOutcome::Hit } else { CacheOutcome::Error };
        self.observer.cache_request("rate_limit", outcome, started.elapsed().as_secs_f64());
        match counted {
            Ok((wait, full_in)) => rate.taken(full_in, (wait > 0).then_some(wait)),
            Err(_) => self.meanwhile.take(key, rate).await,
        }
    }
}
