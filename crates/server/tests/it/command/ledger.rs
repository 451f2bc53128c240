//! The ledger of an API key across the death of a server.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use engine::port::Clock;
use engine::port::ledger::{Amount, KeyUsage, Ledger};
use rustix::process::Signal;
use serde_json::Value;
use server::http::secret_hash;
use session::Timestamp;
use session::id::ApiKeyId;
use store::testing::Cluster;
use store::{PostgresStore, SqliteStore};

use super::process::{Server, block_on};
use super::serve::{KEY, open_session, say};

/// Today, for a store whose time is its process's.
struct Today;

impl Clock for Today {
    fn now(&self) -> Timestamp {
        let since = std::time::UNIX_EPOCH.elapsed().unwrap();
        Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap())
    }
}

/// The id of this test's key.
fn key_id() -> ApiKeyId {
    format!("apikey_{}", &secret_hash(KEY)[..24]).into()
}

/// A server that caps its key, with settings that only a priced model satisfies.
fn start(data_dir: &Path, more: impl FnOnce(&mut Command)) -> Server {
    let settings = "worker: {embedded: false}\n\
        limits: {tokens_per_day: 1000000, usd_per_day: 50}\n\
        models: {demo: {provider: demo, max_output_tokens: 1000, \
            price: {input_per_million: 3, output_per_million: 15}}}\n";
    std::fs::write(data_dir.with_extension("yaml"), settings).unwrap();
    Server::start(data_dir, |command| {
        command.env("AGENT_API_KEY", KEY);
        more(command);
    })
}

/// Asks until the session has so many events of this kind.
fn await_events(server: &Server, session: &str, kind: &str, count: usize) {
    let is_it = |event: &&Value| event["type"] == kind;
    loop {
        let (_, events) = server.get(&format!("{}/v1/sessions/{session}/events?limit=1000", server.url), KEY);
        let events: Value = serde_json::from_str(&events).unwrap();
        if events["data"].as_array().unwrap().iter().filter(is_it).count() >= count {
            return;
        }
    }
}

/// One request was lost with its server, and the same one is under way again.
#[track_caller]
fn assert_lost_one(usage: KeyUsage) {
    let KeyUsage { settled, estimated, reserved, open_requests } = usage;
    assert_eq!((settled, open_requests), (reserved, 1), "the same request may use the same");
    assert_eq!(estimated, settled);
    let Amount { tokens, micro_usd } = reserved;
    assert!(tokens > 1_000 && micro_usd > 15_000 && micro_usd < 30_000, "{reserved:?}");
}

#[test]
fn a_request_that_was_lost_with_its_server_counts_in_full() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let first = start(&data_dir, |_| {});
    let session = open_session(&first);
    say(&first, &session, "!wait 600000");
    await_events(&first, &session, "span.model_request_start", 1);
    first.signal(Signal::KILL);
    first.wait();
    let second = start(&data_dir, |_| {});
    await_events(&second, &session, "span.model_request_start", 2);
    second.signal(Signal::KILL);
    second.wait();
    let usage = block_on(async {
        let store = SqliteStore::open(&data_dir, Arc::new(Today)).await.unwrap();
        store.key_usage(&key_id()).await.unwrap()
    });
    assert_lost_one(usage);
}

#[test]
fn a_request_that_was_lost_with_its_replica_is_settled_by_another() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let Some(cluster) = runtime.block_on(Cluster::shared()) else { return };
    let database = runtime.block_on(cluster.database());
    let folder = tempfile::tempdir().unwrap();
    let replica = |name: &str| {
        start(&folder.path().join(name), |command| {
            command.env("POSTGRES_URL", &database.url);
        })
    };
    let first = replica("first");
    let session = open_session(&first);
    say(&first, &session, "!wait 600000");
    await_events(&first, &session, "span.model_request_start", 1);
    let second = replica("second");
    first.signal(Signal::KILL);
    first.wait();
    await_events(&second, &session, "span.model_request_start", 2);
    let usage = runtime.block_on(async {
        let store = PostgresStore::new(&database.store_options()).unwrap();
        store.key_usage(&key_id()).await.unwrap()
    });
    assert_lost_one(usage);
}
