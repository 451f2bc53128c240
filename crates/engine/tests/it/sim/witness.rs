//! Stands at the store and sees what really takes place there, whoever is told of it.
//!
//! What cannot be read from a history afterwards is judged here at once: appends under a claim that is not in force,
//! effects whose intent is not on record, living owners that were robbed, sessions that nobody attends to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use engine::memory::MemoryStore;
use engine::port::leases::Claimed;
use engine::port::resources::ResourceError;
use engine::port::{
    Append, AppendError, Appended, BlobHash, EventLog, Fence, FileResource, Keep, Leases, Resources as _, StoreError,
};
use session::Event;
use session::id::{EventId, ReplicaId, ResourceId, SessionId};
use tokio::time::{Duration, Instant, sleep};

use super::Shared;
use super::books::Books;
use super::counts::Count;
use super::weather::{Process, Weather};

/// In fair weather nothing that is due waits longer for a living owner, however few the servers and their slots.
const ATTENDED_WITHIN: Duration = Duration::from_secs(60);

/// What a session is given: paths and content.
pub(crate) type Given = BTreeMap<String, BlobHash>;

/// What was seen.
pub(crate) struct Witness {
    weather: Arc<Weather>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Every server that ever started and has not said goodbye.
    servers: BTreeMap<ReplicaId, Arc<Process>>,
    /// The last owner of each session.
    owners: BTreeMap<SessionId, ReplicaId>,
    /// Model requests that were recorded and that were made.
    intents: BTreeMap<SessionId, (u64, u64)>,
    /// Calls whose start was recorded, and those that have a result.
    told_of: BTreeSet<EventId>,
    books: Books,
    /// What each session was given, by the version of that.
    given: BTreeMap<SessionId, BTreeMap<u64, Given>>,
    violations: Vec<String>,
}

impl Witness {
    pub(crate) fn new(weather: Arc<Weather>) -> Self {
        Self { weather, seen: Mutex::default() }
    }

