//! Resources and outputs of sessions in memory.

use async_trait::async_trait;
use session::Timestamp;
use session::id::{FileId, ResourceId, SessionId, WorkId};

use super::MemoryStore;
use super::store::Tables;
use crate::port::resources::{
    KnownOutput, OUTPUTS_MAX, Output, OutputError, PutOutput, RESOURCES_MAX, ResourceError, in_the_way,
};
use crate::port::{BlobHash, File, FileResource, Keep, Resources, StoreError};

impl Tables {
    /// Whether the file's content is in the registry.
    pub(super) fn has_content(&self, file: &File) -> bool {
        file.blob.as_ref().is_none_or(|hash| self.blobs.contains_key(hash))
    }

    pub(super) fn add_file(&mut self, file: File, now: Timestamp) {
        if let Some(hash) = &file.blob {
            self.blobs.insert(hash.clone(), now);
        }
        self.files.insert(file.id.clone(), file);
    }

    /// Whether there was one.
    pub(super) fn remove_file(&mut self, id: &FileId, now: Timestamp) -> bool {
        let Some(file) = self.files.remove(id) else { return false };
        if let Some(hash) = file.blob {
            self.blobs.insert(hash, now);
        }
        true
    }

    pub(super) fn give(&mut self, resource: FileResource, now: Timestamp) {
        self.add_file(resource.file.clone(), now);
        self.resources.insert(resource.id.clone(), resource);
    }

    /// Removes what is the session's and goes with it.
    pub(super) fn remove_files_of(&mut self, session_id: &SessionId, now: Timestamp) {
        let is_theirs = |file: &File| file.session_id.as_ref() == Some(session_id);
        let theirs: Vec<FileId> =
            self.files.values().filter(|file| is_theirs(file)).map(|file| file.id.clone()).collect();
        for id in theirs {
            self.remove_file(&id, now);
        }
        self.resources.retain(|_, resource| !is_theirs(&resource.file));
        self.outputs.retain(|(session, _), _| session != session_id);
    }

    fn resources_of(&self, session_id: &SessionId) -> impl Iterator<Item = &FileResource> {
        self.resources.values().filter(move |resource| resource.file.session_id.as_ref() == Some(session_id))
    }
}

#[async_trait]
impl Resources for MemoryStore {
    async fn add_resource(
        &self,
        resource: &FileResource,
        keep: Option<Keep<FileResource>>,
    ) -> Result<(), ResourceError> {
        let now = self.now();
        let mut tables = self.tables();
        tables.check_keep(keep.as_ref(), now)?;
        let session_id = resource.file.session_id.clone().ok_or(ResourceError::NoSession)?;
        let state = tables.sessions.get(&session_id).map(|row| &row.state).filter(|state| !state.deleted);
        let state = state.ok_or(ResourceError::NoSession)?;
        if state.archived_at.is_some() {
            return Err(ResourceError::Archived);
        }
        if tables.resources_of(&session_id).count() >= RESOURCES_MAX {
            return Err(ResourceError::Full);
        }
        let taken = tables.resources_of(&session_id).map(|resource| resource.mount_path.as_str());
        if let Some(path) = in_the_way(&resource.mount_path, taken) {
            return Err(ResourceError::InTheWay(path.to_owned()));
        }
        if !tables.has_content(&resource.file) {
            return Err(ResourceError::ContentGone);
        }
        tables.give(resource.clone(), now);
        tables.sessions.entry(session_id).and_modify(|row| row.resources_version += 1);
        tables.keep_written(keep, resource, now);
        Ok(())
    }

    async fn resources(&self, sessions: &[SessionId]) -> Result<Vec<FileResource>, StoreError> {
        let tables = self.tables();
        let mut found: Vec<FileResource> =
            sessions.iter().flat_map(|session_id| tables.resources_of(session_id)).cloned().collect();
        found.sort_by(|left, right| (left.file.created_at, &left.id).cmp(&(right.file.created_at, &right.id)));
        Ok(found)
    }

    async fn is_given(&self, session_id: &SessionId, hash: &BlobHash) -> Result<bool, StoreError> {
        Ok(self.tables().resources_of(session_id).any(|resource| resource.file.blob.as_ref() == Some(hash)))
    }

    async fn remove_resource(&self, session_id: &SessionId, id: &ResourceId) -> Result<bool, StoreError> {
        let now = self.now();
        let mut tables = self.tables();
        if !tables.resources_of(session_id).any(|resource| resource.id == *id) {
            return Ok(false);
        }
        if let Some(resource) = tables.resources.remove(id) {
            tables.remove_file(&resource.file.id, now);
        }
        tables.sessions.entry(session_id.clone()).and_modify(|row| row.resources_version += 1);
        Ok(true)
    }

    async fn resources_version(&self, session_id: &SessionId) -> Result<u64, StoreError> {
        Ok(self.tables().sessions.get(session_id).map_or(0, |row| row.resources_version))
    }

    async fn put_output(&self, output: &Output, work_id: &WorkId, token_hash: &str) -> Result<PutOutput, OutputError> {
        let now = self.now();
        let mut tables = self.tables();
        let session_id = output.file.session_id.clone().ok_or(OutputError::TokenEnded)?;
        let held = tables.items.get(work_id);
        if held.is_none_or(|row| row.item.session_id != session_id || row.token_hash.as_deref() != Some(token_hash)) {
            return Err(OutputError::TokenEnded);
        }
        let hash = output.file.blob.clone().ok_or(OutputError::ContentGone)?;
        let key = (session_id.clone(), output.path.clone());
        let before = tables.outputs.get(&key).cloned();
        if before.as_ref().is_some_and(|(_, before)| *before == hash) {
            return Ok(PutOutput::Unchanged);
        }
        let replaced = before.map(|(id, _)| id).filter(|id| tables.files.contains_key(id));
        let made = tables
            .outputs
            .iter()
            .filter(|((session, _), (file, _))| *session == session_id && tables.files.contains_key(file))
            .count();
        if replaced.is_none() && made >= OUTPUTS_MAX {
            return Err(OutputError::Full);
        }
        if !tables.has_content(&output.file) {
            return Err(OutputError::ContentGone);
        }
        if let Some(id) = &replaced {
            tables.remove_file(id, now);
        }
        tables.add_file(output.file.clone(), now);
        tables.outputs.insert(key, (output.file.id.clone(), hash));
        Ok(PutOutput::Stored { replaced })
    }

    async fn outputs(&self, session_id: &SessionId) -> Result<Vec<KnownOutput>, StoreError> {
        let tables = self.tables();
        let theirs = tables.outputs.iter().filter(|((session, _), _)| session == session_id);
        Ok(theirs.map(|((_, path), (_, hash))| KnownOutput { path: path.clone(), hash: hash.clone() }).collect())
    }
}
