//! What a session is to be given: the bodies of resources. Rules of api.md 2.5.

use engine::port::resources::{RESOURCES_MAX, in_the_way};
use serde_json::Value;
use session::id::FileId;

use super::error::{ApiError, Kind};
use super::fields::Fields;
use super::path;

/// Where every file is mounted.
const UPLOADS: &str = "/mnt/session/uploads";
/// What a name may hold on every file system.
const NAME_BYTES_MAX: usize = 255;
const PATH_BYTES_MAX: usize = 1_024;

/// A file to be mounted.
pub(super) struct FileParams {
    pub(super) file_id: FileId,
    pub(super) mount_path: String,
    /// Where it stands in the request, for messages.
    pub(super) path: String,
}

impl FileParams {
    /// Reads the object at `path`; empty for the body itself.
    pub(super) fn read(mut object: Fields, path: &str) -> Result<Self, ApiError> {
        let kind = object.required_string("type")?;
        match kind.as_str() {
            "file" => {}
            "github_repository" => {
                return Err(ApiError::unsupported(&object.at("type"), "repositories cannot be mounted yet; clone one"));
            }
            "memory_store" => {
                return Err(ApiError::unsupported(&object.at("type"), "memory stores do not exist yet"));
            }
            _ => return Err(ApiError::invalid(format!("{}: expected file", object.at("type")))),
        }
        let file_id = object.required_string("file_id")?;
        let file_id: FileId =
            path::parse(&file_id, "file").map_err(|_| unknown_file(&object.at("file_id"), &file_id))?;
        let at = object.at("mount_path");
        let mount_path = match object.string("mount_path")? {
            Some(asked) => mount_path(&asked, &at)?,
            None => format!("{UPLOADS}/{file_id}"),
        };
        object.finish()?;
        Ok(Self { file_id, mount_path, path: path.to_owned() })
    }
}

/// Reads the `resources` of a new session.
pub(super) fn read_all(items: Vec<Value>) -> Result<Vec<FileParams>, ApiError> {
    if items.len() > RESOURCES_MAX {
        return Err(ApiError::invalid(format!("resources: at most {RESOURCES_MAX} files are allowed in a session")));
    }
    let mut files: Vec<FileParams> = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let path = format!("resources[{index}]");
        let file = FileParams::read(Fields::of(item, path.as_str())?, &path)?;
        if let Some(taken) = in_the_way(&file.mount_path, files.iter().map(|file| file.mount_path.as_str())) {
            return Err(refuse_taken(&format!("{path}.mount_path"), &file.mount_path, taken));
        }
        files.push(file);
    }
    Ok(files)
}

/// The refusal of a file that nobody uploaded.
pub(super) fn unknown_file(field: &str, id: &str) -> ApiError {
    let id: String = id.chars().take(128).collect();
    ApiError::new(Kind::NotFound, format!("{field}: file {id:?} does not exist; upload it first"))
}

/// The refusal of a path because of another one.
pub(super) fn refuse_taken(field: &str, path: &str, taken: &str) -> ApiError {
    ApiError::invalid(if path == taken {
        format!("{field}: {path} is mounted already; choose another path or remove that resource")
    } else {
        format!("{field}: {path} and {taken} cannot both be files; choose another path")
    })
}

/// Where a file asked to be at `asked` is mounted. A path that does not lie below the folder is put there.
fn mount_path(asked: &str, at: &str) -> Result<String, ApiError> {
    let refuse = |why: &str| Err(ApiError::invalid(format!("{at}: {why}")));
    let below = match asked.strip_prefix(UPLOADS) {
        Some(below) if below.is_empty() || below.starts_with('/') => below,
        _ => asked,
    };
    if below.ends_with('/') || below.is_empty() {
        return refuse("expected the path of a file, such as /data.csv, and not of a folder");
    }
    let names: Vec<&str> = below.split('/').filter(|name| !name.is_empty()).collect();
    if names.iter().any(|name| matches!(*name, "." | "..")) {
        return refuse("must hold no . or .. between slashes");
    }
    if names.iter().any(|name| name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control)) {
        return refuse("a name between slashes may have at most 255 bytes and no control characters");
    }
    let path = format!("{UPLOADS}/{}", names.join("/"));
    if path.len() > PATH_BYTES_MAX {
        return refuse("at most 1024 bytes are allowed, with /mnt/session/uploads before it");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_rooted_under_uploads() {
        for (asked, expected) in [
            ("/data.csv", "data.csv"),
            ("data.csv", "data.csv"),
            ("/a//b/c d.txt", "a/b/c d.txt"),
            ("/mnt/session/uploads/data.csv", "data.csv"),
            ("/mnt/session/uploads//a", "a"),
            ("/mnt/session/uploadsdata", "mnt/session/uploadsdata"),
            ("/etc/passwd", "etc/passwd"),
            ("/.hidden/...", ".hidden/..."),
        ] {
            assert_eq!(mount_path(asked, "mount_path").unwrap(), format!("{UPLOADS}/{expected}"), "{asked}");
        }
    }

    #[test]
    fn a_path_that_names_no_file_is_refused() {
        let long = format!("/{}", "x".repeat(256));
        let deep = "/xxxxxxx".repeat(130);
        for asked in [
            "",
            "/",
            "/folder/",
            "/mnt/session/uploads",
            "/mnt/session/uploads/",
            "/../x",
            "/a/../b",
            "/./a",
            "/a\0b",
            "/a\nb",
            &long,
            &deep,
        ] {
            let refused = mount_path(asked, "resources[0].mount_path").unwrap_err();
            assert!(refused.message.starts_with("resources[0].mount_path: "), "{asked:?}: {}", refused.message);
        }
    }
}
