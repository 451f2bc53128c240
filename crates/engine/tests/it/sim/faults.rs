//! The store and the clock as one process reaches them, with everything that may befall a call.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use engine::memory::MemoryStore;
use engine::port::definitions::{DefinitionError, ListDefinitions};
use engine::port::files::{FileError, ListFiles};
use engine::port::leases::Claimed;
use engine::port::resources::{KnownOutput, Output, OutputError, PutOutput, ResourceError};
use engine::port::work_queue::{Acknowledged, ExpectedHeartbeat, Heartbeat, Pool, QueueStats};
use engine::port::*;
use session::id::{AgentId, EnvironmentId, EnvironmentKeyId, FileId, ReplicaId, ResourceId, SessionId, WorkId};
use session::{State, Timestamp};

use super::weather::Process;
use super::witness::Witness;

/// The store as one process reaches it.
pub(crate) struct FaultyStore {
    pub(crate) process: Arc<Process>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) witness: Arc<Witness>,
}

#[async_trait]
impl EventLog for FaultyStore {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        self.process.call(10, self.witness.append(&self.store, append)).await
    }
    async fn load(&self, id: &SessionId) -> Result<Option<Loaded>, StoreError> {
        self.process.call(1, self.store.load(id)).await
    }
    async fn read(&self, id: &SessionId, after: u64, limit: usize) -> Result<Vec<StoredRecord>, StoreError> {
        self.process.call(1, self.store.read(id, after, limit)).await
    }
    async fn list(&self, list: &ListEvents) -> Result<Vec<StoredRecord>, StoreError> {
        self.process.call(1, self.store.list(list)).await
    }
    async fn list_sessions(&self, list: &ListSessions) -> Result<Vec<State>, StoreError> {
        self.process.call(1, self.store.list_sessions(list)).await
    }
    async fn positions(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, u64)>, StoreError> {
        self.process.call(0, self.store.positions(sessions)).await
    }
    async fn purge(&self, before: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.process.call(1, self.store.purge(before, limit)).await
    }
}

#[async_trait]
impl Leases for FaultyStore {
    async fn register(&self, id: &ReplicaId, track: Track) -> Result<(), StoreError> {
        self.process.call(1, self.store.register(id, track)).await
    }
    async fn heartbeat(&self, id: &ReplicaId) -> Result<(), StoreError> {
        self.process.call(0, Leases::heartbeat(&*self.store, id)).await
    }
    async fn claim(&self, id: &ReplicaId, limit: usize) -> Result<Vec<Claimed>, StoreError> {
        self.process.call(2, self.witness.claim(&self.store, id, limit)).await
    }
    async fn release(&self, claim: &Claim, handed_over: bool) -> Result<(), StoreError> {
        self.process.call(10, self.store.release(claim, handed_over)).await
    }
    async fn held(&self, id: &ReplicaId) -> Result<Vec<Claim>, StoreError> {
        self.process.call(1, self.store.held(id)).await
    }
    async fn next_wake(&self) -> Result<Option<Timestamp>, StoreError> {
        self.process.call(0, self.store.next_wake()).await
    }
    async fn wake_lost(&self, limit: usize) -> Result<usize, StoreError> {
        self.process.call(1, self.store.wake_lost(limit)).await
    }
    async fn retire(&self, id: &ReplicaId) -> Result<(), StoreError> {
        self.process.call(10, self.witness.retire(&self.store, id)).await
    }
}

