//! A session's files with the worker that holds it: made anew, changed, kept, mounted and sent, as our own worker does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use engine::port::resources::{Output, OutputError};
use engine::port::{BlobHash, Entropy, File, StoreError};
use engine::workspaces::{HeldItem, Known, WorkspaceError};
use session::id::{EventId, FileId, Identifier, SessionId};
use session::manifest::{Chunk, ContentHash, Entry, Extent, Kind, MANIFEST_FORMAT, Manifest};
use session::{FolderNote, Timestamp};
use tokio::time::{Duration, sleep};

use super::Shared;
use super::cluster::{Cluster, Node};
use super::counts::Count;
use super::disk::{Disk, Folder, Kept};
use super::weather::Process;
use super::witness::Given;

/// What the session makes for its client lies here.
const OUTPUT: &str = "outputs/report";

/// References that no snapshot needs are forgotten after so long.
const REFERENCES_KEPT_MS: i64 = 60_000;

/// A call that found these files as it began.
pub(crate) struct Look {
    pub(crate) session_id: SessionId,
    /// The session's position when the call had been announced.
    pub(crate) position: u64,
    /// The mark that the call leaves, if it changes files.
    pub(crate) mark: Option<String>,
    /// The marks of earlier calls.
    pub(crate) saw: BTreeSet<String>,
}

/// Why something about a session's files was not done.
enum Trouble {
    /// No server answered, or it could not do it now.
    Transient,
    /// The server has other chunks than this worker thinks.
    Unsent,
    /// The session goes on without this.
    Overtaken,
    /// The token is nobody's any more.
    TokenEnded,
    Gone,
}

impl From<WorkspaceError> for Trouble {
    fn from(error: WorkspaceError) -> Self {
        match error {
            WorkspaceError::Unsent { .. } => Self::Unsent,
            WorkspaceError::Overtaken => Self::Overtaken,
            WorkspaceError::TokenEnded | WorkspaceError::Command(engine::CommandError::TokenEnded) => Self::TokenEnded,
            WorkspaceError::Command(engine::CommandError::Refused(_)) => Self::Overtaken,
            WorkspaceError::Command(engine::CommandError::NotFound(_)) | WorkspaceError::NoSuchChunk(_) => Self::Gone,
            WorkspaceError::Store(StoreError::Unavailable(_))
            | WorkspaceError::Collected(_)
            | WorkspaceError::Command(_) => Self::Transient,
            WorkspaceError::NoBlobs
            | WorkspaceError::Manifest(_)
            | WorkspaceError::Missing(_)
            | WorkspaceError::Store(_) => panic!("{error}"),
        }
    }
}

/// A session's files on this worker.
pub(crate) struct SessionFiles<'w> {
    shared: &'w Shared,
    cluster: &'w Cluster,
    process: &'w Process,
    disk: &'w Disk,
    held: &'w HeldItem,
    /// Of which folder the server has to be told; none for a client's own environment.
    note: Option<Mutex<FolderNote>>,
    is_kept: bool,
    /// The outputs that the server has, by path; none as long as it was not asked.
    outputs: Mutex<Option<BTreeMap<String, BlobHash>>>,
    /// Snapshots that were given up.
    given_up: AtomicU64,
    /// The version of what is mounted.
    mounted: Mutex<Option<u64>>,
}

impl<'w> SessionFiles<'w> {
    /// Sees to it that the folder holds the session's newest files. Tries until it does.
    pub(crate) async fn begin(
        shared: &'w Shared,
        cluster: &'w Cluster,
        process: &'w Process,
        disk: &'w Disk,
        held: &'w HeldItem,
    ) -> Self {
        let mut files = Self {
            shared,
            cluster,
            process,
            disk,
            held,
            note: None,
            is_kept: false,
            outputs: Mutex::default(),
            given_up: AtomicU64::new(0),
            mounted: Mutex::default(),
        };
        loop {
            match files.try_begin().await {
                Ok(note) => {
                    files.note = note.map(Mutex::new);
                    return files;
                }
                // The end of the token ends this from outside.
                Err(_) => sleep(Duration::from_millis(100 + shared.dice.below(400))).await,
            }
        }
    }

