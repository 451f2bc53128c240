//! What is reported, as metrics.

use engine::observer::{Failure, Observer as _, TurnEnd};
use server::http::HttpObserver as _;
use server::telemetry::metrics::labels::Names;
use server::telemetry::metrics::{Facts, Metrics};
use session::event::TurnOutcome;
use worker::egress::Reason;

fn metrics() -> Metrics {
    Metrics::new(&Facts { track: "stable", config_hash: "", max_connections: 2 }, Names::default())
}

#[track_caller]
fn assert_exposed(metrics: &Metrics, line: &str) {
    let (_, text) = metrics.expose("");
    assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
}

#[test]
fn a_turn_fails_in_the_class_of_what_failed_it() {
    let metrics = metrics();
    let ended = |outcome, failure| TurnEnd { agent: "any", outcome, duration_seconds: 1.0, requests: 1, failure };
    let causes = [(Failure::Model, "upstream"), (Failure::Cap, "client"), (Failure::Owners, "internal")];
    for (failure, class) in causes {
        let series = |count: u64| {
            assert_exposed(&metrics, &format!("agent_errors_total{{track=\"stable\",class=\"{class}\"}} {count}"));
        };
        series(0);
        metrics.turn_ended(&ended(TurnOutcome::Failed, Some(failure)));
        series(1);
    }
    assert_exposed(&metrics, "agent_turns_total{track=\"stable\",outcome=\"failed\"} 2");
    assert_exposed(&metrics, "agent_turns_total{track=\"stable\",outcome=\"refused\"} 1");
    metrics.turn_ended(&ended(TurnOutcome::Completed, None));
    metrics.turn_ended(&ended(TurnOutcome::Cancelled, None));
    for (_, class) in causes {
        assert_exposed(&metrics, &format!("agent_errors_total{{track=\"stable\",class=\"{class}\"}} 1"));
    }
}

#[test]
fn turns_of_agents_that_the_settings_name_are_told_apart() {
    let names = Names::default().with_agents(["reviewer".to_owned()]);
    let metrics = Metrics::new(&Facts { track: "stable", config_hash: "", max_connections: 2 }, names);
    let series = |agent: &str, count: u64| {
        let series = "gen_ai_invoke_agent_duration_seconds_count";
        let labels = format!("track=\"stable\",gen_ai_agent_name=\"{agent}\",error_type=\"\"");
        assert_exposed(&metrics, &format!("{series}{{{labels}}} {count}"));
    };
    series("reviewer", 0);
    for agent in ["reviewer", "reviewer", "somebody's"] {
        let outcome = TurnOutcome::Completed;
        metrics.turn_ended(&TurnEnd { agent, outcome, duration_seconds: 1.0, requests: 1, failure: None });
    }
    series("reviewer", 2);
    series("other", 1);
}

#[test]
fn every_reason_of_a_worker_has_a_series_and_others_share_one() {
    let metrics = metrics();
    let series = |reason: &str, count: u64| {
        assert_exposed(
            &metrics,
            &format!("agent_egress_refused_total{{track=\"stable\",reason=\"{reason}\"}} {count}"),
        );
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
