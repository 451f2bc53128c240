//! What a model is sent: the conversation since the last compaction, built from records.
//!
//! The owner of a session keeps its transcript while it holds the claim, so that a loop of tool calls reads the
//! history once. Messages of clients enter where they were processed, not where they were received. Neighbours of
//! one role are merged, tool results stand first in their message, and ids of tool uses are our event ids.
//! That every call is answered before the next request is a rule of `session`, not checked here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use session::agent::{AgentSnapshot, Tool};
use session::content::{ContentBlock, DocumentSource, ImageSource};
use session::event::{Event, RequestPurpose};
use session::id::{EventId, SessionId};
use session::toolset;

use crate::port::model::{AssistantBlock, Message, OfferedTool, UserBlock};
use crate::port::{EventLog, ModelRequest, StoreError, StoredRecord};

/// Records read at once.
const PAGE: usize = 1_000;

/// Transcripts kept of sessions that were let go: how many, and how many bytes of one and of all.
const KEPT_MAX: usize = 256;
const KEPT_WEIGHT_MAX: usize = 256 << 10;
const KEPT_WEIGHT_TOTAL_MAX: usize = 16 << 20;

/// What the model is asked when the context has grown too large.
const SUMMARISE: &str = "The conversation has grown too long to be continued as it is. \
    Write a summary that stands in for all of it: what was asked for, what was decided and why, what was done and \
    with which results, the names, paths, figures and errors that matter, and what is still open. \
    Whoever reads it sees nothing else of what came before. Answer with the summary alone and use no tools.";

/// How a summary is introduced to the model that goes on from it.
const SUMMARISED: &str = "The conversation so far was summarised. The summary:";

/// The conversation as the next model request will tell it.
#[derive(Clone, Debug)]
pub struct Transcript {
    /// Position of the last record taken in.
    position: u64,
    messages: Arc<Vec<Message>>,
    /// Client events received and not yet processed, by the position of their content.
    waiting: BTreeMap<u64, Event>,
    /// Names of the tools that were called, by the call.
    calls: BTreeMap<EventId, String>,
    /// The last agent snapshot that was seen, with the position of its record.
    agent: Option<(u64, Arc<AgentSnapshot>)>,
    /// Bytes taken in since the start or the last compaction, roughly.
    weight: usize,
}

impl Transcript {
    /// The transcript of a session from the records behind `position` on: 0, or the one before a compaction.
    pub fn starting_behind(position: u64) -> Self {
        Self {
            position,
            messages: Arc::default(),
            waiting: BTreeMap::new(),
            calls: BTreeMap::new(),
            agent: None,
            weight: 0,
        }
    }

    /// Takes in whatever the log holds up to `position`.
    pub(crate) async fn read_on(
        &mut self,
        log: &dyn EventLog,
        session_id: &SessionId,
        position: u64,
    ) -> Result<(), StoreError> {
        while self.position < position {
            let before = self.position;
            let page = log.read(session_id, before, PAGE).await?;
            for stored in page.iter().take_while(|stored| stored.record.position <= position) {
                self.push(stored);
            }
            if self.position == before {
                return Err(StoreError::Corrupt(format!("session {session_id} has no record behind {before}")));
            }
        }
        Ok(())
    }

    /// Position of the last record taken in.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The received event at `position`, while it waits to be processed.
    pub fn waiting(&self, position: u64) -> Option<&Event> {
        self.waiting.get(&position)
    }

    /// The tool that a call names.
    pub fn tool_of(&self, call: &EventId) -> Option<&str> {
        self.calls.get(call).map(String::as_str)
    }

    /// The agent whose snapshot the record at `position` holds, if that record was taken in.
    pub fn agent(&self, position: u64) -> Option<Arc<AgentSnapshot>> {
        self.agent.as_ref().filter(|(at, _)| *at == position).map(|(_, agent)| Arc::clone(agent))
    }

