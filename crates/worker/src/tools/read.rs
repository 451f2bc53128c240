//! The `read` tool: exact text, a range of lines of it, or an image or PDF as a content block.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde_json::json;
use std::fs::File;
use std::io::Read;

use super::files::ToolError;
use super::output;
use super::workspace::{Inside, Workspace};
use crate::sandbox::protocol::ToolOutcome;

/// The cap on text, of the file or of the selected lines.
pub(crate) const TEXT_BYTES_MAX: u64 = 256 * 1024;
/// 5 MiB of base64, in bytes of the image itself.
const IMAGE_BYTES_MAX: u64 = 5 * 1024 * 1024 / 4 * 3;
const PDF_BYTES_MAX: u64 = 20 * 1024 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;

#[derive(Deserialize)]
struct Input {
    file_path: String,
    view_range: Option<Vec<i64>>,
}

pub(crate) fn run(workspace: &Workspace, input: serde_json::Value) -> Result<ToolOutcome, ToolError> {
    let Input { file_path, view_range } = ToolError::parse("read", input)?;
    let range = match view_range.as_deref() {
        None | Some([]) => None,
        Some([first, last]) => Some((*first, *last)),
        Some(_) => return Err(ToolError::new("read", "view_range must be [start_line, end_line]")),
    };
    let path = ToolError::resolve("read", workspace, &file_path)?;
    let (file, size) = open_regular("read", workspace, &path, &file_path)?;
    if let Some(media) = Media::of(&path) {
        if range.is_some() {
            return Err(ToolError::new("read", "view_range is not supported for image/PDF files"));
        }
        return media.read(file, size, &file_path);
    }
    let bytes = match range {
        Some(range) => lines(file, range, &file_path)?,
        None if size > TEXT_BYTES_MAX => {
            return Err(ToolError::new(
                "read",
                format!(
                    "{file_path} is {size} bytes, exceeds {TEXT_BYTES_MAX}-byte limit. Use the view_range parameter \
                 to read specific line ranges, e.g. view_range: [1, 500]."
                ),
            ));
        }
        None => read_at_most("read", file, TEXT_BYTES_MAX, &file_path)?,
    };
    let text = String::from_utf8(bytes).map_err(|_| {
        ToolError::new(
            "read",
            format!("{file_path}: not valid UTF-8 text (binary files are only supported for image/PDF extensions)"),
        )
    })?;
    let outcome = ToolOutcome::text(output::printable(&text));
    Ok(output::shorten(workspace, "read", Some(path.display()), outcome))
}

/// Opens a file that is certain not to block: no pipe, socket or device.
pub(crate) fn open_regular(
    tool: &'static str,
    workspace: &Workspace,
    path: &Inside,
    requested: &str,
) -> Result<(File, u64), ToolError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = workspace.open(path, flags, Mode::empty()).map_err(|error| ToolError::path(tool, requested, error))?;
    let file = File::from(file);
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok((file, metadata.len())),
        Ok(metadata) if metadata.is_dir() => Err(ToolError::new(tool, format!("{requested}: is a directory"))),
        Ok(_) => Err(ToolError::new(tool, format!("{requested}: not a regular file"))),
        Err(error) => Err(ToolError::path(tool, requested, error.into())),
    }
}

/// Reads a file that was small when its size was asked; one that grew since is an error.
pub(crate) fn read_at_most(
    tool: &'static str,
    file: File,
    bytes_max: u64,
    requested: &str,
) -> Result<Vec<u8>, ToolError> {
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| ToolError::path(tool, requested, error.into()))?;
    if bytes.len() as u64 > bytes_max {
        return Err(ToolError::new(tool, format!("{requested} exceeds {bytes_max}-byte limit")));
    }
    Ok(bytes)
}

/// The lines `first..=last`, counted from 1, without the newline that ends the last of them. Reads no further.
fn lines(mut file: File, (first, last): (i64, i64), requested: &str) -> Result<Vec<u8>, ToolError> {
    let first = first.max(1);
    let mut selection: Vec<u8> = Vec::new();
    let mut line = 1;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let length = file.read(&mut chunk).map_err(|error| ToolError::path("read", requested, error.into()))?;
        if length == 0 {
            return Ok(selection);
        }
        for piece in chunk[..length].split_inclusive(|byte| *byte == b'\n') {
            if last > 0 && line > last {
                return Ok(selection);
            }
            let ends_line = piece.ends_with(b"\n");
            if line >= first {
                let keeps_newline = !(ends_line && line == last);
                let kept = piece.len() - usize::from(!keeps_newline);
                selection.extend_from_slice(&piece[..kept]);
            }
            if selection.len() as u64 > TEXT_BYTES_MAX {
                return Err(ToolError::new(
                    "read",
                    format!(
                        "{requested}: the selected lines exceed the {TEXT_BYTES_MAX}-byte limit. Select fewer lines."
                    ),
                ));
            }
            line += i64::from(ends_line);
        }
    }
}

/// Files that the model sees instead of reading.
#[derive(Clone, Copy)]
struct Media {
    media_type: &'static str,
    bytes_max: u64,
}

impl Media {
    fn of(path: &Inside) -> Option<Self> {
        let extension = path.as_path().extension()?.to_str()?.to_ascii_lowercase();
        let (media_type, bytes_max) = match extension.as_str() {
            "png" => ("image/png", IMAGE_BYTES_MAX),
            "jpg" | "jpeg" => ("image/jpeg", IMAGE_BYTES_MAX),
            "gif" => ("image/gif", IMAGE_BYTES_MAX),
            "webp" => ("image/webp", IMAGE_BYTES_MAX),
            "pdf" => ("application/pdf", PDF_BYTES_MAX),
            _ => return None,
        };
        Some(Self { media_type, bytes_max })
    }

    fn read(self, file: File, size: u64, requested: &str) -> Result<ToolOutcome, ToolError> {
        if size > self.bytes_max {
            return Err(ToolError::new(
                "read",
                format!("{requested} is {size} bytes, exceeds {}-byte limit for image/PDF files.", self.bytes_max),
            ));
        }
        let bytes = read_at_most("read", file, self.bytes_max, requested)?;
        let kind = if self.media_type == "application/pdf" { "document" } else { "image" };
        let source = json!({"type": "base64", "media_type": self.media_type, "data": STANDARD.encode(bytes)});
        Ok(ToolOutcome { content: vec![json!({"type": kind, "source": source})], is_error: false })
    }
}
