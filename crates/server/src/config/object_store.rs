//! `object_store`: where large content is kept beside a PostgreSQL database.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;

/// Where large content is kept beside a PostgreSQL database: files, large results of tools, workspaces. With SQLite it
/// is the folder `blobs` of the data folder.
///
/// How an S3-compatible store is reached is said by the usual variables of the environment: `AWS_ENDPOINT_URL`,
/// `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_ALLOW_HTTP`,
/// `AWS_VIRTUAL_HOSTED_STYLE_REQUEST`, `AWS_ROLE_ARN` with `AWS_WEB_IDENTITY_TOKEN_FILE`, and the rest of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectStoreSection {
    /// `s3://bucket`, `s3://bucket/prefix`, or a folder that all replicas share. Without it large content stays in the
    /// database's rows, and files are refused.
    pub url: Option<String>,
}

impl ObjectStoreSection {
    pub(super) fn validate(&self, has_database: bool) -> Result<(), Problem> {
        let Some(url) = &self.url else { return Ok(()) };
        if url.contains("://") && !url.starts_with("s3://") && !url.starts_with("file://") {
            return Err(Problem::new("object_store.url", "must be s3://bucket, s3://bucket/prefix or a folder"));
        }
        if !has_database {
            let message = "goes with database.url (POSTGRES_URL); without it large content lies in server.data_dir";
            return Err(Problem::new("object_store.url", message));
        }
        Ok(())
    }
}
