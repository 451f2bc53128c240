//! What is reported, as metrics.

use server::http::HttpObserver as _;
use server::telemetry::metrics::labels::Names;
use server::telemetry::metrics::{Facts, Metrics};
use worker::egress::Reason;

#[test]
fn every_reason_of_a_worker_has_a_series_and_others_share_one() {
    let facts = Facts { track: "stable", config_hash: "", max_connections: 2 };
    let metrics = Metrics::new(&facts, Names::default());
    let series = |reason: &str, count: u64| {
        let line = format!("agent_egress_refused_total{{track=\"stable\",reason=\"{reason}\"}} {count}");
        let (_, text) = metrics.expose("");
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    };
    for reason in Reason::ALL {
        series(reason.name(), 0);
        metrics.egress_refused(reason.name(), 2);
        series(reason.name(), 2);
    }
    series("other", 0);
    metrics.egress_refused("sesn_01\"} 1\n", 3);
    series("other", 3);
}
