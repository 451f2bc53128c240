//! Replicas and claims in PostgreSQL.
//!
//! A living replica renews its row and holds an advisory lock over a connection of its own: the lock tells at once
//! that the process is gone, the row tells of pauses and partitions. A judge counts in the database's time, and only
//! what it watched itself without a gap, so that after a restart of the database nobody steals from those who come
//! back a moment later.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use engine::port::leases::Claimed;
use engine::port::tracks::TRACK_ABANDONED_MS;
use engine::port::{Claim, Leases, StoreError, Track};
use session::Timestamp;
use session::id::ReplicaId;
use sha2::{Digest as _, Sha256};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions as _, query, query_scalar};
use tokio::sync::Mutex;

use super::tracks::canary_hashes_below;
use super::{PostgresStore, bounded, now};
use crate::failure::store_error;
use crate::row::{self, Columns as _, integer, row_limit};

/// A replica whose lock is free is dead when its row has not moved for this long.
const UNLOCKED_DEAD_MICROS: i64 = 500_000;

/// Any replica is dead when its row has not moved for this long; no judge judges before it has watched as long.
const SILENT_DEAD_MICROS: i64 = 3_000_000;

/// A judge whose beats lie further apart begins to watch anew.
const GAP_MICROS: i64 = 1_000_000;

/// A beat that takes longer has failed.
const BEAT_TIMEOUT: Duration = Duration::from_secs(2);

/// One replica's connection of its own, and how long it has been watching.
#[derive(Default)]
pub(super) struct Lifeline {
    connection: Option<PgConnection>,
    locked: bool,
    track: Track,
    /// Since when it has beaten without a gap, and its last beat, in the database's time.
    watch: Option<(i64, i64)>,
}

impl Lifeline {
    async fn beat(&mut self, direct: &PgConnectOptions, replica_id: &ReplicaId) -> Result<(), StoreError> {
        // Whatever interrupts this call, a connection in an unknown state is not used again.
        let taken = self.connection.take();
        let watch = self.watch.take().filter(|_| taken.is_some());
        let mut connection = match taken {
            Some(connection) => connection,
            None => {
                self.locked = false;
                let mut connection = direct.connect().await.map_err(store_error)?;
                // Who was alive a moment before a crash of the database is not worth waiting for the disk.
                query("SET synchronous_commit = off").execute(&mut connection).await.map_err(store_error)?;
                connection
            }
        };
        let key = lock_key(replica_id);
        if !self.locked {
            // The lock of a connection that broke may outlive it for a while: it says "alive" for us until then.
            self.locked = query_scalar("SELECT pg_try_advisory_lock($1)")
                .bind(key)
                .fetch_one(&mut connection)
                .await
                .map_err(store_error)?;
        }
        let beat_at: i64 = query_scalar(concat!(
            "INSERT INTO replicas (id, lock_key, track, beat_at) VALUES ($1, $2, $3, ",
            now!(),
            ") ON CONFLICT (id) DO UPDATE SET beat_at = EXCLUDED.beat_at RETURNING beat_at"
        ))
        .bind(replica_id.as_str())
        .bind(key)
        .bind(self.track.name())
        .fetch_one(&mut connection)
        .await
        .map_err(store_error)?;
        let since = match watch {
            Some((since, last)) if beat_at - last <= GAP_MICROS => since,
            _ => beat_at,
        };
        self.watch = Some((since, beat_at));
        self.connection = Some(connection);
        Ok(())
    }
}

impl PostgresStore {
    fn lifeline(&self, replica_id: &ReplicaId) -> Arc<Mutex<Lifeline>> {
        self.replicas.lock().entry(replica_id.clone()).or_default().clone()
    }

