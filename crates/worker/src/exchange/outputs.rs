//! Finds the files that a session has made for its client.
//!
//! As a snapshot's scan does, it runs outside of the sandbox over a tree that commands may change meanwhile: every name
//! is opened relative to the folder it was found in, and no link is followed. Only files come out; a link is none.

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, statat};
use rustix::io::Errno;
use session::manifest::{ContentHash, ContentHasher, DEPTH_MAX};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::Path;

use crate::snapshot::scan::{Seen, now_ns, open};

/// Where outputs lie in a workspace, folder by folder.
const FOLDERS: [&CStr; 3] = [c".agent", c"session", c"outputs"];
/// What the server takes.
const FILE_BYTES_MAX: u64 = 500 * 1024 * 1024;
const PATH_BYTES_MAX: usize = 1_024;
/// Entries that are looked at. The server takes far fewer.
const ENTRIES_MAX: usize = 10_000;

/// Which content a path had when it was last looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// None where it has to be read again: it may have changed since.
    pub seen: Option<Seen>,
    pub hash: ContentHash,
}

/// A file that may have changed.
#[derive(Debug)]
pub(crate) struct Found {
    pub path: String,
    pub hash: ContentHash,
    pub bytes: u64,
    pub seen: Option<Seen>,
    /// At its beginning.
    pub file: File,
}

/// Files that are not sent, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub large: usize,
    pub names: usize,
    /// There are more entries than are looked at.
    pub is_cut: bool,
}

/// Hands on every file below the outputs of `workspace` that is not as it is `known`, until `take` wants no more.
pub(crate) fn find(
    workspace: &Path,
    known: &HashMap<String, Known>,
    take: &mut dyn FnMut(Found) -> bool,
) -> Result<LeftOut, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder = match rustix::fs::open(workspace, flags, Mode::empty()) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(LeftOut::default()),
        Err(error) => return Err(error),
    };
    let device = fstat(&folder)?.st_dev;
    for name in FOLDERS {
        folder = match open(folder.as_fd(), name, OFlags::DIRECTORY, 0o500) {
            Ok(opened) => opened.file,
            // A command has removed it, or put something else in its place.
            Err(error) if is_gone(error) => return Ok(LeftOut::default()),
            Err(error) => return Err(error),
        };
    }
    let mut walk = Walk { device, known, take, entries: 0, left_out: LeftOut::default(), is_over: false };
    walk.folder(folder, &mut Vec::new(), 0)?;
    Ok(walk.left_out)
}

struct Walk<'w> {
    device: u64,
    known: &'w HashMap<String, Known>,
    take: &'w mut dyn FnMut(Found) -> bool,
    entries: usize,
    left_out: LeftOut,
    is_over: bool,
}

impl Walk<'_> {
    fn folder(&mut self, folder: OwnedFd, path: &mut Vec<u8>, depth: usize) -> Result<(), Errno> {
        let mut folder = Dir::new(folder)?;
        let mut names: Vec<CString> = Vec::new();
        while let Some(entry) = folder.read() {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            self.entries += 1;
            if self.entries > ENTRIES_MAX || depth >= DEPTH_MAX {
                self.left_out.is_cut = true;
                break;
            }
            names.push(entry.file_name().to_owned());
        }
        names.sort_unstable();
        let folder = folder.fd()?;
        for name in names {
            if self.is_over {
                break;
            }
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            match self.entry(folder, &name, path, depth) {
                Err(error) if !is_gone(error) => return Err(error),
                _ => {}
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &mut Vec<u8>, depth: usize) -> Result<(), Errno> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_dev != self.device {
            return Ok(());
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let opened = open(parent, name, OFlags::DIRECTORY, 0o500)?;
                let shut = opened.shut;
                self.folder(opened.file, path, depth + 1)?;
                drop(shut);
                Ok(())
            }
            FileType::RegularFile => {
                let Some(path) = std::str::from_utf8(path).ok().filter(|path| path.len() <= PATH_BYTES_MAX) else {
                    self.left_out.names += 1;
                    return Ok(());
                };
                let known = self.known.get(path);
                if known.is_some_and(|known| known.seen == Some(Seen::of(&stat))) {
                    return Ok(());
                }
                self.file(parent, name, path)
            }
            _ => Ok(()),
        }
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &str) -> Result<(), Errno> {
        let began_ns = now_ns();
        // A pipe that was put in the file's place would not be waited for.
        let opened = open(parent, name, OFlags::NONBLOCK | OFlags::NOCTTY, 0o400)?;
        drop(opened.shut);
        let before = fstat(&opened.file)?;
        if !FileType::from_raw_mode(before.st_mode).is_file() {
            return Ok(());
        }
        if u64::try_from(before.st_size).is_ok_and(|bytes| bytes > FILE_BYTES_MAX) {
            self.left_out.large += 1;
            return Ok(());
        }
        let mut file = File::from(opened.file);
        let read = hash(&mut file).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let Some((hash, bytes)) = read else {
            self.left_out.large += 1;
            return Ok(());
        };
        let after = Seen::of(&fstat(&file)?);
        // What changed so lately that the next change may bear the same time is looked at again.
        let seen = Some(after).filter(|after| *after == Seen::of(&before) && after.is_older_than(began_ns));
        self.is_over = !(self.take)(Found { path: path.to_owned(), hash, bytes, seen, file });
        Ok(())
    }
}

