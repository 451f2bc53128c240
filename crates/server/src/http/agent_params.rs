//! The bodies of agent requests: validated and normalised.
//!
//! Rules of api.md 2.1. What sessions may override goes through the same readers.

use serde_json::Value;
use session::agent::{Effort, ModelConfig, Speed, Tool};

use super::Service;
use super::error::ApiError;
use super::fields::{self, Fields, Patch};
use super::metadata::{self, Metadata, MetadataPatch};
use super::tool_params;

const NAME_CHARACTERS_MAX: usize = 256;
const DESCRIPTION_CHARACTERS_MAX: usize = 2_048;
const SYSTEM_CHARACTERS_MAX: usize = 100_000;
const MODEL_ID_CHARACTERS_MAX: usize = 256;

/// A new agent, complete but for id and times.
pub(super) struct CreateAgent {
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) system: Option<String>,
    pub(super) model: ModelConfig,
    pub(super) tools: Vec<Tool>,
    pub(super) metadata: Metadata,
}

impl CreateAgent {
    pub(super) fn read(mut body: Fields, service: &Service) -> Result<Self, ApiError> {
        let name = body.required_string("name")?;
        fields::check_length(&name, "name", 1, NAME_CHARACTERS_MAX)?;
        let model_path = body.at("model");
        let model = ModelParams::read(body.required("model")?, &model_path, service)?;
        let description = read_description(&mut body)?.apply(None);
        let system = read_system(&mut body)?.apply(None);
        let tools = body.take("tools").map_or(Ok(Vec::new()), |value| tool_params::read(value, "tools"))?;
        let metadata = metadata::read(&mut body)?;
        refuse_unsupported(&mut body)?;
        body.finish()?;
        Ok(Self { name, description, system, model: model.resolve(None, service), tools, metadata })
    }
}

/// What an update changes.
pub(super) struct UpdateAgent {
    /// The version that the client saw.
    pub(super) version: Option<u32>,
    pub(super) name: Option<String>,
    pub(super) description: Patch<String>,
    pub(super) system: Patch<String>,
    pub(super) model: Option<ModelParams>,
    pub(super) tools: Option<Vec<Tool>>,
    pub(super) metadata: MetadataPatch,
}

impl UpdateAgent {
    pub(super) fn read(mut body: Fields, service: &Service) -> Result<Self, ApiError> {
        let version = body.version("version")?;
        let name = read_uncleared(&mut body, "name")?.map(|value| fields::string(value, "name")).transpose()?;
        if let Some(name) = &name {
            fields::check_length(name, "name", 1, NAME_CHARACTERS_MAX)?;
        }
        let model =
            read_uncleared(&mut body, "model")?.map(|value| ModelParams::read(value, "model", service)).transpose()?;
        let description = read_description(&mut body)?;
        let system = read_system(&mut body)?;
        let tools = body.take("tools").map(|value| tool_params::read(value, "tools")).transpose()?;
        let metadata = metadata::read_patch(&mut body)?;
        refuse_unsupported(&mut body)?;
        body.finish()?;
        Ok(Self { version, name, description, system, model, tools, metadata })
    }
}

/// A model as clients name it; what they left out is resolved later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelParams {
    id: String,
    effort: Option<Effort>,
    speed: Speed,
    inference_geo: Option<String>,
}

impl ModelParams {
    /// Reads an id, or an object with `id`, `effort`, `speed` and `inference_geo`.
    pub(super) fn read(value: Value, path: &str, service: &Service) -> Result<Self, ApiError> {
        let (params, id_path) = match value {
            Value::String(id) => {
                (Self { id, effort: None, speed: Speed::Standard, inference_geo: None }, path.to_owned())
            }
            Value::Object(_) => (Self::read_object(Fields::of(value, path)?, service)?, fields::join(path, "id")),
            other => return Err(fields::expected(path, "a model id or an object with an id", &other)),
        };
        fields::check_length(&params.id, &id_path, 1, MODEL_ID_CHARACTERS_MAX)?;
        service.models.check(&params.id).map_err(|problem| ApiError::invalid(format!("{id_path}: {problem}")))?;
        if !service.models.offers_speed(&params.id, params.speed) {
            return Err(ApiError::invalid(format!("{path}.speed: {} cannot be run at this speed", params.id)));
        }
        Ok(params)
    }

