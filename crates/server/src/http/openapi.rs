//! The API described as an OpenAPI 3.1 document, for `agent-service openapi`.
//!
//! [`OPERATIONS`] names every operation of [`super::router`]; the schemas are in `openapi/schemas.json`. Tests hold
//! both against the router and against what the server answers.

use serde_json::{Map, Value, json};

use self::Answer::{Bytes, Json, Page, Sse};

/// One operation: method, path, what it does, its query, its body, its answer.
struct Operation {
    method: &'static str,
    path: &'static str,
    id: &'static str,
    query: &'static [&'static str],
    /// The schema of the body; `None` for none.
    body: Option<&'static str>,
    answer: Answer,
}

/// What a success looks like.
enum Answer {
    /// One object of this schema.
    Json(&'static str),
    /// `data`, `next_page` and, for sessions, `prev_page`.
    Page(&'static str),
    /// Server-sent events.
    Sse,
    /// A file's content, of its own media type.
    Bytes,
}

const fn get(path: &'static str, id: &'static str, query: &'static [&'static str], answer: Answer) -> Operation {
    Operation { method: "get", path, id, query, body: None, answer }
}

const fn post(path: &'static str, id: &'static str, body: Option<&'static str>, answer: Answer) -> Operation {
    Operation { method: "post", path, id, query: &[], body, answer }
}

const fn delete(path: &'static str, id: &'static str, answer: Answer) -> Operation {
    Operation { method: "delete", path, id, query: &[], body: None, answer }
}

const PAGED: &[&str] = &["limit", "page"];
const RANGED: &[&str] =
    &["limit", "page", "include_archived", "created_at[gt]", "created_at[gte]", "created_at[lt]", "created_at[lte]"];
const EVENTS: &[&str] =
    &["limit", "page", "order", "types[]", "created_at[gt]", "created_at[gte]", "created_at[lt]", "created_at[lte]"];
const SESSIONS: &[&str] = &[
    "limit",
    "page",
    "order",
    "agent_id",
    "agent_version",
    "include_archived",
    "statuses[]",
    "created_at[gt]",
    "created_at[gte]",
    "created_at[lt]",
    "created_at[lte]",
];

/// The work queue's own protocol tells repeated requests by the item's state; and the primary thread is never archived.
const UNKEYED: [&str; 4] = ["acknowledge_work", "heartbeat_work", "stop_work", "archive_thread"];

const OPERATIONS: [Operation; 62] = [
    get("/health", "health", &[], Json("Health")),
    get("/ready", "ready", &[], Json("Readiness")),
    get("/v1/models", "list_models", &["limit", "after_id", "before_id", "lifecycle[]"], Json("ModelPage")),
    get("/v1/models/{model_id}", "retrieve_model", &[], Json("ModelInfo")),
    get("/v1/files", "list_files", &["limit", "page", "after_id", "before_id", "ids[]", "scope_id"], Json("FilePage")),
    post("/v1/files", "upload_file", Some("UploadFile"), Json("File")),
    get("/v1/files/{file_id}", "retrieve_file", &[], Json("File")),
    get("/v1/files/{file_id}/content", "download_file", &[], Bytes),
    delete("/v1/files/{file_id}", "delete_file", Json("Deleted")),
    get("/v1/agents", "list_agents", RANGED, Page("Agent")),
    post("/v1/agents", "create_agent", Some("CreateAgent"), Json("Agent")),
    get("/v1/agents/{agent_id}", "retrieve_agent", &["version"], Json("Agent")),
    post("/v1/agents/{agent_id}", "update_agent", Some("UpdateAgent"), Json("Agent")),
    post("/v1/agents/{agent_id}/archive", "archive_agent", None, Json("Agent")),
    get("/v1/agents/{agent_id}/versions", "list_agent_versions", PAGED, Page("Agent")),
    get("/v1/environments", "list_environments", &["limit", "page", "include_archived"], Page("Environment")),
    post("/v1/environments", "create_environment", Some("CreateEnvironment"), Json("Environment")),
    get("/v1/environments/{environment_id}", "retrieve_environment", &[], Json("Environment")),
    post("/v1/environments/{environment_id}", "update_environment", Some("UpdateEnvironment"), Json("Environment")),
    delete("/v1/environments/{environment_id}", "delete_environment", Json("Deleted")),
    post("/v1/environments/{environment_id}/archive", "archive_environment", None, Json("Environment")),
    get("/v1/environments/{environment_id}/work", "list_work", PAGED, Page("Work")),
    get(
        "/v1/environments/{environment_id}/work/poll",
        "poll_work",
        &["block_ms", "reclaim_older_than_ms"],
        Json("PolledWork"),
    ),
    get("/v1/environments/{environment_id}/work/stats", "work_stats", &[], Json("QueueStats")),
    get("/v1/environments/{environment_id}/work/{work_id}", "retrieve_work", &[], Json("Work")),
    post("/v1/environments/{environment_id}/work/{work_id}", "update_work", Some("UpdateWork"), Json("Work")),
    post("/v1/environments/{environment_id}/work/{work_id}/ack", "acknowledge_work", None, Json("Work")),
    Operation {
        query: &["desired_ttl_seconds", "expected_last_heartbeat"],
        ..post("/v1/environments/{environment_id}/work/{work_id}/heartbeat", "heartbeat_work", None, Json("Heartbeat"))
    },
    post("/v1/environments/{environment_id}/work/{work_id}/stop", "stop_work", Some("StopWork"), Json("Work")),
    get("/v1/sessions", "list_sessions", SESSIONS, Page("Session")),
    post("/v1/sessions", "create_session", Some("CreateSession"), Json("Session")),
    get("/v1/sessions/{session_id}", "retrieve_session", &[], Json("Session")),
    post("/v1/sessions/{session_id}", "update_session", Some("UpdateSession"), Json("Session")),
    delete("/v1/sessions/{session_id}", "delete_session", Json("Deleted")),
    post("/v1/sessions/{session_id}/archive", "archive_session", None, Json("Session")),
    get("/v1/sessions/{session_id}/events", "list_events", EVENTS, Page("Event")),
    post("/v1/sessions/{session_id}/events", "send_events", Some("SendEvents"), Json("SentEvents")),
    get("/v1/sessions/{session_id}/events/stream", "stream_events", &["event_deltas[]"], Sse),
    get("/v1/sessions/{session_id}/resources", "list_resources", PAGED, Page("FileResource")),
    post("/v1/sessions/{session_id}/resources", "add_resource", Some("AddResource"), Json("FileResource")),
    get("/v1/sessions/{session_id}/resources/{resource_id}", "retrieve_resource", &[], Json("FileResource")),
    post(
        "/v1/sessions/{session_id}/resources/{resource_id}",
        "update_resource",
        Some("UpdateResource"),
        Json("FileResource"),
    ),
    delete("/v1/sessions/{session_id}/resources/{resource_id}", "delete_resource", Json("Deleted")),
    get("/v1/sessions/{session_id}/threads", "list_threads", &["limit", "page", "statuses[]"], Page("Thread")),
    get("/v1/sessions/{session_id}/threads/{thread_id}", "retrieve_thread", &[], Json("Thread")),
    post("/v1/sessions/{session_id}/threads/{thread_id}/archive", "archive_thread", None, Json("Thread")),
    get("/v1/sessions/{session_id}/threads/{thread_id}/events", "list_thread_events", PAGED, Page("Event")),
    get("/v1/sessions/{session_id}/threads/{thread_id}/stream", "stream_thread", &["event_deltas[]"], Sse),
    post("/v1/internal/sessions/{session_id}/tool_starts", "start_tool", Some("StartTool"), Json("ToolStart")),
    get("/v1/internal/sessions/{session_id}/sandbox", "sandbox_settings", &[], Json("SandboxSettings")),
    post("/v1/internal/sessions/{session_id}/refusals", "count_refusals", Some("Refusals"), Json("CountedRefusals")),
    get("/v1/internal/sessions/{session_id}/workspace", "retrieve_workspace", &[], Json("Workspace")),
    Operation {
        query: &["tip", "duration_ms"],
        ..post(
            "/v1/internal/sessions/{session_id}/workspace",
            "save_workspace",
            Some("Manifest"),
            Json("SavedWorkspace"),
        )
    },
    post(
        "/v1/internal/sessions/{session_id}/workspace/restores",
        "restore_workspace",
        Some("RestoreWorkspace"),
        Json("RestoredWorkspace"),
    ),
    post(
        "/v1/internal/sessions/{session_id}/chunks/missing",
        "missing_chunks",
        Some("ChunkHashes"),
        Json("MissingChunks"),
    ),
    Operation {
        method: "put",
        ..post("/v1/internal/sessions/{session_id}/chunks/{hash}", "put_chunk", Some("ChunkBytes"), Json("Chunk"))
    },
    get("/v1/internal/sessions/{session_id}/chunks/{hash}", "get_chunk", &[], Json("ChunkBytes")),
    get("/v1/internal/sessions/{session_id}/resources", "list_mounts", &[], Json("Mounts")),
    get("/v1/internal/sessions/{session_id}/resources/{hash}", "get_mounted_content", &[], Bytes),
    get("/v1/internal/sessions/{session_id}/outputs", "list_outputs", &[], Json("Outputs")),
    Operation {
        method: "put",
        query: &["path", "hash"],
        ..post("/v1/internal/sessions/{session_id}/outputs", "put_output", Some("OutputBytes"), Json("Output"))
    },
    post("/v1/internal/workspaces/ended", "ended_workspaces", Some("Workspaces"), Json("EndedWorkspaces")),
];

/// The OpenAPI 3.1 description of every implemented route.
pub fn openapi() -> Value {
    let mut paths = Map::new();
    for operation in &OPERATIONS {
        let path = paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method] = operation.describe();
    }
    let schemas: Value = serde_json::from_str(include_str!("openapi/schemas.json")).expect("schemas.json is JSON");
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "agent-service",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Agents, sessions and their events, compatible with the Claude Managed Agents API.",
        },
        "security": [{"bearer": []}, {"api_key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "responses": {
                "Error": {
                    "description": "A refusal or a failure. `x-should-retry: false` where a retry cannot help.",
                    "headers": headers(true),
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                },
            },
            "schemas": schemas,
        },
    })
}

