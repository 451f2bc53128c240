//! What a provider's failure means: which of the API's errors it is, whether to try again, and what may be quoted.

use engine::port::model::ModelError;
use http::StatusCode;
use http::header::HeaderMap;
use serde_json::Value;
use session::event::{ModelUsage, SessionErrorKind};

use crate::secret::Secret;

/// The most characters that are quoted of a provider's own message.
const QUOTED_CHARS_MAX: usize = 500;

/// No answer, and how far the provider had come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub error: ModelError,
    /// Whether an answer had begun: then another provider must not be asked in its place.
    pub answer_begun: bool,
}

/// A provider's own account of a failure; empty where it gives none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::model) struct ProviderError {
    /// `error.type`, such as `overloaded_error`.
    kind: String,
    /// `error.code`, such as `insufficient_quota`.
    code: String,
    message: String,
}

impl Failure {
    pub(in crate::model) fn before_answer(error: ModelError) -> Self {
        Self { error, answer_begun: false }
    }

    pub(in crate::model) fn in_answer(error: ModelError) -> Self {
        Self { error, answer_begun: true }
    }

    /// The same, with what the provider said it used.
    pub(in crate::model) fn with_usage(mut self, usage: ModelUsage) -> Self {
        self.error.usage = usage;
        self
    }
}

impl ProviderError {
    /// Reads the shapes in use: `{"error": {"type", "code", "message"}}`, `{"error": "..."}`, `{"message"}` and
    /// `{"detail"}`.
    pub(in crate::model) fn from_body(body: &Value) -> Self {
        let error = body.get("error").unwrap_or(body);
        let text = |value: Option<&Value>| match value {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let message = match error {
            Value::String(message) => message.clone(),
            _ => text(error.get("message").or_else(|| error.get("detail"))),
        };
        Self { kind: text(error.get("type")), code: text(error.get("code")), message }
    }

    /// Whether the type or the code contains one of `words`.
    fn says(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.kind.contains(word) || self.code.contains(word))
    }

    /// Out of money, which some providers report under the status of another problem.
    fn is_billing(&self) -> bool {
        self.says(&["billing", "insufficient_quota"]) || self.message.contains("credit balance is too low")
    }

    /// `": message"`, cleaned of secrets and cut short, or nothing.
    fn quoted(&self, secret: Option<&Secret>) -> String {
        if self.message.is_empty() { String::new() } else { format!(": {}", quotable(&self.message, secret)) }
    }
}

/// A failure of kind `model_request_failed_error`.
pub(in crate::model) fn request_failed(message: impl Into<String>, retryable: bool) -> ModelError {
    ModelError {
        kind: SessionErrorKind::ModelRequestFailed,
        message: message.into(),
        retryable,
        retry_after_ms: None,
        usage: ModelUsage::default(),
        is_free: false,
    }
}

/// The same, of a request that no provider has seen.
pub(in crate::model) fn request_unsent(message: impl Into<String>, retryable: bool) -> ModelError {
    ModelError { is_free: true, ..request_failed(message, retryable) }
}

/// What a response with this status means.
pub(in crate::model) fn classify(
    status: StatusCode,
    error: &ProviderError,
    retry_after_ms: Option<u64>,
    secret: Option<&Secret>,
) -> ModelError {
    let quoted = error.quoted(secret);
    let (kind, message, retryable) = match status.as_u16() {
        402 => (SessionErrorKind::Billing, billing(&quoted), false),
        400 | 403 | 429 if error.is_billing() => (SessionErrorKind::Billing, billing(&quoted), false),
        429 => (SessionErrorKind::ModelRateLimited, rate_limited(&quoted), true),
        503 | 529 => (SessionErrorKind::ModelOverloaded, overloaded(&quoted), true),
        401 | 403 => (
            SessionErrorKind::ModelRequestFailed,
            format!("the model provider refused the server's credentials ({})", status.as_u16()),
            false,
        ),
        300..=399 => (
            SessionErrorKind::ModelRequestFailed,
            format!("the model provider answered with a redirect ({}): its base URL is not right", status.as_u16()),
            false,
        ),
        code => {
            let retryable = matches!(code, 408 | 409 | 500..=599);
            let message = format!("the model provider refused the request ({code}){quoted}");
            (SessionErrorKind::ModelRequestFailed, message, retryable)
        }
    };
    // A refusal says that nothing was generated. Of a gateway's 500, 502 or 504 nobody knows what came before it.
    let is_free = matches!(status.as_u16(), 300..=499 | 503 | 529);
    ModelError { kind, message, retryable, retry_after_ms, usage: ModelUsage::default(), is_free }
}

