//! `providers`: keys and addresses of model providers, for every model that does not name its own.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Problem;
use super::secrets::{self, SecretError};
use crate::secret::Secret;

/// Keys and addresses of model providers, for every model that does not name its own.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProvidersSection {
    /// The Anthropic Messages API.
    pub anthropic: ProviderAccess,
    /// An OpenAI-compatible server.
    pub openai: ProviderAccess,
}

/// How one provider is reached.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProviderAccess {
    /// The provider's key.
    #[serde(serialize_with = "secrets::serialize")]
    pub api_key: Option<Secret>,
    /// File that holds `api_key`.
    pub api_key_file: Option<PathBuf>,
    /// Where the provider is. Unset, it is the provider's public address.
    pub base_url: Option<String>,
}

impl ProvidersSection {
    pub(super) fn read_secrets(&mut self) -> Result<(), SecretError> {
        let ProviderAccess { api_key, api_key_file, .. } = &mut self.anthropic;
        secrets::read("providers.anthropic.api_key", api_key, api_key_file.as_deref())?;
        let ProviderAccess { api_key, api_key_file, .. } = &mut self.openai;
        secrets::read("providers.openai.api_key", api_key, api_key_file.as_deref())
    }

    pub(super) fn validate(&self) -> Result<(), Problem> {
        let addresses = [
            ("providers.anthropic.base_url", &self.anthropic.base_url),
            ("providers.openai.base_url", &self.openai.base_url),
        ];
        for (key, address) in addresses {
            if let Some(address) = address
                && !url::Url::parse(address).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
            {
                return Err(Problem::new(key, "must begin with http:// or https://"));
            }
        }
        Ok(())
    }
}
