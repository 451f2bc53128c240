//! The session's folder as the file tools see it: `/workspace` and everything below, the folders that have names of
//! their own ([`SESSION_FOLDERS`]), and nothing else.
//!
//! [`Workspace::resolve`] follows every symbolic link itself and refuses what leads out; what it returns holds no
//! link, and [`Workspace::open`] tells the kernel to follow none (`openat2`, `RESOLVE_BENEATH` and
//! `RESOLVE_NO_SYMLINKS`), so a link that is swapped in between is an error, not an escape.
//! Behind it stands the file helper's Landlock domain, which knows the workspace and, to read, what the session was given.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The name under which the workspace is documented to the model.
pub(crate) const NAME: &str = "/workspace";

/// The service's own folder inside the workspace: temporary files and outputs too long for an answer.
pub(crate) const SERVICE_DIR: &str = ".agent";

/// Where the model finds what the session was given.
pub(crate) const UPLOADS: &str = "/mnt/session/uploads";

/// A folder that the model knows under a path of its own.
#[derive(Debug)]
pub(crate) struct SessionFolder {
    pub path: &'static str,
    /// What it is called among the paths below the workspace.
    pub inside: &'static str,
    pub is_writable: bool,
}

/// Those that tools can write lie in the workspace, so that they follow the session and count with it. What the session
/// was given lies outside, where tools can only read, whatever they can do to the workspace; it merely has a name
/// inside. With namespaces all are mounted at their paths; the file tools know the paths at every level.
pub(crate) const SESSION_FOLDERS: [SessionFolder; 3] = [
    SessionFolder { path: "/tmp", inside: ".agent/tmp", is_writable: true },
    SessionFolder { path: "/mnt/session/outputs", inside: ".agent/session/outputs", is_writable: true },
    SessionFolder { path: UPLOADS, inside: UPLOADS_INSIDE, is_writable: false },
];

const UPLOADS_INSIDE: &str = ".agent/session/uploads";

const SYMLINK_HOPS_MAX: usize = 40;
const RACE_RETRIES: usize = 64;

/// Why a path cannot be used. The texts are for the model and name no path of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathError {
    #[error("outside the session's working directory")]
    Outside,
    #[error("{}", phrase(*.0))]
    System(Errno),
}

impl From<Errno> for PathError {
    fn from(error: Errno) -> Self {
        match error {
            // What openat2 says when a link or `..` was swapped in after the path was resolved.
            Errno::XDEV => Self::Outside,
            other => Self::System(other),
        }
    }
}

impl From<std::io::Error> for PathError {
    fn from(error: std::io::Error) -> Self {
        Self::from(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// One wording for each error of the system, whatever library or kernel reported it.
pub(crate) fn phrase(error: Errno) -> &'static str {
    match error {
        Errno::NOENT => "no such file or directory",
        Errno::NOTDIR => "not a directory",
        Errno::ISDIR => "is a directory",
        Errno::ACCESS | Errno::PERM | Errno::ROFS => "permission denied",
        Errno::EXIST => "file already exists",
        Errno::LOOP => "too many levels of symbolic links",
        Errno::NAMETOOLONG => "file name too long",
        Errno::NOSPC | Errno::DQUOT => "no space left on device",
        Errno::FBIG => "file too large",
        Errno::MFILE | Errno::NFILE => "too many open files",
        Errno::INVAL => "invalid path",
        _ => "i/o error",
    }
}

/// A path below the workspace, without links, `.` or `..`; empty for the workspace itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Inside(PathBuf);

impl Inside {
    /// The path as the model knows it, on one line whatever its names hold.
    ///
    /// One that would not be plain to see (a control character, a direction or an invisible character, invalid UTF-8)
    /// is quoted as bash quotes it, `$'/workspace/a\nb'`: nothing is lost, and no other path looks like it, because
    /// every plain one begins with a slash.
    pub(crate) fn display(&self) -> String {
        self.shown(|_| false)
    }

    /// Likewise, for a place where `separator` follows the path.
    pub(crate) fn display_before(&self, separator: char) -> String {
        self.shown(|character| character == separator)
    }

    fn shown(&self, is_ambiguous: impl Fn(char) -> bool) -> String {
        let (root, below) = SESSION_FOLDERS
            .iter()
            .find_map(|folder| Some((folder.path, self.0.strip_prefix(folder.inside).ok()?)))
            .unwrap_or((NAME, &self.0));
        let mut bytes = root.as_bytes().to_vec();
        if !below.as_os_str().is_empty() {
            bytes.push(b'/');
            bytes.extend_from_slice(below.as_os_str().as_bytes());
        }
        match String::from_utf8(bytes) {
            Ok(plain) if !plain.chars().any(|it| is_hidden(it) || is_ambiguous(it)) => plain,
            Ok(text) => quoted(text.as_bytes()),
            Err(error) => quoted(error.as_bytes()),
        }
    }

    pub(crate) fn as_path(&self) -> &Path {
        &self.0
    }

    /// The folder above; none above the workspace itself.
    pub(crate) fn parent(&self) -> Option<Self> {
        self.0.parent().map(|parent| Self(parent.to_owned()))
    }

    pub(crate) fn join(&self, below: &Path) -> Self {
        Self(self.0.join(below))
    }

    /// The path below the folder of what the session was given, if it lies there.
    fn below_uploads(&self) -> Option<&Path> {
        self.0.strip_prefix(UPLOADS_INSIDE).ok()
    }

    /// The path in the form that `openat2` takes.
    fn relative(&self) -> &OsStr {
        if self.0.as_os_str().is_empty() { OsStr::new(".") } else { self.0.as_os_str() }
    }
}

/// Characters that cannot be seen, or that move what stands around them.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e01ef}'
        )
}

