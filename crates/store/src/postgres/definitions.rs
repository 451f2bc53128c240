//! Agents, environments and environment keys in PostgreSQL.

use async_trait::async_trait;
use engine::port::definitions::{DefinitionError, ListDefinitions};
use engine::port::{Agent, Definitions, Environment, EnvironmentKey, Keep, StoreError};
use session::Timestamp;
use session::id::{AgentId, EnvironmentId, EnvironmentKeyId};
use sqlx::postgres::PgExecutor;
use sqlx::{query, query_scalar};

use super::{PostgresStore, bounded, findable};
use crate::failure::{is_unique_violation, store_error};
use crate::row::{self, Columns as _, row_limit};

#[async_trait]
impl Definitions for PostgresStore {
    async fn create_agent(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError> {
        bounded(async {
            let mut writing = self.writing(keep).await?;
            query(
                "WITH made AS (INSERT INTO agents (id, latest_version, created_at) VALUES ($1, $2, $3)) \
                 INSERT INTO agent_versions (agent_id, version, body) VALUES ($1, $2, $4)",
            )
            .bind(agent.id.as_str())
            .bind(i64::from(agent.version))
            .bind(agent.created_at.as_micros())
            .bind(row::to_json(agent)?)
            .execute(writing.connection())
            .await
            .map_err(refused)?;
            Ok(writing.finish(agent).await?)
        })
        .await
    }

    async fn agent(&self, id: &AgentId, version: Option<u32>) -> Result<Option<Agent>, StoreError> {
        bounded(agent(&self.pool, id, version)).await
    }

    async fn agent_archived_at(&self, id: &AgentId) -> Result<Option<Option<Timestamp>>, StoreError> {
        bounded(async {
            let found = query("SELECT archived_at FROM agents WHERE id = $1")
                .bind(findable(id.as_str()))
                .fetch_optional(&self.pool)
                .await
                .map_err(store_error)?;
            found.as_ref().map(|row| row.time_or_null("archived_at")).transpose()
        })
        .await
    }

    async fn add_agent_version(&self, agent: &Agent, keep: Option<Keep<Agent>>) -> Result<(), DefinitionError> {
        bounded(async {
            let mut writing = self.writing(keep).await?;
            let done = query(
                "WITH moved AS (UPDATE agents SET latest_version = $2 \
                     WHERE id = $1 AND latest_version = $2 - 1 AND archived_at IS NULL RETURNING id) \
                 INSERT INTO agent_versions (agent_id, version, body) SELECT id, $2, $3 FROM moved",
            )
            .bind(findable(agent.id.as_str()))
            .bind(i64::from(agent.version))
            .bind(row::to_json(agent)?)
            .execute(writing.connection())
            .await
            .map_err(refused)?;
            if done.rows_affected() == 1 {
                return Ok(writing.finish(agent).await?);
            }
            drop(writing);
            let known = self.agent(&agent.id, None).await?;
            Err(known.map_or(DefinitionError::NotFound, |_| DefinitionError::Conflict))
        })
        .await
    }

    async fn archive_agent(
        &self,
        id: &AgentId,
        at: Timestamp,
        keep: Option<Keep<Agent>>,
    ) -> Result<Agent, DefinitionError> {
        bounded(async {
            let mut writing = self.writing(keep).await?;
            query("UPDATE agents SET archived_at = $2 WHERE id = $1 AND archived_at IS NULL")
                .bind(findable(id.as_str()))
                .bind(at.as_micros())
                .execute(writing.connection())
                .await
                .map_err(store_error)?;
            let archived = agent(writing.connection(), id, None).await?.ok_or(DefinitionError::NotFound)?;
            writing.finish(&archived).await?;
            Ok(archived)
        })
        .await
    }

    async fn list_agents(&self, list: &ListDefinitions) -> Result<Vec<Agent>, StoreError> {
        bounded(async {
            let rows = query(
                "SELECT v.body, a.archived_at FROM agents a \
                 JOIN agent_versions v ON v.agent_id = a.id AND v.version = a.latest_version \
                 WHERE a.created_at >= $1 AND a.created_at < $2 AND ($3 OR a.archived_at IS NULL) \
                 AND ($4::bigint IS NULL OR (a.created_at, a.id) < ($4, $5)) \
                 ORDER BY a.created_at DESC, a.id DESC LIMIT $6",
            )
            .bind(list.created.from.map_or(i64::MIN, Timestamp::as_micros))
            .bind(list.created.before.map_or(i64::MAX, Timestamp::as_micros))
            .bind(list.include_archived)
            .bind(list.after.as_ref().map(|after| after.created_at.as_micros()))
            .bind(list.after.as_ref().map(|after| findable(&after.id)))
            .bind(row_limit(list.limit))
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)?;
            rows.iter().map(row::agent).collect()
        })
        .await
    }

