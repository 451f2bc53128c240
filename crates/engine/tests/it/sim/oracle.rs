//! What must hold of every history, whatever happened on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use engine::port::{EventLog, ListSessions, Order, StoredRecord, TimeRange};
use session::content::ContentBlock;
use session::id::{EventId, SessionId};
use session::state::Status;
use session::{Event, State, fold, without_notice};

use super::books::Requests;
use super::counts::{Count, Counts};
use super::files::Look;
use super::{Notes, Report, Shared, blobs, folders};

/// Checks every session of the store.
pub(crate) async fn judge(shared: &Shared) -> Report {
    let mut notes = std::mem::take(&mut *shared.notes.lock().unwrap());
    let all = ListSessions {
        agent_id: None,
        agent_version: None,
        created: TimeRange::default(),
        include_archived: true,
        statuses: Vec::new(),
        order: Order::Ascending,
        after: None,
        limit: usize::MAX,
    };
    let listed = shared.store.list_sessions(&all).await.expect("the store in memory answers");
    let mut ids: BTreeSet<SessionId> = listed.into_iter().map(|state| state.session_id).collect();
    ids.extend(notes.sessions.iter().cloned());

    let mut report = Report { counts: std::mem::take(&mut notes.counts), ..Report::default() };
    let mut digest = DefaultHasher::new();
    let mut requests = Requests::default();
    let mut states = Vec::new();
    for id in ids {
        let records = shared.store.read(&id, 0, usize::MAX).await.expect("the store in memory answers");
        let loaded = shared.store.load(&id).await.expect("the store in memory answers");
        let Some(loaded) = loaded else {
            notes.violations.push(format!("{id}: an acknowledged session is not there"));
            continue;
        };
        requests.take_in_state(&loaded.state);
        for stored in &records {
            requests.take_in(&stored.record);
            (stored.record.position, stored.record.at.as_micros(), stored.record.event.kind()).hash(&mut digest);
        }
        let settled = notes.sessions.contains(&id);
        let orderly = shared.weather.is_orderly();
        let mut history = History { id: &id, records: &records, settled, orderly, violations: Vec::new() };
        history.check(&loaded.state, &notes);
        let looks: Vec<&Look> = notes.looks.iter().filter(|look| look.session_id == id).collect();
        folders::judge(&records, &looks, &notes.snapshots).into_iter().for_each(|text| history.violation(text));
        count(&mut report.counts, &records);
        if loaded.claim.is_some() && settled {
            history.violation("it is settled and still owned".to_owned());
        }
        if !history.violations.is_empty() {
            history.violations.push(history.told());
        }
        notes.violations.append(&mut history.violations);
        states.push(loaded.state);
    }
    notes.violations.append(&mut shared.witness.take_violations());
    let books = shared.witness.take_books();
    notes.violations.append(&mut books.judge(&requests, shared, notes.free_failures).await);
    let lost = report.counts.of(Count::LostAnswer);
    if shared.weather.is_orderly() && lost > 0 {
        notes.violations.push(format!("{lost} answers were lost where servers only drained"));
    }
    notes.violations.append(&mut blobs::judge(shared, &states).await);
    report.digest = digest.finish();
    report.violations = notes.violations;
    report
}

fn count(counts: &mut Counts, records: &[StoredRecord]) {
    counts.add(Count::Record, records.len());
    for stored in records {
        match &stored.record.event {
            Event::WorkspaceRestored { .. } => counts.add(Count::Restore, 1),
            Event::AgentToolResult { content, .. } if without_notice(content).len() < content.len() => {
                counts.add(Count::LossTold, 1);
            }
            _ => {}
        }
    }
}

struct History<'h> {
    id: &'h SessionId,
    records: &'h [StoredRecord],
    /// Somebody was told of the session and has seen it settle.
    settled: bool,
    /// Servers were drained and nothing else happened to them.
    orderly: bool,
    violations: Vec<String>,
}

