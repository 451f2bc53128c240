//! The model and the workers.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use engine::port::ledger::Price;
use engine::port::model::{AssistantBlock, Message, ModelAnswer, PreviewSink, UserBlock};
use engine::port::work_queue::{Acknowledged, ExpectedHeartbeat, Heartbeat, Pool};
use engine::port::{Fence, Model, ModelError, ModelRequest, PreviewDelta, WorkItem};
use engine::workspaces::HeldItem;
use engine::{CommandError, Outcome};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::{Map, json};
use session::command::{AnswerBlock, ModelStop, Poster};
use session::content::ContentBlock;
use session::event::{EnvironmentKind, ModelUsage, SessionErrorKind, StopDetails};
use session::id::EventId;
use session::state::Call;
use session::{ClientEvent, Command};
use tokio::time::{Duration, Instant, sleep};

use super::Shared;
use super::cluster::{Cluster, Node};
use super::counts::Count;
use super::disk::Disk;
use super::files::SessionFiles;
use super::weather::Process;
use crate::rig::PANIC;

/// The longest answer, and what it costs.
const OUTPUT_TOKENS_MAX: u64 = 500;
pub(crate) const PRICE: Price =
    Price { input: 3_000_000, output: 15_000_000, cache_read: 300_000, cache_write: 3_750_000 };

/// A model that says and calls what the dice say.
pub(crate) struct SimulatedModel {
    pub(crate) process: Arc<Process>,
    pub(crate) shared: Arc<Shared>,
}

#[async_trait]
impl Model for SimulatedModel {
    fn output_tokens_max(&self, _model_id: &str) -> Option<u64> {
        Some(OUTPUT_TOKENS_MAX)
    }

    fn price(&self, _model_id: &str) -> Option<Price> {
        Some(PRICE)
    }

    async fn answer(&self, request: ModelRequest, previews: &mut dyn PreviewSink) -> Result<ModelAnswer, ModelError> {
        if let Err(problem) = well_formed(&request) {
            self.shared.violation(format!("{}: a malformed request: {problem}", request.session_id));
        }
        self.shared.witness.model_asked(&request.session_id);
        let dice = &self.shared.dice;
        let rough = self.shared.weather.is_rough();
        sleep(Duration::from_millis(dice.below(400))).await;
        self.process.step(20).await;
        if self.process.happens(self.shared.weather.model_each / 20) {
            panic!("{PANIC}");
        }
        if self.process.happens(self.shared.weather.model_each) {
            return Err(self.fail(previews).await);
        }
        let mut blocks = Vec::new();
        if dice.chance(100) {
            previews.preview(PreviewDelta::ThinkingStart);
            blocks.push(AnswerBlock::Thinking(json!({"type": "thinking", "thinking": "hm"})));
        }
        if dice.chance(800) {
            previews.preview(PreviewDelta::MessageStart);
            let mut text = String::new();
            for word in 0..1 + dice.below(6) {
                let chunk = format!("{word}-{} ", dice.below(1_000));
                text.push_str(&chunk);
                previews.preview(PreviewDelta::Text { index: 0, text: chunk });
                sleep(Duration::from_millis(dice.below(200))).await;
                self.process.step(3).await;
            }
            blocks.push(AnswerBlock::Text(text));
        }
        if rough && dice.chance(450) {
            for _ in 0..1 + dice.below(3) {
                let name = ["write", "read", "bash", "lookup", "write", "grep", "nothing"][dice.below(7) as usize];
                let problem = dice.chance(50).then(|| "cut short".to_owned());
                blocks.push(AnswerBlock::ToolUse { name: name.to_owned(), input: Map::new(), problem });
            }
        }
        let stop = if dice.chance(20) {
            ModelStop::Refusal(StopDetails::Refusal { category: None, explanation: None })
        } else {
            ModelStop::EndTurn
        };
        let input_tokens = 40 * request.messages.len() as u64;
        Ok(ModelAnswer { blocks, stop, usage: ModelUsage { input_tokens, output_tokens: 20, ..ModelUsage::default() } })
    }
}