impl Operation {
    fn describe(&self) -> Value {
        let mut described = json!({
            "operationId": self.id,
            "tags": [self.path.split('/').nth(2).unwrap_or("probes")],
            "parameters": self.parameters(),
            "responses": {"200": self.answer.describe(), "default": {"$ref": "#/components/responses/Error"}},
        });
        if let Some(schema) = self.body {
            let media_type = if self.id == "upload_file" { "multipart/form-data" } else { "application/json" };
            let content = json!({media_type: {"schema": reference(schema)}});
            described["requestBody"] = json!({"required": self.id != "stop_work", "content": content});
        }
        if !self.path.starts_with("/v1/") {
            described["security"] = json!([]);
        }
        described
    }

    /// Whether the operation honours `Idempotency-Key`; the others refuse it.
    fn takes_key(&self) -> bool {
        self.method == "post" && !self.path.starts_with("/v1/internal/") && !UNKEYED.contains(&self.id)
    }

    fn parameters(&self) -> Vec<Value> {
        let in_path = self.path.split('/').filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'));
        let in_path =
            in_path.map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}));
        let in_query = self.query.iter().map(|name| {
            let schema = match *name {
                "limit"
                | "version"
                | "agent_version"
                | "block_ms"
                | "reclaim_older_than_ms"
                | "desired_ttl_seconds" => {
                    json!({"type": "integer", "minimum": 1})
                }
                "include_archived" => json!({"type": "boolean"}),
                "order" => json!({"enum": ["asc", "desc"]}),
                name if name.ends_with("[]") => json!({"type": "array", "items": {"type": "string"}}),
                name if name.starts_with("created_at") => json!({"type": "string", "format": "date-time"}),
                _ => json!({"type": "string"}),
            };
            json!({"name": name, "in": "query", "schema": schema})
        });
        let key = self.takes_key().then(|| {
            let schema = json!({"type": "string", "minLength": 1, "maxLength": 255});
            let description = "A request with this key has one effect within 24 hours, however often it is sent.";
            json!({"name": "Idempotency-Key", "in": "header", "schema": schema, "description": description})
        });
        in_path.chain(in_query).chain(key).collect()
    }
}

