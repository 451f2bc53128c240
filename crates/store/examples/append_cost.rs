//! What an append costs, early and late in a session's life, and how many go through side by side.
//!
//! `cargo run --release -p store --features testing --example append_cost [RECORDS]` prints, for SQLite and for
//! PostgreSQL (both flushing to the disk), the median time of an append around record 100 of a session and around
//! record RECORDS (100 000 if not given), their ratio, and the appends per second of 64 sessions at once. Between the
//! two the log is filled by large appends of the same kind. Nothing is asserted: figures are for reading.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::contract::Store;
use engine::contract::story::{Phrase as _, Story, registered};
use engine::port::{Append, Clock, Wake};
use session::{Record, Timestamp};
use store::testing::Cluster;
use store::{PostgresStore, SqliteStore};
use tokio::task::JoinSet;

/// How many appends each median is taken of.
const SAMPLES: usize = 900;

/// Sessions that append at the same time, and appends of each.
const SESSIONS: u32 = 64;
const APPENDS: usize = 40;

#[tokio::main]
async fn main() {
    let records = std::env::args().nth(1).map_or(100_000, |records| records.parse().expect("a number of records"));

    let folder = tempfile::tempdir().expect("a temporary folder");
    let sqlite = SqliteStore::open(folder.path(), Arc::new(WallClock)).await.expect("a fresh folder opens");
    measure("SQLite", Arc::new(sqlite), records).await;

    if let Some(cluster) = Cluster::start(true).await {
        let mut options = cluster.database().await.store_options();
        options.connections_max = 16;
        let postgres = PostgresStore::new(&options).expect("the address is right");
        measure("PostgreSQL", Arc::new(postgres), records).await;
    }
}

async fn measure(name: &str, store: Arc<dyn Store>, records: u64) {
    let mut stories = [Story::begin(1), Story::begin(2)].map(|(story, created)| (story, Some(created)));
    for ((story, created), records) in stories.iter_mut().zip([100, records]) {
        store.append(created.take().expect("it was begun")).await.expect("the session is new");
        fill(&*store, story, records).await;
    }
    // In turn, so that whatever else the machine does falls on both.
    let [(early, _), (late, _)] = &mut stories;
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..SAMPLES / 3 {
        times[0].extend(turn(&*store, early).await);
        times[1].extend(turn(&*store, late).await);
    }
    let [early, late] = times.map(median);
    println!(
        "{name}: an append at record 100 takes {early:?}, at record {records} {late:?}, ratio {:.2}",
        late.as_secs_f64() / early.as_secs_f64()
    );

    let replica = registered(&*store, "bench").await;
    let mut turns = JoinSet::new();
    let started = Instant::now();
    for number in 100..100 + SESSIONS {
        let (store, replica) = (store.clone(), replica.clone());
        turns.spawn(async move {
            let (mut story, created) = Story::begin(number);
            store.append(created).await.expect("the session is new");
            for _ in 0..APPENDS / 4 {
                let message = story.message("hello").with(Wake::Now { claim_for: Some(replica.clone()) });
                let claim = store.append(message).await.expect("nobody else appends").claim.expect("nobody owns it");
                for append in story.answer("a short answer") {
                    store.append(append.by(&claim)).await.expect("the claim is good");
                }
                let release = story.aside().by(&claim).with(Wake::Release { wake_at: None });
                store.append(release).await.expect("the claim is good");
            }
        });
    }
    turns.join_all().await;
    let seconds = started.elapsed().as_secs_f64();
    let appends = f64::from(SESSIONS) * APPENDS as f64;
    println!("{name}: {:.0} appends a second, {:.0} turns a second", appends / seconds, appends / seconds / 4.0);
}

/// Appends turns, many at a time, until the log is `records` long.
async fn fill(store: &dyn Store, story: &mut Story, records: u64) {
    while story.state.position < records {
        let mut batch: Vec<Record> = Vec::new();
        let mut last = None;
        while batch.len() < 500 && story.state.position < records {
            let appends =
                std::iter::once(story.message("hello")).chain(story.answer("a short answer")).collect::<Vec<Append>>();
            for append in appends {
                batch.extend(append.records.iter().cloned());
                last = Some(append);
            }
        }
        let whole = Append { records: batch, ..last.expect("the log is not long enough") };
        store.append(whole).await.expect("nobody else appends");
        story.records.clear();
    }
}

/// How long each append of a turn takes.
async fn turn(store: &dyn Store, story: &mut Story) -> Vec<Duration> {
    let appends: Vec<Append> = std::iter::once(story.message("hello")).chain(story.answer("a short answer")).collect();
    let mut times = Vec::with_capacity(appends.len());
    for append in appends {
        let started = Instant::now();
        store.append(append).await.expect("nobody else appends");
        times.push(started.elapsed());
    }
    times
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

struct WallClock;

impl Clock for WallClock {
    #[expect(clippy::disallowed_methods, reason = "this is the adapter behind the port")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}
