//! `agent-service chat`: a conversation with an agent on a running server, in the terminal.
//!
//! It is a client like any other: it makes an agent, an environment and a session unless it is told of them, posts
//! what is typed, and shows what the stream says ([`screen`]). Ctrl-C interrupts the agent; the second one leaves.

mod screen;

use std::io::{BufRead as _, IsTerminal as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use self::screen::Screen;
use super::client::{Api, Events, Refused};
use super::worker::local_url;
use super::{SettingsArguments, data_folder, small_runtime};
use crate::config::Config;
use crate::secret::Secret;

/// The name of the environment that chats share.
const ENVIRONMENT: &str = "chat";

/// The exit code of a process that Ctrl-C ended.
const EXIT_INTERRUPTED: u8 = 130;

/// With whom to talk.
#[derive(Debug, Args)]
pub(super) struct ChatArguments {
    #[command(flatten)]
    settings: SettingsArguments,
    /// Address of the server. [default: the local one]
    #[arg(long, value_name = "URL")]
    server_url: Option<String>,
    /// Go on with a session instead of opening one.
    #[arg(long, value_name = "ID", conflicts_with_all = ["agent", "model", "system", "ask", "environment"])]
    session: Option<String>,
    /// Talk to an agent that exists.
    #[arg(long, value_name = "ID", conflicts_with_all = ["model", "system", "ask"])]
    agent: Option<String>,
    /// Model of the agent that is made. [default: the first that the server lists]
    #[arg(long, value_name = "ID")]
    model: Option<String>,
    /// System prompt of the agent that is made.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Ask before each tool call of the agent that is made.
    #[arg(long)]
    ask: bool,
    /// Environment to run in. [default: one named chat]
    #[arg(long, value_name = "ID")]
    environment: Option<String>,
    /// Say this and leave when the answer is there.
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
}

pub(super) fn run(arguments: &ChatArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.settings.load(|_| {})?;
    let url = match &arguments.server_url {
        Some(url) => url.clone(),
        None => local_url(config.server.host, config.server.port),
    };
    let api = Api::new(&url, key(&config)?)?;
    let runtime = small_runtime()?;
    let code = runtime.block_on(async {
        let session_id = match &arguments.session {
            Some(id) => id.clone(),
            None => open_session(&api, arguments).await?,
        };
        let mut chat = Chat::start(api, session_id, arguments.message.clone()).await?;
        chat.talk().await
    });
    // The thread that reads the terminal cannot be told to stop.
    runtime.shutdown_background();
    code
}

/// The key of the settings, or the one that a server on this machine made.
fn key(config: &Config) -> anyhow::Result<Secret> {
    if let Some(key) = &config.server.api_key {
        return Ok(key.clone());
    }
    let folder = &config.server.data_dir;
    data_folder::read_key(folder)?.with_context(|| {
        let folder = folder.display();
        format!("there is no key in {folder}: set AGENT_API_KEY to the server's key, or --data-dir to its folder")
    })
}

/// A new session, of a new agent unless one is named.
async fn open_session(api: &Api, arguments: &ChatArguments) -> anyhow::Result<String> {
    let agent_id = match &arguments.agent {
        Some(id) => id.clone(),
        None => make_agent(api, arguments).await?,
    };
    let environment_id = match &arguments.environment {
        Some(id) => id.clone(),
        None => environment(api).await?,
    };
    let body = json!({"agent": agent_id, "environment_id": environment_id, "title": "chat"});
    id_of(&api.post("/v1/sessions", &body).await?)
}

async fn make_agent(api: &Api, arguments: &ChatArguments) -> anyhow::Result<String> {
    let model = match &arguments.model {
        Some(model) => model.clone(),
        None => {
            let models = api.get("/v1/models").await?;
            let first = models.pointer("/data/0/id").and_then(Value::as_str);
            first.context("the server lists no model: name one with --model")?.to_owned()
        }
    };
    let policy = if arguments.ask { "always_ask" } else { "always_allow" };
    let toolset = json!({
        "type": "agent_toolset_20260401",
        "default_config": {"permission_policy": {"type": policy}},
    });
    let mut body = json!({"name": "chat", "model": model, "tools": [toolset]});
    if let Some(system) = &arguments.system {
        body["system"] = json!(system);
    }
    id_of(&api.post("/v1/agents", &body).await?)
}

/// The environment that chats share, made by the first of them.
async fn environment(api: &Api) -> anyhow::Result<String> {
    let body = json!({"name": ENVIRONMENT, "config": {"type": "cloud"}});
    match api.post("/v1/environments", &body).await {
        Ok(made) => return id_of(&made),
        Err(error) if error.downcast_ref::<Refused>().is_some_and(|refused| refused.status == 409) => {}
        Err(error) => return Err(error),
    }
    let mut page = String::new();
    loop {
        let list = api.get(&format!("/v1/environments?limit=100{page}")).await?;
        let found = list["data"].as_array().into_iter().flatten().find(|one| one["name"] == ENVIRONMENT);
        if let Some(found) = found {
            return id_of(found);
        }
        match list["next_page"].as_str() {
            Some(next) => {
                page = format!("&page={}", url::form_urlencoded::byte_serialize(next.as_bytes()).collect::<String>())
            }
            None => anyhow::bail!("the environment named {ENVIRONMENT} cannot be found: name one with --environment"),
        }
    }
}

fn id_of(resource: &Value) -> anyhow::Result<String> {
    Ok(resource["id"].as_str().context("the server's answer has no id")?.to_owned())
}

/// A conversation under way.
struct Chat {
    api: Api,
    session_id: String,
    events: Events,
    screen: Screen,
    lines: mpsc::Receiver<String>,
    /// Ctrl-C, heard in every state so that none is lost.
    interrupts: Signal,
    /// What to say before anything is typed, after which the chat is over.
    message: Option<String>,
}

/// How waiting for the agent ended.
enum Waited {
    /// It is the user's turn.
    Idle,
    /// These calls wait to be allowed.
    Asked(Vec<String>),
    /// The session takes nothing more.
    Over,
    Interrupted,
}

impl Chat {
    async fn start(api: Api, session_id: String, message: Option<String>) -> anyhow::Result<Self> {
        let events = follow(&api, &session_id).await?;
        let screen = Screen::new(std::io::stdout().is_terminal());
        if message.is_none() {
            println!("session {session_id}; an empty line or Ctrl-D leaves");
        }
        let interrupts = signal(SignalKind::interrupt())?;
        Ok(Self { api, session_id, events, screen, lines: typed_lines(), interrupts, message })
    }

    async fn talk(&mut self) -> anyhow::Result<ExitCode> {
        if let Some(message) = self.message.take() {
            self.say(&message).await?;
            return self.turn().await.map(|code| code.unwrap_or(ExitCode::SUCCESS));
        }
        loop {
            self.screen.prompt("> ");
            let line = tokio::select! {
                line = self.lines.recv() => line,
                _ = self.interrupts.recv() => return Ok(ExitCode::from(EXIT_INTERRUPTED)),
            };
            let Some(line) = line.filter(|line| !line.trim().is_empty()) else {
                return Ok(ExitCode::SUCCESS);
            };
            self.say(&line).await?;
            if let Some(code) = self.turn().await? {
                return Ok(code);
            }
        }
    }

    async fn say(&self, text: &str) -> anyhow::Result<()> {
        self.post(&json!({"type": "user.message", "content": [{"type": "text", "text": text}]})).await
    }

    async fn post(&self, event: &Value) -> anyhow::Result<()> {
        let path = format!("/v1/sessions/{}/events", self.session_id);
        self.api.post(&path, &json!({"events": [event]})).await.map(drop)
    }

    /// Shows the agent's turn until it is the user's. A code ends the chat.
    async fn turn(&mut self) -> anyhow::Result<Option<ExitCode>> {
        let mut was_interrupted = false;
        loop {
            match self.wait().await? {
                Waited::Idle => return Ok(None),
                Waited::Over => return Ok(Some(ExitCode::FAILURE)),
                Waited::Asked(calls) => {
                    for call in calls {
                        if !self.answer(&call).await? {
                            return Ok(Some(ExitCode::from(EXIT_INTERRUPTED)));
                        }
                    }
                }
                Waited::Interrupted if was_interrupted => return Ok(Some(ExitCode::from(EXIT_INTERRUPTED))),
                Waited::Interrupted => {
                    was_interrupted = true;
                    self.screen.note("interrupting; Ctrl-C again leaves");
                    self.post(&json!({"type": "user.interrupt"})).await?;
                }
            }
        }
    }

    /// Shows events until something is asked of the user.
    async fn wait(&mut self) -> anyhow::Result<Waited> {
        loop {
            let event = tokio::select! {
                event = self.events.next() => event?,
                _ = self.interrupts.recv() => return Ok(Waited::Interrupted),
            };
            let Some(event) = event else {
                self.reconnect().await?;
                continue;
            };
            self.screen.show(&event);
            match event["type"].as_str().unwrap_or_default() {
                "session.status_idle" => {
                    let reason = &event["stop_reason"];
                    if reason["type"] != "requires_action" {
                        return Ok(Waited::Idle);
                    }
                    let ids = reason["event_ids"].as_array().into_iter().flatten();
                    let calls: Vec<_> = ids.filter_map(|id| id.as_str().map(str::to_owned)).collect();
                    let calls: Vec<_> = calls.into_iter().filter(|id| self.screen.is_open_question(id)).collect();
                    if !calls.is_empty() {
                        return Ok(Waited::Asked(calls));
                    }
                    self.screen.note("waiting for a result that another client gives");
                }
                "session.status_terminated" | "session.deleted" => return Ok(Waited::Over),
                _ => {}
            }
        }
    }

    /// The stream ended, as it does when a server drains. What was missed meanwhile is read from the list.
    async fn reconnect(&mut self) -> anyhow::Result<()> {
        self.events = follow(&self.api, &self.session_id).await?;
        let path = format!("/v1/sessions/{}/events?order=desc&limit=100", self.session_id);
        let list = self.api.get(&path).await?;
        for event in list["data"].as_array().into_iter().flatten().rev() {
            self.screen.show(event);
        }
        Ok(())
    }

    /// Asks about one call and posts the answer; `false` if the user leaves instead.
    async fn answer(&mut self, call: &str) -> anyhow::Result<bool> {
        let allowed = loop {
            self.screen.prompt("allow this call? y/n ");
            let line = tokio::select! {
                line = self.lines.recv() => line,
                _ = self.interrupts.recv() => None,
            };
            match line.as_deref().map(str::trim) {
                None => return Ok(false),
                Some("y" | "Y" | "yes") => break true,
                Some("n" | "N" | "no") => break false,
                Some(_) => {}
            }
        };
        self.screen.answered(call);
        let result = if allowed { "allow" } else { "deny" };
        self.post(&json!({"type": "user.tool_confirmation", "tool_use_id": call, "result": result})).await?;
        Ok(true)
    }
}

async fn follow(api: &Api, session_id: &str) -> anyhow::Result<Events> {
    api.follow(&format!("/v1/sessions/{session_id}/events/stream?event_deltas[]=agent.message")).await
}

/// The lines that are typed, read by a thread because a terminal cannot be awaited.
fn typed_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