    async fn try_begin(&mut self) -> Result<Option<FolderNote>, Trouble> {
        self.mount().await?;
        let known = self.ask(async |node| Ok(node.workspaces().known(self.held).await?)).await?;
        if !known.is_tracked {
            return Ok(None);
        }
        self.is_kept = known.is_kept;
        let note = self.folder(|folder| folder.note.clone());
        let note = note.or_else(|| known.tip.is_none().then(FolderNote::default));
        if note.is_some_and(|note| note.is_of(known.tip.as_ref())) {
            let is_kept = |kept: &mut Kept| Some(&kept.manifest) == known.manifest.as_ref();
            self.folder(|folder| folder.kept = folder.kept.take_if(is_kept));
            return Ok(Some(FolderNote::at(known.tip)));
        }
        self.make_anew(known).await.map(Some)
    }

    /// Fetches the last snapshot and puts it in the folder's place. Without one, the folder stays as it is.
    async fn make_anew(&self, known: Known) -> Result<FolderNote, Trouble> {
        let Known { tip, manifest, .. } = known;
        let mut chunks = BTreeSet::new();
        if let Some(hash) = &manifest {
            let files = self.fetch(hash, &mut chunks).await?;
            self.process.step(10).await;
            self.folder(|folder| folder.files = files);
        }
        self.process.step(10).await;
        let restored =
            self.ask(async |node| Ok(node.workspaces().restored(self.held, manifest.clone(), tip.clone()).await?));
        let tip = restored.await?.tip;
        self.process.step(10).await;
        let note = FolderNote::at(tip.clone());
        let kept = manifest.map(|manifest| Kept { manifest, tip, chunks });
        self.folder(|folder| {
            folder.note = Some(note.clone());
            folder.kept = kept;
        });
        Ok(note)
    }

    async fn fetch(
        &self,
        hash: &ContentHash,
        chunks: &mut BTreeSet<ContentHash>,
    ) -> Result<BTreeMap<String, String>, Trouble> {
        let text = self.chunk(hash).await?;
        let manifest = Manifest::read(&text).unwrap_or_else(|error| panic!("a kept manifest: {error}"));
        let mut files = BTreeMap::new();
        for entry in &manifest.entries {
            let Kind::File { content, .. } = &entry.kind else { continue };
            let Some(Extent::Data { chunk, .. }) = content.first() else { panic!("every file has a chunk of its own") };
            let hash = &manifest.chunks[*chunk as usize].hash;
            let text = String::from_utf8(self.chunk(hash).await?).expect("files are text");
            files.insert(String::from_utf8_lossy(&entry.path).into_owned(), text);
            chunks.insert(hash.clone());
        }
        Ok(files)
    }

    async fn chunk(&self, hash: &ContentHash) -> Result<Vec<u8>, Trouble> {
        let hash = BlobHash::parse(hash.as_str()).expect("both are SHA-256");
        self.ask(async |node| Ok(node.workspaces().chunk(self.held, &hash).await?)).await
    }

    /// A call that may change files is about to be announced: what the folder will be called from then on.
    pub(crate) fn starting(&self) -> Option<EventId> {
        let next = EventId::from_bits(self.shared.dice.draw());
        let mut note = self.note.as_ref()?.lock().unwrap();
        note.starting(next.clone());
        self.folder(|folder| folder.note = Some(note.clone()));
        Some(next)
    }

    /// The server knows the call that was announced last.
    pub(crate) fn started(&self) {
        if let Some(note) = &self.note {
            note.lock().unwrap().started();
        }
    }

    /// What is there as a call begins.
    pub(crate) fn look(&self, call: &EventId, position: u64, announced: u64, mark: Option<String>) {
        if self.note.is_none() {
            return;
        }
        let session_id = self.held.item.session_id.clone();
        let Folder { files, mounted, .. } = self.folder(|folder| folder.clone());
        self.shared.witness.mounted(call, &session_id, announced, &mounted);
        let saw = marks(&files);
        self.shared.note(|notes| notes.looks.push(Look { session_id, position, mark, saw }));
    }

