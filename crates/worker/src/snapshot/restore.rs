//! Makes the files that a manifest names, in a new folder that no process of a session can reach.
//!
//! The folder takes the workspace's place by a rename when all is there, so a crash leaves the old one or the new one.

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, chmodat, ftruncate, futimens, linkat, mkdirat, openat};
use rustix::fs::{UTIME_OMIT, fchmod, symlinkat};
use rustix::io::{Errno, pwrite};
use session::manifest::{Entry, Extent, Kind, Manifest};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Zeros of this size are not written, so that a sparse file stays one.
const PAGE_BYTES: usize = 4096;

/// Why the files are not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error("a file cannot be made: {0}")]
    System(#[from] Errno),
    /// Whoever fetched them knows why.
    #[error("the chunks ended too early")]
    Chunks,
}

/// Makes everything below `folder`, which is empty. `next_chunk` gives the chunks in the order of [`Manifest::uses`].
pub(crate) fn restore(
    manifest: &Manifest,
    folder: &Path,
    next_chunk: impl FnMut() -> Option<Vec<u8>>,
) -> Result<(), RestoreError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(folder, flags, Mode::empty())?;
    let mut restorer = Restorer { manifest, root, next_chunk, chunk: None };
    for entry in &manifest.entries {
        restorer.make(entry)?;
    }
    // Folders last, and those inside first: their own mode may not let anything be made in them.
    for entry in manifest.entries.iter().rev() {
        if let Kind::Folder { mode } = entry.kind {
            chmodat(&restorer.root, path(entry), Mode::from_raw_mode(mode), AtFlags::empty())?;
        }
    }
    Ok(())
}

struct Restorer<'m, F> {
    manifest: &'m Manifest,
    root: OwnedFd,
    next_chunk: F,
    /// The chunk at hand and its index.
    chunk: Option<(u32, Vec<u8>)>,
}

impl<F: FnMut() -> Option<Vec<u8>>> Restorer<'_, F> {
    fn make(&mut self, entry: &Entry) -> Result<(), RestoreError> {
        let (root, path) = (&self.root, path(entry));
        match &entry.kind {
            Kind::Folder { .. } => mkdirat(root, path, Mode::RWXU)?,
            Kind::Symlink { target } => symlinkat(OsStr::from_bytes(target), root, path)?,
            Kind::HardLink { entry } => {
                let first = &self.manifest.entries[*entry as usize];
                linkat(root, self::path(first), root, path, AtFlags::empty())?;
            }
            Kind::File { mode, modified_ns, content } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(root, path, flags, Mode::RUSR | Mode::WUSR)?;
                self.fill(&file, content)?;
                fchmod(&file, Mode::from_raw_mode(*mode))?;
                futimens(&file, &modified(*modified_ns))?;
            }
        }
        Ok(())
    }

    fn fill(&mut self, file: &OwnedFd, content: &[Extent]) -> Result<(), RestoreError> {
        let mut at = 0;
        for extent in content {
            if let Extent::Data { chunk, offset, bytes } = *extent {
                let part = offset as usize..offset as usize + bytes as usize;
                let part = self.chunk(chunk)?.get(part).ok_or(RestoreError::Chunks)?;
                write_at(file, at, part)?;
            }
            at += extent.bytes();
        }
        ftruncate(file, at)?;
        Ok(())
    }

    fn chunk(&mut self, index: u32) -> Result<&[u8], RestoreError> {
        if self.chunk.as_ref().is_none_or(|(at_hand, _)| *at_hand != index) {
            let bytes = (self.next_chunk)().ok_or(RestoreError::Chunks)?;
            self.chunk = Some((index, bytes));
        }
        self.chunk.as_ref().map(|(_, bytes)| bytes.as_slice()).ok_or(RestoreError::Chunks)
    }
}

fn path(entry: &Entry) -> &OsStr {
    OsStr::from_bytes(&entry.path)
}

fn modified(nanoseconds: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: nanoseconds.div_euclid(1_000_000_000),
            tv_nsec: nanoseconds.rem_euclid(1_000_000_000),
        },
    }
}

fn write_at(file: &OwnedFd, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut at = at;
    for page in bytes.chunks(PAGE_BYTES) {
        let is_zero = page.len() == PAGE_BYTES && page.iter().all(|byte| *byte == 0);
        let mut left = if is_zero { &[] } else { page };
        let mut place = at;
        while !left.is_empty() {
            match pwrite(file, left, place) {
                Ok(written) => {
                    left = &left[written..];
                    place += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        at += page.len() as u64;
    }
    Ok(())
}
