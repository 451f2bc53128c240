//! Agents, environments and environment keys in SQLite.

use async_trait::async_trait;
use engine::port::definitions::{DefinitionError, ListDefinitions};
use engine::port::{Agent, Definitions, Environment, EnvironmentKey, Keep, StoreError};
use session::Timestamp;
use session::id::{AgentId, EnvironmentId, EnvironmentKeyId};
use sqlx::sqlite::SqliteExecutor;
use sqlx::{query, query_scalar};

use super::{Connection, SqliteStore, idempotency};
use crate::failure::{is_unique_violation, store_error};
use crate::row::{self, Columns as _, row_limit};

const SELECT_LATEST: &str = "SELECT v.body, a.archived_at FROM agents a \
    JOIN agent_versions v ON v.agent_id = a.id AND v.version = COALESCE(?2, a.latest_version) WHERE a.id = ?1";

#[async_trait]
impl Definitions for SqliteStore {
    async fn create_agent(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError> {
        let (agent, now) = (agent.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    idempotency::begin(connection, keep.as_ref(), now).await?;
                    query("INSERT INTO agents (id, latest_version, created_at) VALUES (?, ?, ?)")
                        .bind(agent.id.as_str())
                        .bind(agent.version)
                        .bind(agent.created_at.as_micros())
                        .execute(&mut *connection)
                        .await
                        .map_err(|error| refused(error, DefinitionError::Conflict))?;
                    insert_version(connection, &agent).await?;
                    Ok(idempotency::finish(connection, keep, &agent).await?)
                })
            })
            .await
    }

    async fn agent(&self, id: &AgentId, version: Option<u32>) -> Result<Option<Agent>, StoreError> {
        agent(&self.readers, id, version).await
    }

    async fn agent_archived_at(&self, id: &AgentId) -> Result<Option<Option<Timestamp>>, StoreError> {
        let found = query("SELECT archived_at FROM agents WHERE id = ?")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(store_error)?;
        found.as_ref().map(|row| row.time_or_null("archived_at")).transpose()
    }

    async fn add_agent_version(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError> {
        let (agent, now) = (agent.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    idempotency::begin(connection, keep.as_ref(), now).await?;
                    let done = query(
                        "UPDATE agents SET latest_version = ?2 \
                         WHERE id = ?1 AND latest_version = ?2 - 1 AND archived_at IS NULL",
                    )
                    .bind(agent.id.as_str())
                    .bind(agent.version)
                    .execute(&mut *connection)
                    .await
                    .map_err(store_error)?;
                    if done.rows_affected() == 0 {
                        return Err(overtaken(exists(connection, "agents", agent.id.as_str()).await?));
                    }
                    insert_version(connection, &agent).await?;
                    Ok(idempotency::finish(connection, keep, &agent).await?)
                })
            })
            .await
    }

    async fn archive_agent(
        &self,
        id: &AgentId,
        at: Timestamp,
        keep: Option<Keep<Agent>>,
    ) -> Result<Agent, DefinitionError> {
        let (id, now) = (id.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    idempotency::begin(connection, keep.as_ref(), now).await?;
                    query("UPDATE agents SET archived_at = COALESCE(archived_at, ?2) WHERE id = ?1")
                        .bind(id.as_str())
                        .bind(at.as_micros())
                        .execute(&mut *connection)
                        .await
                        .map_err(store_error)?;
                    let archived = agent(&mut *connection, &id, None).await?.ok_or(DefinitionError::NotFound)?;
                    idempotency::finish(connection, keep, &archived).await?;
                    Ok(archived)
                })
            })
            .await
    }

    async fn list_agents(&self, list: &ListDefinitions) -> Result<Vec<Agent>, StoreError> {
        let rows = query(
            "SELECT v.body, a.archived_at FROM agents a \
             JOIN agent_versions v ON v.agent_id = a.id AND v.version = a.latest_version \
             WHERE a.created_at >= ?1 AND a.created_at < ?2 AND (?3 OR a.archived_at IS NULL) \
             AND (?4 IS NULL OR (a.created_at, a.id) < (?4, ?5)) ORDER BY a.created_at DESC, a.id DESC LIMIT ?6",
        )
        .bind(list.created.from.map_or(i64::MIN, Timestamp::as_micros))
        .bind(list.created.before.map_or(i64::MAX, Timestamp::as_micros))
        .bind(list.include_archived)
        .bind(list.after.as_ref().map(|after| after.created_at.as_micros()))
        .bind(list.after.as_ref().map(|after| after.id.as_str()))
        .bind(row_limit(list.limit))
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        rows.iter().map(row::agent).collect()
    }

    async fn agent_versions(&self, id: &AgentId, before: Option<u32>, limit: usize) -> Result<Vec<Agent>, StoreError> {
        let rows = query(
            "SELECT v.body, a.archived_at FROM agent_versions v JOIN agents a ON a.id = v.agent_id \
             WHERE v.agent_id = ?1 AND v.version < ?2 ORDER BY v.version DESC LIMIT ?3",
        )
        .bind(id.as_str())
        .bind(before.map_or(i64::MAX, i64::from))
        .bind(row_limit(limit))
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        rows.iter().map(row::agent).collect()
    }

    async fn create_environment(
        &self,
        environment: &Environment,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError> {
        let (environment, now) = (environment.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    idempotency::begin(connection, keep.as_ref(), now).await?;
                    if exists(connection, "environments", environment.id.as_str()).await? {
                        return Err(DefinitionError::Conflict);
                    }
                    query(
                        "INSERT INTO environments (id, name, created_at, updated_at, archived_at, body) \
                         VALUES (?, ?, ?, ?, ?, ?)",
                    )
                    .bind(environment.id.as_str())
                    .bind(row::to_json(&environment.name)?)
                    .bind(environment.created_at.as_micros())
                    .bind(environment.updated_at.as_micros())
                    .bind(environment.archived_at.map(Timestamp::as_micros))
                    .bind(row::to_json(&environment)?)
                    .execute(&mut *connection)
                    .await
                    .map_err(|error| refused(error, DefinitionError::NameTaken))?;
                    Ok(idempotency::finish(connection, keep, &environment).await?)
                })
            })
            .await
    }

    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
        environment(&self.readers, id).await
    }

    async fn update_environment(
        &self,
        environment: &Environment,
        seen_updated_at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError> {
        let (environment, now) = (environment.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    idempotency::begin(connection, keep.as_ref(), now).await?;
                    let done = query(
                        "UPDATE environments SET name = ?2, updated_at = ?3, body = ?4 \
                         WHERE id = ?1 AND updated_at = ?5 AND archived_at IS NULL",
                    )
                    .bind(environment.id.as_str())
                    .bind(row::to_json(&environment.name)?)
                    .bind(environment.updated_at.as_micros())
                    .bind(row::to_json(&environment)?)
                    .bind(seen_updated_at.as_micros())
                    .execute(&mut *connection)
                    .await
                    .map_err(|error| refused(error, DefinitionError::NameTaken))?;
                    if done.rows_affected() == 0 {
                        return Err(overtaken(exists(connection, "environments", environment.id.as_str()).await?));
                    }
                    Ok(idempotency::finish(connection, keep, &environment).await?)
                })
            })
            .await
    }

    async fn archive_environment(
        &self,
        id: &EnvironmentId,
        at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<Environment, DefinitionError> {
        let (id, now) = (id.clone(), self.now());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    idempotency::begin(connection, keep.as_ref(), now).await?;
                    query("UPDATE environments SET archived_at = COALESCE(archived_at, ?2) WHERE id = ?1")
                        .bind(id.as_str())
                        .bind(at.as_micros())
                        .execute(&mut *connection)
                        .await
                        .map_err(store_error)?;
                    let archived = environment(&mut *connection, &id).await?.ok_or(DefinitionError::NotFound)?;
                    idempotency::finish(connection, keep, &archived).await?;
                    Ok(archived)
                })
            })
            .await
    }

    async fn delete_environment(&self, id: &EnvironmentId) -> Result<(), DefinitionError> {
        let id = id.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let used: bool = query_scalar(
                        "SELECT EXISTS (SELECT 1 FROM sessions WHERE environment_id = ? AND deleted_at IS NULL)",
                    )
                    .bind(id.as_str())
                    .fetch_one(&mut *connection)
                    .await
                    .map_err(store_error)?;
                    if used {
                        return Err(DefinitionError::InUse);
                    }
                    query("DELETE FROM environment_keys WHERE environment_id = ?")
                        .bind(id.as_str())
                        .execute(&mut *connection)
                        .await
                        .map_err(store_error)?;
                    let done = query("DELETE FROM environments WHERE id = ?")
                        .bind(id.as_str())
                        .execute(connection)
                        .await
                        .map_err(store_error)?;
                    if done.rows_affected() == 0 { Err(DefinitionError::NotFound) } else { Ok(()) }
                })
            })
            .await
    }

    async fn list_environments(&self, list: &ListDefinitions) -> Result<Vec<Environment>, StoreError> {
        let rows = query(
            "SELECT body, archived_at FROM environments \
             WHERE created_at >= ?1 AND created_at < ?2 AND (?3 OR archived_at IS NULL) \
             AND (?4 IS NULL OR (created_at, id) < (?4, ?5)) ORDER BY created_at DESC, id DESC LIMIT ?6",
        )
        .bind(list.created.from.map_or(i64::MIN, Timestamp::as_micros))
        .bind(list.created.before.map_or(i64::MAX, Timestamp::as_micros))
        .bind(list.include_archived)
        .bind(list.after.as_ref().map(|after| after.created_at.as_micros()))
        .bind(list.after.as_ref().map(|after| after.id.as_str()))
        .bind(row_limit(list.limit))
        .fetch_all(&self.readers)
        .await
        .map_err(store_error)?;
        rows.iter().map(row::environment).collect()
    }

    async fn create_environment_key(&self, key: &EnvironmentKey) -> Result<(), DefinitionError> {
        let key = key.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    if !exists(connection, "environments", key.environment_id.as_str()).await? {
                        return Err(DefinitionError::NotFound);
                    }
                    query(
                        "INSERT INTO environment_keys (id, environment_id, key_hash, created_at, revoked_at) \
                         VALUES (?, ?, ?, ?, ?)",
                    )
                    .bind(key.id.as_str())
                    .bind(key.environment_id.as_str())
                    .bind(&key.key_hash)
                    .bind(key.created_at.as_micros())
                    .bind(key.revoked_at.map(Timestamp::as_micros))
                    .execute(connection)
                    .await
                    .map_err(|error| refused(error, DefinitionError::Conflict))?;
                    Ok(())
                })
            })
            .await
    }

    async fn environment_key(&self, key_hash: &str) -> Result<Option<EnvironmentKey>, StoreError> {
        let found = query("SELECT * FROM environment_keys WHERE key_hash = ? AND revoked_at IS NULL")
            .bind(key_hash)
            .fetch_optional(&self.readers)
            .await
            .map_err(store_error)?;
        found.as_ref().map(row::environment_key).transpose()
    }

    async fn list_environment_keys(&self, id: &EnvironmentId) -> Result<Vec<EnvironmentKey>, StoreError> {
        let rows = query("SELECT * FROM environment_keys WHERE environment_id = ? ORDER BY created_at DESC, id DESC")
            .bind(id.as_str())
            .fetch_all(&self.readers)
            .await
            .map_err(store_error)?;
        rows.iter().map(row::environment_key).collect()
    }

    async fn revoke_environment_key(&self, id: &EnvironmentKeyId, at: Timestamp) -> Result<(), DefinitionError> {
        let id = id.clone();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let done = query("UPDATE environment_keys SET revoked_at = COALESCE(revoked_at, ?2) WHERE id = ?1")
                        .bind(id.as_str())
                        .bind(at.as_micros())
                        .execute(connection)
                        .await
                        .map_err(store_error)?;
                    if done.rows_affected() == 0 { Err(DefinitionError::NotFound) } else { Ok(()) }
                })
            })
            .await
    }
}