    async fn beat(&self, replica_id: &ReplicaId) -> Result<(), StoreError> {
        let lifeline = self.lifeline(replica_id);
        let mut lifeline = lifeline.lock().await;
        match tokio::time::timeout(BEAT_TIMEOUT, lifeline.beat(&self.direct, replica_id)).await {
            Ok(Ok(())) => Ok(()),
            // A connection that broke is replaced at once: the lock is free until it is.
            Ok(Err(_)) => match tokio::time::timeout(BEAT_TIMEOUT, lifeline.beat(&self.direct, replica_id)).await {
                Ok(beaten) => beaten,
                Err(_) => Err(late()),
            },
            Err(_) => Err(late()),
        }
    }
}

fn late() -> StoreError {
    StoreError::Unavailable("the database did not take a heartbeat in time".to_owned())
}

/// The advisory lock of a replica: 63 bits of a hash of its id.
fn lock_key(replica_id: &ReplicaId) -> i64 {
    let digest = Sha256::digest(replica_id.as_str());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(bytes) & i64::MAX
}

#[async_trait]
impl Leases for PostgresStore {
    async fn register(&self, replica_id: &ReplicaId, track: Track) -> Result<(), StoreError> {
        self.lifeline(replica_id).lock().await.track = track;
        self.beat(replica_id).await
    }

    async fn heartbeat(&self, replica_id: &ReplicaId) -> Result<(), StoreError> {
        self.beat(replica_id).await
    }

