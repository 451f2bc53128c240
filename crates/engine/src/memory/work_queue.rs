//! The work queue in memory.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use session::Timestamp;
use session::event::EnvironmentKind;
use session::id::{SessionId, WorkId};
use session::state::Status;

use super::store::{ItemRow, MemoryStore, Tables, page};
use crate::port::work_queue::{Acknowledged, ExpectedHeartbeat, Heartbeat, Pool, QueueStats};
use crate::port::{After, AfterLease, Keep, KeepError, Order, StoreError, WorkChange, WorkItem, WorkQueue, WorkState};

/// The length of a lease that nobody asked to be another, and its bounds, in seconds.
const LEASE_SECONDS: u32 = 30;
const LEASE_SECONDS_MIN: u32 = 3;
const LEASE_SECONDS_MAX: u32 = 300;

/// A worker counts as polling for this many milliseconds after a poll.
const POLLING_MS: i64 = 30_000;

impl Tables {
    /// Does what an append asks of the session's item; whether it queued a new one.
    pub(super) fn change_work(&mut self, session_id: &SessionId, change: WorkChange, now: Timestamp) -> bool {
        match change {
            WorkChange::None => false,
            WorkChange::Ensure { work_id } => self.ensure_item(session_id, work_id, now),
            WorkChange::EndLease { work_id, then, .. } => {
                self.end_lease(&work_id, then == AfterLease::Requeue, now);
                match then {
                    AfterLease::Requeue => true,
                    AfterLease::Stop => false,
                    AfterLease::Replace { work_id } => self.ensure_item(session_id, work_id, now),
                }
            }
            WorkChange::Stop => {
                if let Some(work_id) = self.sessions.get(session_id).and_then(|row| row.item.clone()) {
                    match self.items.get_mut(&work_id).filter(|row| row.item.last_sign_at().is_some()) {
                        Some(held) => held.item.ask_to_stop(now),
                        None => self.end_item(&work_id, now),
                    }
                }
                false
            }
        }
    }

    fn ensure_item(&mut self, session_id: &SessionId, work_id: WorkId, now: Timestamp) -> bool {
        let Some(session) = self.sessions.get_mut(session_id) else {
            return false;
        };
        if session.item.is_some() {
            return false;
        }
        session.item = Some(work_id.clone());
        self.items_made += 1;
        let item = WorkItem {
            id: work_id.clone(),
            session_id: session_id.clone(),
            environment_id: session.state.environment_id.clone(),
            environment_kind: session.state.environment_kind,
            state: WorkState::Queued,
            metadata: BTreeMap::new(),
            created_at: now,
            acknowledged_at: None,
            started_at: None,
            latest_heartbeat_at: None,
            stop_requested_at: None,
            stopped_at: None,
            lease_ttl_seconds: LEASE_SECONDS,
        };
        self.items.insert(work_id, ItemRow { item, order: self.items_made, handed_out_at: None, token_hash: None });
        true
    }

    fn end_lease(&mut self, work_id: &WorkId, requeue: bool, now: Timestamp) {
        let Some(row) = self.items.get_mut(work_id) else { return };
        row.token_hash = None;
        row.handed_out_at = None;
        row.item.acknowledged_at = None;
        row.item.started_at = None;
        row.item.latest_heartbeat_at = None;
        row.item.lease_ttl_seconds = LEASE_SECONDS;
        if requeue {
            row.item.state = WorkState::Queued;
            row.item.stop_requested_at = None;
            self.items_made += 1;
            row.order = self.items_made;
        } else {
            self.end_item(work_id, now);
        }
    }

    fn end_item(&mut self, work_id: &WorkId, now: Timestamp) {
        let Some(row) = self.items.get_mut(work_id) else { return };
        row.item.stop_requested_at.get_or_insert(now);
        row.item.state = WorkState::Stopped;
        row.item.stopped_at = Some(now);
        row.token_hash = None;
        let session_id = row.item.session_id.clone();
        if let Some(session) = self.sessions.get_mut(&session_id)
            && session.item.as_ref() == Some(work_id)
        {
            session.item = None;
        }
    }