    fn read_object(mut object: Fields, _service: &Service) -> Result<Self, ApiError> {
        let id = object.required_string("id")?;
        let effort = read_effort(&mut object)?;
        let speed = match object.string("speed")?.as_deref() {
            None | Some("standard") => Speed::Standard,
            Some("fast") => Speed::Fast,
            Some(_) => return Err(ApiError::invalid(format!("{}: expected standard or fast", object.at("speed")))),
        };
        let inference_geo = object.string("inference_geo")?;
        if let Some(geo) = &inference_geo {
            fields::check_length(geo, &object.at("inference_geo"), 1, 64)?;
        }
        object.finish()?;
        Ok(Self { id, effort, speed, inference_geo })
    }

    /// The whole configuration. An effort left out stays that of `current` while the model stays the same.
    pub(super) fn resolve(self, current: Option<&ModelConfig>, service: &Service) -> ModelConfig {
        let kept = current.filter(|current| current.id == self.id).map(|current| current.effort);
        let effort = self.effort.or(kept).unwrap_or_else(|| service.models.default_effort(&self.id));
        ModelConfig { effort, speed: self.speed, inference_geo: self.inference_geo, id: self.id }
    }

    /// The configuration of a session's override, where an effort is not heeded.
    pub(super) fn resolve_override(self, service: &Service) -> ModelConfig {
        Self { effort: None, ..self }.resolve(None, service)
    }
}

fn read_effort(object: &mut Fields) -> Result<Option<Effort>, ApiError> {
    let path = object.at("effort");
    let level = match object.given("effort") {
        None => return Ok(None),
        Some(Value::String(level)) => level,
        Some(value) => {
            let mut effort = Fields::of(value, path.as_str())?;
            let level = effort.required_string("type")?;
            effort.finish()?;
            level
        }
    };
    match level.as_str() {
        "low" => Ok(Some(Effort::Low)),
        "medium" => Ok(Some(Effort::Medium)),
        "high" => Ok(Some(Effort::High)),
        "xhigh" => Ok(Some(Effort::Xhigh)),
        "max" => Ok(Some(Effort::Max)),
        _ => Err(ApiError::invalid(format!("{path}: expected low, medium, high, xhigh or max"))),
    }
}

fn read_description(body: &mut Fields) -> Result<Patch<String>, ApiError> {
    read_text(body, "description", DESCRIPTION_CHARACTERS_MAX)
}

/// Reads a system prompt, also that of a session's override.
pub(super) fn read_system(body: &mut Fields) -> Result<Patch<String>, ApiError> {
    read_text(body, "system", SYSTEM_CHARACTERS_MAX)
}

/// Reads a text that `null` and the empty string clear.
fn read_text(body: &mut Fields, name: &'static str, max: usize) -> Result<Patch<String>, ApiError> {
    let patch = body.string_patch(name)?;
    match patch {
        Patch::Set(text) if text.is_empty() => Ok(Patch::Clear),
        Patch::Set(text) => {
            fields::check_length(&text, &body.at(name), 1, max)?;
            Ok(Patch::Set(text))
        }
        other => Ok(other),
    }
}

/// Reads a field that may be left out, but not cleared.
fn read_uncleared(body: &mut Fields, name: &'static str) -> Result<Option<Value>, ApiError> {
    match body.take(name) {
        Some(Value::Null) => Err(ApiError::invalid(format!("{name}: cannot be cleared; leave it out to keep it"))),
        other => Ok(other),
    }
}

/// Fields of the API that no agent here can have.
fn refuse_unsupported(body: &mut Fields) -> Result<(), ApiError> {
    body.unsupported("mcp_servers", "remove it; the MCP connector does not exist yet")?;
    body.unsupported("skills", "remove it; skills do not exist yet")?;
    body.unsupported("multiagent", "remove it; agents work alone for now")?;
    if let Some(mut identity) = body.object("execution_identity")? {
        let kind = identity.required_string("type")?;
        if kind != "service_account" {
            return Err(ApiError::unsupported(&identity.at("type"), "expected service_account, the default"));
        }
        identity.finish()?;
    }
    Ok(())
}