    async fn claim(&self, replica_id: &ReplicaId, limit: usize) -> Result<Vec<Claimed>, StoreError> {
        let lifeline = self.lifeline(replica_id);
        // Who has not watched, up to now, judges nobody but those who said goodbye.
        let ((watched_since, watched_to), track) = {
            let lifeline = lifeline.lock().await;
            (lifeline.watch.unwrap_or((i64::MAX / 2, 0)), lifeline.track)
        };
        bounded(async {
            let rows = query(concat!(
                "WITH clock AS MATERIALIZED (SELECT ",
                now!(),
                " AS now), \
                dead AS MATERIALIZED (\
                    SELECT r.id FROM replicas r, clock WHERE r.id <> $1 AND (r.retired_at IS NOT NULL \
                    OR CASE WHEN $3 + $4 > clock.now OR $6 + $7 < clock.now THEN FALSE \
                    WHEN r.beat_at + $4 <= clock.now THEN TRUE \
                    WHEN r.beat_at + $5 <= clock.now THEN NOT EXISTS (\
                        SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 \
                        AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
                        AND ((l.classid::bigint << 32) | l.objid::bigint) = r.lock_key) ELSE FALSE END)), \
                split AS MATERIALIZED (SELECT ",
                canary_hashes_below!(),
                " AS below, $6 + $7 >= (SELECT now FROM clock) AND (\
                    SELECT GREATEST(COALESCE(MAX(r.beat_at), 0), $3) + $9 <= (SELECT now FROM clock) \
                    FROM replicas r WHERE r.track <> $8) AS other_abandoned), \
                reach AS MATERIALIZED (\
                    SELECT CASE WHEN $8 = 'canary' OR other_abandoned THEN 0 ELSE below END AS low, \
                        CASE WHEN $8 <> 'canary' OR other_abandoned THEN 4294967296 ELSE below END AS high \
                    FROM split), \
                free AS (\
                    SELECT id, wake_at, handed_over, 0::bigint AS orphaned FROM sessions \
                    WHERE owner IS NULL AND wake_at <= (SELECT now FROM clock) \
                        AND split_hash >= (SELECT low FROM reach) AND split_hash < (SELECT high FROM reach) \
                    ORDER BY wake_at LIMIT $2 FOR UPDATE SKIP LOCKED), \
                orphaned AS (\
                    SELECT id, wake_at, handed_over, 1::bigint AS orphaned FROM sessions \
                    WHERE owner = ANY (ARRAY(SELECT id FROM dead)) AND wake_at <= (SELECT now FROM clock) \
                        AND split_hash >= (SELECT low FROM reach) AND split_hash < (SELECT high FROM reach) \
                    ORDER BY wake_at LIMIT $2 FOR UPDATE SKIP LOCKED), \
                due AS (SELECT * FROM free UNION ALL SELECT * FROM orphaned ORDER BY wake_at LIMIT $2) \
                UPDATE sessions SET owner = $1, epoch = epoch + 1, handed_over = 0 FROM due WHERE sessions.id = due.id \
                RETURNING sessions.id, sessions.owner, sessions.epoch, due.wake_at, due.orphaned, due.handed_over"
            ))
            .bind(replica_id.as_str())
            .bind(row_limit(limit))
            .bind(watched_since)
            .bind(SILENT_DEAD_MICROS)
            .bind(UNLOCKED_DEAD_MICROS)
            .bind(watched_to)
            .bind(GAP_MICROS)
            .bind(track.name())
            .bind(TRACK_ABANDONED_MS * 1_000)
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)?;
            let mut claimed = Vec::with_capacity(rows.len());
            for row in &rows {
                let taken_over = row.integer("orphaned")? != 0;
                let handed_over = row.integer("handed_over")? != 0;
                claimed.push((row.integer("wake_at")?, Claimed { claim: row::claim(row)?, taken_over, handed_over }));
            }
            claimed.sort_by_key(|(wake_at, _)| *wake_at);
            Ok(claimed.into_iter().map(|(_, claimed)| claimed).collect())
        })
        .await
    }

    async fn release(&self, claim: &Claim, handed_over: bool) -> Result<(), StoreError> {
        bounded(async {
            query("UPDATE sessions SET owner = NULL, handed_over = $4 WHERE id = $1 AND owner = $2 AND epoch = $3")
                .bind(claim.session_id.as_str())
                .bind(claim.replica_id.as_str())
                .bind(integer(claim.epoch))
                .bind(i64::from(handed_over))
                .execute(&self.pool)
                .await
                .map_err(store_error)?;
            Ok(())
        })
        .await
    }

    async fn held(&self, replica_id: &ReplicaId) -> Result<Vec<Claim>, StoreError> {
        bounded(async {
            let rows = query("SELECT id, owner, epoch FROM sessions WHERE owner = $1")
                .bind(replica_id.as_str())
                .fetch_all(&self.pool)
                .await
                .map_err(store_error)?;
            rows.iter().map(row::claim).collect()
        })
        .await
    }

    async fn next_wake(&self) -> Result<Option<Timestamp>, StoreError> {
        bounded(async {
            let next: Option<i64> = query_scalar(concat!(
                "SELECT wake_at FROM sessions WHERE owner IS NULL AND wake_at IS NOT NULL AND wake_at > (SELECT ",
                now!(),
                ") ORDER BY wake_at LIMIT 1"
            ))
            .fetch_optional(&self.pool)
            .await
            .map_err(store_error)?;
            Ok(next.map(Timestamp::from_micros))
        })
        .await
    }

    async fn wake_lost(&self, limit: usize) -> Result<usize, StoreError> {
        bounded(async {
            let woken = query(concat!(
                "UPDATE sessions SET wake_at = ",
                now!(),
                " WHERE id IN (SELECT id FROM sessions WHERE owner IS NULL AND wake_at IS NULL AND deleted_at IS NULL \
                 AND status IN ('running', 'rescheduling') LIMIT $1 FOR UPDATE SKIP LOCKED)"
            ))
            .bind(row_limit(limit))
            .execute(&self.pool)
            .await
            .map_err(store_error)?;
            Ok(usize::try_from(woken.rows_affected()).unwrap_or(usize::MAX))
        })
        .await
    }

    async fn retire(&self, replica_id: &ReplicaId) -> Result<(), StoreError> {
        bounded(async {
            query(concat!("UPDATE replicas SET retired_at = ", now!(), " WHERE id = $1"))
                .bind(replica_id.as_str())
                .execute(&self.pool)
                .await
                .map_err(store_error)?;
            // Its connection closes with the last who uses it.
            self.replicas.lock().remove(replica_id);
            Ok(())
        })
        .await
    }
}
