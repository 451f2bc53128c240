//! The requests about a session's files: chunks, manifests, and what the server knows of them.

use reqwest::{Method, header};
use serde::Deserialize;
use serde_json::json;
use session::id::EventId;
use session::manifest::ContentHash;
use std::time::Duration;

use super::client::{ApiError, Client, accepted, answer};
use crate::secret::Secret;

/// What the server knows of a session's files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct ServerWorkspace {
    /// Names the newest folder.
    pub tip: Option<EventId>,
    /// The last snapshot.
    pub manifest: Option<ContentHash>,
    /// Whether a worker has to see to it that it has that folder.
    pub is_tracked: bool,
    /// Whether snapshots are taken.
    pub is_kept: bool,
}

#[derive(Deserialize)]
struct Restored {
    tip: EventId,
}

#[derive(Deserialize)]
struct Missing {
    data: Vec<ContentHash>,
}

impl Client {
    pub(crate) async fn workspace(&self, session_id: &str, token: &Secret) -> Result<ServerWorkspace, ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "workspace"]);
        answer(self.request(Method::GET, url, token)).await
    }

    /// Makes the manifest the session's snapshot; every chunk of it was sent.
    pub(crate) async fn save_workspace(
        &self,
        session_id: &str,
        token: &Secret,
        tip: Option<&EventId>,
        took: Duration,
        manifest: Vec<u8>,
    ) -> Result<(), ApiError> {
        let mut url = self.path(&["v1", "internal", "sessions", session_id, "workspace"]);
        url.query_pairs_mut()
            .append_pair("duration_ms", &took.as_millis().to_string())
            .extend_pairs(tip.map(|tip| ("tip", tip.as_str())));
        let request = self.request(Method::POST, url, token);
        accepted(request.header(header::CONTENT_TYPE, "application/json").body(manifest)).await.map(drop)
    }

    /// Says that the files were made anew; the answer names the new folder.
    pub(crate) async fn restored_workspace(
        &self,
        session_id: &str,
        token: &Secret,
        seen: &ServerWorkspace,
    ) -> Result<EventId, ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "workspace", "restores"]);
        let request = self.request(Method::POST, url, token);
        let restored: Restored = answer(request.json(&json!({"tip": seen.tip, "manifest": seen.manifest}))).await?;
        Ok(restored.tip)
    }

    /// Which of these chunks have to be sent.
    pub(crate) async fn missing_chunks(
        &self,
        session_id: &str,
        token: &Secret,
        hashes: &[&ContentHash],
    ) -> Result<Vec<ContentHash>, ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "chunks", "missing"]);
        let Missing { data } = answer(self.request(Method::POST, url, token).json(&json!({"hashes": hashes}))).await?;
        Ok(data)
    }

    pub(crate) async fn put_chunk(
        &self,
        session_id: &str,
        token: &Secret,
        hash: &ContentHash,
        bytes: Vec<u8>,
    ) -> Result<(), ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "chunks", hash.as_str()]);
        let request = self.request(Method::PUT, url, token).header(header::CONTENT_TYPE, "application/octet-stream");
        accepted(request.body(bytes)).await.map(drop)
    }

    /// A chunk or manifest, whose content is checked.
    pub(crate) async fn chunk(
        &self,
        session_id: &str,
        token: &Secret,
        hash: &ContentHash,
    ) -> Result<Vec<u8>, ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "chunks", hash.as_str()]);
        let response = accepted(self.request(Method::GET, url, token)).await?;
        let bytes = response.bytes().await.map_err(super::client::unreachable)?;
        if ContentHash::of(&bytes) != *hash {
            return Err(ApiError::Malformed(format!("chunk {} has another content", hash.as_str())));
        }
        Ok(bytes.into())
    }
}