async fn agent(
    executor: impl SqliteExecutor<'_>,
    id: &AgentId,
    version: Option<u32>,
) -> Result<Option<Agent>, StoreError> {
    let found =
        query(SELECT_LATEST).bind(id.as_str()).bind(version).fetch_optional(executor).await.map_err(store_error)?;
    found.as_ref().map(row::agent).transpose()
}

async fn environment(executor: impl SqliteExecutor<'_>, id: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
    let found = query("SELECT body, archived_at FROM environments WHERE id = ?")
        .bind(id.as_str())
        .fetch_optional(executor)
        .await
        .map_err(store_error)?;
    found.as_ref().map(row::environment).transpose()
}

async fn insert_version(connection: &mut Connection, agent: &Agent) -> Result<(), DefinitionError> {
    query("INSERT INTO agent_versions (agent_id, version, body) VALUES (?, ?, ?)")
        .bind(agent.id.as_str())
        .bind(agent.version)
        .bind(row::to_json(agent)?)
        .execute(connection)
        .await
        .map_err(|error| refused(error, DefinitionError::Conflict))?;
    Ok(())
}

async fn exists(connection: &mut Connection, table: &'static str, id: &str) -> Result<bool, StoreError> {
    let statement = match table {
        "agents" => "SELECT EXISTS (SELECT 1 FROM agents WHERE id = ?)",
        _ => "SELECT EXISTS (SELECT 1 FROM environments WHERE id = ?)",
    };
    query_scalar(statement).bind(id).fetch_one(connection).await.map_err(store_error)
}

/// What a write that found no row to change has met.
fn overtaken(exists: bool) -> DefinitionError {
    if exists { DefinitionError::Conflict } else { DefinitionError::NotFound }
}

/// What a refused row means.
fn refused(error: sqlx::Error, duplicate: DefinitionError) -> DefinitionError {
    if is_unique_violation(&error) { duplicate } else { store_error(error).into() }
}
