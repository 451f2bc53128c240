//! Waits between attempts: doubling up to a cap, with jitter, so that workers do not come back all at once.

use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    cap: Duration,
    attempts: u32,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, attempts: 0 }
    }

    /// What worked once starts from the shortest wait again.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Waits longer than the last time.
    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay(rand::random_range(0.5..1.0))).await;
    }

    fn next_delay(&mut self, share: f64) -> Duration {
        let doubled = self.first.saturating_mul(2u32.saturating_pow(self.attempts));
        self.attempts = self.attempts.saturating_add(1);
        doubled.min(self.cap).mul_f64(share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        let delays: Vec<u128> = (0..6).map(|_| backoff.next_delay(1.0).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 10_000]);
        backoff.attempts = u32::MAX;
        assert_eq!(backoff.next_delay(1.0), Duration::from_secs(10));
        backoff.reset();
        assert_eq!(backoff.next_delay(0.5), Duration::from_millis(250));
    }
}
