//! Between columns and the types of the ports, for both dialects.
//!
//! Columns are text and 64-bit integers only, so one reader ([`Columns`]) serves both. Which columns a statement
//! returns is the statement's business; the names are those of the migrations.

use engine::port::ledger::KeyUsage;
use engine::port::resources::KnownOutput;
use engine::port::tracks::split_hash;
use engine::port::{
    Agent, Amount, Answer, Append, AppendError, BlobHash, Claim, Environment, EnvironmentKey, Fence, File,
    FileResource, Kept, KeyedRequest, Loaded, StoreError, Wake, WorkItem, WorkState,
};
use serde::Serialize;
use session::event::{EnvironmentKind, FORMAT_VERSION};
use session::state::{SNAPSHOT_FORMAT, Status};
use session::{Event, Form, State, Timestamp};
use sqlx::Row as _;

use crate::failure::{corrupt, store_error};

/// Reads a row's columns by name.
pub(crate) trait Columns {
    fn text(&self, column: &str) -> Result<String, StoreError>;
    fn text_or_null(&self, column: &str) -> Result<Option<String>, StoreError>;
    fn integer(&self, column: &str) -> Result<i64, StoreError>;
    fn integer_or_null(&self, column: &str) -> Result<Option<i64>, StoreError>;

    fn counter(&self, column: &str) -> Result<u64, StoreError> {
        u64::try_from(self.integer(column)?).map_err(|error| corrupt(column, error))
    }

    fn time(&self, column: &str) -> Result<Timestamp, StoreError> {
        self.integer(column).map(Timestamp::from_micros)
    }

    fn time_or_null(&self, column: &str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.integer_or_null(column)?.map(Timestamp::from_micros))
    }
}

macro_rules! columns {
    ($($row:ty),*) => {$(
        impl Columns for $row {
            fn text(&self, column: &str) -> Result<String, StoreError> {
                self.try_get(column).map_err(store_error)
            }
            fn text_or_null(&self, column: &str) -> Result<Option<String>, StoreError> {
                self.try_get(column).map_err(store_error)
            }
            fn integer(&self, column: &str) -> Result<i64, StoreError> {
                self.try_get(column).map_err(store_error)
            }
            fn integer_or_null(&self, column: &str) -> Result<Option<i64>, StoreError> {
                self.try_get(column).map_err(store_error)
            }
        }
    )*};
}

columns!(sqlx::sqlite::SqliteRow, sqlx::postgres::PgRow);

/// A file as every statement on files returns it.
pub(crate) fn file(row: &impl Columns) -> Result<File, StoreError> {
    let blob = row.text_or_null("blob")?.map(|text| hash("blob", &text));
    Ok(File {
        id: row.text("id")?.into(),
        filename: row.text("filename")?,
        mime_type: row.text("mime_type")?,
        bytes: row.counter("bytes")?,
        blob: blob.transpose()?,
        created_at: row.time("created_at")?,
        expires_at: row.time_or_null("expires_at")?,
        session_id: row.text_or_null("session_id")?.map(Into::into),
    })
}

/// An amount in two columns.
pub(crate) fn amount(row: &impl Columns, tokens: &str, micro_usd: &str) -> Result<Amount, StoreError> {
    Ok(Amount { tokens: row.counter(tokens)?, micro_usd: row.counter(micro_usd)? })
}

/// A key's ledger as both statements that add it up return it.
pub(crate) fn key_usage(row: &impl Columns) -> Result<KeyUsage, StoreError> {
    Ok(KeyUsage {
        settled: amount(row, "tokens", "micro_usd")?,
        estimated: amount(row, "estimated_tokens", "estimated_micro_usd")?,
        reserved: amount(row, "reserved_tokens", "reserved_micro_usd")?,
        open_requests: row.counter("open_requests")?,
    })
}

/// A resource, with its copy as [`file`] reads it.
pub(crate) fn file_resource(row: &impl Columns) -> Result<FileResource, StoreError> {
    Ok(FileResource { id: row.text("resource_id")?.into(), mount_path: row.text("mount_path")?, file: file(row)? })
}

pub(crate) fn known_output(row: &impl Columns) -> Result<KnownOutput, StoreError> {
    Ok(KnownOutput { path: row.text("path")?, hash: hash("hash", &row.text("hash")?)? })
}

fn hash(column: &str, text: &str) -> Result<BlobHash, StoreError> {
    BlobHash::parse(text).ok_or_else(|| corrupt(column, format!("{text:?} is no hash")))
}

/// The session of a file that has one; nobody's id for any other.
pub(crate) fn session_of(file: &File) -> &str {
    file.session_id.as_ref().map_or("", |id| id.as_str())
}

