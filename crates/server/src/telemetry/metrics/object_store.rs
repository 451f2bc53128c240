//! What is asked of the object store, as metrics.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{Histograms, Metrics, OneLabel, family, histograms};

/// A family with two labels, whose values are fixed.
type TwoLabels = [(&'static str, &'static str); 2];

const OPS: [&str; 3] = ["put", "get", "delete"];
const OUTCOMES: [&str; 3] = ["success", "not_found", "error"];
const SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 40.0];

/// The series of the object store.
pub(super) struct ObjectStoreMetrics {
    requests: Family<TwoLabels, Counter>,
    duration: Histograms<OneLabel>,
    bytes: Family<OneLabel, Counter>,
}

impl ObjectStoreMetrics {
    /// All of them, at 0.
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: family(registry, "agent_object_store_requests", "Requests to the object store"),
            duration: histograms(
                registry,
                "agent_object_store_request_duration_seconds",
                "Length of requests to the object store, retries included",
                || Histogram::new(SECONDS),
            ),
            bytes: family(registry, "agent_object_store_bytes", "Content put into the object store and got from it"),
        };
        for op in OPS {
            for outcome in OUTCOMES {
                drop(metrics.requests.get_or_create(&[("op", op), ("outcome", outcome)]));
            }
            drop(metrics.duration.get_or_create(&[("op", op)]));
        }
        for op in ["put", "get"] {
            drop(metrics.bytes.get_or_create(&[("op", op)]));
        }
        metrics
    }
}

impl Metrics {
    /// A request to the object store has ended.
    pub(crate) fn object_store(&self, op: &'static str, outcome: &'static str, duration: Duration, bytes: u64) {
        let metrics = &self.object_store;
        metrics.requests.get_or_create(&[("op", op), ("outcome", outcome)]).inc();
        metrics.duration.get_or_create(&[("op", op)]).observe(duration.as_secs_f64());
        if bytes > 0 {
            metrics.bytes.get_or_create(&[("op", op)]).inc_by(bytes);
        }
    }
}
