//! One server without sockets: every request goes through the router as hyper would hand it over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::response::Response;
use engine::memory::LocalBell;
use engine::port::definitions::EnvironmentKey;
use engine::port::model::{Message, Model, ModelAnswer, ModelError, ModelRequest, PreviewSink, UserBlock};
use engine::port::{
    Blobs, Chunks, Clock, Definitions, Entropy, EventLog, Files, Idempotency, KeyLimits, Leases, PreviewDelta,
    Resources, Track, WorkQueue,
};
use engine::{Replica, ReplicaConfig, Sessions, World};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use server::http::{
    Credentials, Draining, ENVIRONMENT_KEY_PREFIX, HttpLimits, HttpObserver, ModelCatalog, ModelInfo, NoObserver,
    Readiness, ReadinessReport, RequestLimits, Service, Strictness, router, secret_hash,
};
use session::Timestamp;
use session::command::{AnswerBlock, ModelStop};
use session::content::ContentBlock;
use session::event::ModelUsage;
use session::id::{EnvironmentKeyId, Identifier, ReplicaId};
use store::testing::Cluster;
use store::{PostgresStore, SqliteStore};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;

pub(super) const API_KEY: &str = "sk-test-api-key";
pub(super) const WORKER_KEY: &str = "sk-test-worker-key";

/// A server under test; what it keeps is gone with it.
pub(super) struct Api {
    router: Router,
    service: Service,
    store: Option<Arc<SqliteStore>>,
    pub(super) world: World,
    pub(super) draining: Draining,
    _replica: Option<DropGuard>,
    _folder: tempfile::TempDir,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
}

impl Api {
    /// A server that drives its sessions.
    pub(super) async fn start() -> Self {
        Self::build(true, HttpLimits::default()).await
    }

    /// A server that takes events and lets them wait.
    pub(super) async fn start_without_replica() -> Self {
        Self::build(false, HttpLimits::default()).await
    }

    pub(super) async fn build(drives: bool, limits: HttpLimits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(Moving(Instant::now()));
        let store = Arc::new(SqliteStore::open(folder.path(), Arc::clone(&clock)).await.unwrap());
        let world = world_of(Arc::clone(&store), store.blobs(), clock);
        Self { store: Some(store), ..Self::on(world, drives, limits, folder) }
    }

    /// A server that drives its sessions and limits API keys, on every database that there is.
    pub(super) async fn start_limited(key_limits: KeyLimits) -> Vec<Self> {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(Moving(Instant::now()));
        let store = Arc::new(SqliteStore::open(folder.path(), Arc::clone(&clock)).await.unwrap());
        let world = World { key_limits, ..world_of(Arc::clone(&store), store.blobs(), Arc::clone(&clock)) };
        let mut apis = vec![Self::on(world, true, HttpLimits::default(), folder)];
        if let Some(cluster) = Cluster::shared().await {
            let store = Arc::new(PostgresStore::new(&cluster.database().await.store_options()).unwrap());
            let world = World { key_limits, ..world_of(store, None, clock) };
            apis.push(Self::on(world, true, HttpLimits::default(), tempfile::tempdir().unwrap()));
        }
        apis
    }

    fn on(world: World, drives: bool, limits: HttpLimits, folder: tempfile::TempDir) -> Self {
        let (claims, replica) = if drives { drive(&world) } else { (None, None) };
        let draining = Draining::new(Duration::ZERO);
        let service = Service {
            world: world.clone(),
            sessions: Sessions::new(world.clone(), claims),
            credentials: Arc::new(Credentials::new([API_KEY, "sk-test-second-key"], Some(WORKER_KEY))),
            models: Arc::new(Catalog),
            observer: Arc::new(NoObserver),
            readiness: Arc::new(Always),
            limits,
            request_limits: None,
            package_hosts: Arc::new(["packages.example".to_owned()]),
            strictness: Strictness::default(),
            draining: draining.clone(),
        };
        let router = router(service.clone());
        Self { router, service, store: None, world, draining, _replica: replica, _folder: folder }
    }

