//! Reads a workspace into a manifest and the chunks that nobody has yet.
//!
//! It runs outside of the sandbox, as the worker, over a tree that commands may change meanwhile, and relies on nothing
//! that a tree says of itself: every name is opened relative to the folder it was found in, no link is followed, and
//! what turns out to be no file or folder is left out. No place is read but what the session's own processes could
//! read, because they can neither move a folder out of the workspace nor mount anything that is seen from here.
//! A file that changes while it is read is kept as it was read, and read again the next time.

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, openat, readlinkat, seek, statat};
use rustix::io::{Errno, pread};
use serde::{Deserialize, Serialize};
use session::manifest::{
    CHUNK_BYTES_MAX, Chunk, ContentHash, DEPTH_MAX, Entry, Extent, Kind, MANIFEST_FORMAT, Manifest, PACKED_BYTES_MAX,
};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// The kernel's clock for files is behind by as much as one tick.
const CLOCK_TICK_NS: i64 = 10_000_000;
/// More is read again with everything else once so many bytes of the chunks are of no use.
const WASTE_MAX: u64 = 8 << 20;

/// How large a workspace may be that is still kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScanLimits {
    pub bytes_max: u64,
    pub files_max: u64,
}

/// A workspace that was read, and what tells whether its files have changed since.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scan {
    pub manifest: Manifest,
    /// For each entry, its file as it was when it was read; none for what has to be read again.
    seen: Vec<Option<Seen>>,
    /// For each entry that shares its chunk, the hash of its own content, where it is known: a file that is read again
    /// and is as it was keeps its place.
    own: Vec<Option<ContentHash>>,
}

/// What changes with every change of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    inode: u64,
    size: u64,
    modified_ns: i64,
    changed_ns: i64,
}

/// Why a workspace was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    #[error("the workspace holds more than {} MiB in {} files", .0.bytes_max >> 20, .0.files_max)]
    TooLarge(ScanLimits),
    #[error("the workspace has folders nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    #[error("the workspace cannot be read: {0}")]
    System(#[from] Errno),
    #[error("nobody wants the chunks any more")]
    Cancelled,
}

/// Takes the chunks that are new.
pub(crate) trait Sink {
    /// Whether it wants more.
    fn take(&mut self, hash: &ContentHash, bytes: &[u8]) -> bool;
    /// Whether the scan is still wanted.
    fn is_wanted(&self) -> bool;
}

/// Reads the workspace at `root`. What `before` holds and did not change is not read again.
pub(crate) fn scan(
    root: &Path,
    before: Option<&Scan>,
    limits: ScanLimits,
    sink: &mut dyn Sink,
) -> Result<Scan, ScanError> {
    let scan = scan_once(root, before, limits, sink)?;
    let (used, stored) = (scan.manifest.bytes(), scan.manifest.stored_bytes());
    if before.is_some() && stored > used.saturating_mul(2).saturating_add(WASTE_MAX) {
        return scan_once(root, None, limits, sink);
    }
    Ok(scan)
}

fn scan_once(root: &Path, before: Option<&Scan>, limits: ScanLimits, sink: &mut dyn Sink) -> Result<Scan, ScanError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::open(root, flags, Mode::empty())?;
    let manifest = Manifest { format: MANIFEST_FORMAT, chunks: Vec::new(), entries: Vec::new(), skipped: 0 };
    let mut scanner = Scanner {
        device: fstat(&folder)?.st_dev,
        began_ns: now_ns(),
        limits,
        sink,
        before: before.map(Before::of),
        bytes: 0,
        scan: Scan { manifest, seen: Vec::new(), own: Vec::new() },
        chunks: HashMap::new(),
        linked: HashMap::new(),
        pack: Vec::new(),
        packed: Vec::new(),
    };
    scanner.folder(folder, &mut Vec::new(), 0)?;
    scanner.close_pack()?;
    scanner.scan.number_chunks();
    Ok(scanner.scan)
}

/// What the kernel stamped earlier than this, it cannot stamp so again.
#[expect(clippy::disallowed_methods, reason = "compared with the kernel's own stamps, which no port can give")]
pub(crate) fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).saturating_sub(CLOCK_TICK_NS)
}

/// The scan before, by path.
struct Before<'b> {
    scan: &'b Scan,
    entries: HashMap<&'b [u8], usize>,
    chunks: HashMap<&'b ContentHash, u32>,
}

impl<'b> Before<'b> {
    fn of(scan: &'b Scan) -> Self {
        let entries = scan.manifest.entries.iter().enumerate().map(|(index, entry)| (&*entry.path, index)).collect();
        let chunks = scan.manifest.chunks.iter().map(|chunk| (&chunk.hash, chunk.bytes)).collect();
        Self { scan, entries, chunks }
    }

