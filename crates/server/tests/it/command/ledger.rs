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
use tokio::runtime::Runtime;

use super::process::Server;
use super::serve::{KEY, follow, open_session, read_to, say};

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

/// Has a session ask the model, which does not answer for minutes; returns when the request is on record.
fn ask(runtime: &Runtime, server: &Server) -> String {
    let session = open_session(server);
    let stream = runtime.block_on(follow(server, &session));
    say(server, &session, "!wait 600000");
    runtime.block_on(read_to(stream, "span.model_request_start")).expect("the model is asked");
    session
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
    let runtime = Runtime::new().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let first = start(&data_dir, |_| {});
    let session = ask(&runtime, &first);
    first.signal(Signal::KILL);
    first.wait();
    let second = start(&data_dir, |_| {});
    let asked = |event: &&Value| event["type"] == "span.model_request_start";
    // It may have asked again before anybody could follow it.
    loop {
        let (_, events) = second.get(&format!("{}/v1/sessions/{session}/events?limit=1000", second.url), KEY);
        let events: Value = serde_json::from_str(&events).unwrap();
        if events["data"].as_array().unwrap().iter().filter(asked).count() == 2 {
            break;
        }
    }
    second.signal(Signal::KILL);
    second.wait();
    let usage = runtime.block_on(async {
        let store = SqliteStore::open(&data_dir, Arc::new(Today)).await.unwrap();
        store.key_usage(&key_id()).await.unwrap()
    });
    assert_lost_one(usage);
}

#[test]
fn a_request_that_was_lost_with_its_replica_is_settled_by_another() {
    let runtime = Runtime::new().unwrap();
    let Some(cluster) = runtime.block_on(Cluster::shared()) else { return };
    let database = runtime.block_on(cluster.database());
    let folder = tempfile::tempdir().unwrap();
    let replica = |name: &str| {
        start(&folder.path().join(name), |command| {
            command.env("POSTGRES_URL", &database.url);
        })
    };
    let first = replica("first");
    let session = ask(&runtime, &first);
    let second = replica("second");
    let stream = runtime.block_on(follow(&second, &session));
    first.signal(Signal::KILL);
    first.wait();
    runtime.block_on(read_to(stream, "span.model_request_start")).expect("it is asked again");
    let usage = runtime.block_on(async {
        let store = PostgresStore::new(&database.store_options()).unwrap();
        store.key_usage(&key_id()).await.unwrap()
    });
    assert_lost_one(usage);
}