    /// The same server with other strictness.
    pub(super) fn with_strictness(self, strictness: Strictness) -> Self {
        Self { router: router(Service { strictness, ..self.service.clone() }), ..self }
    }

    /// The same server, which spreads the ends of its streams over a while.
    pub(super) fn draining_over(self, spread: Duration) -> Self {
        let draining = Draining::new(spread);
        let service = Service { draining: draining.clone(), ..self.service.clone() };
        Self { router: router(service.clone()), service, draining, ..self }
    }

    /// The same server, whose operator has named no hosts of package managers.
    pub(super) fn without_package_hosts(self) -> Self {
        Self { router: router(Service { package_hosts: Arc::default(), ..self.service.clone() }), ..self }
    }

    /// The same server, which has no place for large content.
    pub(super) fn without_blobs(self) -> Self {
        let world = World { blobs: None, ..self.world.clone() };
        Self { router: router(Service { world, ..self.service.clone() }), ..self }
    }

    /// The same server with limits of requests.
    pub(super) fn with_request_limits(self, limits: RequestLimits) -> Self {
        let service = Service { request_limits: Some(limits), ..self.service.clone() };
        Self { router: router(service.clone()), service, ..self }
    }

    /// The same server with somebody listening.
    pub(super) fn with_observer(self, observer: Arc<dyn HttpObserver>) -> Self {
        Self { router: router(Service { observer, ..self.service.clone() }), ..self }
    }

    /// Takes the store away, as a database that dies would go.
    pub(super) async fn close_store(&self) {
        self.store.as_ref().expect("a store in a folder").close().await;
    }

    /// The API, to be served on a real socket.
    pub(super) fn router(&self) -> Router {
        self.router.clone()
    }

    /// Sends any request and waits for its headers.
    pub(super) async fn send(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Sends a request under a credential; the answer's body must be JSON.
    pub(super) async fn call_as(&self, key: &str, method: Method, path: &str, body: Option<&Value>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "application/json");
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        Answer::of(self.send(request.body(body).unwrap()).await).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.call_as(API_KEY, Method::GET, path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call_as(API_KEY, Method::POST, path, Some(&body)).await
    }

    pub(super) async fn delete(&self, path: &str) -> Answer {
        self.call_as(API_KEY, Method::DELETE, path, None).await
    }

    pub(super) async fn agent(&self) -> String {
        let tools = json!([
            {"type": "agent_toolset_20260401"},
            {"type": "custom", "name": "ask_user", "description": "Asks the user.", "input_schema": {"type": "object"}},
        ]);
        self.post("/v1/agents", json!({"name": "tester", "model": "demo", "tools": tools})).await.ok()["id"].text()
    }

    pub(super) async fn environment(&self, kind: &str) -> String {
        let name = format!("env {}", self.world.entropy.draw());
        self.post("/v1/environments", json!({"name": name, "config": {"type": kind}})).await.ok()["id"].text()
    }

    /// An idle session of a new agent in a new environment.
    pub(super) async fn session(&self, environment_kind: &str) -> String {
        let (agent, environment) = (self.agent().await, self.environment(environment_kind).await);
        self.post("/v1/sessions", json!({"agent": agent, "environment_id": environment})).await.ok()["id"].text()
    }

    /// An environment key, as `agent-service keys create` makes it.
    pub(super) async fn environment_key(&self, environment_id: &str) -> String {
        let key = format!("{ENVIRONMENT_KEY_PREFIX}{}", self.world.entropy.draw());
        let definitions: &dyn Definitions = &*self.world.definitions;
        let record = EnvironmentKey {
            id: EnvironmentKeyId::from_bits(self.world.entropy.draw()),
            environment_id: environment_id.into(),
            key_hash: secret_hash(&key),
            created_at: self.world.clock.now(),
            revoked_at: None,
        };
        definitions.create_environment_key(&record).await.unwrap();
        key
    }

    pub(super) async fn say(&self, session: &str, text: &str) -> Answer {
        self.post(&format!("/v1/sessions/{session}/events"), message(text)).await
    }

    /// Reads the session's events from a stream opened now until `last` comes by.
    pub(super) async fn follow(&self, session: &str) -> Stream {
        Stream::open(self, &format!("/v1/sessions/{session}/events/stream"), API_KEY).await
    }
}

/// The body of a message.
pub(super) fn message(text: &str) -> Value {
    json!({"events": [{"type": "user.message", "content": [{"type": "text", "text": text}]}]})
}

impl Answer {
    pub(super) async fn of(response: Response) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| panic!("{}: not JSON: {:?}", parts.status, String::from_utf8_lossy(&bytes)));
        Self { status: parts.status, headers: parts.headers, body }
    }

    /// The body of a success.
    #[track_caller]
    pub(super) fn ok(self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.body);
        assert!(self.headers.contains_key("request-id"));
        self.body
    }

    /// The message of an error, after its envelope was checked.
    #[track_caller]
    pub(super) fn error(&self, status: u16, kind: &str) -> String {
        assert_eq!(self.status, status, "{}", self.body);
        let request_id = self.headers["request-id"].to_str().unwrap();
        assert_eq!(self.body["type"], "error");
        assert_eq!(self.body["request_id"], request_id);
        assert_eq!(self.body["error"]["type"], kind, "{}", self.body);
        self.body["error"]["message"].as_str().unwrap().to_owned()
    }

    /// The message of a 400.
    #[track_caller]
    pub(super) fn invalid(&self) -> String {
        self.error(400, "invalid_request_error")
    }

    #[track_caller]
    pub(super) fn code(&self) -> &str {
        self.body["error"]["details"]["error_code"].as_str().unwrap()
    }
}

