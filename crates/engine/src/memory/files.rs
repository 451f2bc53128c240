//! Files in memory.

use async_trait::async_trait;
use session::Timestamp;
use session::id::FileId;

use super::MemoryStore;
use super::store::page;
use crate::port::files::{File, FileError, Files, ListFiles};
use crate::port::{Keep, StoreError};

#[async_trait]
impl Files for MemoryStore {
    async fn create_file(&self, file: &File, keep: Option<Keep<File>>) -> Result<(), FileError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.check_keep(keep.as_ref(), now)?;
        if !tables.has_content(file) {
            return Err(FileError::ContentGone);
        }
        tables.add_file(file.clone(), now);
        tables.keep_written(keep, file, now);
        Ok(())
    }

    async fn files(&self, ids: &[FileId]) -> Result<Vec<File>, StoreError> {
        let tables = self.tables();
        Ok(ids.iter().filter_map(|id| tables.files.get(id).cloned()).collect())
    }

    async fn list_files(&self, list: &ListFiles) -> Result<Vec<File>, StoreError> {
        let tables = self.tables();
        let found = tables
            .files
            .values()
            .filter(|file| list.session_id.as_ref().is_none_or(|id| file.session_id.as_ref() == Some(id)));
        let key = |file: &&File| (file.created_at, file.id.to_string());
        Ok(page(found, key, list.order, list.after.as_ref(), list.limit).into_iter().cloned().collect())
    }

    async fn delete_files(&self, ids: &[FileId]) -> Result<usize, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        let is_mounted = |id: &&FileId| tables.resources.values().any(|resource| resource.file.id == **id);
        let ids: Vec<FileId> = ids.iter().filter(|id| !is_mounted(id)).cloned().collect();
        Ok(ids.iter().filter(|id| tables.remove_file(id, now)).count())
    }

    async fn expire_files(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let touched = self.now();
        let mut tables = self.tables();
        let expired = tables.files.values_mut().filter(|file| file.blob.is_some() && file.is_expired(now));
        let let_go: Vec<_> = expired.take(limit).filter_map(|file| file.blob.take()).collect();
        let count = let_go.len();
        tables.blobs.extend(let_go.into_iter().map(|hash| (hash, touched)));
        Ok(count)
    }
}
