//! What is scanned and restored is what was there, whatever a command made of the tree.

use proptest::prelude::*;
use session::manifest::{CHUNK_BYTES_MAX, ContentHash, Kind, Manifest, PACKED_BYTES_MAX};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::restore::{RestoreError, restore};
use super::scan::{Scan, ScanError, ScanLimits, Sink, scan};

const LIMITS: ScanLimits = ScanLimits { bytes_max: 64 << 20, files_max: 1000 };

/// Chunks as a server keeps them.
#[derive(Default)]
struct Kept {
    chunks: BTreeMap<ContentHash, Vec<u8>>,
    /// Of the last scan.
    new: Vec<usize>,
    room: Option<usize>,
}

impl Sink for Kept {
    fn take(&mut self, hash: &ContentHash, bytes: &[u8]) -> bool {
        assert_eq!(*hash, ContentHash::of(bytes));
        assert!(bytes.len() <= CHUNK_BYTES_MAX);
        self.new.push(bytes.len());
        self.chunks.insert(hash.clone(), bytes.to_vec());
        true
    }

    fn is_wanted(&self) -> bool {
        self.room.is_none_or(|room| self.new.len() < room)
    }
}

impl Kept {
    fn scan(&mut self, root: &Path, before: Option<&Scan>) -> Scan {
        self.new.clear();
        let found = scan(root, before, LIMITS, self).unwrap();
        let read = Manifest::read(&found.manifest.write()).expect("what was scanned can be restored");
        assert_eq!(read, found.manifest);
        found
    }

    fn restore(&self, manifest: &Manifest) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut uses = manifest.uses();
        restore(manifest, folder.path(), || Some(self.chunks[&manifest.chunks[uses.next()? as usize].hash].clone()))
            .unwrap();
        folder
    }
}

/// What each path is, and what it holds.
type Tree = BTreeMap<PathBuf, (String, Vec<u8>)>;

/// Everything that a snapshot promises to keep of a tree; files with several names are told by the first.
fn describe(root: &Path) -> Tree {
    fn walk(root: &Path, at: &Path, inodes: &mut BTreeMap<u64, PathBuf>, found: &mut Tree) {
        let mut paths: Vec<PathBuf> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let metadata = path.symlink_metadata().unwrap();
            let relative = path.strip_prefix(root).unwrap().to_owned();
            let mode = metadata.permissions().mode() & 0o777;
            let mut content = Vec::new();
            let text = if metadata.is_symlink() {
                format!("link {:?}", fs::read_link(&path).unwrap())
            } else if metadata.is_dir() {
                with_rights(&path, mode, 0o700, || walk(root, &path, inodes, found));
                format!("folder {mode:o}")
            } else if let Some(first) = inodes.get(&metadata.ino()) {
                format!("the same as {first:?}")
            } else {
                inodes.insert(metadata.ino(), relative.clone());
                content = with_rights(&path, mode, 0o600, || fs::read(&path).unwrap());
                let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
                format!("file {mode:o} {seconds}.{nanoseconds}")
            };
            found.insert(relative, (text, content));
        }
    }
    let mut found = BTreeMap::new();
    walk(root, root, &mut BTreeMap::new(), &mut found);
    found
}

fn with_rights<T>(path: &Path, mode: u32, needed: u32, work: impl FnOnce() -> T) -> T {
    fs::set_permissions(path, fs::Permissions::from_mode(needed)).unwrap();
    let done = work();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    done
}

/// One thing that a command does. Names are few, so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Folder { at: Vec<OsString>, mode: u32 },
    Write { at: Vec<OsString>, bytes: usize, seed: u8, mode: u32 },
    Punch { at: Vec<OsString>, hole: u64 },
    Symlink { at: Vec<OsString>, target: OsString },
    Link { from: Vec<OsString>, at: Vec<OsString> },
    Remove { at: Vec<OsString> },
}

fn name() -> impl Strategy<Value = OsString> {
    prop_oneof![
        Just("a".into()),
        Just("b%".into()),
        Just(".hidden".into()),
        Just(OsString::from_vec(b"\xff\nname".to_vec())),
        Just("a.b".into()),
    ]
}