/// Shorter access to strings in answers.
pub(super) trait Text {
    fn text(&self) -> String;
}

impl Text for Value {
    #[track_caller]
    fn text(&self) -> String {
        self.as_str().unwrap_or_else(|| panic!("expected a string, got {self}")).to_owned()
    }
}

/// An open stream of events.
pub(super) struct Stream {
    body: Body,
    buffer: String,
    pub(super) headers: HeaderMap,
}

impl Stream {
    pub(super) async fn open(api: &Api, path: &str, key: &str) -> Self {
        let request = Request::builder().uri(path).header("x-api-key", key).body(Body::empty()).unwrap();
        let response = api.send(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        let (parts, body) = response.into_parts();
        Self { body, buffer: String::new(), headers: parts.headers }
    }

    /// The next event with its name, pings included; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            if let Some(end) = self.buffer.find("\n\n") {
                let block: String = self.buffer.drain(..end + 2).collect();
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
                if let (Some(name), Some(data)) = (field("event: "), field("data: ")) {
                    return Some((name, serde_json::from_str(&data).unwrap()));
                }
                continue;
            }
            let frame = tokio::time::timeout(Duration::from_secs(30), self.body.frame()).await.expect("an event");
            let data = frame?.unwrap().into_data().unwrap();
            self.buffer.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    /// Every event up to the first of type `last`, which is included. Each bears its type as its name.
    pub(super) async fn until(&mut self, last: &str) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let (name, data) = self.next().await.unwrap_or_else(|| panic!("ended before {last}: {events:?}"));
            assert_eq!(data["type"], name.as_str());
            events.push(data);
            if name == last {
                return events;
            }
        }
    }
}

