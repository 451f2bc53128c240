//! What a workspace snapshot holds: a manifest of the session's files, whose content lies in chunks named by their hash.
//!
//! A file of more than [`PACKED_BYTES_MAX`] is cut at multiples of [`CHUNK_BYTES_MAX`]; smaller ones are put into
//! chunks together, because an object store asks more for a request than for its bytes. A file that did not change keeps
//! the place that it had, so a snapshot after a small change has few new chunks. Content-defined cutting would also
//! survive an insertion at the front of a large file; what tools write is appended to, replaced whole, or changed
//! in place, and there a fixed cut does as well.
//!
//! Who reads a manifest got it from somewhere else: [`Manifest::read`] lets none pass whose paths lead anywhere but
//! below the workspace, through folders that the manifest itself names.

use std::cmp::Ordering;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The version of the manifest that this build writes and reads.
pub const MANIFEST_FORMAT: u16 = 1;
/// The most bytes of one chunk.
pub const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Files up to this size share chunks.
pub const PACKED_BYTES_MAX: u64 = 128 << 10;
/// The most bytes of a manifest.
pub const MANIFEST_BYTES_MAX: usize = 32 << 20;
/// What the kernel takes as one path, and as the target of a link.
const PATH_BYTES_MAX: usize = 4095;
/// Folders nested deeper no snapshot holds.
pub const DEPTH_MAX: usize = 256;

/// The SHA-256 of some bytes, in 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContentHash(String);

/// Hashes content that comes in pieces.
#[derive(Clone, Debug, Default)]
pub struct ContentHasher(Sha256);

impl ContentHasher {
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The hash of all pieces.
    pub fn finish(self) -> ContentHash {
        ContentHash::spell(&self.0.finalize())
    }
}

impl ContentHash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::spell(&Sha256::digest(bytes))
    }

    fn spell(bytes: &[u8]) -> Self {
        let mut digits = String::with_capacity(64);
        for byte in bytes {
            write!(digits, "{byte:02x}").expect("writing to a string does not fail");
        }
        Self(digits)
    }

    /// The hash that `text` spells, if it does.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        digits.then(|| Self(text.to_owned()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContentHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a hash is 64 lower-case hexadecimal digits")
    }
}

impl From<ContentHash> for String {
    fn from(hash: ContentHash) -> Self {
        hash.0
    }
}

/// A workspace at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u16,
    /// Each once, in the order in which the entries first need them.
    pub chunks: Vec<Chunk>,
    /// In the order of their paths, a folder before what it holds.
    pub entries: Vec<Entry>,
    /// Sockets, pipes and devices, which no snapshot holds.
    pub skipped: u64,
}

/// Some bytes that are kept elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    pub hash: ContentHash,
    pub bytes: u32,
}

/// A file, folder or link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Below the workspace, its parts separated by `/`.
    #[serde(with = "escaped")]
    pub path: Vec<u8>,
    #[serde(flatten)]
    pub kind: Kind,
}

/// What an entry is. Modes are the nine bits of permissions: the others mean nothing in a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Kind {
    Folder {
        mode: u32,
    },
    File {
        mode: u32,
        /// Since the Unix epoch: build tools compare it.
        modified_ns: i64,
        /// The content from the first byte to the last.
        content: Vec<Extent>,
    },
    /// Another name of the file at this index of the entries, which comes first.
    HardLink {
        entry: u32,
    },
    Symlink {
        #[serde(with = "escaped")]
        target: Vec<u8>,
    },
}

/// A part of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Option<u32>, u32, u64)", into = "(Option<u32>, u32, u64)")]
pub enum Extent {
    /// Bytes of the chunk at this index.
    Data { chunk: u32, offset: u32, bytes: u32 },
    /// Zeros that are kept nowhere.
    Hole { bytes: u64 },
}

impl Extent {
    /// How long the part is.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Data { bytes, .. } => u64::from(*bytes),
            Self::Hole { bytes } => *bytes,
        }
    }
}

impl From<(Option<u32>, u32, u64)> for Extent {
    fn from((chunk, offset, bytes): (Option<u32>, u32, u64)) -> Self {
        match chunk {
            // A length that is too long stays so, and is refused with the manifest.
            Some(chunk) => Self::Data { chunk, offset, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) },
            None => Self::Hole { bytes },
        }
    }
}

impl From<Extent> for (Option<u32>, u32, u64) {
    fn from(extent: Extent) -> Self {
        match extent {
            Extent::Data { chunk, offset, bytes } => (Some(chunk), offset, u64::from(bytes)),
            Extent::Hole { bytes } => (None, 0, bytes),
        }
    }
}

/// Why a manifest is not taken.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("the manifest has {0} bytes; at most {MANIFEST_BYTES_MAX} are taken")]
    TooLarge(usize),
    #[error("the manifest cannot be read: {0}")]
    Unreadable(serde_json::Error),
    #[error("the manifest has format {0}; this build knows format {MANIFEST_FORMAT}")]
    Format(u16),
    #[error("entry {entry} of the manifest: {problem}")]
    Entry { entry: usize, problem: &'static str },
    #[error("chunk {0} of the manifest has a length that no chunk has")]
    Chunk(usize),
}