/// A position, epoch or count as a column. Positions come from counting and never reach the top bit.
pub(crate) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// How many rows to ask for.
pub(crate) fn row_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The columns of a session that an append writes.
pub(crate) struct SessionColumns {
    pub(crate) id: String,
    /// The guard: where the log has to end before the append.
    pub(crate) expected: i64,
    pub(crate) position: i64,
    pub(crate) status: &'static str,
    pub(crate) agent_id: String,
    pub(crate) agent_version: i64,
    pub(crate) environment_id: String,
    pub(crate) environment_kind: &'static str,
    pub(crate) created_at: i64,
    pub(crate) archived_at: Option<i64>,
    /// For a deleted session, the time of its last record, which is its deletion.
    pub(crate) deleted_at: Option<i64>,
    pub(crate) snapshot_format: i64,
    pub(crate) snapshot: String,
    /// The key that creates the session; of a creation alone, because it never changes.
    pub(crate) api_key_id: Option<String>,
    /// Where the session falls when sessions are split between two releases.
    pub(crate) split_hash: i64,
}

impl SessionColumns {
    pub(crate) fn of(append: &Append) -> Result<Self, AppendError> {
        let state = &append.state;
        let position = integer(state.position);
        Ok(Self {
            id: state.session_id.as_str().to_owned(),
            expected: position - row_limit(append.records.len()),
            position,
            status: status(state.status),
            agent_id: state.agent.id.as_str().to_owned(),
            agent_version: i64::from(state.agent.version),
            environment_id: state.environment_id.as_str().to_owned(),
            environment_kind: environment_kind(state.environment_kind),
            created_at: state.created_at.as_micros(),
            archived_at: state.archived_at.map(Timestamp::as_micros),
            deleted_at: state.deleted.then(|| state.last_at.as_micros()),
            snapshot_format: i64::from(SNAPSHOT_FORMAT),
            snapshot: to_json(state)?,
            api_key_id: match append.records.first().map(|record| &record.event) {
                Some(Event::Created(created)) => created.api_key_id.as_ref().map(|id| id.as_str().to_owned()),
                _ => None,
            },
            split_hash: i64::from(split_hash(&state.session_id)),
        })
    }

    /// Whether the append is a session's first.
    pub(crate) fn creates(&self) -> bool {
        self.expected == 0 && self.position > 0
    }
}

/// The owner's claim that an append names, as columns.
pub(crate) fn owner_fence(fence: &Fence) -> (Option<&str>, Option<i64>) {
    match fence {
        Fence::Owner(claim) => (Some(claim.replica_id.as_str()), Some(integer(claim.epoch))),
        Fence::Client | Fence::ItemToken { .. } => (None, None),
    }
}

/// What an append does to claim and wake-up, as columns: the verb, the replica to claim for, the time to wake at.
pub(crate) fn wake_columns(wake: &Wake) -> (&'static str, Option<&str>, Option<i64>) {
    match wake {
        Wake::Keep => ("keep", None, None),
        Wake::Now { claim_for } => ("now", claim_for.as_ref().map(|replica| replica.as_str()), None),
        Wake::Release { wake_at } => ("release", None, wake_at.map(Timestamp::as_micros)),
    }
}

/// A snapshot as it lies in the row. `None` when this build cannot read it: the log has to be folded instead.
pub(crate) fn snapshot(row: &impl Columns) -> Result<Option<State>, StoreError> {
    if row.integer("snapshot_format")? != i64::from(SNAPSHOT_FORMAT) {
        return Ok(None);
    }
    Ok(serde_json::from_str(&row.text("snapshot")?).ok())
}

/// A session's row with its state, which `fold` completes.
pub(crate) fn loaded(row: &impl Columns, state: State) -> Result<Loaded, StoreError> {
    let claim = match row.text_or_null("owner")? {
        Some(owner) => {
            Some(Claim { session_id: state.session_id.clone(), replica_id: owner.into(), epoch: row.counter("epoch")? })
        }
        None => None,
    };
    Ok(Loaded { state, claim, handed_over: row.integer("handed_over")? != 0 })
}

/// The claim in the row of an owned session.
pub(crate) fn claim(row: &impl Columns) -> Result<Claim, StoreError> {
    Ok(Claim {
        session_id: row.text("id")?.into(),
        replica_id: row.text("owner")?.into(),
        epoch: row.counter("epoch")?,
    })
}

/// The columns of a record, its body aside.
pub(crate) struct RecordColumns {
    pub(crate) position: i64,
    pub(crate) form: &'static str,
    /// `None` for a processed event whose content lies in an earlier append: the database knows its type.
    pub(crate) kind: Option<&'static str>,
    pub(crate) event_id: Option<String>,
    pub(crate) refers_to: Option<i64>,
    pub(crate) at: i64,
}

