//! The files that a session was given, as they lie on this worker.
//!
//! They lie in a folder beside the workspaces, not in the session's own: no process of a session can write there, at
//! any level of confinement, nor put a link or another folder in its place. So they count against no quota, and what is
//! noted of them is true. The folder itself is never replaced, because a sandbox that runs has it mounted; what is in it
//! changes file by file.

use serde::{Deserialize, Serialize};
use session::manifest::{ContentHash, ContentHasher};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use tempfile::NamedTempFile;

use crate::sandbox::{self, SandboxError, workspace_path};

/// Beside the workspaces; no session has this name.
const FOLDER: &str = ".uploads";
/// What is behind the session's id in the name of a file that is arriving. A crash leaves it.
const UNFINISHED: &str = ".unfinished-";
/// Under which path the server knows what is mounted.
const MOUNTED_AT: &str = "/mnt/session/uploads";

/// A file to be mounted, as the server says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Mount {
    pub mount_path: String,
    pub hash: ContentHash,
    pub bytes: u64,
}

/// What lies in the folder: hashes by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note(BTreeMap<PathBuf, ContentHash>);

/// A session's folder of uploads.
#[derive(Debug, Clone)]
pub(crate) struct Uploads {
    all: PathBuf,
    folder: PathBuf,
    session_id: String,
}

/// A file that is arriving.
#[derive(Debug)]
pub(crate) struct Arriving {
    file: NamedTempFile,
    hasher: ContentHasher,
    bytes: u64,
}

impl Uploads {
    pub(crate) fn of(workspaces_dir: &Path, session_id: &str) -> Result<Self, SandboxError> {
        // Checks that the id is a plain name.
        workspace_path(workspaces_dir, session_id)?;
        let all = workspaces_dir.join(FOLDER);
        Ok(Self { folder: all.join(session_id), all, session_id: session_id.to_owned() })
    }