impl Manifest {
    /// The manifest as it is kept. Equal trees with equal places of their content give equal bytes.
    pub fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest is plain data")
    }

    /// The manifest that `bytes` spell, if it is one that can be restored.
    pub fn read(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge(bytes.len()));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(ManifestError::Unreadable)?;
        if manifest.format != MANIFEST_FORMAT {
            return Err(ManifestError::Format(manifest.format));
        }
        manifest.check()?;
        Ok(manifest)
    }

    /// Bytes of all files together, holes aside.
    pub fn bytes(&self) -> u64 {
        let data = |extent: &Extent| matches!(extent, Extent::Data { .. }).then_some(extent.bytes());
        self.extents().filter_map(data).fold(0, u64::saturating_add)
    }

    /// Bytes of all chunks together, also of what no file uses any more.
    pub fn stored_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum()
    }

    /// The chunks in the order in which restoring needs them, by index; one that is needed again later comes again.
    pub fn uses(&self) -> impl Iterator<Item = u32> + '_ {
        let mut last = None;
        self.extents().filter_map(move |extent| match extent {
            Extent::Data { chunk, .. } if last != Some(*chunk) => {
                last = Some(*chunk);
                last
            }
            _ => None,
        })
    }

    fn extents(&self) -> impl Iterator<Item = &Extent> {
        self.entries.iter().flat_map(|entry| match &entry.kind {
            Kind::File { content, .. } => content.as_slice(),
            _ => &[],
        })
    }

    fn check(&self) -> Result<(), ManifestError> {
        for (index, chunk) in self.chunks.iter().enumerate() {
            if chunk.bytes == 0 || chunk.bytes as usize > CHUNK_BYTES_MAX {
                return Err(ManifestError::Chunk(index));
            }
        }
        let mut folders: Vec<&[u8]> = Vec::new();
        let mut before: Option<&[u8]> = None;
        for (index, entry) in self.entries.iter().enumerate() {
            let refuse = |problem| Err(ManifestError::Entry { entry: index, problem });
            let path = entry.path.as_slice();
            if !is_inside(path) {
                return refuse("its path does not lead below the workspace");
            }
            if before.is_some_and(|before| compare(before, path) != Ordering::Less) {
                return refuse("its path is out of order");
            }
            before = Some(path);
            let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |slash| &path[..slash]);
            while folders.last().is_some_and(|folder| *folder != parent) {
                folders.pop();
            }
            if folders.is_empty() && !parent.is_empty() {
                return refuse("it lies in no folder of the manifest");
            }
            if let Err(problem) = self.check_kind(index, &entry.kind) {
                return refuse(problem);
            }
            if matches!(entry.kind, Kind::Folder { .. }) {
                folders.push(path);
            }
        }
        Ok(())
    }

    fn check_kind(&self, index: usize, kind: &Kind) -> Result<(), &'static str> {
        match kind {
            Kind::Folder { mode } | Kind::File { mode, .. } if *mode > 0o777 => Err("its mode has foreign bits"),
            Kind::Folder { .. } => Ok(()),
            Kind::File { content, .. } => {
                let mut size = Some(0_u64);
                for extent in content {
                    if extent.bytes() == 0 || !self.holds(extent) {
                        return Err("its content lies outside the chunks");
                    }
                    size = size.and_then(|size| size.checked_add(extent.bytes()));
                }
                match size {
                    Some(size) if i64::try_from(size).is_ok() => Ok(()),
                    _ => Err("it is larger than any file"),
                }
            }
            Kind::HardLink { entry } => {
                let earlier = self.entries[..index].get(*entry as usize).map(|entry| &entry.kind);
                if matches!(earlier, Some(Kind::File { .. })) { Ok(()) } else { Err("it names no file before it") }
            }
            Kind::Symlink { target } => {
                let is_target = !target.is_empty() && target.len() <= PATH_BYTES_MAX && !target.contains(&0);
                if is_target { Ok(()) } else { Err("its target is no path") }
            }
        }
    }

    fn holds(&self, extent: &Extent) -> bool {
        let Extent::Data { chunk, offset, bytes } = *extent else { return true };
        let end = offset.checked_add(bytes);
        self.chunks.get(chunk as usize).is_some_and(|chunk| end.is_some_and(|end| end <= chunk.bytes))
    }
}

/// The order of a manifest: part by part, so that a folder comes right before what it holds.
pub fn compare(one: &[u8], other: &[u8]) -> Ordering {
    let parts = |path| <[u8]>::split(path, |byte| *byte == b'/');
    parts(one).cmp(parts(other))
}

fn is_inside(path: &[u8]) -> bool {
    let parts = || path.split(|byte| *byte == b'/');
    path.len() <= PATH_BYTES_MAX
        && !path.contains(&0)
        && parts().count() <= DEPTH_MAX
        && parts().all(|part| !matches!(part, b"" | b"." | b".."))
}