/// The ANSI-C quoting of bash.
fn quoted(bytes: &[u8]) -> String {
    let mut text = String::from("$'");
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\n' => text.push_str(r"\n"),
                '\t' => text.push_str(r"\t"),
                '\r' => text.push_str(r"\r"),
                '\'' | '\\' => text.extend(['\\', character]),
                _ if !is_hidden(character) => text.push(character),
                _ if character.is_ascii() => text.push_str(&format!(r"\x{:02x}", u32::from(character))),
                _ => text.push_str(&format!(r"\U{:08x}", u32::from(character))),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!(r"\x{byte:02x}")));
    }
    text.push('\'');
    text
}

#[derive(Debug)]
pub(crate) struct Workspace {
    root: OwnedFd,
    real_path: PathBuf,
    /// What the session was given, which the file tools alone look at.
    uploads: Option<(OwnedFd, PathBuf)>,
}

impl Workspace {
    /// Opens the workspace at `real_path`, which holds no symbolic link.
    pub(crate) fn at(real_path: &Path) -> Result<Self, PathError> {
        Ok(Self { root: open_folder(real_path)?, real_path: real_path.to_owned(), uploads: None })
    }

    /// The same with the folder of what the session was given.
    pub(crate) fn with_uploads(self, real_path: &Path) -> Result<Self, PathError> {
        Ok(Self { uploads: Some((open_folder(real_path)?, real_path.to_owned())), ..self })
    }

    /// The workspace itself, opened as a path.
    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Where a path lies on this host; for walking, never for the model.
    pub(crate) fn real(&self, path: &Inside) -> PathBuf {
        match (path.below_uploads(), &self.uploads) {
            (Some(below), Some((_, uploads))) => uploads.join(below),
            _ => self.real_path.join(&path.0),
        }
    }

    /// Turns what the model wrote into a path inside, following links; the last parts need not exist.
    pub(crate) fn resolve(&self, requested: &str) -> Result<Inside, PathError> {
        self.resolve_path(Path::new(requested))
    }

    /// Likewise for a path that need not be text, as found by walking.
    pub(crate) fn resolve_path(&self, requested: &Path) -> Result<Inside, PathError> {
        if requested.as_os_str().as_bytes().contains(&0) {
            return Err(PathError::System(Errno::INVAL));
        }
        let mut left = VecDeque::new();
        self.queue(requested, &mut left)?;
        let mut resolved = PathBuf::new();
        let mut hops = 0;
        while let Some(part) = left.pop_front() {
            if part == ".." {
                if !resolved.pop() {
                    return Err(PathError::Outside);
                }
                continue;
            }
            let candidate = Inside(resolved.join(&part));
            let Some(target) = self.link_target(&candidate)? else {
                resolved = candidate.0;
                continue;
            };
            hops += 1;
            if hops > SYMLINK_HOPS_MAX {
                return Err(PathError::System(Errno::LOOP));
            }
            if target.is_absolute() {
                resolved.clear();
            }
            self.queue(&target, &mut left)?;
        }
        Ok(Inside(resolved))
    }

