//! `/v1/sessions/{session_id}/resources`: files that are mounted, read-only, in a session's sandbox.
//!
//! The session gets a copy of the file, which shares its content; what becomes of the original is nothing to it.

use axum::Json;
use axum::extract::State as Shared;
use axum::response::Response;
use engine::port::resources::ResourceError;
use engine::port::{File, FileResource, Order};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use session::event::EnvironmentKind;
use session::id::{ResourceId, SessionId};
use session::{State, Timestamp};

use super::Service;
use super::auth::Caller;
use super::body::{JsonBody, KeyedBody, OptionalBody};
use super::error::{ApiError, Kind};
use super::pagination::{self, ListName};
use super::path::Ids;
use super::query::{NoQuery, Query};
use super::resource_params::{self, FileParams};
use super::{fields, files, idempotency, sessions};

/// `POST /v1/sessions/{session_id}/resources`.
pub(super) async fn add(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    KeyedBody(JsonBody(body), request): KeyedBody<JsonBody>,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    idempotency::once(&service, request.as_ref(), async {
        let params = FileParams::read(body, "")?;
        let state = load(&service, &caller, &ids).await?;
        refuse_self_hosted(state.environment_kind)?;
        let mount_path = params.mount_path.clone();
        let mut made = copies(&service, &state.session_id, vec![params]).await?;
        let resource = made.pop().ok_or_else(|| ApiError::internal("a file was not copied"))?;
        let keep = idempotency::keep(request.as_ref(), view);
        service.world.resources.add_resource(&resource, keep).await.map_err(|error| match error {
            ResourceError::InTheWay(taken) => resource_params::refuse_taken("mount_path", &mount_path, &taken),
            ResourceError::NoSession => ApiError::not_found("session", state.session_id.as_str()),
            error => error.into(),
        })?;
        Ok(idempotency::ok(&view(&resource)))
    })
    .await
}

/// Where the next page begins: behind the resource that was made then.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    #[serde(rename = "t")]
    created_at_micros: i64,
    #[serde(rename = "i")]
    id: String,
}

impl Place {
    fn of(resource: &FileResource) -> Self {
        Self { created_at_micros: resource.file.created_at.as_micros(), id: resource.id.as_str().to_owned() }
    }

    fn is_before(&self, other: &Self) -> bool {
        (self.created_at_micros, &self.id) < (other.created_at_micros, &other.id)
    }
}

/// `GET /v1/sessions/{session_id}/resources`: all of them, unless the client asks for fewer at a time.
pub(super) async fn list(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    mut query: Query,
) -> Result<Json<Value>, ApiError> {
    let state = load(&service, &caller, &ids).await?;
    let limit = query.limit(1_000, 1_000)?;
    let name = ListName::within("resources", state.session_id.as_str());
    let after: Option<Place> = pagination::decode(&mut query, &name, Order::Ascending)?;
    query.finish()?;
    let mut found = of(&service, &state.session_id).await?;
    found.retain(|resource| after.as_ref().is_none_or(|after| after.is_before(&Place::of(resource))));
    let (found, more) = pagination::cut(found, limit);
    let next = found.last().filter(|_| more);
    let next = next.map(|last| pagination::encode(&name, Order::Ascending, &Place::of(last)));
    Ok(Json(pagination::page(found.iter().map(view).collect(), next)))
}

/// `GET /v1/sessions/{session_id}/resources/{resource_id}`.
pub(super) async fn retrieve(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
) -> Result<Json<Value>, ApiError> {
    let state = load(&service, &caller, &ids).await?;
    Ok(Json(view(&find(&service, &state, &ids).await?)))
}

/// `POST /v1/sessions/{session_id}/resources/{resource_id}`: only the token of a repository can be changed, and no
/// session has one.
pub(super) async fn update(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    KeyedBody(JsonBody(mut body), request): KeyedBody<JsonBody>,
) -> Result<Response, ApiError> {
    caller.require_application()?;
    idempotency::once(&service, request.as_ref(), async {
        let state = load(&service, &caller, &ids).await?;
        let resource = find(&service, &state, &ids).await?;
        fields::string(body.required("authorization_token")?, "authorization_token")?;
        body.finish()?;
        Err(ApiError::invalid(format!(
            "authorization_token: resource {} is a file and has none; only github_repository resources do",
            resource.id
        )))
    })
    .await
}

