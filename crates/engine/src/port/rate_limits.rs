//! Rate limits: how many requests somebody may make, counted for all replicas together where they share a counter.
//!
//! A limit is a token bucket: as many requests at once as a minute allows, and one more each time its share of the
//! minute has passed. [`Rate::take`] is the whole rule, in the form of the generic cell rate algorithm, which keeps
//! one number for each counter: the time at which the bucket will be full again.

use std::time::Duration;

use async_trait::async_trait;

const MINUTE_MICROS: i64 = 60_000_000;

/// Requests a minute, at least one and at most [`Rate::PER_MINUTE_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    per_minute: u32,
}

/// What became of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Requests a minute.
    pub limit: u32,
    /// How many more would pass now.
    pub remaining: u32,
    /// Until as many as the limit would pass.
    pub reset: Duration,
    /// `None` when the request may pass; else how long to wait before the next one may.
    pub retry_after: Option<Duration>,
}

/// Counts requests. Counting never fails: an implementation that cannot reach its counter uses another.
#[async_trait]
pub trait RateLimits: Send + Sync + 'static {
    /// Takes one request from the bucket called `key`.
    async fn take(&self, key: &str, rate: Rate) -> Taken;
}

impl Rate {
    /// The highest rate that can be set.
    pub const PER_MINUTE_MAX: u32 = 1_000_000;

    /// `None` outside the bounds.
    pub fn per_minute(per_minute: u32) -> Option<Self> {
        (1..=Self::PER_MINUTE_MAX).contains(&per_minute).then_some(Self { per_minute })
    }

    /// Time that one request costs, in microseconds.
    pub fn interval_micros(self) -> i64 {
        MINUTE_MICROS / i64::from(self.per_minute)
    }

    /// Time that a full bucket holds, in microseconds.
    pub fn burst_micros(self) -> i64 {
        self.interval_micros() * i64::from(self.per_minute)
    }

    /// One request at `now`, from a bucket that would have been full at `full_at`: what becomes of it, and when the
    /// bucket will be full.
    pub fn take(self, full_at: i64, now: i64) -> (Taken, i64) {
        let before = full_at.max(now);
        let after = before + self.interval_micros();
        let wait = after - self.burst_micros() - now;
        if wait > 0 { (self.taken(before - now, Some(wait)), before) } else { (self.taken(after - now, None), after) }
    }

    /// What is said of a bucket that will be full in `full_in` microseconds, to somebody who has to `wait`.
    pub fn taken(self, full_in: i64, wait: Option<i64>) -> Taken {
        let span = |micros: i64| Duration::from_micros(u64::try_from(micros).unwrap_or(0));
        let remaining = (self.burst_micros() - full_in).max(0) / self.interval_micros();
        Taken {
            limit: self.per_minute,
            remaining: u32::try_from(remaining).unwrap_or(self.per_minute),
            reset: span(full_in),
            retry_after: wait.map(span),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills_again() {
        let rate = Rate::per_minute(3).unwrap();
        let mut full_at = i64::MIN;
        let mut take = |now_seconds: i64| {
            let (taken, after) = rate.take(full_at, now_seconds * 1_000_000);
            full_at = after;
            (taken.remaining, taken.retry_after.map(|wait| wait.as_secs()))
        };
        let said = [0, 0, 0, 0, 10, 20, 20, 200].map(&mut take);
        let passed = |remaining| (remaining, None);
        let expected =
            [passed(2), passed(1), passed(0), (0, Some(20)), (0, Some(10)), passed(0), (0, Some(20)), passed(2)];
        assert_eq!(said, expected);
    }

    #[test]
    fn every_rate_allows_what_it_says() {
        for per_minute in [1, 7, 60, 999, Rate::PER_MINUTE_MAX] {
            let rate = Rate::per_minute(per_minute).unwrap();
            let mut full_at = 0;
            let mut passed = 0;
            loop {
                let (taken, after) = rate.take(full_at, 0);
                full_at = after;
                if taken.retry_after.is_some() {
                    break;
                }
                passed += 1;
                assert_eq!(taken.remaining, per_minute - passed);
            }
            assert_eq!(passed, per_minute);
        }
        assert_eq!(Rate::per_minute(0), None);
        assert_eq!(Rate::per_minute(Rate::PER_MINUTE_MAX + 1), None);
    }
}
