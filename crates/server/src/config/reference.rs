//! Writes the configuration reference, from the types alone.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{Config, NOT_YET, environment};

/// `docs/reference/configuration.md`, whole.
pub fn markdown() -> String {
    let schema = schemars::schema_for!(Config).to_value();
    let defaults = serde_json::to_value(Config::default()).expect("settings are plain data");
    let mut page = String::from(INTRODUCTION);
    let sections = schema.pointer("/properties").and_then(Value::as_object).expect("the settings are an object");
    for (name, section) in sections {
        let section = resolve(&schema, section);
        let _ = write!(page, "\n## `{name}`\n\n{}\n", description(section));
        let mut rows = Vec::new();
        collect(&schema, section, &defaults[name], "", &mut rows);
        table(&mut page, &["Key", "Type", "Default", "Meaning"], &rows);
    }
    page.push_str("\n## Environment\n\nEach variable overrides the key beside it. An empty one counts as unset.\n");
    let rows: Vec<_> = environment::variables().map(|variable| vec![code(variable.name), code(variable.key)]).collect();
    table(&mut page, &["Variable", "Key"], &rows);
    let _ = write!(page, "\n`AGENT_CONFIG` names the configuration file itself.\n");
    let names: Vec<_> = NOT_YET.iter().map(|name| code(name)).collect();
    let _ =
        writeln!(page, "This version does not use {} yet, and says so in its log when one is set.", names.join(", "));
    page
}

const INTRODUCTION: &str = "# Configuration reference

Generated from the types by `agent-service config reference`; a test keeps it current.

Settings come from one YAML file (`--config FILE` or `AGENT_CONFIG`), overridden by the environment, overridden by flags.
Every key has a default, so no file is needed.
An unknown key is an error that names the nearest known one.
Durations are a whole number with `ms`, `s`, `m`, `h` or `d`; sizes are a whole number of bytes, or one with `KiB`, `MiB` or `GiB`.
Each secret has a twin that ends in `_file` and names a file to read it from.
`agent-service config check [FILE]` prints the settings in force, secrets hidden.
";

/// Adds a row for each key of `section`, descending into sections within it.
fn collect(root: &Value, section: &Value, defaults: &Value, prefix: &str, rows: &mut Vec<Vec<String>>) {
    if let Some(entry) = section.get("additionalProperties").filter(|entry| entry.is_object()) {
        let entry = resolve(root, entry);
        return collect(root, entry, &entry_defaults(entry), &format!("{prefix}ID."), rows);
    }
    let properties = section.get("properties").and_then(Value::as_object);
    for (name, property) in properties.into_iter().flatten() {
        let key = format!("{prefix}{name}");
        let target = resolve(root, property);
        let default = &defaults[name];
        let is_section = target.get("properties").is_some();
        let meaning = match description(property) {
            text if text.is_empty() => description(target),
            text => text,
        };
        if is_section {
            let unset = entry_defaults(target);
            let defaults = if default.is_object() { default } else { &unset };
            collect(root, target, defaults, &format!("{key}."), rows);
        } else {
            let meaning = format!("{meaning}{}", choices(target));
            rows.push(vec![code(&key), kind(root, property), shown(default), meaning]);
        }
    }
}

/// The defaults of an entry of a map: what the schema says of each key. A key without one must be given.
fn entry_defaults(entry: &Value) -> Value {
    let properties = entry.get("properties").and_then(Value::as_object).into_iter().flatten();
    let required = |name: &str| {
        entry.get("required").and_then(Value::as_array).is_some_and(|names| names.iter().any(|one| one == name))
    };
    let default = |name: &str, property: &Value| match property.get("default") {
        _ if required(name) => Value::from("required"),
        Some(default) => default.clone(),
        None => Value::Null,
    };
    properties.map(|(name, property)| (name.clone(), default(name, property))).collect::<Map<_, _>>().into()
}

/// The schema itself, whatever references lead to it; of an optional value, that of the value.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(reference.trim_start_matches('#')).expect("references lead into the schema");
        return resolve(root, target);
    }
    match schema.get("anyOf").and_then(Value::as_array).map(Vec::as_slice) {
        Some([value, null]) if null.get("type") == Some(&Value::from("null")) => resolve(root, value),
        _ => schema,
    }
}

/// What a reader calls the type of `schema`.
fn kind(root: &Value, schema: &Value) -> String {
    let schema = resolve(root, schema);
    if schema.get("writeOnly").is_some() {
        return "secret".to_owned();
    }
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
        return if pattern.contains("KiB") { "size" } else { "duration" }.to_owned();
    }
    if schema.get("oneOf").is_some() || schema.get("enum").is_some() {
        return "choice".to_owned();
    }
    let name = match schema.get("type") {
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        Some(Value::String(name)) => Some(name.as_str()),
        _ => None,
    };
    match name {
        Some("integer") => "integer".to_owned(),
        Some("number") => "number".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("array") => {
            let item = schema.get("items").map(|items| kind(root, items)).unwrap_or_default();
            format!("list of {item}")
        }
        Some("object") => match schema.get("additionalProperties") {
            Some(values) if values.is_object() => format!("map to {}", kind(root, values)),
            _ => "section".to_owned(),
        },
        _ => "text".to_owned(),
    }
}

/// The words that an enumeration takes, each with its meaning.
fn choices(schema: &Value) -> String {
    let words = |schema: &Value| -> Vec<String> {
        let single = schema.get("const").into_iter();
        let many = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
        single.chain(many).filter_map(Value::as_str).map(code).collect()
    };
    let alternatives = schema.get("oneOf").and_then(Value::as_array);
    let mut text = String::new();
    for alternative in alternatives.map_or(std::slice::from_ref(schema), Vec::as_slice) {
        for word in words(alternative) {
            match alternatives.map(|_| description(alternative)) {
                Some(meaning) if !meaning.is_empty() => {
                    let _ = write!(text, " {word}: {meaning}");
                }
                _ => {
                    let _ = write!(text, " {word}.");
                }
            }
        }
    }
    text
}

fn description(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn shown(default: &Value) -> String {
    match default {
        Value::Null => "unset".to_owned(),
        Value::String(text) if text == "required" => text.clone(),
        Value::String(text) => code(text),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Object(entries) if entries == &Map::new() => "none".to_owned(),
        other => code(&other.to_string()),
    }
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn table(page: &mut String, heads: &[&str], rows: &[Vec<String>]) {
    let _ = write!(page, "\n| {} |\n|{}\n", heads.join(" | "), " --- |".repeat(heads.len()));
    for row in rows {
        let cells: Vec<_> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
        let _ = writeln!(page, "| {} |", cells.join(" | "));
    }
}