    fn see<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap())
    }

    pub(crate) fn take_violations(&self) -> Vec<String> {
        self.see(|seen| std::mem::take(&mut seen.violations))
    }

    pub(crate) fn take_books(&self) -> Books {
        self.see(|seen| std::mem::take(&mut seen.books))
    }

    pub(crate) fn server_started(&self, replica_id: &ReplicaId, process: &Arc<Process>) {
        self.see(|seen| seen.servers.insert(replica_id.clone(), Arc::clone(process)));
    }

    /// Every server that lives.
    pub(crate) fn servers(&self) -> Vec<ReplicaId> {
        self.see(|seen| {
            seen.servers.iter().filter(|(_, process)| !process.is_dead()).map(|(id, _)| id.clone()).collect()
        })
    }

    pub(crate) async fn append(&self, store: &MemoryStore, append: Append) -> Result<Appended, AppendError> {
        let session_id = append.state.session_id.clone();
        let (mut requests, mut told_of) = (0, Vec::new());
        for record in &append.records {
            match &record.event {
                Event::ModelRequestStart { .. } => requests += 1,
                Event::ToolStarted { tool_use_id: call, .. }
                | Event::AgentToolResult { tool_use_id: call, .. }
                | Event::UserToolResult { tool_use_id: call, .. } => told_of.push(call.clone()),
                _ => {}
            }
        }
        let named = match &append.fence {
            Fence::Owner(claim) => Some(claim.clone()),
            Fence::Client | Fence::ItemToken { .. } => None,
        };
        let in_force = match &named {
            Some(_) => store.load(&session_id).await?.and_then(|loaded| loaded.claim),
            None => None,
        };
        let ledger = append.ledger.clone();
        let is_given = !append.resources.is_empty();
        let appended = store.append(append).await?;
        if is_given {
            self.see_given(store, &session_id).await?;
        }
        self.see(|seen| {
            if named != in_force {
                seen.violations.push(format!("{session_id}: {named:?} appended while {in_force:?} was in force"));
            }
            if let Some(claim) = &appended.claim {
                seen.owners.insert(session_id.clone(), claim.replica_id.clone());
            }
            seen.intents.entry(session_id).or_default().0 += requests;
            seen.told_of.extend(told_of);
            seen.books.take_in(ledger);
        });
        Ok(appended)
    }

    pub(crate) async fn claim(
        &self,
        store: &MemoryStore,
        replica_id: &ReplicaId,
        limit: usize,
    ) -> Result<Vec<Claimed>, StoreError> {
        let claimed = store.claim(replica_id, limit).await?;
        self.see(|seen| {
            for Claimed { claim, taken_over, .. } in &claimed {
                let owner = seen.owners.insert(claim.session_id.clone(), replica_id.clone());
                let living = owner.filter(|owner| seen.servers.get(owner).is_some_and(|process| !process.is_dead()));
                if let Some(owner) = living.filter(|_| *taken_over && self.weather.processes_are_prompt()) {
                    seen.violations.push(format!("{}: taken from {owner}, which lives", claim.session_id));
                }
            }
        });
        Ok(claimed)
    }

    pub(crate) async fn retire(&self, store: &MemoryStore, replica_id: &ReplicaId) -> Result<(), StoreError> {
        store.retire(replica_id).await?;
        self.see(|seen| seen.servers.remove(replica_id));
        Ok(())
    }

    pub(crate) async fn add_resource(
        &self,
        store: &MemoryStore,
        resource: &FileResource,
        keep: Option<Keep<FileResource>>,
    ) -> Result<(), ResourceError> {
        store.add_resource(resource, keep).await?;
        let session_id = resource.file.session_id.as_ref().expect("a copy is its session's");
        Ok(self.see_given(store, session_id).await?)
    }

    pub(crate) async fn remove_resource(
        &self,
        store: &MemoryStore,
        session_id: &SessionId,
        id: &ResourceId,
    ) -> Result<bool, StoreError> {
        let removed = store.remove_resource(session_id, id).await?;
        self.see_given(store, session_id).await?;
        Ok(removed)
    }

    async fn see_given(&self, store: &MemoryStore, session_id: &SessionId) -> Result<(), StoreError> {
        let version = store.resources_version(session_id).await?;
        let given = store.resources(std::slice::from_ref(session_id)).await?;
        let given = given.into_iter().filter_map(|given| Some((given.mount_path, given.file.blob?))).collect();
        self.see(|seen| seen.given.entry(session_id.clone()).or_default().insert(version, given));
        Ok(())
    }

    /// A call begins to run with these files mounted: what the session was given when the call was announced, or later.
    pub(crate) fn mounted(&self, call: &EventId, session_id: &SessionId, announced: u64, mounted: &Given) {
        self.see(|seen| {
            let nothing = BTreeMap::from([(0, Given::new())]);
            let given = seen.given.get(session_id).unwrap_or(&nothing);
            let given: Vec<&Given> = given.range(announced..).map(|(_, given)| given).collect();
            let is_given = given.contains(&mounted) || announced == 0 && mounted.is_empty();
            if !is_given {
                let text = format!("{call} runs with {mounted:?}, and its session was given {given:?}");
                seen.violations.push(text);
            }
        });
    }

    /// The model is asked: that must have been recorded before, once for each time.
    pub(crate) fn model_asked(&self, session_id: &SessionId) {
        self.see(|seen| {
            let (recorded, made) = seen.intents.entry(session_id.clone()).or_default();
            *made += 1;
            if *made > *recorded {
                let text = format!("{session_id}: {made} requests were made, {recorded} recorded");
                seen.violations.push(text);
            }
        });
    }

    /// A call that changes something begins to run: the history says that it may, or that it was interrupted.
    pub(crate) fn tool_runs(&self, call: &EventId) {
        self.see(|seen| {
            if !seen.told_of.contains(call) {
                seen.violations.push(format!("{call} runs and the history says nothing of it"));
            }
        });
    }
}

/// Sees in fair weather that whatever is due finds an owner.
pub(crate) async fn watch_over(shared: Arc<Shared>) {
    let mut unattended: BTreeMap<SessionId, Instant> = BTreeMap::new();
    loop {
        sleep(Duration::from_secs(1)).await;
        if shared.weather.is_rough() {
            continue;
        }
        let now = shared.store.unattended();
        unattended.retain(|id, _| now.contains(id));
        for id in now {
            let since = *unattended.entry(id.clone()).or_insert_with(Instant::now);
            if since.elapsed() > ATTENDED_WITHIN {
                shared.violation(format!("{id} has been due and without a living owner since {:?}", since.elapsed()));
                return;
            }
        }
    }
}

/// Takes the store away from everybody now and then.
pub(crate) async fn take_store_away(shared: Arc<Shared>) {
    for _ in 0..shared.weather.outages {
        sleep(Duration::from_millis(1_000 + shared.dice.below(15_000))).await;
        shared.weather.set_store_away(true);
        shared.count(Count::Outage, 1);
        for replica_id in shared.witness.servers() {
            shared.store.disconnect(&replica_id);
        }
        let most_ms = if shared.dice.chance(500) { 1_500 } else { 9_000 };
        sleep(Duration::from_millis(200 + shared.dice.below(most_ms))).await;
        shared.weather.set_store_away(false);
    }
}