fn place() -> impl Strategy<Value = Vec<OsString>> {
    prop::collection::vec(name(), 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    let mode = prop_oneof![Just(0o644), Just(0o755), Just(0o400), Just(0)];
    let folder_mode = prop_oneof![Just(0o755), Just(0o700), Just(0o500), Just(0)];
    let bytes = prop_oneof![
        4 => 0_usize..300,
        2 => Just(PACKED_BYTES_MAX as usize),
        2 => Just(PACKED_BYTES_MAX as usize + 1),
        1 => Just(CHUNK_BYTES_MAX + 7),
    ];
    let hole = prop_oneof![Just(5_u64), Just(3 << 20)];
    let target = prop_oneof![Just("/etc/passwd".into()), Just("../..".into()), Just("a".into())];
    prop_oneof![
        2 => (place(), folder_mode).prop_map(|(at, mode)| Step::Folder { at, mode }),
        5 => (place(), bytes, 0_u8..3, mode).prop_map(|(at, bytes, seed, mode)| Step::Write { at, bytes, seed, mode }),
        1 => (place(), hole).prop_map(|(at, hole)| Step::Punch { at, hole }),
        1 => (place(), target).prop_map(|(at, target)| Step::Symlink { at, target }),
        1 => (place(), place()).prop_map(|(from, at)| Step::Link { from, at }),
        1 => place().prop_map(|at| Step::Remove { at }),
    ]
}

/// Does it as far as it goes: a step that the tree does not allow is none.
fn perform(root: &Path, step: &Step) {
    let at = |parts: &[OsString]| parts.iter().fold(root.to_owned(), |path, part| path.join(part));
    let make_parents = |parts: &[OsString]| {
        for end in 1..parts.len() {
            let _ = fs::create_dir(at(&parts[..end]));
        }
        // A link or a file on the way would lead out of the tree, or nowhere.
        (1..parts.len()).all(|end| at(&parts[..end]).symlink_metadata().is_ok_and(|it| it.is_dir()))
    };
    let is_new_or_file = |path: &Path| path.symlink_metadata().map_or(true, |it| it.is_file());
    match step {
        Step::Folder { at: parts, mode } if make_parents(parts) && fs::create_dir(at(parts)).is_ok() => {
            let _ = fs::set_permissions(at(parts), fs::Permissions::from_mode(*mode));
        }
        Step::Write { at: parts, bytes, seed, mode } if make_parents(parts) && is_new_or_file(&at(parts)) => {
            let content: Vec<u8> = (0..*bytes).map(|index| (index / 7) as u8 ^ seed).collect();
            if fs::write(at(parts), content).is_ok() {
                let _ = fs::set_permissions(at(parts), fs::Permissions::from_mode(*mode));
            }
        }
        Step::Punch { at: parts, hole } if make_parents(parts) && is_new_or_file(&at(parts)) => {
            if let Ok(file) = fs::OpenOptions::new().write(true).create(true).truncate(false).open(at(parts)) {
                file.write_all_at(b"end", *hole).unwrap();
            }
        }
        Step::Symlink { at: parts, target } if make_parents(parts) => drop(symlink(target, at(parts))),
        Step::Link { from, at: parts }
            if make_parents(parts) && at(from).symlink_metadata().is_ok_and(|it| it.is_file()) =>
        {
            let _ = fs::hard_link(at(from), at(parts));
        }
        Step::Remove { at: parts } => {
            let path = at(parts);
            if path.symlink_metadata().is_ok_and(|it| it.is_dir()) {
                let _ = fs::remove_dir_all(path);
            } else {
                let _ = fs::remove_file(path);
            }
        }
        _ => {}
    }
}

/// So that the folder can be removed by whoever is not root.
fn open_all(root: &Path) {
    for entry in fs::read_dir(root).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o700)).unwrap();
            open_all(&entry.path());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_restored_tree_is_the_tree(first in prop::collection::vec(step(), 0..14), then in prop::collection::vec(step(), 0..5)) {
        let tree = tempfile::tempdir().unwrap();
        let mut kept = Kept::default();
        first.iter().for_each(|step| perform(tree.path(), step));
        let before = kept.scan(tree.path(), None);
        let restored = kept.restore(&before.manifest);
        prop_assert!(describe(restored.path()) == describe(tree.path()));

        let again = kept.scan(tree.path(), Some(&before));
        prop_assert!(again.manifest == before.manifest, "nothing changed");
        prop_assert!(kept.new.is_empty());

        // On the worker that restored it.
        let taken_over = Scan::restored(before.manifest.clone(), restored.path());
        let elsewhere = kept.scan(restored.path(), Some(&taken_over));
        prop_assert!(elsewhere.manifest == before.manifest, "nothing changed there either");

        then.iter().for_each(|step| perform(tree.path(), step));
        let after = kept.scan(tree.path(), Some(&before));
        let restored_after = kept.restore(&after.manifest);
        prop_assert!(describe(restored_after.path()) == describe(tree.path()));
        [tree.path(), restored.path(), restored_after.path()].into_iter().for_each(open_all);
    }
}

