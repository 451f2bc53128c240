//! How many series one process may have.
//!
//! Labels come from fixed sets and allow-lists, but their combinations multiply. Series that come into being while the
//! process runs are paid from a budget; what cannot be paid is not observed, and counted.

use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::Histograms;
use super::labels::Labels;

/// Series of one process at most.
const SERIES_MAX: usize = 5_000;

/// Series of one histogram: no family has more buckets, and each has a sum, a count and the bucket without end.
const HISTOGRAM_SERIES: usize = 17;

/// What is left of the series that may be.
pub(super) struct Budget {
    left: AtomicUsize,
    dropped: Counter,
}

impl Budget {
    /// Nothing may come into being before the budget is opened.
    pub(super) fn new(dropped: Counter) -> Self {
        Self { left: AtomicUsize::new(0), dropped }
    }

    /// So many series are there from the start.
    pub(super) fn open(&self, existing: usize) {
        self.left.store(SERIES_MAX.saturating_sub(existing), Ordering::Relaxed);
    }

    /// The histogram with these labels, if it is there or can be paid.
    pub(super) fn histogram<L: Labels>(&self, family: &Histograms<L>, labels: &L) -> Option<Histogram> {
        if let Some(known) = family.get(labels) {
            return Some(known.clone());
        }
        let pay = |left: usize| left.checked_sub(HISTOGRAM_SERIES);
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_err() {
            self.dropped.inc();
            return None;
        }
        Some(family.get_or_create(labels).clone())
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::family::Family;

    use super::*;

    #[test]
    fn what_is_there_goes_on_when_the_budget_is_spent() {
        let family: Histograms<[(&'static str, String); 1]> =
            Family::new_with_constructor(|| Histogram::new([1.0, 2.0]));
        let budget = Budget::new(Counter::default());
        let labels = |number: usize| [("of", number.to_string())];
        assert!(budget.histogram(&family, &labels(0)).is_none(), "it is not open yet");
        budget.open(SERIES_MAX - 3 * HISTOGRAM_SERIES);
        let made = (0..10).filter(|number| budget.histogram(&family, &labels(*number)).is_some()).count();
        assert_eq!((made, budget.dropped.get()), (3, 8));
        assert!(budget.histogram(&family, &labels(2)).is_some() && budget.histogram(&family, &labels(3)).is_none());
    }
}
