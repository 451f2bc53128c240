//! Sessions to store: commands in, appends out, by the real rules.

use std::collections::BTreeMap;

use session::agent::{AgentSnapshot, Effort, ModelConfig, PermissionPolicy, Speed, Tool, ToolDefaults};
use session::command::{AnswerBlock, ModelOutcome, ModelStop};
use session::content::ContentBlock;
use session::event::{Created, EnvironmentKind, ModelUsage};
use session::id::{AgentId, ApiKeyId, EnvironmentId, ReplicaId, SessionId, WorkId};
use session::{ClientEvent, Command, Ids, Limits, Poster, Record, State, Timestamp};

use crate::port::leases::Claimed;
use crate::port::work_queue::Pool;
use crate::port::{AfterLease, Append, Claim, Fence, Leases, LedgerChange, Track, Wake, WorkChange};

use super::{Store, Subject};

/// When every story begins.
pub const DAWN: Timestamp = Timestamp::from_micros(1_795_000_000_000_000);

/// A session in the making, and everything that was recorded of it.
#[derive(Clone)]
pub struct Story {
    pub state: State,
    pub records: Vec<Record>,
    now: Timestamp,
    ids: Ids,
}

/// What a story's session is created with.
#[derive(Clone)]
pub struct Setting {
    pub agent_id: AgentId,
    pub agent_version: u32,
    pub environment_id: EnvironmentId,
    pub environment_kind: EnvironmentKind,
    pub created_at: Timestamp,
    pub api_key_id: Option<ApiKeyId>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            agent_id: "agent_story".into(),
            agent_version: 1,
            environment_id: "env_story".into(),
            environment_kind: EnvironmentKind::Cloud,
            created_at: DAWN,
            api_key_id: Some("apikey_story".into()),
        }
    }
}

impl Story {
    /// A new session numbered `number`, and the append that creates it.
    pub fn begin(number: u32) -> (Self, Append) {
        Self::begin_in(number, Setting::default())
    }

    /// As [`Story::begin`], elsewhere.
    pub fn begin_in(number: u32, setting: Setting) -> (Self, Append) {
        let mut ids = Ids::from_seed(u128::from(number) << 64 | 1);
        let created = Created {
            session_id: session_id(number),
            thread_id: ids.next(),
            environment_id: setting.environment_id,
            environment_kind: setting.environment_kind,
            agent: agent_snapshot(setting.agent_id, setting.agent_version),
            title: None,
            metadata: BTreeMap::new(),
            api_key_id: setting.api_key_id,
        };
        let command = Command::Create { created: Box::new(created), initial_events: Vec::new() };
        let decision = session::decide(None, command, &Limits::default(), setting.created_at, &mut ids)
            .expect("a session can be created");
        let append = append(&decision.records, &decision.state);
        (Self { state: decision.state, records: decision.records, now: setting.created_at, ids }, append)
    }

    pub fn id(&self) -> &SessionId {
        &self.state.session_id
    }

    /// What `command` appends, a millisecond later; the story goes on from there.
    pub fn tell(&mut self, command: Command) -> Append {
        self.try_tell(command).expect("the story's command is allowed")
    }

    /// As [`Story::tell`]; `None` if the command is refused or does nothing.
    pub fn try_tell(&mut self, command: Command) -> Option<Append> {
        self.now = self.now.plus_millis(1);
        let decided = session::decide(Some(&self.state), command, &Limits::default(), self.now, &mut self.ids).ok()?;
        if decided.records.is_empty() {
            return None;
        }
        self.state = decided.state;
        self.records.extend(decided.records.iter().cloned());
        Some(append(&decided.records, &self.state))
    }

    /// A message comes.
    pub fn message(&mut self, text: &str) -> Append {
        let events = vec![ClientEvent::Message { content: vec![ContentBlock::text(text)] }];
        self.tell(Command::Post { events, poster: Poster::Application })
    }

    /// The model is asked and answers with text.
    pub fn answer(&mut self, text: &str) -> Vec<Append> {
        let asked = self.tell(Command::BeginModelRequest);
        let request = self.state.turn.as_ref().and_then(|turn| turn.request.as_ref()).expect("a request is open");
        let answered = self.tell(Command::FinishModelRequest {
            span_id: request.span_id.clone(),
            outcome: ModelOutcome::Answered {
                blocks: vec![AnswerBlock::Text(text.to_owned())],
                stop: ModelStop::EndTurn,
            },
            usage: ModelUsage { input_tokens: 10, output_tokens: 5, ..ModelUsage::default() },
        });
        vec![asked, answered]
    }

    /// An append that changes side rows alone.
    pub fn aside(&self) -> Append {
        append(&[], &self.state)
    }
}

