//! What clients and workers ask of a session, on any replica: load, decide, append, ring.
//!
//! What a client is told of a command can be made, and kept with it, before it is committed ([`Respond`]): it follows
//! from the records that were decided.
//!
//! A client append names no owner. It is guarded by the position alone: when somebody else was first, the session
//! is read again and the command decided again. What an append has to do besides (wake the session, queue a work
//! item) is read from the states around it, in [`consequences`]. The owner's appends are [`crate::driver`]'s.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use session::agent::AgentSnapshot;
use session::event::{Created, Event};
use session::id::{SessionId, WorkId};
use session::{ClientEvent, Command, Decision, Record, Refusal, State, decide};
use tokio::time::Duration;

use crate::claims::{LocalClaims, Start, Won};
use crate::observer::{HandOver, Observer, Silent, observe_turns};
use crate::port::work_queue::Pool;
use crate::port::{
    AfterLease, Answer, Append, AppendError, Fence, FileResource, Frame, Kept, KeyUsed, KeyedRequest, LedgerChange,
    Loaded, StoreError, StoredRecord, Wake, WorkChange, WorkItem,
};
use crate::world::World;

pub(crate) mod consequences;

/// Conflicts in a row after which a command gives up.
const CONFLICTS_MAX: u32 = 40;

/// Agent snapshots kept at hand.
const SNAPSHOTS_KEPT: usize = 128;

/// The sessions, as a client of the engine sees them.
#[derive(Clone)]
pub struct Sessions {
    world: World,
    claims: Option<LocalClaims>,
    observer: Arc<dyn Observer>,
    snapshots: Arc<Mutex<VecDeque<CachedSnapshot>>>,
}

struct CachedSnapshot {
    session_id: SessionId,
    position: u64,
    snapshot: Arc<AgentSnapshot>,
}

/// What a command did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The session after the command.
    pub state: State,
    /// For each client event of the command, in order, the record that stores it.
    /// A repeated answer has the record of the first one.
    pub posted: Vec<StoredRecord>,
    /// Every record that the command appended.
    pub appended: Arc<[StoredRecord]>,
}

/// What came of stopping a work item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Its holder is asked to stop, or it has ended.
    Yes(WorkItem),
    /// It had ended before.
    Already,
    NotFound,
}

/// Makes the answer to a command. It is asked before the command is committed, and once more for every conflict.
#[async_trait]
pub trait Respond: Send + Sync {
    async fn respond(&self, outcome: &Outcome) -> Result<Answer, StoreError>;
}

/// What a command is answered with, and what the answer is kept for.
#[derive(Clone, Copy)]
pub struct Reply<'r> {
    pub respond: &'r dyn Respond,
    /// The request, if it names an idempotency key.
    pub request: Option<&'r KeyedRequest>,
}

