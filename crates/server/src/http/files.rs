//! `/v1/files`: what clients upload, and what sessions made.
//!
//! Every file can be downloaded by whoever holds an API key, uploads too: on one's own server there is nobody to keep
//! them from.

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use engine::port::files::{File, FileError, ListFiles};
use engine::port::{After, Blobs, Order};
use serde_json::{Value, json};
use session::id::{FileId, SessionId};

use super::auth::Caller;
use super::body::OptionalBody;
use super::error::{ApiError, Kind};
use super::pagination::{self, CreatedPlace, ListName};
use super::path::{self, Ids};
use super::query::{NoQuery, Query};
use super::upload::Upload;
use super::{Service, idempotency};

/// Files asked for by id in one list.
const IDS_MAX: usize = 100;

/// `POST /v1/files`.
pub(super) async fn create(
    State(service): State<Service>,
    caller: Caller,
    _: NoQuery,
    request: Request,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    let (parts, body) = request.into_parts();
    let named = idempotency::read(&parts)?;
    let request = Request::from_parts(parts, body);
    let mut upload = Upload::read(request, &service, blobs(&service)?).await?;
    let blob = upload.content.seal().await?;
    let request = named.map(|named| named.asking(upload.meaning(&blob.hash).as_bytes()));
    idempotency::once(&service, request.as_ref(), async {
        upload.content.keep().await?;
        let now = service.now();
        let file = File {
            id: service.id(),
            filename: upload.filename,
            mime_type: upload.mime_type,
            bytes: blob.bytes,
            blob: Some(blob.hash),
            created_at: now,
            expires_at: upload.expires_in_seconds.map(|seconds| now.plus_millis(seconds as i64 * 1_000)),
            session_id: None,
        };
        service.world.files.create_file(&file, idempotency::keep(request.as_ref(), view)).await?;
        Ok(idempotency::ok(&view(&file)))
    })
    .await
}

/// `GET /v1/files/{file_id}`.
pub(super) async fn retrieve(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    Ok(Json(view(&load(&service, &ids).await?)))
}

