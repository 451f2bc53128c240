//! Drives one claimed session: folds, asks what is due, records the intent, performs, appends the outcome.
//!
//! Everything that a driver knows can be read from the log again, so it may be dropped at any await: whoever claims
//! the session next goes on from the same state. An append that finds the log moved on reads the tail and decides
//! again; one that finds the claim lost ends the driver at once. A store that cannot be reached is asked again for
//! as long as it takes: an append whose answer was lost meets its own records as a conflict.
//!
//! When nothing is due after an append, the same append lets the session go.

mod append;
mod previews;
mod reservation;

use std::collections::BTreeMap;
use std::sync::Arc;

use session::agent::AgentSnapshot;
use session::command::ModelOutcome;
use session::event::{Event, ModelUsage, RequestPurpose};
use session::id::EventId;
use session::state::OpenRequest;
use session::{Command, State, Timestamp, Work, apply, due};
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::previews::Previews;
use crate::claims::Start;
use crate::observer::{CallEnd, HandOver, Observer, RequestEnd, ToolOutcome};
use crate::port::ledger::Price;
use crate::port::model::ModelAnswer;
use crate::port::{Amount, Claim, Frame, Listener, ModelError, StoreError, StoredRecord, Topic};
use crate::replica::pulse::Pulse;
use crate::sessions::read_agent_snapshot;
use crate::transcript::{Kept, Transcript};
use crate::watch::Watched;
use crate::world::World;

/// While calls wait for a worker, how often to make sure that the session has a work item.
const ENSURE_ITEM_EVERY: Duration = Duration::from_secs(10);

/// Records read at once.
const PAGE: usize = 256;

/// The first and the longest pause after the store could not be reached.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// What every driver of a replica shares.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) world: World,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) pulse: Pulse,
    pub(crate) transcripts: Arc<Kept>,
    /// Hand the session over at the next safe point.
    pub(crate) draining: CancellationToken,
    /// Do not wait for an answer any longer.
    pub(crate) cut: CancellationToken,
}

/// Why a driver stopped.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Nothing was due; the session was let go.
    Released,
    /// The replica drains; the session is anybody's.
    HandedOver,
    /// Somebody else has the session.
    Fenced,
    /// Something that trying again at once will not mend.
    Broken(String),
}

/// Drives the session of `claim` until it stops.
pub(crate) async fn drive(shared: Shared, claim: Claim, from: Option<HandOver>, start: Option<Start>) -> Stop {
    let world = &shared.world;
    let mut listener = world.bell.listen(Topic::Session(claim.session_id.clone()));
    // They are its own, and each would wake it.
    listener.decline_previews();
    let watched = world.watch.follow(&claim.session_id);
    let Begun { state, transcript, tail } = match begin(&shared, &claim, start).await {
        Ok(begun) => begun,
        Err(stop) => return stop,
    };
    let mut driver = Driver {
        shared,
        claim,
        state,
        transcript,
        agent: None,
        listener,
        watched,
        item_ensured: false,
        text_awaited_since: None,
        calls_since: BTreeMap::new(),
    };
    tail.iter().for_each(|stored| driver.take_in(stored));
    let stop = match driver.run(from).await {
        Ok(never) => match never {},
        Err(stop) => stop,
    };
    if let (Stop::Released, Some(transcript)) = (&stop, driver.transcript) {
        driver.shared.transcripts.keep(&driver.claim.session_id, transcript);
    }
    stop
}

/// Nothing has this type: a run ends by a [`Stop`] alone.
enum Never {}

struct Driver {
    shared: Shared,
    claim: Claim,
    state: State,
    /// Never ahead of `state`.
    transcript: Option<Transcript>,
    /// The agent, with the position of its record, where the transcript does not hold it.
    agent: Option<(u64, Arc<AgentSnapshot>)>,
    listener: Box<dyn Listener>,
    watched: Watched,
    /// The present calls are known to have a work item.
    item_ensured: bool,
    /// When the turn began whose first text nobody has seen yet.
    text_awaited_since: Option<Timestamp>,
    /// Since when the calls of the last answer run, as far as this driver saw it.
    calls_since: BTreeMap<EventId, Timestamp>,
}

/// What a driver starts from.
struct Begun {
    state: State,
    /// As much of the transcript as is known here.
    transcript: Option<Transcript>,
    /// The last records, where the claim came with them; perhaps not yet in the transcript.
    tail: Arc<[StoredRecord]>,
}

