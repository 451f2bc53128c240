//! What the proxy says no to: the reasons that are counted, the log line, and the answer that a model can act on.
//!
//! A *refusal* is a decision of the proxy's and is counted. A *failure*, such as a host that does not answer, is the
//! world's, and only told.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::ext::ReasonPhrase;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why something was refused: the values of a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The operator switched the network off.
    Off,
    /// The environment does not allow the host.
    NotAllowed,
    /// The host has no address that tools may reach.
    Address,
    /// The request is none that a proxy takes.
    Malformed,
    /// The session has too many connections.
    LimitConnections,
    /// The session has moved all the bytes it may.
    LimitBytes,
    /// A connection lasted too long, or stood still for too long.
    LimitTime,
}

impl Reason {
    pub const ALL: [Self; 7] = [
        Self::Off,
        Self::NotAllowed,
        Self::Address,
        Self::Malformed,
        Self::LimitConnections,
        Self::LimitBytes,
        Self::LimitTime,
    ];

    /// The word for logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::NotAllowed => "not_allowed",
            Self::Address => "address",
            Self::Malformed => "malformed",
            Self::LimitConnections => "limit_connections",
            Self::LimitBytes => "limit_bytes",
            Self::LimitTime => "limit_time",
        }
    }
}

/// The refusals of one session, counted since they were last taken.
#[derive(Debug, Default)]
pub struct RefusalCounts([AtomicU64; Reason::ALL.len()]);

impl RefusalCounts {
    pub(super) fn count(&self, reason: Reason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted since the last time, reasons without any left out.
    pub fn take(&self) -> Vec<(Reason, u64)> {
        let taken = Reason::ALL.map(|reason| (reason, self.0[reason as usize].swap(0, Ordering::Relaxed)));
        taken.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Puts back what was taken and could not be delivered.
    pub fn put_back(&self, taken: &[(Reason, u64)]) {
        for (reason, count) in taken {
            self.0[*reason as usize].fetch_add(*count, Ordering::Relaxed);
        }
    }
}

/// Why a request goes no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Denial {
    /// None for a failure.
    pub reason: Option<Reason>,
    status: StatusCode,
    /// One line for the model: what happened and what to do.
    text: String,
}

impl Denial {
    pub(super) fn refused(reason: Reason, text: impl Into<String>) -> Self {
        let status = match reason {
            Reason::Off | Reason::NotAllowed | Reason::Address => StatusCode::FORBIDDEN,
            Reason::Malformed => StatusCode::BAD_REQUEST,
            Reason::LimitConnections | Reason::LimitBytes | Reason::LimitTime => StatusCode::TOO_MANY_REQUESTS,
        };
        Self { reason: Some(reason), status, text: text.into() }
    }

    pub(super) fn failed(status: StatusCode, text: impl Into<String>) -> Self {
        Self { reason: None, status, text: text.into() }
    }

    /// The answer. Its text is in the status line too, because that is all of a refused `CONNECT` that most clients
    /// show.
    pub(super) fn response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(format!("{}\n", self.text))));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        if let Ok(phrase) = ReasonPhrase::try_from(self.text.as_bytes()) {
            response.extensions_mut().insert(phrase);
        }
        response
    }

    /// The same answer as bytes, for a connection that is not worth a conversation.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Self { status, text, .. } = self;
        let length = text.len() + 1;
        format!(
            "HTTP/1.1 {} {text}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{text}\n",
            status.as_u16(),
        )
        .into_bytes()
    }
}

/// Writes the one line of a refusal. Of the request it holds the host and the port, and nothing else.
pub(super) fn log(session_id: &str, reason: Reason, host: &str, port: u16) {
    tracing::warn!(session_id, reason = reason.name(), host, port, "the network refused a tool");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_until_they_are_taken() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index, "{reason:?}");
        }
        let counts = RefusalCounts::default();
        counts.count(Reason::Address);
        counts.count(Reason::Address);
        counts.count(Reason::LimitTime);
        let taken = counts.take();
        assert_eq!(taken, [(Reason::Address, 2), (Reason::LimitTime, 1)]);
        assert_eq!(counts.take(), []);
        counts.count(Reason::Address);
        counts.put_back(&taken);
        assert_eq!(counts.take(), [(Reason::Address, 3), (Reason::LimitTime, 1)]);
    }
}