    /// The file at `path` as it was.
    fn file(&self, path: &[u8]) -> Option<Known<'b>> {
        let index = *self.entries.get(path)?;
        match &self.scan.manifest.entries[index].kind {
            Kind::File { content, .. } => Some(Known {
                scan: self.scan,
                content,
                seen: self.scan.seen[index],
                own: self.scan.own[index].as_ref(),
            }),
            _ => None,
        }
    }
}

/// A file of the scan before.
#[derive(Clone, Copy)]
struct Known<'b> {
    scan: &'b Scan,
    content: &'b [Extent],
    seen: Option<Seen>,
    own: Option<&'b ContentHash>,
}

struct Scanner<'s> {
    device: u64,
    /// What changed before this cannot change again without showing it.
    began_ns: i64,
    limits: ScanLimits,
    sink: &'s mut dyn Sink,
    before: Option<Before<'s>>,
    bytes: u64,
    scan: Scan,
    /// The manifest's chunks by hash.
    chunks: HashMap<ContentHash, u32>,
    /// Files with several names, by inode: the entry of the first.
    linked: HashMap<u64, u32>,
    /// Small files that wait for their chunk to be full.
    pack: Vec<u8>,
    /// Their entries, and where in the pack each lies.
    packed: Vec<(usize, u32, u32)>,
}

