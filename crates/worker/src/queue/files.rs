//! Keeps a session's files: makes them anew where another worker had them last, and sends snapshots of them.
//!
//! A snapshot is taken after a result was delivered, never before: a model does not wait for an upload. It is recorded
//! with the call that changed the files last, so the server knows what a snapshot does not hold. A call that changes
//! files waits a moment for a snapshot under way and then overtakes it; the chunks that were sent are not sent again.

use futures::{FutureExt as _, StreamExt as _};
use session::id::EventId;
use session::manifest::{ContentHash, Manifest};
use session::{FolderNote, Identifier as _};
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

use super::backoff::Backoff;
use super::chunks::ServerWorkspace;
use super::client::{ApiError, Client};
use super::exchange::{self, OutputsError};
use super::session::Context;
use crate::exchange::outputs::Known;
use crate::exchange::uploads::Uploads;
use crate::sandbox::SandboxError;
use crate::secret::Secret;
use crate::snapshot::place::{Kept, Place};
use crate::snapshot::restore::restore;
use crate::snapshot::scan::{Scan, ScanError, ScanLimits, Sink, scan};

/// Chunks of one session that are on their way at the same time. With a chunk's size it bounds memory.
const CHUNKS_AT_ONCE: usize = 4;
/// Sessions of a worker that send or fetch chunks at the same time.
const SESSIONS_AT_ONCE: usize = 4;

/// What all sessions of a worker share to keep their files.
#[derive(Debug, Clone)]
pub(crate) struct Keeping {
    limits: ScanLimits,
    turns: Arc<Semaphore>,
}

impl Keeping {
    /// Workspaces of more than `bytes_max` are not kept.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let limits = ScanLimits { bytes_max, files_max: 200_000 };
        Self { limits, turns: Arc::new(Semaphore::new(SESSIONS_AT_ONCE)) }
    }

    /// Waits until this session may send or fetch.
    pub(super) async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("the semaphore is never closed")
    }
}

/// A session's files on this worker.
#[derive(Debug)]
pub(crate) struct SessionFiles {
    pub(super) place: Option<Place>,
    is_kept: bool,
    note: Mutex<FolderNote>,
    kept: Mutex<Option<Arc<Kept>>>,
    uploads: Uploads,
    /// The version of what is mounted; none where the server gives sessions nothing.
    mounted: Mutex<Option<u64>>,
    /// The outputs that the server has, by path; none as long as it was not asked.
    pub(super) outputs: Mutex<Option<HashMap<String, Known>>>,
}

/// Why a session's files are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilesError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Place(#[from] SandboxError),
    #[error("the workspace cannot be made: {0}")]
    System(#[from] io::Error),
    #[error("the snapshot cannot be made into files: {0}")]
    Snapshot(String),
}

