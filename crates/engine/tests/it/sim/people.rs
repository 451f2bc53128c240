//! The clients, each with a session of its own, and those who follow it.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::port::work_queue::Pool;
use engine::port::{Entropy, EventLog, Fence, PreviewDelta};
use engine::{CommandError, Feed, FeedItem, From, Outcome};
use session::agent::AgentSnapshot;
use session::command::Poster;
use session::content::ContentBlock;
use session::event::{Confirmation, Created, EnvironmentKind, Event};
use session::id::{Identifier, SessionId};
use session::state::{Call, Runner, Status};
use session::{ClientEvent, Command, State};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, Node};
use super::counts::Count;
use super::{Shared, keyed, uploads};
use crate::rig::{agent, message};

/// Creates a session, uses it for a while, and sees it settle.
pub(crate) async fn use_a_session(shared: Arc<Shared>, cluster: Arc<Cluster>, number: u64) {
    let client = Client { shared: Arc::clone(&shared), cluster: Arc::clone(&cluster) };
    sleep(Duration::from_millis(shared.dice.below(2_000))).await;
    let id = client.create(number).await;
    shared.note(|notes| notes.sessions.push(id.clone()));
    let mut followers = JoinSet::new();
    let over = CancellationToken::new();
    for number in 0..1 + shared.dice.below(2) {
        let (shared, cluster, over) = (Arc::clone(&shared), Arc::clone(&cluster), over.clone());
        followers.spawn(follow(shared, cluster, id.clone(), number, over));
    }
    for act in 0..2 + shared.dice.below(6) {
        client.act(&id, act).await;
        sleep(Duration::from_millis(shared.dice.below(shared.weather.pause_ms))).await;
    }
    client.settle(&id).await;
    if shared.dice.chance(300) {
        let last = if shared.dice.chance(500) { Command::Archive } else { Command::Delete };
        client.insist(&id, &last).await;
        client.settle(&id).await;
    }
    over.cancel();
    while followers.join_next().await.is_some() {}
}

struct Client {
    shared: Arc<Shared>,
    cluster: Arc<Cluster>,
}

