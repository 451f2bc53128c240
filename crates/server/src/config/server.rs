//! `server`: where this process listens, what it keeps on disk and how it leaves.

use std::net::IpAddr;
use std::path::PathBuf;

use engine::port::Track;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secrets::{self, SecretError};
use super::{Problem, TimeSpan};
use crate::secret::Secret;

/// Where this process listens, what it keeps on disk and how it leaves.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSection {
    /// Address that both listeners bind. `::` takes IPv4 as well.
    pub host: IpAddr,
    /// Port of the API. 0 takes a free one and prints it.
    pub port: u16,
    /// Port of the metrics, a listener of its own without authentication. 0 takes a free one and prints it.
    pub metrics_port: u16,
    /// How long model requests may stay open after SIGTERM. Turns are handed over between two steps, so nothing else
    /// takes time; a request that is cut is made again by another replica. A server that keeps its record in SQLite
    /// waits for 10 s at most, since nobody goes on with its turns before its next start.
    pub drain_timeout: TimeSpan,
    /// How long whoever ends this process waits between SIGTERM and SIGKILL: `terminationGracePeriodSeconds` of
    /// Kubernetes without the `preStop` pause, `stop_grace_period` of compose. A drain that does not fit is told as
    /// an error at start.
    pub termination_grace: Option<TimeSpan>,
    /// Folder that holds the SQLite database, the workspaces of the server's own worker and the key that was made.
    pub data_dir: PathBuf,
    /// Release track of this process, `stable` or `canary`: a label of every metric and log line. With PostgreSQL a
    /// replica claims only sessions of its own track, and others once their track has had no replica for 10 s.
    pub track: String,
    /// Key that clients send. Without one, a key is made and kept in the data folder.
    #[serde(serialize_with = "secrets::serialize")]
    pub api_key: Option<Secret>,
    /// File that holds `api_key`.
    pub api_key_file: Option<PathBuf>,
}

impl Default for ServerSection {
    fn default() -> Self {
        Self {
            host: IpAddr::from([0u16; 8]),
            port: 8080,
            metrics_port: 9090,
            drain_timeout: TimeSpan::from_secs(300),
            termination_grace: None,
            data_dir: PathBuf::from("./data"),
            track: "stable".to_owned(),
            api_key: None,
            api_key_file: None,
        }
    }
}

impl ServerSection {
    pub(super) fn read_secrets(&mut self) -> Result<(), SecretError> {
        secrets::read("server.api_key", &mut self.api_key, self.api_key_file.as_deref())
    }

    pub(super) fn validate(&self) -> Result<(), Problem> {
        if self.port != 0 && self.port == self.metrics_port {
            return Err(Problem::new("server.metrics_port", "must differ from server.port"));
        }
        if ![Track::Stable, Track::Canary].iter().any(|track| track.name() == self.track) {
            return Err(Problem::new("server.track", "must be stable or canary"));
        }
        if let Some(key) = &self.api_key
            && key.expose().len() < 8
        {
            return Err(Problem::new("server.api_key", "must have at least 8 characters"));
        }
        Ok(())
    }
}