impl Scanner<'_> {
    fn folder(&mut self, folder: OwnedFd, path: &mut Vec<u8>, depth: usize) -> Result<(), ScanError> {
        if depth >= DEPTH_MAX {
            return Err(ScanError::TooDeep);
        }
        let mut folder = Dir::new(folder)?;
        let mut names: Vec<CString> = Vec::new();
        while let Some(entry) = folder.read() {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
            self.count(names.len())?;
        }
        names.sort_unstable();
        let folder = folder.fd()?;
        for name in names {
            let length = path.len();
            if length > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            self.entry(folder, &name, path, depth)?;
            path.truncate(length);
        }
        Ok(())
    }

    /// Whether so many more entries are allowed.
    fn count(&self, more: usize) -> Result<(), ScanError> {
        let files = (self.scan.manifest.entries.len() + more) as u64;
        if files > self.limits.files_max || self.bytes > self.limits.bytes_max {
            return Err(ScanError::TooLarge(self.limits));
        }
        if self.sink.is_wanted() { Ok(()) } else { Err(ScanError::Cancelled) }
    }

    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<(), ScanError> {
        self.count(1)?;
        let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => return gone(error),
        };
        let mode = stat.st_mode & 0o777;
        match FileType::from_raw_mode(stat.st_mode) {
            _ if stat.st_dev != self.device || path.len() >= 4096 => self.scan.manifest.skipped += 1,
            FileType::Directory => {
                let opened = match open(parent, name, OFlags::DIRECTORY, 0o500) {
                    Ok(opened) => opened,
                    Err(error) => return gone(error),
                };
                self.add(path, Kind::Folder { mode }, None);
                let shut = opened.shut;
                self.folder(opened.file, path, depth + 1)?;
                drop(shut);
            }
            FileType::Symlink => match readlinkat(parent, name, Vec::new()) {
                Ok(target) => self.add(path, Kind::Symlink { target: target.into_bytes() }, None),
                Err(error) => return gone(error),
            },
            FileType::RegularFile => self.file(parent, name, path, &stat)?,
            _ => self.scan.manifest.skipped += 1,
        }
        Ok(())
    }

    fn add(&mut self, path: &[u8], kind: Kind, seen: Option<Seen>) {
        self.scan.manifest.entries.push(Entry { path: path.to_owned(), kind });
        self.scan.seen.push(seen);
        self.scan.own.push(None);
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CStr, path: &[u8], stat: &Stat) -> Result<(), ScanError> {
        if let Some(entry) = self.linked.get(&stat.st_ino).filter(|_| stat.st_nlink > 1) {
            self.add(path, Kind::HardLink { entry: *entry }, None);
            return Ok(());
        }
        let known = self.before.as_ref().and_then(|before| before.file(path));
        if let Some(known) = known.filter(|known| known.seen == Some(Seen::of(stat))) {
            let content = self.kept(known);
            let index = self.add_file(path, stat, content, Some(Seen::of(stat)));
            self.scan.own[index] = known.own.cloned();
            return self.count(0);
        }
        // A pipe that was put in the file's place would not be waited for.
        let opened = match open(parent, name, OFlags::NONBLOCK | OFlags::NOCTTY, 0o400) {
            Ok(opened) => opened,
            Err(error) => return gone(error),
        };
        let mut stat = fstat(&opened.file)?;
        let is_file = FileType::from_raw_mode(stat.st_mode).is_file();
        if let Some(shut) = &opened.shut {
            stat.st_mode = shut.mode.as_raw_mode();
        }
        if !is_file {
            self.scan.manifest.skipped += 1;
            return Ok(());
        }
        let index = self.add_file(path, &stat, Vec::new(), None);
        let content = self.read(&opened.file, size(&stat), index, known)?;
        drop(opened.shut);
        let after = Seen::of(&fstat(&opened.file)?);
        let is_still = Seen { changed_ns: 0, ..after } == Seen { changed_ns: 0, ..Seen::of(&stat) };
        self.scan.seen[index] = Some(after).filter(|_| is_still && after.is_older_than(self.began_ns));
        if let Kind::File { content: place, .. } = &mut self.scan.manifest.entries[index].kind {
            *place = content;
        }
        self.count(0)
    }

    /// The index of the new entry.
    fn add_file(&mut self, path: &[u8], stat: &Stat, content: Vec<Extent>, seen: Option<Seen>) -> usize {
        if stat.st_nlink > 1 {
            let index = u32::try_from(self.scan.manifest.entries.len()).expect("the limit of files is lower");
            self.linked.insert(stat.st_ino, index);
        }
        let modified_ns = nanoseconds(stat.st_mtime, stat.st_mtime_nsec);
        self.add(path, Kind::File { mode: stat.st_mode & 0o777, modified_ns, content }, seen);
        self.scan.manifest.entries.len() - 1
    }

    /// The content of a file that did not change, as the new manifest names it.
    fn kept(&mut self, known: Known<'_>) -> Vec<Extent> {
        let mut content = known.content.to_vec();
        for extent in &mut content {
            if let Extent::Data { chunk, bytes, .. } = extent {
                let kept = &known.scan.manifest.chunks[*chunk as usize];
                *chunk = self.chunk(&kept.hash, kept.bytes);
                self.bytes += u64::from(*bytes);
            }
        }
        content
    }

    /// Where the chunk stands in the manifest.
    fn chunk(&mut self, hash: &ContentHash, bytes: u32) -> u32 {
        if let Some(index) = self.chunks.get(hash) {
            return *index;
        }
        let index = u32::try_from(self.chunks.len()).expect("fewer chunks than files and their bytes allow");
        self.chunks.insert(hash.clone(), index);
        self.scan.manifest.chunks.push(Chunk { hash: hash.clone(), bytes });
        index
    }

    /// Reads at most `size` bytes: what is appended meanwhile is left for the next time.
    fn read(
        &mut self,
        file: &OwnedFd,
        size: u64,
        entry: usize,
        known: Option<Known<'_>>,
    ) -> Result<Vec<Extent>, ScanError> {
        if size <= PACKED_BYTES_MAX {
            return self.read_small(file, size, entry, known);
        }
        let mut content = Vec::new();
        let mut at = 0;
        while at < size {
            let length = (CHUNK_BYTES_MAX as u64).min(size - at);
            let is_hole = match seek(file, SeekFrom::Data(at)) {
                Ok(data) => data >= at + length,
                Err(Errno::NXIO) => true,
                Err(_) => false,
            };
            if is_hole {
                push_hole(&mut content, length);
            } else {
                let chunk = read_at(file, at, length)?;
                let is_end = (chunk.len() as u64) < length;
                at += chunk.len() as u64;
                self.push_data(&mut content, &chunk)?;
                if is_end {
                    break;
                }
                continue;
            }
            at += length;
        }
        Ok(content)
    }

    fn push_data(&mut self, content: &mut Vec<Extent>, bytes: &[u8]) -> Result<(), ScanError> {
        if bytes.iter().all(|byte| *byte == 0) {
            push_hole(content, bytes.len() as u64);
            return Ok(());
        }
        let chunk = self.store(bytes)?;
        self.bytes += bytes.len() as u64;
        content.push(Extent::Data { chunk, offset: 0, bytes: length(bytes) });
        self.count(0)
    }

    /// The content, if it is known; else it comes with its pack.
    fn read_small(
        &mut self,
        file: &OwnedFd,
        size: u64,
        entry: usize,
        known: Option<Known<'_>>,
    ) -> Result<Vec<Extent>, ScanError> {
        if self.pack.len() as u64 + size > CHUNK_BYTES_MAX as u64 {
            self.close_pack()?;
        }
        let bytes = read_at(file, 0, size)?;
        let hash = ContentHash::of(&bytes);
        let same = known.filter(|known| known.own == Some(&hash));
        self.scan.own[entry] = Some(hash);
        if let Some(known) = same {
            return Ok(self.kept(known));
        }
        self.bytes += bytes.len() as u64;
        self.packed.push((entry, length(&self.pack), length(&bytes)));
        self.pack.extend_from_slice(&bytes);
        Ok(Vec::new())
    }

    fn close_pack(&mut self) -> Result<(), ScanError> {
        let pack = std::mem::take(&mut self.pack);
        if pack.is_empty() {
            self.packed.clear();
            return Ok(());
        }
        let chunk = self.store(&pack)?;
        for (entry, offset, bytes) in std::mem::take(&mut self.packed) {
            if let Kind::File { content, .. } = &mut self.scan.manifest.entries[entry].kind
                && bytes > 0
            {
                *content = vec![Extent::Data { chunk, offset, bytes }];
            }
        }
        Ok(())
    }

    /// Hands a chunk on, unless it is known.
    fn store(&mut self, bytes: &[u8]) -> Result<u32, ScanError> {
        let hash = ContentHash::of(bytes);
        let is_known = self.chunks.contains_key(&hash)
            || self.before.as_ref().is_some_and(|before| before.chunks.contains_key(&hash));
        if !is_known && !self.sink.take(&hash, bytes) {
            return Err(ScanError::Cancelled);
        }
        Ok(self.chunk(&hash, length(bytes)))
    }
}

