//! The simulator: many sessions on several replicas in one thread, in virtual time, all from one seed.
//!
//! - [`weather`]: which faults there are, and what befalls one process;
//! - [`faults`], [`bell`], [`blobs`]: the ports that things go wrong at;
//! - [`cluster`]: replicas that start, crash, drain, are replaced and come back;
//! - [`actors`], [`files`], [`disk`]: the model and the workers, and what workers do with the files of sessions;
//! - [`people`], [`keyed`], [`uploads`]: the clients and those who follow;
//! - [`witness`]: what must hold while it runs;
//! - [`oracle`]: what must hold of the histories whatever happened, [`books`] of the ledger, [`folders`] of files;
//! - [`counts`]: how often what happened.

pub(crate) mod actors;
pub(crate) mod bell;
pub(crate) mod blobs;
pub(crate) mod books;
pub(crate) mod cluster;
pub(crate) mod counts;
pub(crate) mod disk;
pub(crate) mod faults;
pub(crate) mod files;
pub(crate) mod folders;
pub(crate) mod keyed;
pub(crate) mod oracle;
pub(crate) mod people;
pub(crate) mod uploads;
pub(crate) mod weather;
pub(crate) mod witness;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use engine::memory::MemoryStore;
use engine::port::{Clock as _, StoredRecord};
use session::Timestamp;
use session::id::{EventId, FileId, SessionId};
use session::manifest::ContentHash;
use tokio::task::JoinError;
use tokio::time::{Duration, sleep};

use self::bell::Lines;
use self::cluster::Cluster;
use self::counts::{Count, Counts};
use self::files::Look;
use self::keyed::Keyed;
use self::weather::Weather;
use self::witness::Witness;
use crate::rig::{Dice, VirtualClock};

/// Everything that the actors of one simulation share.
pub(crate) struct Shared {
    pub(crate) dice: Arc<Dice>,
    pub(crate) clock: Arc<VirtualClock>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) lines: Arc<Lines>,
    pub(crate) weather: Arc<Weather>,
    pub(crate) witness: Arc<Witness>,
    pub(crate) notes: Mutex<Notes>,
}

/// What the actors saw, for the oracle.
#[derive(Default)]
pub(crate) struct Notes {
    /// Every session that somebody was told of.
    pub(crate) sessions: Vec<SessionId>,
    /// What posts were answered with; a repeated answer is the first one again.
    pub(crate) acknowledged: Vec<(SessionId, StoredRecord)>,
    /// Messages that were sent under a key.
    pub(crate) keyed: Vec<Keyed>,
    /// How often each call was really run, by the mark of the run.
    pub(crate) executions: BTreeMap<EventId, Vec<String>>,
    /// What each call found as it began, in the order in which they ran.
    pub(crate) looks: Vec<Look>,
    /// The marks that each manifest holds.
    pub(crate) snapshots: BTreeMap<ContentHash, BTreeSet<String>>,
    /// Files that were uploaded.
    pub(crate) uploads: Vec<FileId>,
    /// Positions delivered by each feed that followed from the start, in order.
    pub(crate) delivered: BTreeMap<SessionId, Vec<u64>>,
    /// What was seen to be wrong on the way.
    pub(crate) violations: Vec<String>,
    pub(crate) counts: Counts,
    /// Failures of the provider that cost nothing.
    pub(crate) free_failures: u32,
}

impl Shared {
    pub(crate) fn note(&self, note: impl FnOnce(&mut Notes)) {
        note(&mut self.notes.lock().unwrap());
    }

    /// The time of the store.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn count(&self, count: Count, times: usize) {
        self.note(|notes| notes.counts.add(count, times));
    }

    /// An actor that met what cannot be says so by a panic.
    fn must_not_panic(&self, left: Result<(), JoinError>) {
        if let Err(error) = left {
            self.violation(format!("an actor gave up: {error}"));
        }
    }

    pub(crate) fn violation(&self, text: String) {
        self.note(|notes| notes.violations.push(text));
    }
}

/// What a simulation came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) violations: Vec<String>,
    pub(crate) counts: Counts,
    /// A digest of every history: equal seeds have equal ones.
    pub(crate) digest: u64,
}

/// Virtual time within which everything must have settled.
const SETTLE: Duration = Duration::from_secs(600);

/// Runs one schedule.
pub(crate) fn simulate(seed: u64) -> Report {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(run(seed))
}

async fn run(seed: u64) -> Report {
    let dice = Arc::new(Dice::new(seed));
    let clock = Arc::new(VirtualClock::new());
    let weather = Arc::new(Weather::drawn(&dice));
    let unreferenced_kept_micros = blobs::unreferenced_kept_micros(weather.hasty_collector);
    let shared = Arc::new(Shared {
        store: Arc::new(MemoryStore::new(clock.clone()).keeping_unreferenced_micros(unreferenced_kept_micros)),
        clock,
        lines: Arc::default(),
        witness: Arc::new(Witness::new(Arc::clone(&weather))),
        weather,
        dice,
        notes: Mutex::default(),
    });
    let replicas = 1 + shared.dice.below(3) as usize;
    let cluster = Cluster::start(&shared, replicas);
    let mut actors = tokio::task::JoinSet::new();
    actors.spawn(witness::take_store_away(Arc::clone(&shared)));
    actors.spawn(blobs::take_blobs_away(Arc::clone(&shared)));
    actors.spawn(witness::watch_over(Arc::clone(&shared)));
    for worker in 0..1 + shared.dice.below(3) {
        actors.spawn(actors::work(Arc::clone(&shared), Arc::clone(&cluster), worker));
    }
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..1 + shared.dice.below(5) {
        clients.spawn(people::use_a_session(Arc::clone(&shared), Arc::clone(&cluster), client));
    }
    sleep(shared.weather.storm).await;
    shared.weather.clear();
    let settled = tokio::time::timeout(SETTLE, async {
        while let Some(left) = clients.join_next().await {
            shared.must_not_panic(left);
        }
    });
    if settled.await.is_err() {
        shared.violation("some session did not settle".to_owned());
    }
    drop(clients);
    while let Some(left) = actors.try_join_next() {
        shared.must_not_panic(left);
    }
    drop(actors);
    drop(cluster);
    oracle::judge(&shared).await
}