impl Client {
    async fn create(&self, number: u64) -> SessionId {
        loop {
            let session_id = SessionId::from_bits(self.shared.dice.draw());
            let created = Created {
                session_id: session_id.clone(),
                thread_id: "sthr_01".into(),
                environment_id: "env_01".into(),
                environment_kind: if self.shared.dice.chance(300) {
                    EnvironmentKind::SelfHosted
                } else {
                    EnvironmentKind::Cloud
                },
                agent: agent(),
                title: Some(format!("session {number}")),
                metadata: BTreeMap::new(),
                api_key_id: Some("apikey_01".into()),
            };
            let initial = if self.shared.dice.chance(300) { vec![message("initial")] } else { Vec::new() };
            let expected = initial.len();
            if let Some(node) = self.cluster.any(&self.shared)
                && let Ok(Ok(outcome)) = node.request(node.sessions.create(created, initial)).await
            {
                self.acknowledge(&session_id, &outcome, expected);
                return session_id;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// One thing that a client does; nothing is sent twice, save answers.
    async fn act(&self, id: &SessionId, act: u64) {
        let dice = &self.shared.dice;
        let text = format!("message {act} of {id}: {}", dice.next());
        match dice.below(16) {
            0..=3 => self.post(id, vec![message(&text)]).await,
            4 => self.post_twice(id, message(&text)).await,
            5 => self.post(id, vec![message(&text), message("and another")]).await,
            6 => self.post(id, vec![ClientEvent::Interrupt { session_thread_id: None }]).await,
            7 => self.post(id, vec![ClientEvent::Interrupt { session_thread_id: None }, message(&text)]).await,
            8 => {
                let other = AgentSnapshot { system: Some(text.clone()), ..agent() };
                let agent = dice.chance(500).then(|| Box::new(other));
                let update = Command::Update { title: Some(Some(text)), metadata: BTreeMap::new(), agent };
                let _ = self.send(id, update).await;
            }
            9 => self.stop_a_worker().await,
            10 => keyed::post(&self.shared, &self.cluster, id, text).await,
            11..=13 => uploads::act(&self.shared, &self.cluster, id).await,
            _ => self.answer(id).await,
        }
    }

    /// The same message twice at once, over any two servers: without a key each is a message of its own.
    async fn post_twice(&self, id: &SessionId, message: ClientEvent) {
        tokio::join!(self.post(id, vec![message.clone()]), self.post(id, vec![message]));
    }

    /// Stops somebody's work item, as an operator would.
    async fn stop_a_worker(&self) {
        let dice = &self.shared.dice;
        let pool = if dice.chance(500) { Pool::Cloud } else { Pool::Environment("env_01".into()) };
        let Some(node) = self.cluster.any(&self.shared) else { return };
        let Ok(Ok(items)) = node.request(node.world.work.list_items(&pool, None, 20)).await else { return };
        let Some(item) = items.iter().find(|item| item.last_sign_at().is_some()) else { return };
        let _ = node.request(node.sessions.stop_item(&pool, &item.id, dice.chance(500), Fence::Client)).await;
    }

    async fn post(&self, id: &SessionId, events: Vec<ClientEvent>) {
        let expected = events.len();
        if let Some(Ok(outcome)) = self.send(id, Command::Post { events, poster: Poster::Application }).await {
            self.acknowledge(id, &outcome, expected);
        }
    }

    fn acknowledge(&self, id: &SessionId, outcome: &Outcome, expected: usize) {
        if outcome.posted.len() != expected {
            self.shared.violation(format!("{id}: {expected} events posted, {} answered", outcome.posted.len()));
        }
        let posted = outcome.posted.iter().map(|stored| (id.clone(), stored.clone()));
        self.shared.note(|notes| notes.acknowledged.extend(posted));
    }

    /// Answers one call that waits for the application, the same way until some server has taken the answer.
    async fn answer(&self, id: &SessionId) {
        let Some(state) = self.state(id).await else { return };
        let ours = |call: &&Call| call.unconfirmed || call.runner == Runner::Application;
        let Some(call) = state.blocking_calls().find(ours).cloned() else { return };
        let dice = &self.shared.dice;
        let event = if call.unconfirmed {
            let deny = dice.chance(300);
            ClientEvent::ToolConfirmation {
                tool_use_id: call.id,
                result: if deny { Confirmation::Deny } else { Confirmation::Allow },
                deny_message: (deny && dice.chance(500)).then(|| "no".to_owned()),
            }
        } else {
            ClientEvent::CustomToolResult {
                custom_tool_use_id: call.id,
                content: vec![ContentBlock::text("looked up")],
                is_error: dice.chance(100),
            }
        };
        let answer = Command::Post { events: vec![event], poster: Poster::Application };
        if dice.chance(200) {
            tokio::join!(self.insist(id, &answer), self.insist(id, &answer));
        } else {
            self.insist(id, &answer).await;
        }
    }

    /// Sends a command until some server has taken or refused it.
    async fn insist(&self, id: &SessionId, command: &Command) {
        loop {
            match self.send(id, command.clone()).await {
                Some(Ok(outcome)) => return self.acknowledge(id, &outcome, outcome.posted.len()),
                Some(Err(CommandError::Refused(_) | CommandError::NotFound(_))) => return,
                Some(Err(CommandError::TokenEnded)) => {
                    return self.shared.violation(format!("{id}: a client was told of a token"));
                }
                Some(Err(CommandError::KeyUsed(used))) => {
                    return self.shared.violation(format!("{id}: no request names a key: {used}"));
                }
                Some(Err(CommandError::Busy(_) | CommandError::Store(_) | CommandError::TooManyRunning(_))) | None => {
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn send(&self, id: &SessionId, command: Command) -> Option<Result<Outcome, CommandError>> {
        let node: Arc<Node> = self.cluster.any(&self.shared)?;
        let sent = node.request(node.sessions.command(id, command, Fence::Client)).await;
        if matches!(sent, Err(_) | Ok(Err(CommandError::Busy(_) | CommandError::Store(_)))) {
            self.shared.count(Count::LostAnswer, 1);
        }
        sent.ok()
    }

    async fn state(&self, id: &SessionId) -> Option<State> {
        let node = self.cluster.any(&self.shared)?;
        node.request(node.sessions.state(id)).await.ok()?.ok()?
    }

    /// Answers whatever waits until the session has been at rest in good weather for a while.
    async fn settle(&self, id: &SessionId) {
        let mut at_rest_since: Option<Instant> = None;
        loop {
            sleep(Duration::from_millis(300)).await;
            self.answer(id).await;
            let rests = self.state(id).await.is_some_and(|state| {
                let idle = state.status == Status::Idle && state.turn.is_none() && state.queue.is_empty();
                (idle && state.interrupt.is_none()) || state.status == Status::Terminated || state.deleted
            });
            if self.shared.weather.is_rough() || !rests {
                at_rest_since = None;
                continue;
            }
            if at_rest_since.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(3) {
                return;
            }
        }
    }
}

/// Follows a session from its start over any server, reconnecting behind what was delivered, until it is over.
async fn follow(shared: Arc<Shared>, cluster: Arc<Cluster>, id: SessionId, number: u64, over: CancellationToken) {
    let mut follower = Follower { shared, id, delivered: Vec::new(), open: BTreeMap::new() };
    sleep(Duration::from_millis(follower.shared.dice.below(3_000))).await;
    loop {
        let Some(node) = cluster.any(&follower.shared) else {
            sleep(Duration::from_millis(200)).await;
            continue;
        };
        let patience = Duration::from_millis(1_000 + follower.shared.dice.below(20_000));
        let followed = tokio::time::timeout(patience, node.stream(follower.stay(&node))).await;
        if matches!(followed, Ok(Ok(true))) {
            break;
        }
        if over.is_cancelled() && follower.has_everything().await {
            break;
        }
        sleep(Duration::from_millis(follower.shared.dice.below(500))).await;
    }
    if number == 0 {
        let Follower { shared, id, delivered, .. } = follower;
        shared.note(|notes| {
            notes.delivered.insert(id, delivered);
        });
    }
}

struct Follower {
    shared: Arc<Shared>,
    id: SessionId,
    delivered: Vec<u64>,
    /// Previews of events that are not out yet, by event: the next sequence.
    open: BTreeMap<session::id::EventId, (u64, String)>,
}

impl Follower {
    /// One connection; whether the feed came to its end.
    async fn stay(&mut self, node: &Node) -> bool {
        self.open.clear();
        let after = self.delivered.last().copied().unwrap_or(0);
        let Ok(mut feed) = Feed::follow(&node.world, &self.id, From::After(after)).await else {
            return false;
        };
        loop {
            match feed.next().await {
                FeedItem::End => return true,
                FeedItem::Record(stored) => {
                    let expected = self.delivered.last().copied().unwrap_or(0) + 1;
                    if stored.record.position != expected {
                        let got = stored.record.position;
                        self.shared.violation(format!("{}: a feed delivered {got} after {}", self.id, expected - 1));
                    }
                    self.delivered.push(stored.record.position);
                    self.record(&stored.record.event);
                }
                FeedItem::Preview(preview) => {
                    let Some((next, text)) = self.open.get_mut(&preview.event_id) else {
                        self.shared.violation(format!("{}: a preview outside its span", self.id));
                        continue;
                    };
                    if *next != preview.sequence {
                        let sequence = preview.sequence;
                        self.shared.violation(format!("{}: preview {sequence} came for {next}", self.id));
                    }
                    *next = preview.sequence + 1;
                    if let PreviewDelta::Text { text: more, .. } = &preview.delta {
                        text.push_str(more);
                    }
                }
            }
        }
    }

    fn record(&mut self, event: &Event) {
        match event {
            Event::ModelRequestStart { internal, .. } => {
                self.open.insert(internal.message_id.clone(), (0, String::new()));
                self.open.insert(internal.thinking_id.clone(), (0, String::new()));
            }
            Event::ModelRequestEnd { .. } => self.open.clear(),
            Event::AgentMessage { id, content } => {
                let whole: String = content.iter().filter_map(ContentBlock::as_text).collect();
                if let Some((_, previewed)) = self.open.remove(id)
                    && !whole.starts_with(&previewed)
                {
                    self.shared.violation(format!("{}: {id} was previewed as {previewed:?}: {whole:?}", self.id));
                }
            }
            Event::AgentThinking { id, .. } => {
                self.open.remove(id);
            }
            _ => {}
        }
    }

    /// Whether all of the log was delivered.
    async fn has_everything(&self) -> bool {
        let positions = self.shared.store.positions(std::slice::from_ref(&self.id)).await.unwrap_or_default();
        positions.first().map(|(_, position)| *position) == self.delivered.last().copied()
    }
}