/// Finds out what to start from.
async fn begin(shared: &Shared, claim: &Claim, start: Option<Start>) -> Result<Begun, Stop> {
    let kept = shared.transcripts.take(&claim.session_id);
    if let Some(Start { state, tail }) = start {
        let whole = tail.first().is_some_and(|first| first.record.position == 1);
        let transcript = if whole { Some(Transcript::starting_behind(0)) } else { kept };
        return Ok(Begun { state, transcript, tail });
    }
    let loaded = persist(shared, || shared.world.log.load(&claim.session_id)).await?;
    match loaded {
        Some(loaded) if loaded.claim.as_ref() == Some(claim) => {
            Ok(Begun { state: loaded.state, transcript: kept, tail: Arc::new([]) })
        }
        _ => Err(Stop::Fenced),
    }
}

impl Driver {
    async fn run(&mut self, from: Option<HandOver>) -> Result<Never, Stop> {
        let resumed = from.filter(|_| self.state.turn.is_some());
        if let Some(reason) = resumed {
            self.shared.observer.resumed(reason);
        }
        if resumed == Some(HandOver::Crash) {
            self.append(Command::TakeOver { epoch: self.claim.epoch }).await?;
        }
        loop {
            let now = self.shared.world.clock.now();
            let Some(work) = due(&self.state, now).into_iter().next() else {
                return Err(self.release(None).await);
            };
            if self.shared.draining.is_cancelled() && !matches!(work, Work::Resume { at } if at > now) {
                return Err(self.hand_over().await);
            }
            match work {
                Work::ApplyInterrupt => {
                    self.append(Command::ApplyInterrupt { usage: ModelUsage::default() }).await?;
                }
                // Not a request of this driver, which never comes back here with one of its own.
                Work::AwaitModel(request) => self.settle_lost(request).await?,
                Work::BeginModelRequest => self.request().await?,
                Work::Resume { at } if at <= now => {
                    self.append(Command::Resume).await?;
                }
                Work::Resume { at } => return Err(self.release(Some(at)).await),
                Work::AwaitWorker { .. } => self.await_worker().await?,
            }
        }
    }

    /// A request whose maker is gone: what the provider did is unknown.
    async fn settle_lost(&mut self, request: OpenRequest) -> Result<(), Stop> {
        let (outcome, usage) = (ModelOutcome::Lost, ModelUsage::default());
        self.append(Command::FinishModelRequest { span_id: request.span_id, outcome, usage }).await?;
        Ok(())
    }

    /// Asks the model, from the intent to the outcome.
    async fn request(&mut self) -> Result<(), Stop> {
        self.read_context().await?;
        self.shared.pulse.alive().await;
        let tried = self.append(Command::BeginModelRequest).await?;
        let open = self.state.turn.as_ref().and_then(|turn| turn.request.clone());
        let Some(request) = open.filter(|request| tried.contains(&request.span_id)) else {
            return Ok(());
        };
        let Ended { outcome, usage, spent } = match self.ask(&request).await? {
            Asked::Ended(ended) => ended,
            // The main loop sees the interrupt, or that the request was settled by somebody else.
            Asked::Interrupted => {
                self.append(Command::ApplyInterrupt { usage: ModelUsage::default() }).await?;
                return Ok(());
            }
            Asked::Overtaken => return Ok(()),
            // The main loop hands over what is then due: the same request, elsewhere.
            Asked::Cut => Ended { outcome: ModelOutcome::Cut, usage: ModelUsage::default(), spent: None },
        };
        self.append_settling(Command::FinishModelRequest { span_id: request.span_id, outcome, usage }, spent).await?;
        Ok(())
    }

    /// Makes the model request that was recorded.
    async fn ask(&mut self, request: &OpenRequest) -> Result<Asked, Stop> {
        let agent = self.read_context().await?;
        let transcript = self.transcript.as_ref().expect("the context was just read");
        let model_request = transcript.request(&self.state.session_id, &agent, request.purpose);
        let world = self.shared.world.clone();
        let cut = self.shared.cut.clone();
        let mut previews = self.previews(request);
        let began = Instant::now();
        // A summary is never an event of its own, so nobody may see it come.
        let mut unseen = Unseen;
        let mut answering = match request.purpose {
            RequestPurpose::Turn => world.model.answer(model_request, &mut previews),
            RequestPurpose::Compaction => world.model.answer(model_request, &mut unseen),
        };
        let answered = loop {
            tokio::select! {
                biased;
                () = cut.cancelled() => return Ok(Asked::Cut),
                moved = self.follow() => {
                    moved?;
                    let open = self.state.turn.as_ref().and_then(|turn| turn.request.as_ref());
                    if open.is_none_or(|open| open.span_id != request.span_id) {
                        return Ok(Asked::Overtaken);
                    }
                    if self.state.interrupt.is_some() {
                        return Ok(Asked::Interrupted);
                    }
                }
                answered = &mut answering => break answered,
            }
        };
        drop(answering);
        self.text_awaited_since = previews.text_awaited_since;
        let first_chunk_seconds = previews.first_at.map(|at| at.duration_since(began).as_secs_f64());
        let error = answered.as_ref().err().map(|error| error.kind);
        let ended = Ended::of(answered, world.model.price(&agent.model.id));
        self.shared.observer.model_request_ended(&RequestEnd {
            model: &agent.model.id,
            usage: ended.usage,
            duration_seconds: began.elapsed().as_secs_f64(),
            first_chunk_seconds,
            error,
        });
        Ok(Asked::Ended(ended))
    }

