//! Kept answers in memory.

use async_trait::async_trait;
use session::Timestamp;

use super::store::{MemoryStore, Tables};
use crate::port::idempotency::KEPT_MS;
use crate::port::{Idempotency, Keep, KeepError, Kept, KeyUsed, KeyedRequest, StoreError};

impl Tables {
    /// Whether the request is the first under its key.
    pub(super) fn check_keep<T>(&self, keep: Option<&Keep<T>>, now: Timestamp) -> Result<(), KeyUsed> {
        keep.map_or(Ok(()), |keep| self.check_key(&keep.request, now))
    }

    /// Keeps the answer of a write whose key was checked.
    pub(super) fn keep_written<T>(&mut self, keep: Option<Keep<T>>, written: &T, now: Timestamp) {
        if let Some(keep) = keep {
            self.keep(keep.kept(written), now);
        }
    }

    pub(super) fn check_key(&self, request: &KeyedRequest, now: Timestamp) -> Result<(), KeyUsed> {
        let id = (request.credential_hash.clone(), request.key.clone());
        match self.kept.get(&id) {
            Some((_, at)) if is_kept(*at, now) => Err(KeyUsed),
            _ => Ok(()),
        }
    }

    /// Keeps an answer under a key that was checked.
    pub(super) fn keep(&mut self, kept: Kept, now: Timestamp) {
        let id = (kept.request.credential_hash.clone(), kept.request.key.clone());
        self.kept.insert(id, (kept, now));
    }
}

fn is_kept(at: Timestamp, now: Timestamp) -> bool {
    at.plus_millis(KEPT_MS) > now
}

#[async_trait]
impl Idempotency for MemoryStore {
    async fn kept(&self, credential_hash: &str, key: &str) -> Result<Option<Kept>, StoreError> {
        let now = self.now();
        let tables = self.tables();
        let found = tables.kept.get(&(credential_hash.to_owned(), key.to_owned()));
        Ok(found.filter(|(_, at)| is_kept(*at, now)).map(|(kept, _)| kept.clone()))
    }

    async fn keep(&self, kept: &Kept) -> Result<(), KeepError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.check_key(&kept.request, now)?;
        tables.keep(kept.clone(), now);
        Ok(())
    }

    async fn purge_kept(&self, limit: usize) -> Result<usize, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        let old = tables.kept.iter().filter(|(_, (_, at))| !is_kept(*at, now)).map(|(id, _)| id.clone());
        let old: Vec<_> = old.take(limit).collect();
        for id in &old {
            tables.kept.remove(id);
        }
        Ok(old.len())
    }
}
