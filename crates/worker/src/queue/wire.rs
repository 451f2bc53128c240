//! What the worker reads of the API's JSON. Fields it does not need are left out, unknown ones tolerated.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::Value;

use crate::egress::{HostPattern, Policy};
use crate::secret::Secret;

/// A work item as a poll hands it out.
#[derive(Debug, Deserialize)]
pub(crate) struct WorkItem {
    pub id: String,
    pub data: WorkData,
    secret: Option<Secret>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct WorkData {
    #[serde(rename = "type")]
    pub kind: String,
    /// The session's id, for the kind `session`.
    #[serde(default)]
    pub id: String,
}

impl WorkItem {
    /// The item's own token: `secret` is URL-safe base64, with or without padding, of a JSON object.
    pub(crate) fn sessions_token(&self) -> Option<Secret> {
        #[derive(Deserialize)]
        struct Bundle {
            sessions_token: Secret,
        }
        let secret = self.secret.as_ref()?.expose().trim_end_matches('=');
        let bundle = URL_SAFE_NO_PAD.decode(secret).ok()?;
        serde_json::from_slice::<Bundle>(&bundle).ok().map(|bundle| bundle.sessions_token)
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Heartbeat {
    pub state: String,
    /// Echoed in the next beat byte for byte.
    pub last_heartbeat: String,
    pub lease_extended: bool,
    pub ttl_seconds: f64,
}

impl Heartbeat {
    /// Whether the item is to be given up in good order.
    pub(crate) fn asks_to_stop(&self) -> bool {
        !self.lease_extended || matches!(self.state.as_str(), "stopping" | "stopped")
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Session {
    pub status: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct EventPage {
    pub data: Vec<Event>,
    pub next_page: Option<String>,
}

/// The answer to the start of a call.
#[derive(Debug, Deserialize)]
pub(crate) struct ToolStart {
    /// Changes with what the session is given; none from a server that gives nothing yet.
    pub resources_version: Option<u64>,
}

/// How the session's next sandbox is to be made.
#[derive(Debug, Deserialize)]
pub(crate) struct SandboxSettings {
    pub network: NetworkRules,
}

/// The network as the session's environment has it.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum NetworkRules {
    Unrestricted,
    Limited { allowed_hosts: Vec<String> },
}

impl NetworkRules {
    pub(crate) fn policy(&self) -> Policy {
        match self {
            Self::Unrestricted => Policy::Unrestricted,
            Self::Limited { allowed_hosts } => {
                Policy::Limited { allowed_hosts: allowed_hosts.iter().map(|host| HostPattern::new(host)).collect() }
            }
        }
    }
}

/// Deleted sessions among those that were asked about.
#[derive(Debug, Deserialize)]
pub(crate) struct EndedWorkspaces {
    pub data: Vec<String>,
}

/// An event of the session, of any type, as far as the worker cares.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Event {
    #[serde(default)]
    pub id: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// `agent.tool_use`: the tool and its input.
    pub name: Option<String>,
    pub input: Option<Value>,
    pub evaluated_permission: Option<String>,
    /// Results and confirmations: the call they belong to.
    pub tool_use_id: Option<String>,
    /// `user.tool_confirmation`: `allow` or `deny`.
    pub result: Option<Value>,
}

/// The event types that say what a worker has to do; a list asks for these alone.
pub(crate) const CALL_EVENTS: [&str; 6] = [
    "agent.tool_use",
    "agent.tool_result",
    "user.tool_result",
    "user.tool_confirmation",
    "user.interrupt",
    MODEL_REQUEST_START,
];

/// No call from before a model request is open after it, because a request needs all their results.
pub(crate) const MODEL_REQUEST_START: &str = "span.model_request_start";

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::URL_SAFE;

    #[test]
    fn the_token_is_read_with_and_without_padding() {
        let bundle = br#"{"sessions_token":"tok_1","other":{"x":1}}"#;
        for secret in [URL_SAFE.encode(bundle), URL_SAFE_NO_PAD.encode(bundle)] {
            let item = serde_json::json!({"id": "w", "data": {"type": "session", "id": "s"}, "secret": secret});
            let item: WorkItem = serde_json::from_value(item).unwrap();
            assert_eq!(item.sessions_token().unwrap().expose(), "tok_1");
            assert!(!format!("{item:?}").contains(&secret));
        }
    }

    #[test]
    fn an_item_without_a_readable_secret_has_no_token() {
        for secret in ["null", "\"%%\"", "\"e30\""] {
            let item = format!(r#"{{"id":"w","data":{{"type":"session","id":"s"}},"secret":{secret},"new":1}}"#);
            let item: WorkItem = serde_json::from_str(&item).unwrap();
            assert!(item.sessions_token().is_none(), "{secret}");
        }
    }
}