    /// The folder, which is made if it is not there.
    pub(crate) fn folder(&self) -> io::Result<&Path> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.all)?;
        match DirBuilder::new().mode(0o755).create(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(&self.folder),
        }
    }

    /// Removes what is not wanted, and says what is missing.
    pub(crate) fn clear(&self, wanted: &[Mount]) -> io::Result<Vec<Mount>> {
        let folder = self.folder()?;
        remove_beside(&self.all, &format!("{}{UNFINISHED}", self.session_id))?;
        let noted = self.note();
        let mut kept = Note::default();
        let mut missing = Vec::new();
        for mount in wanted {
            let path = below(mount)?;
            let is_there = noted.0.get(&path) == Some(&mount.hash)
                && folder.join(&path).symlink_metadata().is_ok_and(|it| it.is_file() && it.len() == mount.bytes);
            if is_there {
                kept.0.insert(path, mount.hash.clone());
            } else {
                missing.push(mount.clone());
            }
        }
        let is_settled = missing.is_empty() && kept == noted;
        if !is_settled {
            // Noted before anything is touched: what a crash leaves half done is not relied on.
            self.write_note(&kept)?;
        }
        let kept: BTreeSet<&Path> = kept.0.keys().map(PathBuf::as_path).collect();
        prune(folder, folder, &kept)?;
        Ok(missing)
    }

    /// A file to write a missing one's content to.
    pub(crate) fn begin(&self) -> io::Result<Arriving> {
        let prefix = format!("{}{UNFINISHED}", self.session_id);
        let file = tempfile::Builder::new().prefix(&prefix).tempfile_in(&self.all)?;
        Ok(Arriving { file, hasher: ContentHasher::default(), bytes: 0 })
    }

    /// Puts a file that has arrived in its place, if it is what it should be.
    pub(crate) fn place(&self, mount: &Mount, arrived: Arriving) -> io::Result<()> {
        let Arriving { mut file, hasher, bytes } = arrived;
        if bytes != mount.bytes || hasher.finish() != mount.hash {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a file to be mounted has another content"));
        }
        file.flush()?;
        file.as_file().set_permissions(Permissions::from_mode(0o444))?;
        let path = below(mount)?;
        let at = self.folder()?.join(&path);
        if let Some(parent) = at.parent() {
            // Root needs no rights, and others own the folder.
            open_up(&self.folder, parent)?;
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        file.persist(&at).map_err(|error| error.error)?;
        let mut note = self.note();
        note.0.insert(path, mount.hash.clone());
        self.write_note(&note)
    }

    fn note(&self) -> Note {
        fs::read(self.note_path()).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn write_note(&self, note: &Note) -> io::Result<()> {
        let unfinished = self.all.join(format!("{}.note.unfinished", self.session_id));
        fs::write(&unfinished, serde_json::to_vec(note).map_err(io::Error::other)?)?;
        fs::rename(unfinished, self.note_path())
    }

    fn note_path(&self) -> PathBuf {
        self.all.join(format!("{}.note", self.session_id))
    }
}

impl Arriving {
    pub(crate) fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.hasher.update(piece);
        self.bytes += piece.len() as u64;
        self.file.write_all(piece)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Forgets a deleted session's uploads, and what a crash left of them.
pub(crate) fn forget(workspaces_dir: &Path, session_id: &str) -> io::Result<()> {
    let all = workspaces_dir.join(FOLDER);
    sandbox::remove_folder(&all.join(session_id))?;
    remove_beside(&all, &format!("{session_id}."))
}

/// Removes the files beside the sessions' folders whose names begin so.
fn remove_beside(all: &Path, beginning: &str) -> io::Result<()> {
    let entries = match fs::read_dir(all) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(beginning)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Where in the folder a file lies. The server has checked the path; nothing outside is touched if it has not.
fn below(mount: &Mount) -> io::Result<PathBuf> {
    let below = mount.mount_path.strip_prefix(MOUNTED_AT).and_then(|rest| rest.strip_prefix('/')).map(Path::new);
    let is_plain =
        |path: &Path| path.file_name().is_some() && path.components().all(|part| matches!(part, Component::Normal(_)));
    below.filter(|path| is_plain(path)).map(Path::to_owned).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{:?} is no path of an upload", mount.mount_path))
    })
}

/// Removes everything below `folder` but what is kept and the folders above it.
fn prune(root: &Path, folder: &Path, kept: &BTreeSet<&Path>) -> io::Result<()> {
    open_up(root, folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let below = path.strip_prefix(root).unwrap_or(&path);
        let is_folder = path.symlink_metadata()?.is_dir();
        if is_folder && kept.iter().any(|kept| kept.starts_with(below)) {
            prune(root, &path, kept)?;
        } else if is_folder {
            sandbox::remove_folder(&path)?;
        } else if !kept.contains(below) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A session cannot write here, but without namespaces it can change the modes of what belongs to its user.
fn open_up(root: &Path, folder: &Path) -> io::Result<()> {
    let below = folder.strip_prefix(root).unwrap_or(Path::new(""));
    let mut path = root.to_owned();
    for part in std::iter::once(None).chain(below.components().map(Some)) {
        path.extend(part);
        match path.symlink_metadata() {
            Ok(metadata) if metadata.permissions().mode() & 0o777 != 0o755 => {
                fs::set_permissions(&path, Permissions::from_mode(0o755))?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: &str = "sesn_uploads";

    fn mount(path: &str, content: &str) -> Mount {
        let (hash, bytes) = (ContentHash::of(content.as_bytes()), content.len() as u64);
        Mount { mount_path: format!("{MOUNTED_AT}/{path}"), hash, bytes }
    }

    /// Brings the folder in line; the content of each file is what its hash was made from.
    fn bring(uploads: &Uploads, wanted: &[(&str, &str)]) -> usize {
        let mounts: Vec<Mount> = wanted.iter().map(|(path, content)| mount(path, content)).collect();
        let missing = uploads.clear(&mounts).unwrap();
        for mount in &missing {
            let (_, content) = wanted.iter().find(|(path, _)| mount.mount_path.ends_with(&format!("/{path}"))).unwrap();
            let mut arriving = uploads.begin().unwrap();
            content.as_bytes().chunks(2).for_each(|piece| arriving.write(piece).unwrap());
            uploads.place(mount, arriving).unwrap();
        }
        missing.len()
    }

    fn tree(folder: &Path) -> Vec<String> {
        let entries = walkdir::WalkDir::new(folder).min_depth(1).sort_by_file_name();
        entries.into_iter().map(|it| it.unwrap().path().strip_prefix(folder).unwrap().display().to_string()).collect()
    }

    #[test]
    fn the_folder_is_brought_in_line() {
        let place = tempfile::tempdir().unwrap();
        let uploads = Uploads::of(place.path(), SESSION).unwrap();
        let folder = uploads.folder().unwrap().to_owned();
        assert_eq!(bring(&uploads, &[("a/b", "one"), ("a/c", "two"), ("d", "")]), 3);
        assert_eq!(tree(&folder), ["a", "a/b", "a/c", "d"]);
        assert_eq!(fs::read_to_string(folder.join("a/b")).unwrap(), "one");
        assert_eq!(fs::metadata(folder.join("a/b")).unwrap().permissions().mode() & 0o777, 0o444);
        assert_eq!(bring(&uploads, &[("a/b", "one"), ("a/c", "two"), ("d", "")]), 0, "they are there");
        // Another worker process finds them, a file takes a folder's place and the other way round.
        let uploads = Uploads::of(place.path(), SESSION).unwrap();
        assert_eq!(bring(&uploads, &[("a", "file"), ("d/e", "two")]), 2);
        assert_eq!(tree(&folder), ["a", "d", "d/e"]);
        assert_eq!(bring(&uploads, &[("a", "else"), ("d/e", "two")]), 1, "its content changed");
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "else");
        assert_eq!(bring(&uploads, &[]), 0);
        assert_eq!(tree(&folder), [""; 0]);
        forget(place.path(), SESSION).unwrap();
        assert_eq!(tree(&place.path().join(FOLDER)), [""; 0]);
        forget(place.path(), SESSION).unwrap();
    }

    #[test]
    fn what_was_tampered_with_is_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let uploads = Uploads::of(place.path(), SESSION).unwrap();
        bring(&uploads, &[("a/b", "one")]);
        let folder = uploads.folder().unwrap().to_owned();
        fs::set_permissions(folder.join("a"), Permissions::from_mode(0o0)).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o0)).unwrap();
        bring(&uploads, &[("a/b", "one"), ("a/c", "two")]);
        assert_eq!(tree(&folder), ["a", "a/b", "a/c"]);
        fs::remove_file(folder.join("a/b")).unwrap();
        fs::write(folder.join("left"), "by a crash").unwrap();
        uploads.begin().unwrap().file.keep().unwrap();
        assert_eq!(bring(&uploads, &[("a/b", "one"), ("a/c", "two")]), 1);
        assert_eq!(tree(&folder), ["a", "a/b", "a/c"]);
        assert_eq!(fs::read_dir(place.path().join(FOLDER)).unwrap().count(), 2, "the folder and its note");
    }

    #[test]
    fn what_is_not_what_it_should_be_is_not_placed() {
        let place = tempfile::tempdir().unwrap();
        let uploads = Uploads::of(place.path(), SESSION).unwrap();
        let wanted = mount("a", "one");
        for content in ["two", "on", "onee"] {
            let missing = uploads.clear(std::slice::from_ref(&wanted)).unwrap();
            let mut arriving = uploads.begin().unwrap();
            arriving.write(content.as_bytes()).unwrap();
            assert!(uploads.place(&missing[0], arriving).is_err(), "{content}");
        }
        assert_eq!(tree(&place.path().join(FOLDER)), [SESSION, &format!("{SESSION}.note")], "nothing is left over");
        for path in ["../x", "/x", "", "a/../b", "./a"] {
            assert!(uploads.clear(&[mount(path, "one")]).is_err(), "{path}");
        }
    }
}
