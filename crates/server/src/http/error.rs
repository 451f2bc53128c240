//! The one error of the HTTP API: one enum, one match to a status, one envelope.
//!
//! An error has two texts: `message` is for the client, `cause` for the log. Handlers return [`ApiError`];
//! [`super::context`] renders it, because only there is the request id known.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::port::definitions::DefinitionError;
use engine::port::{KeepError, KeyUsed, StoreError};
use engine::sessions::CommandError;
use serde_json::{Map, Value, json};
use session::Refusal;

/// When to ask again whether another session has gone idle, in seconds: turns take seconds to minutes.
const RUNNING_RETRY_SECONDS: u32 = 5;

/// What went wrong, as far as status and retries go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request is wrong.
    Invalid,
    /// No credential, or an unknown one.
    Unauthenticated,
    /// The credential does not open this.
    Forbidden,
    /// There is no such resource or path.
    NotFound,
    /// The path knows other methods only.
    MethodNotAllowed,
    /// The request contradicts what already happened; sending it again will not help.
    Conflict,
    /// A heartbeat named another predecessor.
    PreconditionFailed,
    /// The body is too large.
    TooLarge,
    /// The credential asks too often.
    RateLimited,
    /// A known part of the API that this server does not have.
    NotImplemented,
    /// Something this server needs does not answer just now.
    Unavailable,
    /// This replica is about to leave; another one does it.
    Draining,
    /// A fault of the server.
    Internal,
}

impl Kind {
    fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::NotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Unavailable | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The API's `error.type`.
    fn name(self) -> &'static str {
        match self {
            Self::Invalid | Self::MethodNotAllowed | Self::PreconditionFailed => "invalid_request_error",
            Self::Unauthenticated => "authentication_error",
            Self::Forbidden => "permission_error",
            Self::NotFound => "not_found_error",
            Self::Conflict => "conflict_error",
            Self::TooLarge => "request_too_large",
            Self::RateLimited => "rate_limit_error",
            Self::NotImplemented | Self::Unavailable | Self::Draining | Self::Internal => "api_error",
        }
    }

    /// The kind of a status that something other than a handler chose.
    fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthenticated,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge,
            status if status.is_client_error() => Self::Invalid,
            _ => Self::Internal,
        }
    }
}

/// A refusal or a failure, complete but for the request id.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    pub(super) kind: Kind,
    /// For the client: names the field or the id, says what was expected and what to do.
    pub(super) message: String,
    /// `error.details`; holds `error_code` where there is one.
    details: Map<String, Value>,
    /// For the log alone.
    pub(super) cause: Option<String>,
    retry_after_seconds: Option<u32>,
}

