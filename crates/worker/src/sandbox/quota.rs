//! How many bytes and files a session's workspace holds, against what it may hold.
//!
//! No file system quota can be had without privilege, so the workspace is walked. That is dear for a large one, and is
//! done at once only when it may be full: what the file system as a whole has lost since the last walk says so, and is
//! one cheap call. Since others may free what this session takes, it is also done from time to time. A walk goes on in
//! slices, so that the supervisor stays responsive; where the workspace may be full the session's processes are stopped
//! meanwhile, so that nobody fills folders faster than they are walked.
//! Files that were deleted and are still open count too.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, fstatvfs, statat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::config::Limits;
use super::descendants;
use crate::tools::workspace::{Inside, Workspace};

/// How long one slice of a walk may take.
const SLICE: Duration = Duration::from_millis(3);
/// Between two walks that nothing but the time asks for: at least this, and many times what the last one took. It is
/// how long a session can write unseen while another one removes as much.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_FACTOR: u32 = 20;
/// Folders nested deeper than this are not walked; the workspace counts as full.
const DEPTH_MAX: usize = 200;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Usage {
    bytes: u64,
    files: u64,
}

impl Usage {
    fn is_exceeded_by(self, other: Self) -> bool {
        other.bytes > self.bytes || other.files > self.files
    }
}

pub(crate) struct Quota {
    max: Usage,
    /// What the last walk found.
    used: Usage,
    is_too_deep: bool,
    /// The last walk was not ended, because what it had found was too much already.
    is_partial: bool,
    /// What the file system had left when the last walk began.
    free_then: Usage,
    walk: Option<Walk>,
    ended: Option<(Instant, Duration)>,
    /// What the workspace held when the running command began: a full one may be emptied, not filled further.
    held_before: Usage,
}

struct Walk {
    began: Instant,
    /// The workspace may be full.
    is_urgent: bool,
    free: Usage,
    folders: Vec<Dir>,
    used: Usage,
    is_too_deep: bool,
    /// Files with several names, which count once.
    linked: BTreeSet<u64>,
}