/// What an error in the middle of an answer means; there is no status then, only the provider's words.
pub(in crate::model) fn classify_event(error: &ProviderError, secret: Option<&Secret>) -> ModelError {
    let quoted = error.quoted(secret);
    let (kind, message, retryable) = if error.is_billing() {
        (SessionErrorKind::Billing, billing(&quoted), false)
    } else if error.says(&["rate_limit", "429"]) {
        (SessionErrorKind::ModelRateLimited, rate_limited(&quoted), true)
    } else if error.says(&["overloaded", "unavailable", "503", "529"]) {
        (SessionErrorKind::ModelOverloaded, overloaded(&quoted), true)
    } else if error.says(&["authentication", "permission", "invalid_api_key"]) {
        let message = "the model provider refused the server's credentials".to_owned();
        (SessionErrorKind::ModelRequestFailed, message, false)
    } else {
        let retryable = !error.says(&["invalid_request", "not_found", "request_too_large", "400"]);
        (SessionErrorKind::ModelRequestFailed, format!("the model provider broke off its answer{quoted}"), retryable)
    };
    ModelError { kind, message, retryable, retry_after_ms: None, usage: ModelUsage::default(), is_free: false }
}

fn billing(quoted: &str) -> String {
    format!("the model provider wants its bill paid{quoted}")
}

fn rate_limited(quoted: &str) -> String {
    format!("the model provider limits the rate of requests{quoted}")
}

fn overloaded(quoted: &str) -> String {
    format!("the model provider is overloaded{quoted}")
}

/// The provider's wish in `retry-after-ms` or `retry-after`. A date instead of seconds is not read.
pub(super) fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let number = |name: &str| -> Option<f64> {
        let value: f64 = headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
        (value.is_finite() && value >= 0.0).then_some(value)
    };
    number("retry-after-ms")
        .or_else(|| number("retry-after").map(|seconds| seconds * 1000.0))
        .map(|ms| ms.ceil() as u64)
}