    async fn agent_versions(&self, id: &AgentId, before: Option<u32>, limit: usize) -> Result<Vec<Agent>, StoreError> {
        bounded(async {
            let rows = query(
                "SELECT v.body, a.archived_at FROM agent_versions v JOIN agents a ON a.id = v.agent_id \
                 WHERE v.agent_id = $1 AND v.version < $2 ORDER BY v.version DESC LIMIT $3",
            )
            .bind(findable(id.as_str()))
            .bind(before.map_or(i64::MAX, i64::from))
            .bind(row_limit(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)?;
            rows.iter().map(row::agent).collect()
        })
        .await
    }

    async fn create_environment(
        &self,
        environment: &Environment,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError> {
        bounded(async {
            let mut writing = self.writing(keep).await?;
            query(
                "INSERT INTO environments (id, name, created_at, updated_at, archived_at, body) \
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(environment.id.as_str())
            .bind(row::to_json(&environment.name)?)
            .bind(environment.created_at.as_micros())
            .bind(environment.updated_at.as_micros())
            .bind(environment.archived_at.map(Timestamp::as_micros))
            .bind(row::to_json(environment)?)
            .execute(writing.connection())
            .await
            .map_err(refused)?;
            Ok(writing.finish(environment).await?)
        })
        .await
    }

    async fn environment(&self, id: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
        bounded(environment(&self.pool, id)).await
    }

    async fn update_environment(
        &self,
        environment: &Environment,
        seen_updated_at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<(), DefinitionError> {
        bounded(async {
            let mut writing = self.writing(keep).await?;
            let done = query(
                "UPDATE environments SET name = $2, updated_at = $3, body = $4 \
                 WHERE id = $1 AND updated_at = $5 AND archived_at IS NULL",
            )
            .bind(findable(environment.id.as_str()))
            .bind(row::to_json(&environment.name)?)
            .bind(environment.updated_at.as_micros())
            .bind(row::to_json(environment)?)
            .bind(seen_updated_at.as_micros())
            .execute(writing.connection())
            .await
            .map_err(refused)?;
            if done.rows_affected() == 1 {
                return Ok(writing.finish(environment).await?);
            }
            drop(writing);
            let known = self.environment(&environment.id).await?;
            Err(known.map_or(DefinitionError::NotFound, |_| DefinitionError::Conflict))
        })
        .await
    }

    async fn archive_environment(
        &self,
        id: &EnvironmentId,
        at: Timestamp,
        keep: Option<Keep<Environment>>,
    ) -> Result<Environment, DefinitionError> {
        bounded(async {
            let mut writing = self.writing(keep).await?;
            query("UPDATE environments SET archived_at = $2 WHERE id = $1 AND archived_at IS NULL")
                .bind(findable(id.as_str()))
                .bind(at.as_micros())
                .execute(writing.connection())
                .await
                .map_err(store_error)?;
            let archived = environment(writing.connection(), id).await?.ok_or(DefinitionError::NotFound)?;
            writing.finish(&archived).await?;
            Ok(archived)
        })
        .await
    }

    async fn delete_environment(&self, id: &EnvironmentId) -> Result<(), DefinitionError> {
        bounded(async {
            let deleted: i64 = query_scalar(
                "WITH gone AS (DELETE FROM environments WHERE id = $1 AND NOT EXISTS (\
                     SELECT 1 FROM sessions WHERE environment_id = $1 AND deleted_at IS NULL) RETURNING id), \
                 keys AS (DELETE FROM environment_keys WHERE environment_id IN (SELECT id FROM gone)) \
                 SELECT COUNT(*) FROM gone",
            )
            .bind(findable(id.as_str()))
            .fetch_one(&self.pool)
            .await
            .map_err(store_error)?;
            if deleted == 1 {
                return Ok(());
            }
            let known = self.environment(id).await?;
            Err(known.map_or(DefinitionError::NotFound, |_| DefinitionError::InUse))
        })
        .await
    }

    async fn list_environments(&self, list: &ListDefinitions) -> Result<Vec<Environment>, StoreError> {
        bounded(async {
            let rows = query(
                "SELECT body, archived_at FROM environments \
                 WHERE created_at >= $1 AND created_at < $2 AND ($3 OR archived_at IS NULL) \
                 AND ($4::bigint IS NULL OR (created_at, id) < ($4, $5)) \
                 ORDER BY created_at DESC, id DESC LIMIT $6",
            )
            .bind(list.created.from.map_or(i64::MIN, Timestamp::as_micros))
            .bind(list.created.before.map_or(i64::MAX, Timestamp::as_micros))
            .bind(list.include_archived)
            .bind(list.after.as_ref().map(|after| after.created_at.as_micros()))
            .bind(list.after.as_ref().map(|after| findable(&after.id)))
            .bind(row_limit(list.limit))
            .fetch_all(&self.pool)
            .await
            .map_err(store_error)?;
            rows.iter().map(row::environment).collect()
        })
        .await
    }

    async fn create_environment_key(&self, key: &EnvironmentKey) -> Result<(), DefinitionError> {
        bounded(async {
            let done = query(
                "INSERT INTO environment_keys (id, environment_id, key_hash, created_at, revoked_at) \
                 SELECT $1, id, $3, $4, $5 FROM environments WHERE id = $2",
            )
            .bind(key.id.as_str())
            .bind(findable(key.environment_id.as_str()))
            .bind(&key.key_hash)
            .bind(key.created_at.as_micros())
            .bind(key.revoked_at.map(Timestamp::as_micros))
            .execute(&self.pool)
            .await
            .map_err(refused)?;
            if done.rows_affected() == 0 { Err(DefinitionError::NotFound) } else { Ok(()) }
        })
        .await
    }

    async fn environment_key(&self, key_hash: &str) -> Result<Option<EnvironmentKey>, StoreError> {
        bounded(async {
            let found = query("SELECT * FROM environment_keys WHERE key_hash = $1 AND revoked_at IS NULL")
                .bind(findable(key_hash))
                .fetch_optional(&self.pool)
                .await
                .map_err(store_error)?;
            found.as_ref().map(row::environment_key).transpose()
        })
        .await
    }

    async fn list_environment_keys(&self, id: &EnvironmentId) -> Result<Vec<EnvironmentKey>, StoreError> {
        bounded(async {
            let rows =
                query("SELECT * FROM environment_keys WHERE environment_id = $1 ORDER BY created_at DESC, id DESC")
                    .bind(findable(id.as_str()))
                    .fetch_all(&self.pool)
                    .await
                    .map_err(store_error)?;
            rows.iter().map(row::environment_key).collect()
        })
        .await
    }

    async fn revoke_environment_key(&self, id: &EnvironmentKeyId, at: Timestamp) -> Result<(), DefinitionError> {
        bounded(async {
            let done = query("UPDATE environment_keys SET revoked_at = COALESCE(revoked_at, $2) WHERE id = $1")
                .bind(findable(id.as_str()))
                .bind(at.as_micros())
                .execute(&self.pool)
                .await
                .map_err(store_error)?;
            if done.rows_affected() == 0 { Err(DefinitionError::NotFound) } else { Ok(()) }
        })
        .await
    }
}

async fn agent(executor: impl PgExecutor<'_>, id: &AgentId, version: Option<u32>) -> Result<Option<Agent>, StoreError> {
    let found = query(
        "SELECT v.body, a.archived_at FROM agents a \
         JOIN agent_versions v ON v.agent_id = a.id AND v.version = COALESCE($2, a.latest_version) \
         WHERE a.id = $1",
    )
    .bind(findable(id.as_str()))
    .bind(version.map(i64::from))
    .fetch_optional(executor)
    .await
    .map_err(store_error)?;
    found.as_ref().map(row::agent).transpose()
}

async fn environment(executor: impl PgExecutor<'_>, id: &EnvironmentId) -> Result<Option<Environment>, StoreError> {
    let found = query("SELECT body, archived_at FROM environments WHERE id = $1")
        .bind(findable(id.as_str()))
        .fetch_optional(executor)
        .await
        .map_err(store_error)?;
    found.as_ref().map(row::environment).transpose()
}

/// What a refused row means: the name of an active environment, or an id or hash that is there.
fn refused(error: sqlx::Error) -> DefinitionError {
    let constraint = error.as_database_error().and_then(|said| said.constraint());
    match constraint {
        Some("environments_active_name") => DefinitionError::NameTaken,
        _ if is_unique_violation(&error) => DefinitionError::Conflict,
        _ => store_error(error).into(),
    }
}