impl Quota {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            max: Usage { bytes: limits.workspace_bytes_max, files: limits.workspace_files_max },
            used: Usage::default(),
            is_too_deep: false,
            is_partial: false,
            free_then: Usage::default(),
            walk: None,
            ended: None,
            held_before: Usage::default(),
        }
    }

    /// A command begins.
    pub(crate) fn begin(&mut self, workspace: &Workspace) {
        if self.is_partial {
            while !self.advance(workspace, None) {}
        }
        self.held_before = self.used;
    }

    /// Goes on with a walk, or begins one if it is time to; says why the running command has to end.
    pub(crate) fn look(&mut self, workspace: &Workspace) -> Option<String> {
        if self.walk.is_none() && !self.is_due(workspace) {
            return None;
        }
        if self.advance(workspace, Some(SLICE)) {
            return self.excess();
        }
        // Who fills a folder faster than it is walked must not be chased to its end.
        let max = self.max_now();
        let walk = self.walk.take_if(|walk| max.is_exceeded_by(walk.used))?;
        self.is_partial = true;
        self.take_over(walk);
        self.excess()
    }

    /// Whether a walk is under way, which goes on with the next look.
    pub(crate) fn is_walking(&self) -> bool {
        self.walk.is_some()
    }

    /// Whether the walk under way may find the workspace full, so that nobody should write meanwhile.
    pub(crate) fn is_urgent(&self) -> bool {
        self.walk.as_ref().is_some_and(|walk| walk.is_urgent)
    }

    /// Why nothing more can be written, if so. Walks to the end where that is not known.
    pub(crate) fn refusal(&mut self, workspace: &Workspace) -> Option<String> {
        // Folders that were too deep may be gone, which the file system's figures do not tell.
        if self.is_too_deep || self.may_be_full(workspace) {
            while !self.advance(workspace, None) {}
        }
        self.is_full(self.max).then(|| self.tell())
    }

    fn is_due(&self, workspace: &Workspace) -> bool {
        let Some((ended, took)) = self.ended else { return true };
        self.may_be_full(workspace) && ended.elapsed() >= took
            || ended.elapsed() >= PAUSE_MIN.max(took * PAUSE_FACTOR) && self.has_changed(workspace)
    }

    fn has_changed(&self, workspace: &Workspace) -> bool {
        free(workspace).is_ok_and(|free| free != self.free_then)
    }

    /// Whether all that the file system lost since the last walk, were it this session's, would fill the workspace.
    /// What others removed meanwhile hides as much of it.
    fn may_be_full(&self, workspace: &Workspace) -> bool {
        let Ok(free) = free(workspace) else { return false };
        let bytes = self.used.bytes.saturating_add(self.free_then.bytes.saturating_sub(free.bytes));
        let files = self.used.files.saturating_add(self.free_then.files.saturating_sub(free.files));
        self.ended.is_none() || bytes > self.max.bytes || files > self.max.files
    }

    /// Says whether a walk has ended with this.
    fn advance(&mut self, workspace: &Workspace, slice: Option<Duration>) -> bool {
        let mut walk = match self.walk.take() {
            Some(walk) => walk,
            None => match Walk::begin(workspace) {
                Ok(walk) => Walk { is_urgent: self.ended.is_some() && self.may_be_full(workspace), ..walk },
                Err(_) => return true,
            },
        };
        let until = slice.map(|slice| Instant::now() + slice);
        if !walk.advance(until) {
            self.walk = Some(walk);
            return false;
        }
        walk.add_deleted(workspace);
        self.is_partial = false;
        self.take_over(walk);
        true
    }

    /// What the walk found is what the workspace holds.
    fn take_over(&mut self, walk: Walk) {
        self.used = walk.used;
        self.is_too_deep = walk.is_too_deep;
        self.free_then = walk.free;
        self.ended = Some((Instant::now(), walk.began.elapsed()));
    }

    fn is_full(&self, max: Usage) -> bool {
        self.is_too_deep || max.is_exceeded_by(self.used)
    }

    fn excess(&self) -> Option<String> {
        self.is_full(self.max_now()).then(|| self.tell())
    }

    /// What the running command may leave behind.
    fn max_now(&self) -> Usage {
        // Removing files takes some room first, in folders and temporary files.
        const SLACK: Usage = Usage { bytes: 1 << 20, files: 16 };
        if !self.max.is_exceeded_by(self.held_before) {
            return self.max;
        }
        Usage {
            bytes: self.max.bytes.max(self.held_before.bytes + SLACK.bytes),
            files: self.max.files.max(self.held_before.files + SLACK.files),
        }
    }

    fn tell(&self) -> String {
        const MIB: u64 = 1 << 20;
        if self.is_too_deep {
            return format!("the workspace has folders nested deeper than {DEPTH_MAX} levels: remove them");
        }
        format!(
            "the workspace is full: it holds {}{} MiB in {} files, of at most {} MiB in {} files; remove files before \
             you write more",
            if self.is_partial { "at least " } else { "" },
            self.used.bytes.div_ceil(MIB),
            self.used.files,
            self.max.bytes.div_ceil(MIB),
            self.max.files
        )
    }
}

/// What the file system has left.
fn free(workspace: &Workspace) -> Result<Usage, Errno> {
    let found = fstatvfs(workspace.root())?;
    Ok(Usage { bytes: found.f_bfree.saturating_mul(found.f_frsize), files: found.f_ffree })
}

