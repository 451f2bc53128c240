//! Rate limits in Redis: the same numbers as in memory, by Redis's clock, and a way without it.

use std::sync::Arc;

use engine::memory::MemoryRateLimits;
use engine::observer::{CacheOutcome, Observer};
use engine::port::{Clock, Rate, RateLimits};
use parking_lot::Mutex;
use session::Timestamp;
use store::testing::RedisServer;
use store::{Redis, RedisRateLimits};

/// Stands still.
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_795_000_000_000_000)
    }
}

/// What was asked of Redis.
#[derive(Default)]
pub(crate) struct Asked(pub(crate) Mutex<Vec<(&'static str, CacheOutcome)>>);

impl Observer for Asked {
    fn cache_request(&self, op: &'static str, outcome: CacheOutcome, _duration_seconds: f64) {
        self.0.lock().push((op, outcome));
    }
}

async fn counters(server: &RedisServer, asked: &Arc<Asked>) -> RedisRateLimits {
    let redis = Redis::new(server.options()).expect("the address is right");
    let counters = RedisRateLimits::start(&redis, Arc::new(Still), Arc::clone(asked) as _);
    counters.connected().await;
    counters
}

#[tokio::test]
async fn redis_counts_as_memory_does() {
    let Some(server) = RedisServer::start().await else { return };
    let asked = Arc::new(Asked::default());
    let redis = counters(&server, &asked).await;
    let memory = MemoryRateLimits::new(Arc::new(Still));
    // So slow that nothing comes back while the test runs.
    let rate = Rate::per_minute(2).expect("it is in bounds");
    for key in ["one", "other"] {
        for _ in 0..4 {
            let (there, here) = (redis.take(key, rate).await, memory.take(key, rate).await);
            assert_eq!((there.limit, there.remaining), (here.limit, here.remaining));
            assert_eq!(there.retry_after.is_some(), here.retry_after.is_some());
            // Redis's clock moves on between two requests, this one's does not.
            assert!(there.reset <= here.reset && there.retry_after <= here.retry_after, "{there:?} {here:?}");
        }
    }
    assert!(asked.0.lock().iter().all(|asked| *asked == ("rate_limit", CacheOutcome::Hit)));
    // A bucket that will be full again is forgotten then.
    assert!(!server.command(&["PTTL", "agent-service:rate:one"]).await.contains("int(-"));
}

#[tokio::test]
async fn a_bucket_fills_again() {
    let Some(server) = RedisServer::start().await else { return };
    let redis = counters(&server, &Arc::default()).await;
    let rate = Rate::per_minute(Rate::PER_MINUTE_MAX).expect("it is in bounds");
    // One comes back every 60 µs, which no round trip beats.
    for _ in 0..10 {
        assert_eq!(redis.take("key", rate).await.retry_after, None);
    }
    let slow = Rate::per_minute(600).expect("it is in bounds");
    let mut passed = 0;
    while redis.take("slow", slow).await.retry_after.is_none() {
        passed += 1;
    }
    assert!(passed >= 600, "{passed}");
    let taken = redis.take("slow", slow).await;
    tokio::time::sleep(taken.retry_after.unwrap_or_default()).await;
    assert_eq!(redis.take("slow", slow).await.retry_after, None);
}

#[tokio::test]
async fn without_redis_the_process_counts() {
    let Some(mut server) = RedisServer::start().await else { return };
    let asked = Arc::new(Asked::default());
    let redis = counters(&server, &asked).await;
    let rate = Rate::per_minute(1).expect("it is in bounds");
    assert_eq!(redis.take("key", rate).await.retry_after, None);
    server.stop();
    assert_eq!(redis.take("key", rate).await.retry_after, None, "a bucket of its own");
    assert!(redis.take("key", rate).await.retry_after.is_some());
    let outcomes: Vec<_> = asked.0.lock().iter().map(|(_, outcome)| *outcome).collect();
    assert_eq!(outcomes, [CacheOutcome::Hit, CacheOutcome::Error, CacheOutcome::Error]);
    server.start_again().await;
    redis.connected().await;
    // The new server knows nothing of what was counted before.
    assert_eq!(redis.take("key", rate).await.retry_after, None);
}
