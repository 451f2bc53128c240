//! The `tools` of an agent: validated, and with every default filled in.

use serde_json::{Map, Value};
use session::agent::{PermissionPolicy, Tool, ToolConfig, ToolDefaults};
use session::toolset;

use super::error::ApiError;
use super::fields::{self, Fields};

const TOOLSET: &str = "agent_toolset_20260401";
const ENTRIES_MAX: usize = 128;
const TOOLS_MAX: usize = 256;
const DESCRIPTION_CHARACTERS_MAX: usize = 16_384;
const SCHEMA_BYTES_MAX: usize = 65_536;

/// Reads `tools`; `null` and `[]` clear.
pub(super) fn read(value: Value, path: &str) -> Result<Vec<Tool>, ApiError> {
    let items = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(items) => items,
        other => return Err(fields::expected(path, "an array", &other)),
    };
    if items.len() > ENTRIES_MAX {
        return Err(ApiError::invalid(format!("{path}: {} entries; at most {ENTRIES_MAX} are allowed", items.len())));
    }
    let mut tools = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        tools.push(read_one(item, format!("{path}[{index}]"))?);
    }
    check_together(&tools, path)?;
    Ok(tools)
}

fn read_one(item: Value, path: String) -> Result<Tool, ApiError> {
    let mut entry = Fields::of(item, path)?;
    match entry.required_string("type")?.as_str() {
        TOOLSET => read_toolset(entry),
        "custom" => read_custom(entry),
        "mcp_toolset" => Err(ApiError::unsupported(
            &entry.at("type"),
            "mcp_toolset needs the MCP connector, which does not exist yet; use a custom tool instead",
        )),
        other => {
            let other: String = other.chars().take(64).collect();
            Err(ApiError::invalid(format!("{}: expected {TOOLSET} or custom, got {other:?}", entry.at("type"))))
        }
    }
}

fn read_toolset(mut entry: Fields) -> Result<Tool, ApiError> {
    let default_config = match entry.object("default_config")? {
        Some(defaults) => read_defaults(defaults)?,
        None => ToolDefaults { enabled: true, permission_policy: PermissionPolicy::AlwaysAllow },
    };
    let path = entry.at("configs");
    let mut configs: Vec<ToolConfig> = Vec::new();
    for (index, item) in entry.array("configs")?.unwrap_or_default().into_iter().enumerate() {
        let config = read_config(Fields::of(item, format!("{path}[{index}]"))?, default_config)?;
        if configs.iter().any(|other| other.name == config.name) {
            return Err(ApiError::invalid(format!("{path}[{index}].name: {} is configured twice", config.name)));
        }
        configs.push(config);
    }
    entry.finish()?;
    Ok(Tool::Toolset { default_config, configs })
}

fn read_defaults(mut defaults: Fields) -> Result<ToolDefaults, ApiError> {
    let enabled = defaults.boolean("enabled")?.unwrap_or(true);
    let permission_policy = read_policy(&mut defaults)?.unwrap_or(PermissionPolicy::AlwaysAllow);
    defaults.finish()?;
    Ok(ToolDefaults { enabled, permission_policy })
}

fn read_config(mut config: Fields, defaults: ToolDefaults) -> Result<ToolConfig, ApiError> {
    let name = config.required_string("name")?;
    let path = config.at("name");
    let offered = toolset::NAMES.contains(&name.as_str());
    let enabled = config.boolean("enabled")?;
    if toolset::NOT_OFFERED.contains(&name.as_str()) {
        // To switch off a tool that does not exist is to get what one asked for.
        if enabled != Some(false) {
            return Err(ApiError::unsupported(
                &path,
                &format!("{name} does not exist yet; remove the entry, or set its enabled to false"),
            ));
        }
        for option in ["allowed_domains", "blocked_domains", "max_content_tokens", "url_sources", "user_location"] {
            config.ignore(option);
        }
    } else if !offered {
        let shown: String = name.chars().take(64).collect();
        return Err(ApiError::invalid(format!("{path}: expected one of {}, got {shown:?}", toolset::NAMES.join(", "))));
    }
    if let Some(kind) = config.string("type")?
        && kind != name
    {
        return Err(ApiError::invalid(format!("{}: expected {name:?}, the entry's name", config.at("type"))));
    }
    let permission_policy = read_policy(&mut config)?.unwrap_or(defaults.permission_policy);
    config.finish()?;
    let enabled = enabled.unwrap_or(defaults.enabled);
    Ok(ToolConfig { kind: name.clone(), name, enabled, permission_policy })
}

fn read_policy(owner: &mut Fields) -> Result<Option<PermissionPolicy>, ApiError> {
    let Some(mut policy) = owner.object("permission_policy")? else { return Ok(None) };
    let kind = policy.required_string("type")?;
    let path = policy.at("type");
    policy.finish()?;
    match kind.as_str() {
        "always_allow" => Ok(Some(PermissionPolicy::AlwaysAllow)),
        "always_ask" => Ok(Some(PermissionPolicy::AlwaysAsk)),
        "auto" => Err(ApiError::unsupported(&path, "there is no judge for auto yet; use always_allow or always_ask")),
        _ => Err(ApiError::invalid(format!("{path}: expected always_allow or always_ask"))),
    }
}

