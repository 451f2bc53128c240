//! Reads an upload: a multipart body of which one part, of any size that is allowed, streams into the blobs.
//!
//! Only what one piece holds is in memory. Nothing is kept until the whole body was read and found right.

use std::time::Duration;

use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest as _, Multipart, Request};
use axum::http::{HeaderMap, header};
use engine::port::{BlobHash, BlobWriter, Blobs};
use serde_json::json;

use super::Service;
use super::error::{ApiError, Kind};

/// The largest file, in bytes.
pub(super) const FILE_BYTES_MAX: u64 = 500 * 1024 * 1024;

/// Room for boundaries, headers and the small fields.
const FRAME_BYTES_MAX: u64 = 64 * 1024;

/// The longest value of a field beside the file.
const FIELD_BYTES_MAX: usize = 64;

const NAME_CHARACTERS_MAX: usize = 255;

/// An hour and ninety days.
const EXPIRES_IN_SECONDS: std::ops::RangeInclusive<u64> = 3_600..=7_776_000;

/// A body that was read whole.
pub(super) struct Upload {
    pub(super) filename: String,
    pub(super) mime_type: String,
    pub(super) expires_in_seconds: Option<u64>,
    /// The content, which is not kept yet.
    pub(super) content: Box<dyn BlobWriter>,
}

impl Upload {
    pub(super) async fn read(request: Request, service: &Service, blobs: &dyn Blobs) -> Result<Self, ApiError> {
        refuse_headers(request.headers())?;
        let mut multipart = Multipart::from_request(request, &()).await.map_err(|_| {
            ApiError::invalid("Content-Type: expected multipart/form-data with a boundary and a part named file")
        })?;
        let pause = Duration::from_millis(service.limits.body_pause_ms);
        let (mut file, mut expires_in_seconds) = (None, None);
        while let Some(field) = in_time(pause, multipart.next_field()).await? {
            match field.name() {
                Some("file") if file.is_none() => file = Some(read_file(field, pause, blobs).await?),
                Some("expires_in_seconds") if expires_in_seconds.is_none() => {
                    expires_in_seconds = Some(read_seconds(field, pause).await?);
                }
                Some(name @ ("file" | "expires_in_seconds")) => {
                    return Err(ApiError::invalid(format!("{name}: given more than once")));
                }
                name => {
                    let shown: String = name.unwrap_or_default().chars().take(64).collect();
                    return Err(ApiError::invalid(format!(
                        "{shown}: unknown field; expected file, expires_in_seconds"
                    )));
                }
            }
        }
        let (filename, mime_type, content) = file.ok_or_else(|| {
            ApiError::invalid("file: required; send the file as the part named file of a multipart/form-data body")
        })?;
        Ok(Self { filename, mime_type, expires_in_seconds, content })
    }

    /// What it asks for, in one spelling: the bytes of the body differ with every try, for its boundary does.
    pub(super) fn meaning(&self, content: &BlobHash) -> String {
        json!([self.filename, self.mime_type, self.expires_in_seconds, content.as_str()]).to_string()
    }
}

/// What can be refused before the body is looked at.
fn refuse_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(
            ApiError::invalid("Content-Encoding: an upload is sent as it is").code("request_body_encoding_unsupported")
        );
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > FILE_BYTES_MAX + FRAME_BYTES_MAX) {
        return Err(too_large());
    }
    Ok(())
}

async fn read_file(
    mut field: Field<'_>,
    pause: Duration,
    blobs: &dyn Blobs,
) -> Result<(String, String, Box<dyn BlobWriter>), ApiError> {
    let mime_type = mime_type(field.content_type());
    let filename = filename(field.file_name(), &mime_type)?;
    let mut content = blobs.begin().await?;
    let mut bytes = 0;
    while let Some(piece) = in_time(pause, field.chunk()).await? {
        bytes += piece.len() as u64;
        if bytes > FILE_BYTES_MAX {
            return Err(too_large());
        }
        content.write(piece).await?;
    }
    Ok((filename, mime_type, content))
}

