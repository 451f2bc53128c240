//! `agent-service bench`: what a turn, a token, a stream and a start cost, each beside its floor.
//!
//! The server under test is this executable, started as a child process on an empty folder (or on the [`stores`] that
//! the caller names), with the scripted model and no worker. The floor is another child: an axum server that answers the
//! same requests with the same frames and does nothing else but one INSERT a turn ([`floor`]). Both are driven over
//! loopback by the same clients ([`load`], [`service`]), in the same run, on the same machine; CPU time and memory are the
//! kernel's figures for the child. Time and counts are bounded, and both children end with the run.
//! With `--tools` it measures sandboxes instead ([`tools`]).

mod connection;
mod figures;
mod floor;
mod load;
mod service;
mod stores;
mod subject;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;

use self::connection::Follower;
use self::figures::{Figure, Report};
use self::load::{Client, Totals};
use self::service::{Demand, Service};
use self::stores::Stores;
use self::subject::{Kind, Subject};
use super::small_runtime;

/// What to measure, and on what.
#[derive(Debug, Args)]
pub(super) struct BenchArguments {
    #[command(flatten)]
    stores: Stores,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Sessions that take turns at the same time.
    #[arg(long, default_value_t = 64)]
    sessions: usize,
    /// Streams over which tokens are measured.
    #[arg(long, default_value_t = 200)]
    token_streams: usize,
    /// Streams whose memory is measured.
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Sessions that are open, each with a live stream, while memory is taken a second time.
    #[arg(long, default_value_t = 10_000)]
    open_sessions: usize,
    /// Event writes a second, and reads of history a second beside them.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// Sessions that take a turn a second while first tokens are awaited.
    #[arg(long, default_value_t = 100)]
    live_sessions: usize,
    /// Events of the history that a client catches up with.
    #[arg(long, default_value_t = 10_000)]
    history: usize,
    /// How long each measurement runs, in seconds.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Event at which the cost of an append is compared with that at the beginning.
    #[arg(long, default_value_t = 100_000)]
    event: usize,
    /// Measure what the confinement of tools costs, instead of the server.
    #[arg(long, conflicts_with_all = ["postgres", "redis", "sessions", "token_streams", "streams", "open_sessions",
        "rate", "live_sessions", "history", "seconds", "event"])]
    tools: bool,
    /// Sandboxes that live at the same time, with `--tools`.
    #[arg(long, default_value_t = 200, requires = "tools")]
    sandboxes: usize,
    /// Run as the floor, for the process that measures.
    #[arg(long, hide = true, value_name = "FOLDER")]
    as_floor: Option<PathBuf>,
}

/// Starts of which the median counts.
const STARTS: usize = 7;

/// How long a server idles before its memory is taken.
const IDLE: Duration = Duration::from_secs(2);

/// Between two tokens of a stream, while tokens are measured.
const TOKEN_PAUSE_MS: u64 = 50;

/// The longest that the way to the late event may take.
const WAY_MAX: Duration = Duration::from_secs(180);

/// Turns averaged for the cost of an append, early and late.
const APPEND_TURNS: usize = 300;

pub(super) fn run(arguments: BenchArguments) -> anyhow::Result<ExitCode> {
    if let Some(folder) = &arguments.as_floor {
        return floor::run(folder);
    }
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures mean little");
    }
    super::serve::raise_descriptor_limit();
    let folder = make_folder()?;
    let report = small_runtime()?.block_on(async {
        if arguments.tools {
            tools::measure(&folder, arguments.sandboxes.max(1)).await
        } else {
            measure(&arguments, &folder).await
        }
    });
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    let report = report?;
    if arguments.json {
        println!("{}", report.to_json())
    } else {
        print!("{report}")
    }
    Ok(ExitCode::SUCCESS)
}

/// A folder of this run's own.
fn make_folder() -> anyhow::Result<PathBuf> {
    let folder = std::env::temp_dir().join(super::system::draw_key("agent-service-bench-"));
    super::data_folder::create(&folder)?;
    Ok(folder)
}

