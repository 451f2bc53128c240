//! The event log in memory.

use async_trait::async_trait;
use session::event::Event;
use session::id::{ApiKeyId, SessionId};
use session::state::Status;
use session::{Form, Timestamp};

use super::store::{MemoryStore, SessionRow, Tables, in_range, page};
use crate::port::{
    Append, AppendError, Appended, Claim, EventLog, Fence, ListEvents, ListSessions, Loaded, Order, StoreError,
    StoredRecord, Wake, WorkChange,
};

impl Tables {
    /// The same wake-up, without the wish for a claim of a replica that is not of the session's track.
    fn admit(&self, session_id: &SessionId, wake: Wake) -> Wake {
        match wake {
            Wake::Now { claim_for: Some(replica_id) } => {
                let track = self.replicas.get(&replica_id).map(|row| row.track);
                Wake::Now { claim_for: Some(replica_id).filter(|_| track == Some(self.track(session_id))) }
            }
            wake => wake,
        }
    }

    fn check_running(&self, key: &ApiKeyId, session_id: &SessionId, max: u32) -> Result<(), AppendError> {
        let runs = |row: &SessionRow| {
            matches!(row.state.status, Status::Running | Status::Rescheduling)
                && row.api_key_id.as_ref() == Some(key)
                && row.state.session_id != *session_id
        };
        let running = self.sessions.values().filter(|row| runs(row)).count();
        if running < max as usize { Ok(()) } else { Err(AppendError::TooManyRunning(max)) }
    }

    fn check_fence(&self, session_id: &SessionId, fence: &Fence) -> Result<(), AppendError> {
        let row = self.sessions.get(session_id);
        match fence {
            Fence::Client => Ok(()),
            Fence::Owner(claim) => match row {
                Some(row) if row.owner.as_ref() == Some(&claim.replica_id) && row.epoch == claim.epoch => Ok(()),
                _ => Err(AppendError::Fenced),
            },
            Fence::ItemToken { work_id, token_hash } => match self.items.get(work_id) {
                Some(row)
                    if row.item.session_id == *session_id && row.token_hash.as_deref() == Some(token_hash.as_str()) =>
                {
                    Ok(())
                }
                _ => Err(AppendError::TokenEnded),
            },
        }
    }
}