impl Answer {
    fn describe(&self) -> Value {
        let content = match self {
            Json(schema) => json!({"application/json": {"schema": reference(schema)}}),
            Page(schema) => {
                let page = json!({
                    "type": "object",
                    "required": ["data", "next_page"],
                    "properties": {
                        "data": {"type": "array", "items": reference(schema)},
                        "next_page": {"type": ["string", "null"]},
                        "prev_page": {"type": ["string", "null"], "description": "Of sessions alone."},
                    },
                });
                json!({"application/json": {"schema": page}})
            }
            Sse => json!({"text/event-stream": {"schema": {"type": "string"}}}),
            Bytes => json!({"*/*": {"schema": {"type": "string", "format": "binary"}}}),
        };
        json!({
            "description": "Done.",
            "headers": headers(false),
            "content": content,
        })
    }
}

/// The headers of every answer; those of limits are sent where the operator has set some.
fn headers(is_error: bool) -> Value {
    let mut headers = json!({
        "request-id": {"schema": {"type": "string"}},
        "anthropic-ratelimit-requests-limit": {"schema": {"type": "integer"}},
        "anthropic-ratelimit-requests-remaining": {"schema": {"type": "integer"}},
        "anthropic-ratelimit-requests-reset": {"schema": {"type": "string", "format": "date-time"}},
    });
    if is_error {
        headers["retry-after"] = json!({"schema": {"type": "integer"}, "description": "Seconds; of 429 and 503."});
    }
    headers
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Paths in the source of the router: string literals that start with a slash.
    fn routed() -> BTreeSet<String> {
        include_str!("router.rs")
            .split('"')
            .skip(1)
            .step_by(2)
            .filter(|literal| literal.starts_with('/') && !literal.contains("{family}"))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn every_route_is_described_and_nothing_else() {
        let described: BTreeSet<String> = openapi()["paths"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(described, routed());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn visit(value: &Value, document: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        let pointer = reference.strip_prefix('#').unwrap();
                        assert!(document.pointer(pointer).is_some(), "{reference}");
                    }
                    fields.values().for_each(|field| visit(field, document));
                }
                Value::Array(items) => items.iter().for_each(|item| visit(item, document)),
                _ => {}
            }
        }
        let document = openapi();
        visit(&document, &document);
    }

    #[test]
    fn operations_have_names_of_their_own() {
        let names: BTreeSet<&str> = OPERATIONS.iter().map(|operation| operation.id).collect();
        assert_eq!(names.len(), OPERATIONS.len());
    }
}
