//! Events as clients send them.
//!
//! Only their form is checked here; whether a session takes an event in its present state is decided by the crate
//! `session`.

use serde_json::Value;
use session::ClientEvent;
use session::content::ContentBlock;
use session::event::Confirmation;
use session::id::{EventId, ThreadId};

use super::content_params::{self, Place};
use super::error::ApiError;
use super::fields::Fields;

const EVENTS_MAX: usize = 1_000;
const INITIAL_EVENTS_MAX: usize = 50;
const ID_CHARACTERS_MAX: usize = 256;
const DENY_MESSAGE_CHARACTERS_MAX: usize = 10_000;

/// Reads the body of `POST .../events`.
pub(super) fn read(mut body: Fields) -> Result<Vec<ClientEvent>, ApiError> {
    let Value::Array(items) = body.required("events")? else {
        return Err(ApiError::invalid("events: expected an array"));
    };
    body.finish()?;
    if items.is_empty() {
        return Err(ApiError::invalid("events: expected at least one event"));
    }
    if items.len() > EVENTS_MAX {
        return Err(ApiError::invalid(format!("events: {}; at most {EVENTS_MAX} are allowed", items.len())));
    }
    items.into_iter().enumerate().map(|(index, item)| read_event(item, format!("events[{index}]"))).collect()
}

/// Reads `initial_events` of a new session: messages only.
pub(super) fn read_initial(items: Vec<Value>) -> Result<Vec<ClientEvent>, ApiError> {
    if items.len() > INITIAL_EVENTS_MAX {
        return Err(ApiError::invalid(format!(
            "initial_events: {}; at most {INITIAL_EVENTS_MAX} are allowed",
            items.len()
        )));
    }
    let mut events = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("initial_events[{index}]");
        match read_event(item, path.clone())? {
            message @ ClientEvent::Message { .. } => events.push(message),
            _ => return Err(ApiError::invalid(format!("{path}.type: expected user.message"))),
        }
    }
    Ok(events)
}

fn read_event(item: Value, path: String) -> Result<ClientEvent, ApiError> {
    let mut event = Fields::of(item, path)?;
    let kind = event.required_string("type")?;
    let read = match kind.as_str() {
        "user.message" => read_message(&mut event)?,
        "user.interrupt" => {
            let thread = event.string("session_thread_id")?;
            ClientEvent::Interrupt { session_thread_id: thread.map(ThreadId::from) }
        }
        "user.tool_confirmation" => read_confirmation(&mut event)?,
        "user.custom_tool_result" => {
            let custom_tool_use_id = read_event_id(&mut event, "custom_tool_use_id")?;
            let (content, is_error) = read_result(&mut event)?;
            ClientEvent::CustomToolResult { custom_tool_use_id, content, is_error }
        }
        "user.tool_result" => {
            let tool_use_id = read_event_id(&mut event, "tool_use_id")?;
            let (content, is_error) = read_result(&mut event)?;
            ClientEvent::ToolResult { tool_use_id, content, is_error }
        }
        "user.define_outcome" => {
            return Err(ApiError::unsupported(&event.at("type"), "outcomes do not exist yet; send a user.message"));
        }
        "system.message" => {
            let path = event.at("type");
            return Err(ApiError::unsupported(&path, "no model here takes system messages in mid-conversation")
                .code("model_does_not_support_mid_conversation_system"));
        }
        _ => {
            return Err(ApiError::invalid(format!(
                "{}: expected user.message, user.interrupt, user.tool_confirmation, user.custom_tool_result or \
                 user.tool_result",
                event.at("type")
            )));
        }
    };
    event.finish()?;
    Ok(read)
}

fn read_message(event: &mut Fields) -> Result<ClientEvent, ApiError> {
    let path = event.at("content");
    let Value::Array(items) = event.required("content")? else {
        return Err(ApiError::invalid(format!("{path}: expected an array of content blocks")));
    };
    if items.is_empty() {
        return Err(ApiError::invalid(format!("{path}: expected at least one content block")));
    }
    let content = content_params::read(items, &path, Place::Message)?;
    // No provider takes a message that says nothing, and in the log it would stand in every later request.
    if content.iter().all(|block| block.as_text().is_some_and(|text| text.trim().is_empty())) {
        return Err(ApiError::invalid(format!("{path}: expected some text, an image or a document")));
    }
    Ok(ClientEvent::Message { content })
}

fn read_confirmation(event: &mut Fields) -> Result<ClientEvent, ApiError> {
    let tool_use_id = read_event_id(event, "tool_use_id")?;
    let result = match event.required_string("result")?.as_str() {
        "allow" => Confirmation::Allow,
        "deny" => Confirmation::Deny,
        _ => return Err(ApiError::invalid(format!("{}: expected allow or deny", event.at("result")))),
    };
    let deny_message = event.string("deny_message")?;
    let path = event.at("deny_message");
    if let Some(message) = &deny_message {
        if result == Confirmation::Allow {
            return Err(ApiError::invalid(format!("{path}: only allowed when result is deny")));
        }
        super::fields::check_length(message, &path, 0, DENY_MESSAGE_CHARACTERS_MAX)?;
    }
    // Older clients echo the thread; the call's own id says it already.
    event.ignore("session_thread_id");
    Ok(ClientEvent::ToolConfirmation { tool_use_id, result, deny_message })
}

fn read_result(event: &mut Fields) -> Result<(Vec<ContentBlock>, bool), ApiError> {
    let path = event.at("content");
    let items = event.array("content")?.unwrap_or_default();
    let content = content_params::read(items, &path, Place::ToolResult)?;
    let is_error = event.boolean("is_error")?.unwrap_or(false);
    event.ignore("session_thread_id");
    Ok((content, is_error))
}

fn read_event_id(event: &mut Fields, name: &'static str) -> Result<EventId, ApiError> {
    let id = event.required_string(name)?;
    super::fields::check_length(&id, &event.at(name), 1, ID_CHARACTERS_MAX)?;
    Ok(EventId::from(id))
}