impl SimulatedModel {
    /// The provider fails: it is overloaded, limits the rate, hangs, cuts the answer off, or refuses for good.
    async fn fail(&self, previews: &mut dyn PreviewSink) -> ModelError {
        let dice = &self.shared.dice;
        let mut error = ModelError {
            kind: SessionErrorKind::ModelOverloaded,
            message: "simulated".to_owned(),
            retryable: true,
            retry_after_ms: None,
            usage: ModelUsage::default(),
            is_free: true,
        };
        match dice.below(5) {
            0 => {}
            1 => {
                error.kind = SessionErrorKind::ModelRateLimited;
                error.retry_after_ms = Some(dice.below(5_000));
            }
            2 => {
                error.kind = SessionErrorKind::ModelRequestFailed;
                error.is_free = false;
                sleep(Duration::from_millis(5_000 + dice.below(40_000))).await;
            }
            3 => {
                error.kind = SessionErrorKind::ModelRequestFailed;
                error.is_free = false;
                error.usage.output_tokens = 3;
                previews.preview(PreviewDelta::MessageStart);
                previews.preview(PreviewDelta::Text { index: 0, text: "cut ".to_owned() });
                sleep(Duration::from_millis(dice.below(500))).await;
            }
            _ => {
                error.kind = SessionErrorKind::ModelRequestFailed;
                error.retryable = false;
            }
        }
        self.process.step(3).await;
        if error.is_free {
            self.shared.note(|notes| notes.free_failures += 1);
        }
        error
    }
}

/// What every provider insists on.
fn well_formed(request: &ModelRequest) -> Result<(), String> {
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for (index, message) in request.messages.iter().enumerate() {
        match message {
            Message::User(blocks) => {
                if index % 2 != 0 {
                    return Err(format!("message {index} is a user's"));
                }
                let mut content = false;
                for block in blocks {
                    match block {
                        UserBlock::Content(_) => content = true,
                        UserBlock::ToolResult { tool_use_id, .. } => {
                            if content || !open.remove(tool_use_id.as_str()) {
                                return Err(format!("the result of {tool_use_id} is out of place"));
                            }
                        }
                    }
                }
                if !open.is_empty() || blocks.is_empty() {
                    return Err(format!("message {index} leaves {open:?} unanswered"));
                }
            }
            Message::Assistant(blocks) => {
                if index % 2 == 0 {
                    return Err(format!("message {index} is the assistant's"));
                }
                for block in blocks {
                    if let AssistantBlock::ToolUse { id, .. } = block {
                        open.insert(id);
                    }
                }
            }
        }
    }
    match request.messages.last() {
        Some(Message::User(_)) => Ok(()),
        _ => Err("the last message is not a user's".to_owned()),
    }
}

/// One worker after another, each until it dies.
pub(crate) async fn work(shared: Arc<Shared>, cluster: Arc<Cluster>, number: u64) {
    let disk = Disk::default();
    let mut life = 0;
    loop {
        life += 1;
        if shared.weather.disks_lost && shared.dice.chance(300) {
            disk.lose();
        }
        let process = Process::new(Arc::clone(&shared.dice), Arc::clone(&shared.weather));
        let name = format!("worker-{number}-{life}");
        let worker = Worker { shared: &shared, cluster: &cluster, process: &process, disk: &disk, name };
        let lifetime = Duration::from_millis(2_000 + shared.dice.below(20_000));
        tokio::select! {
            biased;
            () = process.death() => {}
            () = sleep(lifetime), if shared.weather.kills_workers && shared.weather.is_rough() => process.die(),
            () = worker.live() => {}
        }
        shared.count(Count::WorkerDeath, 1);
        sleep(Duration::from_millis(shared.dice.below(2_000))).await;
    }
}

struct Worker<'w> {
    shared: &'w Shared,
    cluster: &'w Cluster,
    process: &'w Process,
    disk: &'w Disk,
    name: String,
}

/// Leases asked for, in seconds.
const LEASE_SECONDS: u32 = 3;