/// `GET /v1/files/{file_id}/content`.
pub(super) async fn content(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    let file = load(&service, &ids).await?;
    let hash = file.blob.as_ref().filter(|_| !file.is_expired(service.now()));
    let hash = hash.ok_or_else(|| {
        ApiError::new(Kind::NotFound, format!("file {} has expired, and its content with it", file.id))
            .code("file_expired")
    })?;
    let open = blobs(&service)?.open(hash).await?;
    let open = open.ok_or_else(|| ApiError::internal(format!("the content {hash} of file {} is gone", file.id)))?;
    let mut response = Response::new(Body::from_stream(open.content));
    let headers = response.headers_mut();
    let mime_type = HeaderValue::from_str(&file.mime_type);
    headers.insert(
        header::CONTENT_TYPE,
        mime_type.unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream")),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(open.bytes));
    // Whatever somebody uploaded, no browser may run it as a page of this server.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_DISPOSITION, disposition(&file.filename));
    Ok(response)
}

/// `DELETE /v1/files/{file_id}`.
pub(super) async fn delete(
    State(service): State<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    OptionalBody(body): OptionalBody,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    body.finish()?;
    let id: FileId = ids.get("file_id", "file")?;
    match service.world.files.delete_files(std::slice::from_ref(&id)).await? {
        0 => Err(why_it_stays(&service, id).await?),
        _ => Ok(Json(json!({"id": id, "type": "file_deleted"}))),
    }
}

/// Why a file was not deleted: it is not there, or it is what a session was given.
async fn why_it_stays(service: &Service, id: FileId) -> Result<ApiError, ApiError> {
    let found = service.world.files.files(std::slice::from_ref(&id)).await?;
    let session_id = found.into_iter().next().and_then(|file| file.session_id);
    let given = match &session_id {
        Some(session_id) => service.world.resources.resources(std::slice::from_ref(session_id)).await?,
        None => Vec::new(),
    };
    let resource = given.into_iter().find(|resource| resource.file.id == id);
    Ok(match (resource, session_id) {
        (Some(resource), Some(session_id)) => ApiError::invalid(format!(
            "file {id} is mounted in session {session_id}; delete its resource {} there instead",
            resource.id
        )),
        _ => ApiError::not_found("file", id.as_str()),
    })
}

/// `GET /v1/files`: in pages of cursors, or of ids as older clients ask for them.
pub(super) async fn list(
    State(service): State<Service>,
    caller: Caller,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    caller.require_application()?;
    blobs(&service)?;
    let asked = query.strings("ids");
    let limit = query.number("limit", 1, 1_000)?;
    let page = query.string("page")?.filter(|page| !page.is_empty());
    let (after_id, before_id) = (query.string("after_id")?, query.string("before_id")?);
    let session_id = query.string("scope_id")?.map(|scope| read_scope(&scope)).transpose()?;
    query.finish()?;
    if [page.is_some(), after_id.is_some(), before_id.is_some()].iter().filter(|given| **given).count() > 1 {
        return Err(ApiError::invalid("page, after_id, before_id: give one of them"));
    }
    if !asked.is_empty() {
        if limit.is_some() || page.is_some() || after_id.is_some() || before_id.is_some() {
            return Err(ApiError::invalid("ids: goes without limit, page, after_id and before_id"));
        }
        return named(&service, asked, session_id).await;
    }

    let limit = limit.unwrap_or(20);
    let name = match &session_id {
        Some(session_id) => ListName::within("files", session_id.as_str()),
        None => ListName::of("files"),
    };
    let backwards = before_id.is_some();
    let after = match (page, after_id.or(before_id)) {
        (Some(page), _) => Some(read_page(&page, &name)?),
        (None, Some(id)) => Some(place_of_id(&service, &id).await?),
        (None, None) => None,
    };
    let order = if backwards { Order::Ascending } else { Order::Descending };
    let list = ListFiles { session_id, order, after, limit: limit + 1 };
    let (mut files, more) = pagination::cut(service.world.files.list_files(&list).await?, limit);
    if backwards {
        files.reverse();
    }
    let next = files.last().filter(|_| more || backwards).map(|last| {
        let place = CreatedPlace::new(last.created_at, last.id.as_str());
        format!("{PAGE_PREFIX}{}", pagination::encode(&name, Order::Descending, &place))
    });
    Ok(Json(page_of(&files, more, next)))
}

/// What every cursor of this list begins with.
const PAGE_PREFIX: &str = "page_";

async fn named(service: &Service, asked: Vec<String>, session_id: Option<SessionId>) -> Result<Json<Value>, ApiError> {
    let mut ids: Vec<FileId> = Vec::new();
    for id in asked {
        let id = FileId::from(id);
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    if ids.len() > IDS_MAX {
        return Err(ApiError::invalid(format!("ids: at most {IDS_MAX} are taken at once")));
    }
    let mut files = service.world.files.files(&ids).await?;
    files.retain(|file| session_id.is_none() || file.session_id == session_id);
    Ok(Json(page_of(&files, false, None)))
}

fn page_of(files: &[File], more: bool, next_page: Option<String>) -> Value {
    let mut page = pagination::page(files.iter().map(view).collect(), next_page);
    page["has_more"] = more.into();
    page["first_id"] = json!(files.first().map(|file| &file.id));
    page["last_id"] = json!(files.last().map(|file| &file.id));
    page
}

fn read_page(page: &str, name: &ListName) -> Result<After, ApiError> {
    let place: CreatedPlace =
        pagination::read(page.strip_prefix(PAGE_PREFIX).unwrap_or(page), name, Order::Descending)?;
    place.within(Default::default())
}

async fn place_of_id(service: &Service, id: &str) -> Result<After, ApiError> {
    let found = service.world.files.files(&[FileId::from(id)]).await?;
    let file = found.first().ok_or_else(|| ApiError::invalid("after_id, before_id: there is no file with this id"))?;
    Ok(After { created_at: file.created_at, id: file.id.as_str().to_owned() })
}

fn read_scope(scope: &str) -> Result<SessionId, ApiError> {
    path::parse(scope, "session").map_err(|_| ApiError::invalid("scope_id: expected the id of a session"))
}

/// The file that the path names.
async fn load(service: &Service, ids: &Ids) -> Result<File, ApiError> {
    let id: FileId = ids.get("file_id", "file")?;
    let found = service.world.files.files(std::slice::from_ref(&id)).await?;
    found.into_iter().next().ok_or_else(|| ApiError::not_found("file", id.as_str()))
}

/// Where content lies, or what to set so that it can lie somewhere.
pub(super) fn blobs(service: &Service) -> Result<&dyn Blobs, ApiError> {
    service.world.blobs.as_deref().ok_or_else(|| {
        let message = "files: this server has no place for them; set object_store.url (OBJECT_STORE_URL)";
        ApiError::new(Kind::NotImplemented, message)
    })
}

/// The name for whoever saves the content, in RFC 6266's form for any character.
fn disposition(filename: &str) -> HeaderValue {
    use std::fmt::Write as _;
    let mut value = String::from("attachment; filename*=UTF-8''");
    for byte in filename.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_') {
            value.push(char::from(byte));
        } else {
            write!(value, "%{byte:02X}").expect("writing to a string does not fail");
        }
    }
    HeaderValue::from_str(&value).expect("it is ASCII")
}

/// The file as clients see it.
pub(super) fn view(file: &File) -> Value {
    json!({
        "type": "file",
        "id": file.id,
        "filename": file.filename,
        "mime_type": file.mime_type,
        "size_bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "downloadable": true,
        "scope": file.session_id.as_ref().map(|id| json!({"type": "session", "id": id})),
    })
}

impl From<FileError> for ApiError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::ContentGone => {
                Self::unavailable("the content went while the file was stored; send it again", error.to_string())
            }
            FileError::KeyUsed(used) => used.into(),
            FileError::Store(error) => error.into(),
        }
    }
}