    fn previews(&mut self, request: &OpenRequest) -> Previews {
        let (message, thinking) = Previews::lines(request);
        if let Some(turn) = self.state.turn.as_ref().filter(|turn| turn.requests == 0 && turn.attempts == 0) {
            self.text_awaited_since = Some(turn.started_at);
        }
        Previews {
            bell: Arc::clone(&self.shared.world.bell),
            clock: Arc::clone(&self.shared.world.clock),
            observer: Arc::clone(&self.shared.observer),
            session_id: self.state.session_id.clone(),
            epoch: self.claim.epoch,
            span_position: request.position,
            message,
            thinking,
            text_awaited_since: self.text_awaited_since,
            first_at: None,
        }
    }

    /// Waits until a worker, or a client, has moved the session on.
    async fn await_worker(&mut self) -> Result<(), Stop> {
        if !self.item_ensured {
            return self.ensure_item().await;
        }
        let draining = self.shared.draining.clone();
        tokio::select! {
            biased;
            () = draining.cancelled() => Ok(()),
            moved = self.follow() => moved,
            () = sleep(ENSURE_ITEM_EVERY) => {
                self.item_ensured = false;
                Ok(())
            }
        }
    }

    /// Waits until the log has moved beyond what was folded, and folds that.
    async fn follow(&mut self) -> Result<(), Stop> {
        loop {
            tokio::select! {
                biased;
                frame = self.listener.hear() => match frame {
                    Some(Frame::Appended { position, records, .. }) if position > self.state.position => {
                        let news = records.as_deref().unwrap_or_default();
                        let next = self.state.position + 1;
                        match news.iter().position(|stored| stored.record.position == next) {
                            Some(index) => news[index..].iter().for_each(|stored| self.absorb(stored)),
                            None => self.catch_up().await?,
                        }
                        return Ok(());
                    }
                    Some(_) => {}
                    None => {
                        let before = self.state.position;
                        self.catch_up().await?;
                        if self.state.position > before {
                            return Ok(());
                        }
                    }
                },
                _ = self.watched.moved_beyond(self.state.position) => return self.catch_up().await,
            }
        }
    }

    /// Reads and folds whatever lies behind what was folded.
    async fn catch_up(&mut self) -> Result<(), Stop> {
        loop {
            let (log, session_id, after) = (&self.shared.world.log, &self.claim.session_id, self.state.position);
            let page = persist(&self.shared, || log.read(session_id, after, PAGE)).await?;
            page.iter().for_each(|stored| self.absorb(stored));
            if page.len() < PAGE {
                return Ok(());
            }
        }
    }

    /// Folds one record that somebody else appended.
    fn absorb(&mut self, stored: &StoredRecord) {
        if stored.record.position != self.state.position + 1 {
            return;
        }
        let before = self.state.clone();
        self.state = apply(Some(before), &stored.record).expect("a session that exists goes on existing");
        self.take_in(stored);
    }

    /// Keeps the transcript in step, and tells of a tool call's end.
    fn take_in(&mut self, stored: &StoredRecord) {
        let Some(transcript) = &mut self.transcript else { return };
        if transcript.position() + 1 == stored.record.position {
            transcript.push(stored);
        }
        let at = stored.record.at;
        let (call, is_error) = match &stored.record.event {
            Event::AgentToolUse { id: call, .. }
            | Event::AgentCustomToolUse { id: call, .. }
            | Event::ToolStarted { tool_use_id: call, .. } => {
                self.calls_since.insert(call.clone(), at);
                return;
            }
            Event::AgentToolResult { tool_use_id: call, is_error, .. }
            | Event::UserToolResult { tool_use_id: call, is_error, .. }
            | Event::UserCustomToolResult { custom_tool_use_id: call, is_error, .. } => (call, *is_error),
            _ => return,
        };
        let since = self.calls_since.remove(call);
        if let Some(tool) = transcript.tool_of(call) {
            let outcome = if is_error { ToolOutcome::Failed } else { ToolOutcome::Succeeded };
            let duration_seconds = since.map_or(0.0, |since| at.seconds_since(since));
            self.shared.observer.tool_call_ended(&CallEnd { tool, outcome, duration_seconds });
        }
    }