impl Scan {
    /// What `manifest` became when it was restored at `root`, so that the next scan reads only what changes from now on.
    pub(crate) fn restored(manifest: Manifest, root: &Path) -> Self {
        let seen = manifest.entries.iter().map(|entry| Seen::at(root, entry)).collect();
        let own = vec![None; manifest.entries.len()];
        Self { manifest, seen, own }
    }

    /// Brings the chunks into the order in which the entries need them, so that equal trees have equal manifests.
    fn number_chunks(&mut self) {
        let mut order: Vec<Option<u32>> = vec![None; self.manifest.chunks.len()];
        let mut chunks = Vec::with_capacity(order.len());
        for entry in &mut self.manifest.entries {
            let Kind::File { content, .. } = &mut entry.kind else { continue };
            for extent in content {
                if let Extent::Data { chunk, .. } = extent {
                    let place = &mut order[*chunk as usize];
                    if place.is_none() {
                        *place = Some(u32::try_from(chunks.len()).expect("no more chunks than before"));
                        chunks.push(self.manifest.chunks[*chunk as usize].clone());
                    }
                    *chunk = place.expect("it was just numbered");
                }
            }
        }
        self.manifest.chunks = chunks;
    }
}

impl Seen {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            size: size(stat),
            modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Whether it last changed before that moment.
    pub(crate) fn is_older_than(self, moment_ns: i64) -> bool {
        self.changed_ns < moment_ns
    }

    fn at(root: &Path, entry: &Entry) -> Option<Self> {
        use std::os::unix::ffi::OsStrExt as _;
        if !matches!(entry.kind, Kind::File { .. }) {
            return None;
        }
        let stat = rustix::fs::lstat(root.join(std::ffi::OsStr::from_bytes(&entry.path))).ok()?;
        Some(Self::of(&stat))
    }
}

/// A file, and what gives it back the mode that it had.
pub(crate) struct Opened {
    pub file: OwnedFd,
    pub shut: Option<Shut>,
}

pub(crate) struct Shut {
    file: OwnedFd,
    mode: Mode,
}

impl Drop for Shut {
    fn drop(&mut self) {
        // What is gone needs no mode.
        let _ = chmod(&self.file, self.mode);
    }
}

/// Opens what has this name, following no link; `needed` are the rights that a command may have taken away.
pub(crate) fn open(parent: BorrowedFd<'_>, name: &CStr, flags: OFlags, needed: u32) -> Result<Opened, Errno> {
    let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&found)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !kind.is_file() && !kind.is_dir() {
        return Err(Errno::LOOP);
    }
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let opened = Mode::from_raw_mode(needed) | mode;
    let shut = if opened == mode {
        None
    } else {
        chmod(&found, opened)?;
        Some(Shut { file: found, mode })
    };
    Ok(Opened { file: openat(parent, name, flags, Mode::empty())?, shut })
}

/// A descriptor that only names a file takes no fchmod; its link in /proc does, and leads to that file alone.
fn chmod(file: &OwnedFd, mode: Mode) -> Result<(), Errno> {
    rustix::fs::chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)
}

/// What was removed or replaced since its folder was read is left out.
fn gone(error: Errno) -> Result<(), ScanError> {
    match error {
        Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::NXIO => Ok(()),
        error => Err(error.into()),
    }
}

fn read_at(file: impl AsFd, at: u64, bytes_max: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; usize::try_from(bytes_max).expect("no part is longer than a chunk")];
    let mut filled = 0;
    while filled < bytes.len() {
        match pread(&file, &mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn push_hole(content: &mut Vec<Extent>, bytes: u64) {
    match content.last_mut() {
        Some(Extent::Hole { bytes: before }) => *before += bytes,
        _ => content.push(Extent::Hole { bytes }),
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("no part is longer than a chunk")
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

fn nanoseconds(seconds: i64, nanoseconds: impl TryInto<i64>) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds.try_into().unwrap_or_default())
}
