//! The bodies of session requests.
//!
//! Rules of api.md 2.3. What names an agent or an environment is resolved by the handlers.

use serde_json::Value;
use session::ClientEvent;
use session::agent::{AgentSnapshot, Tool};
use session::id::{AgentId, EnvironmentId};

use super::Service;
use super::agent_params::{self, ModelParams};
use super::error::{ApiError, Kind};
use super::event_params;
use super::fields::{self, Fields, Patch};
use super::metadata::{self, Metadata, MetadataPatch};
use super::resource_params::{self, FileParams};
use super::{path, tool_params};

const TITLE_CHARACTERS_MAX: usize = 1_024;

/// A new session.
pub(super) struct CreateSession {
    pub(super) agent: AgentReference,
    pub(super) environment_id: EnvironmentId,
    pub(super) title: Option<String>,
    pub(super) metadata: Metadata,
    pub(super) initial_events: Vec<ClientEvent>,
    pub(super) resources: Vec<FileParams>,
}

impl CreateSession {
    pub(super) fn read(mut body: Fields, service: &Service) -> Result<Self, ApiError> {
        let agent = AgentReference::read(body.required("agent")?, service)?;
        let environment_id = path::parse(&body.required_string("environment_id")?, "environment")
            .map_err(|error| if error.kind == Kind::NotFound { error.code("environment_not_found") } else { error })?;
        let title = read_title(&mut body)?.apply(None);
        let metadata = metadata::read(&mut body)?;
        let initial_events = event_params::read_initial(body.array("initial_events")?.unwrap_or_default())?;
        let resources = resource_params::read_all(body.array("resources")?.unwrap_or_default())?;
        body.unsupported("budget", "remove it; budgets do not exist yet")?;
        body.unsupported("vault_ids", "remove it; vaults do not exist yet")?;
        body.finish()?;
        Ok(Self { agent, environment_id, title, metadata, initial_events, resources })
    }
}

/// Which agent a session runs, and what it changes about it.
pub(super) struct AgentReference {
    pub(super) id: AgentId,
    /// `None` for the latest.
    pub(super) version: Option<u32>,
    overrides: Overrides,
}

#[derive(Default)]
struct Overrides {
    model: Option<ModelParams>,
    system: Option<Patch<String>>,
    tools: Option<Vec<Tool>>,
}

impl AgentReference {
    /// Reads an id, an `agent` or an `agent_with_overrides`.
    fn read(value: Value, service: &Service) -> Result<Self, ApiError> {
        if let Value::String(id) = value {
            return Ok(Self { id: path::parse(&id, "agent")?, version: None, overrides: Overrides::default() });
        }
        if !value.is_object() {
            return Err(fields::expected("agent", "an agent id or an object", &value));
        }
        let mut object = Fields::of(value, "agent")?;
        let kind = object.required_string("type")?;
        let id = path::parse(&object.required_string("id")?, "agent")?;
        let version = object.version("version")?;
        let overrides = match kind.as_str() {
            "agent" => Overrides::default(),
            "agent_with_overrides" => Overrides::read(&mut object, service)?,
            _ => return Err(ApiError::invalid("agent.type: expected agent or agent_with_overrides")),
        };
        object.finish()?;
        Ok(Self { id, version, overrides })
    }

    /// The agent as this session runs it.
    pub(super) fn apply(self, mut agent: AgentSnapshot, service: &Service) -> AgentSnapshot {
        if let Some(model) = self.overrides.model {
            agent.model = model.resolve_override(service);
        }
        if let Some(system) = self.overrides.system {
            agent.system = system.apply(agent.system);
        }
        if let Some(tools) = self.overrides.tools {
            agent.tools = tools;
        }
        agent
    }
}

impl Overrides {
    fn read(object: &mut Fields, service: &Service) -> Result<Self, ApiError> {
        let model = match object.take("model") {
            None => None,
            Some(Value::Null) => {
                return Err(ApiError::invalid("agent.model: cannot be cleared; leave it out to inherit it")
                    .code("agent_model_required"));
            }
            Some(value) => Some(ModelParams::read(value, "agent.model", service)?),
        };
        let system = Some(agent_params::read_system(object)?).filter(|patch| *patch != Patch::Keep);
        let tools = object.take("tools").map(|value| tool_params::read(value, "agent.tools")).transpose()?;
        object.unsupported("mcp_servers", "remove it; the MCP connector does not exist yet")?;
        object.unsupported("skills", "remove it; skills do not exist yet")?;
        Ok(Self { model, system, tools })
    }
}

/// What an update changes.
pub(super) struct UpdateSession {
    pub(super) title: Option<Option<String>>,
    pub(super) metadata: MetadataPatch,
    pub(super) tools: Option<Vec<Tool>>,
}

impl UpdateSession {
    pub(super) fn read(mut body: Fields) -> Result<Self, ApiError> {
        let title = match read_title(&mut body)? {
            Patch::Keep => None,
            Patch::Clear => Some(None),
            Patch::Set(title) => Some(Some(title)),
        };
        let metadata = metadata::read_patch(&mut body)?;
        let tools = match body.object("agent")? {
            None => None,
            Some(mut agent) => {
                let tools = agent.take("tools").map(|value| tool_params::read(value, "agent.tools")).transpose()?;
                agent.unsupported("mcp_servers", "remove it; the MCP connector does not exist yet")?;
                agent.finish()?;
                tools
            }
        };
        body.unsupported("budget", "remove it; budgets do not exist yet")?;
        if body.take("vault_ids").is_some() {
            return Err(ApiError::unsupported("vault_ids", "vaults cannot be attached to an existing session"));
        }
        body.finish()?;
        Ok(Self { title, metadata, tools })
    }
}

/// Reads a title; `null` clears it.
fn read_title(body: &mut Fields) -> Result<Patch<String>, ApiError> {
    let patch = body.string_patch("title")?;
    if let Patch::Set(title) = &patch {
        fields::check_length(title, "title", 0, TITLE_CHARACTERS_MAX)?;
    }
    Ok(patch)
}
