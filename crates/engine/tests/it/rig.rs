//! A world in memory whose time is tokio's and whose numbers come from a seed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use engine::memory::{LocalBell, MemoryBlobs, MemoryStore};
use engine::observer::{Observer, Silent};
use engine::port::model::{ModelAnswer, PreviewSink};
use engine::port::{Clock, Entropy, Fence, KeyLimits, Model, ModelError, ModelRequest, PreviewDelta, Track};
use engine::{Feed, FeedItem, From, Hurry, Outcome, Replica, ReplicaConfig, Sessions, World};
use serde_json::{Map, json};
use session::agent::{AgentSnapshot, Effort, ModelConfig, PermissionPolicy, Speed, Tool, ToolConfig, ToolDefaults};
use session::command::{AnswerBlock, ModelStop, Poster};
use session::content::ContentBlock;
use session::event::{Created, EnvironmentKind, ModelUsage, SessionErrorKind};
use session::id::{Identifier, ReplicaId, SessionId};
use session::{ClientEvent, Command, Event, Limits, Timestamp};
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Tells the virtual time.
pub(crate) struct VirtualClock {
    start: Instant,
}

impl VirtualClock {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_800_000_000_000_000 + self.start.elapsed().as_micros() as i64)
    }
}

/// Numbers from a seed (SplitMix64).
pub(crate) struct Dice(Mutex<u64>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }

    pub(crate) fn next(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = *state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// Less than `bound`.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True in `per_mille` of a thousand cases.
    pub(crate) fn chance(&self, per_mille: u64) -> bool {
        self.below(1_000) < per_mille
    }
}

