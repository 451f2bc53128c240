//! Replicas, heartbeats and claims in memory.

use async_trait::async_trait;
use session::Timestamp;
use session::id::{ReplicaId, SessionId};
use session::state::Status;

use super::store::{MemoryStore, ReplicaRow, Tables};
use crate::port::leases::Claimed;
use crate::port::tracks::TRACK_ABANDONED_MS;
use crate::port::{CanaryWeight, Claim, Leases, RolloutWeight, StoreError, Track, Tracks};

/// A replica whose connection is gone is dead after this many milliseconds without a heartbeat.
const DISCONNECTED_DEAD_MS: i64 = 500;

/// Any other replica is dead after this many, and no judge judges before it has watched as long.
const SILENT_DEAD_MS: i64 = 3_000;

/// A judge that paused for longer than this many milliseconds, between two beats or since the last, judges nobody.
const PAUSE_MS: i64 = 1_000;

impl Tables {
    /// Whether `judge` may take what `owner` holds.
    fn is_dead(&self, owner: &ReplicaId, judge: &ReplicaId, now: Timestamp) -> bool {
        let Some(row) = self.replicas.get(owner) else {
            return true;
        };
        if row.retired {
            return true;
        }
        if owner == judge {
            return false;
        }
        let dead_ms = if row.disconnected { DISCONNECTED_DEAD_MS } else { SILENT_DEAD_MS };
        self.replicas.get(judge).is_some_and(|judge| judge.may_judge(now)) && row.last_beat.plus_millis(dead_ms) <= now
    }

    /// The track that the session belongs to now.
    pub(super) fn track(&self, session_id: &SessionId) -> Track {
        Track::of(session_id, self.rollout_weight.map_or(CanaryWeight::default(), |weight| weight.canary_weight))
    }

    /// Whether the session is of the replica's track, or of one that the replica has seen abandoned.
    fn may_claim(&self, session_id: &SessionId, replica_id: &ReplicaId, now: Timestamp) -> bool {
        let Some(replica) = self.replicas.get(replica_id) else { return false };
        let track = self.track(session_id);
        let living = self.replicas.values().filter(|row| row.track == track).map(|row| row.last_beat).max();
        let seen = living.map_or(replica.beating_since, |last| last.max(replica.beating_since));
        replica.track == track || (replica.may_judge(now) && seen.plus_millis(TRACK_ABANDONED_MS) <= now)
    }
}

impl ReplicaRow {
    /// Whether it has watched the others long enough and up to now.
    fn may_judge(&self, now: Timestamp) -> bool {
        let is_watching = !self.disconnected && now <= self.last_beat.plus_millis(PAUSE_MS);
        is_watching && self.beating_since.plus_millis(SILENT_DEAD_MS) <= now
    }
}

#[async_trait]
impl Tracks for MemoryStore {
    async fn rollout_weight(&self) -> Result<Option<RolloutWeight>, StoreError> {
        Ok(self.tables().rollout_weight)
    }

    async fn set_rollout_weight(&self, weight: RolloutWeight) -> Result<bool, StoreError> {
        let mut tables = self.tables();
        let is_newer = tables.rollout_weight.is_none_or(|known| known.epoch < weight.epoch);
        if is_newer {
            tables.rollout_weight = Some(weight);
        }
        Ok(is_newer)
    }
}

#[async_trait]
impl Leases for MemoryStore {
    async fn register(&self, replica_id: &ReplicaId, track: Track) -> Result<(), StoreError> {
        let now = self.now();
        let row = ReplicaRow { track, last_beat: now, beating_since: now, retired: false, disconnected: false };
        self.tables().replicas.insert(replica_id.clone(), row);
        Ok(())
    }

    async fn heartbeat(&self, replica_id: &ReplicaId) -> Result<(), StoreError> {
        let now = self.now();
        if let Some(row) = self.tables().replicas.get_mut(replica_id) {
            // Who lost its connection has missed what happened meanwhile, however short that was.
            if row.disconnected || row.last_beat.plus_millis(PAUSE_MS) < now {
                row.beating_since = now;
            }
            row.last_beat = now;
            row.disconnected = false;
        }
        Ok(())
    }

    async fn claim(&self, replica_id: &ReplicaId, limit: usize) -> Result<Vec<Claimed>, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        let mut due: Vec<(Timestamp, SessionId)> = tables
            .sessions
            .iter()
            .filter_map(|(id, row)| Some((row.wake_at.filter(|at| *at <= now)?, id, row)))
            .filter(|(_, _, row)| row.owner.as_ref().is_none_or(|owner| tables.is_dead(owner, replica_id, now)))
            .filter(|(_, id, _)| tables.may_claim(id, replica_id, now))
            .map(|(at, id, _)| (at, id.clone()))
            .collect();
        due.sort();
        due.truncate(limit);
        let mut claimed = Vec::with_capacity(due.len());
        for (_, session_id) in due {
            let Some(row) = tables.sessions.get_mut(&session_id) else { continue };
            let taken_over = row.owner.replace(replica_id.clone()).is_some();
            row.epoch += 1;
            let handed_over = std::mem::take(&mut row.handed_over);
            let claim = Claim { session_id, replica_id: replica_id.clone(), epoch: row.epoch };
            claimed.push(Claimed { claim, taken_over, handed_over });
        }
        Ok(claimed)
    }

    async fn release(&self, claim: &Claim, handed_over: bool) -> Result<(), StoreError> {
        if let Some(row) = self.tables().sessions.get_mut(&claim.session_id)
            && row.owner.as_ref() == Some(&claim.replica_id)
            && row.epoch == claim.epoch
        {
            row.owner = None;
            row.handed_over = handed_over;
        }
        Ok(())
    }

    async fn held(&self, replica_id: &ReplicaId) -> Result<Vec<Claim>, StoreError> {
        let tables = self.tables();
        let held = tables.sessions.iter().filter(|(_, row)| row.owner.as_ref() == Some(replica_id));
        let claim = |(id, row): (&SessionId, &super::store::SessionRow)| Claim {
            session_id: id.clone(),
            replica_id: replica_id.clone(),
            epoch: row.epoch,
        };
        Ok(held.map(claim).collect())
    }

    async fn next_wake(&self) -> Result<Option<Timestamp>, StoreError> {
        let now = self.now();
        Ok(self.tables().sessions.values().filter_map(|row| row.wake_at).filter(|at| *at > now).min())
    }

    async fn wake_lost(&self, limit: usize) -> Result<usize, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        let lost = tables.sessions.values_mut().filter(|row| {
            let in_turn = matches!(row.state.status, Status::Running | Status::Rescheduling) && !row.state.deleted;
            in_turn && row.owner.is_none() && row.wake_at.is_none()
        });
        let mut found = 0;
        for row in lost.take(limit) {
            row.wake_at = Some(now);
            found += 1;
        }
        Ok(found)
    }

    async fn retire(&self, replica_id: &ReplicaId) -> Result<(), StoreError> {
        if let Some(row) = self.tables().replicas.get_mut(replica_id) {
            row.retired = true;
        }
        Ok(())
    }
}