    /// Takes in the next record.
    pub fn push(&mut self, stored: &StoredRecord) {
        let position = stored.record.position;
        if position <= self.position {
            return;
        }
        self.position = position;
        self.weight += weight(&stored.record.event);
        match &stored.record.event {
            Event::Created(created) => self.agent = Some((position, Arc::new(created.agent.clone()))),
            Event::Updated { agent: Some(agent), .. } => self.agent = Some((position, Arc::new((**agent).clone()))),
            event @ (Event::UserMessage { queued: true, .. } | Event::UserInterrupt { queued: true, .. }) => {
                self.waiting.insert(position, event.clone());
            }
            Event::UserMessage { content, .. } => self.user_content(content),
            Event::Processed { received, .. } => {
                let kept = self.waiting.remove(received);
                if let Some(Event::UserMessage { content, .. }) = stored.received.as_ref().or(kept.as_ref()) {
                    self.user_content(content);
                }
            }
            Event::AgentThinking { internal, .. } => self.assistant(AssistantBlock::Thinking(internal.clone())),
            Event::AgentMessage { content, .. } => {
                for text in content.iter().filter_map(ContentBlock::as_text).filter(|text| !text.is_empty()) {
                    self.assistant(AssistantBlock::Text(text.to_owned()));
                }
            }
            Event::AgentToolUse { id, name, input, .. } | Event::AgentCustomToolUse { id, name, input } => {
                self.calls.insert(id.clone(), name.clone());
                self.assistant(AssistantBlock::ToolUse {
                    id: id.to_string(),
                    name: name.clone(),
                    input: input.clone(),
                });
            }
            Event::AgentToolResult { tool_use_id: call, content, is_error, .. }
            | Event::UserToolResult { tool_use_id: call, content, is_error, .. }
            | Event::UserCustomToolResult { custom_tool_use_id: call, content, is_error, .. } => {
                self.tool_result(call, content, *is_error);
            }
            Event::ContextCompacted { internal, .. } => {
                self.calls.clear();
                self.weight = internal.summary.len();
                let summary = format!("{SUMMARISED}\n\n{}", internal.summary);
                self.messages = Arc::new(vec![Message::User(vec![UserBlock::Content(ContentBlock::text(summary))])]);
            }
            _ => {}
        }
    }

    /// The next request of the session.
    pub fn request(&self, session_id: &SessionId, agent: &AgentSnapshot, purpose: RequestPurpose) -> ModelRequest {
        let mut messages = Arc::clone(&self.messages);
        if purpose == RequestPurpose::Compaction {
            append_user(Arc::make_mut(&mut messages), UserBlock::Content(ContentBlock::text(SUMMARISE)));
        }
        ModelRequest {
            session_id: session_id.clone(),
            model: agent.model.clone(),
            system: agent.system.clone(),
            tools: offered_tools(agent),
            messages,
        }
    }

    fn user_content(&mut self, content: &[ContentBlock]) {
        for block in content {
            append_user(Arc::make_mut(&mut self.messages), UserBlock::Content(block.clone()));
        }
    }

    fn tool_result(&mut self, call: &EventId, content: &[ContentBlock], is_error: bool) {
        let result = UserBlock::ToolResult { tool_use_id: call.to_string(), content: content.to_vec(), is_error };
        let messages = Arc::make_mut(&mut self.messages);
        match messages.last_mut() {
            Some(Message::User(blocks)) => {
                let results = blocks.iter().take_while(|block| matches!(block, UserBlock::ToolResult { .. })).count();
                blocks.insert(results, result);
            }
            _ => messages.push(Message::User(vec![result])),
        }
    }

    fn assistant(&mut self, block: AssistantBlock) {
        let messages = Arc::make_mut(&mut self.messages);
        match messages.last_mut() {
            Some(Message::Assistant(blocks)) => blocks.push(block),
            _ => messages.push(Message::Assistant(vec![block])),
        }
    }
}

/// Transcripts of sessions that were let go, so that the next turn reads only what is new.
///
/// A log only grows, so a kept transcript is never wrong, only short. The oldest go first.
#[derive(Default)]
pub(crate) struct Kept {
    transcripts: Mutex<VecDeque<(SessionId, Transcript)>>,
}