impl Entropy for Dice {
    fn draw(&self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

/// One answer of the scripted model.
pub(crate) struct Step {
    pub(crate) chunks: Vec<&'static str>,
    pub(crate) pause: Duration,
    pub(crate) result: Result<ModelAnswer, ModelError>,
}

/// Answers with what it was given, in order, and keeps what it was asked.
#[derive(Default)]
pub(crate) struct ScriptedModel {
    steps: Mutex<VecDeque<Step>>,
    asked: Mutex<Vec<ModelRequest>>,
    panics_for: Mutex<Option<SessionId>>,
    window_tokens: Mutex<Option<u64>>,
}

impl ScriptedModel {
    /// Takes no more than so many tokens at once.
    pub(crate) fn takes(&self, tokens: u64) {
        *self.window_tokens.lock().unwrap() = Some(tokens);
    }

    pub(crate) fn then(&self, step: Step) {
        self.steps.lock().unwrap().push_back(step);
    }

    /// Panics at every request of this session.
    pub(crate) fn panic_for(&self, id: &SessionId) {
        *self.panics_for.lock().unwrap() = Some(id.clone());
    }

    pub(crate) fn asked(&self) -> Vec<ModelRequest> {
        self.asked.lock().unwrap().clone()
    }
}

#[async_trait]
impl Model for ScriptedModel {
    fn context_window_tokens(&self, _model_id: &str) -> Option<u64> {
        *self.window_tokens.lock().unwrap()
    }

    async fn answer(&self, request: ModelRequest, previews: &mut dyn PreviewSink) -> Result<ModelAnswer, ModelError> {
        let panics = self.panics_for.lock().unwrap().as_ref() == Some(&request.session_id);
        if panics {
            panic!("{PANIC}");
        }
        self.asked.lock().unwrap().push(request);
        let step = self.steps.lock().unwrap().pop_front().expect("the script has an answer for every request");
        sleep(step.pause).await;
        if !step.chunks.is_empty() {
            previews.preview(PreviewDelta::MessageStart);
        }
        for chunk in &step.chunks {
            previews.preview(PreviewDelta::Text { index: 0, text: (*chunk).to_owned() });
            sleep(step.pause).await;
        }
        step.result
    }
}

/// An answer of text, streamed in chunks.
pub(crate) fn says(chunks: &[&'static str]) -> Step {
    let blocks = vec![AnswerBlock::Text(chunks.concat())];
    Step { chunks: chunks.to_vec(), pause: Duration::from_millis(5), result: Ok(answer(blocks)) }
}

/// An answer that calls tools by name.
pub(crate) fn calls(names: &[&str]) -> Step {
    let call = |name: &&str| AnswerBlock::ToolUse { name: (*name).to_owned(), input: Map::new(), problem: None };
    Step { chunks: Vec::new(), pause: Duration::from_millis(5), result: Ok(answer(names.iter().map(call).collect())) }
}

/// No answer, but perhaps later.
pub(crate) fn overloaded() -> Step {
    let error = ModelError {
        kind: SessionErrorKind::ModelOverloaded,
        message: "overloaded".to_owned(),
        retryable: true,
        retry_after_ms: None,
        usage: ModelUsage::default(),
        is_free: true,
    };
    Step { chunks: Vec::new(), pause: Duration::from_millis(5), result: Err(error) }
}

pub(crate) fn answer(blocks: Vec<AnswerBlock>) -> ModelAnswer {
    let usage = ModelUsage { input_tokens: 10, output_tokens: 2, ..ModelUsage::default() };
    ModelAnswer { blocks, stop: ModelStop::EndTurn, usage }
}

/// An agent with every built-in tool (`bash` asks first) and the custom tool `lookup`.
pub(crate) fn agent() -> AgentSnapshot {
    let ask = ToolConfig {
        kind: "bash".to_owned(),
        name: "bash".to_owned(),
        enabled: true,
        permission_policy: PermissionPolicy::AlwaysAsk,
    };
    let Ok(schema) = serde_json::from_value(json!({"type": "object"})) else { unreachable!() };
    AgentSnapshot {
        id: "agent_01".into(),
        version: 1,
        name: "tester".to_owned(),
        description: None,
        system: Some("You are tested.".to_owned()),
        model: ModelConfig { id: "demo".to_owned(), effort: Effort::High, speed: Speed::Standard, inference_geo: None },
        tools: vec![
            Tool::Toolset {
                default_config: ToolDefaults { enabled: true, permission_policy: PermissionPolicy::AlwaysAllow },
                configs: vec![ask],
            },
            Tool::Custom { name: "lookup".to_owned(), description: "Looks up.".to_owned(), input_schema: schema },
        ],
    }
}

/// A store, a model and any number of replicas.
pub(crate) struct Rig {
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) model: Arc<ScriptedModel>,
    pub(crate) world: World,
    pub(crate) sessions: Sessions,
    dice: Arc<Dice>,
}

/// A replica that runs.
pub(crate) struct Running {
    pub(crate) sessions: Sessions,
    pub(crate) shutdown: CancellationToken,
    pub(crate) hurry: Hurry,
    pub(crate) task: JoinHandle<()>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let clock = Arc::new(VirtualClock::new());
        let store = Arc::new(MemoryStore::new(clock.clone()));
        let model = Arc::new(ScriptedModel::default());
        let dice = Arc::new(Dice::new(1));
        let world = World {
            log: store.clone(),
            leases: store.clone(),
            work: store.clone(),
            definitions: store.clone(),
            idempotency: store.clone(),
            files: store.clone(),
            resources: store.clone(),
            bell: Arc::new(LocalBell::new()),
            blobs: Some(Arc::new(MemoryBlobs::new())),
            chunks: store.clone(),
            model: model.clone(),
            clock,
            entropy: dice.clone(),
            limits: Limits::default(),
            key_limits: KeyLimits::default(),
            watch: Arc::default(),
            gates: Arc::default(),
        };
        let sessions = Sessions::new(world.clone(), None);
        Self { store, model, world, sessions, dice }
    }

    /// Starts a replica on the rig's world.
    pub(crate) fn replica(&self, max_agents: usize) -> Running {
        self.observed_replica(max_agents, Arc::new(Silent))
    }

    /// The same, telling an observer.
    pub(crate) fn observed_replica(&self, max_agents: usize, observer: Arc<dyn Observer>) -> Running {
        self.start(self.config(max_agents), observer)
    }

    /// A replica that runs its own worker and starts anew.
    pub(crate) fn embedded_replica(&self) -> Running {
        self.start(ReplicaConfig { embedded: true, ..self.config(4) }, Arc::new(Silent))
    }

    fn config(&self, max_agents: usize) -> ReplicaConfig {
        ReplicaConfig {
            replica_id: ReplicaId::from_bits(self.dice.draw()),
            track: Track::Stable,
            max_agents,
            drain_timeout: Duration::from_secs(5),
            embedded: false,
        }
    }

    fn start(&self, config: ReplicaConfig, observer: Arc<dyn Observer>) -> Running {
        let replica = Replica::new(self.world.clone(), config, Arc::clone(&observer));
        let sessions = Sessions::new(self.world.clone(), Some(replica.local_claims())).with_observer(observer);
        let (shutdown, hurry) = (CancellationToken::new(), replica.hurry());
        let task = tokio::spawn(replica.run(shutdown.clone()));
        Running { sessions, shutdown, hurry, task }
    }

    /// A session of [`agent`].
    pub(crate) async fn session(&self, sessions: &Sessions, environment_kind: EnvironmentKind) -> SessionId {
        let session_id = SessionId::from_bits(self.dice.draw());
        let created = Created {
            session_id: session_id.clone(),
            thread_id: "sthr_01".into(),
            environment_id: "env_01".into(),
            environment_kind,
            agent: agent(),
            title: None,
            metadata: BTreeMap::new(),
            api_key_id: Some("apikey_01".into()),
        };
        sessions.create(created, Vec::new()).await.unwrap();
        session_id
    }

    pub(crate) async fn follow(&self, session_id: &SessionId) -> Feed {
        Feed::follow(&self.world, session_id, From::After(0)).await.unwrap()
    }

    /// Every record of the session.
    pub(crate) async fn kinds(&self, session_id: &SessionId) -> Vec<&'static str> {
        let records = self.world.log.read(session_id, 0, usize::MAX).await.unwrap();
        records.iter().map(|stored| stored.record.event.kind()).collect()
    }
}

/// Posts events as an application.
pub(crate) async fn post(sessions: &Sessions, id: &SessionId, events: Vec<ClientEvent>) -> Outcome {
    sessions.command(id, Command::Post { events, poster: Poster::Application }, Fence::Client).await.unwrap()
}

pub(crate) fn message(text: &str) -> ClientEvent {
    ClientEvent::Message { content: vec![ContentBlock::text(text)] }
}

/// Follows until an event that `wanted` accepts; everything delivered on the way, that one included.
pub(crate) async fn until(feed: &mut Feed, wanted: impl Fn(&Event) -> bool) -> Vec<FeedItem> {
    let mut items = Vec::new();
    loop {
        let item = tokio::time::timeout(Duration::from_secs(600), feed.next()).await.expect("the session moves on");
        let found = match &item {
            FeedItem::Record(stored) => wanted(&stored.record.event),
            FeedItem::Preview(_) => false,
            FeedItem::End => true,
        };
        items.push(item);
        if found {
            return items;
        }
    }
}

pub(crate) fn is_idle(event: &Event) -> bool {
    matches!(event, Event::StatusIdle { .. })
}

/// What a panic of a simulated part says.
pub(crate) const PANIC: &str = "a simulated part panics";

/// Panics that a simulated part throws on purpose are not printed.
pub(crate) fn quiet_simulated_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload_as_str() != Some(PANIC) {
                usual(info);
            }
        }));
    });
}