impl SessionFiles {
    /// Sees to it that the workspace holds the session's newest files. Tries until it does, since with other files a
    /// session must not go on; only a server that does not answer to the token ends that.
    pub(crate) async fn begin(context: &Context) -> Result<Arc<Self>, ApiError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            match Self::try_begin(context).await {
                Ok(files) => return Ok(Arc::new(files)),
                Err(FilesError::Api(error)) if matches!(error.status(), Some(401 | 403)) => return Err(error),
                Err(FilesError::Api(error)) if error.status() == Some(409) => {
                    // The token has ended, or the session moved on between two looks.
                    let looked = context.client.workspace(&context.session_id, &context.token).await;
                    match looked {
                        Err(error) if !error.is_transient() => return Err(error),
                        _ => {}
                    }
                }
                Err(error) => {
                    tracing::warn!(session_id = context.session_id, %error, "the session's files are not there yet");
                }
            }
            backoff.wait().await;
        }
    }

    async fn try_begin(context: &Context) -> Result<Self, FilesError> {
        let Context { client, session_id, token, .. } = context;
        let uploads = Uploads::of(&context.sandbox.workspaces_dir, session_id)?;
        let mounted = Mutex::new(exchange::mount(context, &uploads).await?);
        let outputs = Mutex::default();
        let workspace = match client.workspace(session_id, token).await {
            // A server that does not keep files yet.
            Err(error) if error.status() == Some(404) => None,
            result => Some(result?).filter(|workspace| workspace.is_tracked),
        };
        let Some(workspace) = workspace else {
            let (note, kept) = (Mutex::default(), Mutex::default());
            return Ok(Self { place: None, is_kept: false, note, kept, uploads, mounted, outputs });
        };
        let place = Place::of(&context.sandbox.workspaces_dir, session_id)?;
        let note = place.note().or_else(|| workspace.tip.is_none().then(FolderNote::default));
        let (note, kept) = match note {
            Some(note) if note.is_of(workspace.tip.as_ref()) => (FolderNote::at(workspace.tip.clone()), place.kept()),
            _ => make_anew(context, &place, &workspace).await?,
        };
        let kept = kept.filter(|kept| workspace.manifest.as_ref() == Some(&kept.manifest)).map(Arc::new);
        let (note, kept) = (Mutex::new(note), Mutex::new(kept));
        Ok(Self { place: Some(place), is_kept: workspace.is_kept, note, kept, uploads, mounted, outputs })
    }

    /// Sees to it that what is mounted is the set of this `version`, or a later one. Tries until it is, as in the
    /// beginning; only a refusal ends that.
    pub(crate) async fn mount(&self, context: &Context, version: Option<u64>) -> Result<(), ApiError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        while version.is_some() && *lock(&self.mounted) != version {
            match exchange::mount(context, &self.uploads).await {
                Ok(mounted) => {
                    *lock(&self.mounted) = mounted;
                    return Ok(());
                }
                Err(FilesError::Api(error)) if matches!(error.status(), Some(401 | 403 | 409 | 412)) => {
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(session_id = context.session_id, %error, "a call waits for files to be mounted");
                }
            }
            backoff.wait().await;
        }
        Ok(())
    }

    /// A call that may change files is about to be announced: what the files will be called from then on. None where
    /// nobody asks.
    pub(crate) fn starting(&self) -> Option<EventId> {
        let place = self.place.as_ref()?;
        #[expect(clippy::disallowed_methods, reason = "a worker has no ports: this is its edge to the world")]
        let next = EventId::from_bits(rand::random());
        let mut note = lock(&self.note);
        note.starting(next.clone());
        if let Err(error) = place.write_note(&note) {
            // This worker's next process takes the folder for an old one, and says so.
            tracing::warn!(%error, "which files this worker has cannot be noted");
        }
        Some(next)
    }

    /// The server knows the call that was announced last.
    pub(crate) fn started(&self) {
        lock(&self.note).started();
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Takes a snapshot and goes on trying until it is kept, or cannot be. The last one of a session is tried once,
    /// since the server may be about to end as well.
    pub(crate) async fn save(
        self: Arc<Self>,
        keeping: Keeping,
        client: Arc<Client>,
        session_id: String,
        token: Secret,
        is_last: bool,
    ) {
        let Some(place) = self.place.clone().filter(|_| self.is_kept) else { return };
        let outputs = self.save_outputs(&keeping, &client, &session_id, &token, is_last);
        let snapshot = self.save_snapshot(&place, &keeping, &client, &session_id, &token, is_last);
        tokio::join!(outputs, snapshot);
    }

    /// Sends what the session made for its client. It is sent beside the snapshot, so that neither waits for the other.
    async fn save_outputs(&self, keeping: &Keeping, client: &Client, session_id: &str, token: &Secret, is_last: bool) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            let turn = keeping.turn().await;
            let sent = self.send_outputs(client, session_id, token).await;
            drop(turn);
            match sent {
                Ok(()) => return,
                Err(OutputsError::Api(error)) if error.is_transient() && !is_last => {
                    tracing::debug!(session_id, %error, "outputs could not be sent and are tried again");
                }
                Err(OutputsError::Api(error)) if error.status() == Some(409) => {
                    tracing::debug!(session_id, "outputs came too late");
                    return;
                }
                Err(error) => {
                    tracing::warn!(session_id, %error, "the session's outputs are not sent");
                    return;
                }
            }
            backoff.wait().await;
        }
    }

    async fn save_snapshot(
        &self,
        place: &Place,
        keeping: &Keeping,
        client: &Client,
        session_id: &str,
        token: &Secret,
        is_last: bool,
    ) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        loop {
            let saving = Saving { files: self, place, client, session_id, token };
            let turn = keeping.turn().await;
            let saved = saving.save(keeping.limits).await;
            drop(turn);
            match saved {
                Ok(()) => return,
                Err(SaveError::Api(error)) if error.is_transient() && !is_last => {
                    tracing::debug!(session_id, %error, "a snapshot could not be sent and is tried again");
                }
                Err(SaveError::Api(error)) if error.status() == Some(400) && lock(&self.kept).is_some() => {
                    // The server has other chunks than this worker thinks: read and send everything.
                    *lock(&self.kept) = None;
                }
                Err(SaveError::Api(error)) if error.status() == Some(409) => {
                    tracing::debug!(session_id, "a snapshot came too late");
                    return;
                }
                Err(error) => {
                    tracing::warn!(session_id, %error, "the session's files are not kept");
                    return;
                }
            }
            backoff.wait().await;
        }
    }
}

