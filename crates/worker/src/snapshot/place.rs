//! Where a worker notes which folder it has of a session, beside the workspaces and out of the sight of any tool.
//!
//! The note names the folder's tip, as the server's record does; a folder whose tip is not the session's is old. A call
//! that may change files gets the folder a new tip, which is noted before the call is announced, so a crash at any
//! moment leaves a note that is right. It is drawn for this start alone: another worker that comes to start the same
//! call draws another.

use serde::{Deserialize, Serialize};
use session::FolderNote;
use session::id::EventId;
use session::manifest::{ContentHash, Manifest};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

use super::scan::Scan;
use crate::sandbox::{SandboxError, workspace_path};

/// Beside the workspaces; no session has this name.
const FOLDER: &str = ".snapshots";

/// What was kept last, and what of the files it came from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Kept {
    pub manifest: ContentHash,
    pub tip: Option<EventId>,
    pub scan: Scan,
}

/// A session's place on this worker.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    workspace: PathBuf,
    folder: PathBuf,
    session_id: String,
}

impl Place {
    pub(crate) fn of(workspaces_dir: &Path, session_id: &str) -> Result<Self, SandboxError> {
        let workspace = workspace_path(workspaces_dir, session_id)?;
        Ok(Self { workspace, folder: workspaces_dir.join(FOLDER), session_id: session_id.to_owned() })
    }

    pub(crate) fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// A session without a snapshot begins with an empty folder.
    pub(crate) fn workspace_must_exist(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.workspace)
    }

    /// None where the session has never been here.
    pub(crate) fn note(&self) -> Option<FolderNote> {
        self.workspace.is_dir().then(|| read(&self.file("note"))).flatten()
    }

    pub(crate) fn write_note(&self, note: &FolderNote) -> io::Result<()> {
        self.write("note", note)
    }

    pub(crate) fn kept(&self) -> Option<Kept> {
        read(&self.file("kept"))
    }

    pub(crate) fn write_kept(&self, kept: &Kept) -> io::Result<()> {
        self.write("kept", kept)
    }

    /// A new, empty folder on the file system of the workspaces, which goes with the returned value.
    pub(crate) fn new_folder(&self) -> io::Result<TempDir> {
        self.make_folder()?;
        tempfile::Builder::new().prefix(&format!("{}.new-", self.session_id)).tempdir_in(&self.folder)
    }

    /// Puts `folder` in the workspace's place, and says what was kept with it.
    pub(crate) fn replace(&self, folder: TempDir, manifest: Manifest) -> io::Result<Scan> {
        let old = self.new_folder()?;
        match fs::rename(&self.workspace, old.path().join("workspace")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(folder.path(), &self.workspace)?;
        // It has moved, so there is nothing left to remove.
        let _ = folder.keep();
        remove(old);
        Ok(Scan::restored(manifest, &self.workspace))
    }

    fn write(&self, kind: &str, content: &impl Serialize) -> io::Result<()> {
        self.make_folder()?;
        let text = serde_json::to_vec(content).map_err(io::Error::other)?;
        let unfinished = self.file(&format!("{kind}.unfinished"));
        fs::write(&unfinished, text)?;
        fs::rename(unfinished, self.file(kind))
    }

    fn make_folder(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.session_id))
    }
}

/// Forgets a deleted session, and what a crash left of it.
pub(crate) fn forget(workspaces_dir: &Path, session_id: &str) -> io::Result<()> {
    let entries = match fs::read_dir(workspaces_dir.join(FOLDER)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let is_ours =
            name.to_str().and_then(|name| name.strip_prefix(session_id)).is_some_and(|rest| rest.starts_with('.'));
        if is_ours && entry.file_type()?.is_dir() {
            crate::sandbox::remove_folder(&entry.path())?;
        } else if is_ours {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes a folder in which commands may have locked others.
fn remove(folder: TempDir) {
    let path = folder.keep();
    if let Err(error) = crate::sandbox::remove_folder(&path) {
        tracing::warn!(%error, "a replaced workspace stays");
    }
}

/// What cannot be read counts as not there: it is made anew.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use session::manifest::MANIFEST_FORMAT;
    use std::os::unix::fs::PermissionsExt as _;

    const SESSION: &str = "sesn_place";

    #[test]
    fn a_note_without_a_folder_says_nothing() {
        let folders = tempfile::tempdir().unwrap();
        let place = Place::of(folders.path(), SESSION).unwrap();
        assert_eq!(place.note(), None, "the session was never here");
        let note = FolderNote { tip: Some("a".into()), next: Some("b".into()) };
        place.write_note(&note).unwrap();
        assert_eq!(place.note(), None);
        fs::create_dir(place.workspace()).unwrap();
        assert_eq!(place.note(), Some(note));
    }

    #[test]
    fn a_workspace_is_replaced_whole_and_forgotten_whole() {
        let folders = tempfile::tempdir().unwrap();
        let place = Place::of(folders.path(), SESSION).unwrap();
        let locked = place.workspace().join("locked/inside");
        fs::create_dir_all(&locked).unwrap();
        fs::set_permissions(locked.parent().unwrap(), fs::Permissions::from_mode(0o0)).unwrap();
        let new = place.new_folder().unwrap();
        fs::write(new.path().join("new"), "").unwrap();
        let manifest = Manifest { format: MANIFEST_FORMAT, chunks: vec![], entries: vec![], skipped: 0 };
        let scan = place.replace(new, manifest).unwrap();
        let names: Vec<_> = fs::read_dir(place.workspace()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(names, ["new"]);
        place.write_note(&FolderNote::default()).unwrap();
        place.write_kept(&Kept { manifest: ContentHash::of(b""), tip: None, scan }).unwrap();
        assert!(place.kept().is_some());
        drop(place.new_folder().unwrap().keep());
        forget(folders.path(), SESSION).unwrap();
        assert_eq!(fs::read_dir(folders.path().join(FOLDER)).unwrap().count(), 0);
    }
}
