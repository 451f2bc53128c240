//! What clients see of a session, in the API's shapes.

use serde_json::{Value, json};

use crate::agent::AgentSnapshot;
use crate::state::State;
use crate::time::Timestamp;

/// `session.agent`: the snapshot that the session runs.
pub fn agent(agent: &AgentSnapshot) -> Value {
    json!({
        "type": "agent",
        "id": agent.id,
        "version": agent.version,
        "name": agent.name,
        "description": agent.description,
        "system": agent.system,
        "model": agent.model,
        "tools": agent.tools,
        "mcp_servers": [],
        "skills": [],
        "multiagent": null,
        "execution_identity": {"type": "service_account"},
    })
}

/// The session object. `snapshot` is the agent at `state.agent.position`.
pub fn session(state: &State, snapshot: &AgentSnapshot, now: Timestamp) -> Value {
    json!({
        "type": "session",
        "id": state.session_id,
        "agent": agent(snapshot),
        "archived_at": state.archived_at,
        "budget": null,
        "created_at": state.created_at,
        "deployment_id": null,
        "environment_id": state.environment_id,
        "metadata": state.metadata,
        "outcome_evaluations": [],
        "resources": [],
        "stats": {
            "active_seconds": state.active_seconds(now),
            "duration_seconds": lifetime_seconds(state, now),
        },
        "status": state.status,
        "title": state.title,
        "updated_at": state.updated_at,
        "usage": state.usage_snapshot(now),
        "vault_ids": [],
    })
}

/// The primary thread, in the shape of the threads endpoints.
pub fn primary_thread(state: &State, snapshot: &AgentSnapshot, now: Timestamp) -> Value {
    let active_seconds = state.active_seconds(now);
    json!({
        "type": "session_thread",
        "id": state.thread_id,
        "session_id": state.session_id,
        "parent_thread_id": null,
        "agent": agent(snapshot),
        "archived_at": state.archived_at,
        "created_at": state.created_at,
        "updated_at": state.updated_at,
        "stats": {
            "active_seconds": active_seconds,
            "duration_seconds": lifetime_seconds(state, now),
            "startup_seconds": 0.0,
        },
        "status": state.status,
        "usage": state.usage_snapshot(now),
        "workflow_run_id": null,
    })
}

/// Seconds since creation, frozen once the session is over.
fn lifetime_seconds(state: &State, now: Timestamp) -> f64 {
    state.archived_at.unwrap_or(now).seconds_since(state.created_at)
}