impl ApiError {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), details: Map::new(), cause: None, retry_after_seconds: None }
    }

    /// The request is wrong: 400.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// `field` asks for something that this server does not do: 400.
    pub(super) fn unsupported(field: &str, hint: &str) -> Self {
        Self::invalid(format!("{field}: not implemented by this server; {hint}"))
    }

    /// The resource does not exist, or is none of the caller's business: 404.
    pub(super) fn not_found(what: &str, id: &str) -> Self {
        let id: String = id.chars().take(128).collect();
        Self::new(Kind::NotFound, format!("{what} {id:?} does not exist"))
    }

    /// 404 for an environment, with the code that clients match.
    pub(super) fn environment_not_found(id: &str) -> Self {
        Self::not_found("environment", id).code("environment_not_found")
    }

    /// A part of the API that this server does not have as it is configured; the text names the setting: 501.
    pub(super) fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(Kind::NotImplemented, message)
    }

    /// The credential does not open this: 403.
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(Kind::Forbidden, message)
    }

    /// Not to be retried: 409.
    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, message)
    }

    /// 409 for a write under a token that is no longer its item's.
    pub(super) fn token_ended() -> Self {
        Self::conflict("the token of this work item has ended: the lease ran out, or the item was stopped")
    }

    /// A fault of the server; `cause` goes to the log.
    pub(super) fn internal(cause: impl Into<String>) -> Self {
        let mut error = Self::new(Kind::Internal, "internal server error");
        error.cause = Some(cause.into());
        error
    }

    /// Trying again shortly is right: 503.
    pub(super) fn unavailable(message: impl Into<String>, cause: impl Into<String>) -> Self {
        let mut error = Self::new(Kind::Unavailable, message);
        error.cause = Some(cause.into());
        error.retry_after_seconds = Some(1);
        error
    }

    /// Trying again shortly is right, and meets another replica: 503.
    pub(super) fn draining(message: impl Into<String>) -> Self {
        let mut error = Self::new(Kind::Draining, message);
        error.retry_after_seconds = Some(1);
        error
    }

    /// Says in how many seconds trying again is right.
    pub(super) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// Adds the stable `error_code`.
    pub(super) fn code(self, code: &str) -> Self {
        self.detail("error_code", json!(code))
    }

    /// Adds to `error.details`.
    pub(super) fn detail(mut self, name: &str, value: Value) -> Self {
        self.details.insert(name.to_owned(), value);
        self
    }

    /// The error behind a response that no handler of ours made, such as the router's own rejections.
    pub(super) fn of_status(status: StatusCode) -> Self {
        let kind = Kind::of_status(status);
        let message = status.canonical_reason().unwrap_or("the request was refused").to_lowercase();
        let mut error = Self::new(kind, message);
        if kind == Kind::Internal {
            error.cause = Some(format!("a response of status {status} without an error"));
        }
        error
    }

    /// The HTTP response of this error.
    pub(super) fn render(&self, request_id: &str) -> Response {
        let mut error = json!({"type": self.kind.name(), "message": self.message});
        if !self.details.is_empty() {
            error["details"] = Value::Object(self.details.clone());
        }
        let body = json!({"type": "error", "error": error, "request_id": request_id});
        let mut response = (self.kind.status(), axum::Json(body)).into_response();
        let headers = response.headers_mut();
        if matches!(self.kind, Kind::Conflict | Kind::NotImplemented) {
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Carries the error to [`super::context`], which renders it.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.kind.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => {
                Self::unavailable("the server's store does not answer; try again shortly", error.to_string())
            }
            StoreError::Corrupt(_) => Self::internal(error.to_string()),
        }
    }
}

/// Seen by clients only where the answer is gone by the time it is looked up; in general it is replayed.
impl From<KeyUsed> for ApiError {
    fn from(used: KeyUsed) -> Self {
        Self::unavailable(
            "Idempotency-Key: another request under this key was first; try again shortly",
            used.to_string(),
        )
    }
}

impl From<KeepError> for ApiError {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::KeyUsed(used) => used.into(),
            KeepError::Store(error) => error.into(),
        }
    }
}

/// What remains when a handler has dealt with the variants that mean something special to it.
impl From<DefinitionError> for ApiError {
    fn from(error: DefinitionError) -> Self {
        match error {
            DefinitionError::Store(error) => error.into(),
            DefinitionError::KeyUsed(used) => used.into(),
            DefinitionError::NotFound => Self::new(Kind::NotFound, error.to_string()),
            DefinitionError::Conflict | DefinitionError::NameTaken | DefinitionError::InUse => {
                Self::conflict(error.to_string())
            }
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid { message, code: Some(code) } => Self::invalid(message).code(code),
            Refusal::Invalid { message, code: None } => Self::invalid(message),
            Refusal::Conflict { message } => Self::conflict(message),
            Refusal::Gone(session_id) => Self::not_found("session", session_id.as_str()),
            Refusal::Overtaken => Self::internal("a client's command was refused as overtaken"),
        }
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::NotFound(session_id) => Self::not_found("session", session_id.as_str()),
            CommandError::Refused(refusal) => refusal.into(),
            CommandError::TokenEnded => Self::token_ended(),
            CommandError::KeyUsed(used) => used.into(),
            CommandError::Busy(_) => Self::unavailable(
                "the session is changing too quickly; try again shortly",
                "conflicts outlasted retries",
            ),
            CommandError::TooManyRunning(max) => Self::new(
                Kind::RateLimited,
                format!(
                    "the session's API key has {max} sessions running, as many as it may (limits.concurrent_sessions of \
                     the server): wait until one of them is idle, or interrupt one, and send this again"
                ),
            )
            .retry_after(RUNNING_RETRY_SECONDS),
            CommandError::Store(error) => error.into(),
        }
    }
}
