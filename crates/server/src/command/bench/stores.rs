//! The stores that a run measures on.

use anyhow::Context as _;
use clap::Args;

use crate::command::serve;
use crate::config::Config;
use crate::secret::Secret;

/// What the caller names; the rest is in a temporary folder.
#[derive(Debug, Args)]
pub(super) struct Stores {
    /// PostgreSQL database to measure on, which will be written to; without it, SQLite in a temporary folder.
    #[arg(long, value_name = "URL")]
    pub(super) postgres: Option<String>,
    /// Redis for the server to use beside the database, under prefixes of its own; without it, none.
    #[arg(long, value_name = "URL")]
    pub(super) redis: Option<String>,
}

impl Stores {
    /// What the report calls them.
    pub(super) fn name(&self) -> &'static str {
        match (&self.postgres, &self.redis) {
            (None, None) => "SQLite",
            (None, Some(_)) => "SQLite and Redis",
            (Some(_), None) => "PostgreSQL",
            (Some(_), Some(_)) => "PostgreSQL and Redis",
        }
    }

    /// Whether Redis is there: a server runs without it as well, and what was measured would have the wrong name.
    pub(super) async fn check_redis(&self) -> anyhow::Result<()> {
        let Some(url) = &self.redis else { return Ok(()) };
        let config = Config::load(None, &|_| None, |config| config.redis.url = Some(Secret::new(url.clone())));
        let redis = serve::redis::open(&config.context("--redis")?.redis).context("--redis")?;
        let redis = redis.expect("the settings name one");
        redis.version().await.context("--redis: there is no answer; start the server, or leave the option out")?;
        Ok(())
    }
}
