//! Whose credential is it: classified by its value, whichever header brought it.
//!
//! There are four classes. API keys and the worker key are configured, environment keys and item tokens are in the
//! store; all of them are known as hashes only. What a class opens is decided by the handlers, through the methods
//! of [`Caller`].

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use engine::port::{Fence, WorkItem};
use session::event::EnvironmentKind;
use session::id::{ApiKeyId, EnvironmentId, Identifier as _};
use session::{Poster, State};
use sha2::{Digest, Sha256};

use super::Service;
use super::error::{ApiError, Kind};

/// What every environment key starts with.
pub const ENVIRONMENT_KEY_PREFIX: &str = "sk-ant-oat01-";

/// What every item token starts with.
pub const ITEM_TOKEN_PREFIX: &str = "agent-item-";

/// The reserved environment under which our own workers poll for every cloud environment.
pub const POOL_ENVIRONMENT_ID: &str = "env_pool";

/// How much of a key's hash makes its id.
const API_KEY_ID_DIGITS: usize = 24;

/// What is kept of a secret: its SHA-256 as lower-case hex.
///
/// Secrets are random and long, so a plain hash cannot be searched.
pub fn secret_hash(secret: &str) -> String {
    hash(secret.as_bytes())
}

/// The SHA-256 of `bytes` as lower-case hex.
pub(super) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An item token made from 256 random bits.
pub(super) fn item_token(service: &Service) -> String {
    let mut bits = [0; 32];
    bits[..16].copy_from_slice(&service.world.entropy.draw().to_be_bytes());
    bits[16..].copy_from_slice(&service.world.entropy.draw().to_be_bytes());
    format!("{ITEM_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bits))
}

/// Who asks.
#[derive(Clone, Debug)]
pub(super) enum Caller {
    /// An application, with an API key.
    Application { api_key_id: ApiKeyId },
    /// A worker of one self-hosted environment, with an environment key.
    EnvironmentWorker { environment_id: EnvironmentId },
    /// One of our own workers, with the worker key.
    PoolWorker,
    /// The holder of a work item, with the item's current token.
    ItemHolder { item: Box<WorkItem>, token_hash: String },
    /// Somebody with a token that is no item's any more.
    FormerHolder,
}

impl FromRequestParts<Service> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, service: &Service) -> Result<Self, ApiError> {
        let credential = credential(&parts.headers)?;
        require_headers(parts, service)?;
        classify(service, credential).await
    }
}

/// The credential of either header. The API key wins where both are sent and differ, as it does in the SDK.
pub(super) fn credential(headers: &HeaderMap) -> Result<&str, ApiError> {
    let unauthenticated = |message: &str| ApiError::new(Kind::Unauthenticated, message);
    let text = |name: &str| {
        headers.get(name).map(|value| value.to_str().map_err(|_| unauthenticated(&format!("{name}: not readable"))))
    };
    if let Some(key) = text("x-api-key").transpose()? {
        return Ok(key.trim());
    }
    let Some(authorization) = text(header::AUTHORIZATION.as_str()).transpose()? else {
        return Err(unauthenticated(
            "no credential: send your API key as 'Authorization: Bearer <key>' or 'x-api-key: <key>'",
        ));
    };
    match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(token.trim()),
        _ => Err(unauthenticated("authorization: expected 'Bearer <key>'")),
    }
}

/// The hash of the API key that a request brings, if it brings one.
pub(super) fn api_key_hash(service: &Service, headers: &HeaderMap) -> Option<String> {
    let hash = secret_hash(credential(headers).ok()?);
    service.credentials.is_api_key(&hash).then_some(hash)
}

/// The id of the key with this hash: the same at every start and on every replica.
fn api_key_id(hash: &str) -> ApiKeyId {
    format!("{}{}", ApiKeyId::PREFIX, &hash[..API_KEY_ID_DIGITS]).into()
}