impl History<'_> {
    fn violation(&mut self, text: String) {
        self.violations.push(format!("{}: {text}", self.id));
    }

    fn require(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.violation(text());
        }
    }

    fn check(&mut self, state: &State, notes: &Notes) {
        self.check_order(state);
        self.check_messages(notes);
        self.check_spans();
        self.check_statuses();
        self.check_calls(notes);
        let taken_over = self.records.iter().any(|stored| matches!(stored.record.event, Event::TakenOver { .. }));
        self.require(!taken_over || !self.orderly, || "it was taken over, not handed over".to_owned());
        let delivered = notes.delivered.get(self.id);
        if let Some(delivered) = delivered {
            // A lease may end, and files be kept, when everybody has gone.
            let is_late = |event: &Event| {
                use Event::{LeaseEnded, WorkspaceRestored, WorkspaceSaved};
                matches!(event, LeaseEnded { .. } | WorkspaceSaved { .. } | WorkspaceRestored { .. })
            };
            let missed = self.records.get(delivered.len()..).unwrap_or_default();
            let missed = missed.iter().find(|stored| !is_late(&stored.record.event));
            self.require(missed.is_none(), || format!("a feed delivered {} records", delivered.len()));
        }
        if self.settled {
            let rests = state.turn.is_none() && state.queue.is_empty() && state.interrupt.is_none();
            self.require(rests && matches!(state.status, Status::Idle | Status::Terminated), || {
                format!("it does not rest: {state:?}")
            });
        }
    }

    fn check_order(&mut self, state: &State) {
        for (index, pair) in self.records.windows(2).enumerate() {
            let (left, right) = (&pair[0].record, &pair[1].record);
            let follows = left.position == index as u64 + 1 && right.position == left.position + 1;
            self.require(follows && left.at < right.at, || format!("positions break at {}", left.position));
        }
        let folded = fold(None, self.records.iter().map(|stored| &stored.record));
        self.require(folded.as_ref() == Some(state), || "the snapshot is not the fold of the log".to_owned());
    }

    fn check_messages(&mut self, notes: &Notes) {
        let mut received: BTreeMap<&EventId, u32> = BTreeMap::new();
        let mut processed: BTreeMap<&EventId, u32> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for stored in self.records {
            match &stored.record.event {
                Event::UserMessage { id, queued: true, .. } | Event::UserInterrupt { id, queued: true, .. } => {
                    *received.entry(id).or_default() += 1;
                }
                Event::Processed { id, .. } => {
                    *processed.entry(id).or_default() += 1;
                    let first = received.contains_key(id) && stored.received.is_some();
                    self.require(first, || format!("{id} was processed before it was received"));
                    continue;
                }
                _ => {}
            }
            if let Some(id) = stored.record.event.id() {
                self.require(ids.insert(id), || format!("the id {id} occurs twice"));
            }
        }
        for (session_id, stored) in &notes.acknowledged {
            if session_id == self.id {
                let kept = self.records.get(stored.record.position as usize - 1).map(|stored| &stored.record);
                self.require(kept == Some(&stored.record), || format!("{stored:?} was acknowledged: {kept:?}"));
            }
        }
        for keyed in notes.keyed.iter().filter(|keyed| keyed.session_id == *self.id) {
            let is_it =
                |content: &[ContentBlock]| content.first().and_then(ContentBlock::as_text) == Some(&*keyed.text);
            let named = |stored: &StoredRecord| match &stored.record.event {
                Event::UserMessage { id, content, .. } if is_it(content) => Some(id.clone()),
                _ => None,
            };
            let there: Vec<EventId> = self.records.iter().filter_map(named).collect();
            let once = there.len() == 1 && keyed.answers.iter().all(|id| *id == there[0]);
            self.require(once, || format!("{:?} was answered under a key and is there as {there:?}", keyed.answers));
        }
        if self.settled {
            self.require(received == processed, || "received and processed differ".to_owned());
        }
    }

    fn check_spans(&mut self) {
        let mut open: Option<&EventId> = None;
        for stored in self.records {
            match &stored.record.event {
                Event::ModelRequestStart { id, .. } => {
                    self.require(open.is_none(), || format!("{id} begins inside another request"));
                    open = Some(id);
                }
                Event::ModelRequestEnd { model_request_start_id, .. } => {
                    let ends = open.take() == Some(model_request_start_id);
                    self.require(ends, || format!("an end of {model_request_start_id}, which is not open"));
                }
                Event::AgentMessage { id, .. } | Event::AgentToolUse { id, .. } => {
                    self.require(open.is_some(), || format!("{id} outside a request"));
                }
                _ => {}
            }
        }
        self.require(open.is_none() || !self.settled, || "a request is open at the end".to_owned());
    }

    fn check_statuses(&mut self) {
        let mut status = Status::Idle;
        for stored in self.records {
            let next = match &stored.record.event {
                Event::StatusRunning { .. } => Status::Running,
                Event::StatusIdle { .. } => Status::Idle,
                Event::StatusRescheduled { .. } => Status::Rescheduling,
                Event::StatusTerminated { .. } => Status::Terminated,
                _ => continue,
            };
            let possible = matches!(
                (status, next),
                (Status::Idle | Status::Rescheduling, Status::Running)
                    | (Status::Running | Status::Idle, Status::Idle)
                    | (Status::Running, Status::Rescheduling)
                    | (Status::Rescheduling, Status::Idle)
                    | (Status::Idle | Status::Running, Status::Terminated)
            );
            let position = stored.record.position;
            self.require(possible, || format!("{status:?} became {next:?} at {position}"));
            status = next;
        }
    }

    fn check_calls(&mut self, notes: &Notes) {
        let mut open: BTreeMap<&EventId, &str> = BTreeMap::new();
        for stored in self.records {
            match &stored.record.event {
                Event::AgentToolUse { id, name, .. } | Event::AgentCustomToolUse { id, name, .. } => {
                    open.insert(id, name);
                }
                Event::AgentToolResult { tool_use_id: call, content, is_error, .. }
                | Event::UserToolResult { tool_use_id: call, content, is_error, .. }
                | Event::UserCustomToolResult { custom_tool_use_id: call, content, is_error, .. } => {
                    let Some(name) = open.remove(call) else {
                        self.violation(format!("{call} has a result it did not wait for"));
                        continue;
                    };
                    self.check_executions(notes, call, name, content, *is_error);
                }
                Event::ModelRequestStart { id, .. } => {
                    let unanswered = open.keys().next().copied();
                    self.require(unanswered.is_none(), || format!("{id} begins while {unanswered:?} is unanswered"));
                }
                _ => {}
            }
        }
        self.require(open.is_empty() || !self.settled, || format!("{} calls have no result", open.len()));
    }

    /// A result that a worker gave is that of a run; what has effects is run once at most.
    fn check_executions(
        &mut self,
        notes: &Notes,
        call: &EventId,
        name: &str,
        content: &[ContentBlock],
        is_error: bool,
    ) {
        let none = Vec::new();
        let runs = notes.executions.get(call).unwrap_or(&none);
        let text = without_notice(content).first().and_then(ContentBlock::as_text).unwrap_or_default();
        if matches!(name, "write" | "bash") {
            self.require(runs.len() <= 1, || format!("{call} ({name}) ran {} times", runs.len()));
        }
        if text.starts_with("worker-") {
            self.require(runs.iter().any(|run| run == text), || format!("{call} has the result of no run"));
        } else if !runs.is_empty() {
            self.require(is_error, || format!("{call} ran and its result says nothing of it"));
        }
    }

    /// The history, for whoever has to find out why.
    fn told(&self) -> String {
        let line = |stored: &StoredRecord| {
            let detail = match &stored.record.event {
                Event::ToolStarted { tool_use_id, tip, .. } => format!(" {tool_use_id} {tip:?}"),
                Event::WorkspaceSaved { manifest, tip, .. } => format!(" {} {tip:?}", manifest.as_str()),
                Event::WorkspaceRestored { manifest, tip } => format!(" {manifest:?} {tip}"),
                Event::AgentToolResult { tool_use_id, content, .. } => {
                    let texts: Vec<_> = content.iter().filter_map(ContentBlock::as_text).collect();
                    format!(" {tool_use_id} {texts:?}")
                }
                _ => String::new(),
            };
            format!("  {:>4} {} {}{detail}", stored.record.position, stored.record.at, stored.record.event.kind())
        };
        let lines: Vec<String> = self.records.iter().map(line).collect();
        format!("{}:\n{}", self.id, lines.join("\n"))
    }
}