/// Why a command did nothing, or is not known to have done anything.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("session {0} does not exist")]
    NotFound(SessionId),
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The item token that the command came with is no longer its item's.
    #[error("the work item's token has ended")]
    TokenEnded,
    /// A request under the command's key was committed before.
    #[error(transparent)]
    KeyUsed(#[from] KeyUsed),
    /// Others kept appending first. Trying again later is right.
    #[error("session {0} is too busy")]
    Busy(SessionId),
    /// The session's API key has this many others running, as many as it may.
    #[error("the session's API key already has {0} sessions running")]
    TooManyRunning(u32),
    /// Whether the command took place is unknown.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Sessions {
    /// `claim_for` names the scheduler of this process, if it has one ([`crate::Replica::local_claims`]).
    pub fn new(world: World, claim_for: Option<LocalClaims>) -> Self {
        Self { world, claims: claim_for, observer: Arc::new(Silent), snapshots: Arc::default() }
    }

    /// The same, telling `observer` of the turns that its appends open and end.
    #[must_use]
    pub fn with_observer(self, observer: Arc<dyn Observer>) -> Self {
        Self { observer, ..self }
    }

    pub(crate) fn world(&self) -> &World {
        &self.world
    }

    /// Creates a session.
    pub async fn create(&self, created: Created, initial_events: Vec<ClientEvent>) -> Result<Outcome, CommandError> {
        let (session_id, command) = creation(created, initial_events);
        let done = self.attempt(&session_id, None, &command, &Fence::Client, None, &[]).await?;
        done.map(|(outcome, _)| outcome).ok_or(CommandError::Busy(session_id))
    }

    /// Creates a session that is given `resources`; returns the answer.
    pub async fn create_answered(
        &self,
        created: Created,
        initial_events: Vec<ClientEvent>,
        resources: &[FileResource],
        reply: Reply<'_>,
    ) -> Result<Answer, CommandError> {
        let (session_id, command) = creation(created, initial_events);
        let done = self.attempt(&session_id, None, &command, &Fence::Client, Some(reply), resources).await?;
        done.and_then(|(_, answer)| answer).ok_or(CommandError::Busy(session_id))
    }

    /// Does what `command` asks, or says why not.
    pub async fn command(&self, id: &SessionId, command: Command, fence: Fence) -> Result<Outcome, CommandError> {
        Ok(self.persist(id, command, fence, None).await?.0)
    }

    /// The same; returns the answer.
    pub async fn command_answered(
        &self,
        id: &SessionId,
        command: Command,
        fence: Fence,
        reply: Reply<'_>,
    ) -> Result<Answer, CommandError> {
        let (_, answer) = self.persist(id, command, fence, Some(reply)).await?;
        Ok(answer.expect("whatever has a reply has an answer"))
    }

    /// Tries until the command is committed or refused.
    async fn persist(
        &self,
        id: &SessionId,
        command: Command,
        fence: Fence,
        reply: Option<Reply<'_>>,
    ) -> Result<(Outcome, Option<Answer>), CommandError> {
        let mut passage = self.world.gates.pass_if_crowded(id).await;
        for conflicts in 0..CONFLICTS_MAX {
            if conflicts > 0 && passage.is_none() {
                passage = Some(self.world.gates.pass(id).await);
            }
            if conflicts > 1 {
                let spread_ms = u128::from(conflicts.min(10) * 4);
                tokio::time::sleep(Duration::from_millis((self.world.entropy.draw() % spread_ms) as u64)).await;
            }
            let loaded = self.world.log.load(id).await?.ok_or_else(|| CommandError::NotFound(id.clone()))?;
            if let Some(done) = self.attempt(id, Some(loaded), &command, &fence, reply, &[]).await? {
                return Ok(done);
            }
        }
        Err(CommandError::Busy(id.clone()))
    }

    /// The session as its log tells it now; deleted sessions too, until they are purged.
    pub async fn state(&self, id: &SessionId) -> Result<Option<State>, StoreError> {
        Ok(self.world.log.load(id).await?.map(|loaded| loaded.state))
    }

    /// The agent that the session runs: the snapshot at `state.agent.position`.
    pub async fn agent_snapshot(&self, state: &State) -> Result<Arc<AgentSnapshot>, StoreError> {
        let (session_id, position) = (&state.session_id, state.agent.position);
        if let Some(snapshot) = self.cached_snapshot(session_id, position) {
            return Ok(snapshot);
        }
        let snapshot = read_agent_snapshot(&self.world, session_id, position).await?;
        let mut snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        if snapshots.len() == SNAPSHOTS_KEPT {
            snapshots.pop_front();
        }
        snapshots.push_back(CachedSnapshot {
            session_id: session_id.clone(),
            position,
            snapshot: Arc::clone(&snapshot),
        });
        Ok(snapshot)
    }

    /// The agent that the session runs after a command, which may not be committed yet.
    pub async fn agent_snapshot_after(&self, outcome: &Outcome) -> Result<Arc<AgentSnapshot>, StoreError> {
        match at_position(&outcome.appended, outcome.state.agent.position).map(|stored| &stored.record.event) {
            Some(Event::Created(created)) => Ok(Arc::new(created.agent.clone())),
            Some(Event::Updated { agent: Some(agent), .. }) => Ok(Arc::new((**agent).clone())),
            _ => self.agent_snapshot(&outcome.state).await,
        }
    }

    /// Ends the lease on a work item: what was exposed to its holder is closed as interrupted, and the item is
    /// queued again if its session still needs a worker. `false` when the lease was revived or ended meanwhile, or
    /// the session moved: the next pass sees what is left to do.
    pub async fn end_lease(&self, item: &WorkItem) -> Result<bool, CommandError> {
        let Some(seen) = item.last_sign_at() else {
            return Ok(false);
        };
        let Some(loaded) = self.world.log.load(&item.session_id).await? else {
            return Err(CommandError::NotFound(item.session_id.clone()));
        };
        let ended = Command::EndLease { work_id: item.id.clone() };
        let decision = self.decide_or_keep(&loaded.state, ended)?;
        let then = if consequences::wants_worker(&decision.state) { AfterLease::Requeue } else { AfterLease::Stop };
        let work = WorkChange::EndLease { work_id: item.id.clone(), seen: Some(seen), then };
        Ok(self.commit(Some(&loaded), Prepared::of(decision), Fence::Client, work, None).await?.is_some())
    }

    /// Asks the holder of a work item to stop; with `force`, or where nobody holds it, ends the item, and closes what
    /// was exposed to its holder. With calls left that were never begun, another item is queued for them.
    pub async fn stop_item(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        force: bool,
        fence: Fence,
    ) -> Result<Stopped, CommandError> {
        let Some(mut item) = self.world.work.item(pool, work_id).await? else {
            return Ok(Stopped::NotFound);
        };
        for _ in 0..CONFLICTS_MAX {
            if !item.lives() {
                return Ok(Stopped::Already);
            }
            let is_held = item.last_sign_at().is_some();
            let stopped = if is_held && !force {
                self.world.work.ask_to_stop(pool, work_id).await?
            } else if self.end_item(&item, fence.clone()).await? {
                self.world.work.item(pool, work_id).await?
            } else {
                None
            };
            if let Some(stopped) = stopped {
                return Ok(Stopped::Yes(stopped));
            }
            // It is not what it was: its holder let it go, say, before it was asked.
            match self.world.work.item(pool, work_id).await? {
                Some(now) => item = now,
                None => return Ok(Stopped::NotFound),
            }
        }
        Err(CommandError::Busy(item.session_id))
    }

    /// Ends an item as it was seen. `false` when it moved, or its session did.
    async fn end_item(&self, item: &WorkItem, fence: Fence) -> Result<bool, CommandError> {
        let Some(loaded) = self.world.log.load(&item.session_id).await? else {
            // An item goes with its session.
            return Ok(false);
        };
        let seen = item.last_sign_at();
        let decision = match seen {
            Some(_) => self.decide_or_keep(&loaded.state, Command::EndLease { work_id: item.id.clone() })?,
            None => Decision { records: Vec::new(), state: loaded.state.clone(), posted: Vec::new() },
        };
        // In one transaction: a crash between the two would leave the calls to nobody.
        let then = match decision.state.runnable_calls().next() {
            Some(_) => AfterLease::Replace { work_id: self.world.ids().next() },
            None => AfterLease::Stop,
        };
        let work = WorkChange::EndLease { work_id: item.id.clone(), seen, then };
        Ok(self.commit(Some(&loaded), Prepared::of(decision), fence, work, None).await?.is_some())
    }

    /// `None` when the session moved between the reading and the append.
    async fn attempt(
        &self,
        id: &SessionId,
        loaded: Option<Loaded>,
        command: &Command,
        fence: &Fence,
        reply: Option<Reply<'_>>,
        resources: &[FileResource],
    ) -> Result<Option<(Outcome, Option<Answer>)>, CommandError> {
        let before = loaded.as_ref().map(|loaded| &loaded.state);
        let mut ids = self.world.ids();
        let decision = decide(before, command.clone(), &self.world.limits, self.world.clock.now(), &mut ids)?;
        let work = consequences::work_change(command, before, &decision.state, &mut ids);
        let running_max = consequences::running_max(&self.world.key_limits, command, before, &decision.state);
        let positions = decision.posted.clone();
        let resources = resources.to_vec();
        let mut prepared = Prepared { running_max, resources, ..Prepared::of(decision) };
        for position in positions {
            let posted = match at_position(&prepared.outcome.appended, position) {
                Some(stored) => stored.clone(),
                None => read_at(&self.world, id, position).await?,
            };
            prepared.outcome.posted.push(posted);
        }
        let answer = match reply {
            Some(reply) => Some(reply.respond.respond(&prepared.outcome).await?),
            None => None,
        };
        let request = reply.and_then(|reply| reply.request).cloned();
        let kept = request.zip(answer.clone()).map(|(request, answer)| Kept { request, answer });
        let outcome = self.commit(loaded.as_ref(), prepared, fence.clone(), work, kept).await?;
        Ok(outcome.map(|outcome| (outcome, answer)))
    }

    /// Appends what was decided, and tells of it. `None` on a conflict.
    async fn commit(
        &self,
        loaded: Option<&Loaded>,
        prepared: Prepared,
        fence: Fence,
        work: WorkChange,
        kept: Option<Kept>,
    ) -> Result<Option<Outcome>, CommandError> {
        let Prepared { records, complete, outcome, running_max, resources } = prepared;
        let due_now = consequences::due_now(&outcome.state, self.world.clock.now());
        // A token is checked even where nothing is appended: its holder must learn that it has lost the item.
        if records.is_empty() && work == WorkChange::None && fence == Fence::Client && kept.is_none() {
            return Ok(Some(outcome));
        }
        let owned = loaded.is_some_and(|loaded| loaded.claim.is_some());
        let slot = if due_now && !owned { self.claims.as_ref().and_then(LocalClaims::slot_for_newcomer) } else { None };
        let doubt = self.claims.as_ref().filter(|_| slot.is_some()).map(LocalClaims::doubt);
        let wake = match (&self.claims, due_now) {
            (_, false) => Wake::Keep,
            (Some(claims), true) if slot.is_some() => Wake::Now { claim_for: Some(claims.replica_id().clone()) },
            (_, true) => Wake::Now { claim_for: None },
        };
        let (state, stored, ledger) = (&outcome.state, &outcome.appended, LedgerChange::None);
        let append = Append { records, state: state.clone(), fence, wake, work, kept, running_max, ledger, resources };
        let appended = match self.world.log.append(append).await {
            Ok(appended) => appended,
            Err(error) => {
                if let (Some(doubt), false) = (doubt, matches!(error, AppendError::Store(_))) {
                    doubt.settle();
                }
                return match error {
                    AppendError::Conflict => Ok(None),
                    AppendError::TokenEnded | AppendError::Fenced => Err(CommandError::TokenEnded),
                    // Clients reserve nothing.
                    AppendError::OverCap(over) => Err(StoreError::Corrupt(over.to_string()).into()),
                    AppendError::TooManyRunning(max) => Err(CommandError::TooManyRunning(max)),
                    AppendError::KeyUsed(used) => Err(used.into()),
                    AppendError::Store(error) => Err(error.into()),
                };
            }
        };
        observe_turns(&*self.observer, loaded.map(|loaded| &loaded.state), state, stored);
        let bell = &self.world.bell;
        if !stored.is_empty() {
            bell.ring(Frame::Appended {
                session_id: state.session_id.clone(),
                position: state.position,
                records: complete.then(|| Arc::clone(stored)),
            });
        }
        if appended.queued {
            bell.ring(Frame::WorkQueued);
        }
        match (appended.claim, slot, &self.claims) {
            (Some(claim), Some(slot), Some(claims)) => {
                let tail = if complete { Arc::clone(stored) } else { Arc::new([]) };
                let start = Some(Start { state: state.clone(), tail });
                let from = loaded.filter(|loaded| loaded.handed_over).map(|_| HandOver::Drain);
                claims.hand_in(Won { claim, from, slot: Some(slot), start });
            }
            _ if due_now && !owned => bell.ring(Frame::Claimable),
            _ => {}
        }
        if let Some(doubt) = doubt {
            doubt.settle();
        }
        Ok(Some(outcome))
    }

    /// A command whose refusal means that the records stay as they are.
    fn decide_or_keep(&self, state: &State, command: Command) -> Result<Decision, CommandError> {
        let mut ids = self.world.ids();
        match decide(Some(state), command, &self.world.limits, self.world.clock.now(), &mut ids) {
            Ok(decision) => Ok(decision),
            Err(Refusal::Overtaken | Refusal::Gone(_) | Refusal::Invalid { .. } | Refusal::Conflict { .. }) => {
                Ok(Decision { records: Vec::new(), state: state.clone(), posted: Vec::new() })
            }
        }
    }

    fn cached_snapshot(&self, session_id: &SessionId, position: u64) -> Option<Arc<AgentSnapshot>> {
        let mut snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        let index = snapshots.iter().position(|entry| entry.position == position && entry.session_id == *session_id)?;
        let entry = snapshots.remove(index)?;
        let snapshot = Arc::clone(&entry.snapshot);
        snapshots.push_back(entry);
        Some(snapshot)
    }
}