async fn classify(service: &Service, credential: &str) -> Result<Caller, ApiError> {
    let hash = secret_hash(credential);
    if service.credentials.is_api_key(&hash) {
        return Ok(Caller::Application { api_key_id: api_key_id(&hash) });
    }
    if service.credentials.is_worker_key(&hash) {
        return Ok(Caller::PoolWorker);
    }
    if credential.starts_with(ENVIRONMENT_KEY_PREFIX)
        && let Some(key) = service.definitions().environment_key(&hash).await?
    {
        return Ok(Caller::EnvironmentWorker { environment_id: key.environment_id });
    }
    if credential.starts_with(ITEM_TOKEN_PREFIX) {
        return Ok(match service.work().item_by_token(&hash).await? {
            Some(item) => Caller::ItemHolder { item: Box::new(item), token_hash: hash },
            None => Caller::FormerHolder,
        });
    }
    Err(ApiError::new(Kind::Unauthenticated, "the credential is not known to this server, or was revoked"))
}

/// The checks of strict mode.
fn require_headers(parts: &Parts, service: &Service) -> Result<(), ApiError> {
    let strict = service.strictness;
    if strict.require_version && !parts.headers.contains_key("anthropic-version") {
        return Err(ApiError::invalid("anthropic-version: required"));
    }
    let beta_gated = !parts.uri.path().starts_with("/v1/models") && !parts.uri.path().starts_with("/v1/internal/");
    if strict.require_beta && beta_gated {
        let values: Vec<&str> = parts
            .headers
            .get_all("anthropic-beta")
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|value| !value.is_empty())
            .collect();
        if let Some(unknown) = values.iter().find(|value| !BETAS.contains(value)) {
            let shown: String = unknown.chars().take(64).collect();
            return Err(ApiError::invalid(format!("anthropic-beta: unknown value {shown:?}")));
        }
        if !values.contains(&BETAS[0]) {
            return Err(ApiError::new(Kind::NotFound, "the path does not exist"));
        }
    }
    Ok(())
}

/// Values of `anthropic-beta` that clients of this surface send; the first gates it.
const BETAS: [&str; 7] = [
    "managed-agents-2026-04-01",
    "agent-memory-2026-07-22",
    "dreaming-2026-04-21",
    "mcp-tunnels-2026-06-22",
    "files-api-2025-04-14",
    "skills-2025-10-02",
    "webhooks-2026-10-07",
];

impl Caller {
    /// Lets applications pass and nobody else.
    pub(super) fn require_application(&self) -> Result<(), ApiError> {
        match self {
            Self::Application { .. } => Ok(()),
            Self::FormerHolder => Err(former_holder()),
            _ => Err(ApiError::forbidden("this needs an API key; the credential of a worker does not open it")),
        }
    }

    /// The key that an application came with.
    pub(super) fn api_key_id(&self) -> Option<&ApiKeyId> {
        match self {
            Self::Application { api_key_id } => Some(api_key_id),
            _ => None,
        }
    }

    /// Lets whoever may see this session pass; to others it does not exist.
    pub(super) fn require_session(&self, state: &State) -> Result<(), ApiError> {
        let visible = match self {
            Self::Application { .. } => true,
            Self::EnvironmentWorker { environment_id } => {
                state.environment_kind == EnvironmentKind::SelfHosted && state.environment_id == *environment_id
            }
            Self::ItemHolder { item, .. } => item.session_id == state.session_id,
            Self::PoolWorker => return Err(worker_key_on_session()),
            Self::FormerHolder => return Err(former_holder()),
        };
        if visible { Ok(()) } else { Err(ApiError::not_found("session", state.session_id.as_str())) }
    }

    /// Under which role, and behind which fence, this caller's events are posted.
    pub(super) fn poster(&self) -> Result<(Poster, Fence), ApiError> {
        match self {
            Self::Application { .. } => Ok((Poster::Application, Fence::Client)),
            Self::EnvironmentWorker { .. } => Ok((Poster::SelfHostedWorker, Fence::Client)),
            Self::ItemHolder { item, token_hash } => {
                let poster = match item.environment_kind {
                    EnvironmentKind::Cloud => Poster::CloudWorker,
                    EnvironmentKind::SelfHosted => Poster::SelfHostedWorker,
                };
                Ok((poster, Fence::ItemToken { work_id: item.id.clone(), token_hash: token_hash.clone() }))
            }
            Self::PoolWorker => Err(worker_key_on_session()),
            Self::FormerHolder => Err(ApiError::token_ended()),
        }
    }
}

fn worker_key_on_session() -> ApiError {
    ApiError::forbidden("use the token of the session's work item, not the worker key")
}

/// 401 for a token that ended, where nothing more telling applies.
pub(super) fn former_holder() -> ApiError {
    ApiError::new(Kind::Unauthenticated, "the token of this work item has ended")
}
