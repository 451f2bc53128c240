//! What the HTTP API reports, as metrics.

use std::borrow::Cow;

use super::labels::{OTHER, RouteLabels};
use super::{Metrics, REFUSAL_REASONS};
use crate::http::{ErrorClass, FinishedRequest, HttpObserver, OutputPut, Restored, Saved};

impl HttpObserver for Metrics {
    fn request_finished(&self, request: &FinishedRequest<'_>) {
        let labels = RouteLabels {
            http_request_method: method(request.method.as_str()),
            http_route: request.route.map_or(Cow::Borrowed(""), |route| Cow::Owned(route.to_owned())),
            http_response_status_code: request.status,
        };
        self.observe(&self.request_duration, &labels, request.duration.as_secs_f64());
    }

    fn error(&self, class: ErrorClass) {
        let (class, rejection) = match class {
            ErrorClass::Internal => ("internal", None),
            ErrorClass::Storage => ("storage", Some("dependency")),
            ErrorClass::Draining => ("overload", Some("draining")),
            ErrorClass::RateLimited => ("client", Some("rate_limit")),
            ErrorClass::Client => ("client", None),
        };
        Self::error(self, class);
        if let Some(reason) = rejection {
            self.rejections.get_or_create(&[("reason", reason)]).inc();
        }
    }

    fn egress_refused(&self, reason: &str, count: u64) {
        let reason = REFUSAL_REASONS.iter().find(|known| **known == reason).copied().unwrap_or(OTHER);
        self.egress_refused.get_or_create(&[("reason", reason)]).inc_by(count);
    }

    fn workspace_saved(&self, saved: &Saved) {
        let outcome = match saved {
            Saved::Kept { bytes, seconds } => {
                self.snapshot_bytes.observe(*bytes as f64);
                self.snapshot_duration.observe(*seconds);
                "kept"
            }
            Saved::Overtaken => "overtaken",
            Saved::Refused => "refused",
        };
        self.snapshots.get_or_create(&[("outcome", outcome)]).inc();
    }

    fn workspace_restored(&self, restored: Restored) {
        let outcome = match restored {
            Restored::Whole => "whole",
            Restored::Lost => "lost",
        };
        self.restores.get_or_create(&[("outcome", outcome)]).inc();
    }

    fn output_put(&self, put: OutputPut) {
        let outcome = match put {
            OutputPut::Stored => "stored",
            OutputPut::Unchanged => "unchanged",
            OutputPut::Refused => "refused",
        };
        self.outputs.get_or_create(&[("outcome", outcome)]).inc();
    }

    fn stream_opened(&self) {
        self.streams.inc();
    }

    fn stream_closed(&self) {
        self.streams.dec();
    }
}

/// The method, or what the convention has for methods that it does not name.
fn method(name: &str) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "CONNECT", "TRACE"];
    KNOWN.iter().find(|known| **known == name).copied().unwrap_or("_OTHER")
}
