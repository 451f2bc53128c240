//! `agent-service keys`: the keys of self-hosted environments, straight on the store.
//!
//! The store keeps a key's hash alone; the key is shown once, when it is made. A server that runs on the same store
//! knows of every change at once.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use engine::port::definitions::DefinitionError;
use engine::port::{Definitions, Entropy as _, EnvironmentConfig, EnvironmentKey};
use session::id::{EnvironmentId, EnvironmentKeyId, Ids};

use super::store::Store;
use super::system::{SystemEntropy, draw_key, now};
use super::{SettingsArguments, small_runtime};
use crate::http::{ENVIRONMENT_KEY_PREFIX, secret_hash};

/// What to do with keys.
#[derive(Debug, Args)]
pub(super) struct KeysArguments {
    #[command(flatten)]
    settings: SettingsArguments,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key for an environment's workers and print it; it is not shown again.
    Create {
        /// The self-hosted environment.
        #[arg(long, value_name = "ID")]
        environment: String,
    },
    /// List an environment's keys, never the keys themselves.
    List {
        /// The self-hosted environment.
        #[arg(long, value_name = "ID")]
        environment: String,
    },
    /// Make a key worthless.
    Revoke {
        /// The key's id, as `list` shows it.
        id: String,
    },
}

pub(super) fn run(arguments: &KeysArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.settings.load(|_| {})?;
    small_runtime()?.block_on(async {
        let store = Store::open_beside(&config).await?;
        match &arguments.action {
            Action::Create { environment } => create(&*store.definitions, environment).await?,
            Action::List { environment } => list(&*store.definitions, environment).await?,
            Action::Revoke { id } => revoke(&*store.definitions, id).await?,
        }
        store.database().close().await;
        Ok(ExitCode::SUCCESS)
    })
}

async fn create(definitions: &dyn Definitions, environment: &str) -> anyhow::Result<()> {
    let environment_id = self_hosted(definitions, environment).await?;
    let key = draw_key(ENVIRONMENT_KEY_PREFIX);
    let record = EnvironmentKey {
        id: Ids::from_seed(SystemEntropy.draw()).next(),
        environment_id,
        key_hash: secret_hash(&key),
        created_at: now(),
        revoked_at: None,
    };
    definitions.create_environment_key(&record).await?;
    println!("{key}");
    eprintln!("made {} for {environment}: keep the key now, it is not shown again", record.id);
    Ok(())
}

async fn list(definitions: &dyn Definitions, environment: &str) -> anyhow::Result<()> {
    let environment_id = self_hosted(definitions, environment).await?;
    for key in definitions.list_environment_keys(&environment_id).await? {
        match key.revoked_at {
            Some(at) => println!("{} made {} revoked {at}", key.id, key.created_at),
            None => println!("{} made {}", key.id, key.created_at),
        }
    }
    Ok(())
}

async fn revoke(definitions: &dyn Definitions, id: &str) -> anyhow::Result<()> {
    match definitions.revoke_environment_key(&EnvironmentKeyId::from(id), now()).await {
        Ok(()) => {
            println!("{id} revoked");
            Ok(())
        }
        Err(DefinitionError::NotFound) => bail!("there is no key {id}: `keys list` shows those there are"),
        Err(error) => Err(error).context(format!("cannot revoke {id}")),
    }
}

/// The environment, which must be one whose workers have keys.
async fn self_hosted(definitions: &dyn Definitions, id: &str) -> anyhow::Result<EnvironmentId> {
    let environment = definitions.environment(&EnvironmentId::from(id)).await?;
    let environment = environment.with_context(|| format!("there is no environment {id}"))?;
    if environment.archived_at.is_some() {
        bail!("environment {id} is archived");
    }
    match environment.config {
        EnvironmentConfig::SelfHosted => Ok(environment.id),
        EnvironmentConfig::Cloud { .. } => {
            bail!(
                "environment {id} is of type cloud, whose workers share the server's worker key: set AGENT_WORKER_KEY"
            )
        }
    }
}
