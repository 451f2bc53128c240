//! The server's side of workspace snapshots: what a worker sends is kept, and what it asks for is its session's.
//!
//! A worker sends chunks first, then the manifest that names them; the record that makes it the session's comes last, so
//! that whatever a record names is there. A session sees only chunks that it refers to itself, whoever else has equal
//! ones. Everything that a worker writes is fenced by the token of its work item.

use session::event::EnvironmentKind;
use session::id::{EventId, SessionId};
use session::manifest::{ContentHash, Manifest, ManifestError};
use session::{Command, Refusal, Workspace};

use crate::port::{AppendError, BlobHash, Blobs, Fence, StoreError, WorkItem};
use crate::sessions::{CommandError, Sessions};
use crate::world::World;

/// How long a reference is kept that no snapshot needs: a worker may be about to send the manifest that does.
const REFERENCES_KEPT_MS: i64 = 3_600_000;

/// A work item and the hash of the token under which its holder calls.
#[derive(Clone, Debug)]
pub struct HeldItem {
    pub item: Box<WorkItem>,
    pub token_hash: String,
}

impl HeldItem {
    /// What checks the token again in the transaction.
    pub fn fence(&self) -> Fence {
        Fence::ItemToken { work_id: self.item.id.clone(), token_hash: self.token_hash.clone() }
    }

    fn session_id(&self) -> &SessionId {
        &self.item.session_id
    }
}

/// What a worker has to know of its session's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Names the newest folder.
    pub tip: Option<EventId>,
    /// The last snapshot.
    pub manifest: Option<ContentHash>,
    /// Whether a worker has to see to it that it has that folder.
    pub is_tracked: bool,
    /// Whether snapshots are taken.
    pub is_kept: bool,
}

/// A snapshot that has been taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub manifest: ContentHash,
    /// Size of all its files.
    pub bytes: u64,
}

/// Why a worker is not served.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    #[error("there is no store for blobs")]
    NoBlobs,
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error("{count} chunks of the manifest were never sent, such as {such_as}")]
    Unsent { count: usize, such_as: BlobHash },
    #[error("the session refers to no chunk {0}")]
    NoSuchChunk(BlobHash),
    /// Nobody had put it for a day until just now, and the collector came in between: it has to be sent again.
    #[error("chunk {0} was collected before the session referred to it")]
    Collected(BlobHash),
    #[error("the workspace is no longer as it was read, or no longer the caller's")]
    Overtaken,
    #[error("the work item's token has ended")]
    TokenEnded,
    #[error("chunk {0} is referred to and not there")]
    Missing(BlobHash),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The workspaces of sessions, as the holders of their work items see them.
pub struct Workspaces<'s> {
    sessions: &'s Sessions,
    world: &'s World,
    references_kept_ms: i64,
}

impl Sessions {
    /// Their workspaces.
    pub fn workspaces(&self) -> Workspaces<'_> {
        Workspaces { sessions: self, world: self.world(), references_kept_ms: REFERENCES_KEPT_MS }
    }
}