fn read_custom(mut entry: Fields) -> Result<Tool, ApiError> {
    let name = entry.required_string("name")?;
    check_custom_name(&name, &entry.at("name"))?;
    let description = entry.required_string("description")?;
    fields::check_length(description.trim(), &entry.at("description"), 1, DESCRIPTION_CHARACTERS_MAX)?;
    let schema_path = entry.at("input_schema");
    let input_schema = match entry.required("input_schema")? {
        Value::Object(schema) => schema,
        other => return Err(fields::expected(&schema_path, "an object", &other)),
    };
    check_schema(&input_schema, &schema_path)?;
    entry.finish()?;
    Ok(Tool::Custom { name, description, input_schema })
}

fn check_custom_name(name: &str, path: &str) -> Result<(), ApiError> {
    let well_formed = (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if !well_formed {
        return Err(ApiError::invalid(format!("{path}: expected 1 to 128 letters, digits, underscores and hyphens")));
    }
    if toolset::NAMES.contains(&name) || toolset::NOT_OFFERED.contains(&name) {
        return Err(ApiError::invalid(format!("{path}: {name} is the name of a built-in tool; choose another")));
    }
    if name.starts_with("mcp__") {
        return Err(ApiError::invalid(format!("{path}: must not start with mcp__")));
    }
    Ok(())
}

/// Holds a schema to what every provider takes.
fn check_schema(schema: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        return Err(ApiError::invalid(format!("{path}.type: expected \"object\"")));
    }
    for keyword in ["oneOf", "anyOf", "allOf"] {
        if schema.contains_key(keyword) {
            return Err(ApiError::invalid(format!("{path}.{keyword}: not allowed at the top level of a schema")));
        }
    }
    if let Some(required) = schema.get("required")
        && !required.is_null()
        && !required.as_array().is_some_and(|names| names.iter().all(Value::is_string))
    {
        return Err(fields::expected(&format!("{path}.required"), "an array of strings", required));
    }
    if serde_json::to_vec(schema).map_or(usize::MAX, |bytes| bytes.len()) > SCHEMA_BYTES_MAX {
        return Err(ApiError::invalid(format!("{path}: larger than {SCHEMA_BYTES_MAX} bytes")));
    }
    check_subschema(schema, path)
}

/// Refuses references and odd property names at any depth.
fn check_subschema(schema: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    for (keyword, value) in schema {
        let path = fields::join(path, keyword);
        if matches!(keyword.as_str(), "$ref" | "$dynamicRef" | "$recursiveRef") {
            return Err(ApiError::invalid(format!("{path}: references are not allowed; write the schema out")));
        }
        match (keyword.as_str(), value) {
            // Data, not schemas: a "$ref" in there refers to nothing.
            ("enum" | "const" | "default" | "examples" | "required", _) => {}
            ("properties", Value::Object(properties)) => check_properties(properties, &path)?,
            ("properties", Value::Null) => {}
            ("properties", other) => return Err(fields::expected(&path, "an object", other)),
            ("patternProperties" | "$defs" | "definitions" | "dependentSchemas", Value::Object(schemas)) => {
                check_named(schemas, &path)?;
            }
            (_, Value::Object(schema)) => check_subschema(schema, &path)?,
            (_, Value::Array(items)) => {
                for schema in items.iter().filter_map(Value::as_object) {
                    check_subschema(schema, &path)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_properties(properties: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    for name in properties.keys() {
        let well_formed = (1..=64).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if !well_formed {
            let shown: String = name.chars().take(64).collect();
            return Err(ApiError::invalid(format!(
                "{path}: the property name {shown:?} must be 1 to 64 letters, digits, underscores, dots and hyphens"
            )));
        }
    }
    check_named(properties, path)
}

/// Objects whose keys are names, not keywords.
fn check_named(schemas: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    for (name, schema) in schemas {
        if let Value::Object(schema) = schema {
            check_subschema(schema, &fields::join(path, name))?;
        }
    }
    Ok(())
}

/// What holds for all entries at once.
fn check_together(tools: &[Tool], path: &str) -> Result<(), ApiError> {
    let mut names = std::collections::BTreeSet::new();
    let mut toolsets = 0;
    for (index, tool) in tools.iter().enumerate() {
        match tool {
            Tool::Toolset { .. } => toolsets += 1,
            Tool::Custom { name, .. } => {
                if !names.insert(name.as_str()) {
                    return Err(ApiError::invalid(format!("{path}[{index}].name: {name:?} is used twice")));
                }
            }
        }
    }
    if toolsets > 1 {
        return Err(ApiError::invalid(format!("{path}: {TOOLSET} may be listed once")));
    }
    if names.len() + toolsets * toolset::NAMES.len() > TOOLS_MAX {
        return Err(ApiError::invalid(format!("{path}: at most {TOOLS_MAX} tools are allowed")));
    }
    Ok(())
}