async fn measure(arguments: &BenchArguments, folder: &Path) -> anyhow::Result<Report> {
    arguments.stores.check_redis().await?;
    let server = measure_one(arguments, folder, Kind::Server).await?;
    let floor = measure_one(arguments, folder, Kind::Floor).await?;
    let append = append_cost(arguments, folder).await?;
    arguments.stores.check_redis().await.context("Redis went while it was measured on")?;
    let pair = |name: String, unit, pick: fn(&Measured) -> f64, goal| Figure {
        name,
        unit,
        reached: pick(&server),
        floor: Some(pick(&floor)),
        goal,
    };
    let mut figures = vec![
        pair("server CPU per turn".into(), "ms", |m| m.turn_cpu_ms, figures::at_most(0.7)),
        pair(
            format!("turns at {} sessions", arguments.sessions),
            "/s",
            |m| m.turns_per_second,
            figures::at_least(1500.0),
        ),
        pair(
            format!("CPU per streamed token at {} streams", arguments.token_streams),
            "us",
            |m| m.token_cpu_us,
            figures::at_most(30.0),
        ),
        pair(
            format!("memory with {} live streams", arguments.streams),
            "MiB",
            |m| m.streams_mib,
            figures::at_most(100.0),
        ),
        pair(
            format!("memory with {} open sessions, a live stream each", arguments.open_sessions),
            "MiB",
            |m| m.open_sessions_mib,
            figures::at_most(512.0),
        ),
        pair(
            format!("{} event writes/s beside as many reads, p99", arguments.rate),
            "ms",
            |m| m.service.write_p99_ms,
            figures::at_most(100.0),
        ),
        pair(
            format!("{} history reads/s beside as many writes, p99", arguments.rate),
            "ms",
            |m| m.service.read_p99_ms,
            figures::at_most(100.0),
        ),
        pair(
            format!("first token at {} live sessions, p50", arguments.live_sessions),
            "ms",
            |m| m.service.first_token_p50_ms,
            figures::at_most(5.0),
        ),
        pair(
            format!("first token at {} live sessions, p99", arguments.live_sessions),
            "ms",
            |m| m.service.first_token_p99_ms,
            figures::at_most(20.0),
        ),
        pair(
            format!("catch-up of {} events, p99", arguments.history),
            "ms",
            |m| m.service.catch_up_p99_ms,
            figures::at_most(200.0),
        ),
        pair("start to healthy".into(), "ms", |m| m.start_ms, figures::at_most(60.0)),
        pair("memory when idle".into(), "MiB", |m| m.idle_mib, figures::at_most(20.0)),
    ];
    let late = append.late_event;
    figures.push(Figure {
        name: format!("server CPU per turn at event {late} to that at event 100"),
        unit: "x",
        reached: append.late_cpu_ms / append.early_cpu_ms,
        floor: None,
        goal: figures::at_most(1.2),
    });
    let subject = arguments.stores.name();
    Ok(Report { subject, cores: std::thread::available_parallelism().map_or(1, usize::from), figures })
}

/// One child's figures.
struct Measured {
    turn_cpu_ms: f64,
    turns_per_second: f64,
    token_cpu_us: f64,
    streams_mib: f64,
    open_sessions_mib: f64,
    service: Service,
    start_ms: f64,
    idle_mib: f64,
}