    /// Has the agent and the whole transcript at hand, reading what is missing.
    async fn read_context(&mut self) -> Result<Arc<AgentSnapshot>, Stop> {
        let (log, session_id, position) = (&*self.shared.world.log, &self.claim.session_id, self.state.position);
        let from = self.state.context.from.saturating_sub(1);
        let transcript = match &mut self.transcript {
            Some(transcript) if transcript.position() >= from => transcript,
            stale => stale.insert(Transcript::starting_behind(from)),
        };
        let mut retry = Retry::default();
        while transcript.position() < position {
            match transcript.read_on(log, session_id, position).await {
                Ok(()) => {}
                Err(StoreError::Corrupt(what)) => return Err(Stop::Broken(what)),
                Err(StoreError::Unavailable(_)) => retry.pause(&self.shared).await?,
            }
        }
        if let Some(agent) = self.agent() {
            return Ok(agent);
        }
        let (session_id, at) = (&self.claim.session_id, self.state.agent.position);
        let agent = persist(&self.shared, || read_agent_snapshot(&self.shared.world, session_id, at)).await?;
        self.agent = Some((at, Arc::clone(&agent)));
        Ok(agent)
    }

    /// The agent that the session runs now, if it is at hand.
    fn agent(&self) -> Option<Arc<AgentSnapshot>> {
        let at = self.state.agent.position;
        let kept = || self.agent.as_ref().filter(|(position, _)| *position == at).map(|(_, agent)| Arc::clone(agent));
        self.transcript.as_ref().and_then(|transcript| transcript.agent(at)).or_else(kept)
    }
}

/// How asking the model went.
enum Asked {
    Ended(Ended),
    Interrupted,
    /// The request is no longer open.
    Overtaken,
    /// The drain could not wait for the answer any longer.
    Cut,
}

/// What came of a request, for the log.
struct Ended {
    outcome: ModelOutcome,
    usage: ModelUsage,
    /// For the ledger; `None` where nobody knows.
    spent: Option<Amount>,
}

impl Ended {
    /// An answer that broke off was charged in part, and only its provider knows how much.
    fn of(answered: Result<ModelAnswer, ModelError>, price: Option<Price>) -> Self {
        match answered {
            Ok(ModelAnswer { blocks, stop, usage }) => {
                let spent = (usage != ModelUsage::default()).then(|| Amount::of(&usage, price));
                Self { outcome: ModelOutcome::Answered { blocks, stop }, usage, spent }
            }
            Err(ModelError { kind, message, retryable, retry_after_ms, usage, is_free }) => {
                let spent = is_free.then(Amount::default);
                Self { outcome: ModelOutcome::Failed { kind, message, retryable, retry_after_ms }, usage, spent }
            }
        }
    }
}

/// Takes previews that nobody may see.
struct Unseen;

impl crate::port::model::PreviewSink for Unseen {
    fn preview(&mut self, _: crate::port::PreviewDelta) {}
}

/// Reads until the store answers, or the session has to be let go.
async fn persist<T, F>(shared: &Shared, mut read: impl FnMut() -> F) -> Result<T, Stop>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut retry = Retry::default();
    loop {
        match read().await {
            Ok(value) => return Ok(value),
            Err(StoreError::Corrupt(what)) => return Err(Stop::Broken(what)),
            Err(StoreError::Unavailable(_)) => retry.pause(shared).await?,
        }
    }
}

/// Pauses that grow, with half of each left to chance.
struct Retry {
    pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { pause: RETRY_MIN }
    }
}

impl Retry {
    async fn pause(&mut self, shared: &Shared) -> Result<(), Stop> {
        let chance = (shared.world.entropy.draw() % 1_000) as u32;
        let pause = self.pause / 2 + self.pause * chance / 2_000;
        self.pause = (self.pause * 2).min(RETRY_MAX);
        tokio::select! {
            biased;
            // Without the store nothing can be handed over; retiring, or silence, does it.
            () = shared.cut.cancelled() => Err(Stop::HandedOver),
            () = sleep(pause) => Ok(()),
        }
    }
}