/// A provider's words as clients may read them: one line, short, without keys.
fn quotable(message: &str, secret: Option<&Secret>) -> String {
    let without_secret = match secret {
        Some(secret) if !secret.is_empty() => message.replace(secret.expose(), "[redacted]"),
        _ => message.to_owned(),
    };
    let words = without_secret.split_whitespace().map(|word| if looks_like_key(word) { "[redacted]" } else { word });
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(QUOTED_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// Providers quote keys back, some with the middle starred out.
fn looks_like_key(word: &str) -> bool {
    word.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).starts_with("sk-")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_has_one_meaning() {
        use SessionErrorKind::*;
        let plain = json!({"error": {"message": "no"}});
        let quota = json!({"error": {"message": "no", "type": "insufficient_quota", "code": "insufficient_quota"}});
        let credit =
            json!({"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to go on"}});
        for (status, body, kind, retryable) in [
            (429, &plain, ModelRateLimited, true),
            (429, &quota, Billing, false),
            (529, &plain, ModelOverloaded, true),
            (503, &plain, ModelOverloaded, true),
            (402, &plain, Billing, false),
            (400, &credit, Billing, false),
            (400, &plain, ModelRequestFailed, false),
            (404, &plain, ModelRequestFailed, false),
            (413, &plain, ModelRequestFailed, false),
            (422, &plain, ModelRequestFailed, false),
            (401, &plain, ModelRequestFailed, false),
            (403, &plain, ModelRequestFailed, false),
            (302, &plain, ModelRequestFailed, false),
            (408, &plain, ModelRequestFailed, true),
            (500, &plain, ModelRequestFailed, true),
            (502, &plain, ModelRequestFailed, true),
            (504, &plain, ModelRequestFailed, true),
        ] {
            let error = classify(StatusCode::from_u16(status).unwrap(), &ProviderError::from_body(body), Some(1), None);
            assert_eq!((error.kind, error.retryable), (kind, retryable), "{status} {body}");
            assert_eq!(error.retry_after_ms, Some(1));
        }
    }

    #[test]
    fn an_error_event_is_classified_by_its_type() {
        use SessionErrorKind::*;
        for (error, kind, retryable) in [
            (json!({"type": "overloaded_error", "message": "Overloaded"}), ModelOverloaded, true),
            (json!({"type": "rate_limit_error"}), ModelRateLimited, true),
            (json!({"type": "api_error"}), ModelRequestFailed, true),
            (json!({"type": "timeout_error"}), ModelRequestFailed, true),
            (json!({"type": "billing_error"}), Billing, false),
            (json!({"type": "invalid_request_error"}), ModelRequestFailed, false),
            (json!({"type": "authentication_error"}), ModelRequestFailed, false),
            (json!({"code": 503, "message": "loading model"}), ModelOverloaded, true),
            (json!({"code": 429}), ModelRateLimited, true),
            (json!({"type": "server_error"}), ModelRequestFailed, true),
            (json!("something broke"), ModelRequestFailed, true),
        ] {
            let classified = classify_event(&ProviderError::from_body(&json!({"error": error})), None);
            assert_eq!((classified.kind, classified.retryable), (kind, retryable), "{error}");
        }
    }

    #[test]
    fn every_shape_of_an_error_body_is_quoted() {
        for body in [
            json!({"type": "error", "error": {"type": "invalid_request_error", "message": "too many tools"}}),
            json!({"error": {"message": "too many tools", "code": null}}),
            json!({"error": "too many tools"}),
            json!({"detail": "too many tools"}),
            json!({"object": "error", "message": "too many tools", "code": 400}),
        ] {
            let error = classify(StatusCode::BAD_REQUEST, &ProviderError::from_body(&body), None, None);
            assert_eq!(error.message, "the model provider refused the request (400): too many tools", "{body}");
        }
    }

    #[test]
    fn secrets_and_long_texts_are_not_quoted() {
        let secret = Secret::new("key-12345");
        let body = json!({"error": {"message": format!("bad key-12345,\n (sk-ab***yz) {}", "x".repeat(900))}});
        let error = classify(StatusCode::BAD_REQUEST, &ProviderError::from_body(&body), None, Some(&secret));
        let (quoted, rest) = error.message.split_at(80);
        assert_eq!(&quoted[..75], "the model provider refused the request (400): bad [redacted], [redacted] xx");
        assert!(rest.ends_with("x…") && error.message.chars().count() < 560);
        let refused = classify(StatusCode::UNAUTHORIZED, &ProviderError::from_body(&body), None, Some(&secret));
        assert_eq!(refused.message, "the model provider refused the server's credentials (401)");
    }

    #[test]
    fn retry_after_is_read_in_both_units() {
        let headers = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            retry_after_ms(&headers)
        };
        assert_eq!(headers("retry-after", "3"), Some(3000));
        assert_eq!(headers("retry-after", "0.25"), Some(250));
        assert_eq!(headers("retry-after-ms", "120"), Some(120));
        for value in ["-1", "nan", "soon", "Mon, 23 Nov 2026 09:30:00 GMT"] {
            assert_eq!(headers("retry-after", value), None, "{value}");
        }
    }
}