    /// The item, if the pool may see it.
    fn seen_by(&mut self, pool: &Pool, work_id: &WorkId) -> Option<&mut ItemRow> {
        self.items.get_mut(work_id).filter(|row| in_pool(pool, &row.item))
    }

    fn is_over(&self, session_id: &SessionId) -> bool {
        self.sessions.get(session_id).is_none_or(|row| row.state.deleted || row.state.status == Status::Terminated)
    }
}

impl WorkItem {
    fn ask_to_stop(&mut self, now: Timestamp) {
        self.stop_requested_at.get_or_insert(now);
        self.state = WorkState::Stopping;
    }
}

#[async_trait]
impl WorkQueue for MemoryStore {
    async fn poll(
        &self,
        pool: &Pool,
        worker_id: &str,
        reclaim_older_than_ms: u32,
        token_hash: &str,
    ) -> Result<Option<WorkItem>, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.polls.insert((pool_name(pool), worker_id.to_owned()), now);
        let oldest = tables
            .items
            .values_mut()
            .filter(|row| in_pool(pool, &row.item) && row.item.state == WorkState::Queued)
            .filter(|row| row.handed_out_at.is_none_or(|at| at.plus_millis(i64::from(reclaim_older_than_ms)) <= now))
            .min_by_key(|row| row.order);
        Ok(oldest.map(|row| {
            row.handed_out_at = Some(now);
            row.token_hash = Some(token_hash.to_owned());
            row.item.clone()
        }))
    }

    async fn acknowledge(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        ttl_seconds: Option<u32>,
    ) -> Result<Acknowledged, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        let Some(row) = tables.seen_by(pool, work_id) else {
            return Ok(Acknowledged::NotFound);
        };
        if row.item.state != WorkState::Queued || row.handed_out_at.is_none() {
            return Ok(Acknowledged::Lost);
        }
        row.item.state = WorkState::Starting;
        row.item.acknowledged_at = Some(now);
        if let Some(seconds) = ttl_seconds {
            row.item.lease_ttl_seconds = seconds.clamp(LEASE_SECONDS_MIN, LEASE_SECONDS_MAX);
        }
        Ok(Acknowledged::Yes(row.item.clone()))
    }

    async fn heartbeat(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        expected: &ExpectedHeartbeat,
        ttl_seconds: Option<u32>,
    ) -> Result<Heartbeat, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        let Some(row) = tables.seen_by(pool, work_id) else {
            return Ok(Heartbeat::NotFound);
        };
        let item = &mut row.item;
        if matches!(item.state, WorkState::Stopping | WorkState::Stopped) {
            return Ok(Heartbeat::Beat { item: item.clone(), lease_extended: false });
        }
        let matches = match expected {
            ExpectedHeartbeat::Any => true,
            ExpectedHeartbeat::None => item.latest_heartbeat_at.is_none(),
            ExpectedHeartbeat::At(at) => item.latest_heartbeat_at == Some(*at),
        };
        if !matches || item.state == WorkState::Queued {
            return Ok(Heartbeat::Mismatch { item: item.clone() });
        }
        item.state = WorkState::Active;
        item.started_at.get_or_insert(now);
        // Each beat differs from the last, so that an old one never matches.
        item.latest_heartbeat_at = Some(item.latest_heartbeat_at.map_or(now, |last| now.max(last.successor())));
        if let Some(seconds) = ttl_seconds {
            item.lease_ttl_seconds = seconds.clamp(LEASE_SECONDS_MIN, LEASE_SECONDS_MAX);
        }
        Ok(Heartbeat::Beat { item: item.clone(), lease_extended: true })
    }

    async fn ask_to_stop(&self, pool: &Pool, work_id: &WorkId) -> Result<Option<WorkItem>, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        let held = tables.seen_by(pool, work_id).filter(|row| row.item.last_sign_at().is_some());
        Ok(held.map(|row| {
            row.item.ask_to_stop(now);
            row.item.clone()
        }))
    }

    async fn item(&self, pool: &Pool, work_id: &WorkId) -> Result<Option<WorkItem>, StoreError> {
        Ok(self.tables().seen_by(pool, work_id).map(|row| row.item.clone()))
    }

    async fn list_items(&self, pool: &Pool, after: Option<&After>, limit: usize) -> Result<Vec<WorkItem>, StoreError> {
        let tables = self.tables();
        let found = tables.items.values().map(|row| &row.item).filter(|item| in_pool(pool, item));
        let key = |item: &&WorkItem| (item.created_at, item.id.to_string());
        Ok(page(found, key, Order::Descending, after, limit).into_iter().cloned().collect())
    }

    async fn set_metadata(
        &self,
        pool: &Pool,
        work_id: &WorkId,
        metadata: &BTreeMap<String, String>,
        keep: Option<Keep<WorkItem>>,
    ) -> Result<Option<WorkItem>, KeepError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.check_keep(keep.as_ref(), now)?;
        let Some(row) = tables.seen_by(pool, work_id) else { return Ok(None) };
        row.item.metadata.clone_from(metadata);
        let changed = row.item.clone();
        tables.keep_written(keep, &changed, now);
        Ok(Some(changed))
    }

    async fn stats(&self, pool: &Pool) -> Result<QueueStats, StoreError> {
        let now = self.now();
        let tables = self.tables();
        let mut stats = QueueStats::default();
        let queued = tables.items.values().filter(|row| in_pool(pool, &row.item));
        for row in queued.filter(|row| row.item.state == WorkState::Queued) {
            if row.handed_out_at.is_some() {
                stats.pending += 1;
            } else {
                stats.depth += 1;
            }
            let oldest = stats.oldest_queued_at.map_or(row.item.created_at, |at| at.min(row.item.created_at));
            stats.oldest_queued_at = Some(oldest);
        }
        let name = pool_name(pool);
        let polling: BTreeSet<&String> = tables
            .polls
            .iter()
            .filter(|((pool, _), at)| *pool == name && at.plus_millis(POLLING_MS) > now)
            .map(|((_, worker), _)| worker)
            .collect();
        stats.workers_polling = polling.len() as u64;
        Ok(stats)
    }

    async fn item_by_token(&self, token_hash: &str) -> Result<Option<WorkItem>, StoreError> {
        let tables = self.tables();
        let found = tables.items.values().find(|row| row.token_hash.as_deref() == Some(token_hash));
        Ok(found.map(|row| row.item.clone()))
    }

    async fn expired(&self, limit: usize) -> Result<Vec<WorkItem>, StoreError> {
        let now = self.now();
        let tables = self.tables();
        let ended = |item: &&WorkItem| {
            item.last_sign_at().is_some_and(|sign| {
                let lease_ms = i64::from(item.lease_ttl_seconds) * 1_000;
                sign.plus_millis(lease_ms) <= now || tables.is_over(&item.session_id)
            })
        };
        Ok(tables.items.values().map(|row| &row.item).filter(ended).take(limit).cloned().collect())
    }

    async fn held_cloud_items(&self) -> Result<Vec<WorkItem>, StoreError> {
        let tables = self.tables();
        let held = |item: &&WorkItem| in_pool(&Pool::Cloud, item) && item.last_sign_at().is_some();
        Ok(tables.items.values().map(|row| &row.item).filter(held).cloned().collect())
    }
}

fn in_pool(pool: &Pool, item: &WorkItem) -> bool {
    match pool {
        Pool::Cloud => item.environment_kind == EnvironmentKind::Cloud,
        Pool::Environment(id) => item.environment_kind == EnvironmentKind::SelfHosted && item.environment_id == *id,
    }
}

fn pool_name(pool: &Pool) -> String {
    match pool {
        Pool::Cloud => "cloud".to_owned(),
        Pool::Environment(id) => id.to_string(),
    }
}