#[async_trait]
impl EventLog for MemoryStore {
    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let now = self.now();
        let Append { records, state, fence, wake, work, kept, running_max, ledger, resources } = append;
        let session_id = state.session_id.clone();
        let guard = state.position - records.len() as u64;
        let mut tables = self.tables();
        if let Some(kept) = &kept {
            tables.check_key(&kept.request, now)?;
        }
        tables.check_fence(&session_id, &fence)?;
        let position = tables.sessions.get(&session_id).map_or(0, |row| row.state.position);
        if position != guard {
            return Err(AppendError::Conflict);
        }
        if let WorkChange::EndLease { work_id, seen, .. } = &work
            && !tables.items.get(work_id).is_some_and(|row| row.item.lives() && row.item.last_sign_at() == *seen)
        {
            return Err(AppendError::Conflict);
        }
        if resources.iter().any(|resource| !tables.has_content(&resource.file)) {
            return Err(AppendError::Conflict);
        }
        let api_key_id = match (tables.sessions.get(&session_id), records.first().map(|record| &record.event)) {
            (Some(row), _) => row.api_key_id.clone(),
            (None, Some(Event::Created(created))) => created.api_key_id.clone(),
            (None, _) => None,
        };
        if let (Some(max), Some(key)) = (running_max, &api_key_id) {
            tables.check_running(key, &session_id, max)?;
        }
        tables.check_caps(api_key_id.as_ref(), &ledger, now)?;
        let is_deleted = state.deleted;
        let key = api_key_id.clone();
        let row = tables.sessions.entry(session_id.clone()).or_insert_with(|| SessionRow {
            records: Vec::new(),
            state: state.clone(),
            api_key_id,
            owner: None,
            epoch: 0,
            wake_at: None,
            handed_over: false,
            item: None,
            resources_version: 0,
        });
        for record in records {
            let received = match &record.event {
                Event::Processed { received, .. } => {
                    row.records.get(*received as usize - 1).map(|stored| stored.record.event.clone())
                }
                _ => None,
            };
            row.records.push(StoredRecord { record, received });
        }
        row.state = state;
        let wake = tables.admit(&session_id, wake);
        let row = tables.sessions.get_mut(&session_id).expect("it was just written");
        let claim = row.wake(&session_id, wake, now);
        tables.change_ledger(&session_id, key.as_ref(), ledger, now);
        if is_deleted {
            tables.settle_session(&session_id);
        }
        let queued = tables.change_work(&session_id, work, now);
        for resource in resources {
            tables.give(resource, now);
        }
        if is_deleted {
            tables.remove_files_of(&session_id, now);
        }
        if let Some(kept) = kept {
            tables.keep(kept, now);
        }
        Ok(Appended { claim, queued })
    }

    async fn load(&self, session_id: &SessionId) -> Result<Option<Loaded>, StoreError> {
        let tables = self.tables();
        Ok(tables.sessions.get(session_id).map(|row| Loaded {
            state: row.state.clone(),
            claim: row.owner.as_ref().map(|owner| Claim {
                session_id: session_id.clone(),
                replica_id: owner.clone(),
                epoch: row.epoch,
            }),
            handed_over: row.handed_over,
        }))
    }

    async fn read(&self, session_id: &SessionId, after: u64, limit: usize) -> Result<Vec<StoredRecord>, StoreError> {
        let tables = self.tables();
        let records = tables.sessions.get(session_id).map_or(&[][..], |row| &row.records);
        Ok(records.iter().skip(usize::try_from(after).unwrap_or(usize::MAX)).take(limit).cloned().collect())
    }

    async fn list(&self, list: &ListEvents) -> Result<Vec<StoredRecord>, StoreError> {
        let tables = self.tables();
        let Some(row) = tables.sessions.get(&list.session_id) else {
            return Ok(Vec::new());
        };
        let wanted = |stored: &&StoredRecord| {
            stored.record.event.form() == Form::Final
                && (list.types.is_empty() || list.types.contains(stored.kind()))
                && in_range(list.processed, stored.record.at)
        };
        let position = |stored: &StoredRecord| stored.record.position;
        Ok(match list.order {
            Order::Ascending => row
                .records
                .iter()
                .filter(|stored| list.after.is_none_or(|after| position(stored) > after))
                .filter(wanted)
                .take(list.limit)
                .cloned()
                .collect(),
            Order::Descending => row
                .records
                .iter()
                .rev()
                .filter(|stored| list.after.is_none_or(|after| position(stored) < after))
                .filter(wanted)
                .take(list.limit)
                .cloned()
                .collect(),
        })
    }

    async fn list_sessions(&self, list: &ListSessions) -> Result<Vec<session::State>, StoreError> {
        let tables = self.tables();
        let found = tables.sessions.values().map(|row| &row.state).filter(|state| {
            !state.deleted
                && list.agent_id.as_ref().is_none_or(|id| *id == state.agent.id)
                && list.agent_version.is_none_or(|version| version == state.agent.version)
                && in_range(list.created, state.created_at)
                && (list.include_archived || state.archived_at.is_none())
                && (list.statuses.is_empty() || list.statuses.contains(&state.status))
        });
        let key = |state: &&session::State| (state.created_at, state.session_id.to_string());
        Ok(page(found, key, list.order, list.after.as_ref(), list.limit).into_iter().cloned().collect())
    }

    async fn positions(&self, sessions: &[SessionId]) -> Result<Vec<(SessionId, u64)>, StoreError> {
        let tables = self.tables();
        let position = |id: &SessionId| Some((id.clone(), tables.sessions.get(id)?.state.position));
        Ok(sessions.iter().filter_map(position).collect())
    }

    async fn purge(&self, before: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        let gone: Vec<SessionId> = tables
            .sessions
            .iter()
            .filter(|(_, row)| row.state.deleted && row.state.last_at < before)
            .map(|(id, _)| id.clone())
            .take(limit)
            .collect();
        for id in &gone {
            tables.sessions.remove(id);
            tables.items.retain(|_, row| row.item.session_id != *id);
            tables.remove_files_of(id, now);
            let Tables { chunks, blobs, .. } = &mut *tables;
            chunks.retain(|(session, hash), _| {
                if let (true, Some(touched_at)) = (session == id, blobs.get_mut(hash)) {
                    *touched_at = now;
                }
                session != id
            });
        }
        Ok(gone.len())
    }
}

impl SessionRow {
    /// Wakes or releases the session; the claim, if one was asked for and won.
    fn wake(&mut self, session_id: &SessionId, wake: Wake, now: Timestamp) -> Option<Claim> {
        match wake {
            Wake::Keep => None,
            Wake::Release { wake_at } => {
                self.owner = None;
                self.wake_at = wake_at;
                None
            }
            Wake::Now { claim_for } => {
                self.wake_at = Some(self.wake_at.map_or(now, |at| at.min(now)));
                let replica_id = claim_for.filter(|_| self.owner.is_none())?;
                self.owner = Some(replica_id.clone());
                self.epoch += 1;
                self.handed_over = false;
                Some(Claim { session_id: session_id.clone(), replica_id, epoch: self.epoch })
            }
        }
    }
}
