//! Every route of the API on one page.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{any, get, post, put};
use tower_http::catch_panic::CatchPanicLayer;

use super::error::{ApiError, Kind};
use super::families::FAMILIES;
use super::{
    Service, agents, context, environments, events, families, files, health, internal, models, resources,
    session_files, sessions, stream, threads, work, workspace,
};

/// The API as a service: routes, and around each of them [`super::context`].
pub fn router(service: Service) -> Router {
    let mut router = Router::new()
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{model_id}", get(models::retrieve))
        .route("/v1/files", get(files::list).post(files::create))
        .route("/v1/files/{file_id}", get(files::retrieve).delete(files::delete))
        .route("/v1/files/{file_id}/content", get(files::content))
        .route("/v1/agents", get(agents::list).post(agents::create))
        .route("/v1/agents/{agent_id}", get(agents::retrieve).post(agents::update))
        .route("/v1/agents/{agent_id}/archive", post(agents::archive))
        .route("/v1/agents/{agent_id}/versions", get(agents::versions))
        .route("/v1/environments", get(environments::list).post(environments::create))
        .route(
            "/v1/environments/{environment_id}",
            get(environments::retrieve).post(environments::update).delete(environments::delete),
        )
        .route("/v1/environments/{environment_id}/archive", post(environments::archive))
        .route("/v1/environments/{environment_id}/work", get(work::list))
        .route("/v1/environments/{environment_id}/work/poll", get(work::poll))
        .route("/v1/environments/{environment_id}/work/stats", get(work::stats))
        .route("/v1/environments/{environment_id}/work/{work_id}", get(work::retrieve).post(work::update))
        .route("/v1/environments/{environment_id}/work/{work_id}/ack", post(work::acknowledge))
        .route("/v1/environments/{environment_id}/work/{work_id}/heartbeat", post(work::heartbeat))
        .route("/v1/environments/{environment_id}/work/{work_id}/stop", post(work::stop))
        .route("/v1/sessions", get(sessions::list).post(sessions::create))
        .route("/v1/sessions/{session_id}", get(sessions::retrieve).post(sessions::update).delete(sessions::delete))
        .route("/v1/sessions/{session_id}/archive", post(sessions::archive))
        .route("/v1/sessions/{session_id}/events", get(events::list).post(events::send))
        .route("/v1/sessions/{session_id}/events/stream", get(stream::stream))
        .route("/v1/sessions/{session_id}/threads", get(threads::list))
        .route("/v1/sessions/{session_id}/threads/{thread_id}", get(threads::retrieve))
        .route("/v1/sessions/{session_id}/threads/{thread_id}/archive", post(threads::archive))
        .route("/v1/sessions/{session_id}/threads/{thread_id}/events", get(threads::events))
        .route("/v1/sessions/{session_id}/threads/{thread_id}/stream", get(threads::follow))
        .route("/v1/sessions/{session_id}/resources", get(resources::list).post(resources::add))
        .route(
            "/v1/sessions/{session_id}/resources/{resource_id}",
            get(resources::retrieve).post(resources::update).delete(resources::delete),
        )
        .route("/v1/internal/sessions/{session_id}/tool_starts", post(internal::start_tool))
        .route("/v1/internal/sessions/{session_id}/sandbox", get(internal::sandbox))
        .route("/v1/internal/sessions/{session_id}/refusals", post(internal::count_refusals))
        .route("/v1/internal/sessions/{session_id}/workspace", get(workspace::retrieve).post(workspace::save))
        .route("/v1/internal/sessions/{session_id}/workspace/restores", post(workspace::restore))
        .route("/v1/internal/sessions/{session_id}/chunks/missing", post(workspace::missing_chunks))
        .route("/v1/internal/sessions/{session_id}/chunks/{hash}", put(workspace::put_chunk).get(workspace::get_chunk))
        .route("/v1/internal/sessions/{session_id}/resources", get(session_files::mounts))
        .route("/v1/internal/sessions/{session_id}/resources/{hash}", get(session_files::content))
        .route("/v1/internal/sessions/{session_id}/outputs", get(session_files::outputs).put(session_files::put_output))
        .route("/v1/internal/workspaces/ended", post(internal::ended_workspaces));
    for family in FAMILIES {
        router = router
            .route(&format!("/v1/{family}"), any(families::family))
            .route(&format!("/v1/{family}/{{*rest}}"), any(families::family));
    }
    router
        .fallback(async || ApiError::new(Kind::NotFound, "the path does not exist"))
        .method_not_allowed_fallback(async || {
            ApiError::new(Kind::MethodNotAllowed, "the path exists, but not with this method")
        })
        // Bodies are read, and limited, by `body`.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(context::panicked))
        .layer(middleware::from_fn_with_state(service.clone(), context::observe))
        .with_state(service)
}