async fn read_seconds(mut field: Field<'_>, pause: Duration) -> Result<u64, ApiError> {
    let mut value = Vec::new();
    while let Some(piece) = in_time(pause, field.chunk()).await? {
        value.extend_from_slice(&piece);
        if value.len() > FIELD_BYTES_MAX {
            break;
        }
    }
    let seconds = std::str::from_utf8(&value).ok().and_then(|text| text.trim().parse().ok());
    seconds.filter(|seconds| EXPIRES_IN_SECONDS.contains(seconds)).ok_or_else(|| {
        let (min, max) = (EXPIRES_IN_SECONDS.start(), EXPIRES_IN_SECONDS.end());
        ApiError::invalid(format!("expires_in_seconds: expected a whole number from {min} to {max}"))
    })
}

/// The last component of the name that the client gave; a name that says nothing becomes `unnamed`.
fn filename(given: Option<&str>, mime_type: &str) -> Result<String, ApiError> {
    let name = given.unwrap_or_default().rsplit(['/', '\\']).next().unwrap_or_default().trim();
    if name.chars().any(char::is_control) {
        return Err(ApiError::invalid("file: the file's name holds a control character; rename it"));
    }
    if name.chars().count() > NAME_CHARACTERS_MAX {
        return Err(ApiError::invalid(format!(
            "file: the file's name is longer than {NAME_CHARACTERS_MAX} characters"
        )));
    }
    Ok(match name {
        "" | "." | ".." => format!("unnamed{}", extension(mime_type)),
        name => name.to_owned(),
    })
}

fn mime_type(given: Option<&str>) -> String {
    let given = given.map(str::trim).filter(|given| {
        given.len() <= NAME_CHARACTERS_MAX
            && given.contains('/')
            && given.bytes().all(|byte| (b' '..0x7f).contains(&byte))
    });
    given.unwrap_or("application/octet-stream").to_owned()
}

/// How files of some types are usually called; the first name of a type is the one that it is given.
const EXTENSIONS: [(&str, &str); 14] = [
    (".txt", "text/plain"),
    (".log", "text/plain"),
    (".csv", "text/csv"),
    (".html", "text/html"),
    (".htm", "text/html"),
    (".md", "text/markdown"),
    (".json", "application/json"),
    (".pdf", "application/pdf"),
    (".zip", "application/zip"),
    (".png", "image/png"),
    (".jpg", "image/jpeg"),
    (".jpeg", "image/jpeg"),
    (".gif", "image/gif"),
    (".webp", "image/webp"),
];

/// What a file of this type is usually called.
fn extension(mime_type: &str) -> &'static str {
    let mime_type = mime_type.split(';').next().unwrap_or_default().trim();
    EXTENSIONS.iter().find(|(_, known)| *known == mime_type).map_or("", |(extension, _)| extension)
}

/// What a file that is called so usually is.
pub(super) fn mime_type_of(filename: &str) -> &'static str {
    let lower = filename.to_ascii_lowercase();
    let known = EXTENSIONS.iter().find(|(extension, _)| lower.ends_with(extension));
    known.map_or("application/octet-stream", |(_, mime_type)| mime_type)
}

async fn in_time<T>(pause: Duration, read: impl Future<Output = Result<T, MultipartError>>) -> Result<T, ApiError> {
    let read = tokio::time::timeout(pause, read).await.map_err(|_| {
        ApiError::invalid("the body did not arrive in time; send it again").code("request_body_timeout")
    })?;
    read.map_err(|error| ApiError::invalid(format!("the body is not valid multipart/form-data: {}", error.body_text())))
}

fn too_large() -> ApiError {
    ApiError::new(Kind::TooLarge, format!("file: larger than {FILE_BYTES_MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_its_last_component() {
        for (given, expected) in [
            (Some("data.csv"), "data.csv"),
            (Some("../../etc/passwd"), "passwd"),
            (Some("C:\\Users\\me\\notes ü.txt"), "notes ü.txt"),
            (Some("folder/"), "unnamed.csv"),
            (Some(".."), "unnamed.csv"),
            (Some("  "), "unnamed.csv"),
            (None, "unnamed.csv"),
        ] {
            assert_eq!(filename(given, "text/csv; charset=utf-8").unwrap(), expected, "{given:?}");
        }
        assert!(filename(Some("a\u{0}b"), "").is_err() && filename(Some("a\nb"), "").is_err());
        assert!(filename(Some(&"x".repeat(256)), "").is_err() && filename(Some(&"x".repeat(255)), "").is_ok());
    }
}