impl Workspaces<'_> {
    /// The same, forgetting references that no snapshot needs after another time than an hour.
    #[must_use]
    pub fn keeping_references_ms(self, references_kept_ms: i64) -> Self {
        Self { references_kept_ms, ..self }
    }

    /// What is known of the session's files.
    pub async fn known(&self, held: &HeldItem) -> Result<Known, WorkspaceError> {
        let session_id = held.session_id();
        let state = self.sessions.state(session_id).await?;
        let state = state.ok_or_else(|| CommandError::NotFound(session_id.clone()))?;
        // The files of a client's environment are the client's own business.
        let is_tracked = state.environment_kind == EnvironmentKind::Cloud;
        let Workspace { tip, saved, .. } = state.workspace;
        let manifest = saved.map(|saved| saved.manifest);
        Ok(Known { tip, manifest, is_tracked, is_kept: is_tracked && self.world.blobs.is_some() })
    }

    /// Those of these chunks that have to be sent.
    pub async fn unsent(&self, held: &HeldItem, hashes: &[BlobHash]) -> Result<Vec<BlobHash>, WorkspaceError> {
        Ok(self.world.chunks.missing(held.session_id(), hashes).await?)
    }

    /// Keeps a chunk and lets the session refer to it, while the token is the item's.
    pub async fn put(&self, held: &HeldItem, bytes: Vec<u8>) -> Result<BlobHash, WorkspaceError> {
        let hash = self.blobs()?.put(bytes).await?;
        let HeldItem { item, token_hash } = held;
        match self.world.chunks.refer(&item.session_id, &item.id, token_hash, &hash).await {
            Ok(()) => Ok(hash),
            Err(AppendError::Conflict) => Err(WorkspaceError::Collected(hash)),
            Err(AppendError::Store(error)) => Err(error.into()),
            Err(AppendError::TokenEnded | AppendError::Fenced) => Err(WorkspaceError::TokenEnded),
            Err(error @ (AppendError::TooManyRunning(_) | AppendError::OverCap(_) | AppendError::KeyUsed(_))) => {
                Err(StoreError::Corrupt(format!("a reference was refused: {error}")).into())
            }
        }
    }

    /// A chunk or manifest that the session refers to.
    pub async fn chunk(&self, held: &HeldItem, hash: &BlobHash) -> Result<Vec<u8>, WorkspaceError> {
        if !self.unsent(held, std::slice::from_ref(hash)).await?.is_empty() {
            return Err(WorkspaceError::NoSuchChunk(hash.clone()));
        }
        let bytes = self.blobs()?.get(hash).await?;
        bytes.ok_or_else(|| WorkspaceError::Missing(hash.clone()))
    }

    /// Makes the manifest that `text` spells the session's snapshot of the folder called `tip`.
    pub async fn save(&self, held: &HeldItem, text: Vec<u8>, tip: Option<EventId>) -> Result<Kept, WorkspaceError> {
        let manifest = Manifest::read(&text)?;
        let chunks: Vec<BlobHash> =
            manifest.chunks.iter().filter_map(|chunk| BlobHash::parse(chunk.hash.as_str())).collect();
        let unsent = self.unsent(held, &chunks).await?;
        if let Some(such_as) = unsent.first() {
            return Err(WorkspaceError::Unsent { count: unsent.len(), such_as: such_as.clone() });
        }
        let bytes = manifest.bytes();
        drop(manifest);
        let hash = self.put(held, text).await?;
        let mut needed = chunks;
        needed.push(hash.clone());
        let manifest = ContentHash::parse(hash.as_str()).expect("both are SHA-256");
        let command = Command::SaveWorkspace { manifest: manifest.clone(), bytes, tip };
        match self.sessions.command(held.session_id(), command, held.fence()).await {
            Ok(_) => {}
            Err(CommandError::TokenEnded | CommandError::Refused(Refusal::Conflict { .. })) => {
                return Err(WorkspaceError::Overtaken);
            }
            Err(error) => return Err(error.into()),
        }
        // What is forgotten later costs room for a while; the snapshot is taken.
        if let Err(error) = self.world.chunks.forget(held.session_id(), &needed, self.references_kept_ms).await {
            tracing::debug!(session_id = %held.session_id(), %error, "references to old chunks stay");
        }
        Ok(Kept { manifest, bytes })
    }

    /// The holder has made the files anew from `manifest`, or has found no snapshot, while the newest folder was called
    /// `tip`. Answers with what is known of the files now, a new tip among it.
    pub async fn restored(
        &self,
        held: &HeldItem,
        manifest: Option<ContentHash>,
        tip: Option<EventId>,
    ) -> Result<Workspace, WorkspaceError> {
        let command = Command::RestoreWorkspace { manifest, tip };
        Ok(self.sessions.command(held.session_id(), command, held.fence()).await?.state.workspace)
    }

    fn blobs(&self) -> Result<&dyn Blobs, WorkspaceError> {
        self.world.blobs.as_deref().ok_or(WorkspaceError::NoBlobs)
    }
}
