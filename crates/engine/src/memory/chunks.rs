//! References to chunks in memory.

use async_trait::async_trait;
use session::id::{SessionId, WorkId};

use super::MemoryStore;
use super::store::Tables;
use crate::port::{AppendError, BlobHash, Chunks, StoreError};

#[async_trait]
impl Chunks for MemoryStore {
    async fn refer(
        &self,
        session_id: &SessionId,
        work_id: &WorkId,
        token_hash: &str,
        hash: &BlobHash,
    ) -> Result<(), AppendError> {
        let now = self.now();
        let mut tables = self.tables();
        let held = tables.items.get(work_id);
        if held.is_none_or(|row| row.item.session_id != *session_id || row.token_hash.as_deref() != Some(token_hash)) {
            return Err(AppendError::TokenEnded);
        }
        match tables.blobs.get_mut(hash) {
            Some(touched_at) => *touched_at = now,
            None => return Err(AppendError::Conflict),
        }
        tables.chunks.insert((session_id.clone(), hash.clone()), now);
        Ok(())
    }

    async fn missing(&self, session_id: &SessionId, hashes: &[BlobHash]) -> Result<Vec<BlobHash>, StoreError> {
        let tables = self.tables();
        let is_missing = |hash: &&BlobHash| !tables.chunks.contains_key(&(session_id.clone(), (*hash).clone()));
        Ok(hashes.iter().filter(is_missing).cloned().collect())
    }

    async fn forget(&self, session_id: &SessionId, keep: &[BlobHash], older_than_ms: i64) -> Result<usize, StoreError> {
        let now = self.now();
        let before = now.plus_millis(-older_than_ms);
        let mut tables = self.tables();
        let Tables { chunks, blobs, .. } = &mut *tables;
        let count = chunks.len();
        chunks.retain(|(session, hash), at| {
            let stays = session != session_id || keep.contains(hash) || *at >= before;
            if let (false, Some(touched_at)) = (stays, blobs.get_mut(hash)) {
                *touched_at = now;
            }
            stays
        });
        Ok(count - chunks.len())
    }
}