/// Fetches the last snapshot and puts it in the workspace's place. Without one, the folder stays as it is.
async fn make_anew(
    context: &Context,
    place: &Place,
    workspace: &ServerWorkspace,
) -> Result<(FolderNote, Option<Kept>), FilesError> {
    let Context { client, session_id, token, keeping, .. } = context;
    let mut kept = None;
    if let Some(hash) = &workspace.manifest {
        let _turn = keeping.turn().await;
        let bytes = client.chunk(session_id, token, hash).await?;
        let manifest = Manifest::read(&bytes).map_err(|error| FilesError::Snapshot(error.to_string()))?;
        let scan = fetch(client, session_id, token, place, manifest).await?;
        kept = Some((hash.clone(), scan));
    }
    let tip = client.restored_workspace(session_id, token, workspace).await?;
    tracing::info!(session_id, is_whole = kept.is_some(), "the session's files were made anew");
    let note = FolderNote::at(Some(tip.clone()));
    place.workspace_must_exist()?;
    place.write_note(&note)?;
    let kept = kept.map(|(manifest, scan)| Kept { manifest, tip: Some(tip), scan });
    if let Some(kept) = &kept {
        place.write_kept(kept)?;
    }
    Ok((note, kept))
}

async fn fetch(
    client: &Arc<Client>,
    session_id: &str,
    token: &Secret,
    place: &Place,
    manifest: Manifest,
) -> Result<Scan, FilesError> {
    let uses: Vec<ContentHash> = manifest.uses().map(|index| manifest.chunks[index as usize].hash.clone()).collect();
    let (chunks, mut arriving) = mpsc::channel(1);
    let place = place.clone();
    let made = tokio::task::spawn_blocking(move || {
        let folder = place.new_folder()?;
        restore(&manifest, folder.path(), || arriving.blocking_recv())
            .map_err(|error| FilesError::Snapshot(error.to_string()))?;
        Ok::<_, FilesError>(place.replace(folder, manifest)?)
    });
    let fetching = uses.into_iter().map(|hash| {
        let (client, session_id, token) = (client.clone(), session_id.to_owned(), token.clone());
        async move { client.chunk(&session_id, &token, &hash).await }.boxed()
    });
    let mut fetched = futures::stream::iter(fetching).buffered(CHUNKS_AT_ONCE);
    let mut failed = None;
    while let Some(chunk) = fetched.next().await {
        match chunk {
            Ok(chunk) => {
                if chunks.send(chunk).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    drop(chunks);
    let made = made.await.map_err(io::Error::other)?;
    match failed {
        Some(error) => Err(error.into()),
        None => made,
    }
}

/// Why a snapshot was not kept.
#[derive(Debug, thiserror::Error)]
enum SaveError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("the scan was given up: {0}")]
    Task(#[from] tokio::task::JoinError),
    #[error("the manifest of {0} bytes is larger than any that is taken")]
    Manifest(usize),
}

struct Saving<'s> {
    files: &'s SessionFiles,
    place: &'s Place,
    client: &'s Client,
    session_id: &'s str,
    token: &'s Secret,
}

impl Saving<'_> {
    async fn save(&self, limits: ScanLimits) -> Result<(), SaveError> {
        let began = Instant::now();
        let tip = lock(&self.files.note).tip.clone();
        let before = lock(&self.files.kept).clone();
        let (sender, arriving) = mpsc::channel(1);
        let root = self.place.workspace().to_owned();
        let known = before.clone();
        let scanning = tokio::task::spawn_blocking(move || {
            scan(&root, known.as_ref().map(|kept| &kept.scan), limits, &mut Channel(sender))
        });
        let sent = self.send(arriving).await;
        let scan = scanning.await?;
        sent?;
        let scan = scan?;
        let manifest = scan.manifest.write();
        if manifest.len() > session::manifest::MANIFEST_BYTES_MAX {
            return Err(SaveError::Manifest(manifest.len()));
        }
        let hash = ContentHash::of(&manifest);
        if before.as_ref().is_some_and(|kept| kept.manifest == hash && kept.tip == tip) {
            return Ok(());
        }
        if scan.manifest.skipped > 0 {
            let skipped = scan.manifest.skipped;
            tracing::debug!(session_id = self.session_id, skipped, "sockets, pipes and devices are not kept");
        }
        self.client.save_workspace(self.session_id, self.token, tip.as_ref(), began.elapsed(), manifest).await?;
        let kept = Arc::new(Kept { manifest: hash, tip, scan });
        *lock(&self.files.kept) = Some(kept.clone());
        let place = self.place.clone();
        let written = tokio::task::spawn_blocking(move || place.write_kept(&kept)).await?;
        if let Err(error) = written {
            // Then the next worker process here reads everything once.
            tracing::debug!(session_id = self.session_id, %error, "what was kept cannot be noted");
        }
        Ok(())
    }

    /// Sends what the scan finds, some chunks at a time.
    async fn send(&self, mut arriving: mpsc::Receiver<(ContentHash, Vec<u8>)>) -> Result<(), ApiError> {
        let mut batch = Vec::new();
        while arriving.recv_many(&mut batch, CHUNKS_AT_ONCE).await > 0 {
            let hashes: Vec<&ContentHash> = batch.iter().map(|(hash, _)| hash).collect();
            let missing = self.client.missing_chunks(self.session_id, self.token, &hashes).await?;
            batch.retain(|(hash, _)| missing.contains(hash));
            let puts = batch.drain(..).map(|(hash, bytes)| self.put(hash, bytes).boxed());
            futures::future::try_join_all(puts).await?;
        }
        Ok(())
    }

    async fn put(&self, hash: ContentHash, bytes: Vec<u8>) -> Result<(), ApiError> {
        self.client.put_chunk(self.session_id, self.token, &hash, bytes).await
    }
}

/// Hands chunks from the scan's thread to the task that sends them. Dropping the task's end ends the scan.
struct Channel(mpsc::Sender<(ContentHash, Vec<u8>)>);

impl Sink for Channel {
    fn take(&mut self, hash: &ContentHash, bytes: &[u8]) -> bool {
        self.0.blocking_send((hash.clone(), bytes.to_vec())).is_ok()
    }

    fn is_wanted(&self) -> bool {
        !self.0.is_closed()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