/// Names are bytes and JSON is text: what is no UTF-8 is spelled `%` and two digits, and so is `%` itself.
mod escaped {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use std::fmt::Write as _;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len());
        for part in bytes.utf8_chunks() {
            text.push_str(&part.valid().replace('%', "%25"));
            for byte in part.invalid() {
                write!(text, "%{byte:02x}").expect("writing to a string does not fail");
            }
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut parts = text.split('%');
        let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
        for part in parts {
            let byte = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
            bytes.push(byte.ok_or_else(|| D::Error::custom("% without two hexadecimal digits"))?);
            bytes.extend_from_slice(&part.as_bytes()[2..]);
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(entries: Vec<Entry>) -> Manifest {
        let chunk = Chunk { hash: ContentHash::of(b"x"), bytes: 10 };
        Manifest { format: MANIFEST_FORMAT, chunks: vec![chunk], entries, skipped: 0 }
    }

    fn folder(path: &str) -> Entry {
        Entry { path: path.into(), kind: Kind::Folder { mode: 0o755 } }
    }

    fn link(path: &str) -> Entry {
        Entry { path: path.into(), kind: Kind::Symlink { target: b"/".to_vec() } }
    }

    fn file(path: &str, content: Vec<Extent>) -> Entry {
        Entry { path: path.into(), kind: Kind::File { mode: 0o644, modified_ns: -1, content } }
    }

    fn part(chunk: u32, offset: u32, bytes: u32) -> Vec<Extent> {
        vec![Extent::Data { chunk, offset, bytes }]
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written() {
        let entries = vec![
            Entry { path: b"%41\xff\n\"".to_vec(), kind: Kind::Folder { mode: 0 } },
            file("a", vec![Extent::Hole { bytes: 1 << 40 }, Extent::Data { chunk: 0, offset: 2, bytes: 8 }]),
            Entry { path: b"b".to_vec(), kind: Kind::HardLink { entry: 1 } },
            Entry { path: b"c".to_vec(), kind: Kind::Symlink { target: b"../%\xf0".to_vec() } },
        ];
        let written = manifest(entries).write();
        assert_eq!(Manifest::read(&written).unwrap().write(), written);
    }

    #[test]
    fn what_would_lead_out_is_refused() {
        let with = |name: &str| vec![folder("a"), link(name)];
        for (entries, problem) in [
            (vec![folder("..")], "below the workspace"),
            (vec![folder("a"), folder("a/../b")], "below the workspace"),
            (vec![folder("/etc")], "below the workspace"),
            (vec![folder("a//b")], "below the workspace"),
            (vec![folder("a\0b")], "below the workspace"),
            (vec![folder("b"), folder("a")], "out of order"),
            (vec![folder("a"), folder("a")], "out of order"),
            (vec![folder("a"), folder("b"), folder("a/c")], "out of order"),
            (vec![link("a"), folder("a/b")], "in no folder"),
            (vec![folder("a/b")], "in no folder"),
            (vec![folder("a"), file("a.b", vec![]), folder("a.b/c")], "in no folder"),
            (vec![file("a", part(1, 0, 1))], "outside the chunks"),
            (vec![file("a", part(0, 5, 6))], "outside the chunks"),
            (vec![file("a", part(0, u32::MAX, 2))], "outside the chunks"),
            (vec![file("a", part(0, 0, 0))], "outside the chunks"),
            (vec![file("a", vec![Extent::Hole { bytes: u64::MAX }])], "larger than any file"),
            (vec![Entry { path: b"a".to_vec(), kind: Kind::Folder { mode: 0o4755 } }], "foreign bits"),
            (vec![folder("a"), Entry { path: b"b".to_vec(), kind: Kind::HardLink { entry: 0 } }], "no file before"),
            (vec![Entry { path: b"b".to_vec(), kind: Kind::HardLink { entry: 0 } }], "no file before"),
        ] {
            let refused = Manifest::read(&manifest(entries).write()).unwrap_err().to_string();
            assert!(refused.contains(problem), "{refused}");
        }
        assert!(Manifest::read(&manifest(with("a/b")).write()).is_ok());
        let newer = Manifest { format: 2, ..manifest(vec![]) };
        assert!(matches!(Manifest::read(&newer.write()), Err(ManifestError::Format(2))));
    }

    #[test]
    fn paths_are_ordered_part_by_part() {
        assert_eq!(compare(b"a/z", b"a.b"), Ordering::Less);
        assert_eq!(compare(b"a", b"a/b"), Ordering::Less);
        assert_eq!(compare(b"a/b", b"a/b"), Ordering::Equal);
    }

    #[test]
    fn chunks_are_needed_in_the_order_of_the_files() {
        let chunk = |text: &[u8]| Chunk { hash: ContentHash::of(text), bytes: 4 };
        let entries = vec![
            file("a", part(0, 0, 2)),
            file("b", part(0, 2, 2)),
            file("c", [part(1, 0, 4), vec![Extent::Hole { bytes: 9 }]].concat()),
            file("d", part(0, 0, 1)),
        ];
        let manifest = Manifest { chunks: vec![chunk(b"0"), chunk(b"1")], ..manifest(entries) };
        assert_eq!(manifest.uses().collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!((manifest.bytes(), manifest.stored_bytes()), (9, 8));
    }
}