/// The types of events, in order.
pub(super) fn types(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

/// The world of a server on this store.
fn world_of<S>(store: Arc<S>, blobs: Option<Arc<dyn Blobs>>, clock: Arc<dyn Clock>) -> World
where
    S: EventLog + Leases + WorkQueue + Definitions + Idempotency + Files + Chunks + Resources,
{
    World {
        log: store.clone(),
        leases: store.clone(),
        work: store.clone(),
        definitions: store.clone(),
        idempotency: store.clone(),
        files: store.clone(),
        resources: store.clone(),
        bell: Arc::new(LocalBell::new()),
        blobs,
        chunks: store,
        model: Arc::new(Scripted),
        clock,
        entropy: Arc::new(Counting::default()),
        limits: session::Limits::default(),
        key_limits: KeyLimits::default(),
        watch: Arc::default(),
        gates: Arc::default(),
    }
}

fn drive(world: &World) -> (Option<engine::LocalClaims>, Option<DropGuard>) {
    let config = ReplicaConfig {
        replica_id: ReplicaId::from_bits(world.entropy.draw()),
        track: Track::Stable,
        max_agents: 100,
        drain_timeout: Duration::from_millis(100),
        embedded: false,
    };
    let replica = Replica::new(world.clone(), config, Arc::new(engine::observer::Silent));
    let claims = replica.local_claims();
    let stop = CancellationToken::new();
    tokio::spawn(replica.run(stop.clone()));
    (Some(claims), Some(stop.drop_guard()))
}

/// A clock that begins at a fixed moment and runs with the runtime's.
struct Moving(Instant);

impl Clock for Moving {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(1_795_425_000_000_000 + i64::try_from(self.0.elapsed().as_micros()).unwrap())
    }
}

/// Numbers that differ; nobody guesses in a test.
#[derive(Default)]
struct Counting(AtomicU64);

impl Entropy for Counting {
    fn draw(&self) -> u128 {
        let count = u128::from(self.0.fetch_add(1, Ordering::Relaxed) + 1);
        count.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
    }
}

/// Knows `demo` and `demo-large`.
struct Catalog;

impl ModelCatalog for Catalog {
    fn check(&self, model_id: &str) -> Result<(), String> {
        assert_ne!(model_id, "demo-panic", "told to panic");
        if model_id.starts_with("demo") { Ok(()) } else { Err(format!("no provider for {model_id}")) }
    }

    fn list(&self) -> Vec<ModelInfo> {
        ["demo", "demo-large", "demo-small"]
            .map(|id| ModelInfo {
                id: id.to_owned(),
                display_name: id.to_owned(),
                created_at: Timestamp::EPOCH,
                max_input_tokens: Some(100_000),
                max_tokens: None,
            })
            .into()
    }
}

struct Always;

impl Readiness for Always {
    fn report(&self) -> ReadinessReport {
        ReadinessReport::default()
    }
}

/// Says back what it is told, calls tools when told `call NAME...`, and never answers when told `wait`.
struct Scripted;

#[async_trait]
impl Model for Scripted {
    async fn answer(&self, request: ModelRequest, previews: &mut dyn PreviewSink) -> Result<ModelAnswer, ModelError> {
        let usage = ModelUsage { input_tokens: 10, output_tokens: 5, ..ModelUsage::default() };
        let said = last_text(&request);
        if said == "wait" {
            std::future::pending::<()>().await;
        }
        let blocks = match said.strip_prefix("call ") {
            Some(names) => names
                .split(' ')
                .map(|name| AnswerBlock::ToolUse { name: name.to_owned(), input: Map::new(), problem: None })
                .collect(),
            None => {
                previews.preview(PreviewDelta::MessageStart);
                for word in said.split_inclusive(' ') {
                    previews.preview(PreviewDelta::Text { index: 0, text: word.to_owned() });
                }
                vec![AnswerBlock::Text(said)]
            }
        };
        Ok(ModelAnswer { blocks, stop: ModelStop::EndTurn, usage })
    }
}

/// The last thing that anybody said: a text, or `result` after a tool's.
fn last_text(request: &ModelRequest) -> String {
    let Some(Message::User(blocks)) = request.messages.last() else { return String::new() };
    match blocks.last() {
        Some(UserBlock::Content(ContentBlock::Text { text })) => text.clone(),
        Some(UserBlock::ToolResult { .. }) => "result".to_owned(),
        _ => String::new(),
    }
}
