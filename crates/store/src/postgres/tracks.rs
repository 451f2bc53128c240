//! The rollout weight in PostgreSQL, and how statements read it.

use async_trait::async_trait;
use engine::port::StoreError;
use engine::port::tracks::{CanaryWeight, RolloutWeight, Tracks};
use sqlx::{query, query_scalar};

use super::{PostgresStore, bounded};
use crate::failure::{corrupt, store_error};
use crate::row::{Columns as _, integer};

/// The first hash that is not the canary's, as [`CanaryWeight::hashes_below`] has it.
macro_rules! canary_hashes_below {
    () => {
        "COALESCE((SELECT canary_weight * 4294967295 / 10000 FROM rollout_weight ORDER BY epoch DESC LIMIT 1), 0)"
    };
}
pub(super) use canary_hashes_below;

#[async_trait]
impl Tracks for PostgresStore {
    async fn rollout_weight(&self) -> Result<Option<RolloutWeight>, StoreError> {
        bounded(async {
            let found = query("SELECT epoch, canary_weight FROM rollout_weight ORDER BY epoch DESC LIMIT 1")
                .fetch_optional(&self.pool)
                .await
                .map_err(store_error)?;
            let Some(found) = found else { return Ok(None) };
            let hundredths = u16::try_from(found.integer("canary_weight")?).ok();
            let canary_weight = hundredths
                .and_then(CanaryWeight::from_hundredths)
                .ok_or_else(|| corrupt("rollout_weight", "a weight beyond 100 %"))?;
            Ok(Some(RolloutWeight { epoch: found.counter("epoch")?, canary_weight }))
        })
        .await
    }

    async fn set_rollout_weight(&self, weight: RolloutWeight) -> Result<bool, StoreError> {
        bounded(async {
            let set: Option<i64> = query_scalar(
                "INSERT INTO rollout_weight (epoch, canary_weight) \
                 SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM rollout_weight WHERE epoch >= $1) \
                 ON CONFLICT (epoch) DO NOTHING RETURNING epoch",
            )
            .bind(integer(weight.epoch))
            .bind(i64::from(weight.canary_weight.hundredths()))
            .fetch_optional(&self.pool)
            .await
            .map_err(store_error)?;
            Ok(set.is_some())
        })
        .await
    }
}