#[async_trait]
impl WorkQueue for FaultyStore {
    async fn poll(
        &self,
        pool: &Pool,
        worker: &str,
        reclaim_ms: u32,
        hash: &str,
    ) -> Result<Option<WorkItem>, StoreError> {
        self.process.call(1, self.store.poll(pool, worker, reclaim_ms, hash)).await
    }
    async fn acknowledge(&self, pool: &Pool, id: &WorkId, ttl: Option<u32>) -> Result<Acknowledged, StoreError> {
        self.process.call(1, self.store.acknowledge(pool, id, ttl)).await
    }
    async fn heartbeat(
        &self,
        pool: &Pool,
        id: &WorkId,
        expected: &ExpectedHeartbeat,
        ttl: Option<u32>,
    ) -> Result<Heartbeat, StoreError> {
        self.process.call(0, WorkQueue::heartbeat(&*self.store, pool, id, expected, ttl)).await
    }
    async fn ask_to_stop(&self, pool: &Pool, id: &WorkId) -> Result<Option<WorkItem>, StoreError> {
        self.process.call(1, self.store.ask_to_stop(pool, id)).await
    }
    async fn item(&self, pool: &Pool, id: &WorkId) -> Result<Option<WorkItem>, StoreError> {
        self.process.call(1, self.store.item(pool, id)).await
    }
    async fn list_items(&self, pool: &Pool, after: Option<&After>, limit: usize) -> Result<Vec<WorkItem>, StoreError> {
        self.process.call(1, self.store.list_items(pool, after, limit)).await
    }
    async fn set_metadata(
        &self,
        pool: &Pool,
        id: &WorkId,
        metadata: &BTreeMap<String, String>,
        keep: Option<Keep<WorkItem>>,
    ) -> Result<Option<WorkItem>, KeepError> {
        self.process.call(1, self.store.set_metadata(pool, id, metadata, keep)).await
    }
    async fn stats(&self, pool: &Pool) -> Result<QueueStats, StoreError> {
        self.process.call(1, self.store.stats(pool)).await
    }
    async fn item_by_token(&self, hash: &str) -> Result<Option<WorkItem>, StoreError> {
        self.process.call(1, self.store.item_by_token(hash)).await
    }
    async fn expired(&self, limit: usize) -> Result<Vec<WorkItem>, StoreError> {
        self.process.call(0, self.store.expired(limit)).await
    }
    async fn held_cloud_items(&self) -> Result<Vec<WorkItem>, StoreError> {
        self.process.call(1, self.store.held_cloud_items()).await
    }
}