/// Ends an item of a cloud environment, held or not, by an append of its session.
pub async fn end_item(store: &dyn Store, story: &Story, work_id: &WorkId) {
    let item = store.item(&Pool::Cloud, work_id).await.expect("the store answers").expect("the item is there");
    let work = WorkChange::EndLease { work_id: item.id.clone(), seen: item.last_sign_at(), then: AfterLease::Stop };
    store.append(story.aside().and(work)).await.expect("nothing has moved");
}

/// The id of the session numbered `number`; ids of larger numbers sort later.
pub fn session_id(number: u32) -> SessionId {
    format!("sesn_{number:08}").into()
}

pub fn replica(name: &str) -> ReplicaId {
    format!("rplc_{name}").into()
}

pub fn work_id(number: u32) -> WorkId {
    format!("work_{number:08}").into()
}

fn append(records: &[Record], state: &State) -> Append {
    Append {
        records: records.to_vec(),
        state: state.clone(),
        fence: Fence::Client,
        wake: Wake::Keep,
        work: WorkChange::None,
        kept: None,
        running_max: None,
        ledger: LedgerChange::None,
        resources: Vec::new(),
    }
}

fn agent_snapshot(id: AgentId, version: u32) -> AgentSnapshot {
    AgentSnapshot {
        id,
        version,
        name: "storyteller".to_owned(),
        description: None,
        system: Some("Tell.".to_owned()),
        model: model(),
        tools: vec![Tool::Toolset {
            default_config: ToolDefaults { enabled: true, permission_policy: PermissionPolicy::AlwaysAllow },
            configs: Vec::new(),
        }],
    }
}

pub fn model() -> ModelConfig {
    ModelConfig { id: "demo".to_owned(), effort: Effort::High, speed: Speed::Standard, inference_geo: None }
}

/// Appends that read as a sentence.
pub trait Phrase: Sized {
    /// The same append by the owner that holds `claim`.
    #[must_use]
    fn by(self, claim: &Claim) -> Self;

    /// The same append under the token of a work item.
    #[must_use]
    fn under(self, work_id: &WorkId, token_hash: &str) -> Self;

    /// The same append with this wake-up.
    #[must_use]
    fn with(self, wake: Wake) -> Self;

    /// The same append, waking the session.
    #[must_use]
    fn waking(self) -> Self {
        self.with(Wake::Now { claim_for: None })
    }

    /// The same append with this change to the work item.
    #[must_use]
    fn and(self, work: WorkChange) -> Self;
}

impl Phrase for Append {
    fn by(self, claim: &Claim) -> Self {
        Self { fence: Fence::Owner(claim.clone()), ..self }
    }

    fn under(self, work_id: &WorkId, token_hash: &str) -> Self {
        Self { fence: Fence::ItemToken { work_id: work_id.clone(), token_hash: token_hash.to_owned() }, ..self }
    }

    fn with(self, wake: Wake) -> Self {
        Self { wake, ..self }
    }

    fn and(self, work: WorkChange) -> Self {
        Self { work, ..self }
    }
}

/// A registered replica.
pub async fn registered(store: &dyn Store, name: &str) -> ReplicaId {
    let replica = replica(name);
    store.register(&replica, Track::Stable).await.expect("a replica registers");
    replica
}

/// A session that was created and is due.
pub async fn due_session(store: &dyn Store, number: u32) -> Story {
    let (mut story, created) = Story::begin(number);
    store.append(created).await.expect("the session is new");
    store.append(story.message("do something").waking()).await.expect("nobody else appends");
    story
}

/// A due session that `replica` has claimed.
pub async fn claimed_session(store: &dyn Store, replica: &ReplicaId, number: u32) -> (Story, Claim) {
    let story = due_session(store, number).await;
    let claimed = store.claim(replica, 1).await.expect("the store answers");
    let [Claimed { claim, .. }] = claimed.as_slice() else { panic!("one session is due, got {claimed:?}") };
    assert_eq!(&claim.session_id, story.id());
    (story, claim.clone())
}

/// A session in `setting` with a queued work item `work_id(number)`.
pub async fn queued_session(store: &dyn Store, number: u32, setting: Setting) -> Story {
    let (mut story, created) = Story::begin_in(number, setting);
    store.append(created).await.expect("the session is new");
    let ensure = WorkChange::Ensure { work_id: work_id(number) };
    let appended = store.append(story.message("run it").and(ensure)).await.expect("nobody else appends");
    assert!(appended.queued, "a session without an item gets one");
    story
}

/// A replica says that it lives.
pub async fn beat(store: &dyn Store, replica: &ReplicaId) {
    Leases::heartbeat(store, replica).await.expect("the store answers");
}

/// Lets time pass while `replica` beats as a living one does.
pub async fn pass(subject: &impl Subject, replica: &ReplicaId, millis: i64) {
    for _ in 0..millis / 200 {
        subject.advance(200).await;
        beat(&*subject.store(), replica).await;
    }
}