impl RecordColumns {
    /// The columns of every record of one append.
    pub(crate) fn of(append: &Append) -> Vec<Self> {
        let kind_at = |position: u64| {
            let record = append.records.iter().find(|record| record.position == position);
            record.map(|record| record.event.kind())
        };
        let columns = append.records.iter().map(|record| {
            let refers_to = match &record.event {
                Event::Processed { received, .. } => Some(*received),
                _ => None,
            };
            Self {
                position: integer(record.position),
                form: form(record.event.form()),
                kind: refers_to.map_or(Some(record.event.kind()), kind_at),
                event_id: record.event.id().map(|id| id.as_str().to_owned()),
                refers_to: refers_to.map(integer),
                at: record.at.as_micros(),
            }
        });
        columns.collect()
    }
}

/// Reads an event's stored form.
pub(crate) fn event(body: &str, version: i64, position: u64) -> Result<Event, StoreError> {
    if version > i64::from(FORMAT_VERSION) {
        return Err(StoreError::Corrupt(format!(
            "record {position} has format {version}, newer than this build's {FORMAT_VERSION}"
        )));
    }
    serde_json::from_str(body).map_err(|error| corrupt(format_args!("record {position}"), error))
}

pub(crate) fn work_item(row: &impl Columns) -> Result<WorkItem, StoreError> {
    let id = row.text("id")?;
    let metadata = serde_json::from_str(&row.text("metadata")?);
    Ok(WorkItem {
        session_id: row.text("session_id")?.into(),
        environment_id: row.text("environment_id")?.into(),
        environment_kind: parse_environment_kind(&row.text("environment_kind")?)?,
        state: parse_work_state(&row.text("state")?)?,
        metadata: metadata.map_err(|error| corrupt(&id, error))?,
        created_at: row.time("created_at")?,
        acknowledged_at: row.time_or_null("acknowledged_at")?,
        started_at: row.time_or_null("started_at")?,
        latest_heartbeat_at: row.time_or_null("latest_heartbeat_at")?,
        stop_requested_at: row.time_or_null("stop_requested_at")?,
        stopped_at: row.time_or_null("stopped_at")?,
        lease_ttl_seconds: u32::try_from(row.integer("lease_ttl_seconds")?).map_err(|error| corrupt(&id, error))?,
        id: id.into(),
    })
}

pub(crate) fn agent(row: &impl Columns) -> Result<Agent, StoreError> {
    let mut agent: Agent = serde_json::from_str(&row.text("body")?).map_err(|error| corrupt("an agent", error))?;
    agent.archived_at = row.time_or_null("archived_at")?;
    Ok(agent)
}

pub(crate) fn environment(row: &impl Columns) -> Result<Environment, StoreError> {
    let mut environment: Environment =
        serde_json::from_str(&row.text("body")?).map_err(|error| corrupt("an environment", error))?;
    environment.archived_at = row.time_or_null("archived_at")?;
    Ok(environment)
}

pub(crate) fn environment_key(row: &impl Columns) -> Result<EnvironmentKey, StoreError> {
    Ok(EnvironmentKey {
        id: row.text("id")?.into(),
        environment_id: row.text("environment_id")?.into(),
        key_hash: row.text("key_hash")?,
        created_at: row.time("created_at")?,
        revoked_at: row.time_or_null("revoked_at")?,
    })
}

pub(crate) fn kept(row: &impl Columns) -> Result<Kept, StoreError> {
    let status = u16::try_from(row.integer("status")?).map_err(|error| corrupt("status", error))?;
    Ok(Kept {
        request: KeyedRequest {
            credential_hash: row.text("credential_hash")?,
            key: row.text("key")?,
            method: row.text("method")?,
            path: row.text("path")?,
            body_hash: row.text("body_hash")?,
        },
        answer: Answer { status, body: row.text("body")? },
    })
}

/// A body as JSON text.
pub(crate) fn to_json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| corrupt("a body that cannot be written", error))
}

pub(crate) fn status(status: Status) -> &'static str {
    match status {
        Status::Idle => "idle",
        Status::Running => "running",
        Status::Rescheduling => "rescheduling",
        Status::Terminated => "terminated",
    }
}

fn form(form: Form) -> &'static str {
    match form {
        Form::Internal => "internal",
        Form::Received => "received",
        Form::Final => "final",
    }
}

pub(crate) fn environment_kind(kind: EnvironmentKind) -> &'static str {
    match kind {
        EnvironmentKind::Cloud => "cloud",
        EnvironmentKind::SelfHosted => "self_hosted",
    }
}

fn parse_environment_kind(name: &str) -> Result<EnvironmentKind, StoreError> {
    match name {
        "cloud" => Ok(EnvironmentKind::Cloud),
        "self_hosted" => Ok(EnvironmentKind::SelfHosted),
        _ => Err(corrupt("an unknown kind of environment", name)),
    }
}

fn parse_work_state(name: &str) -> Result<WorkState, StoreError> {
    match name {
        "queued" => Ok(WorkState::Queued),
        "starting" => Ok(WorkState::Starting),
        "active" => Ok(WorkState::Active),
        "stopping" => Ok(WorkState::Stopping),
        "stopped" => Ok(WorkState::Stopped),
        _ => Err(corrupt("an unknown state of a work item", name)),
    }
}