    /// Puts the parts of `path` before those that are still to be resolved.
    fn queue(&self, path: &Path, left: &mut VecDeque<OsString>) -> Result<(), PathError> {
        let below = if path.is_absolute() { self.below(path)? } else { path.to_owned() };
        for part in below.components().rev() {
            match part {
                Component::Normal(name) => left.push_front(name.to_owned()),
                Component::ParentDir => left.push_front("..".into()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        Ok(())
    }

    /// An absolute path as one below the workspace.
    fn below(&self, path: &Path) -> Result<PathBuf, PathError> {
        if let Ok(below) = path.strip_prefix(NAME).or_else(|_| path.strip_prefix(&self.real_path)) {
            return Ok(below.to_owned());
        }
        if let Some(below) = self.uploads.as_ref().and_then(|(_, real_path)| path.strip_prefix(real_path).ok()) {
            return Ok(Path::new(UPLOADS_INSIDE).join(below));
        }
        SESSION_FOLDERS
            .iter()
            .find_map(|folder| Some(Path::new(folder.inside).join(path.strip_prefix(folder.path).ok()?)))
            .ok_or(PathError::Outside)
    }

    /// What the link at `path` points to; none if it is no link or does not exist.
    fn link_target(&self, path: &Inside) -> Result<Option<PathBuf>, PathError> {
        let file = match self.open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(file) => file,
            Err(PathError::System(Errno::NOENT)) => return Ok(None),
            Err(error) => return Err(error),
        };
        match rustix::fs::readlinkat(&file, "", Vec::new()) {
            Ok(target) => Ok(Some(OsStr::from_bytes(target.as_bytes()).into())),
            Err(Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a resolved path, following no link at all.
    pub(crate) fn open(&self, path: &Inside, flags: OFlags, mode: Mode) -> Result<OwnedFd, PathError> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        let below;
        let (root, relative) = match (path.below_uploads(), &self.uploads) {
            // The kernel says so too; this wall stands where nothing is confined.
            (Some(_), _) if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC) => {
                return Err(PathError::System(Errno::ROFS));
            }
            (Some(inside), Some((uploads, _))) => {
                below = Inside(inside.to_owned());
                (uploads, below.relative())
            }
            _ => (&self.root, path.relative()),
        };
        let mut attempts = 0;
        loop {
            match rustix::fs::openat2(root, relative, flags, mode, resolve) {
                // The kernel could not tell whether a rename elsewhere moved the path out.
                Err(Errno::AGAIN) if attempts < RACE_RETRIES => attempts += 1,
                result => return result.map_err(PathError::from),
            }
        }
    }

    /// Creates the folders above `path` that do not exist yet.
    pub(crate) fn create_parents(&self, path: &Inside) -> Result<(), PathError> {
        let Some(parents) = path.0.parent() else {
            return Ok(());
        };
        if path.below_uploads().is_some() {
            return Err(PathError::System(Errno::ROFS));
        }
        let mut above = Inside(PathBuf::new());
        for name in parents.components() {
            let folder = self.open(&above, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            match rustix::fs::mkdirat(&folder, name.as_os_str(), Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            above = above.join(name.as_ref());
        }
        Ok(())
    }

    /// Makes a folder of the service's own, and those above it, usable, whether it is missing or a command took the
    /// rights to it away.
    pub(crate) fn ensure_folder(&self, inside: &str) -> Result<Inside, PathError> {
        let mut path = Inside::default();
        for part in Path::new(inside).components() {
            path = path.join(part.as_ref());
            self.create_parents(&path.join("file".as_ref()))?;
            let folder = self.open(&path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            let mode = Mode::from_raw_mode(rustix::fs::fstat(&folder)?.st_mode);
            if !mode.contains(Mode::RWXU) {
                // A descriptor that only names a folder takes no fchmod; its link in /proc does.
                rustix::fs::chmod(format!("/proc/self/fd/{}", folder.as_raw_fd()), mode | Mode::RWXU)?;
            }
        }
        Ok(path)
    }

    /// Whether a resolved path is a folder.
    pub(crate) fn is_dir(&self, path: &Inside) -> Result<bool, PathError> {
        let file = self.open(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?;
        let stat = rustix::fs::statat(&file, "", AtFlags::EMPTY_PATH)?;
        Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir())
    }
}

fn open_folder(real_path: &Path) -> Result<OwnedFd, PathError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(real_path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_resolve_inside_or_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap().join("ws");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("a/b", root.join("relative")).unwrap();
        symlink("/workspace/a", root.join("absolute")).unwrap();
        symlink("/etc/passwd", root.join("away")).unwrap();
        symlink("../..", root.join("a/up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("a/new", root.join("dangling")).unwrap();
        let workspace = Workspace::at(&root).unwrap();
        let real = root.join("a/x").to_str().unwrap().to_owned();
        for (requested, expected) in [
            ("a/b/c", Ok("/workspace/a/b/c")),
            ("./a//b/", Ok("/workspace/a/b")),
            ("/workspace", Ok("/workspace")),
            ("/workspace/a", Ok("/workspace/a")),
            (real.as_str(), Ok("/workspace/a/x")),
            ("relative/x", Ok("/workspace/a/b/x")),
            ("relative/../x", Ok("/workspace/a/x")),
            ("absolute/b", Ok("/workspace/a/b")),
            ("dangling", Ok("/workspace/a/new")),
            ("a/../../x", Err(PathError::Outside)),
            ("..", Err(PathError::Outside)),
            ("/workspace/../etc", Err(PathError::Outside)),
            ("/workspaces", Err(PathError::Outside)),
            ("/etc/passwd", Err(PathError::Outside)),
            ("away", Err(PathError::Outside)),
            ("a/up/x", Err(PathError::Outside)),
            ("/tmp/a/b", Ok("/tmp/a/b")),
            ("/tmp", Ok("/tmp")),
            (".agent/tmp/x", Ok("/tmp/x")),
            ("/tmp/../../x", Ok("/workspace/x")),
            ("/tmp/../../../x", Err(PathError::Outside)),
            ("/mnt/session/outputs/report", Ok("/mnt/session/outputs/report")),
            ("/mnt/other", Err(PathError::Outside)),
            ("loop", Err(PathError::System(Errno::LOOP))),
            ("a\0b", Err(PathError::System(Errno::INVAL))),
        ] {
            let found = workspace.resolve(requested).map(|inside| inside.display());
            assert_eq!(found, expected.map(str::to_owned), "{requested:?}");
        }
    }

    #[test]
    fn a_name_cannot_pass_for_something_else() {
        let shown = |name: &[u8]| Inside(OsStr::from_bytes(name).into()).display();
        for (name, expected) in [
            (&b""[..], "/workspace"),
            (b"a b/$c'd\"\\e", "/workspace/a b/$c'd\"\\e"),
            ("sch\u{f6}n".as_bytes(), "/workspace/sch\u{f6}n"),
            (b"a\n/workspace/b", r"$'/workspace/a\n/workspace/b'"),
            (b"it's\\\r\t", r"$'/workspace/it\'s\\\r\t'"),
            (b"\x1b[2J\x7f", r"$'/workspace/\x1b[2J\x7f'"),
            (b"\xff\xed\xa0\x80", r"$'/workspace/\xff\xed\xa0\x80'"),
            ("\u{9b}31m".as_bytes(), r"$'/workspace/\U0000009b31m'"),
            ("x\u{202e}gpj.exe".as_bytes(), r"$'/workspace/x\U0000202egpj.exe'"),
            ("\u{e0041}".as_bytes(), r"$'/workspace/\U000e0041'"),
        ] {
            assert_eq!(shown(name), expected);
        }
        let colon = Inside("a:1:b".into());
        assert_eq!(
            (colon.display().as_str(), colon.display_before(':').as_str()),
            ("/workspace/a:1:b", "$'/workspace/a:1:b'")
        );
    }

    #[test]
    fn what_was_given_lies_elsewhere_and_is_only_read() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().canonicalize().unwrap();
        let (root, uploads) = (place.join("ws"), place.join("uploads"));
        std::fs::create_dir_all(root.join(UPLOADS_INSIDE)).unwrap();
        std::fs::create_dir_all(uploads.join("in")).unwrap();
        std::fs::write(uploads.join("in/data"), "given").unwrap();
        // What a command puts in the place that its name tells of.
        std::fs::write(root.join(UPLOADS_INSIDE).join("data"), "forged").unwrap();
        let workspace = Workspace::at(&root).unwrap().with_uploads(&uploads).unwrap();
        let real = uploads.join("in/data").to_str().unwrap().to_owned();
        for requested in ["/mnt/session/uploads/in/data", &real, ".agent/session/uploads/in/data"] {
            let path = workspace.resolve(requested).unwrap();
            assert_eq!(path.display(), "/mnt/session/uploads/in/data");
            assert_eq!(workspace.real(&path), uploads.join("in/data"));
            assert!(workspace.open(&path, OFlags::RDONLY, Mode::empty()).is_ok());
            for flags in [OFlags::WRONLY, OFlags::RDWR, OFlags::WRONLY | OFlags::CREATE, OFlags::TRUNC] {
                let opened = workspace.open(&path, flags, Mode::RUSR);
                assert_eq!(opened.unwrap_err(), PathError::System(Errno::ROFS));
            }
        }
        let forged = workspace.resolve("/mnt/session/uploads/data").unwrap();
        let opened = workspace.open(&forged, OFlags::RDONLY, Mode::empty());
        assert_eq!(opened.unwrap_err(), PathError::System(Errno::NOENT));
        assert_eq!(workspace.create_parents(&forged.join("a".as_ref())), Err(PathError::System(Errno::ROFS)));
        assert!(workspace.is_dir(&workspace.resolve("/mnt/session/uploads").unwrap()).unwrap());
    }

    #[test]
    fn a_link_swapped_in_after_resolving_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap().join("ws");
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::write(folder.path().join("secret"), "s").unwrap();
        let workspace = Workspace::at(&root).unwrap();
        let path = workspace.resolve("a/secret").unwrap();
        std::fs::remove_dir(root.join("a")).unwrap();
        symlink("..", root.join("a")).unwrap();
        let opened = workspace.open(&path, OFlags::RDONLY, Mode::empty());
        assert_eq!(opened.unwrap_err(), PathError::System(Errno::LOOP));
    }
}