/// What the file holds; none for more than is sent. The file is at its beginning again.
fn hash(file: &mut File) -> io::Result<Option<(ContentHash, u64)>> {
    let mut hasher = ContentHasher::default();
    let mut piece = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        match file.read(&mut piece) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&piece[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes > FILE_BYTES_MAX {
            return Ok(None);
        }
    }
    file.rewind()?;
    Ok(Some((hasher.finish(), bytes)))
}

/// What was removed or replaced since it was listed, or is no file or folder.
fn is_gone(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn found(workspace: &Path, known: &HashMap<String, Known>) -> (Vec<(String, Option<Seen>)>, LeftOut) {
        let mut found = Vec::new();
        let left_out = find(workspace, known, &mut |it| {
            let mut text = String::new();
            let mut file = it.file;
            file.read_to_string(&mut text).unwrap();
            assert_eq!((it.hash, it.bytes), (ContentHash::of(text.as_bytes()), text.len() as u64));
            found.push((it.path, it.seen));
            true
        });
        (found, left_out.unwrap())
    }

    #[test]
    fn new_and_changed_files_are_found() {
        let place = tempfile::tempdir().unwrap();
        assert_eq!(found(place.path(), &HashMap::new()), (vec![], LeftOut::default()), "there are none yet");
        let outputs = place.path().join(".agent/session/outputs");
        fs::create_dir_all(outputs.join("deep")).unwrap();
        fs::write(outputs.join("report"), "one").unwrap();
        fs::write(outputs.join("deep/empty"), "").unwrap();
        fs::set_permissions(outputs.join("report"), fs::Permissions::from_mode(0o0)).unwrap();
        let long_ago = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        let (first, _) = found(place.path(), &HashMap::new());
        assert_eq!(first.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["deep/empty", "report"]);
        assert_eq!(fs::metadata(outputs.join("report")).unwrap().permissions().mode() & 0o777, 0);

        fs::set_permissions(outputs.join("report"), fs::Permissions::from_mode(0o600)).unwrap();
        let stat = |name: &str| Seen::of(&rustix::fs::stat(outputs.join(name)).unwrap());
        let known: HashMap<String, Known> = ["report", "deep/empty"]
            .map(|name| (name.to_owned(), Known { seen: Some(stat(name)), hash: ContentHash::of(b"") }))
            .into();
        assert_eq!(found(place.path(), &known).0, [], "nothing changed");
        fs::write(outputs.join("report"), "two").unwrap();
        fs::File::options().write(true).open(outputs.join("report")).unwrap().set_times(long_ago).unwrap();
        let changed: Vec<String> = found(place.path(), &known).0.into_iter().map(|(path, _)| path).collect();
        assert_eq!(changed, ["report"], "a time that was set back hides nothing");
    }

    #[test]
    fn what_a_hostile_session_leaves_leads_nowhere() {
        let away = tempfile::tempdir().unwrap();
        fs::create_dir_all(away.path().join("session/outputs")).unwrap();
        fs::write(away.path().join("session/outputs/secret"), "secret").unwrap();
        fs::write(away.path().join("secret"), "secret").unwrap();
        let place = tempfile::tempdir().unwrap();
        symlink(away.path(), place.path().join(".agent")).unwrap();
        assert_eq!(found(place.path(), &HashMap::new()), (vec![], LeftOut::default()));
        fs::remove_file(place.path().join(".agent")).unwrap();
        fs::create_dir(place.path().join(".agent")).unwrap();
        symlink(away.path().join("session"), place.path().join(".agent/session")).unwrap();
        assert_eq!(found(place.path(), &HashMap::new()), (vec![], LeftOut::default()));
        fs::remove_file(place.path().join(".agent/session")).unwrap();
        let outputs = place.path().join(".agent/session/outputs");
        fs::create_dir_all(&outputs).unwrap();
        symlink(away.path().join("secret"), outputs.join("link")).unwrap();
        symlink(away.path(), outputs.join("folder")).unwrap();
        let pipe = outputs.join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(outputs.join("socket")).unwrap();
        use std::os::unix::ffi::OsStrExt as _;
        fs::write(outputs.join(std::ffi::OsStr::from_bytes(b"\xff")), "x").unwrap();
        let left_out = LeftOut { names: 1, ..LeftOut::default() };
        assert_eq!(found(place.path(), &HashMap::new()), (vec![], left_out));
    }

    #[test]
    fn what_is_too_much_is_left_out() {
        let place = tempfile::tempdir().unwrap();
        let outputs = place.path().join(".agent/session/outputs");
        fs::create_dir_all(&outputs).unwrap();
        fs::File::create(outputs.join("large")).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        assert_eq!(found(place.path(), &HashMap::new()), (vec![], LeftOut { large: 1, ..LeftOut::default() }));
        (0..=ENTRIES_MAX).for_each(|number| fs::write(outputs.join(format!("{number}")), "").unwrap());
        let mut count = 0;
        let left_out = find(place.path(), &HashMap::new(), &mut |_| {
            count += 1;
            count < 5
        });
        assert!(left_out.unwrap().is_cut);
        assert_eq!(count, 5, "it ends when nobody wants more");
    }
}
