//! The data folder: made for its owner alone, and the place of the key that was made.
//!
//! The lock on the folder is the store's.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::system::draw_key;
use crate::secret::Secret;

/// The file that holds the API key that `serve` made.
const KEY_FILE: &str = "api-key";

/// What every key that `serve` makes starts with.
const KEY_PREFIX: &str = "sk-agent-";

/// Makes the folder, readable by its owner alone, unless it is there.
pub(super) fn create(folder: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).with_context(|| {
        format!("cannot make the data folder {}: set AGENT_DATA_DIR to a folder that can be written", folder.display())
    })
}

/// Where the key that was made is kept.
pub(super) fn key_path(folder: &Path) -> PathBuf {
    folder.join(KEY_FILE)
}

/// The key of an earlier start, if there was one.
pub(super) fn read_key(folder: &Path) -> anyhow::Result<Option<Secret>> {
    let path = key_path(folder);
    match fs::read_to_string(&path) {
        Ok(text) => {
            let key = Secret::new(text);
            anyhow::ensure!(!key.is_empty(), "{} is empty: delete it, and a new key is made", path.display());
            Ok(Some(key))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read the key in {}", path.display())),
    }
}

/// The key of an earlier start, or a new one that the next start will find.
pub(super) fn read_or_make_key(folder: &Path) -> anyhow::Result<Secret> {
    if let Some(key) = read_key(folder)? {
        return Ok(key);
    }
    let key = draw_key(KEY_PREFIX);
    let path = key_path(folder);
    // Written whole beside its place first: a key that is half there would lock everybody out.
    let unfinished = folder.join(format!("{KEY_FILE}.new"));
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        writeln!(file, "{key}")?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)
    };
    write().with_context(|| format!("cannot keep the key in {}", path.display()))?;
    Ok(Secret::new(key))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/data");
        create(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(read_key(&folder).unwrap().is_none());
        let key = read_or_make_key(&folder).unwrap();
        assert!(key.expose().starts_with(KEY_PREFIX));
        assert_eq!(read_or_make_key(&folder).unwrap(), key);
        assert_eq!(fs::metadata(key_path(&folder)).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(key_path(&folder), "\n").unwrap();
        assert!(read_key(&folder).is_err());
    }
}