#[async_trait]
impl Definitions for FaultyStore {
    async fn create_agent(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError> {
        self.process.call(1, self.store.create_agent(agent, keep)).await
    }
    async fn agent(&self, id: &AgentId, version: Option<u32>) -> Result<Option<Agent>, StoreError> {
        self.process.call(1, self.store.agent(id, version)).await
    }
    async fn agent_archived_at(&self, id: &AgentId) -> Result<Option<Option<Timestamp>>, StoreError> {
        self.process.call(1, self.store.agent_archived_at(id)).await
    }

    async fn add_agent_version(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError> {
        self.process.call(1, self.store.add_agent_version(agent, keep)).await
    }
    async fn archive_agent(
        &self,
        id: &AgentId,
        at: Timestamp,
        keep: Option<Keep<Agent>>,
    ) -> Result<Agent, DefinitionError> {
        self.process.call(1, self.store.archive_agent(id, at, keep)).await
    }
    async fn list_agents(&self, list: &ListDefinitions) -> Result<Vec<Agent>, StoreError> {
        self.process.call(1, self.store.list_agents(list)).await
    }
    async fn agent_versions(&self, id: &AgentId, before: Option<u32>, limit: usize) -> Result<Vec<Agent>, StoreError> {
        self.process.call(1, self.store.agent_versions(id, before, limit)).await
    }
    async fn create_environment(
        &self,
        environment: &Environment,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError> {
        self.process.call(1, self.store.create_environment(environment, keep)).await
    }
    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
        self.process.call(1, self.store.environment(id)).await
    }
    async fn update_environment(
        &self,
        environment: &Environment,
        seen: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError> {
        self.process.call(1, self.store.update_environment(environment, seen, keep)).await
    }
    async fn archive_environment(
        &self,
        id: &EnvironmentId,
        at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<Environment, DefinitionError> {
        self.process.call(1, self.store.archive_environment(id, at, keep)).await
    }
    async fn delete_environment(&self, id: &EnvironmentId) -> Result<(), DefinitionError> {
        self.process.call(1, self.store.delete_environment(id)).await
    }
    async fn list_environments(&self, list: &ListDefinitions) -> Result<Vec<Environment>, StoreError> {
        self.process.call(1, self.store.list_environments(list)).await
    }
    async fn create_environment_key(&self, key: &EnvironmentKey) -> Result<(), DefinitionError> {
        self.process.call(1, self.store.create_environment_key(key)).await
    }
    async fn environment_key(&self, hash: &str) -> Result<Option<EnvironmentKey>, StoreError> {
        self.process.call(1, self.store.environment_key(hash)).await
    }
    async fn list_environment_keys(&self, id: &EnvironmentId) -> Result<Vec<EnvironmentKey>, StoreError> {
        self.process.call(1, self.store.list_environment_keys(id)).await
    }
    async fn revoke_environment_key(&self, id: &EnvironmentKeyId, at: Timestamp) -> Result<(), DefinitionError> {
        self.process.call(1, self.store.revoke_environment_key(id, at)).await
    }
}

#[async_trait]
impl Idempotency for FaultyStore {
    async fn kept(&self, credential_hash: &str, key: &str) -> Result<Option<Kept>, StoreError> {
        self.process.call(1, self.store.kept(credential_hash, key)).await
    }
    async fn keep(&self, kept: &Kept) -> Result<(), KeepError> {
        self.process.call(1, self.store.keep(kept)).await
    }
    async fn purge_kept(&self, limit: usize) -> Result<usize, StoreError> {
        self.process.call(1, self.store.purge_kept(limit)).await
    }
}

#[async_trait]
impl BlobRegistry for FaultyStore {
    async fn announce(&self, blob: &Blob) -> Result<(), StoreError> {
        self.process.call(5, self.store.announce(blob)).await
    }
    async fn collect(&self, limit: usize) -> Result<usize, StoreError> {
        if self.process.fails_halfway() {
            self.store.collect_halfway(limit);
            return Err(StoreError::Unavailable("simulated, half-way".to_owned()));
        }
        self.process.call(10, self.store.collect(limit)).await
    }
}

#[async_trait]
impl Chunks for FaultyStore {
    async fn refer(&self, id: &SessionId, work: &WorkId, token: &str, hash: &BlobHash) -> Result<(), AppendError> {
        self.process.call(10, self.store.refer(id, work, token, hash)).await
    }
    async fn missing(&self, id: &SessionId, hashes: &[BlobHash]) -> Result<Vec<BlobHash>, StoreError> {
        self.process.call(1, self.store.missing(id, hashes)).await
    }
    async fn forget(&self, id: &SessionId, keep: &[BlobHash], older_than_ms: i64) -> Result<usize, StoreError> {
        self.process.call(5, self.store.forget(id, keep, older_than_ms)).await
    }
}

#[async_trait]
impl Files for FaultyStore {
    async fn create_file(&self, file: &File, keep: Option<Keep<File>>) -> Result<(), FileError> {
        self.process.call(10, self.store.create_file(file, keep)).await
    }
    async fn files(&self, ids: &[FileId]) -> Result<Vec<File>, StoreError> {
        self.process.call(1, self.store.files(ids)).await
    }
    async fn list_files(&self, list: &ListFiles) -> Result<Vec<File>, StoreError> {
        self.process.call(1, self.store.list_files(list)).await
    }
    async fn delete_files(&self, ids: &[FileId]) -> Result<usize, StoreError> {
        self.process.call(10, self.store.delete_files(ids)).await
    }
    async fn expire_files(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.process.call(5, self.store.expire_files(now, limit)).await
    }
}

#[async_trait]
impl Resources for FaultyStore {
    async fn add_resource(
        &self,
        resource: &FileResource,
        keep: Option<Keep<FileResource>>,
    ) -> Result<(), ResourceError> {
        self.process.call(10, self.witness.add_resource(&self.store, resource, keep)).await
    }
    async fn resources(&self, sessions: &[SessionId]) -> Result<Vec<FileResource>, StoreError> {
        self.process.call(1, self.store.resources(sessions)).await
    }
    async fn is_given(&self, session_id: &SessionId, hash: &BlobHash) -> Result<bool, StoreError> {
        self.process.call(1, self.store.is_given(session_id, hash)).await
    }
    async fn remove_resource(&self, session_id: &SessionId, id: &ResourceId) -> Result<bool, StoreError> {
        self.process.call(10, self.witness.remove_resource(&self.store, session_id, id)).await
    }
    async fn resources_version(&self, session_id: &SessionId) -> Result<u64, StoreError> {
        self.process.call(1, self.store.resources_version(session_id)).await
    }
    async fn put_output(&self, output: &Output, work: &WorkId, token: &str) -> Result<PutOutput, OutputError> {
        self.process.call(10, self.store.put_output(output, work, token)).await
    }
    async fn outputs(&self, session_id: &SessionId) -> Result<Vec<KnownOutput>, StoreError> {
        self.process.call(1, self.store.outputs(session_id)).await
    }
}

/// A process's clock: right but for a fixed error.
pub(crate) struct SkewedClock {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) error_ms: i64,
}

impl Clock for SkewedClock {
    fn now(&self) -> Timestamp {
        self.clock.now().plus_millis(self.error_ms)
    }
}
