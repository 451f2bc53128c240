//! Claims in SQLite: one process, so whoever has not registered with it is dead.

use async_trait::async_trait;
use engine::port::leases::Claimed;
use engine::port::{Claim, Leases, StoreError, Track};
use futures::TryStreamExt as _;
use session::Timestamp;
use session::id::ReplicaId;
use sqlx::{query, query_scalar};

use super::SqliteStore;
use crate::failure::store_error;
use crate::row::{self, Columns as _, integer, row_limit};

#[async_trait]
impl Leases for SqliteStore {
    async fn register(&self, replica_id: &ReplicaId, _track: Track) -> Result<(), StoreError> {
        self.living.lock().insert(replica_id.clone());
        Ok(())
    }

    /// The lock on the folder says all there is to say.
    async fn heartbeat(&self, _replica_id: &ReplicaId) -> Result<(), StoreError> {
        Ok(())
    }

    async fn claim(&self, replica_id: &ReplicaId, limit: usize) -> Result<Vec<Claimed>, StoreError> {
        let living = row::to_json(&*self.living.lock())?;
        let (replica_id, now) = (replica_id.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let due: Vec<(String, bool, bool)> = query(
                        "SELECT id, owner IS NOT NULL AS orphaned, handed_over FROM sessions WHERE wake_at <= ?1 \
                         AND (owner IS NULL OR owner NOT IN (SELECT value FROM json_each(?2))) \
                         ORDER BY wake_at LIMIT ?3",
                    )
                    .bind(now)
                    .bind(living)
                    .bind(row_limit(limit))
                    .fetch(&mut *connection)
                    .map_err(store_error)
                    .and_then(async |row| {
                        Ok((row.text("id")?, row.integer("orphaned")? != 0, row.integer("handed_over")? != 0))
                    })
                    .try_collect()
                    .await?;
                    let mut claimed = Vec::with_capacity(due.len());
                    for (id, taken_over, handed_over) in due {
                        let epoch: i64 = query_scalar(
                            "UPDATE sessions SET owner = ?2, epoch = epoch + 1, handed_over = 0 WHERE id = ?1 RETURNING epoch",
                        )
                        .bind(&id)
                        .bind(replica_id.as_str())
                        .fetch_one(&mut *connection)
                        .await
                        .map_err(store_error)?;
                        claimed.push(Claimed {
                            claim: Claim {
                                session_id: id.into(),
                                replica_id: replica_id.clone(),
                                epoch: u64::try_from(epoch).unwrap_or_default(),
                            },
                            taken_over,
                            handed_over,
                        });
                    }
                    Ok(claimed)
                })
            })
            .await
    }

    async fn release(&self, claim: &Claim, handed_over: bool) -> Result<(), StoreError> {
        let claim = claim.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    query("UPDATE sessions SET owner = NULL, handed_over = ? WHERE id = ? AND owner = ? AND epoch = ?")
                        .bind(i64::from(handed_over))
                        .bind(claim.session_id.as_str())
                        .bind(claim.replica_id.as_str())
                        .bind(integer(claim.epoch))
                        .execute(connection)
                        .await
                        .map_err(store_error)?;
                    Ok(())
                })
            })
            .await
    }

    async fn held(&self, replica_id: &ReplicaId) -> Result<Vec<Claim>, StoreError> {
        let rows = query("SELECT id, owner, epoch FROM sessions WHERE owner = ?")
            .bind(replica_id.as_str())
            .fetch_all(&self.readers)
            .await
            .map_err(store_error)?;
        rows.iter().map(row::claim).collect()
    }

    async fn next_wake(&self) -> Result<Option<Timestamp>, StoreError> {
        let next: Option<i64> = query_scalar("SELECT MIN(wake_at) FROM sessions WHERE wake_at > ?")
            .bind(self.now())
            .fetch_one(&self.readers)
            .await
            .map_err(store_error)?;
        Ok(next.map(Timestamp::from_micros))
    }

    async fn wake_lost(&self, limit: usize) -> Result<usize, StoreError> {
        let now = self.now();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let woken = query(
                        "UPDATE sessions SET wake_at = ?1 WHERE id IN (SELECT id FROM sessions WHERE owner IS NULL \
                         AND wake_at IS NULL AND deleted_at IS NULL AND status IN ('running', 'rescheduling') \
                         LIMIT ?2)",
                    )
                    .bind(now)
                    .bind(row_limit(limit))
                    .execute(connection)
                    .await
                    .map_err(store_error)?;
                    Ok(usize::try_from(woken.rows_affected()).unwrap_or(usize::MAX))
                })
            })
            .await
    }

    async fn retire(&self, replica_id: &ReplicaId) -> Result<(), StoreError> {
        self.living.lock().remove(replica_id);
        Ok(())
    }
}
