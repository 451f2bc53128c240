//! The disk of a machine that workers run on: it outlives them, and may be lost with the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use session::FolderNote;
use session::id::{EventId, SessionId};
use session::manifest::ContentHash;

use super::witness::Given;

/// A machine's disk.
#[derive(Default)]
pub(crate) struct Disk {
    folders: Mutex<BTreeMap<SessionId, Folder>>,
}

/// What lies there of a session.
#[derive(Clone, Default)]
pub(crate) struct Folder {
    /// Written before a call is announced; none where the session has never been.
    pub(crate) note: Option<FolderNote>,
    /// Content by path.
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) kept: Option<Kept>,
    pub(crate) mounted: Given,
}

/// What was kept last, and of which folder.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) manifest: ContentHash,
    pub(crate) tip: Option<EventId>,
    pub(crate) chunks: BTreeSet<ContentHash>,
}

impl Disk {
    pub(crate) fn with<T>(&self, session_id: &SessionId, change: impl FnOnce(&mut Folder) -> T) -> T {
        change(self.folders.lock().unwrap().entry(session_id.clone()).or_default())
    }

    /// The machine is another one.
    pub(crate) fn lose(&self) {
        self.folders.lock().unwrap().clear();
    }
}
