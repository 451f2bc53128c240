//! Moves files between a session's sandbox and the server: what the session was given comes before a call may look for
//! it, and what it made goes after the call's result.

use futures::StreamExt as _;
use reqwest::{Body, Method, header};
use serde::Deserialize;
use session::manifest::ContentHash;
use std::collections::HashMap;
use std::io::{self, Read as _};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

use super::client::{ApiError, Client, accepted, answer, unreachable};
use super::files::{FilesError, SessionFiles};
use super::session::Context;
use crate::exchange::outputs::{Found, Known, LeftOut, find};
use crate::exchange::uploads::{Mount, Uploads};
use crate::secret::Secret;

/// A transfer that is slower than this is given up.
const BYTES_PER_SECOND_MIN: u64 = 256 * 1024;
const PIECE_BYTES: usize = 256 * 1024;

/// What the session is to be given now.
#[derive(Debug, Deserialize)]
pub(crate) struct Mounts {
    pub version: u64,
    pub data: Vec<Mount>,
}

/// What the server has of the session's outputs.
#[derive(Debug, Deserialize)]
struct ServerOutputs {
    is_kept: bool,
    data: HashMap<String, ContentHash>,
}

/// How long a transfer of so much may take.
fn patience(bytes: u64) -> Duration {
    Duration::from_secs(30 + bytes / BYTES_PER_SECOND_MIN)
}

impl Client {
    /// None from a server that gives sessions nothing yet.
    async fn mounts(&self, session_id: &str, token: &Secret) -> Result<Option<Mounts>, ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "resources"]);
        absent_is_none(answer(self.request(Method::GET, url, token)).await)
    }

    async fn mounted_content(
        &self,
        session_id: &str,
        token: &Secret,
        mount: &Mount,
    ) -> Result<reqwest::Response, ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "resources", mount.hash.as_str()]);
        accepted(self.request(Method::GET, url, token).timeout(patience(mount.bytes))).await
    }

    async fn outputs(&self, session_id: &str, token: &Secret) -> Result<Option<ServerOutputs>, ApiError> {
        let url = self.path(&["v1", "internal", "sessions", session_id, "outputs"]);
        absent_is_none(answer(self.request(Method::GET, url, token)).await)
    }

    async fn put_output(&self, session_id: &str, token: &Secret, found: Found) -> Result<(), ApiError> {
        let mut url = self.path(&["v1", "internal", "sessions", session_id, "outputs"]);
        url.query_pairs_mut().append_pair("path", &found.path).append_pair("hash", found.hash.as_str());
        let request = self.request(Method::PUT, url, token).timeout(patience(found.bytes));
        let request = request.header(header::CONTENT_TYPE, "application/octet-stream");
        accepted(request.body(content(found))).await.map(drop)
    }
}

fn absent_is_none<T>(result: Result<T, ApiError>) -> Result<Option<T>, ApiError> {
    match result {
        Err(error) if error.status() == Some(404) => Ok(None),
        result => result.map(Some),
    }
}

/// As much of the file as was found. One that has changed since is refused by the server.
fn content(found: Found) -> Body {
    let file = found.file.take(found.bytes);
    let pieces = futures::stream::try_unfold(file, |mut file| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE_BYTES];
            let read = file.read(&mut piece)?;
            piece.truncate(read);
            Ok::<_, io::Error>((file, piece))
        });
        let (file, piece) = read.await.map_err(io::Error::other)??;
        Ok::<_, io::Error>((!piece.is_empty()).then_some((piece, file)))
    });
    Body::wrap_stream(pieces)
}

/// Brings what is mounted in line with what the session is given now; the version of that, if the server has one.
pub(super) async fn mount(context: &Context, uploads: &Uploads) -> Result<Option<u64>, FilesError> {
    let Context { client, session_id, token, keeping, .. } = context;
    let Some(Mounts { version, data }) = client.mounts(session_id, token).await? else { return Ok(None) };
    let missing = {
        let uploads = uploads.clone();
        tokio::task::spawn_blocking(move || uploads.clear(&data)).await.map_err(io::Error::other)??
    };
    if !missing.is_empty() {
        let _turn = keeping.turn().await;
        for mount in missing {
            fetch(client, session_id, token, uploads, mount).await?;
        }
    }
    Ok(Some(version))
}

async fn fetch(
    client: &Client,
    session_id: &str,
    token: &Secret,
    uploads: &Uploads,
    mount: Mount,
) -> Result<(), FilesError> {
    let response = client.mounted_content(session_id, token, &mount).await?;
    let mut pieces = response.bytes_stream();
    let mut arriving = uploads.begin()?;
    while let Some(piece) = pieces.next().await {
        arriving.write(&piece.map_err(unreachable)?)?;
        if arriving.bytes() > mount.bytes {
            break;
        }
    }
    let uploads = uploads.clone();
    tokio::task::spawn_blocking(move || uploads.place(&mount, arriving)).await.map_err(io::Error::other)??;
    Ok(())
}

/// Why outputs were not all sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutputsError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("outputs cannot be read: {0}")]
    System(#[from] io::Error),
}

impl SessionFiles {
    /// Sends the files that the session has made or changed since they were last sent.
    pub(super) async fn send_outputs(
        &self,
        client: &Client,
        session_id: &str,
        token: &Secret,
    ) -> Result<(), OutputsError> {
        let Some(place) = &self.place else { return Ok(()) };
        if self.outputs().is_none() {
            // This worker has not looked yet: what another one has sent is not sent again.
            let known = client.outputs(session_id, token).await?.filter(|outputs| outputs.is_kept);
            let known = known.map(|outputs| outputs.data).unwrap_or_default().into_iter();
            *self.outputs() = Some(known.map(|(path, hash)| (path, Known { seen: None, hash })).collect());
        }
        let known = Arc::new(self.outputs().clone().unwrap_or_default());
        let (sender, mut arriving) = mpsc::channel(1);
        let (root, before) = (place.workspace().to_owned(), known.clone());
        let finding =
            tokio::task::spawn_blocking(move || find(&root, &before, &mut |found| sender.blocking_send(found).is_ok()));
        while let Some(found) = arriving.recv().await {
            self.send_output(client, session_id, token, &known, found).await?;
        }
        let left_out = finding.await.map_err(io::Error::other)?.map_err(io::Error::from)?;
        if left_out != LeftOut::default() {
            let LeftOut { large, names, is_cut } = left_out;
            tracing::info!(session_id, large, names, is_cut, "outputs that cannot be sent are left where they are");
        }
        Ok(())
    }

    async fn send_output(
        &self,
        client: &Client,
        session_id: &str,
        token: &Secret,
        known: &HashMap<String, Known>,
        found: Found,
    ) -> Result<(), OutputsError> {
        let (path, now) = (found.path.clone(), Known { seen: found.seen, hash: found.hash.clone() });
        if known.get(&path).is_none_or(|known| known.hash != now.hash) {
            match client.put_output(session_id, token, found).await {
                Ok(()) => {}
                // It changed while it was sent, and is looked at again; or the server does not want it.
                Err(error) if matches!(error.status(), Some(400 | 413)) => {
                    tracing::warn!(session_id, %error, "an output was refused");
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.outputs().get_or_insert_default().insert(path, now);
        Ok(())
    }

    fn outputs(&self) -> std::sync::MutexGuard<'_, Option<HashMap<String, Known>>> {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