/// What is about to be appended, and what will have come of it.
struct Prepared {
    records: Vec<Record>,
    /// Whether `outcome.appended` holds everything that its readers need.
    complete: bool,
    outcome: Outcome,
    /// As in [`Append::running_max`].
    running_max: Option<u32>,
    resources: Vec<FileResource>,
}

impl Prepared {
    fn of(decision: Decision) -> Self {
        let Decision { records, state, .. } = decision;
        let (appended, complete) = stored_records(records.clone(), |_| None);
        let outcome = Outcome { state, posted: Vec::new(), appended };
        Self { records, complete, outcome, running_max: None, resources: Vec::new() }
    }
}

/// The id is fresh; a conflict means that a lost answer is being made good, or a broken source of ids.
fn creation(created: Created, initial_events: Vec<ClientEvent>) -> (SessionId, Command) {
    (created.session_id.clone(), Command::Create { created: Box::new(created), initial_events })
}

/// The agent snapshot that the record at `position` holds.
pub(crate) async fn read_agent_snapshot(
    world: &World,
    session_id: &SessionId,
    position: u64,
) -> Result<Arc<AgentSnapshot>, StoreError> {
    match read_at(world, session_id, position).await?.record.event {
        Event::Created(created) => Ok(Arc::new(created.agent)),
        Event::Updated { agent: Some(agent), .. } => Ok(Arc::new(*agent)),
        other => Err(StoreError::Corrupt(format!(
            "session {session_id} expects an agent snapshot at position {position}, found {}",
            other.kind()
        ))),
    }
}

