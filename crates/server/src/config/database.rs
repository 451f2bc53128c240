//! `database`: where the record is kept.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;
use super::secrets::{self, SecretError};
use crate::secret::Secret;

/// Where the record is kept. Without a `url` it is a SQLite file in the data folder.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseSection {
    /// Address of a PostgreSQL database, such as `postgres://user:password@host/name`.
    #[serde(serialize_with = "secrets::serialize")]
    pub url: Option<Secret>,
    /// File that holds `url`.
    pub url_file: Option<PathBuf>,
    /// The same database past any pooler that shares connections between transactions. One connection of each replica
    /// needs it: the one whose end says that the replica is gone. Unset, it is `url`.
    #[serde(serialize_with = "secrets::serialize")]
    pub direct_url: Option<Secret>,
    /// File that holds `direct_url`.
    pub direct_url_file: Option<PathBuf>,
    /// Connections that this replica opens at most, that one aside. Those of all replicas together must fit PostgreSQL's
    /// `max_connections`.
    pub max_connections: u32,
    /// Whether `serve` brings the schema up to date when it starts. Otherwise `agent-service migrate` does.
    pub migrate: bool,
}

impl Default for DatabaseSection {
    fn default() -> Self {
        Self { url: None, url_file: None, direct_url: None, direct_url_file: None, max_connections: 9, migrate: true }
    }
}

impl DatabaseSection {
    pub(super) fn read_secrets(&mut self) -> Result<(), SecretError> {
        secrets::read("database.url", &mut self.url, self.url_file.as_deref())?;
        secrets::read("database.direct_url", &mut self.direct_url, self.direct_url_file.as_deref())
    }

    pub(super) fn validate(&self) -> Result<(), Problem> {
        for (key, url) in [("database.url", &self.url), ("database.direct_url", &self.direct_url)] {
            if let Some(url) = url
                && !["postgres://", "postgresql://"].iter().any(|scheme| url.expose().starts_with(scheme))
            {
                return Err(Problem::new(key, "must begin with postgres://"));
            }
        }
        if self.max_connections < 2 {
            return Err(Problem::new("database.max_connections", "must be at least 2"));
        }
        Ok(())
    }
}