impl Kept {
    /// Keeps a transcript, unless it is large.
    pub(crate) fn keep(&self, session_id: &SessionId, transcript: Transcript) {
        if transcript.weight > KEPT_WEIGHT_MAX {
            return;
        }
        let mut kept = self.lock();
        kept.retain(|(id, _)| id != session_id);
        kept.push_back((session_id.clone(), transcript));
        let mut weight: usize = kept.iter().map(|(_, transcript)| transcript.weight).sum();
        while weight > KEPT_WEIGHT_TOTAL_MAX || kept.len() > KEPT_MAX {
            weight -= kept.pop_front().map_or(0, |(_, transcript)| transcript.weight);
        }
    }

    /// The transcript that was kept of a session.
    pub(crate) fn take(&self, session_id: &SessionId) -> Option<Transcript> {
        let mut kept = self.lock();
        let index = kept.iter().position(|(id, _)| id == session_id)?;
        kept.remove(index).map(|(_, transcript)| transcript)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(SessionId, Transcript)>> {
        self.transcripts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Roughly how many bytes an event adds to a transcript.
fn weight(event: &Event) -> usize {
    let blocks = |content: &[ContentBlock]| content.iter().map(block_weight).sum::<usize>();
    match event {
        Event::UserMessage { content, .. }
        | Event::AgentMessage { content, .. }
        | Event::AgentToolResult { content, .. }
        | Event::UserToolResult { content, .. }
        | Event::UserCustomToolResult { content, .. } => 200 + blocks(content),
        Event::AgentToolUse { input, .. } | Event::AgentCustomToolUse { input, .. } => {
            400 + input.values().map(string_weight).sum::<usize>()
        }
        Event::AgentThinking { internal, .. } => {
            200 + internal.as_object().into_iter().flat_map(|fields| fields.values()).map(string_weight).sum::<usize>()
        }
        Event::Created(_) => 4_000,
        _ => 0,
    }
}

fn string_weight(value: &serde_json::Value) -> usize {
    value.as_str().map_or(16, str::len)
}

fn block_weight(block: &ContentBlock) -> usize {
    match block {
        ContentBlock::Text { text } => text.len(),
        ContentBlock::Image { source: ImageSource::Base64 { data, .. } } => data.len(),
        ContentBlock::Document {
            source: DocumentSource::Base64 { data, .. } | DocumentSource::Text { data, .. },
            ..
        } => data.len(),
        _ => 200,
    }
}

/// Adds to the last user message, or begins one.
fn append_user(messages: &mut Vec<Message>, block: UserBlock) {
    // An answer that was nothing but thinking is no answer, and no provider takes it back.
    if let Some(Message::Assistant(blocks)) = messages.last()
        && blocks.iter().all(|block| matches!(block, AssistantBlock::Thinking(_)))
    {
        messages.pop();
    }
    match messages.last_mut() {
        Some(Message::User(blocks)) => blocks.push(block),
        _ => messages.push(Message::User(vec![block])),
    }
}

/// The tools of an agent as a provider is told of them: enabled built-in tools, and custom tools as they are.
fn offered_tools(agent: &AgentSnapshot) -> Vec<OfferedTool> {
    let policies = agent.tool_policies();
    let mut offered = Vec::new();
    for tool in &agent.tools {
        match tool {
            Tool::Toolset { .. } => {
                let enabled = |definition: &toolset::Definition| policies.contains_key(definition.name);
                offered.extend(toolset::definitions().into_iter().filter(enabled).map(|definition| OfferedTool {
                    name: definition.name.to_owned(),
                    description: definition.description.to_owned(),
                    input_schema: definition.input_schema,
                }));
            }
            Tool::Custom { name, description, input_schema } => offered.push(OfferedTool {
                name: name.clone(),
                description: description.clone(),
                input_schema: serde_json::Value::Object(input_schema.clone()),
            }),
        }
    }
    offered
}