impl Walk {
    fn begin(workspace: &Workspace) -> Result<Self, Errno> {
        let root = workspace.open(&Inside::default(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let root = root.map_err(|_| Errno::IO)?;
        Ok(Self {
            began: Instant::now(),
            is_urgent: false,
            free: free(workspace)?,
            folders: vec![Dir::new(root)?],
            used: Usage::default(),
            is_too_deep: false,
            linked: BTreeSet::new(),
        })
    }

    /// Says whether nothing is left.
    fn advance(&mut self, until: Option<Instant>) -> bool {
        const ENTRIES: usize = 64;
        loop {
            for _ in 0..ENTRIES {
                let Some(folder) = self.folders.last_mut() else { return true };
                match folder.read() {
                    Some(Ok(entry)) => {
                        let name = entry.file_name();
                        if !matches!(name.to_bytes(), b"." | b"..") {
                            self.add(name);
                        }
                    }
                    Some(Err(_)) | None => drop(self.folders.pop()),
                }
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return false;
            }
        }
    }

    /// Counts an entry of the innermost folder. What is gone meanwhile does not count.
    fn add(&mut self, name: &std::ffi::CStr) {
        let Some(folder) = self.folders.last().and_then(|folder| folder.fd().ok()) else { return };
        let Ok(stat) = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        let is_folder = FileType::from_raw_mode(stat.st_mode).is_dir();
        if !is_folder && stat.st_nlink > 1 && !self.linked.insert(stat.st_ino) {
            return;
        }
        self.used.files += 1;
        self.used.bytes += bytes(&stat);
        if !is_folder {
            return;
        }
        if self.folders.len() >= DEPTH_MAX {
            self.is_too_deep = true;
            return;
        }
        if let Ok(below) = open_folder(folder, name, &stat).and_then(Dir::new) {
            self.folders.push(below);
        }
    }

    /// Counts files that have no name any more and that a process of the session holds open.
    fn add_deleted(&mut self, workspace: &Workspace) {
        let Ok(device) = fstat(workspace.root()).map(|stat| stat.st_dev) else { return };
        let mut seen = BTreeSet::new();
        for process in descendants::list().unwrap_or_default() {
            let Ok(descriptors) = std::fs::read_dir(format!("/proc/{}/fd", process.pid)) else { continue };
            for descriptor in descriptors.flatten() {
                let Ok(stat) = rustix::fs::stat(descriptor.path()) else { continue };
                let is_deleted = stat.st_nlink == 0 && stat.st_dev == device;
                if is_deleted && FileType::from_raw_mode(stat.st_mode).is_file() && seen.insert(stat.st_ino) {
                    self.used.files += 1;
                    self.used.bytes += bytes(&stat);
                }
            }
        }
    }
}

fn bytes(stat: &Stat) -> u64 {
    const BLOCK: u64 = 512;
    u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK
}

/// Opens a folder even if a command took the right to read it away, and leaves its mode as it was.
fn open_folder(parent: impl AsFd, name: &std::ffi::CStr, stat: &Stat) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parent = parent.as_fd();
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let mode = Mode::from_raw_mode(stat.st_mode);
            rustix::fs::chmodat(parent, name, mode | Mode::RWXU, AtFlags::empty())?;
            let opened = rustix::fs::openat(parent, name, flags, Mode::empty());
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
            opened
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn quota(bytes: u64, files: u64) -> Quota {
        Quota::new(&Limits { workspace_bytes_max: bytes, workspace_files_max: files, ..Limits::default() })
    }

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(root.join("a/b/file"), root.join("other")).unwrap();
        symlink("/usr", root.join("away")).unwrap();
        std::fs::set_permissions(root.join("a/b"), std::fs::Permissions::from_mode(0o0)).unwrap();
        let workspace = Workspace::at(&root).unwrap();
        let mut found = quota(u64::MAX, u64::MAX);
        assert_eq!(found.refusal(&workspace), None);
        assert_eq!(found.used.files, 4);
        assert!((100_000..200_000).contains(&found.used.bytes), "{}", found.used.bytes);
        let mode = std::fs::metadata(root.join("a/b")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0, "the mode is left as it was");
        std::fs::set_permissions(root.join("a/b"), std::fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn a_full_workspace_may_be_emptied_but_not_filled() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let workspace = Workspace::at(&root).unwrap();
        let mut found = quota(u64::MAX, 20);
        let make = |range: std::ops::Range<u32>| {
            for number in range {
                std::fs::write(root.join(number.to_string()), "").unwrap();
            }
        };
        make(0..30);
        let text = found.refusal(&workspace).unwrap();
        assert!(text.contains("in 30 files, of at most") && text.contains("in 20 files"), "{text}");
        found.begin(&workspace);
        assert_eq!(found.excess(), None, "a command may run in it");
        make(30..60);
        while !found.advance(&workspace, Some(SLICE)) {}
        assert!(found.excess().is_some(), "and may not make it worse");
    }

    #[test]
    fn what_others_remove_hides_a_full_workspace_for_a_moment_alone() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let workspace = Workspace::at(&root).unwrap();
        let mut found = quota(u64::MAX, 20);
        assert_eq!(found.look(&workspace), None);
        (0..30).for_each(|number| std::fs::write(root.join(number.to_string()), "").unwrap());
        // As if others had removed more.
        found.free_then = Usage { bytes: 0, files: 0 };
        assert!(!found.may_be_full(&workspace));
        found.ended = Some((Instant::now() - PAUSE_MIN, Duration::ZERO));
        assert!(found.look(&workspace).is_some_and(|text| text.contains("in 30 files")));
    }

    #[test]
    fn folders_nested_without_end_are_an_excess() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let workspace = Workspace::at(&root).unwrap();
        workspace.ensure_folder(&"d/".repeat(DEPTH_MAX + 5)).unwrap();
        let mut found = quota(u64::MAX, u64::MAX);
        assert!(found.refusal(&workspace).unwrap().contains("nested deeper"));
        std::fs::remove_dir_all(root.join("d")).unwrap();
        assert_eq!(found.refusal(&workspace), None, "they are gone");
    }
}