impl Worker<'_> {
    async fn live(&self) {
        loop {
            sleep(Duration::from_millis(100 + self.shared.dice.below(300))).await;
            let Some(node) = self.cluster.any(self.shared) else { continue };
            let token = format!("token-{}", self.shared.dice.next());
            let pool = if self.shared.dice.chance(500) { Pool::Cloud } else { Pool::Environment("env_01".into()) };
            let polled = node.request(node.world.work.poll(&pool, &self.name, 5_000, &token)).await;
            let Ok(Ok(Some(item))) = polled else { continue };
            self.process.step(20).await;
            let acknowledged = node.request(node.world.work.acknowledge(&pool, &item.id, None)).await;
            if let Ok(Ok(Acknowledged::Yes(item))) = acknowledged {
                self.hold(&HeldItem { item: Box::new(item), token_hash: token }).await;
            }
        }
    }

    /// Beats and works until the item is lost or done.
    async fn hold(&self, held: &HeldItem) {
        let HeldItem { item, token_hash } = held;
        tokio::select! {
            biased;
            () = self.beat(item, token_hash) => {}
            () = self.serve(held) => {}
        }
    }

    async fn beat(&self, item: &WorkItem, token: &str) {
        loop {
            if let Some(node) = self.cluster.any(self.shared) {
                if self.holds(&node, item, token).await == Some(false) {
                    return;
                }
                let pool = pool_of(item);
                let beat = node.world.work.heartbeat(&pool, &item.id, &ExpectedHeartbeat::Any, Some(LEASE_SECONDS));
                match node.request(beat).await {
                    Ok(Ok(Heartbeat::Beat { lease_extended: true, .. }) | Err(_)) | Err(_) => {}
                    Ok(Ok(_)) => return,
                }
            }
            sleep(Duration::from_secs(1)).await;
        }
    }

    /// Whether the token is still the item's, if a server says so.
    async fn holds(&self, node: &Node, item: &WorkItem, token: &str) -> Option<bool> {
        let found = node.request(node.world.work.item_by_token(token)).await.ok()?.ok()?;
        Some(found.is_some_and(|found| found.id == item.id))
    }

    /// Runs the calls of the session until there were none for a while.
    async fn serve(&self, held: &HeldItem) {
        let HeldItem { item, token_hash } = held;
        let files = SessionFiles::begin(self.shared, self.cluster, self.process, self.disk, held).await;
        let mut saving = Saving::default();
        let mut done: BTreeSet<EventId> = BTreeSet::new();
        let mut idle_since = Instant::now();
        loop {
            saving.beside(sleep(Duration::from_millis(20 + self.shared.dice.below(200)))).await;
            let Some(node) = self.cluster.any(self.shared) else { continue };
            let Ok(Ok(Some(state))) = node.request(node.sessions.state(&item.session_id)).await else { continue };
            // What was read before the token ended is closed by the end of the lease; what comes later is not ours.
            match self.holds(&node, item, token_hash).await {
                Some(true) => {}
                Some(false) => return,
                None => continue,
            }
            let next = state.runnable_calls().find(|call| !done.contains(&call.id)).cloned();
            match next {
                Some(call) => {
                    if !call.read_only {
                        // It waits a moment for a snapshot under way, which is then given up: it would be of files that
                        // are being changed.
                        saving.beside(sleep(Duration::from_millis(self.shared.dice.below(500)))).await;
                        saving.give_up(&files, self.shared.dice.chance(500));
                    }
                    if !saving.beside(self.run_call(held, &files, &call)).await {
                        return;
                    }
                    if !call.read_only {
                        saving.under_way = Some(Box::pin(files.save(false)));
                    }
                    idle_since = Instant::now();
                    done.insert(call.id);
                }
                None if idle_since.elapsed() > Duration::from_secs(3) => {
                    files.save(true).await;
                    let _ = node.request(node.sessions.stop_item(&pool_of(item), &item.id, true, held.fence())).await;
                    return;
                }
                None => {}
            }
        }
    }

    /// Start, run, report; whether the item is still held.
    async fn run_call(&self, held: &HeldItem, files: &SessionFiles<'_>, call: &Call) -> bool {
        let HeldItem { item, .. } = held;
        let tip = if call.read_only { None } else { files.starting() };
        let poster = match item.environment_kind {
            EnvironmentKind::Cloud => Poster::CloudWorker,
            EnvironmentKind::SelfHosted => Poster::SelfHostedWorker,
        };
        // Ours records the start; what a worker of the client's is shown, the server records.
        let begin = match poster {
            Poster::CloudWorker => {
                let (tool_use_id, work_id) = (call.id.clone(), item.id.clone());
                match tip {
                    Some(tip) => Command::StartToolAt { tool_use_id, work_id, tip },
                    None => Command::StartTool { tool_use_id, work_id },
                }
            }
            _ => Command::Expose { calls: vec![call.id.clone()], work_id: Some(item.id.clone()) },
        };
        let (position, version) = match self.begin_call(held, begin).await {
            Ok(begun) => begun,
            Err(CommandError::Refused(_)) => return true,
            Err(_) => return false,
        };
        if !call.read_only {
            files.started();
        }
        if !files.mount_version(version).await {
            return false;
        }
        self.process.step(20).await;
        if !call.read_only {
            self.shared.witness.tool_runs(&call.id);
        }
        let mark = format!("{}-{}", self.name, self.shared.dice.next());
        self.shared.note(|notes| notes.executions.entry(call.id.clone()).or_default().push(mark.clone()));
        files.look(&call.id, position, version, (!call.read_only).then(|| mark.clone()));
        sleep(Duration::from_millis(self.shared.dice.below(1_500))).await;
        if !call.read_only {
            files.change(&mark).await;
        }
        self.process.step(20).await;
        let result = ClientEvent::ToolResult {
            tool_use_id: call.id.clone(),
            content: vec![ContentBlock::text(mark)],
            is_error: self.shared.dice.chance(100),
        };
        let results = Command::Post { events: vec![result], poster };
        !matches!(self.insist(item, results, held.fence()).await, Err(CommandError::TokenEnded))
    }

    /// Announces a call: the session's position then, and the version of what it is given.
    async fn begin_call(&self, held: &HeldItem, begin: Command) -> Result<(u64, u64), CommandError> {
        loop {
            let position = self.insist(&held.item, begin.clone(), held.fence()).await?.state.position;
            let Some(node) = self.cluster.any(self.shared) else { continue };
            let version = node.world.resources.resources_version(&held.item.session_id);
            if let Ok(Ok(version)) = node.request(version).await {
                return Ok((position, version));
            }
        }
    }

    /// Sends a command until some server has answered it.
    async fn insist(&self, item: &WorkItem, command: Command, fence: Fence) -> Result<Outcome, CommandError> {
        loop {
            if let Some(node) = self.cluster.any(self.shared) {
                let sent = send(&node, item, command.clone(), fence.clone()).await;
                match sent {
                    Some(Ok(outcome)) => return Ok(outcome),
                    Some(Err(
                        error @ (CommandError::Refused(_) | CommandError::TokenEnded | CommandError::NotFound(_)),
                    )) => {
                        return Err(error);
                    }
                    Some(Err(error @ (CommandError::KeyUsed(_) | CommandError::TooManyRunning(_)))) => {
                        panic!("no worker's request names a key or is held back: {error}")
                    }
                    Some(Err(CommandError::Busy(_) | CommandError::Store(_))) | None => {
                        self.shared.count(Count::LostAnswer, 1);
                    }
                }
            }
            sleep(Duration::from_millis(50 + self.shared.dice.below(300))).await;
        }
    }
}

fn pool_of(item: &WorkItem) -> Pool {
    match item.environment_kind {
        EnvironmentKind::Cloud => Pool::Cloud,
        EnvironmentKind::SelfHosted => Pool::Environment(item.environment_id.clone()),
    }
}

async fn send(node: &Node, item: &WorkItem, command: Command, fence: Fence) -> Option<Result<Outcome, CommandError>> {
    node.request(node.sessions.command(&item.session_id, command, fence)).await.ok()
}

/// The snapshots of a session that are under way beside its calls.
#[derive(Default)]
struct Saving<'f> {
    under_way: Option<Pin<Box<dyn Future<Output = ()> + Send + 'f>>>,
    /// Nobody waits for these any more, but a request of each may still be with a server.
    given_up: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send + 'f>>>,
}

impl Saving<'_> {
    async fn beside<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = async { self.under_way.as_mut().expect("checked").await }, if self.under_way.is_some() => {
                    self.under_way = None;
                }
                _ = self.given_up.next(), if !self.given_up.is_empty() => {}
            }
        }
    }

    fn give_up(&mut self, files: &SessionFiles<'_>, lingers: bool) {
        files.give_snapshot_up();
        self.given_up.extend(self.under_way.take().filter(|_| lingers));
    }
}