    /// What a call that changes files does to them, some now and the rest a moment later.
    pub(crate) async fn change(&self, mark: &str) {
        let write = |path: &str| {
            self.folder(|folder| folder.files.insert(path.to_owned(), mark.to_owned()));
        };
        write("newest");
        self.process.step(5).await;
        sleep(Duration::from_millis(self.shared.dice.below(200))).await;
        write(&format!("marks/{mark}"));
        self.process.step(5).await;
        sleep(Duration::from_millis(self.shared.dice.below(200))).await;
        if self.shared.dice.chance(500) {
            write(OUTPUT);
        }
    }

    /// The snapshot under way is worth nothing any more: it ends with the request that it waits for.
    pub(crate) fn give_snapshot_up(&self) {
        self.given_up.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps what a call has changed, and sends what the session made. The last time it is tried once.
    pub(crate) async fn save(&self, is_last: bool) {
        let Some(note) = self.note.as_ref().filter(|_| self.is_kept && self.shared.dice.chance(900)) else { return };
        tokio::join!(self.save_snapshot(note, is_last), self.save_outputs(is_last));
    }

    async fn save_snapshot(&self, note: &Mutex<FolderNote>, is_last: bool) {
        let given_up = self.given_up.load(Ordering::Relaxed);
        loop {
            let saved = self.try_save(note, given_up).await;
            if self.given_up.load(Ordering::Relaxed) != given_up {
                return;
            }
            match saved {
                Err(Trouble::Unsent) if self.folder(|folder| folder.kept.take()).is_some() => {}
                Err(Trouble::Transient) if !is_last => {}
                _ => return,
            }
            sleep(Duration::from_millis(200 + self.shared.dice.below(1_000))).await;
        }
    }

    async fn try_save(&self, note: &Mutex<FolderNote>, given_up: u64) -> Result<(), Trouble> {
        let is_wanted = || {
            let wanted = self.given_up.load(Ordering::Relaxed) == given_up;
            wanted.then_some(()).ok_or(Trouble::Overtaken)
        };
        let tip = note.lock().unwrap().tip.clone();
        let (paths, kept): (Vec<String>, _) =
            self.folder(|folder| (folder.files.keys().cloned().collect(), folder.kept.clone()));
        // A folder is not read in one moment.
        sleep(Duration::from_millis(self.shared.dice.below(300))).await;
        let files: BTreeMap<String, String> = self.folder(|folder| {
            paths.iter().filter_map(|path| Some((path.clone(), folder.files.get(path)?.clone()))).collect()
        });
        let (manifest, contents) = manifest(&files);
        let text = manifest.write();
        let hash = ContentHash::of(&text);
        if kept.as_ref().is_some_and(|kept| kept.manifest == hash && kept.tip == tip) {
            return Ok(());
        }
        self.shared.note(|notes| {
            notes.snapshots.insert(hash.clone(), marks(&files));
        });
        is_wanted()?;
        let known = kept.map(|kept| kept.chunks).unwrap_or_default();
        let new: Vec<BlobHash> = contents.keys().filter(|hash| !known.contains(hash)).map(blob_hash).collect();
        let unsent = self.ask(async |node| Ok(node.workspaces().unsent(self.held, &new).await?)).await?;
        for hash in unsent {
            is_wanted()?;
            let hash = ContentHash::parse(hash.as_str()).expect("both are SHA-256");
            let bytes = contents[&hash].clone().into_bytes();
            self.ask(async |node| Ok(node.workspaces().put(self.held, bytes.clone()).await?)).await?;
        }
        is_wanted()?;
        let save = self.ask(async |node| {
            let workspaces = node.workspaces().keeping_references_ms(REFERENCES_KEPT_MS);
            Ok(workspaces.save(self.held, text.clone(), tip.clone()).await?)
        });
        save.await?;
        self.shared.count(Count::Snapshot, 1);
        is_wanted()?;
        let kept = Kept { manifest: hash, tip, chunks: contents.into_keys().collect() };
        self.folder(|folder| folder.kept = Some(kept));
        Ok(())
    }

    async fn save_outputs(&self, is_last: bool) {
        let given_up = self.given_up.load(Ordering::Relaxed);
        while let Err(Trouble::Transient) = self.send_outputs().await {
            if is_last || self.given_up.load(Ordering::Relaxed) != given_up {
                return;
            }
            sleep(Duration::from_millis(200 + self.shared.dice.below(1_000))).await;
        }
    }

    async fn send_outputs(&self) -> Result<(), Trouble> {
        let session_id = &self.held.item.session_id;
        if self.outputs.lock().unwrap().is_none() {
            let known = self.ask(async |node| Ok(node.world.resources.outputs(session_id).await?)).await?;
            let known = known.into_iter().map(|output| (output.path, output.hash)).collect();
            *self.outputs.lock().unwrap() = Some(known);
        }
        let Some(content) = self.folder(|folder| folder.files.get(OUTPUT).cloned()) else { return Ok(()) };
        let hash = BlobHash::of(content.as_bytes());
        let known = self.outputs.lock().unwrap().as_ref().and_then(|known| known.get(OUTPUT).cloned());
        if known.as_ref() == Some(&hash) {
            return Ok(());
        }
        self.ask(async |node| self.put_output(&node, &content).await).await?;
        self.shared.count(Count::FileMade, 1);
        self.outputs.lock().unwrap().get_or_insert_default().insert(OUTPUT.to_owned(), hash);
        Ok(())
    }

    /// One request with an output, as a server answers it.
    async fn put_output(&self, node: &Node, content: &str) -> Result<(), Trouble> {
        let blobs = node.world.blobs.as_ref().expect("there is an object store");
        let mut writer = blobs.begin().await?;
        writer.write(content.to_owned().into()).await?;
        let blob = writer.seal().await?;
        writer.keep().await?;
        let session_id = Some(self.held.item.session_id.clone());
        let file = file(FileId::from_bits(self.shared.dice.draw()), node.world.clock.now(), blob.hash, session_id);
        let output = Output { path: OUTPUT.to_owned(), file };
        match node.world.resources.put_output(&output, &self.held.item.id, &self.held.token_hash).await {
            Ok(_) => Ok(()),
            Err(OutputError::ContentGone | OutputError::Store(StoreError::Unavailable(_))) => Err(Trouble::Transient),
            Err(OutputError::TokenEnded) => Err(Trouble::TokenEnded),
            Err(error @ (OutputError::Full | OutputError::Store(_))) => panic!("{error}"),
        }
    }

    /// Sees to it that what is mounted is what the session is given at this version, or later.
    pub(crate) async fn mount_version(&self, version: u64) -> bool {
        while *self.mounted.lock().unwrap() != Some(version) {
            match self.mount().await {
                Ok(()) => return true,
                Err(Trouble::TokenEnded) => return false,
                Err(_) => sleep(Duration::from_millis(100 + self.shared.dice.below(400))).await,
            }
        }
        true
    }

    async fn mount(&self) -> Result<(), Trouble> {
        let session_id = &self.held.item.session_id;
        let resources = self.ask(async |node| {
            // Read first: what changes in between is then told once more.
            let version = node.world.resources.resources_version(session_id).await?;
            Ok((version, node.world.resources.resources(std::slice::from_ref(session_id)).await?))
        });
        let (version, given) = resources.await?;
        let given: Given = given.into_iter().filter_map(|given| Some((given.mount_path, given.file.blob?))).collect();
        let missing = self.folder(|folder| {
            folder.mounted.retain(|path, hash| given.get(path) == Some(hash));
            let missing = given.iter().filter(|(path, _)| !folder.mounted.contains_key(*path));
            missing.map(|(path, hash)| (path.clone(), hash.clone())).collect::<Vec<_>>()
        });
        for (path, hash) in missing {
            self.process.step(5).await;
            let content = self.ask(async |node| {
                if !node.world.resources.is_given(session_id, &hash).await? {
                    return Err(Trouble::Gone);
                }
                let blobs = node.world.blobs.as_ref().expect("there is an object store");
                Ok(blobs.get(&hash).await?)
            });
            match content.await? {
                Some(content) if BlobHash::of(&content) == hash => {
                    self.folder(|folder| folder.mounted.insert(path, hash));
                }
                // It may have been taken from the session just now.
                other => {
                    let now = self.shared.store.referenced_blobs();
                    if now.contains(&hash) {
                        self.shared.violation(format!("{session_id}: a given file {hash} is {other:?}"));
                    }
                    return Err(Trouble::Gone);
                }
            }
        }
        *self.mounted.lock().unwrap() = Some(version);
        Ok(())
    }

    /// One request to any server, under the item's token.
    async fn ask<T>(&self, request: impl AsyncFnOnce(Arc<Node>) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let node = self.cluster.any(self.shared).ok_or(Trouble::Transient)?;
        let HeldItem { item, token_hash } = self.held;
        let authorized = async {
            match node.world.work.item_by_token(token_hash).await? {
                Some(found) if found.id == item.id => request(Arc::clone(&node)).await,
                _ => Err(Trouble::TokenEnded),
            }
        };
        node.request(authorized).await.unwrap_or(Err(Trouble::Transient))
    }

    fn folder<T>(&self, change: impl FnOnce(&mut Folder) -> T) -> T {
        self.disk.with(&self.held.item.session_id, change)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Transient,
            error => panic!("{error}"),
        }
    }
}