/// The record at `position`, which is known to exist.
async fn read_at(world: &World, session_id: &SessionId, position: u64) -> Result<StoredRecord, StoreError> {
    let mut found = world.log.read(session_id, position.saturating_sub(1), 1).await?;
    match found.pop() {
        Some(stored) if stored.record.position == position => Ok(stored),
        _ => Err(StoreError::Corrupt(format!("session {session_id} has no record at position {position}"))),
    }
}

/// The records as they will be read, and whether every one of them is complete: an [`Event::Processed`] needs its
/// received event, which is among the records or comes from `lookup`.
pub(crate) fn stored_records(
    records: Vec<Record>,
    lookup: impl Fn(u64) -> Option<Event>,
) -> (Arc<[StoredRecord]>, bool) {
    let mut complete = true;
    let mut stored: Vec<StoredRecord> = Vec::with_capacity(records.len());
    for record in records {
        let received = match &record.event {
            Event::Processed { received, .. } => {
                let event = at_position(&stored, *received)
                    .map(|stored| stored.record.event.clone())
                    .or_else(|| lookup(*received));
                complete &= event.is_some();
                event
            }
            _ => None,
        };
        stored.push(StoredRecord { record, received });
    }
    (stored.into(), complete)
}

/// The record at `position` among records without gaps.
fn at_position(records: &[StoredRecord], position: u64) -> Option<&StoredRecord> {
    let first = records.first()?.record.position;
    records.get(usize::try_from(position.checked_sub(first)?).ok()?)
}