async fn measure_one(arguments: &BenchArguments, folder: &Path, kind: Kind) -> anyhow::Result<Measured> {
    let folder = folder.join(kind.name());
    let start = |settings| Subject::start(kind, &folder, &arguments.stores, settings);
    let mut starts = Vec::new();
    note(kind, "start");
    for _ in 0..STARTS {
        let subject = start("").await?;
        starts.push(subject.start_ms);
        subject.end().await?;
    }
    starts.sort_by(f64::total_cmp);
    let start_ms = starts[STARTS / 2];

    let subject = start("").await?;
    tokio::time::sleep(IDLE).await;
    let idle_mib = subject.resident_mib()?;

    note(kind, "turns");
    let mut clients = open(&subject, arguments.sessions).await?;
    let seconds = Duration::from_secs(arguments.seconds);
    // Caches, connections and the database's plans are warm before anything counts.
    load::turns(&mut clients, "!stream 20", Instant::now() + seconds / 4).await?;
    let (cpu, began) = (subject.cpu_seconds()?, Instant::now());
    let Totals { turns, .. } = load::turns(&mut clients, "!stream 20", began + seconds).await?;
    let (cpu, elapsed) = (subject.cpu_seconds()? - cpu, began.elapsed().as_secs_f64());
    let (turn_cpu_ms, turns_per_second) = (cpu * 1e3 / turns as f64, turns as f64 / elapsed);
    drop(clients);

    note(kind, "tokens");
    let mut clients = open(&subject, arguments.token_streams).await?;
    let tokens = arguments.seconds * 1_000 / TOKEN_PAUSE_MS;
    let text = format!("!pace {TOKEN_PAUSE_MS}\n!stream {tokens}");
    let cpu = subject.cpu_seconds()?;
    let totals = load::turns(&mut clients, &text, Instant::now()).await?;
    let token_cpu_us = (subject.cpu_seconds()? - cpu) * 1e6 / totals.tokens as f64;
    drop(clients);
    subject.end().await?;

    note(kind, "streams");
    let subject = start("").await?;
    let mut clients = open(&subject, arguments.streams).await?;
    load::turns(&mut clients, "!stream 20", Instant::now()).await?;
    let streams_mib = subject.resident_mib()?;
    drop(clients);
    subject.end().await?;

    note(kind, "open sessions");
    let subject = start("").await?;
    let open_sessions_mib = open_sessions(&subject, arguments.open_sessions).await?;
    subject.end().await?;

    note(kind, "waits");
    // The context is kept small, so that what is waited for is the server and not the model.
    let subject = start("agent: {token_limit: 1000}\n").await?;
    let demand = Demand {
        rate: usize::try_from(arguments.rate)?,
        live_sessions: arguments.live_sessions,
        history: arguments.history,
        duration: seconds,
    };
    let service = service::measure(&subject, &demand).await?;
    subject.end().await?;
    Ok(Measured {
        turn_cpu_ms,
        turns_per_second,
        token_cpu_us,
        streams_mib,
        open_sessions_mib,
        service,
        start_ms,
        idle_mib,
    })
}

/// The memory of a server with so many sessions, each of them followed by somebody.
async fn open_sessions(subject: &Subject, count: usize) -> anyhow::Result<f64> {
    let mut followers = Vec::with_capacity(count);
    for session in subject.open_sessions(count).await? {
        followers.push(Follower::open(subject.address, &session).await?);
    }
    tokio::time::sleep(IDLE).await;
    subject.resident_mib()
}

/// So many clients, each with a session and a stream of its own.
async fn open(subject: &Subject, count: usize) -> anyhow::Result<Vec<Client>> {
    let mut clients = Vec::with_capacity(count);
    for session in subject.open_sessions(count).await? {
        clients.push(Client::open(subject.address, session).await?);
    }
    Ok(clients)
}

/// What an append costs early and late in a session.
struct AppendCost {
    early_cpu_ms: f64,
    late_cpu_ms: f64,
    late_event: usize,
}

/// Compares turns at the beginning of a session with turns far on. The context is kept small by compaction, so that
/// what grows is the log alone.
async fn append_cost(arguments: &BenchArguments, folder: &Path) -> anyhow::Result<AppendCost> {
    note(Kind::Server, "appends");
    let folder = folder.join("appends");
    let settings = "agent: {token_limit: 1000}\n";
    let subject = Subject::start(Kind::Server, &folder, &arguments.stores, settings).await?;
    let mut clients = open(&subject, 1).await?;
    // Past the first hundred events, and past what a fresh process has to warm up.
    take_turns(&mut clients, 20).await?;
    let early_cpu_ms = turn_cost(&subject, &mut clients).await?;
    let began = Instant::now();
    let mut late_event = clients[0].events();
    while late_event < arguments.event && began.elapsed() < WAY_MAX {
        take_turns(&mut clients, 100).await?;
        late_event = clients[0].events();
    }
    let late_cpu_ms = turn_cost(&subject, &mut clients).await?;
    subject.end().await?;
    Ok(AppendCost { early_cpu_ms, late_cpu_ms, late_event })
}

async fn turn_cost(subject: &Subject, clients: &mut [Client]) -> anyhow::Result<f64> {
    let cpu = subject.cpu_seconds()?;
    take_turns(clients, APPEND_TURNS).await?;
    Ok((subject.cpu_seconds()? - cpu) * 1e3 / APPEND_TURNS as f64)
}

async fn take_turns(clients: &mut [Client], count: usize) -> anyhow::Result<()> {
    for _ in 0..count {
        for client in clients.iter_mut() {
            client.turn("!stream 2").await?;
        }
    }
    Ok(())
}

/// Tells a person who waits what is going on.
fn note(kind: Kind, what: &str) {
    eprintln!("measuring {what} of the {}", kind.name());
}