#[test]
fn a_small_change_has_few_new_bytes() {
    let tree = tempfile::tempdir().unwrap();
    let mut kept = Kept::default();
    let large: Vec<u8> = (0..3 * CHUNK_BYTES_MAX as u32).map(|index| (index / 1000) as u8).collect();
    fs::write(tree.path().join("large"), &large).unwrap();
    for number in 0..100 {
        fs::write(tree.path().join(format!("small-{number}")), format!("{number}").repeat(1000)).unwrap();
    }
    let first = kept.scan(tree.path(), None);
    assert_eq!(kept.new.len(), 4, "three chunks of the large file and one for all small ones");

    let file = fs::OpenOptions::new().write(true).open(tree.path().join("large")).unwrap();
    file.write_all_at(b"new", CHUNK_BYTES_MAX as u64 + 5).unwrap();
    fs::write(tree.path().join("small-7"), "changed").unwrap();
    let second = kept.scan(tree.path(), Some(&first));
    kept.new.sort_unstable();
    assert_eq!(kept.new, [7, CHUNK_BYTES_MAX]);
    assert_eq!(describe(kept.restore(&second.manifest).path()), describe(tree.path()));
}

#[test]
fn chunks_that_are_mostly_unused_are_made_anew() {
    let tree = tempfile::tempdir().unwrap();
    let mut kept = Kept::default();
    let content = |number: usize| vec![number as u8; 100_000];
    let name = |number: usize| tree.path().join(format!("{number:03}"));
    (0..120).for_each(|number| fs::write(name(number), content(number)).unwrap());
    let first = kept.scan(tree.path(), None);
    // One file of each chunk stays.
    (0..120).filter(|number| number % 10 != 0).for_each(|number| {
        fs::remove_file(name(number)).unwrap();
    });
    let second = kept.scan(tree.path(), Some(&first));
    assert_eq!(second.manifest.stored_bytes(), second.manifest.bytes());
    assert_eq!(describe(kept.restore(&second.manifest).path()), describe(tree.path()));
}

#[test]
fn what_is_no_file_is_left_out_and_never_waited_for() {
    let tree = tempfile::tempdir().unwrap();
    let pipe = tree.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.path().join("socket")).unwrap();
    let found = Kept::default().scan(tree.path(), None);
    assert_eq!(found.manifest.skipped, 2);
    assert_eq!(found.manifest.entries, []);
}

#[test]
fn a_link_leads_nowhere() {
    let away = tempfile::tempdir().unwrap();
    fs::write(away.path().join("secret"), "secret").unwrap();
    let tree = tempfile::tempdir().unwrap();
    symlink(away.path(), tree.path().join("folder")).unwrap();
    symlink(away.path().join("secret"), tree.path().join("file")).unwrap();
    let mut kept = Kept::default();
    let found = kept.scan(tree.path(), None);
    assert!(kept.chunks.is_empty());
    assert!(found.manifest.entries.iter().all(|entry| matches!(entry.kind, Kind::Symlink { .. })));
}

#[test]
fn a_workspace_beyond_its_limits_is_not_kept() {
    let tree = tempfile::tempdir().unwrap();
    (0..5).for_each(|number| fs::write(tree.path().join(format!("{number}")), "12345").unwrap());
    for limits in [ScanLimits { files_max: 4, ..LIMITS }, ScanLimits { bytes_max: 24, ..LIMITS }] {
        let refused = scan(tree.path(), None, limits, &mut Kept::default());
        assert!(matches!(refused, Err(ScanError::TooLarge(_))), "{refused:?}");
    }
    let deep = (0..260).fold(tree.path().to_owned(), |path, _| path.join("d"));
    fs::create_dir_all(deep).unwrap();
    assert!(matches!(scan(tree.path(), None, LIMITS, &mut Kept::default()), Err(ScanError::TooDeep)));
}

#[test]
fn a_scan_that_nobody_waits_for_ends() {
    let tree = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..3 * CHUNK_BYTES_MAX as u32).map(|index| (index / 1000) as u8).collect();
    fs::write(tree.path().join("large"), &large).unwrap();
    let mut kept = Kept { room: Some(1), ..Kept::default() };
    assert!(matches!(scan(tree.path(), None, LIMITS, &mut kept), Err(ScanError::Cancelled)));
    assert_eq!(kept.new.len(), 1);
}

#[test]
fn chunks_that_do_not_come_are_an_error() {
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("file"), "content").unwrap();
    let found = Kept::default().scan(tree.path(), None);
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(restore(&found.manifest, empty.path(), || None), Err(RestoreError::Chunks)));
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(restore(&found.manifest, empty.path(), || Some(vec![1])), Err(RestoreError::Chunks)));
}