/// `DELETE /v1/sessions/{session_id}/resources/{resource_id}`.
pub(super) async fn delete(
    Shared(service): Shared<Service>,
    caller: Caller,
    ids: Ids,
    _: NoQuery,
    OptionalBody(body): OptionalBody,
) -> Result<Json<Value>, ApiError> {
    body.finish()?;
    let state = load(&service, &caller, &ids).await?;
    let id: ResourceId = ids.get("resource_id", "resource")?;
    match service.world.resources.remove_resource(&state.session_id, &id).await? {
        true => Ok(Json(json!({"id": id, "type": "session_resource_deleted"}))),
        false => Err(ApiError::not_found("resource", id.as_str())),
    }
}

/// The copies of files that a session is to be given, in their order.
pub(super) async fn copies(
    service: &Service,
    session_id: &SessionId,
    asked: Vec<FileParams>,
) -> Result<Vec<FileResource>, ApiError> {
    if asked.is_empty() {
        return Ok(Vec::new());
    }
    files::blobs(service)?;
    let now = service.now();
    let originals: Vec<_> = asked.iter().map(|params| params.file_id.clone()).collect();
    let originals = service.world.files.files(&originals).await?;
    let mut copies = Vec::with_capacity(asked.len());
    for (index, params) in asked.into_iter().enumerate() {
        let FileParams { file_id, mount_path, path } = params;
        let at = fields::join(&path, "file_id");
        let original = originals.iter().find(|file| file.id == file_id);
        let original = original.ok_or_else(|| resource_params::unknown_file(&at, file_id.as_str()))?;
        if original.is_expired(now) {
            let message = format!("{at}: file {file_id} has expired, and its content with it; upload it again");
            return Err(ApiError::new(Kind::NotFound, message).code("file_expired"));
        }
        // A microsecond apart, so that they are listed as they were given.
        let created_at = Timestamp::from_micros(now.as_micros() + index as i64);
        let copy = File {
            id: service.id(),
            created_at,
            expires_at: None,
            session_id: Some(session_id.clone()),
            ..original.clone()
        };
        copies.push(FileResource { id: service.id(), mount_path, file: copy });
    }
    Ok(copies)
}

/// The sandbox of a self-hosted environment is the client's own, and nothing is mounted in it.
pub(super) fn refuse_self_hosted(kind: EnvironmentKind) -> Result<(), ApiError> {
    match kind {
        EnvironmentKind::Cloud => Ok(()),
        EnvironmentKind::SelfHosted => Err(ApiError::invalid(
            "resources: file and github_repository resources are not supported with self-hosted environments",
        )),
    }
}

/// The session's resources, oldest first.
pub(super) async fn of(service: &Service, session_id: &SessionId) -> Result<Vec<FileResource>, ApiError> {
    Ok(service.world.resources.resources(std::slice::from_ref(session_id)).await?)
}

async fn load(service: &Service, caller: &Caller, ids: &Ids) -> Result<State, ApiError> {
    caller.require_application()?;
    sessions::load(service, caller, ids).await
}

/// The resource that the path names.
async fn find(service: &Service, state: &State, ids: &Ids) -> Result<FileResource, ApiError> {
    let id: ResourceId = ids.get("resource_id", "resource")?;
    let found = of(service, &state.session_id).await?.into_iter().find(|resource| resource.id == id);
    found.ok_or_else(|| ApiError::not_found("resource", id.as_str()))
}

/// The resource as clients see it.
pub(super) fn view(resource: &FileResource) -> Value {
    json!({
        "type": "file",
        "id": resource.id,
        "file_id": resource.file.id,
        "mount_path": resource.mount_path,
        "created_at": resource.file.created_at,
        "updated_at": resource.file.created_at,
    })
}

impl From<ResourceError> for ApiError {
    fn from(error: ResourceError) -> Self {
        match error {
            ResourceError::NoSession => Self::new(Kind::NotFound, error.to_string()),
            ResourceError::Archived => Self::conflict("the session is archived and takes no more files"),
            ResourceError::Full => Self::invalid(format!("{error}; remove a resource first")),
            ResourceError::InTheWay(_) => Self::invalid(format!("mount_path: {error}")),
            ResourceError::ContentGone => {
                Self::unavailable("the file went while it was copied; try again", error.to_string())
            }
            ResourceError::KeyUsed(used) => used.into(),
            ResourceError::Store(error) => error.into(),
        }
    }
}