/// A file with this content.
pub(crate) fn file(id: FileId, created_at: Timestamp, hash: BlobHash, session_id: Option<SessionId>) -> File {
    File {
        id,
        filename: "file".to_owned(),
        mime_type: "text/plain".to_owned(),
        bytes: 1,
        blob: Some(hash),
        created_at,
        expires_at: None,
        session_id,
    }
}

/// The marks of calls that changed these files.
fn marks(files: &BTreeMap<String, String>) -> BTreeSet<String> {
    files.keys().filter_map(|path| path.strip_prefix("marks/")).map(str::to_owned).collect()
}

fn blob_hash(hash: &ContentHash) -> BlobHash {
    BlobHash::parse(hash.as_str()).expect("both are SHA-256")
}

/// The files as a snapshot, each in a chunk that it shares with its equals; and the chunks.
fn manifest(files: &BTreeMap<String, String>) -> (Manifest, BTreeMap<ContentHash, String>) {
    let mut manifest = Manifest { format: MANIFEST_FORMAT, chunks: Vec::new(), entries: Vec::new(), skipped: 0 };
    let mut contents = BTreeMap::new();
    let mut folder = None;
    let mut paths: Vec<&String> = files.keys().collect();
    paths.sort_by(|one, other| session::manifest::compare(one.as_bytes(), other.as_bytes()));
    for path in paths {
        if let Some((parent, _)) = path.split_once('/')
            && folder != Some(parent)
        {
            folder = Some(parent);
            manifest.entries.push(Entry { path: parent.into(), kind: Kind::Folder { mode: 0o755 } });
        }
        let content = &files[path];
        let (hash, bytes) = (ContentHash::of(content.as_bytes()), content.len() as u32);
        let chunk = manifest.chunks.iter().position(|chunk| chunk.hash == hash).unwrap_or_else(|| {
            manifest.chunks.push(Chunk { hash: hash.clone(), bytes });
            manifest.chunks.len() - 1
        });
        let content_extent = vec![Extent::Data { chunk: chunk as u32, offset: 0, bytes }];
        let kind = Kind::File { mode: 0o644, modified_ns: 0, content: content_extent };
        manifest.entries.push(Entry { path: path.as_bytes().to_vec(), kind });
        contents.insert(hash, content.clone());
    }
    (manifest, contents)
}
